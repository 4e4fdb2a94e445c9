//! One running sandbox, with one trait for each topic.
//!
//! ```text
//!   Sandboxes::live_sandbox(caller, id) ──> Arc<dyn LiveSandbox> ── exec, run_command, read_file, … ──> guest
//! ```
//! The caller is checked once, where the sandbox is looked up. A [`LiveSandbox`] may end while it is held. Each of its
//! operations then fails with the error of a sandbox that does not exist.

mod commands;
mod files;
mod git;
mod ports;
mod search;
mod terminals;
mod uploads;
mod watches;

pub use commands::{CommandEvent, FollowedCommand, LiveCommands};
pub use files::LiveFiles;
pub use git::LiveGit;
pub use ports::{LivePorts, PortIo, PortStream};
pub use search::LiveSearch;
pub use terminals::{FollowedTerminal, LiveTerminals, TerminalAt, TerminalEvent};
pub use uploads::{LiveUploads, UploadPart};
pub use watches::{FileChange, LiveWatches, WatchedDir};

/// The operations of one running sandbox, on behalf of the caller for whom it was looked up.
///
/// A method whose answer is a stream takes the sandbox by `Arc`: the stream outlives the call.
pub trait LiveSandbox:
    LiveCommands + LiveFiles + LiveSearch + LiveWatches + LiveUploads + LiveTerminals + LivePorts + LiveGit
{
}
