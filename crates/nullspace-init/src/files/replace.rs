//! Replacing in files, in place.
//!
//! The file keeps its inode, and with it its owner, mode, attributes and other names. A new content that is longer gets its
//! space on the disk first, so that a full disk changes nothing. A crash of the machine in the middle of the writing leaves
//! a file of both contents.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use nullspace_guest::message::{Failure, Outcome};
use nullspace_guest::search::{MAX_FILES, MAX_REPLACED, Replace, Replaced, SkippedFile};
use regex::bytes::Regex;

use super::find::{compile, is_binary};
use super::transfer::{Lines, open, regular};
use super::{Stop, failure, invalid};
use crate::session::Channel;

/// What came of one file.
enum Done {
    Binary,
    Replaced(u64),
}

/// Replaces in each file, and sends those in which it could not.
pub(super) fn replace(
    request: &Replace,
    place: impl Fn(&str) -> Result<std::path::PathBuf, Failure>,
    channel: &Channel,
) -> Result<Outcome, Stop> {
    let pattern = compile(&request.pattern)?;
    if request.files.len() > MAX_FILES {
        return Err(invalid(format!("There are more than {MAX_FILES} files.")).into());
    }
    let mut lines = Lines::new(channel);
    let mut replaced = Replaced::default();
    for name in &request.files {
        if channel.is_reset() {
            return Err(Stop::Cancelled);
        }
        let done = place(name).and_then(|path| one(&path, &pattern, request.replacement.as_bytes(), request.dry_run));
        match done {
            Ok(Done::Replaced(0)) => {}
            Ok(Done::Replaced(count)) => {
                replaced.replacements += count;
                replaced.modified += 1;
            }
            Ok(Done::Binary) => replaced.binary += 1,
            Err(failure) => {
                replaced.skipped += 1;
                lines.push(&SkippedFile { path: name.clone(), error: failure.message })?;
            }
        }
    }
    lines.flush()?;
    Ok(Outcome::Replaced { replaced })
}

fn one(path: &Path, pattern: &Regex, replacement: &[u8], dry_run: bool) -> Result<Done, Failure> {
    let cannot = |error: io::Error| failure(&error, "Nothing can be replaced in it", path);
    let file = open(path, OpenOptions::new().read(true).write(!dry_run)).map_err(cannot)?;
    regular(&file, path)?;
    let too_large = || invalid(format!("`{}` is larger than {MAX_REPLACED} bytes.", path.display()));
    let mut before = Vec::new();
    let read = (&file).take(MAX_REPLACED as u64 + 1).read_to_end(&mut before).map_err(cannot)?;
    if read > MAX_REPLACED {
        return Err(too_large());
    }
    if is_binary(&before) {
        return Ok(Done::Binary);
    }
    let (after, count) = substitute(&before, pattern, replacement).ok_or_else(too_large)?;
    if count > 0 && !dry_run && after != before {
        rewrite(&file, before.len(), &after).map_err(cannot)?;
    }
    Ok(Done::Replaced(count))
}

/// The text with all matches replaced, and how many there were; `None` when it would be too large.
fn substitute(text: &[u8], pattern: &Regex, replacement: &[u8]) -> Option<(Vec<u8>, u64)> {
    let (mut after, mut from, mut count) = (Vec::new(), 0, 0);
    for matched in pattern.find_iter(text) {
        after.extend_from_slice(text.get(from..matched.start())?);
        after.extend_from_slice(replacement);
        from = matched.end();
        count += 1;
        if after.len() > MAX_REPLACED {
            return None;
        }
    }
    after.extend_from_slice(text.get(from..)?);
    (after.len() <= MAX_REPLACED).then_some((after, count))
}

fn rewrite(file: &File, before: usize, after: &[u8]) -> io::Result<()> {
    let (old, new) = (before as u64, after.len() as u64);
    if new > old {
        let (offset, length) = (i64::try_from(old), i64::try_from(new - old));
        let (Ok(offset), Ok(length)) = (offset, length) else { return Err(io::ErrorKind::FileTooLarge.into()) };
        match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
            // Filesystems that cannot promise space say so when it is written.
            Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    file.write_all_at(after, 0)?;
    if new < old { file.set_len(new) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use nullspace_guest::message::FailureKind;

    use super::*;

    #[test]
    fn a_replacement_is_made_in_place_and_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("f"), folder.path().join("other"));
        std::fs::write(&path, "one two\none\n").unwrap();
        std::fs::hard_link(&path, &other).unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        let replaced =
            |pattern: &str, with: &str, dry_run| match one(&path, &compile(pattern).unwrap(), with.as_bytes(), dry_run)
            {
                Ok(Done::Replaced(count)) => count,
                Ok(Done::Binary) => panic!("binary"),
                Err(failure) => panic!("{failure}"),
            };
        let text = || std::fs::read_to_string(&other).unwrap();
        assert_eq!(replaced("o(n)e", "$1\\1", true), 2);
        assert_eq!(text(), "one two\none\n");
        assert_eq!(replaced("o(n)e", "$1\\1 is longer", false), 2);
        assert_eq!(text(), "$1\\1 is longer two\n$1\\1 is longer\n");
        assert_eq!(replaced(r"\$1\\1 is longer", "x", false), 2);
        assert_eq!(text(), "x two\nx\n");
        assert_eq!(replaced("none", "", false), 0);
        assert_eq!(replaced("(?m)^", "> ", false), 3);
        assert_eq!(text(), "> x two\n> x\n> ");
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    }

    #[test]
    fn what_cannot_be_replaced_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let pattern = compile("a").unwrap();
        let kind = |name: &str| one(&at(name), &pattern, b"b", false).map(drop).unwrap_err().kind;
        std::fs::write(at("binary"), b"a\0a").unwrap();
        assert!(matches!(one(&at("binary"), &pattern, b"b", false), Ok(Done::Binary)));
        assert_eq!(kind("none"), FailureKind::FileNotFound);
        std::fs::create_dir(at("folder")).unwrap();
        assert_eq!(kind("folder"), FailureKind::Invalid);
        File::create(at("large")).unwrap().set_len(MAX_REPLACED as u64 + 1).unwrap();
        assert_eq!(kind("large"), FailureKind::Invalid);
        assert!(substitute(&[b'a'; 1 << 20], &pattern, &[b'b'; 17]).is_none());
    }
}
