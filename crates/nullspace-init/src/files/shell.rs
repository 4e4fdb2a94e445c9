//! `ln -s`, `rm` and `mv` without a shell: a build's steps mean the same on images that have none.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nullspace_guest::message::{Failure, FailureKind};

use super::{failure, invalid};

/// `into/<last part of what>` when `into` is a directory, links followed; else `into`.
fn inside(into: &Path, what: &Path) -> PathBuf {
    match what.file_name() {
        Some(name) if into.is_dir() => into.join(name),
        _ => into.to_owned(),
    }
}

pub(super) fn link(target: &str, path: &Path) -> Result<(), Failure> {
    if target.is_empty() || target.contains('\0') {
        return Err(invalid("The link's target is empty or contains a NUL byte.".into()));
    }
    let path = inside(path, Path::new(target));
    symlink(target, &path).map_err(|error| failure(&error, "The link cannot be made", &path))
}

pub(super) fn remove(path: &Path, recursive: bool, force: bool) -> Result<(), Failure> {
    if path.canonicalize().is_ok_and(|real| real.parent().is_none()) && !path.is_symlink() {
        return Err(invalid("The root directory cannot be removed.".into()));
    }
    let removed = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() && recursive => std::fs::remove_dir_all(path),
        Ok(meta) if meta.is_dir() => {
            return Err(invalid(format!("`{}` is a directory: remove it with recursive.", path.display())));
        }
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if force && matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        other => other.map_err(|error| failure(&error, "It cannot be removed", path)),
    }
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Failure> {
    std::fs::symlink_metadata(from).map_err(|error| failure(&error, "It cannot be looked at", from))?;
    let to = inside(to, from);
    std::fs::rename(from, &to).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let folder = to.parent().unwrap_or(Path::new("/")).display();
            Failure { kind: FailureKind::FileNotFound, message: format!("Directory `{folder}` does not exist.") }
        }
        _ => failure(&error, &format!("It cannot be moved to `{}`", to.display()), from),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn links_removals_and_moves_are_those_of_a_shell() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let kind = |result: Result<(), Failure>| result.unwrap_err().kind;
        fs::create_dir_all(at("dir/sub")).unwrap();
        fs::write(at("file"), "1").unwrap();

        link("file", &at("link")).unwrap();
        link("../file", &at("dir")).unwrap();
        assert_eq!(fs::read_link(at("dir/file")).unwrap(), Path::new("../file"));
        assert_eq!(kind(link("x", &at("link"))), FailureKind::FileExists);
        assert_eq!(kind(link("x", &at("none/link"))), FailureKind::FileNotFound);

        fs::write(at("other"), "2").unwrap();
        rename(&at("other"), &at("file")).unwrap();
        assert_eq!(fs::read(at("file")).unwrap(), b"2");
        rename(&at("file"), &at("dir/sub")).unwrap();
        assert_eq!(fs::read(at("dir/sub/file")).unwrap(), b"2");
        assert_eq!(kind(rename(&at("none"), &at("x"))), FailureKind::FileNotFound);
        assert!(rename(&at("link"), &at("none/x")).unwrap_err().message.contains("none` does not exist"));

        assert_eq!(kind(remove(&at("dir"), false, true)), FailureKind::Invalid);
        assert_eq!(kind(remove(&at("none"), true, false)), FailureKind::FileNotFound);
        remove(&at("none"), true, true).unwrap();
        remove(&at("link"), false, false).unwrap();
        remove(&at("dir"), true, false).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(kind(remove(Path::new("/tmp/.."), true, true)), FailureKind::Invalid);
    }
}
