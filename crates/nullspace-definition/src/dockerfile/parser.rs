//! Parser of a Dockerfile's instructions, as BuildKit's parser reads them (`frontend/dockerfile/parser` there).
//!
//! ```text
//!   text ── directives ── lines ── continued lines joined, comments dropped ── here-documents ──> instructions
//! ```
//! The parser refuses what BuildKit's parser refuses, and what BuildKit's rules of instructions refuse before a build.

use serde::Deserialize as _;
use serde_json::Value;

use super::documents::{self, Document};
use super::words;
use super::{Fault, fault};

/// Most faults reported for one Dockerfile.
pub(super) const MAX_FAULTS: usize = 20;

/// A parsed Dockerfile.
#[derive(Debug)]
pub(super) struct Parsed {
    /// The escape character.
    pub(super) escape: char,
    pub(super) instructions: Vec<Instruction>,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instruction {
    /// Keyword, in capitals.
    pub(super) keyword: String,
    /// `--name=value`, in order.
    pub(super) flags: Vec<Flag>,
    /// The text after the flags, with continued lines joined.
    pub(super) rest: String,
    /// The exec form's words.
    pub(super) json: Option<Vec<String>>,
    pub(super) documents: Vec<Document>,
    /// Its first line, counted from 1.
    pub(super) line: u32,
    /// The instruction of an ONBUILD.
    pub(super) trigger: Option<Box<Instruction>>,
}

/// A flag of an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flag {
    pub(super) name: String,
    pub(super) value: Option<String>,
}

impl Instruction {
    /// Its words: those of a JSON array, or those between white space.
    pub(super) fn words(&self) -> Vec<&str> {
        match &self.json {
            Some(words) => words.iter().map(String::as_str).collect(),
            None => self.rest.split_whitespace().collect(),
        }
    }

    /// Whether its words may begin here-documents.
    fn takes_documents(&self) -> bool {
        let about = self.trigger.as_deref().unwrap_or(self);
        matches!(about.keyword.as_str(), "ADD" | "COPY" | "RUN") && about.json.is_none()
    }

    /// The values of the flag with this name.
    pub(super) fn flag(&self, name: &str) -> impl Iterator<Item = &str> {
        self.flags.iter().filter(move |flag| flag.name == name).filter_map(|flag| flag.value.as_deref())
    }
}

/// Parses a text. Faults of single instructions are reported for all of them.
pub(super) fn parse(text: &str) -> Result<Parsed, Vec<Fault>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape(text).map_err(|fault| vec![fault])?;
    let mut instructions = Vec::new();
    let mut faults = Vec::new();
    let mut staged = false;
    let mut last = 1;
    let mut lines = (1_u32..).zip(text.split_inclusive('\n'));
    while let Some((number, first)) = lines.next() {
        last = number;
        let first = bare(first).trim_start();
        if is_comment(first) {
            continue;
        }
        let (part, mut ended) = continued(first, escape);
        if ended && part.is_empty() {
            continue;
        }
        let mut joined = part.to_owned();
        while !ended {
            let Some((_, line)) = lines.next() else { break };
            let line = bare(line);
            if is_comment(line.trim_start()) || line.trim_start().is_empty() {
                continue;
            }
            let (part, end) = continued(line, escape);
            joined.push_str(part);
            ended = end;
        }
        let mut instruction = match instruction(&joined, number, escape) {
            Ok(instruction) => instruction,
            Err(fault) => {
                faults.push(fault);
                if faults.len() >= MAX_FAULTS {
                    break;
                }
                continue;
            }
        };
        let begun = if instruction.takes_documents() { documents::begun(&joined) } else { Vec::new() };
        for mut document in begun {
            loop {
                let Some((_, line)) = lines.next() else {
                    let what = format_args!("the here-document {} does not end", document.name.escape_debug());
                    faults.push(fault(number, what));
                    return Err(faults);
                };
                if document.ends(line) {
                    break;
                }
                document.content.push_str(line);
            }
            instruction.documents.push(document);
        }
        staged |= instruction.keyword == "FROM";
        if !staged && instruction.keyword != "ARG" {
            faults.push(fault(number, format_args!("{} stands before the first FROM", instruction.keyword)));
            break;
        }
        instructions.push(instruction);
    }
    if !staged && faults.is_empty() {
        faults.push(fault(last, "there is no FROM"));
    }
    if faults.is_empty() { Ok(Parsed { escape, instructions }) } else { Err(faults) }
}

/// A line without its end.
fn bare(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

fn is_comment(line: &str) -> bool {
    line.starts_with('#')
}

/// A line without the escape that continues it, and whether the line ends here. A line with two escapes at its end does: that
/// is a literal escape.
fn continued(line: &str, escape: char) -> (&str, bool) {
    let rest = line.trim_end_matches([' ', '\t']).strip_suffix(escape);
    rest.filter(|rest| !rest.ends_with(escape)).map_or((line, true), |rest| (rest, false))
}

/// The directives before everything else: `# name=value`, up to the first line that is not one.
pub(super) fn directives(text: &str) -> impl Iterator<Item = (u32, String, &str)> {
    (1_u32..).zip(text.lines()).map_while(|(number, line)| {
        let (name, value) = line.strip_prefix('#')?.split_once('=')?;
        let name = name.trim().to_ascii_lowercase();
        matches!(name.as_str(), "syntax" | "escape" | "check").then_some((number, name, value.trim()))
    })
}

fn escape(text: &str) -> Result<char, Fault> {
    let mut found = None;
    for (number, name, value) in directives(text) {
        if name != "escape" {
            continue;
        }
        if found.is_some() {
            return Err(fault(number, "the escape directive is given twice"));
        }
        found = Some(match value {
            "\\" => '\\',
            "`" => '`',
            _ => return Err(fault(number, "the escape directive must be \\ or `")),
        });
    }
    Ok(found.unwrap_or('\\'))
}

/// One instruction from its joined lines.
fn instruction(joined: &str, line: u32, escape: char) -> Result<Instruction, Fault> {
    let joined = joined.trim();
    let (keyword, rest) = joined.split_once(char::is_whitespace).unwrap_or((joined, ""));
    let keyword = keyword.to_uppercase();
    let (flags, rest) = flags(rest);
    let mut read = Instruction {
        json: None,
        flags,
        rest: rest.trim().to_owned(),
        documents: Vec::new(),
        line,
        trigger: None,
        keyword,
    };
    let array = |text: &str, what: &str| json(text).map_err(|()| fault(line, what));
    match read.keyword.as_str() {
        "RUN" | "CMD" | "ENTRYPOINT" | "SHELL" => {
            read.json = array(&read.rest, "an array of a command's words must hold strings only")?;
        }
        "ADD" | "COPY" | "VOLUME" => {
            read.json = array(&read.rest, "an array of paths must hold strings only")?;
        }
        "HEALTHCHECK" => {
            let (_, command) = read.rest.split_once(char::is_whitespace).unwrap_or_default();
            read.json = array(command.trim_start(), "an array of a command's words must hold strings only")?;
        }
        "ONBUILD" if !read.rest.is_empty() => {
            let keyword = read.rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
            if matches!(keyword.as_str(), "FROM" | "ONBUILD" | "MAINTAINER") {
                return Err(fault(line, "ONBUILD cannot be followed by FROM, ONBUILD or MAINTAINER"));
            }
            read.trigger = Some(Box::new(instruction(&read.rest, line, escape)?));
        }
        _ => {}
    }
    match unsound(&read, escape) {
        None => Ok(read),
        Some(what) => Err(fault(line, what)),
    }
}

/// The fault of an instruction by itself.
fn unsound(read: &Instruction, escape: char) -> Option<String> {
    let keyword = &read.keyword;
    let words = read.words().len();
    let lacks_value = |text: &str| {
        let fields = words::fields(text, escape);
        fields.first().is_some_and(|first| first.contains('=')) && fields.iter().any(|field| !field.contains('='))
    };
    match keyword.as_str() {
        "FROM" => match read.words().as_slice() {
            [_] => None,
            [_, word, name] if word.eq_ignore_ascii_case("as") => (!is_stage_name(name)).then(|| {
                format!(
                    "'{}' is no name of a stage: it must begin with a letter and hold letters, digits, '-', '_' and '.'",
                    name.escape_debug()
                )
            }),
            _ => Some("FROM needs an image, or an image, AS and a name".to_owned()),
        },
        "ADD" | "COPY" if words < 2 => Some(format!("{keyword} needs a source and a destination")),
        "ENV" | "LABEL" if lacks_value(&read.rest) => Some(format!("{keyword} has a name without '='")),
        "ENV" if words < 2 && !read.rest.contains('=') => Some("ENV needs a name and a value".to_owned()),
        "LABEL" if words < 2 && !read.rest.contains('=') => Some("LABEL needs a name and a value".to_owned()),
        "ARG" | "EXPOSE" | "VOLUME" | "ONBUILD" | "HEALTHCHECK" | "MAINTAINER" | "STOPSIGNAL" | "USER" | "WORKDIR"
            if read.rest.is_empty() =>
        {
            Some(format!("{keyword} needs something behind it"))
        }
        "SHELL" if read.json.as_ref().is_none_or(Vec::is_empty) => {
            Some("SHELL needs a JSON array of words".to_owned())
        }
        "HEALTHCHECK" => {
            let (kind, command) = read.rest.split_once(char::is_whitespace).unwrap_or((&read.rest, ""));
            match kind.to_ascii_uppercase().as_str() {
                "NONE" => None,
                "CMD" if command.trim().is_empty() => Some("HEALTHCHECK CMD needs a command".to_owned()),
                "CMD" => None,
                _ => Some("HEALTHCHECK needs CMD or NONE".to_owned()),
            }
        }
        "ADD" | "ARG" | "CMD" | "COPY" | "ENTRYPOINT" | "ENV" | "EXPOSE" | "LABEL" | "MAINTAINER" | "ONBUILD" | "RUN"
        | "SHELL" | "STOPSIGNAL" | "USER" | "VOLUME" | "WORKDIR" => None,
        _ => Some(format!("unknown instruction '{}'", keyword.chars().take(64).collect::<String>().escape_debug())),
    }
}

/// `^[a-z][a-z0-9-_\.]*$`, in any case.
fn is_stage_name(name: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(rest)
}

/// The flags at the start of an instruction's arguments, without quotes and escapes, and the rest of the text.
fn flags(text: &str) -> (Vec<Flag>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        let mut word = String::new();
        let mut quote = None;
        let mut end = rest.len();
        let mut chars = rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match (quote, c) {
                (None, c) if c.is_whitespace() => {
                    end = at;
                    break;
                }
                (None, '"' | '\'') => quote = Some(c),
                (Some(open), c) if c == open => quote = None,
                (_, '\\') => word.extend(chars.next().map(|(_, c)| c)),
                (_, c) => word.push(c),
            }
        }
        rest = rest.get(end..).unwrap_or_default().trim_start();
        if word == "--" {
            break;
        }
        let (name, value) = word.trim_start_matches('-').split_once('=').map_or_else(
            || (word.trim_start_matches('-').to_owned(), None),
            |(name, value)| (name.to_owned(), Some(value.to_owned())),
        );
        flags.push(Flag { name, value });
    }
    (flags, rest)
}

/// A JSON array of strings at the start of a text; `None` without an array, an error for an array of other values. As in
/// BuildKit, text after the array is ignored.
fn json(text: &str) -> Result<Option<Vec<String>>, ()> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let Ok(Value::Array(values)) = Value::deserialize(&mut reader) else { return Ok(None) };
    let words = values.into_iter().map(|value| match value {
        Value::String(word) => Ok(word),
        _ => Err(()),
    });
    words.collect::<Result<_, ()>>().map(Some)
}
