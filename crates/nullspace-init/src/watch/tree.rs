//! The watched directories, and what the kernel's events mean for them.
//!
//! Paths in here are relative to the root. The kernel names a directory by its watch and an entry by its name, so the path of
//! each watched directory is kept, and changes when the directory is renamed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use nullspace_guest::message::{Failure, FailureKind};
use nullspace_guest::watch::{MAX_WATCHED_DIRECTORIES, WatchEvent, WatchKind};

use super::limit;
use crate::files::failure;

/// Most entries of new directories that are told and whose own events may still come. Beyond them stands an overflow event.
const MAX_TOLD: usize = 4096;
/// Most bytes of the paths of these entries.
const MAX_TOLD_BYTES: usize = 1 << 20;
/// Most bytes of the paths of all watched directories. Renames can make them longer than the kernel takes.
const MAX_PATHS: usize = 2 << 20;

/// The watched directories.
pub(super) struct Tree {
    root: PathBuf,
    recursive: bool,
    inotify: Inotify,
    folders: HashMap<WatchDescriptor, PathBuf>,
    paths: BTreeMap<PathBuf, WatchDescriptor>,
    /// Bytes of `paths`.
    path_bytes: usize,
    /// Entries of new directories that were told when the directory was looked through. Their own events may still come.
    told: HashSet<PathBuf>,
    /// Bytes of `told`.
    told_bytes: usize,
    /// The first half of a rename.
    moved: Option<Moved>,
}

struct Moved {
    cookie: u32,
    path: PathBuf,
}

/// Receives events.
type Tell<'a> = &'a mut dyn FnMut(WatchEvent);

fn event(kind: WatchKind, path: &Path) -> WatchEvent {
    WatchEvent { kind, name: path.to_string_lossy().into_owned(), from: None }
}

fn wanted() -> AddWatchFlags {
    use AddWatchFlags as F;
    F::IN_CREATE | F::IN_DELETE | F::IN_MODIFY | F::IN_ATTRIB | F::IN_MOVED_FROM | F::IN_MOVED_TO | F::IN_ONLYDIR
}

fn queue() -> Result<Inotify, Failure> {
    Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
        .map_err(|error| limit(format!("No directory can be watched: {error}. Stop watching others first.")))
}

impl Tree {
    /// Watches `root`, with `recursive` also what is below.
    pub(super) fn new(root: &Path, recursive: bool) -> Result<Tree, Failure> {
        let mut tree = Tree {
            root: root.to_owned(),
            recursive,
            inotify: queue()?,
            folders: HashMap::new(),
            paths: BTreeMap::new(),
            path_bytes: 0,
            told: HashSet::new(),
            told_bytes: 0,
            moved: None,
        };
        tree.begin()?;
        Ok(tree)
    }

    fn begin(&mut self) -> Result<(), Failure> {
        let own = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        let watch = self.inotify.add_watch(&self.root, wanted() | own).map_err(|error| match error {
            Errno::ENOSPC => limit("The guest has no watch left: stop watching other directories first.".to_owned()),
            error => failure(&io::Error::from(error), "It cannot be watched", &self.root),
        })?;
        self.keep(watch, PathBuf::new())?;
        if self.recursive {
            self.look_through(Path::new(""), None)?;
        }
        Ok(())
    }

    /// The kernel's queue, to be polled.
    pub(super) fn queue(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// True while the second half of a rename may come.
    pub(super) fn waits_for_a_pair(&self) -> bool {
        self.moved.is_some()
    }

    fn keep(&mut self, watch: WatchDescriptor, path: PathBuf) -> Result<(), Failure> {
        let bytes = path.as_os_str().len();
        if let Some(before) = self.folders.insert(watch, path.clone()) {
            self.forget(&before);
        }
        if self.paths.insert(path, watch).is_none() {
            self.path_bytes += bytes;
        }
        if self.path_bytes <= MAX_PATHS {
            return Ok(());
        }
        let root = self.root.display();
        Err(limit(format!("The paths of the directories below `{root}` are too long together: watch a smaller one.")))
    }

    /// Forgets the path of a watched directory.
    fn forget(&mut self, path: &Path) {
        if self.paths.remove(path).is_some() {
            self.path_bytes = self.path_bytes.saturating_sub(path.as_os_str().len());
        }
    }

    /// Watches a directory that is not the root. One that is gone, or that the user may not read, is left out.
    fn enter(&mut self, path: &Path) -> Result<bool, Failure> {
        if self.folders.len() >= MAX_WATCHED_DIRECTORIES {
            let message = format!(
                "`{}` has more than {MAX_WATCHED_DIRECTORIES} directories: watch a smaller one.",
                self.root.display()
            );
            return Err(limit(message));
        }
        match self.inotify.add_watch(&self.root.join(path), wanted() | AddWatchFlags::IN_DONT_FOLLOW) {
            Ok(watch) => {
                self.keep(watch, path.to_owned())?;
                Ok(true)
            }
            Err(Errno::ENOSPC) => {
                Err(limit("The guest has no watch left: watch fewer directories, or smaller ones.".to_owned()))
            }
            Err(_) => Ok(false),
        }
    }

    /// Watches the directories below `path`, which is watched, and tells all entries if asked to.
    fn look_through(&mut self, path: &Path, mut tell: Option<Tell<'_>>) -> Result<(), Failure> {
        let (mut below, mut overflow) = (vec![path.to_owned()], false);
        while let Some(folder) = below.pop() {
            let Ok(entries) = std::fs::read_dir(self.root.join(&folder)) else { continue };
            for entry in entries.flatten() {
                let path = folder.join(entry.file_name());
                if let Some(tell) = &mut tell {
                    if self.told.len() < MAX_TOLD && self.told_bytes < MAX_TOLD_BYTES {
                        tell(event(WatchKind::Create, &path));
                        self.told_bytes += path.as_os_str().len();
                        self.told.insert(path.clone());
                    } else if !std::mem::replace(&mut overflow, true) {
                        tell(WatchEvent::overflow());
                    }
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) && self.enter(&path)? {
                    below.push(path);
                }
            }
        }
        Ok(())
    }

    /// A directory has appeared.
    fn appeared(&mut self, path: &Path, tell: Tell<'_>) -> Result<(), Failure> {
        if self.recursive && self.enter(path)? {
            self.look_through(path, Some(tell))?;
        }
        Ok(())
    }

    /// The watched directories from `path` on down.
    fn below(&self, path: &Path) -> Vec<(PathBuf, WatchDescriptor)> {
        let from = self.paths.range(path.to_owned()..);
        from.take_while(|(below, _)| below.starts_with(path)).map(|(path, watch)| (path.clone(), *watch)).collect()
    }

    /// A directory has left: what is below it is watched no more.
    fn leave(&mut self, path: &Path) {
        for (path, watch) in self.below(path) {
            // The directory may be gone, and its watch with it.
            let _ = self.inotify.rm_watch(watch);
            self.forget(&path);
            self.folders.remove(&watch);
        }
    }

    /// A directory has another path.
    fn renamed(&mut self, from: &Path, to: &Path) -> Result<(), Failure> {
        for (path, watch) in self.below(from) {
            let Ok(rest) = path.strip_prefix(from) else { continue };
            let new = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            self.keep(watch, new)?;
        }
        Ok(())
    }

    /// The second half of a rename has not come: the entry has left.
    pub(super) fn settle(&mut self, tell: Tell<'_>) {
        if let Some(Moved { path, .. }) = self.moved.take() {
            tell(event(WatchKind::Remove, &path));
            self.leave(&path);
        }
    }

    /// Reads what is in the kernel's queue, at most a few hundred events.
    pub(super) fn read(&mut self, tell: Tell<'_>) -> Result<(), Failure> {
        let events = match self.inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN | Errno::EINTR) => Vec::new(),
            Err(error) => return Err(failure(&io::Error::from(error), "It cannot be watched any more", &self.root)),
        };
        for event in events {
            self.take(&event, tell)?;
        }
        let mut more = [nix::poll::PollFd::new(self.inotify.as_fd(), nix::poll::PollFlags::POLLIN)];
        if nix::poll::poll(&mut more, nix::poll::PollTimeout::ZERO) == Ok(0) {
            // The events of what was told have come.
            self.told.clear();
            self.told_bytes = 0;
        }
        Ok(())
    }

    fn take(&mut self, happened: &InotifyEvent, tell: Tell<'_>) -> Result<(), Failure> {
        use AddWatchFlags as F;
        let mask = happened.mask;
        if mask.contains(F::IN_Q_OVERFLOW) {
            self.moved = None;
            tell(WatchEvent::overflow());
            return self.start_over();
        }
        let Some(folder) = self.folders.get(&happened.wd).cloned() else { return Ok(()) };
        let is_root = folder.as_os_str().is_empty();
        if mask.contains(F::IN_IGNORED) {
            self.folders.remove(&happened.wd);
            if self.paths.get(&folder) == Some(&happened.wd) {
                self.forget(&folder);
            }
        }
        if is_root && mask.intersects(F::IN_IGNORED | F::IN_DELETE_SELF | F::IN_MOVE_SELF | F::IN_UNMOUNT) {
            self.settle(tell);
            let message = format!("`{}` was removed or renamed, and is watched no more.", self.root.display());
            return Err(Failure { kind: FailureKind::FileNotFound, message });
        }
        // Without a name it is about the directory itself, of which the one above tells.
        let Some(name) = &happened.name else { return Ok(()) };
        let (path, is_dir) = (folder.join(name), mask.contains(F::IN_ISDIR));
        if mask.contains(F::IN_MOVED_TO) {
            let before = self.moved.take_if(|moved| moved.cookie == happened.cookie);
            self.settle(tell);
            let Some(before) = before else {
                tell(event(WatchKind::Create, &path));
                return if is_dir { self.appeared(&path, tell) } else { Ok(()) };
            };
            let from = Some(before.path.to_string_lossy().into_owned());
            tell(WatchEvent { from, ..event(WatchKind::Rename, &path) });
            if is_dir && self.paths.contains_key(&before.path) {
                return self.renamed(&before.path, &path);
            }
            return if is_dir { self.appeared(&path, tell) } else { Ok(()) };
        }
        self.settle(tell);
        if mask.contains(F::IN_MOVED_FROM) {
            self.moved = Some(Moved { cookie: happened.cookie, path });
        } else if mask.contains(F::IN_CREATE) {
            if !self.told.remove(&path) {
                tell(event(WatchKind::Create, &path));
                if is_dir {
                    return self.appeared(&path, tell);
                }
            }
        } else if mask.contains(F::IN_DELETE) {
            tell(event(WatchKind::Remove, &path));
        } else if mask.contains(F::IN_MODIFY) {
            tell(event(WatchKind::Modify, &path));
        } else if mask.contains(F::IN_ATTRIB) {
            tell(event(WatchKind::Chmod, &path));
        }
        Ok(())
    }

    /// Watches everything anew: with lost events, what is known of the directories may be wrong.
    fn start_over(&mut self) -> Result<(), Failure> {
        self.inotify = queue()?;
        self.folders.clear();
        self.paths.clear();
        self.path_bytes = 0;
        self.told.clear();
        self.told_bytes = 0;
        self.begin()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn entries_of_directories_that_keep_appearing_are_told_and_kept_within_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        fs::create_dir(&root).unwrap();
        for number in 0..3 {
            let new = outside.join(number.to_string());
            fs::create_dir_all(&new).unwrap();
            for entry in 0..2000 {
                fs::write(new.join(entry.to_string()), "").unwrap();
            }
        }
        let mut tree = Tree::new(&root, true).unwrap();
        for number in 0..3 {
            fs::rename(outside.join(number.to_string()), root.join(number.to_string())).unwrap();
        }
        // Events are left in the queue behind the first reading.
        for entry in 0..500 {
            fs::write(root.join(format!("later{entry}")), "").unwrap();
        }
        let (mut created, mut overflows) = (0, 0);
        tree.read(&mut |event| match event.kind {
            WatchKind::Create => created += 1,
            WatchKind::Overflow => overflows += 1,
            _ => {}
        })
        .unwrap();
        assert_eq!(tree.told.len(), MAX_TOLD);
        assert!(created >= MAX_TOLD && overflows == 1, "{created} {overflows}");
    }
}
