//! Operations on the guest's files, as one of its users.
//!
//! ```text
//!  Read    reply File(entry)   DATA: the bytes                         end Done
//!  Write   reply Done          stdin: the bytes, EOF                   end File(entry)
//!  List    -                   DATA: one JSON FileEntry a line         end Done
//!  the rest                                                            end File(entry) or Done
//! ```
//! Paths are the guest's; nothing of them ever touches the host. A relative one starts at [`FileCall::cwd`].

use serde::{Deserialize, Serialize};

/// A file operation.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct FileCall {
    /// Who does it, as in [`Exec::user`](crate::message::Exec::user): the kernel judges what that user may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// An absolute path, where relative ones start; default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// What is to be done.
    pub action: FileOp,
}

/// What is to be done with files.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "file", rename_all = "snake_case")]
pub enum FileOp {
    /// Read a regular file from its beginning to its end, symbolic links followed.
    Read {
        /// The file.
        path: String,
    },
    /// Write a regular file in place, so that an existing one keeps its owner, mode and links; missing folders above it
    /// are made (0755), a new file is 0644. The file is emptied when the operation begins.
    Write {
        /// The file.
        path: String,
    },
    /// List a directory, entries in the order of their paths; links are listed, not followed.
    List {
        /// The directory.
        path: String,
        /// 1: its entries; 2: also those of its directories; and so on.
        depth: u32,
    },
    /// One entry, the link itself if it is one.
    Info {
        /// The entry.
        path: String,
    },
    /// Make a directory and the missing ones above it (0755). One that exists is fine.
    MakeDir {
        /// The directory.
        path: String,
    },
    /// Remove a file, a link, or a directory with all that is in it.
    Remove {
        /// The entry.
        path: String,
    },
    /// Rename; an existing file at the new place is replaced, missing folders above it are made. Ends with the entry.
    Rename {
        /// The entry.
        from: String,
        /// Its new path.
        to: String,
    },
    /// Set the permission bits, links followed.
    SetMode {
        /// The entry.
        path: String,
        /// At most 0o7777.
        mode: u32,
    },
}

/// A file's kind.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A FIFO, socket or device.
    Special,
}

/// One entry of a directory.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct FileEntry {
    /// Absolute path, as it was asked for or found; bytes that are not UTF-8 are shown as U+FFFD.
    pub path: String,
    /// Kind.
    pub kind: FileKind,
    /// Bytes; of a link the length of its target.
    pub size: u64,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Owner: the name in /etc/passwd, or the number.
    pub owner: String,
    /// Group: the name in /etc/group, or the number.
    pub group: String,
    /// Last change of the content, nanoseconds since 1970.
    pub modified_ns: i64,
    /// A link's target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}
