//! The walk through a directory tree that a search makes: in the order of paths, without following links, within limits. Names are
//! kept and not paths: of each directory on the way, those that are still to be visited.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::statfs::{self, FsType};
use nullspace_guest::search::{Cut, MAX_SECS, MAX_VISITED, Searched};

use super::Stop;
use crate::session::Channel;

/// A search goes no deeper.
const MAX_DEPTH: u32 = 64;

/// Most bytes that the names of a walk take at a time, with what it costs to keep them.
pub(super) const MAX_NAME_BYTES: usize = 16 << 20;
/// Bytes that a name takes beside its own.
const NAME_COST: usize = size_of::<OsString>() + 16;

/// Filesystems that show the kernel and not files: they are searched only when the path itself names something in them.
const NOT_FILES: &[FsType] = &[
    statfs::PROC_SUPER_MAGIC,
    statfs::SYSFS_MAGIC,
    statfs::CGROUP_SUPER_MAGIC,
    statfs::CGROUP2_SUPER_MAGIC,
    statfs::DEBUGFS_MAGIC,
    statfs::TRACEFS_MAGIC,
    statfs::DEVPTS_SUPER_MAGIC,
    statfs::SECURITYFS_MAGIC,
    statfs::BPF_FS_MAGIC,
];

/// The names in a directory, in order, and the bytes that they take. `None`: there are more than `most`, or they take more bytes.
pub(super) fn names(path: &Path, most: usize, most_bytes: usize) -> io::Result<Option<(Vec<OsString>, usize)>> {
    let (mut names, mut bytes) = (Vec::new(), 0);
    for entry in fs::read_dir(path)?.flatten() {
        let name = entry.file_name();
        bytes += name.len() + NAME_COST;
        if names.len() >= most || bytes > most_bytes {
            return Ok(None);
        }
        names.push(name);
    }
    names.sort_unstable();
    Ok(Some((names, bytes)))
}

/// What is left of a search's limits, and what it has met.
pub(super) struct Bounds<'a> {
    channel: &'a Channel,
    until: Instant,
    visited: usize,
    /// Bytes of names that are kept.
    name_bytes: usize,
    pub(super) searched: Searched,
}

impl Bounds<'_> {
    pub(super) fn new(channel: &Channel) -> Bounds<'_> {
        let until = Instant::now() + Duration::from_secs(MAX_SECS);
        Bounds { channel, until, visited: 0, name_bytes: 0, searched: Searched::default() }
    }

    /// False when the search is over: it has met a limit.
    pub(super) fn go_on(&mut self) -> Result<bool, Stop> {
        if self.channel.is_reset() {
            return Err(Stop::Cancelled);
        }
        if self.searched.cut.is_none() && Instant::now() >= self.until {
            self.cut(Cut::Time);
        }
        Ok(self.searched.cut.is_none())
    }

    /// The search has met a limit. The first one counts.
    pub(super) fn cut(&mut self, cut: Cut) {
        self.searched.cut.get_or_insert(cut);
    }

    /// Calls `each` with every entry below `path`, until a limit is met.
    pub(super) fn walk(
        &mut self,
        path: &Path,
        each: &mut dyn FnMut(&mut Bounds<'_>, &Path, &Metadata) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let device = fs::metadata(path).map(|meta| meta.dev()).unwrap_or_default();
        self.folder(path, device, MAX_DEPTH, each)
    }

    fn folder(
        &mut self,
        path: &Path,
        device: u64,
        depth: u32,
        each: &mut dyn FnMut(&mut Bounds<'_>, &Path, &Metadata) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let (most, most_bytes) = (MAX_VISITED - self.visited, MAX_NAME_BYTES - self.name_bytes);
        let (inside, bytes) = match names(path, most, most_bytes) {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.cut(Cut::Files);
                return Ok(());
            }
            Err(_) => {
                self.searched.unreadable += 1;
                return Ok(());
            }
        };
        self.visited += inside.len();
        self.name_bytes += bytes;
        for name in inside {
            if !self.go_on()? {
                break;
            }
            let path = path.join(name);
            // Gone meanwhile.
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            each(self, &path, &meta)?;
            if meta.is_dir() && depth > 1 && (meta.dev() == device || has_files(&path)) {
                self.folder(&path, meta.dev(), depth - 1, each)?;
            }
        }
        self.name_bytes -= bytes;
        Ok(())
    }
}

fn has_files(path: &Path) -> bool {
    statfs::statfs(path).is_ok_and(|stat| !NOT_FILES.contains(&stat.filesystem_type()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_directory_are_few_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b", "a", "c"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let cost = 3 * (1 + NAME_COST);
        let (all, bytes) = names(folder.path(), 3, cost).unwrap().unwrap();
        assert_eq!((all, bytes), (vec!["a".into(), "b".into(), "c".into()], cost));
        assert!(names(folder.path(), 2, cost).unwrap().is_none(), "too many");
        assert!(names(folder.path(), 3, cost - 1).unwrap().is_none(), "too long together");
        assert!(names(&folder.path().join("none"), 3, cost).is_err());
    }
}
