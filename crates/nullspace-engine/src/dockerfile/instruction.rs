//! One instruction: its keyword and its arguments, as they are shown.

use parse_dockerfile::{Command, Flag, HealthcheckArguments, Instruction, JsonOrStringArray, Source, UnescapedString};
use serde_json::json;

/// An instruction's keyword in capitals, and where it stands.
pub(super) fn keyword(instruction: &Instruction<'_>) -> (&'static str, usize) {
    match instruction {
        Instruction::Add(i) => ("ADD", i.add.span.start),
        Instruction::Arg(i) => ("ARG", i.arg.span.start),
        Instruction::Cmd(i) => ("CMD", i.cmd.span.start),
        Instruction::Copy(i) => ("COPY", i.copy.span.start),
        Instruction::Entrypoint(i) => ("ENTRYPOINT", i.entrypoint.span.start),
        Instruction::Env(i) => ("ENV", i.env.span.start),
        Instruction::Expose(i) => ("EXPOSE", i.expose.span.start),
        Instruction::From(i) => ("FROM", i.from.span.start),
        Instruction::Healthcheck(i) => ("HEALTHCHECK", i.healthcheck.span.start),
        Instruction::Label(i) => ("LABEL", i.label.span.start),
        Instruction::Maintainer(i) => ("MAINTAINER", i.maintainer.span.start),
        Instruction::Onbuild(i) => ("ONBUILD", i.onbuild.span.start),
        Instruction::Run(i) => ("RUN", i.run.span.start),
        Instruction::Shell(i) => ("SHELL", i.shell.span.start),
        Instruction::Stopsignal(i) => ("STOPSIGNAL", i.stopsignal.span.start),
        Instruction::User(i) => ("USER", i.user.span.start),
        Instruction::Volume(i) => ("VOLUME", i.volume.span.start),
        Instruction::Workdir(i) => ("WORKDIR", i.workdir.span.start),
        // The crate may learn a keyword that this was not written for.
        _ => ("UNKNOWN", 0),
    }
}

/// An instruction's arguments, continued lines joined.
pub(super) fn arguments(instruction: &Instruction<'_>, escape: char) -> String {
    let with_flags = |flags: &[Flag<'_>], rest: String| {
        let flags = flags.iter().map(|flag| match &flag.value {
            Some(value) => format!("--{}={}", flag.name.value.trim_start_matches('-'), value.value),
            None => format!("--{}", flag.name.value.trim_start_matches('-')),
        });
        flags.chain([rest]).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    };
    let sources = |sources: &[Source<'_>], dest: &UnescapedString<'_>| {
        let sources = sources.iter().map(|source| match source {
            Source::Path(path) => path.value.to_string(),
            Source::HereDoc(document) => format!("<<EOF\n{}EOF", document.value),
            _ => String::new(),
        });
        sources.chain([dest.value.to_string()]).collect::<Vec<_>>().join(" ")
    };
    match instruction {
        Instruction::Add(i) => with_flags(&i.options, sources(&i.src, &i.dest)),
        Instruction::Copy(i) => with_flags(&i.options, sources(&i.src, &i.dest)),
        Instruction::Arg(i) => i.arguments.value.to_string(),
        Instruction::Cmd(i) => command(&i.arguments, escape),
        Instruction::Entrypoint(i) => command(&i.arguments, escape),
        Instruction::Env(i) => i.arguments.value.to_string(),
        Instruction::Expose(i) => joined(&i.arguments),
        Instruction::From(i) => i.image.value.to_string(),
        Instruction::Healthcheck(i) => match &i.arguments {
            HealthcheckArguments::Cmd { arguments, .. } => {
                with_flags(&i.options, format!("CMD {}", command(arguments, escape)))
            }
            _ => "NONE".to_owned(),
        },
        Instruction::Label(i) => i.arguments.value.to_string(),
        Instruction::Maintainer(i) => i.name.value.to_string(),
        Instruction::Onbuild(i) => {
            format!("{} {}", keyword(&i.instruction).0, arguments(&i.instruction, escape))
        }
        Instruction::Run(i) => {
            let documents = i.here_docs.iter().map(|document| format!("\n{}", document.value));
            let command = command(&i.arguments, escape);
            with_flags(&i.options, std::iter::once(command).chain(documents).collect())
        }
        Instruction::Shell(i) => json!(i.arguments.iter().map(|word| &word.value).collect::<Vec<_>>()).to_string(),
        Instruction::Stopsignal(i) => i.arguments.value.to_string(),
        Instruction::User(i) => i.arguments.value.to_string(),
        Instruction::Volume(i) => match &i.arguments {
            JsonOrStringArray::Json(words) => joined(&words.value),
            JsonOrStringArray::String(words) => joined(words),
        },
        Instruction::Workdir(i) => i.arguments.value.to_string(),
        _ => String::new(),
    }
}

fn joined(words: &[UnescapedString<'_>]) -> String {
    words.iter().map(|word| word.value.as_ref()).collect::<Vec<_>>().join(" ")
}

/// The shell form as it is, continued lines joined; the exec form escaped for show.
pub(super) fn command(command: &Command<'_>, escape: char) -> String {
    match command {
        Command::Exec(words) => {
            words.value.iter().map(|word| crate::plan::quote(&word.value)).collect::<Vec<_>>().join(" ")
        }
        Command::Shell(text) => join_lines(text.value, escape),
        _ => String::new(),
    }
}

/// Drops each escape that ends a line, the line's end, and comment and empty lines within.
fn join_lines(text: &str, escape: char) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let bare = line.trim_start();
        if !out.is_empty() && (bare.is_empty() || bare.starts_with('#')) {
            continue;
        }
        let trimmed = line.trim_end();
        out.push_str(trimmed.strip_suffix(escape).unwrap_or(line));
    }
    out.trim().to_owned()
}
