//! The receiver of file contents.

use std::fmt;

/// Takes the bytes of one file after the other. Only content that ends up visible is sent, up to two exceptions: a file
/// that the *same* layer replaces later, and one that is only kept as a hard link's possible target. Those are handed
/// back through [`discard`](ContentSink::discard).
///
/// The calls for a file are `begin`, then `write` and `hole` in order, adding up to the announced size, then `finish`.
pub trait ContentSink {
    /// A handle to stored content; the merged tree carries it.
    type Content;

    /// A file of `size` bytes (holes included) begins.
    fn begin(&mut self, size: u64) -> Result<(), SinkError>;

    /// The next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError>;

    /// The next `len` bytes are zero and were not stored in the archive. The default writes them.
    fn hole(&mut self, len: u64) -> Result<(), SinkError> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut left = len;
        while left > 0 {
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            self.write(&ZEROS[..take])?;
            left -= take as u64;
        }
        Ok(())
    }

    /// The file is complete.
    fn finish(&mut self) -> Result<Self::Content, SinkError>;

    /// Content handed out by [`finish`](ContentSink::finish) turned out not to be part of the image.
    fn discard(&mut self, content: Self::Content) -> Result<(), SinkError> {
        drop(content);
        Ok(())
    }
}

/// Whatever error the sink has; the importer only passes it on. [`downcast_ref`](SinkError::downcast_ref) finds it again.
pub struct SinkError(Box<dyn std::error::Error + Send + Sync>);

impl SinkError {
    /// Wraps an error.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SinkError {
        SinkError(error.into())
    }

    /// The wrapped error, if it is an `E`.
    pub fn downcast_ref<E: std::error::Error + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }
}

impl From<std::io::Error> for SinkError {
    fn from(error: std::io::Error) -> Self {
        SinkError(Box::new(error))
    }
}

impl fmt::Debug for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
