//! The reader's end of the channel.

use std::sync::mpsc::SyncSender;

use nullspace_oci::merge::{ContentSink, SinkError};

/// Which file a content is, in the order of arrival.
pub type Content = u32;

/// Bytes of one message.
const PIECE: usize = 256 << 10;

pub(crate) enum Op {
    Bytes(Vec<u8>),
    Hole(u64),
    /// The file is complete; a file begins with its first byte or with this.
    End,
}

/// Takes an import's file contents and hands them to the writer's thread.
#[derive(Debug)]
pub struct Sink {
    ops: SyncSender<Op>,
    next: Content,
    buffer: Vec<u8>,
}

impl Sink {
    pub(crate) fn new(ops: SyncSender<Op>) -> Sink {
        Sink { ops, next: 0, buffer: Vec::new() }
    }

    fn send(&self, op: Op) -> Result<(), SinkError> {
        self.ops.send(op).map_err(|_| SinkError::new("the image's writer stopped"))
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.send(Op::Bytes(piece))
    }
}

impl ContentSink for Sink {
    type Content = Content;

    fn begin(&mut self, size: u64) -> Result<(), SinkError> {
        // Small files get small buffers: there are tens of thousands of them in the queue's time.
        if let Ok(size) = usize::try_from(size)
            && size < PIECE
        {
            self.buffer = Vec::with_capacity(size);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        if self.buffer.len() + bytes.len() > PIECE {
            self.flush()?;
        }
        if bytes.len() >= PIECE {
            return self.send(Op::Bytes(bytes.to_vec()));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<(), SinkError> {
        self.flush()?;
        self.send(Op::Hole(len))
    }

    fn finish(&mut self) -> Result<Content, SinkError> {
        self.flush()?;
        self.send(Op::End)?;
        let content = self.next;
        self.next = content.checked_add(1).ok_or_else(|| SinkError::new("more than 4294967295 files"))?;
        Ok(content)
    }
}
