//! Searches: for lines of files by a regular expression, and for names by a glob.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nullspace_guest::message::{Failure, Outcome};
use nullspace_guest::search::{Cut, FoundLine, MAX_ANSWER, MAX_CONTENT, MAX_LINES, MAX_NAMES, MAX_PATTERN};
use regex::bytes::{Regex, RegexBuilder};

use super::transfer::{Lines, open, regular};
use super::walk::Bounds;
use super::{Stop, failure, invalid};
use crate::session::Channel;

/// Memory of a compiled pattern, bytes, and of the automaton that is made of it while it runs.
const MAX_COMPILED: usize = 1 << 20;
/// Parentheses within one another in a pattern.
const MAX_NESTING: u32 = 50;
/// Bytes of a file that are looked at for a NUL byte.
pub(super) const BINARY_HEAD: usize = 8 << 10;
/// The first bytes of a line that are searched.
const MAX_LINE: usize = 1 << 20;
/// A file is read in pieces of this size.
const PIECE: usize = 256 << 10;
/// Lines between two looks at the time.
const LINES: u64 = 1024;

/// Parses a regular expression. Matching takes time linear in the text, whatever the pattern.
pub(super) fn compile(pattern: &str) -> Result<Regex, Failure> {
    if pattern.is_empty() {
        return Err(invalid("The pattern is empty.".into()));
    }
    if pattern.len() > MAX_PATTERN {
        return Err(invalid(format!("The pattern is longer than {MAX_PATTERN} bytes.")));
    }
    let built = RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_COMPILED)
        .nest_limit(MAX_NESTING)
        .build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => invalid("The pattern is too large: shorten its repetitions.".into()),
        error => {
            let text = error.to_string();
            let why = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_owned();
            invalid(format!(
                "The pattern is not a regular expression: {why}. A backslash before a character such as ( or [ takes it as it is."
            ))
        }
    })
}

/// True when the file looks binary: a NUL byte is near its beginning.
pub(super) fn is_binary(head: &[u8]) -> bool {
    head.get(..BINARY_HEAD.min(head.len())).unwrap_or_default().contains(&0)
}

/// Sends the lines of a file, or of those below a directory, that match.
pub(super) fn lines(path: &Path, pattern: &str, channel: &Channel) -> Result<Outcome, Stop> {
    let pattern = compile(pattern)?;
    let meta = std::fs::metadata(path).map_err(|error| failure(&error, "It cannot be searched", path))?;
    let mut bounds = Bounds::new(channel);
    let mut search = LineSearch { pattern, lines: Lines::new(channel), found: 0, buffer: Vec::new() };
    if meta.is_dir() {
        // As for a listing: a directory that was asked for and cannot be read is an error.
        std::fs::read_dir(path).map_err(|error| failure(&error, "It cannot be searched", path))?;
        bounds.walk(path, &mut |bounds, path, meta| search.entry(bounds, path, meta))?;
    } else {
        let cannot = |error: std::io::Error| failure(&error, "It cannot be searched", path);
        let file = open(path, OpenOptions::new().read(true)).map_err(cannot)?;
        regular(&file, path)?;
        search.file(&mut bounds, path, file)?;
    }
    search.lines.flush()?;
    Ok(Outcome::Searched { searched: bounds.searched })
}

struct LineSearch<'a> {
    pattern: Regex,
    lines: Lines<'a>,
    found: usize,
    buffer: Vec<u8>,
}

impl LineSearch<'_> {
    fn entry(&mut self, bounds: &mut Bounds<'_>, path: &Path, meta: &Metadata) -> Result<(), Stop> {
        if !meta.is_file() {
            return Ok(());
        }
        // Something else may be there by now.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
        match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) if regular(&file, path).is_ok() => self.file(bounds, path, file),
            Ok(_) => Ok(()),
            Err(_) => {
                bounds.searched.unreadable += 1;
                Ok(())
            }
        }
    }

    fn file(&mut self, bounds: &mut Bounds<'_>, path: &Path, mut file: File) -> Result<(), Stop> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let done = self.pieces(bounds, path, &mut file, &mut buffer);
        self.buffer = buffer;
        done
    }

    /// Reads piece by piece; the buffer has the part of a line that is not whole yet.
    fn pieces(
        &mut self,
        bounds: &mut Bounds<'_>,
        path: &Path,
        file: &mut File,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        buffer.resize(MAX_LINE + PIECE, 0);
        let (mut kept, mut line, mut first, mut skipping) = (0, 1_u64, true, false);
        loop {
            if !bounds.go_on()? {
                return Ok(());
            }
            let read = match file.read(buffer.get_mut(kept..kept + PIECE).unwrap_or_default()) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => {
                    bounds.searched.unreadable += 1;
                    return Ok(());
                }
            };
            let have = buffer.get(..kept + read).unwrap_or_default();
            if std::mem::take(&mut first) {
                if is_binary(have) {
                    bounds.searched.binary += 1;
                    return Ok(());
                }
                bounds.searched.files += 1;
            }
            let mut rest = have;
            // What was kept has no end of line in it.
            let mut seen = if skipping { 0 } else { kept };
            while let Some(end) = rest.get(seen..).and_then(|new| new.iter().position(|byte| *byte == b'\n')) {
                let (whole, after) = rest.split_at(seen + end);
                rest = after.get(1..).unwrap_or_default();
                seen = 0;
                if !std::mem::take(&mut skipping) {
                    self.line(bounds, path, line, whole)?;
                }
                line += 1;
                if line.is_multiple_of(LINES) && !bounds.go_on()? || bounds.searched.cut.is_some() {
                    return Ok(());
                }
            }
            let over = read == 0;
            if skipping {
                rest = &[];
            } else if (over && !rest.is_empty()) || rest.len() >= MAX_LINE {
                self.line(bounds, path, line, rest)?;
                skipping = !over;
                rest = &[];
            }
            if over {
                return Ok(());
            }
            let from = have.len() - rest.len();
            kept = rest.len();
            buffer.copy_within(from..from + kept, 0);
        }
    }

    fn line(&mut self, bounds: &mut Bounds<'_>, path: &Path, number: u64, text: &[u8]) -> Result<(), Stop> {
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let text = text.get(..MAX_LINE.min(text.len())).unwrap_or_default();
        let Some(matched) = self.pattern.find(text) else { return Ok(()) };
        if self.found == MAX_LINES || self.lines.bytes > MAX_ANSWER - 8 * MAX_CONTENT {
            bounds.cut(Cut::Matches);
            return Ok(());
        }
        self.found += 1;
        let content = String::from_utf8_lossy(text.get(around(text.len(), &matched.range())).unwrap_or_default());
        let file = path.to_string_lossy().into_owned();
        self.lines.push(&FoundLine { file, line: number, content: content.into_owned() })
    }
}

/// The part of a line that is shown: its beginning, or when the match is not in that, from a quarter before the match.
fn around(len: usize, matched: &Range<usize>) -> Range<usize> {
    let start = if matched.end <= MAX_CONTENT { 0 } else { matched.start.saturating_sub(MAX_CONTENT / 4) };
    start..len.min(start + MAX_CONTENT)
}

/// Sends the paths below a directory whose names match a glob.
pub(super) fn names(path: &Path, pattern: &str, channel: &Channel) -> Result<Outcome, Stop> {
    let whole_path = pattern.contains('/');
    let pattern = compile_glob(pattern)?;
    std::fs::read_dir(path).map_err(|error| failure(&error, "It cannot be searched", path))?;
    let mut bounds = Bounds::new(channel);
    let mut lines = Lines::new(channel);
    let mut found = 0;
    bounds.walk(path, &mut |bounds, entry, _| {
        let subject = if whole_path { entry.strip_prefix(path).ok() } else { entry.file_name().map(Path::new) };
        let subject = subject.unwrap_or(entry).to_string_lossy();
        if !pattern.is_match(subject.as_bytes()) {
            return Ok(());
        }
        if found == MAX_NAMES || lines.bytes > MAX_ANSWER - 8 * MAX_CONTENT {
            bounds.cut(Cut::Matches);
            return Ok(());
        }
        found += 1;
        lines.push(&entry.to_string_lossy())
    })?;
    lines.flush()?;
    Ok(Outcome::Searched { searched: bounds.searched })
}

/// A glob as a regular expression: `*`, `**`, `?`, `[…]`, `[!…]`, `{a,b}`, and a backslash for the characters themselves.
fn compile_glob(glob: &str) -> Result<Regex, Failure> {
    let mut text = String::from(r"(?s)\A");
    let mut chars = glob.strip_prefix("./").unwrap_or(glob).chars().peekable();
    let mut open = 0_u32;
    while let Some(char) = chars.next() {
        match char {
            '*' if chars.peek() == Some(&'*') => {
                chars.next();
                // `a/**/b` is also `a/b`.
                if chars.next_if_eq(&'/').is_some() { text.push_str("(?:.*/)?") } else { text.push_str(".*") }
            }
            '*' => text.push_str("[^/]*"),
            '?' => text.push_str("[^/]"),
            '[' => {
                let mut class = String::new();
                let not = chars.next_if(|next| matches!(next, '!' | '^')).is_some();
                loop {
                    match chars.next() {
                        Some(']') if !class.is_empty() => break,
                        Some('-') => class.push('-'),
                        Some(char) => class.push_str(&regex::escape(char.encode_utf8(&mut [0; 4]))),
                        None => return Err(invalid("The pattern has a `[` without its `]`.".into())),
                    }
                }
                text.push_str(if not { "[^/" } else { "[" });
                text.push_str(&class);
                text.push(']');
            }
            '{' => {
                open += 1;
                text.push_str("(?:");
            }
            ',' if open > 0 => text.push('|'),
            '}' if open > 0 => {
                open -= 1;
                text.push(')');
            }
            '\\' => {
                let char = chars.next().ok_or_else(|| invalid("The pattern ends in a backslash.".into()))?;
                text.push_str(&regex::escape(char.encode_utf8(&mut [0; 4])));
            }
            char => text.push_str(&regex::escape(char.encode_utf8(&mut [0; 4]))),
        }
    }
    if open > 0 {
        return Err(invalid("The pattern has a `{` without its `}`.".into()));
    }
    if glob.is_empty() || glob.len() > MAX_PATTERN {
        return Err(invalid(format!("The pattern must have 1 to {MAX_PATTERN} bytes.")));
    }
    text.push_str(r"\z");
    RegexBuilder::new(&text)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_COMPILED)
        .nest_limit(MAX_NESTING)
        .build()
        .map_err(|_| invalid("The pattern is not a glob, or too large.".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_in_a_shell() {
        for (glob, yes, no) in [
            ("*.txt", vec!["a.txt", ".txt"], vec!["a.txt~", "d/a.txt", "atxt"]),
            ("?.rs", vec!["a.rs", "ü.rs"], vec!["ab.rs", ".rs"]),
            ("src/**/*.rs", vec!["src/a.rs", "src/b/c/a.rs"], vec!["a.rs", "src/a.py"]),
            ("**/x", vec!["x", "a/x"], vec!["ax"]),
            ("[a-c]1", vec!["a1", "c1"], vec!["d1", "-1"]),
            ("[!a]", vec!["b"], vec!["a", "/"]),
            ("[]]", vec!["]"], vec!["["]),
            ("*.{js,ts}", vec!["a.js", "b.ts"], vec!["a.jsx"]),
            (r"\*", vec!["*"], vec!["a"]),
            ("a+(b)", vec!["a+(b)"], vec!["aab"]),
            ("./a", vec!["a"], vec!["./a"]),
        ] {
            let pattern = compile_glob(glob).unwrap_or_else(|failure| panic!("{glob}: {failure}"));
            for name in yes {
                assert!(pattern.is_match(name.as_bytes()), "{glob} {name}");
            }
            for name in no {
                assert!(!pattern.is_match(name.as_bytes()), "{glob} {name}");
            }
        }
        for wrong in ["", "[a", "{a", "a\\", &"x".repeat(MAX_PATTERN + 1)] {
            assert!(compile_glob(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn patterns_that_are_wrong_or_too_large_say_so() {
        for (pattern, said) in [("", "empty"), ("foo(", "unclosed group"), ("(?:a{1000}){1000}", "too large")] {
            let failure = compile(pattern).unwrap_err();
            assert!(failure.message.contains(said), "{pattern}: {failure}");
        }
        assert!(compile(&"x".repeat(MAX_PATTERN + 1)).is_err());
        assert!(compile(&"(".repeat(1000)).is_err());
    }

    #[test]
    fn a_long_line_is_shown_around_its_match() {
        assert_eq!(around(10, &(2..4)), 0..10);
        assert_eq!(around(100_000, &(2..4)), 0..MAX_CONTENT);
        assert_eq!(around(100_000, &(50_000..50_001)), 48_976..48_976 + MAX_CONTENT);
        assert_eq!(around(50_001, &(50_000..50_001)), 48_976..50_001);
    }
}
