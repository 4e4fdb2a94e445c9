//! Uploads in parts, seen from the host.

use std::sync::Arc;
use std::time::Duration;

use super::files::next;
use super::link::{Handle, Item, OpenChannel};
use super::{Agent, AgentError};
use crate::message::{Outcome, Request};
use crate::upload::{UploadCall, UploadOp, UploadRefusal, UploadState};

/// A guest whose disk takes nothing for so long is given up.
const STALLED: Duration = Duration::from_secs(120);
/// Bound of an operation without data. Another one on the same upload may come first.
const DONE: Duration = Duration::from_secs(60);
/// Bound of checking and publishing an upload.
const COMPLETE: Duration = Duration::from_secs(1200);

/// What an operation on an upload says: its state, or a refusal that is for the caller.
pub type Uploaded = Result<UploadState, UploadRefusal>;

/// A part that is being written. Dropping it before [`PartWriter::finish`] leaves the part missing.
#[derive(Debug)]
pub struct PartWriter {
    channel: OpenChannel,
    /// The end, when it came before all was sent.
    ended: Option<Uploaded>,
    _handle: Arc<Handle>,
}

impl PartWriter {
    /// Sends bytes, waiting while the guest's disk is slow. After an early end of the operation they go nowhere.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        if self.ended.is_some() {
            return Ok(());
        }
        match tokio::time::timeout(STALLED, self.channel.write(bytes)).await {
            Ok(Ok(())) => Ok(()),
            // The operation has ended, and its end says why.
            Ok(Err(AgentError::Closed)) => {
                self.ended = Some(self.end().await?);
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(AgentError::timeout("upload", STALLED)),
        }
    }

    /// All is sent, and the part may be taken.
    pub async fn finish(mut self) -> Result<Uploaded, AgentError> {
        match self.ended.take() {
            Some(ended) => Ok(ended),
            None => {
                self.channel.write_eof();
                self.end().await
            }
        }
    }

    async fn end(&self) -> Result<Uploaded, AgentError> {
        match next(&self.channel, "upload", STALLED).await? {
            Item::End(end) => uploaded(end?),
            Item::Reply(other) => Err(AgentError::unexpected("upload", &other)),
            Item::Output(..) => Err(AgentError::Protocol("output of an upload".to_owned())),
        }
    }
}

fn uploaded(outcome: Outcome) -> Result<Uploaded, AgentError> {
    match outcome {
        Outcome::Upload { state } => Ok(Ok(*state)),
        Outcome::UploadRefused(refusal) => Ok(Err(refusal)),
        other => Err(AgentError::unexpected("upload", &other)),
    }
}

impl Agent {
    /// An operation on an upload that needs no data: all but [`UploadOp::Part`].
    pub async fn upload(&self, id: &str, action: UploadOp) -> Result<Uploaded, AgentError> {
        let limit = if matches!(action, UploadOp::Complete { .. }) { COMPLETE } else { DONE };
        let channel = self.handle.open(&Request::Upload(UploadCall { id: id.to_owned(), action }))?;
        let end = channel.end(limit).await.map_err(|error| match error {
            AgentError::Timeout { .. } => AgentError::timeout("upload", limit),
            error => error,
        })?;
        uploaded(end)
    }

    /// Begins to write one part.
    pub async fn upload_part(&self, id: &str, number: u32) -> Result<PartWriter, AgentError> {
        let action = UploadOp::Part { number };
        let channel = self.handle.open(&Request::Upload(UploadCall { id: id.to_owned(), action }))?;
        let handle = Arc::clone(&self.handle);
        let first =
            tokio::time::timeout(DONE, channel.next()).await.map_err(|_| AgentError::timeout("upload", DONE))?;
        let ended = match first {
            Item::Reply(Outcome::Done) => None,
            Item::Reply(Outcome::Failed(failure)) => return Err(AgentError::Failed(failure)),
            Item::Reply(other) => return Err(AgentError::unexpected("upload", &other)),
            Item::End(end) => Some(uploaded(end?)?),
            Item::Output(..) => return Err(AgentError::Protocol("output of an upload".to_owned())),
        };
        Ok(PartWriter { channel, ended, _handle: handle })
    }
}
