//! Changes of files over a sandbox's WebSocket without a channel: `GET /v1/sandboxes/{id}/ws`, one JSON object a message.
//!
//! ```text
//!   file_watch      {id, path, recursive, …} ──>     <── file_watch_started {id, path}
//!                                                    <── file_event {id, event, name, path} …
//!   file_watch_stop {id}                     ──>     <── file_watch_stopped {id}      also when its time is up
//!                                                    <── error {id?, code, message}
//! ```
//! `id` is the client's own word for a watch; several may be over one socket. A watch ends with its socket.

use serde::{Deserialize, Serialize};

use crate::ErrorResponseCode;

/// What a client says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WatchClientMessage {
    /// Watch a directory.
    FileWatch(FileWatch),
    /// End a watch.
    FileWatchStop {
        /// As the client called it.
        id: String,
    },
}

/// Watch a directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileWatch {
    /// The client's word for it.
    #[serde(default)]
    pub id: String,
    /// The directory. A relative path starts at the sandbox's working directory, or at the user's home when `user` is given.
    pub path: String,
    /// The user who watches; the sandbox's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// True: also all directories below it. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recursive: Option<bool>,
    /// Seconds until it ends. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<f64>,
}

/// What the service says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WatchServerMessage {
    /// Changes from here on are told.
    FileWatchStarted {
        /// As the client called it.
        id: String,
        /// The directory's absolute path.
        path: String,
    },
    /// Something has changed.
    FileEvent(FileEvent),
    /// The watch has ended, as the client wished.
    FileWatchStopped {
        /// As the client called it.
        id: String,
    },
    /// A message was not understood, or a watch cannot begin or go on.
    Error {
        /// The watch that it is about; absent when it is about a message that was not understood.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        /// Code for programs.
        code: ErrorResponseCode,
        /// Message for people.
        message: String,
    },
}

/// A change below a watched directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEvent {
    /// As the client called the watch.
    pub id: String,
    /// What has happened.
    pub event: FileEventKind,
    /// The entry's path below the watched directory.
    pub name: String,
    /// The entry's absolute path. For [`FileEventKind::Overflow`] the watched directory.
    pub path: String,
    /// The absolute path that a renamed entry had before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_path: Option<String>,
}

/// Kinds of [`FileEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileEventKind {
    /// An entry was made, or moved in from elsewhere.
    Create,
    /// The content of a file was changed.
    Modify,
    /// An entry was removed, or moved out.
    Remove,
    /// An entry was renamed within what is watched.
    Rename,
    /// Permissions, owner or times were changed.
    Chmod,
    /// Events were lost, because the client or the service was slow: look at the directory anew.
    Overflow,
}
