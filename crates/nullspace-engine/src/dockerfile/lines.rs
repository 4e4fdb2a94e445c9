//! The lines of a Dockerfile: where they stand, which go on, and which belong to here-documents.
//!
//! The crate that reads the grammar knows fewer here-documents than BuildKit, and takes every line that ends with an escape
//! for one that goes on. What it would misread is changed for its eyes: documents become comments, and a line that only
//! seems to go on gets a [`MARK`] at its end.

use std::collections::BTreeMap;

use super::{Fault, fault};

/// Behind the last escape of a line that does not go on. A character that means nothing by itself.
const MARK: char = '\u{e000}';

/// Takes the here-documents of commands (`RUN python3 <<EOF`), which the crate reads at the start of RUN only, out of a
/// text: their lines become comments, so that every other line keeps its number. What is taken out comes by the line of
/// its instruction.
pub(super) fn without_documents(text: &str) -> Result<(String, BTreeMap<u32, String>), Fault> {
    let mut out = String::with_capacity(text.len());
    let mut documents = BTreeMap::new();
    let escape = if text.lines().take_while(|line| line.starts_with('#')).any(is_backtick) { '`' } else { '\\' };
    let mut lines = (1_u32..).zip(text.split_inclusive('\n'));
    // The command so far, over continued lines, and the line where it began.
    let mut command = String::new();
    let mut began = 1;
    let marked = !text.contains(MARK);
    while let Some((number, line)) = lines.next() {
        let trimmed = line.trim();
        let comment = trimmed.is_empty() || trimmed.starts_with('#');
        if marked && !comment && trimmed.ends_with(escape) && continued(trimmed, escape).is_none() {
            out.push_str(line.trim_end());
            out.push(MARK);
            out.push_str(if line.ends_with('\n') { "\n" } else { "" });
        } else {
            out.push_str(line);
        }
        if !command.is_empty() && comment {
            continue;
        }
        if command.is_empty() {
            began = number;
        }
        if let Some(part) = continued(trimmed, escape) {
            command.push_str(part);
            command.push(' ');
            continue;
        }
        command.push_str(trimmed);
        let whole = std::mem::take(&mut command);
        let (delimiters, ours) = documents_of(&whole);
        for (delimiter, tabs) in delimiters {
            let mut body = String::new();
            loop {
                // A document of the crate's own that does not end is the crate's to refuse.
                let Some((_, line)) = lines.next() else {
                    let unended = || fault(began, format_args!("the here-document {delimiter} does not end"));
                    return if ours { Err(unended()) } else { Ok((out, documents)) };
                };
                out.push_str(if !ours {
                    line
                } else if line.ends_with('\n') {
                    "#\n"
                } else {
                    "#"
                });
                let bare = line.trim_end_matches(['\n', '\r']);
                if (if tabs { bare.trim_start_matches('\t') } else { bare }) == delimiter {
                    break;
                }
                body.push_str(line);
            }
            if ours {
                documents.entry(began).or_insert_with(|| "\n".to_owned()).push_str(&body);
            }
        }
    }
    Ok((out, documents))
}

/// A line that goes on in the next one, without what says so. One that ends with two escapes does not: that is an escape,
/// written out.
fn continued(line: &str, escape: char) -> Option<&str> {
    line.strip_suffix(escape).filter(|rest| !rest.ends_with(escape))
}

/// Without the marks that [`without_documents`] has set.
pub(super) fn unmarked(text: &mut String) {
    if text.contains(MARK) {
        text.retain(|c| c != MARK);
    }
}

fn is_backtick(line: &str) -> bool {
    let directive = line.trim_start_matches('#').split_once('=');
    directive.is_some_and(|(name, value)| name.trim().eq_ignore_ascii_case("escape") && value.trim() == "`")
}

/// The delimiters of an instruction's here-documents, each with whether tabs before it are dropped; and whether they are
/// ours to take out: those in a RUN whose command does not begin with one.
fn documents_of(line: &str) -> (Vec<(String, bool)>, bool) {
    let none = (Vec::new(), false);
    let Some((keyword, command)) = line.split_once(char::is_whitespace) else { return none };
    let keyword = keyword.to_ascii_uppercase();
    if !matches!(keyword.as_str(), "RUN" | "COPY" | "ADD") {
        return none;
    }
    let mut words = command.split_whitespace().skip_while(|word| word.starts_with("--")).peekable();
    let ours = keyword == "RUN" && words.peek().is_some_and(|first| !first.starts_with("<<"));
    let mut found = Vec::new();
    for word in words {
        // `<<<` is a shell's here-string; a number before `<<` is a descriptor.
        let Some(rest) = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<") else { continue };
        let (rest, tabs) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
        let name = rest.trim_matches(['"', '\'']);
        if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            found.push((name.to_owned(), tabs));
        }
    }
    (found, ours)
}

/// Offsets to line numbers.
pub(super) struct Lines(Vec<usize>);

impl Lines {
    pub(super) fn new(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    pub(super) fn of(&self, offset: usize) -> u32 {
        let before = self.0.partition_point(|end| *end < offset);
        u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1)
    }
}
