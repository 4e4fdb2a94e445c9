//! Changes of files below a directory.
//!
//! ```text
//!  Watch   reply Watching   DATA: one JSON WatchEvent a line   end Failed when the directory is gone; else it is reset
//! ```
//! A reader that is slow loses events: the guest's queue is bounded, and [`WatchKind::Overflow`] stands where some are missing.

use serde::{Deserialize, Serialize};

/// Most directories of one watch.
pub const MAX_WATCHED_DIRECTORIES: usize = 8192;
/// Most watches of one guest.
pub const MAX_WATCHES: usize = 16;

/// A directory to watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchCall {
    /// The directory. A link to one is followed.
    pub path: String,
    /// True: also all directories below it, and those that are made later.
    pub recursive: bool,
    /// The user who watches, as in [`Exec::user`](crate::message::Exec::user). Directories that this user may not read are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// An absolute path, where a relative one starts. `None`: the user's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// Its kind.
    pub kind: WatchKind,
    /// The entry's path below the watched directory; empty for [`WatchKind::Overflow`]. Bytes that are not UTF-8 are shown as
    /// U+FFFD.
    pub name: String,
    /// The path that a renamed entry had before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

impl WatchEvent {
    /// Returns the event that stands where events are missing.
    pub fn overflow() -> WatchEvent {
        WatchEvent { kind: WatchKind::Overflow, name: String::new(), from: None }
    }
}

/// Kinds of [`WatchEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchKind {
    /// An entry was made, or moved in from outside.
    Create,
    /// The content of a file was changed.
    Modify,
    /// An entry was removed, or moved out.
    Remove,
    /// An entry was moved within what is watched.
    Rename,
    /// Permissions, owner or times were changed.
    Chmod,
    /// Events were lost: look at the directory anew.
    Overflow,
}
