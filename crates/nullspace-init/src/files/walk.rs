//! The walk through a directory tree that a search makes: in the order of paths, without following links, within limits.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::statfs::{self, FsType};
use nullspace_guest::search::{Cut, MAX_SECS, MAX_VISITED, Searched};

use super::Stop;
use crate::session::Channel;

/// A search goes no deeper.
const MAX_DEPTH: u32 = 64;

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

/// What is left of a search's limits, and what it has met.
pub(super) struct Bounds<'a> {
    channel: &'a Channel,
    until: Instant,
    visited: usize,
    pub(super) searched: Searched,
}

impl Bounds<'_> {
    pub(super) fn new(channel: &Channel) -> Bounds<'_> {
        let until = Instant::now() + Duration::from_secs(MAX_SECS);
        Bounds { channel, until, visited: 0, searched: Searched::default() }
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
        let Ok(found) = fs::read_dir(path) else {
            self.searched.unreadable += 1;
            return Ok(());
        };
        let left = MAX_VISITED - self.visited;
        let mut inside: Vec<_> = found.flatten().map(|entry| entry.path()).take(left + 1).collect();
        if inside.len() > left {
            self.cut(Cut::Files);
            return Ok(());
        }
        self.visited += inside.len();
        inside.sort_unstable();
        for path in inside {
            if !self.go_on()? {
                return Ok(());
            }
            // Gone meanwhile.
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            each(self, &path, &meta)?;
            if meta.is_dir() && depth > 1 && (meta.dev() == device || has_files(&path)) {
                self.folder(&path, meta.dev(), depth - 1, each)?;
            }
        }
        Ok(())
    }
}

fn has_files(path: &Path) -> bool {
    statfs::statfs(path).is_ok_and(|stat| !NOT_FILES.contains(&stat.filesystem_type()))
}
