//! What was moved to and from a store since it was opened.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Calls of an [`Objects`](crate::Objects) value and its clones since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Objects that were stored, also those that were there already.
    pub uploads: u64,
    /// Bytes of them.
    pub uploaded_bytes: u64,
    /// Reads of objects and of parts of them.
    pub downloads: u64,
    /// Bytes of them.
    pub downloaded_bytes: u64,
    /// Calls that failed after all their tries. A missing object and a stopped call are none.
    pub failures: u64,
}

/// The counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    uploads: AtomicU64,
    uploaded_bytes: AtomicU64,
    downloads: AtomicU64,
    downloaded_bytes: AtomicU64,
    failures: AtomicU64,
}

impl Counters {
    /// Counts an upload, with its bytes.
    pub(crate) fn uploaded<T>(&self, outcome: Result<T>, bytes: impl FnOnce(&T) -> u64) -> Result<T> {
        self.moved(outcome, bytes, &self.uploads, &self.uploaded_bytes)
    }

    /// Counts a read, with its bytes.
    pub(crate) fn downloaded<T>(&self, outcome: Result<T>, bytes: impl FnOnce(&T) -> u64) -> Result<T> {
        self.moved(outcome, bytes, &self.downloads, &self.downloaded_bytes)
    }

    /// Counts a call that moves nothing: only its failure.
    pub(crate) fn asked<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome
            && !matches!(error, Error::NotFound { .. } | Error::Stopped)
        {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }

    fn moved<T>(
        &self,
        outcome: Result<T>,
        bytes: impl FnOnce(&T) -> u64,
        calls: &AtomicU64,
        total: &AtomicU64,
    ) -> Result<T> {
        if let Ok(done) = &outcome {
            calls.fetch_add(1, Ordering::Relaxed);
            total.fetch_add(bytes(done), Ordering::Relaxed);
        }
        self.asked(outcome)
    }

    pub(crate) fn now(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            uploads: read(&self.uploads),
            uploaded_bytes: read(&self.uploaded_bytes),
            downloads: read(&self.downloads),
            downloaded_bytes: read(&self.downloaded_bytes),
            failures: read(&self.failures),
        }
    }
}
