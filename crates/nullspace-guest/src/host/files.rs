//! The guest's files, seen from the host: bytes out, bytes in, listings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::link::{Handle, Item, OpenChannel};
use super::{Agent, AgentError, refused};
use crate::capability::Capability;
use crate::file::{CopyEntry, CopyTo, FileCall, FileEntry, FileOp};
use crate::message::{FailureKind, Outcome, Request};
use crate::search::Part;

/// Bound from asking until the file is open.
const OPEN: Duration = Duration::from_secs(30);
/// Bound of an operation without data. Removing a large tree takes its time.
const DONE: Duration = Duration::from_secs(300);
/// A guest whose disk gives or takes nothing for so long is given up.
const STALLED: Duration = Duration::from_secs(120);
/// A listing larger than this, bytes of JSON, is given up.
const MAX_LISTING: usize = 16 << 20;
/// Memory of a listing as a multiple of its JSON: the JSON, its entries, and the answer made of them.
pub(super) const LISTING_COST: usize = 4;

/// A file that is being read. Dropping it ends the reading.
#[derive(Debug)]
pub struct FileReader {
    /// The file that is read, at the end of links.
    pub entry: FileEntry,
    channel: OpenChannel,
    over: bool,
    /// Keeps the connection open.
    _handle: Arc<Handle>,
}

impl FileReader {
    /// The next bytes; `None` at the end. May be cancelled without losing any.
    pub async fn next(&mut self) -> Result<Option<Bytes>, AgentError> {
        if self.over {
            return Ok(None);
        }
        match next(&self.channel, "read_file", STALLED).await? {
            Item::Output(_, bytes) => Ok(Some(bytes)),
            Item::Reply(other) => Err(AgentError::unexpected("read_file", &other)),
            Item::End(end) => {
                self.over = true;
                match end? {
                    Outcome::Done => Ok(None),
                    other => Err(AgentError::unexpected("read_file", &other)),
                }
            }
        }
    }
}

/// A file that is being written. Dropping it before [`FileWriter::finish`] leaves the file with what has arrived.
#[derive(Debug)]
pub struct FileWriter {
    channel: OpenChannel,
    _handle: Arc<Handle>,
}

impl FileWriter {
    /// Sends bytes, waiting while the guest's disk is slow. The guest's reason when it has given up.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        match tokio::time::timeout(STALLED, self.channel.write(bytes)).await {
            Ok(Ok(())) => Ok(()),
            // The operation has ended, and its end says why.
            Ok(Err(AgentError::Closed)) => match self.end().await {
                Ok(_) => Err(AgentError::Closed),
                Err(error) => Err(error),
            },
            Ok(Err(error)) => Err(error),
            Err(_) => Err(AgentError::timeout("write_file", STALLED)),
        }
    }

    /// All is sent: the file as it is now.
    pub async fn finish(self) -> Result<FileEntry, AgentError> {
        self.channel.write_eof();
        match self.end().await? {
            Outcome::File { entry } => Ok(entry),
            other => Err(AgentError::unexpected("write_file", &other)),
        }
    }

    async fn end(&self) -> Result<Outcome, AgentError> {
        match next(&self.channel, "write_file", STALLED).await? {
            Item::End(end) => end,
            Item::Reply(other) => Err(AgentError::unexpected("write_file", &other)),
            Item::Output(..) => Err(AgentError::Protocol("output of a file that is written".to_owned())),
        }
    }
}

/// A source that is being copied. Dropping it before [`CopyWriter::finish`] leaves what has arrived.
#[derive(Debug)]
pub struct CopyWriter {
    inner: FileWriter,
}

impl CopyWriter {
    /// Begins an entry; of a file, exactly `entry.bytes` bytes follow by [`CopyWriter::write`].
    pub async fn entry(&mut self, entry: &CopyEntry) -> Result<(), AgentError> {
        self.inner.write(&entry.encode()).await
    }

    /// Bytes of the file that was begun last, waiting while the guest's disk is slow.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        self.inner.write(bytes).await
    }

    /// All is sent: waits until it is in the guest's filesystem.
    pub async fn finish(self) -> Result<(), AgentError> {
        self.inner.channel.write_eof();
        match self.inner.end().await? {
            Outcome::Done => Ok(()),
            other => Err(AgentError::unexpected("copy", &other)),
        }
    }
}

impl Agent {
    /// Begins to copy one source into the guest, as root.
    pub async fn copy(&self, cwd: &str, to: CopyTo) -> Result<CopyWriter, AgentError> {
        let channel = self.file_channel(None, cwd, FileOp::Copy(to))?;
        match opened(&channel, "copy").await? {
            Outcome::Done => Ok(CopyWriter { inner: FileWriter { channel, _handle: Arc::clone(&self.handle) } }),
            other => Err(AgentError::unexpected("copy", &other)),
        }
    }

    /// Returns the free bytes and the free entries of the filesystem of `path`.
    pub async fn space(&self, path: &str) -> Result<(u64, u64), AgentError> {
        match self.file_channel(None, "/", FileOp::Space { path: path.to_owned() })?.end(OPEN).await? {
            Outcome::Space { free_bytes, free_inodes } => Ok((free_bytes, free_inodes)),
            other => Err(AgentError::unexpected("space", &other)),
        }
    }

    /// Opens a file for reading.
    pub async fn read_file(&self, user: Option<String>, cwd: &str, path: &str) -> Result<FileReader, AgentError> {
        let channel = self.file_channel(user, cwd, FileOp::Read { path: path.to_owned() })?;
        match opened(&channel, "read_file").await? {
            Outcome::File { entry } => {
                Ok(FileReader { entry, channel, over: false, _handle: Arc::clone(&self.handle) })
            }
            other => Err(AgentError::unexpected("read_file", &other)),
        }
    }

    /// Opens a part of a file for reading. `None`: the agent is older and reads whole files only.
    pub async fn read_file_part(
        &self,
        user: Option<String>,
        cwd: &str,
        path: &str,
        part: Part,
    ) -> Result<Option<FileReader>, AgentError> {
        if !self.info.can(Capability::FileSearch) {
            return Ok(None);
        }
        let channel = self.file_channel(user, cwd, FileOp::ReadPart { path: path.to_owned(), part })?;
        match opened(&channel, "read_file").await? {
            Outcome::File { entry } => {
                Ok(Some(FileReader { entry, channel, over: false, _handle: Arc::clone(&self.handle) }))
            }
            other => Err(AgentError::unexpected("read_file", &other)),
        }
    }

    /// As [`Agent::write_file`], and the file belongs to `user` afterwards. With an older agent the owner of an existing
    /// file stays.
    pub async fn write_own_file(&self, user: String, cwd: &str, path: &str) -> Result<FileWriter, AgentError> {
        if !self.info.can(Capability::FileSearch) {
            return self.write_file(Some(user), cwd, path).await;
        }
        let channel = self.file_channel(Some(user), cwd, FileOp::WriteOwn { path: path.to_owned() })?;
        match opened(&channel, "write_file").await? {
            Outcome::Done => Ok(FileWriter { channel, _handle: Arc::clone(&self.handle) }),
            other => Err(AgentError::unexpected("write_file", &other)),
        }
    }

    /// Opens a file for writing: it is made, or emptied.
    pub async fn write_file(&self, user: Option<String>, cwd: &str, path: &str) -> Result<FileWriter, AgentError> {
        let channel = self.file_channel(user, cwd, FileOp::Write { path: path.to_owned() })?;
        match opened(&channel, "write_file").await? {
            Outcome::Done => Ok(FileWriter { channel, _handle: Arc::clone(&self.handle) }),
            other => Err(AgentError::unexpected("write_file", &other)),
        }
    }

    /// The entries below a directory, in the order of their paths.
    pub async fn list_files(
        &self,
        user: Option<String>,
        cwd: &str,
        path: &str,
        depth: u32,
    ) -> Result<Vec<FileEntry>, AgentError> {
        self.list_files_while(user, cwd, path, depth, |_| true).await
    }

    /// As [`Agent::list_files`]. `may_keep` is asked with how many bytes more the listing will take; when it says no, the
    /// listing is given up with [`FailureKind::Limit`].
    pub async fn list_files_while(
        &self,
        user: Option<String>,
        cwd: &str,
        path: &str,
        depth: u32,
        may_keep: impl FnMut(usize) -> bool,
    ) -> Result<Vec<FileEntry>, AgentError> {
        let channel = self.file_channel(user, cwd, FileOp::List { path: path.to_owned(), depth })?;
        match lines(&channel, "list_files", STALLED, usize::MAX, may_keep).await? {
            (entries, Outcome::Done) => Ok(entries),
            (_, other) => Err(AgentError::unexpected("list_files", &other)),
        }
    }

    /// An operation that ends with an entry: info, making a directory, renaming.
    pub async fn file_entry(&self, user: Option<String>, cwd: &str, op: FileOp) -> Result<FileEntry, AgentError> {
        match self.file_channel(user, cwd, op)?.end(DONE).await? {
            Outcome::File { entry } => Ok(entry),
            other => Err(AgentError::unexpected("files", &other)),
        }
    }

    /// An operation without an answer: removing, setting permissions.
    pub async fn file_done(&self, user: Option<String>, cwd: &str, op: FileOp) -> Result<(), AgentError> {
        match self.file_channel(user, cwd, op)?.end(DONE).await? {
            Outcome::Done => Ok(()),
            other => Err(AgentError::unexpected("files", &other)),
        }
    }

    pub(super) fn file_channel(&self, user: Option<String>, cwd: &str, op: FileOp) -> Result<OpenChannel, AgentError> {
        self.handle.open(&Request::File(FileCall { user, cwd: Some(cwd.to_owned()), action: op }))
    }
}

/// Reads an answer of at most `most` JSON lines, and the outcome behind it. `may_keep` is asked with how many bytes more they will
/// take.
pub(super) async fn lines<T: DeserializeOwned>(
    channel: &OpenChannel,
    what: &'static str,
    limit: Duration,
    most: usize,
    mut may_keep: impl FnMut(usize) -> bool,
) -> Result<(Vec<T>, Outcome), AgentError> {
    let mut lines = Vec::new();
    let mut count = 0;
    let outcome = loop {
        match next(channel, what, limit).await? {
            Item::Output(_, bytes) if lines.len() + bytes.len() > MAX_LISTING => {
                return Err(refused(FailureKind::Limit, "The listing is too long: list a smaller directory."));
            }
            Item::Output(_, bytes) if !may_keep(LISTING_COST * bytes.len()) => {
                return Err(refused(FailureKind::Limit, "There is no memory for the listing: try again."));
            }
            Item::Output(_, bytes) => {
                count += bytes.iter().filter(|byte| **byte == b'\n').count();
                if count > most {
                    return Err(AgentError::Protocol(format!("an answer to {what} has more than {most} entries")));
                }
                lines.extend_from_slice(&bytes);
            }
            Item::Reply(other) => return Err(AgentError::unexpected(what, &other)),
            Item::End(end) => break end?,
        }
    };
    let entries = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let read = |line| {
        serde_json::from_slice(line).map_err(|error| AgentError::Protocol(format!("an entry of a listing: {error}")))
    };
    Ok((entries.map(read).collect::<Result<_, _>>()?, outcome))
}

pub(super) async fn opened(channel: &OpenChannel, what: &'static str) -> Result<Outcome, AgentError> {
    match next(channel, what, OPEN).await? {
        Item::Reply(Outcome::Failed(failure)) => Err(AgentError::Failed(failure)),
        Item::Reply(outcome) => Ok(outcome),
        Item::End(Err(error)) => Err(error),
        Item::End(Ok(other)) => Err(AgentError::unexpected(what, &other)),
        Item::Output(..) => Err(AgentError::Protocol("output before the reply".to_owned())),
    }
}

pub(super) async fn next(channel: &OpenChannel, what: &'static str, limit: Duration) -> Result<Item, AgentError> {
    tokio::time::timeout(limit, channel.next()).await.map_err(|_| AgentError::timeout(what, limit))
}
