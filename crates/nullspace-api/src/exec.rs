//! Commands in a sandbox.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Envs;

/// Run a command and wait for its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    /// Program, or with `shell` a command line for `sh -c`.
    pub command: String,
    /// Arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Seconds until it is ended; 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u64>,
    /// Working directory; the sandbox's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Environment on top of the sandbox's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envs: Option<Envs>,
    /// Run `command` by `sh -c`. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<bool>,
    /// Answer as soon as it runs, with its pid. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background: Option<bool>,
    /// Run as this user; the sandbox's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl ExecRequest {
    /// `timeout_secs` of a request that gives none.
    pub const DEFAULT_TIMEOUT_SECS: u64 = 30;
}

/// The result of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecResponse {
    /// Its exit code; 128 + signal when a signal ended it; 0 for one that runs in the background.
    pub exit_code: i32,
    /// Output on stdout. Bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Output on stderr.
    pub stderr: String,
    /// Its pid in the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// A process of a sandbox.
///
/// Published clients reject any other field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessInfo {
    /// Its pid in the guest.
    pub pid: u32,
    /// Its command line.
    pub command: String,
    /// False after the process has ended.
    pub running: bool,
}

/// Output of a background process so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessLogs {
    /// The end of its stdout; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// The end of its stderr.
    pub stderr: String,
    /// Both, in the order in which they were written, as far as that is known.
    pub output: String,
    /// Exit code; absent while the process runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}
