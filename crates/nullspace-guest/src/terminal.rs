//! Terminals of a guest: services whose input and output are a terminal of their own.
//!
//! ```text
//!   OpenTerminal ──> master (the agent) <──> slave: the session's controlling terminal ── shell ── its jobs
//!                        │  output: as of a service, kept and followed
//!                        │  input:  FeedService
//!                        └  size:   Resize
//! ```
//! A terminal is a service: [`Attach`](crate::message::Request::Attach) follows it and
//! [`FeedService`](crate::message::Request::FeedService) types into it. All of its output is stdout.

use serde::{Deserialize, Serialize};

use crate::message::{Exec, Exit};

/// Most terminals whose sessions run at a time, in one guest.
pub const MAX_TERMINALS: usize = 16;

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

impl TerminalSize {
    /// The size of a terminal for which none was asked.
    pub const DEFAULT: TerminalSize = TerminalSize { cols: 120, rows: 30 };
    /// Most columns, and most rows.
    pub const MAX: u16 = 1000;

    /// True when both are from 1 to [`TerminalSize::MAX`].
    pub fn is_valid(self) -> bool {
        (1..=Self::MAX).contains(&self.cols) && (1..=Self::MAX).contains(&self.rows)
    }
}

/// A terminal to open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenTerminal {
    /// The host's name for it, which [`Terminal`] repeats.
    pub name: String,
    /// Its size.
    pub size: TerminalSize,
    /// The first process of its session. An empty `argv` is the user's shell in /etc/passwd, else /bin/bash, else /bin/sh. The
    /// variable TERM is `xterm-256color` unless `envs` has another. `stdin` and `timeout_ms` are not used.
    pub exec: Exec,
}

/// A terminal of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// The host's name for it.
    pub name: String,
    /// Pid of the first process of its session, also the service's.
    pub pid: u32,
    /// Its size now.
    pub size: TerminalSize,
    /// The end of its first process, if that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}
