//! A watched directory, seen from the host.

use std::sync::Arc;

use super::files::opened;
use super::link::{Handle, Item, OpenChannel};
use super::{Agent, AgentError};
use crate::message::{Outcome, Request};
use crate::watch::{WatchCall, WatchEvent};

/// Longest line of an event, bytes: two paths of 4096 bytes, each escaped to six times its length.
const MAX_LINE: usize = 64 * 1024;

/// A directory that is watched. Dropping it ends the watch.
#[derive(Debug)]
pub struct DirWatch {
    /// Its absolute path in the guest.
    pub path: String,
    channel: OpenChannel,
    /// What has arrived and is not read yet.
    lines: Vec<u8>,
    /// Position in it.
    read: usize,
    over: bool,
    /// Keeps the connection open.
    _handle: Arc<Handle>,
}

impl DirWatch {
    /// The next event; `None` at the end. May be cancelled without losing any.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, AgentError> {
        loop {
            let unread = self.lines.get(self.read..).unwrap_or_default();
            if let Some(len) = unread.iter().position(|byte| *byte == b'\n') {
                let event = serde_json::from_slice(unread.get(..len).unwrap_or_default())
                    .map_err(|error| AgentError::Protocol(format!("an event of a watch: {error}")))?;
                self.read = self.read.saturating_add(len).saturating_add(1);
                return Ok(Some(event));
            }
            if unread.len() > MAX_LINE {
                return Err(AgentError::Protocol("an event of a watch is too long".to_owned()));
            }
            if self.over {
                return Ok(None);
            }
            match self.channel.next().await {
                Item::Output(_, bytes) => {
                    self.lines.drain(..self.read.min(self.lines.len()));
                    self.read = 0;
                    self.lines.extend_from_slice(&bytes);
                }
                Item::Reply(other) => return Err(AgentError::unexpected("watch", &other)),
                Item::End(end) => {
                    self.over = true;
                    match end? {
                        Outcome::Done => {}
                        other => return Err(AgentError::unexpected("watch", &other)),
                    }
                }
            }
        }
    }
}

impl Agent {
    /// Begins to watch a directory. Changes that are made after the answer are told.
    pub async fn watch(&self, call: WatchCall) -> Result<DirWatch, AgentError> {
        let channel = self.handle.open(&Request::Watch(call))?;
        match opened(&channel, "watch").await? {
            Outcome::Watching { path } => Ok(DirWatch {
                path,
                channel,
                lines: Vec::new(),
                read: 0,
                over: false,
                _handle: Arc::clone(&self.handle),
            }),
            other => Err(AgentError::unexpected("watch", &other)),
        }
    }
}
