//! Operations on the guest's files, as one of its users.
//!
//! ```text
//!  Read    reply File(entry)   DATA: the bytes                         end Done
//!  Write   reply Done          stdin: the bytes, EOF                   end File(entry)
//!  List    -                   DATA: one JSON FileEntry a line         end Done
//!  Copy    reply Done          stdin: CopyEntry, bytes, …, EOF         end Done
//!  Space                                                               end Space
//!  searches and replacements: see search
//!  the rest                                                            end File(entry) or Done
//! ```
//! Paths are the guest's; nothing of them ever touches the host. A relative one starts at [`FileCall::cwd`].

use serde::{Deserialize, Serialize};

use crate::search::{Part, Replace};

/// The [`FileCall::cwd`] that means the home of [`FileCall::user`].
pub const HOME: &str = "~";

/// A file operation.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct FileCall {
    /// The user who does it, as in [`Exec::user`](crate::message::Exec::user): the kernel judges what that user may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// An absolute path, or [`HOME`], where relative ones start; default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The operation.
    pub action: FileOp,
}

/// An operation on files.
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
    /// Make a directory and the missing ones above it (0755) for somebody: what is made belongs to `owner`.
    MakeDirFor {
        /// The directory.
        path: String,
        /// As in [`Exec::user`](crate::message::Exec::user).
        owner: String,
    },
    /// Make a symbolic link as `ln -s` does: in `path` under the target's name when that is a directory.
    MakeSymlink {
        /// Its target.
        target: String,
        /// Its path.
        path: String,
    },
    /// Remove as `rm` does: a directory only with `recursive`, what is not there only with `force`.
    Unlink {
        /// The entry.
        path: String,
        /// With everything in it.
        recursive: bool,
        /// True: a missing entry is no error.
        force: bool,
    },
    /// Move as `mv -f` does: into `to` when that is a directory; a file that is there is replaced.
    Move {
        /// The entry.
        from: String,
        /// Its new path, or the directory that it goes into.
        to: String,
    },
    /// Copy one source, a file or what is in a directory, as BuildKit's `COPY` does. Its entries come over stdin.
    Copy(CopyTo),
    /// The free space of the filesystem of `path`.
    Space {
        /// Any entry of it.
        path: String,
    },
    /// Read a part of a regular file. As `Read`; the entry that is replied has the size in which the part was looked for.
    ReadPart {
        /// The file.
        path: String,
        /// The part.
        part: Part,
    },
    /// As `Write`, and the file belongs to the user afterwards. A file of another user's is emptied and handed over first,
    /// where the user may write in its directory, the path ends in the file itself, and it has no other name. Where not,
    /// the kernel judges as ever, and the owner stays.
    WriteOwn {
        /// The file.
        path: String,
    },
    /// Search a file, or those below a directory, for lines.
    FindLines {
        /// Where.
        path: String,
        /// Regular expression, for one line at a time.
        pattern: String,
    },
    /// Search below a directory for names.
    FindNames {
        /// Where.
        path: String,
        /// Glob, for the last part of a path; with a `/`, for the path below the directory.
        pattern: String,
    },
    /// Replace what matches in files, in place: owner, mode and links stay.
    Replace(Replace),
}

/// The destination of a copy's source.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct CopyTo {
    /// Destination as it was written: one that ends with a slash is a directory.
    pub dst: String,
    /// The source's own name when it is one file; `None` when it is a directory, whose contents go into `dst`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Owner of everything that is made, as Docker's `--chown`; default root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Permission bits of everything that is copied, instead of its own; at most 0o7777.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// One entry of a copied source. On the wire: its JSON behind the JSON's length (u32 LE), then, of a file, its bytes.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct CopyEntry {
    /// Path below the source; empty for the source itself. Folders come before what is in them.
    pub path: String,
    /// A directory; else a regular file.
    pub dir: bool,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Bytes that follow; 0 for a directory.
    pub bytes: u64,
}

impl CopyEntry {
    /// Longest JSON of an entry that an agent takes, bytes.
    pub const MAX_JSON: usize = 64 * 1024;

    /// The entry as it travels.
    pub fn encode(&self) -> Vec<u8> {
        // Our own type has string keys and no floats: serialising cannot fail.
        let json = serde_json::to_vec(self).unwrap_or_default();
        let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
        [&length.to_le_bytes()[..], &json].concat()
    }
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
