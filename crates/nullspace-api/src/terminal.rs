//! Terminals: `GET /v1/sandboxes/{id}/ws?channel=pty`, one JSON object a message, and the routes under `/v1/sandboxes/{id}/pty`.
//!
//! ```text
//!   pty_start   {id, cols, rows, …}        ──>      <── pty_started {id, session_id, pid, cols, rows}
//!   pty_connect {id, session_id | pid}     ──>      <── pty_output  {id, session_id, data} …
//!   pty_input   {id, data | data_base64}   ──>
//!   pty_resize  {id, cols, rows}           ──>
//!   pty_kill    {id}                       ──>      <── pty_exited  {id, session_id, exit_code}
//!                                                   <── error {id?, code, message}
//! ```
//! `id` is the client's own word for a terminal on this socket. A terminal outlives its socket, and `pty_connect` finds it again
//! by `session_id` or `pid`.

use serde::{Deserialize, Serialize};

use crate::{Envs, ErrorResponseCode};

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PtyClientMessage {
    /// Open a terminal and follow it.
    PtyStart(PtyStart),
    /// Follow a terminal that was opened before, from what is kept of its output on.
    PtyConnect(PtyConnect),
    /// Type into a terminal.
    PtyInput(PtyInput),
    /// Set the size of a terminal.
    PtyResize(PtyResize),
    /// End a terminal's session.
    PtyKill(PtyKill),
}

/// Open a terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtyStart {
    /// The client's word for it.
    #[serde(default)]
    pub id: String,
    /// Columns, 1 to 1000; 120 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cols: Option<u32>,
    /// Rows, 1 to 1000; 30 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u32>,
    /// Program to run instead of the user's shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Arguments of `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Working directory; the sandbox's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Variables beside the sandbox's. TERM is `xterm-256color` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<Envs>,
    /// User to run it as; the template's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Follow a terminal: by `session_id` or by `pid`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtyConnect {
    /// The client's word for it.
    #[serde(default)]
    pub id: String,
    /// Its session's id, `pty_…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Pid of its first process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// Type into a terminal: `data` or `data_base64`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtyInput {
    /// The client's word for the terminal.
    #[serde(default)]
    pub id: String,
    /// Its session's id, where `id` is not known on this socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// As text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// As bytes in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<String>,
}

/// Set the size of a terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtyResize {
    /// The client's word for the terminal.
    #[serde(default)]
    pub id: String,
    /// Its session's id, where `id` is not known on this socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Columns, 1 to 1000.
    pub cols: u32,
    /// Rows, 1 to 1000.
    pub rows: u32,
}

/// End a terminal's session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtyKill {
    /// The client's word for the terminal.
    #[serde(default)]
    pub id: String,
    /// Its session's id, where `id` is not known on this socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

/// What the service says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PtyServerMessage {
    /// A terminal is followed from here on.
    PtyStarted {
        /// As the client called it.
        id: String,
        /// The terminal.
        #[serde(flatten)]
        session: PtySessionInfo,
        /// Bytes of output from before it was followed that are kept no more.
        #[serde(default, skip_serializing_if = "is_zero")]
        lost_bytes: u64,
    },
    /// Output of a terminal. Characters are never torn apart.
    PtyOutput {
        /// As the client called it.
        id: String,
        /// Its session's id.
        session_id: String,
        /// As text; bytes that are not UTF-8 are replaced.
        data: String,
        /// The very bytes, in base64, where `data` had to replace some.
        #[serde(skip_serializing_if = "Option::is_none")]
        data_base64: Option<String>,
    },
    /// The first process of a terminal's session has ended, and with it the terminal.
    PtyExited {
        /// As the client called it.
        id: String,
        /// Its session's id.
        session_id: String,
        /// Exit code; 128 + signal when a signal ended it.
        exit_code: i32,
    },
    /// A message was not understood, or an operation on a terminal failed.
    Error {
        /// The terminal that it is about; absent when it is about a message that was not understood.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        /// Code for programs.
        code: ErrorResponseCode,
        /// Message for people.
        message: String,
    },
}

/// An open terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PtySessionInfo {
    /// Its id in the sandbox, `pty_…`.
    pub session_id: String,
    /// Pid of the first process of its session.
    pub pid: u32,
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
    /// The same as `session_id`.
    pub exec_id: String,
}

/// The new size of a terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ResizeRequest {
    /// Columns, 1 to 1000.
    pub cols: u32,
    /// Rows, 1 to 1000.
    pub rows: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
