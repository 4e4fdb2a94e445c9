//! Commands over a WebSocket: `GET /v1/sandboxes/{id}/ws?channel=exec`, one JSON object a message.
//!
//! ```text
//!   exec_start   {id, command, …} ──>            <── exec_started {id, pid}
//!   exec_connect {id, pid}        ──>            <── exec_stdout, exec_stderr {id, data} …
//!                                                <── exec_exit {id, exit_code}
//!                                                <── error {id?, code, message}
//! ```
//! `id` is the client's own word for a command and comes back in all that is said of it; several commands may run over one
//! socket. A command outlives its socket, and `exec_connect` finds it again.

use serde::{Deserialize, Serialize};

use crate::{ErrorResponseCode, ExecRequest};

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecClientMessage {
    /// Start a command and follow it.
    ExecStart(ExecStart),
    /// Follow a command that was started before, from what is kept of its output on.
    ExecConnect(ExecConnect),
}

/// Start a command. `background` has no meaning here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStart {
    /// The client's word for it.
    #[serde(default)]
    pub id: String,
    /// The command.
    #[serde(flatten)]
    pub request: ExecRequest,
}

/// Follow a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecConnect {
    /// The client's word for it.
    #[serde(default)]
    pub id: String,
    /// Its pid in the sandbox.
    pub pid: u32,
    /// Bytes of stdout that the client has: the output goes on behind them. Default 0. See [`ExecOutput::end`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stdout_offset: u64,
    /// The same of stderr.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stderr_offset: u64,
}

/// What the service says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecServerMessage {
    /// A command is followed from here on.
    ExecStarted {
        /// As the client called it.
        id: String,
        /// Its pid in the sandbox.
        pid: u32,
        /// Bytes of stdout from before it was followed that are kept no more.
        #[serde(default, skip_serializing_if = "is_zero")]
        lost_stdout_bytes: u64,
        /// Bytes of stderr from before it was followed that are kept no more.
        #[serde(default, skip_serializing_if = "is_zero")]
        lost_stderr_bytes: u64,
    },
    /// It wrote to stdout.
    ExecStdout(ExecOutput),
    /// It wrote to stderr.
    ExecStderr(ExecOutput),
    /// It has ended.
    ExecExit {
        /// As the client called it.
        id: String,
        /// Its pid in the sandbox.
        pid: u32,
        /// Its exit code; 128 + signal when a signal ended it.
        exit_code: i32,
    },
    /// A message was not understood, or a command cannot be started or followed any more.
    Error {
        /// The command that it is about; absent when it is about a message that was not understood.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        /// Code for programs.
        code: ErrorResponseCode,
        /// Message for people.
        message: String,
    },
}

/// A piece of a command's output. Characters are never torn apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOutput {
    /// As the client called it.
    pub id: String,
    /// As text; bytes that are not UTF-8 are replaced.
    pub data: String,
    /// The very bytes, in base64, where `data` had to replace some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<String>,
    /// Bytes of the stream from the command's start to the end of this piece. A client that has lost its connection names it
    /// in [`ExecConnect`], and gets what comes behind it.
    #[serde(default)]
    pub end: u64,
}

/// Write to a process's stdin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SendStdinRequest {
    /// Data to write.
    pub data: String,
    /// Close stdin behind the data. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close: Option<bool>,
}

/// Send a signal to a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KillProcessRequest {
    /// Its name, such as `TERM` or `SIGTERM`, or its number. Default `SIGKILL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
}

/// A signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Signal {
    /// By its number, 1 to 64.
    Number(i32),
    /// By its name, with or without `SIG`.
    Name(String),
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
