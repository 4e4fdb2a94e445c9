//! Searching in a guest's files, and replacing in them: requests, limits and results.
//!
//! ```text
//!  FindLines   DATA: one JSON FoundLine a line      end Searched
//!  FindNames   DATA: one JSON string a line         end Searched
//!  Replace     DATA: one JSON SkippedFile a line    end Replaced
//! ```
//! The work is done as the request's user. Symbolic links below the path are not followed. Each operation has the limits of
//! this module; a search that meets one answers what it has found, and says which limit it was.

use serde::{Deserialize, Serialize};

/// Longest pattern, bytes.
pub const MAX_PATTERN: usize = 4096;
/// Most lines that a search for lines answers.
pub const MAX_LINES: usize = 1000;
/// Most names that a search for names answers.
pub const MAX_NAMES: usize = 10_000;
/// Most entries of directories that a search looks at.
pub const MAX_VISITED: usize = 200_000;
/// Most bytes of a line in an answer.
pub const MAX_CONTENT: usize = 4096;
/// Most bytes of an answer, as JSON.
pub const MAX_ANSWER: usize = 4 << 20;
/// Longest time of a search, seconds.
pub const MAX_SECS: u64 = 30;
/// Most files of a replacement.
pub const MAX_FILES: usize = 1000;
/// Largest file in which something is replaced, bytes before and after.
pub const MAX_REPLACED: usize = 16 << 20;

/// A line that matches.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct FoundLine {
    /// Path of the file.
    pub file: String,
    /// Number of the line, from 1.
    pub line: u64,
    /// The line without its end. Of one that is longer than [`MAX_CONTENT`], the part around the match. Bytes that are not
    /// UTF-8 are shown as U+FFFD.
    pub content: String,
}

/// The end of a search.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Searched {
    /// The limit that ended the search, if one did: there may be more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
    /// Files that were searched.
    pub files: u64,
    /// Binary files, which are not searched: with a NUL byte among their first 8 KiB.
    pub binary: u64,
    /// Files and directories that the user may not read.
    pub unreadable: u64,
}

/// A limit of a search.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// [`MAX_LINES`], [`MAX_NAMES`] or [`MAX_ANSWER`].
    Matches,
    /// [`MAX_VISITED`].
    Files,
    /// [`MAX_SECS`].
    Time,
}

/// A replacement in files.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Replace {
    /// The files, links followed.
    pub files: Vec<String>,
    /// Regular expression.
    pub pattern: String,
    /// Text for each match, as it is.
    pub replacement: String,
    /// Only count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// A file in which nothing could be replaced.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct SkippedFile {
    /// The path of the request.
    pub path: String,
    /// The reason, a sentence.
    pub error: String,
}

/// The end of a replacement.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Replaced {
    /// Matches that were replaced.
    pub replacements: u64,
    /// Files that were changed.
    pub modified: u64,
    /// Files that could not be changed, binary ones not counted.
    pub skipped: u64,
    /// Binary files, which are not changed.
    pub binary: u64,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// From a position on.
    From {
        /// Bytes before it.
        start: u64,
        /// Most bytes; `None`: to the file's end.
        length: Option<u64>,
    },
    /// The end of the file.
    Last {
        /// Most bytes.
        length: u64,
    },
}

impl Part {
    /// Returns start and length of the part in a file of `size` bytes. `None`: nothing of the file is in it.
    pub fn within(self, size: u64) -> Option<(u64, u64)> {
        let (start, length) = match self {
            Part::From { start, length } => {
                let rest = size.checked_sub(start)?;
                (start, length.map_or(rest, |length| length.min(rest)))
            }
            Part::Last { length } => (size.saturating_sub(length), length.min(size)),
        };
        (length > 0).then_some((start, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_within_its_file() {
        let from = |start, length| Part::From { start, length };
        for (part, size, expected) in [
            (from(0, None), 10, Some((0, 10))),
            (from(3, Some(4)), 10, Some((3, 4))),
            (from(9, Some(u64::MAX)), 10, Some((9, 1))),
            (from(10, None), 10, None),
            (from(u64::MAX, Some(1)), 10, None),
            (from(0, Some(0)), 10, None),
            (from(0, None), 0, None),
            (Part::Last { length: 4 }, 10, Some((6, 4))),
            (Part::Last { length: 40 }, 10, Some((0, 10))),
            (Part::Last { length: 0 }, 10, None),
            (Part::Last { length: 4 }, 0, None),
        ] {
            assert_eq!(part.within(size), expected, "{part:?} of {size}");
        }
    }
}
