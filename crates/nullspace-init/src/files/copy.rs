//! One source of a build's COPY, put where BuildKit would put it.
//!
//! ```text
//!   source     dst                       becomes
//!   file       "d/" or a directory       d/<name>        missing folders are made, 0755, for the copy's owner
//!   file       anything else             dst             a link there is followed, a file replaced
//!   directory  a directory, or missing   dst/<contents>  a directory that is there keeps what it is, a missing one is made
//!                                                        as parents are; those below it take the copy's owner and mode
//!                                                        (BuildKit's fsutil does so)
//! ```
//! The host has checked that entries stay below their source; it is checked here again.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use nullspace_guest::file::{CopyEntry, CopyTo};
use nullspace_guest::message::{Failure, FailureKind, Outcome};

use super::transfer::Input;
use super::{FOLDER_MODE, Stop, failure, invalid};
use crate::session::Channel;
use crate::users::Accounts;

/// User and group of what is made.
type Owner = (u32, u32);

/// Makes a folder and those above it that are missing; what is made belongs to `owner`.
pub(super) fn make_folders(path: &Path, owner: Owner) -> Result<(), Failure> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => return Err(invalid(format!("`{}` is not a directory.", path.display()))),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failure(&error, "It cannot be looked at", path));
        }
        Err(_) => {}
    }
    if let Some(above) = path.parent() {
        make_folders(above, owner)?;
    }
    make_folder(path, FOLDER_MODE, owner).map_err(|error| failure(&error, "The directory cannot be made", path))
}

fn make_folder(path: &Path, mode: u32, (uid, gid): Owner) -> io::Result<()> {
    fs::create_dir(path)?;
    chown(path, Some(uid), Some(gid))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Who `--chown` means: a user's own group comes with its name, and a bare number is a group's number too.
fn owner(spec: Option<&str>, known: &Accounts) -> Result<Owner, Failure> {
    let Some(spec) = spec else { return Ok((0, 0)) };
    let account = known.resolve(spec)?;
    let bare_number = spec.bytes().all(|byte| byte.is_ascii_digit());
    Ok((account.uid, if bare_number { account.uid } else { account.gid }))
}

/// Takes a source's entries from the channel.
pub(super) fn receive(dst: &Path, to: &CopyTo, known: &Accounts, channel: &Channel) -> Result<(), Stop> {
    let owner = owner(to.owner.as_deref(), known)?;
    let wants_folder = to.dst.ends_with('/') || to.dst.ends_with("/.") || to.dst == ".";
    let place = match &to.name {
        Some(name) => {
            check(name)?;
            let folder = if wants_folder { Some(dst) } else { dst.parent() };
            make_folders(folder.unwrap_or(Path::new("/")), owner)?;
            if dst.is_dir() { dst.join(name) } else { dst.to_owned() }
        }
        None => {
            make_folders(dst.parent().unwrap_or(Path::new("/")), owner)?;
            dst.to_owned()
        }
    };
    channel.reply(&Outcome::Done);
    let mut input = Input::new(channel);
    let mut first = true;
    while let Some(entry) = next_entry(&mut input)? {
        let mode = to.mode.unwrap_or(entry.mode) & 0o7777;
        let path = if entry.path.is_empty() {
            place.clone()
        } else {
            check(&entry.path)?;
            place.join(&entry.path)
        };
        if entry.dir {
            take_folder(&path, mode, owner, first && to.name.is_none())?;
        } else {
            take_file(&path, mode, owner, entry.bytes, &mut input)?;
        }
        first = false;
    }
    Ok(())
}

/// A relative path without tricks.
fn check(path: &str) -> Result<(), Failure> {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if path.is_empty() || path.contains('\0') || !Path::new(path).components().all(plain) {
        return Err(invalid(format!("`{}` is no path below a source.", path.escape_debug())));
    }
    Ok(())
}

fn next_entry(input: &mut Input<'_>) -> Result<Option<CopyEntry>, Stop> {
    let mut length = [0; 4];
    if !input.read_exact(&mut length)? {
        return Ok(None);
    }
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > CopyEntry::MAX_JSON {
        return Err(invalid("An entry of the copy is too long.".into()).into());
    }
    let mut json = vec![0; length];
    if !input.read_exact(&mut json)? {
        return Err(invalid("The copy ends within an entry.".into()).into());
    }
    let entry = serde_json::from_slice(&json);
    entry.map(Some).map_err(|error| invalid(format!("An entry of the copy cannot be read: {error}.")).into())
}

fn take_folder(path: &Path, mode: u32, owner: Owner, outermost: bool) -> Result<(), Failure> {
    let cannot = |error: io::Error| failure(&error, "The directory cannot be made", path);
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() && outermost => Ok(()),
        Ok(meta) if meta.is_dir() => chown(path, Some(owner.0), Some(owner.1))
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
            .map_err(cannot),
        Ok(_) => Err(Failure {
            kind: FailureKind::FileExists,
            message: format!("`{}` is a file, and a directory is to be copied there.", path.display()),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_folder(path, if outermost { FOLDER_MODE } else { mode }, owner).map_err(cannot)
        }
        Err(error) => Err(cannot(error)),
    }
}

fn take_file(path: &Path, mode: u32, owner: Owner, bytes: u64, input: &mut Input<'_>) -> Result<(), Stop> {
    let cannot = |error: &io::Error| failure(error, "It cannot be written", path);
    let real = target(path);
    match fs::symlink_metadata(&real) {
        Ok(meta) if meta.is_dir() => {
            let message = format!("`{}` is a directory, and a file is to be copied there.", path.display());
            return Err(Failure { kind: FailureKind::FileExists, message }.into());
        }
        // Replaced, not overwritten: other names of the same file stay what they are, as in an image's layer.
        Ok(_) => fs::remove_file(&real).map_err(|error| cannot(&error))?,
        Err(_) => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW);
    let mut file = options.open(&real).map_err(|error| cannot(&error))?;
    let mut left = bytes;
    while left > 0 {
        let piece = input.next(usize::try_from(left).unwrap_or(usize::MAX))?;
        if piece.is_empty() {
            return Err(invalid(format!("The copy ends within `{}`.", path.display())).into());
        }
        file.write_all(&piece).map_err(|error| cannot(&error))?;
        left = left.saturating_sub(u64::try_from(piece.len()).unwrap_or(u64::MAX));
    }
    // The owner first: a change of owner takes set-user-id bits away.
    std::os::unix::fs::fchown(&file, Some(owner.0), Some(owner.1))
        .and_then(|()| file.set_permissions(Permissions::from_mode(mode)))
        .map_err(|error| cannot(&error).into())
}

/// Where a file written to `path` ends up: links are followed, one that leads nowhere too.
fn target(path: &Path) -> PathBuf {
    let mut place = path.to_owned();
    // As many as the kernel follows.
    for _ in 0..40 {
        let Ok(link) = fs::read_link(&place) else { break };
        place = place.parent().unwrap_or(Path::new("/")).join(link);
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_those_of_dockers_chown() {
        let known = Accounts {
            passwd: "root:x:0:0::/:\napp:x:1000:1001::/:\n".into(),
            group: "root:x:0:\nstaff:x:50:\n".into(),
        };
        for (spec, expected) in [
            (None, Some((0, 0))),
            (Some("app"), Some((1000, 1001))),
            (Some("app:staff"), Some((1000, 50))),
            (Some("1000"), Some((1000, 1000))),
            (Some("7:8"), Some((7, 8))),
            (Some("7:staff"), Some((7, 50))),
            (Some("nobody"), None),
            (Some("app:none"), None),
        ] {
            assert_eq!(owner(spec, &known).ok(), expected, "{spec:?}");
        }
    }

    #[test]
    fn entries_that_lead_out_of_their_source_are_refused() {
        for path in ["", "/a", "../a", "a/../b", "a\0b", "./a", "."] {
            assert!(check(path).is_err(), "{path:?}");
        }
        for path in ["a", "a/b", "...", "a b"] {
            check(path).unwrap();
        }
    }
}
