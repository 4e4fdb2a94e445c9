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
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use nullspace_guest::upload::{UploadConflict, UploadReason};

use super::publish::{Present, check_target, present, split, temporary};
use super::record::Upload;
use super::tar::{Archive, Entry, Kind, TarError};
use super::{PIECE, Stop, discard, refuse_path};
use crate::files::failure;

/// Most entries of an archive.
const MAX_ENTRIES: usize = 200_000;
/// Most bytes of all paths of an archive together.
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

/// Checks every entry.
fn check(target: &Path, archive: &mut Archive<impl io::Read>) -> Result<Plan, Stop> {
    let mut known: HashMap<PathBuf, Kind> = HashMap::new();
    let (mut plan, mut entries, mut paths) = (Plan { bytes: 0, files: 0 }, 0_usize, 0_usize);
    while let Some(entry) = archive.next().map_err(|error| damaged(target, error))? {
        entries += 1;
        paths = paths.saturating_add(entry.path.len());
        if entries > MAX_ENTRIES || paths > MAX_PATHS {
            let message = format!("The archive has more than {MAX_ENTRIES} entries, or {MAX_PATHS} bytes of paths.");
            return Err(refuse_path(UploadReason::UnsupportedEntry, target, message));
        }
        let path: PathBuf = parts(&entry.path)?.iter().collect();
        let refuse = |reason, what: &str| {
            Err(refuse_path(reason, &path, format!("Entry `{}` of the archive {what}.", path.display())))
        };
        let above = path.ancestors().skip(1);
        let blocked = above
            .filter(|above| !above.as_os_str().is_empty())
            .any(|above| known.get(above).is_some_and(|kind| *kind != Kind::Dir));
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
            Kind::Symlink => return refuse(UploadReason::InvalidLink, "is a link that leads out of the target"),
            Kind::HardLink => {
                let linked: PathBuf = parts(&entry.target)?.iter().collect();
                if known.get(&linked) != Some(&Kind::File) {
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
        known.insert(path, kind);
    }
    Ok(plan)
}

/// Whether a symbolic link of the archive leads to somewhere below the archive's root.
fn stays_inside(path: &Path, target: &[u8]) -> bool {
    if target.is_empty() || target.first() == Some(&b'/') || target.contains(&0) {
        return false;
    }
    let mut depth = path.components().count().saturating_sub(1);
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return false,
            },
            _ => depth += 1,
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
    check_target(&upload.spec, target)?;
    let spec = &upload.spec;
    match present(target)? {
        Present::Dir(real) if spec.conflict == UploadConflict::Merge => {
            let folder =
                open_dir(AT_FDCWD, &real).map_err(|error| failure(&error.into(), "It cannot be opened", &real))?;
            Extraction { root: folder, target: &real, keep_owner: spec.keep_owner, modes: Vec::new() }.run(begin()?)?;
        }
        Present::Dir(real) => beside(upload, &real, true, begin()?)?,
        Present::Nothing(path) => beside(upload, &path, false, begin()?)?,
        Present::File(_) | Present::Other => {
            let message = format!("`{}` has changed meanwhile.", target.display());
            return Err(refuse_path(UploadReason::Conflict, target, message));
        }
    }
    Ok((bytes, files))
}

/// Extracts beside the target, and then puts it there.
fn beside(upload: &Upload, target: &Path, exists: bool, archive: Archive<impl io::Read>) -> Result<(), Stop> {
    let (above, name) = split(target)?;
    let temporary = temporary(upload, &name);
    let whole = target.with_file_name(&temporary);
    discard(&whole);
    let cannot = |error: Errno| Stop::from(failure(&error.into(), "The directory cannot be made", target));
    mkdirat(above.as_fd(), &temporary, Mode::S_IRWXU).map_err(cannot)?;
    let put = || {
        let root = open_dir(above.as_fd(), &temporary).map_err(cannot)?;
        let mode = if exists { std::fs::metadata(target).map(|meta| meta.permissions().mode()).ok() } else { None };
        let modes = vec![(
            root.try_clone().map_err(|error| failure(&error, "It cannot be opened", target))?,
            mode.unwrap_or(FOLDER_MODE),
        )];
        Extraction { root, target, keep_owner: false, modes }.run(archive)?;
        let how = if exists { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::RENAME_NOREPLACE };
        renameat2(above.as_fd(), &temporary, above.as_fd(), &name, how).map_err(|error| match error {
            Errno::EEXIST | Errno::ENOENT => {
                let message = format!("`{}` has changed meanwhile.", target.display());
                refuse_path(UploadReason::Conflict, target, message)
            }
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
                let mut buffer = vec![0; PIECE];
                loop {
                    let len = archive.read(&mut buffer).map_err(|error| damaged(self.target, error))?;
                    if len == 0 {
                        break;
                    }
                    file.write_all(buffer.get(..len).unwrap_or_default())
                        .map_err(|error| failure(&error, "It cannot be written", &self.target.join(&path)))?;
                }
                if !overwrites {
                    self.set_mode(file, entry.mode & 0o777)?;
                }
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
