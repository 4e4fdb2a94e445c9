//! Extracting an archive below its target, as the upload's user.
//!
//! ```text
//!   check: every entry, before anything is made ──> refused, or Plan
//!   target: missing    ──> made beside it, then renamed
//!           merge      ──> into it: its own entries stay, files are overwritten
//!           replace    ──> made beside it, exchanged, the old one removed
//! ```
//! The archive is hostile, and so may be what is at the target. An entry's directories are opened one after the other without
//! following links, so that nothing is made outside the target.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use nullspace_guest::upload::{UploadConflict, UploadReason};

use super::publish::{Found, Present, check_target, conflict, split, temporary, within};
use super::record::Upload;
use super::tar::{Archive, Entry, Kind, TarError};
use super::{PIECE, Stop, discard, refuse_path};
use crate::files::failure;

/// Most entries of an archive, with the directories that their paths imply.
const MAX_ENTRIES: usize = 200_000;
/// Most bytes of the paths of all these together.
const MAX_PATHS: usize = 32 << 20;
/// Most directories above an entry.
const MAX_DEPTH: usize = 256;
/// Permissions of a directory that the archive does not name.
const FOLDER_MODE: u32 = 0o755;

fn damaged(target: &Path, error: TarError) -> Stop {
    match error {
        TarError::Read(error) => failure(&error, "Its archive cannot be read", target).into(),
        TarError::Damaged(what) => {
            refuse_path(UploadReason::UnsupportedEntry, target, format!("The archive is damaged: {what}."))
        }
    }
}

/// The parts of an entry's path; none for the target itself.
fn parts(path: &[u8]) -> Result<Vec<OsString>, Stop> {
    let shown = Path::new(OsStr::from_bytes(path));
    let refuse = |what: &str| {
        let message = format!("Entry `{}` of the archive {what}.", shown.display());
        Err(refuse_path(UploadReason::InvalidPath, shown, message))
    };
    if path.first() == Some(&b'/') {
        return refuse("has an absolute path");
    }
    if path.contains(&0) || path.len() >= 4096 {
        return refuse("has a path that is no path");
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return refuse("leads out of its directory"),
            part => parts.push(OsString::from_vec(part.to_vec())),
        }
    }
    if parts.len() > MAX_DEPTH {
        return refuse("is too deep");
    }
    Ok(parts)
}

/// What an archive has been found to be.
struct Plan {
    bytes: u64,
    files: u64,
}

/// What an archive has been found to hold so far.
#[derive(Default)]
struct Known {
    kinds: HashMap<PathBuf, Kind>,
    entries: usize,
    path_bytes: usize,
}

impl Known {
    /// Counts an entry or a directory; false when the archive has too many.
    fn count(&mut self, path_bytes: usize) -> bool {
        self.entries += 1;
        self.path_bytes = self.path_bytes.saturating_add(path_bytes);
        self.entries <= MAX_ENTRIES && self.path_bytes <= MAX_PATHS
    }

    /// Counts an entry and the directories above it that are new; false when the archive has too many.
    fn add(&mut self, path: PathBuf, kind: Kind, path_bytes: usize) -> bool {
        // One that is known has been counted with those above it.
        let implied = |above: &&Path| !above.as_os_str().is_empty() && !self.kinds.contains_key(*above);
        let implied: Vec<PathBuf> = path.ancestors().skip(1).take_while(implied).map(Path::to_owned).collect();
        for folder in implied {
            if !self.count(folder.as_os_str().len()) {
                return false;
            }
            self.kinds.insert(folder, Kind::Dir);
        }
        self.kinds.insert(path, kind);
        self.count(path_bytes)
    }
}

/// Checks every entry.
fn check(target: &Path, archive: &mut Archive<impl io::Read>) -> Result<Plan, Stop> {
    let mut known = Known::default();
    let mut plan = Plan { bytes: 0, files: 0 };
    while let Some(entry) = archive.next().map_err(|error| damaged(target, error))? {
        let path: PathBuf = parts(&entry.path)?.iter().collect();
        let refuse = |reason, what: &str| {
            Err(refuse_path(reason, &path, format!("Entry `{}` of the archive {what}.", path.display())))
        };
        let above = path.ancestors().skip(1);
        let blocked = above
            .filter(|above| !above.as_os_str().is_empty())
            .any(|above| known.kinds.get(above).is_some_and(|kind| *kind != Kind::Dir));
        if blocked {
            return refuse(UploadReason::InvalidPath, "is below another entry that is no directory");
        }
        if path.as_os_str().is_empty() && entry.kind != Kind::Dir {
            return refuse(UploadReason::InvalidPath, "is the target itself, and no directory");
        }
        match entry.kind {
            Kind::File => {
                plan.files += 1;
                plan.bytes = plan.bytes.saturating_add(entry.size);
            }
            Kind::Dir => {}
            Kind::Symlink if stays_inside(&path, &entry.target) => {}
            Kind::Symlink => {
                let what = "is a link that leads out of the target, or has `..` behind a name";
                return refuse(UploadReason::InvalidLink, what);
            }
            Kind::HardLink => {
                let linked: PathBuf = parts(&entry.target)?.iter().collect();
                if known.kinds.get(&linked) != Some(&Kind::File) {
                    return refuse(UploadReason::InvalidLink, "is a hard link to no file before it in the archive");
                }
            }
            Kind::Other(kind) => {
                let what = match kind {
                    b'3' | b'4' => "is a device",
                    b'6' => "is a FIFO",
                    _ => "is neither a file, nor a directory, nor a link",
                };
                return refuse(UploadReason::UnsupportedEntry, what);
            }
        }
        let kind = if entry.kind == Kind::HardLink { Kind::File } else { entry.kind };
        if !known.add(path, kind, entry.path.len()) {
            let message = format!(
                "The archive has more than {MAX_ENTRIES} entries and directories, or {MAX_PATHS} bytes of their paths."
            );
            return Err(refuse_path(UploadReason::UnsupportedEntry, target, message));
        }
    }
    Ok(plan)
}

/// Whether a symbolic link of the archive leads to somewhere below the archive's root. Only its beginning may lead up: the
/// link's own directory is a real one, and what a `..` means behind a name depends on where the name leads.
fn stays_inside(path: &Path, target: &[u8]) -> bool {
    if target.is_empty() || target.first() == Some(&b'/') || target.contains(&0) {
        return false;
    }
    let mut above = path.components().count().saturating_sub(1);
    let mut named = false;
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if named => return false,
            b".." => match above.checked_sub(1) {
                Some(less) => above = less,
                None => return false,
            },
            _ => named = true,
        }
    }
    true
}

/// Checks an archive and extracts it. Returns the bytes of its files, and how many they are.
pub(super) fn extract(upload: &Upload, data: &File) -> Result<(u64, u64), Stop> {
    let target = Path::new(&upload.spec.target);
    let begin = || {
        let mut file = data;
        file.rewind().map_err(|error| Stop::from(failure(&error, "Its archive cannot be read", target)))?;
        Ok::<_, Stop>(Archive::new(BufReader::with_capacity(PIECE, file)))
    };
    let Plan { bytes, files } = check(target, &mut begin()?)?;
    let spec = &upload.spec;
    match check_target(spec, target)? {
        Present::Dir(found) if spec.conflict == UploadConflict::Merge => {
            let extraction = Extraction { root: found.entry, target, keep_owner: spec.keep_owner, modes: Vec::new() };
            extraction.run(begin()?)?;
        }
        Present::Dir(found) => beside(upload, target, Some(&found), begin()?)?,
        Present::Nothing => beside(upload, target, None, begin()?)?,
        Present::File(_) | Present::Other => return Err(conflict(target, "has changed meanwhile")),
    }
    Ok((bytes, files))
}

/// Extracts beside the target, and then puts it there.
fn beside(upload: &Upload, target: &Path, there: Option<&Found>, archive: Archive<impl io::Read>) -> Result<(), Stop> {
    let ((above, name), mode) = match there {
        Some(found) => (found.place(target)?, found.stat()?.st_mode),
        None => (split(target)?, FOLDER_MODE),
    };
    let temporary = temporary(upload, &name);
    let whole = within(&above, &temporary);
    discard(&whole);
    let cannot = |error: Errno| Stop::from(failure(&error.into(), "The directory cannot be made", target));
    mkdirat(above.as_fd(), &temporary, Mode::S_IRWXU).map_err(cannot)?;
    let put = || {
        let root = open_dir(above.as_fd(), &temporary).map_err(cannot)?;
        let own = root.try_clone().map_err(|error| failure(&error, "It cannot be opened", target))?;
        Extraction { root, target, keep_owner: false, modes: vec![(own, mode)] }.run(archive)?;
        let how = if there.is_some() { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::RENAME_NOREPLACE };
        renameat2(above.as_fd(), &temporary, above.as_fd(), &name, how).map_err(|error| match error {
            Errno::EEXIST | Errno::ENOENT => conflict(target, "has changed meanwhile"),
            error => failure(&error.into(), "The directory cannot be put there", target).into(),
        })
    };
    let done = put();
    // What was made before a failure, or what was there before.
    discard(&whole);
    done
}

fn open_dir(folder: impl AsFd, name: &(impl nix::NixPath + ?Sized)) -> Result<OwnedFd, Errno> {
    openat(folder, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

struct Extraction<'a> {
    root: OwnedFd,
    target: &'a Path,
    /// Files that are overwritten keep owner and mode.
    keep_owner: bool,
    /// Directories that were made, and the permissions that they get at the end: without them nothing may be made in some.
    modes: Vec<(OwnedFd, u32)>,
}

impl Extraction<'_> {
    fn run(mut self, mut archive: Archive<impl io::Read>) -> Result<(), Stop> {
        let mut made: HashMap<PathBuf, u32> = HashMap::new();
        while let Some(entry) = archive.next().map_err(|error| damaged(self.target, error))? {
            self.entry(&entry, &mut archive, &mut made)?;
        }
        // The deepest first: one above may shut the way.
        let mut late: Vec<_> = made.into_iter().collect();
        late.sort_unstable_by_key(|(path, _)| std::cmp::Reverse(path.components().count()));
        for (path, mode) in late {
            let parts: Vec<OsString> = path.iter().map(OsStr::to_owned).collect();
            let folder = self.folder(&parts, None)?;
            self.set_mode(File::from(folder), mode)?;
        }
        for (folder, mode) in std::mem::take(&mut self.modes) {
            self.set_mode(File::from(folder), mode)?;
        }
        Ok(())
    }

    fn set_mode(&self, file: File, mode: u32) -> Result<(), Stop> {
        file.set_permissions(std::fs::Permissions::from_mode(mode & 0o1777))
            .map_err(|error| failure(&error, "Its permissions cannot be set", self.target).into())
    }

    /// Opens a directory below the root, and makes what is missing of it.
    fn folder(&self, parts: &[OsString], mut made: Option<&mut HashMap<PathBuf, u32>>) -> Result<OwnedFd, Stop> {
        let mut path = PathBuf::new();
        let mut folder = self.root.try_clone().map_err(|error| failure(&error, "It cannot be opened", self.target))?;
        for part in parts {
            path.push(part);
            if let Some(made) = &mut made {
                match mkdirat(folder.as_fd(), part.as_os_str(), Mode::S_IRWXU) {
                    Ok(()) => {
                        made.insert(path.clone(), FOLDER_MODE);
                    }
                    Err(Errno::EEXIST) => {}
                    Err(error) => return Err(self.failed(error, "The directory cannot be made", &path)),
                }
            }
            folder = match open_dir(folder.as_fd(), part.as_os_str()) {
                Ok(below) => below,
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    return Err(self.conflict(&path, "is no directory, and the archive has entries below it"));
                }
                Err(error) => return Err(self.failed(error, "The directory cannot be opened", &path)),
            };
        }
        Ok(folder)
    }

    fn content(&self, file: &mut File, archive: &mut Archive<impl io::Read>, path: &Path) -> Result<(), Stop> {
        let mut buffer = vec![0; PIECE];
        loop {
            let len = archive.read(&mut buffer).map_err(|error| damaged(self.target, error))?;
            if len == 0 {
                return Ok(());
            }
            file.write_all(buffer.get(..len).unwrap_or_default())
                .map_err(|error| failure(&error, "It cannot be written", &self.target.join(path)))?;
        }
    }

    fn failed(&self, error: Errno, what: &str, path: &Path) -> Stop {
        failure(&error.into(), what, &self.target.join(path)).into()
    }

    fn conflict(&self, path: &Path, what: &str) -> Stop {
        let path = self.target.join(path);
        let message = format!("`{}` {what}.", path.display());
        refuse_path(UploadReason::Conflict, &path, message)
    }

    fn entry(
        &self,
        entry: &Entry,
        archive: &mut Archive<impl io::Read>,
        made: &mut HashMap<PathBuf, u32>,
    ) -> Result<(), Stop> {
        let parts = parts(&entry.path)?;
        let path: PathBuf = parts.iter().collect();
        if entry.kind == Kind::Dir {
            self.folder(&parts, Some(made))?;
            // Permissions of a directory that was there are left alone.
            if let Some(mode) = made.get_mut(&path) {
                *mode = entry.mode & 0o777;
            }
            return Ok(());
        }
        let Some((name, above)) = parts.split_last() else { return Ok(()) };
        let folder = self.folder(above, Some(made))?;
        let name = name.as_os_str();
        let kind = match fstatat(folder.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(self.failed(error, "It cannot be looked at", &path)),
        };
        if kind == Some(SFlag::S_IFDIR) {
            return Err(self.conflict(&path, "is a directory, and the archive has something else there"));
        }
        let overwrites = entry.kind == Kind::File && self.keep_owner && kind == Some(SFlag::S_IFREG);
        if kind.is_some() && !overwrites {
            unlinkat(folder.as_fd(), name, UnlinkatFlags::NoRemoveDir)
                .map_err(|error| self.failed(error, "It cannot be replaced", &path))?;
        }
        match entry.kind {
            Kind::File => {
                let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let how = if overwrites { OFlag::O_TRUNC } else { OFlag::O_CREAT | OFlag::O_EXCL };
                let file = openat(folder.as_fd(), name, flags | how, Mode::S_IRUSR | Mode::S_IWUSR)
                    .map_err(|error| self.failed(error, "It cannot be written", &path))?;
                let mut file = File::from(file);
                let written = self.content(&mut file, archive, &path);
                if overwrites {
                    return written;
                }
                if written.is_err() {
                    // No part of a file stays under its name.
                    let _ = unlinkat(folder.as_fd(), name, UnlinkatFlags::NoRemoveDir);
                }
                written?;
                self.set_mode(file, entry.mode & 0o777)?;
            }
            Kind::Symlink => symlinkat(OsStr::from_bytes(&entry.target), folder.as_fd(), name)
                .map_err(|error| self.failed(error, "The link cannot be made", &path))?,
            Kind::HardLink => {
                let linked = self::parts(&entry.target)?;
                let Some((linked_name, linked_above)) = linked.split_last() else { return Ok(()) };
                let from = self.folder(linked_above, None)?;
                linkat(from.as_fd(), linked_name.as_os_str(), folder.as_fd(), name, AtFlags::empty())
                    .map_err(|error| self.failed(error, "The link cannot be made", &path))?;
            }
            Kind::Dir | Kind::Other(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tar::tests::entry;
    use super::*;

    #[test]
    fn links_lead_up_only_at_their_beginning_and_not_out() {
        for (path, target, inside) in [
            ("l", "a", true),
            ("d/l", "../a/b", true),
            ("d/e/l", "./.././../a", true),
            ("d/l", "..", true),
            ("d/l", "../..", false),
            ("l", "..", false),
            ("l", "a/..", false),
            // Where a link of the archive leads to the archive's root, this leads out of it.
            ("l", "root/root/../../etc", false),
            ("l", "/a", false),
            ("l", "", false),
        ] {
            assert_eq!(stays_inside(Path::new(path), target.as_bytes()), inside, "{path} -> {target}");
        }
    }

    #[test]
    fn directories_that_paths_imply_are_counted() {
        let above = "a/".repeat(45);
        let archive = |entries: usize| -> Vec<u8> {
            let file = |number: usize| entry(b'0', &format!("{number}/{above}f"), "", 0o644, b"");
            (0..entries).flat_map(file).collect()
        };
        let check = |entries| check(Path::new("/t"), &mut Archive::new(archive(entries).as_slice()));
        // Each entry makes 46 directories.
        assert_eq!(check(MAX_ENTRIES / 47).unwrap().files, 4255);
        let refused = check(MAX_ENTRIES / 47 + 1).map(|plan| plan.files);
        assert!(
            matches!(&refused, Err(Stop::Refused(refusal)) if refusal.message.contains("directories")),
            "{refused:?}"
        );
        // Once more the same directories cost nothing.
        let twice = [entry(b'0', "a/b/f", "", 0o644, b""), entry(b'0', "a/b/g", "", 0o644, b"")].concat();
        let mut known = Known::default();
        let mut archive = Archive::new(twice.as_slice());
        while let Some(entry) = archive.next().unwrap() {
            let path: PathBuf = parts(&entry.path).unwrap().iter().collect();
            assert!(known.add(path, entry.kind, entry.path.len()));
        }
        assert_eq!((known.entries, known.path_bytes), (4, 5 + 3 + 1 + 5));
    }
}
