//! An instruction's arguments in their shown form.

use serde_json::json;

use super::parser::{Flag, Instruction};
use crate::shell::line;

/// The text after the keyword. Here-documents keep their own lines.
pub(super) fn arguments(instruction: &Instruction) -> String {
    let mut shown = match instruction.keyword.as_str() {
        // The name of a stage says nothing about what the instruction does.
        "FROM" => instruction.words().first().map(|&image| image.to_owned()).unwrap_or_default(),
        "HEALTHCHECK" => match &instruction.json {
            Some(words) => with_flags(&instruction.flags, format!("CMD {}", line(words))),
            None => with_flags(&instruction.flags, instruction.rest.clone()),
        },
        "ONBUILD" => match &instruction.trigger {
            Some(trigger) => format!("{} {}", trigger.keyword, arguments(trigger)),
            None => instruction.rest.clone(),
        },
        _ => with_flags(&instruction.flags, command(instruction)),
    };
    for document in &instruction.documents {
        shown.push('\n');
        shown.push_str(&document.content);
        shown.push_str(&document.name);
    }
    shown
}

fn with_flags(flags: &[Flag], rest: String) -> String {
    let flags = flags.iter().map(|flag| match &flag.value {
        Some(value) => format!("--{}={value}", flag.name),
        None => format!("--{}", flag.name),
    });
    flags.chain([rest]).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The shell form unchanged; the exec form escaped for display; paths unchanged.
pub(super) fn command(instruction: &Instruction) -> String {
    match (&instruction.json, instruction.keyword.as_str()) {
        (None, _) => instruction.rest.clone(),
        (Some(words), "SHELL") => json!(words).to_string(),
        (Some(words), "ADD" | "COPY" | "VOLUME") => words.join(" "),
        (Some(words), _) => line(words),
    }
}
