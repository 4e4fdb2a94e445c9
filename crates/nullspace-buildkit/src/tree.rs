//! Files to be sent, with the sources of their bytes, in the order that BuildKit expects.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;

/// Permissions of files without their own.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

/// Source of a file's bytes.
#[derive(Debug, Clone)]
pub enum Source {
    /// In memory.
    Memory(Bytes),
    /// In a file of this host, of exactly this length.
    File {
        /// Which.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
}

impl Source {
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Source::Memory(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            Source::File { bytes, .. } => *bytes,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Permission bits, with setuid, setgid and sticky.
    pub(crate) mode: u32,
    /// `None` is a directory.
    pub(crate) source: Option<Source>,
}

/// An invalid path: absolute, empty, or leading elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a path inside a context")]
pub struct InvalidPath(pub String);

/// A tree of files and directories. Owners are root and times are fixed, so that equal trees are sent as equal bytes.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// By path, with NUL for the slashes: a directory comes before what is in it, and what is in it before its next
    /// sibling, which is the order of a walk.
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// Adds a file. Directories above it that are not there are added.
    pub fn file(&mut self, path: &str, mode: Option<u32>, source: Source) -> Result<(), InvalidPath> {
        self.add(path, Entry { mode: mode.unwrap_or(FILE_MODE) & 0o7777, source: Some(source) })
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str, mode: Option<u32>) -> Result<(), InvalidPath> {
        self.add(path, Entry { mode: mode.unwrap_or(DIRECTORY_MODE) & 0o7777, source: None })
    }

    fn add(&mut self, path: &str, entry: Entry) -> Result<(), InvalidPath> {
        let invalid = || InvalidPath(path.to_owned());
        let bad = |part: &str| part.is_empty() || part == "." || part == "..";
        if path.contains('\0') || path.split('/').any(bad) {
            return Err(invalid());
        }
        for (at, _) in path.match_indices('/') {
            let above = path.get(..at).unwrap_or_default().replace('/', "\0");
            let above = self.entries.entry(above).or_insert(Entry { mode: DIRECTORY_MODE, source: None });
            if above.source.is_some() {
                return Err(invalid());
            }
        }
        self.entries.insert(path.replace('/', "\0"), entry);
        Ok(())
    }

    /// A file's source.
    pub fn get(&self, path: &str) -> Option<&Source> {
        self.entries.get(&path.replace('/', "\0"))?.source.as_ref()
    }

    /// Paths and entries in the order of a walk.
    pub(crate) fn walk(&self) -> impl Iterator<Item = (String, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.replace('\0', "/"), entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_a_walk_and_directories_above_are_made() {
        let mut tree = Tree::default();
        let file = || Source::Memory(Bytes::from_static(b"x"));
        for path in ["a.txt", "a/b", "a-b", "a/b.c/d", "B"] {
            tree.file(path, None, file()).unwrap();
        }
        tree.directory("a/b.c", Some(0o700)).unwrap();
        let walked: Vec<_> = tree.walk().map(|(path, entry)| format!("{path} {:o}", entry.mode)).collect();
        assert_eq!(walked, ["B 644", "a 755", "a/b 644", "a/b.c 700", "a/b.c/d 644", "a-b 644", "a.txt 644"]);
        for path in ["", "/a", "a//b", "a/../b", ".", "a\0b", "a.txt/x"] {
            assert_eq!(tree.file(path, None, file()), Err(InvalidPath(path.to_owned())));
        }
    }
}
