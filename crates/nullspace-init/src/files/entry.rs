//! Metadata of a file, with the owners' names of the image.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nullspace_guest::file::{FileEntry, FileKind};

use crate::users::Accounts;

/// Names of users and groups by number.
#[derive(Debug, Default)]
pub(super) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    pub(super) fn new(accounts: &Accounts) -> Names {
        let mut names = Names::default();
        // The first line of a number wins, as with getpwuid(3).
        for (name, uid) in accounts.user_names() {
            names.users.entry(uid).or_insert_with(|| name.to_owned());
        }
        for (name, gid) in accounts.group_names() {
            names.groups.entry(gid).or_insert_with(|| name.to_owned());
        }
        names
    }
}

fn named(names: &HashMap<u32, String>, id: u32) -> String {
    names.get(&id).cloned().unwrap_or_else(|| id.to_string())
}

/// Looks at an entry, not through it.
pub(super) fn of(path: &Path, names: &Names) -> io::Result<FileEntry> {
    let meta = std::fs::symlink_metadata(path)?;
    let kind = meta.file_type();
    let target = if kind.is_symlink() { Some(std::fs::read_link(path)?.to_string_lossy().into_owned()) } else { None };
    Ok(FileEntry {
        path: path.to_string_lossy().into_owned(),
        kind: if kind.is_dir() {
            FileKind::Dir
        } else if kind.is_symlink() {
            FileKind::Symlink
        } else if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
            FileKind::Special
        } else {
            FileKind::File
        },
        size: meta.size(),
        mode: meta.mode() & 0o7777,
        owner: named(&names.users, meta.uid()),
        group: named(&names.groups, meta.gid()),
        modified_ns: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()),
        target,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn entries_are_told_with_names_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("f"), folder.path().join("l"));
        std::fs::write(&file, "12345").unwrap();
        symlink("nowhere", &link).unwrap();
        let meta = std::fs::metadata(&file).unwrap();
        let accounts = Accounts {
            passwd: format!("me:x:{0}:0::/:\nother:x:{0}:0::/:\n", meta.uid()),
            group: "none:x:4000000:\n".into(),
        };
        let names = Names::new(&accounts);
        let entry = of(&file, &names).unwrap();
        assert_eq!((entry.kind, entry.size, entry.owner.as_str()), (FileKind::File, 5, "me"));
        assert_eq!(entry.group, meta.gid().to_string());
        assert!(entry.modified_ns > 1_600_000_000_000_000_000);
        let entry = of(&link, &names).unwrap();
        assert_eq!((entry.kind, entry.target.as_deref()), (FileKind::Symlink, Some("nowhere")));
        assert_eq!(of(folder.path(), &names).unwrap().kind, FileKind::Dir);
        assert_eq!(of(Path::new("/dev/null"), &names).unwrap().kind, FileKind::Special);
        assert_eq!(of(&folder.path().join("x"), &names).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
