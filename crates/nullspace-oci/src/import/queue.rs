//! A layer's blob between its download and its reader.
//!
//! Downloads run ahead of the merge, several at once, and memory must not grow with the image. So the blob that is being
//! merged has a small buffer in memory and makes its download wait when that is full; those whose turn has not come share
//! another, and go on into unlinked temporary files, as far as the common spool limit allows.
//!
//! ```text
//!  download ─▶ [memory, a few MiB] ─▶ [file, if this layer has to wait] ─▶ reader      (always first in, first out)
//!  cache ─────────────────────────▶ [its file] ───────────────────────────▶ reader
//! ```

use std::any::Any;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::registry::RegistryError;
use crate::stream::StreamError;

use super::cache::CachedLayer;

/// Bytes held in memory of the blob that is being merged.
const MEMORY: usize = 4 << 20;
/// Bytes held in memory of all blobs together, before one whose turn has not come has to wait or to spill.
const SHARED_MEMORY: u64 = 12 << 20;
/// Read back from the file in pieces of this many bytes.
const PIECE: usize = 256 << 10;
/// How soon a waiting thread notices a cancellation.
pub(super) const WAKE: Duration = Duration::from_millis(100);

/// Where blobs that are ahead of their time may go, shared by all of an import.
#[derive(Debug)]
pub(super) struct Spool {
    /// `None`: nowhere; downloads ahead wait.
    pub(super) directory: Option<PathBuf>,
    /// Most bytes in files at any time.
    pub(super) limit: u64,
    used: AtomicU64,
    /// Bytes of all blobs in memory.
    memory: AtomicU64,
}

impl Spool {
    pub(super) fn new(directory: Option<PathBuf>, limit: u64) -> Spool {
        Spool { directory, limit, used: AtomicU64::new(0), memory: AtomicU64::new(0) }
    }

    fn reserve(counter: &AtomicU64, length: usize, limit: u64) -> bool {
        let room = |used: u64| used.checked_add(length as u64).filter(|&sum| sum <= limit);
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
    }
}

/// How a download ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// All bytes came; size and digest are right.
    Complete,
    Failed(RegistryError),
    /// The temporary file failed.
    Spool(Arc<io::Error>),
    Cancelled,
}

/// One blob. The download is the only writer, the decoder the only reader.
#[derive(Debug)]
pub(super) struct BlobQueue {
    state: Mutex<State>,
    changed: Condvar,
    spool: Arc<Spool>,
    cancel: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// Older than anything in the file.
    memory: VecDeque<Bytes>,
    memory_bytes: usize,
    file: Option<File>,
    /// The unread part of the file.
    file_start: u64,
    file_end: u64,
    /// The file is one of the cache, which keeps it while this is held. It is no part of the spool.
    cached: Option<Box<dyn Any + Send + Sync>>,
    /// It is this blob's turn to be merged.
    current: bool,
    ended: Option<End>,
    /// The reader has given up; what comes is only hashed.
    abandoned: bool,
}

impl State {
    fn file_bytes(&self) -> u64 {
        self.file_end - self.file_start
    }
}

impl BlobQueue {
    pub(super) fn new(spool: Arc<Spool>, cancel: CancellationToken) -> BlobQueue {
        BlobQueue { state: Mutex::default(), changed: Condvar::new(), spool, cancel }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>, StreamError> {
        if self.cancel.is_cancelled() {
            return Err(StreamError::Cancelled);
        }
        Ok(self.changed.wait_timeout(state, WAKE).unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Adds downloaded bytes; waits while there is no room for them.
    pub(super) fn push(&self, chunk: Bytes) -> io::Result<()> {
        let mut state = self.lock();
        loop {
            if state.abandoned || chunk.is_empty() {
                return Ok(());
            }
            if state.file_bytes() == 0 && self.has_memory(&state, chunk.len()) {
                state.memory_bytes += chunk.len();
                state.memory.push_back(chunk);
                self.changed.notify_all();
                return Ok(());
            }
            // A blob that is being read needs no file, but one that has some in a file must keep the order.
            if (!state.current || state.file_bytes() > 0) && self.spill(&mut state, &chunk)? {
                self.changed.notify_all();
                return Ok(());
            }
            state = self.wait(state)?;
        }
    }

    /// Whether the bytes may stay in memory; if so, they count from now on.
    fn has_memory(&self, state: &State, length: usize) -> bool {
        if state.current && state.memory_bytes < MEMORY {
            self.spool.memory.fetch_add(length as u64, Ordering::Relaxed);
            return true;
        }
        !state.current && Spool::reserve(&self.spool.memory, length, SHARED_MEMORY)
    }

    /// Appends to the file, if the spool has room.
    fn spill(&self, state: &mut State, chunk: &Bytes) -> io::Result<bool> {
        let Some(directory) = &self.spool.directory else { return Ok(false) };
        if !Spool::reserve(&self.spool.used, chunk.len(), self.spool.limit) {
            return Ok(false);
        }
        let file = match &mut state.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(directory)?),
        };
        file.write_all_at(chunk, state.file_end)?;
        state.file_end += chunk.len() as u64;
        Ok(true)
    }

    /// Gives the whole blob at once, as a file of the cache. Nothing may have been pushed.
    pub(super) fn give(&self, layer: CachedLayer, size: u64) {
        let mut state = self.lock();
        if !state.abandoned && size > 0 {
            (state.file, state.cached) = (Some(layer.file), Some(layer.hold));
            (state.file_start, state.file_end) = (0, size);
        }
        self.changed.notify_all();
    }

    /// The download is over.
    pub(super) fn end(&self, end: End) {
        self.lock().ended = Some(end);
        self.changed.notify_all();
    }

    /// It is this blob's turn: from now on its download waits for the reader instead of filling the spool.
    pub(super) fn set_current(&self) {
        self.lock().current = true;
    }

    /// The reader wants no more bytes. Waits for the download's outcome, which tells whether the blob itself was wrong.
    pub(super) fn abandon(&self) -> Option<RegistryError> {
        let mut state = self.lock();
        state.abandoned = true;
        self.drop_memory(&mut state);
        self.drop_file(&mut state);
        self.changed.notify_all();
        loop {
            match &state.ended {
                Some(End::Failed(error)) => return Some(error.clone()),
                Some(_) => return None,
                None => {}
            }
            state = self.wait(state).ok()?;
        }
    }

    fn drop_memory(&self, state: &mut State) {
        state.memory.clear();
        self.spool.memory.fetch_sub(state.memory_bytes as u64, Ordering::Relaxed);
        state.memory_bytes = 0;
    }

    fn drop_file(&self, state: &mut State) {
        state.file = None;
        if state.cached.take().is_none() {
            self.spool.used.fetch_sub(state.file_end, Ordering::Relaxed);
        }
        (state.file_start, state.file_end) = (0, 0);
    }

    /// The next bytes; empty at the end of a blob that was found right.
    fn pull(&self) -> io::Result<Bytes> {
        let mut state = self.lock();
        loop {
            if let Some(chunk) = state.memory.pop_front() {
                state.memory_bytes = state.memory_bytes.saturating_sub(chunk.len());
                self.spool.memory.fetch_sub(chunk.len() as u64, Ordering::Relaxed);
                self.changed.notify_all();
                return Ok(chunk);
            }
            if state.file_bytes() > 0 {
                return self.read_back(&mut state);
            }
            match &state.ended {
                Some(End::Complete) => return Ok(Bytes::new()),
                Some(End::Failed(error)) => return Err(StreamError::Registry(error.clone()).into()),
                Some(End::Spool(error)) => return Err(io::Error::new(error.kind(), error.clone())),
                Some(End::Cancelled) => return Err(StreamError::Cancelled.into()),
                None => state = self.wait(state)?,
            }
        }
    }

    fn read_back(&self, state: &mut State) -> io::Result<Bytes> {
        let length = usize::try_from(state.file_bytes()).unwrap_or(PIECE).min(PIECE);
        let mut piece = vec![0; length];
        if let Some(file) = &state.file {
            file.read_exact_at(&mut piece, state.file_start)?;
        }
        state.file_start += length as u64;
        if state.file_bytes() == 0 {
            self.drop_file(state);
            self.changed.notify_all();
        }
        Ok(piece.into())
    }
}

impl Drop for BlobQueue {
    fn drop(&mut self) {
        let mut state = std::mem::take(self.state.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.drop_memory(&mut state);
        self.drop_file(&mut state);
    }
}

/// The reading end.
#[derive(Debug)]
pub(super) struct QueueReader {
    queue: Arc<BlobQueue>,
    chunk: Bytes,
}

impl QueueReader {
    pub(super) fn new(queue: Arc<BlobQueue>) -> QueueReader {
        QueueReader { queue, chunk: Bytes::new() }
    }
}

impl BufRead for QueueReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() {
            self.chunk = self.queue.pull()?;
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, amount: usize) {
        let amount = amount.min(self.chunk.len());
        let _ = self.chunk.split_to(amount);
    }
}

impl Read for QueueReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(limit: u64) -> (tempfile::TempDir, Arc<Spool>) {
        let directory = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::new(Some(directory.path().to_owned()), limit));
        (directory, spool)
    }

    fn chunk(n: u8) -> Bytes {
        vec![n; 1 << 20].into()
    }

    #[test]
    fn queue_keeps_the_order_through_memory_and_file() {
        let (_directory, spool) = spool(1 << 30);
        let queue = Arc::new(BlobQueue::new(spool.clone(), CancellationToken::new()));
        for n in 0..20 {
            queue.push(chunk(n)).unwrap();
        }
        assert_eq!(spool.memory.load(Ordering::Relaxed), 12 << 20);
        assert_eq!(spool.used.load(Ordering::Relaxed), 8 << 20);
        queue.end(End::Complete);
        let mut all = Vec::new();
        QueueReader::new(queue).read_to_end(&mut all).unwrap();
        let wanted: Vec<u8> = (0..20).flat_map(|n| vec![n; 1 << 20]).collect();
        assert!(all == wanted);
        assert_eq!(spool.used.load(Ordering::Relaxed), 0);
        assert_eq!(spool.memory.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn queue_waits_when_the_spool_is_full_and_goes_on_when_read() {
        let (_directory, spool) = spool(2 << 20);
        let queue = Arc::new(BlobQueue::new(spool.clone(), CancellationToken::new()));
        let writer = std::thread::spawn({
            let queue = queue.clone();
            move || {
                for n in 0..40 {
                    queue.push(chunk(n)).unwrap();
                }
                queue.end(End::Complete);
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!writer.is_finished());
        assert!(spool.used.load(Ordering::Relaxed) <= 2 << 20);
        let mut all = Vec::new();
        QueueReader::new(queue).read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 40 << 20);
        assert!(all.chunks(1 << 20).zip(0..40).all(|(piece, n)| piece.iter().all(|&b| b == n)));
        writer.join().unwrap();
        assert_eq!(spool.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn current_blob_has_memory_however_much_the_others_hold() {
        let spool = Arc::new(Spool::new(None, 0));
        let ahead = BlobQueue::new(spool.clone(), CancellationToken::new());
        for n in 0..12 {
            ahead.push(chunk(n)).unwrap();
        }
        let current = BlobQueue::new(spool.clone(), CancellationToken::new());
        current.set_current();
        for n in 0..4 {
            current.push(chunk(n)).unwrap();
        }
        assert_eq!(spool.memory.load(Ordering::Relaxed), 16 << 20);
    }

    #[test]
    fn a_file_of_the_cache_is_read_whole_held_meanwhile_and_no_part_of_the_spool() {
        use std::io::Write;
        let (_directory, spool) = spool(0);
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..700_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        file.write_all(&bytes).unwrap();
        let held = Arc::new(());
        for abandoned in [false, true] {
            let queue = Arc::new(BlobQueue::new(spool.clone(), CancellationToken::new()));
            let layer = CachedLayer { file: file.try_clone().unwrap(), hold: Box::new(held.clone()) };
            queue.give(layer, bytes.len() as u64);
            queue.end(End::Complete);
            assert_eq!((Arc::strong_count(&held), spool.used.load(Ordering::Relaxed)), (2, 0));
            if abandoned {
                assert!(queue.abandon().is_none());
            } else {
                let mut all = Vec::new();
                QueueReader::new(queue.clone()).read_to_end(&mut all).unwrap();
                assert!(all == bytes);
            }
            assert_eq!((Arc::strong_count(&held), spool.used.load(Ordering::Relaxed)), (1, 0));
        }
    }

    #[test]
    fn queue_ends_waits_on_cancel_and_gives_its_file_back_when_dropped() {
        let (_directory, spool) = spool(1 << 20);
        let cancel = CancellationToken::new();
        let queue = Arc::new(BlobQueue::new(spool.clone(), cancel.clone()));
        for n in 0..13 {
            queue.push(chunk(n)).unwrap();
        }
        assert_eq!(spool.used.load(Ordering::Relaxed), 1 << 20);
        cancel.cancel();
        let error = StreamError::find(queue.push(chunk(9)).unwrap_err()).unwrap();
        assert!(matches!(error, StreamError::Cancelled));
        drop(queue);
        assert_eq!(spool.used.load(Ordering::Relaxed), 0);
        assert_eq!(spool.memory.load(Ordering::Relaxed), 0);
    }
}
