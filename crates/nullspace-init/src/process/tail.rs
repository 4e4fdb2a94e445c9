//! The end of a process's output, for a message about it.

use nullspace_guest::frame::Kind;

use super::supervise::Wiring;
use crate::session::Channel;
use crate::wake::Wake;

/// Bytes kept of the end of a process's output, for its last line.
const KEPT: usize = 1024;
/// Characters of that line that are shown.
const SHOWN: usize = 300;

/// Keeps the last line of both streams together. With a channel the process ends when nobody wants it any more.
pub(crate) struct Tail<'a> {
    bytes: Vec<u8>,
    channel: Option<&'a Channel>,
}

impl<'a> Tail<'a> {
    /// Nothing yet.
    pub(crate) fn new(channel: Option<&'a Channel>) -> Tail<'a> {
        Tail { bytes: Vec::new(), channel }
    }

    /// The last line that is not empty.
    pub(crate) fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        line.chars().take(SHOWN).collect()
    }
}

impl Wiring for Tail<'_> {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn output(&mut self, _: Kind, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let old = self.bytes.len().saturating_sub(KEPT);
        self.bytes.drain(..old);
    }

    fn cancelled(&self) -> bool {
        self.channel.is_some_and(Channel::is_reset)
    }

    fn wake(&self) -> Option<&Wake> {
        self.channel.map(Channel::wake)
    }
}
