//! Splits a process's bytes into log lines, and keeps the last lines for a failure's details.

use std::collections::VecDeque;

/// Number of last lines kept.
const LAST: usize = 20;
/// Most bytes of each.
const LAST_BYTES: usize = 512;

/// Splits a byte stream into text lines of bounded length. Invalid UTF-8 becomes U+FFFD. A longer line is cut into pieces.
#[derive(Debug)]
pub(crate) struct Lines {
    rest: Vec<u8>,
    longest: usize,
}

impl Lines {
    /// Lines of at most `longest` bytes.
    pub(crate) fn new(longest: usize) -> Lines {
        Lines { rest: Vec::new(), longest: longest.max(4) }
    }

    /// The lines that these bytes complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if self.rest.last() == Some(&b'\n') {
                self.rest.pop();
                let whole = std::mem::take(&mut self.rest);
                self.cut(whole, true, &mut lines);
            } else if self.rest.len() > self.longest {
                let long = std::mem::take(&mut self.rest);
                self.cut(long, false, &mut lines);
            }
        }
        lines
    }

    /// The last line, if it had no end.
    pub(crate) fn finish(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            self.cut(rest, true, &mut lines);
        }
        lines
    }

    fn cut(&mut self, mut line: Vec<u8>, whole: bool, lines: &mut Vec<String>) {
        if whole && line.last() == Some(&b'\r') {
            line.pop();
        }
        let mut rest = line.as_slice();
        while rest.len() > self.longest {
            // Not inside a character: continuation bytes are 0b10xxxxxx.
            let at =
                (self.longest - 3..=self.longest).rev().find(|&at| rest[at] & 0xc0 != 0x80).unwrap_or(self.longest);
            let (head, tail) = rest.split_at(at);
            lines.push(String::from_utf8_lossy(head).into_owned());
            rest = tail;
        }
        if whole {
            lines.push(String::from_utf8_lossy(rest).into_owned());
        } else {
            self.rest = rest.to_vec();
        }
    }
}

/// The last lines that are not blank, oldest first, each cut to a limit.
pub(crate) struct LastLines {
    lines: VecDeque<String>,
    mark: &'static str,
}

impl LastLines {
    /// `mark` follows a line that was cut.
    pub(crate) fn new(mark: &'static str) -> LastLines {
        LastLines { lines: VecDeque::new(), mark }
    }

    pub(crate) fn push(&mut self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        if self.lines.len() >= LAST {
            self.lines.pop_front();
        }
        let kept = line.get(..line.floor_char_boundary(LAST_BYTES)).unwrap_or_default();
        let mark = if kept.len() < line.len() { self.mark } else { "" };
        self.lines.push_back(format!("{kept}{mark}"));
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(longest: usize, chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::new(longest);
        let mut out: Vec<String> = chunks.iter().flat_map(|chunk| lines.push(chunk)).collect();
        out.extend(lines.finish());
        out
    }

    #[test]
    fn lines_end_at_newlines_wherever_the_chunks_end() {
        assert_eq!(all(100, &[b"a", b"b\nc\r\n", b"\n", b"d"]), ["ab", "c", "", "d"]);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        assert_eq!(all(5, &["äöüß\n".as_bytes()]), ["äö", "üß"]);
        assert_eq!(all(4, &[b"\xff\xfeab"]), ["\u{fffd}\u{fffd}ab"]);
    }

    proptest! {
        #[test]
        fn chunking_never_changes_ascii_text(text in "[a-z\n]{0,300}", at in 0usize..300) {
            let bytes = text.as_bytes();
            let (head, tail) = bytes.split_at(at.min(bytes.len()));
            prop_assert_eq!(all(1000, &[head, tail]), all(1000, &[bytes]));
        }
    }

    #[test]
    fn the_last_lines_are_few_not_blank_and_cut_between_characters() {
        let mut last = LastLines::new("…");
        for number in 0..LAST + 5 {
            last.push(&format!("line {number}"));
            last.push(" ");
        }
        last.push(&"ä".repeat(LAST_BYTES));
        let all = last.all();
        assert_eq!((all.len(), all[0].as_str()), (LAST, "line 6"));
        assert_eq!(all[LAST - 1], format!("{}…", "ä".repeat(LAST_BYTES / 2)));
        let mut last = LastLines::new("");
        last.push(&format!("x{}", "ä".repeat(LAST_BYTES)));
        assert_eq!(last.all(), [format!("x{}", "ä".repeat(LAST_BYTES / 2 - 1))]);
    }
}
