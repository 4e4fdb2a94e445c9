//! A bounded cache of build logs: any number of followers cost one database reader.
//!
//! ```text
//!   reader 1 ──asks──┐                       ┌ the build's row
//!   reader 2 ──asks──┼─> one read at a time ─┤                    ──> every reader that asked before it began
//!   reader 3 ──asks──┘                       └ entries past those that are known
//! ```
//! An answer is never older than its question: a reader that asks during a read waits for the next one, which answers all
//! waiting readers. The row is always read. Known entries come from memory: a log only grows, and an entry that was read is
//! durable and does not change.
//!
//! The cache has limits. It keeps one run of entries for each of the [`LOGS`] most recently read logs: at most [`KEPT`] entries
//! and about [`KEPT_BYTES`] a log, and [`ALL_BYTES`] together. A log that was not read for [`IDLE`] is dropped. Older entries
//! are read from the database by each reader on its own.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Entries kept of a log.
const KEPT: u64 = 8192;
/// Bytes kept of a log, as [`Source::size`] counts them.
const KEPT_BYTES: usize = 4 << 20;
/// Bytes kept of all logs together.
const ALL_BYTES: usize = 16 << 20;
/// Most logs in the cache.
const LOGS: usize = 16;
/// A log that was not read for this time is dropped from the cache.
pub(crate) const IDLE: Duration = Duration::from_secs(30);
/// Most entries of one page, and of one read from the database.
pub(crate) const PAGE: u32 = 1000;
/// Assumed bytes of an entry when a page with a limit in bytes is read from the database. Shorter entries make a longer page.
const ENTRY: usize = 2 << 10;

/// Most of a log to answer with at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    /// Entries.
    pub(crate) entries: u32,
    /// Bytes of entries, about; at least one entry is given.
    pub(crate) bytes: usize,
}

/// A row and the log's next offset, or the error.
type Read<R, E> = Result<(R, u64), E>;

/// The source of rows and entries for one reader.
pub(crate) trait Source {
    /// The data that changes beside the log.
    type Row: Clone;
    /// An entry of the log.
    type Entry;
    /// The error of a read. Every reader that waited for the read gets a clone.
    type Error: Clone;

    /// Reads the row, and the offset of the log's next entry at the same moment.
    fn row(&self) -> impl Future<Output = Read<Self::Row, Self::Error>> + Send;
    /// Reads up to `limit` entries from `from` on.
    fn entries(
        &self,
        row: &Self::Row,
        from: u64,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Self::Entry>, Self::Error>> + Send;
    /// Whether this reader may see a row that another one has read.
    fn may_see(&self, row: &Self::Row) -> Result<(), Self::Error>;
    /// Whether an error concerns this reader alone.
    fn is_own(error: &Self::Error) -> bool;
    /// Bytes of an entry, about.
    fn size(entry: &Self::Entry) -> usize;
}

/// The row and a part of the log, read after it was asked for.
#[derive(Debug)]
pub(crate) struct Page<R, E> {
    pub(crate) row: R,
    /// The log's next offset when the row was read. All entries of this page lie before it.
    pub(crate) end: u64,
    pub(crate) entries: Vec<Arc<E>>,
}

/// The logs in the cache.
pub(crate) struct Tails<K, S: Source> {
    logs: Mutex<Logs<K, S>>,
}

struct Logs<K, S: Source> {
    tails: HashMap<K, Kept<S>>,
    uses: u64,
}

struct Kept<S: Source> {
    /// Time of the last read, as a count of all uses and as a time.
    used: u64,
    at: Instant,
    tail: Arc<Tail<S>>,
}

struct Tail<S: Source> {
    /// Held by the reader that reads for all.
    turn: tokio::sync::Mutex<()>,
    known: Mutex<Known<S>>,
    /// Bytes in the cache, for readers without the lock.
    bytes: AtomicUsize,
}

struct Known<S: Source> {
    /// Number of reads begun, and the last one that ended.
    begun: u64,
    ended: u64,
    /// The result of the last read.
    row: Option<Read<S::Row, S::Error>>,
    /// Entries below this offset are not kept again: they were dropped or skipped.
    floor: u64,
    /// Offset of the first entry in the cache.
    first: u64,
    entries: VecDeque<Arc<S::Entry>>,
    bytes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Copy + Eq + Hash, S: Source> Default for Tails<K, S> {
    fn default() -> Self {
        Tails { logs: Mutex::new(Logs { tails: HashMap::new(), uses: 0 }) }
    }
}

impl<K: Copy + Eq + Hash, S: Source> Tails<K, S> {
    /// Returns the row of `key` and the entries of its log from `from` on, up to `limit`. A row that says that the log has
    /// ended comes with all entries up to the end.
    pub(crate) async fn read(
        &self,
        key: K,
        source: &S,
        from: u64,
        limit: Limit,
    ) -> Result<Page<S::Row, S::Entry>, S::Error> {
        let known = self.find(key);
        let tail = match known {
            Some(tail) => tail,
            None => {
                // Only what exists, for a reader who may see it, pushes another log out.
                source.row().await?;
                self.insert(key)
            }
        };
        let page = tail.read(source, from, limit).await;
        self.trim();
        page
    }

    /// Drops the logs that were not read for `idle`.
    pub(crate) fn forget(&self, idle: Duration) {
        lock(&self.logs).tails.retain(|_, kept| kept.at.elapsed() < idle);
    }

    fn find(&self, key: K) -> Option<Arc<Tail<S>>> {
        let mut logs = lock(&self.logs);
        logs.uses += 1;
        let now = logs.uses;
        let kept = logs.tails.get_mut(&key)?;
        (kept.used, kept.at) = (now, Instant::now());
        Some(Arc::clone(&kept.tail))
    }

    fn insert(&self, key: K) -> Arc<Tail<S>> {
        let mut logs = lock(&self.logs);
        logs.uses += 1;
        let used = logs.uses;
        if logs.tails.len() >= LOGS && !logs.tails.contains_key(&key) {
            logs.remove_oldest();
        }
        let new = || Kept { used, at: Instant::now(), tail: Arc::default() };
        Arc::clone(&logs.tails.entry(key).or_insert_with(new).tail)
    }

    /// Drops the least recently read logs until the rest fits.
    fn trim(&self) {
        let mut logs = lock(&self.logs);
        let bytes = |kept: &Kept<S>| kept.tail.bytes.load(Ordering::Relaxed);
        while logs.tails.len() > 1 && logs.tails.values().map(bytes).sum::<usize>() > ALL_BYTES {
            logs.remove_oldest();
        }
    }
}

impl<K: Copy + Eq + Hash, S: Source> Logs<K, S> {
    fn remove_oldest(&mut self) {
        if let Some(oldest) = self.tails.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| *key) {
            self.tails.remove(&oldest);
        }
    }
}

impl<S: Source> Default for Tail<S> {
    fn default() -> Self {
        let known = Known { begun: 0, ended: 0, row: None, floor: 0, first: 0, entries: VecDeque::new(), bytes: 0 };
        Tail { turn: tokio::sync::Mutex::default(), known: Mutex::new(known), bytes: AtomicUsize::new(0) }
    }
}

/// The next action for a reader.
enum Next<E> {
    /// Answer from the cache.
    Have(Vec<Arc<E>>),
    /// Read on from this offset, for all readers.
    Extend(u64),
    /// Read alone: the entries are not in the cache.
    Alone,
}

impl<S: Source> Tail<S> {
    async fn read(&self, source: &S, from: u64, limit: Limit) -> Result<Page<S::Row, S::Entry>, S::Error> {
        let asked = lock(&self.known).begun;
        let turn = self.turn.lock().await;
        let (row, end) = self.row_after(asked, source).await?;
        let wanted = end.saturating_sub(from).min(u64::from(limit.entries.clamp(1, PAGE)));
        let read = loop {
            let next = lock(&self.known).next(from, wanted, limit.bytes);
            match next {
                Next::Have(entries) => return Ok(Page { row, end, entries }),
                Next::Extend(start) => {
                    let most = u32::try_from(end.saturating_sub(start)).unwrap_or(PAGE).clamp(1, PAGE);
                    let read = source.entries(&row, start, most).await?;
                    if read.is_empty() {
                        // The store has lost what its row announces; nobody shall wait for it.
                        break Vec::new();
                    }
                    let mut known = lock(&self.known);
                    known.keep(start, read);
                    self.bytes.store(known.bytes, Ordering::Relaxed);
                }
                Next::Alone => {
                    drop(turn);
                    let few = u64::try_from(limit.bytes / ENTRY).unwrap_or(u64::MAX).max(16);
                    let mut read = source.entries(&row, from, u32::try_from(wanted.min(few)).unwrap_or(PAGE)).await?;
                    // How long they are is known only now.
                    read.truncate(read.iter().take_while(fits_into::<S, _>(limit.bytes)).count());
                    break read;
                }
            }
        };
        Ok(Page { row, end, entries: read.into_iter().map(Arc::new).collect() })
    }

    /// Returns the row as it is after read `asked`. The caller holds the turn.
    async fn row_after(&self, asked: u64, source: &S) -> Read<S::Row, S::Error> {
        let number = {
            let mut known = lock(&self.known);
            if known.ended > asked
                && let Some(row) = &known.row
            {
                let (row, end) = row.clone()?;
                source.may_see(&row)?;
                return Ok((row, end));
            }
            known.begun += 1;
            known.begun
        };
        let read = source.row().await;
        if !read.as_ref().is_err_and(S::is_own) {
            let mut known = lock(&self.known);
            known.ended = number;
            known.row = Some(read.clone());
        }
        read
    }
}

/// Whether a page of so many bytes takes one more entry. It always takes the first, and the last may pass the limit.
fn fits_into<S: Source, E: std::borrow::Borrow<S::Entry>>(bytes: usize) -> impl FnMut(&&E) -> bool {
    let mut left = bytes.max(1);
    move |entry| {
        let fits = left > 0;
        left = left.saturating_sub(S::size((**entry).borrow()));
        fits
    }
}

impl<S: Source> Known<S> {
    /// Returns the next action for a reader of so many entries from `from` on, all of which the log has.
    fn next(&self, from: u64, wanted: u64, bytes: usize) -> Next<S::Entry> {
        let (first, after) = (self.first, self.first.saturating_add(self.entries.len() as u64));
        if wanted == 0 {
            return Next::Have(Vec::new());
        }
        if from >= first && from < after {
            let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
            let most = usize::try_from(wanted).unwrap_or(usize::MAX);
            let fits = fits_into::<S, _>(bytes);
            let page: Vec<_> = self.entries.iter().skip(skip).take(most).take_while(fits).cloned().collect();
            let taken = page.iter().map(|entry| S::size(entry)).fold(0, usize::saturating_add);
            if page.len() == most || taken >= bytes.max(1) {
                return Next::Have(page);
            }
        }
        if from < self.floor {
            Next::Alone
        } else if from < first || from - first > KEPT {
            Next::Extend(from)
        } else {
            Next::Extend(after)
        }
    }

    /// Keeps entries that were read, from offset `start` on.
    fn keep(&mut self, start: u64, read: Vec<S::Entry>) {
        let after = self.first.saturating_add(self.entries.len() as u64);
        if start != after || self.entries.is_empty() {
            if start > after {
                self.floor = start;
            }
            self.entries.clear();
            (self.first, self.bytes) = (start, 0);
        }
        for entry in read {
            self.bytes = self.bytes.saturating_add(S::size(&entry));
            self.entries.push_back(Arc::new(entry));
        }
        while self.entries.len() as u64 > KEPT || (self.bytes > KEPT_BYTES && self.entries.len() > 1) {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes = self.bytes.saturating_sub(S::size(&oldest));
            self.first += 1;
            self.floor = self.first;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use proptest::prelude::*;

    use super::*;

    /// A log in memory that counts what it is asked.
    #[derive(Default)]
    struct Log {
        end: AtomicU64,
        rows: AtomicUsize,
        entries: AtomicUsize,
        broken: Mutex<Option<&'static str>>,
        size: usize,
        delay: Duration,
    }

    struct Reader<'a>(&'a Log, &'static str);

    impl Source for Reader<'_> {
        type Row = &'static str;
        type Entry = (u64, usize);
        type Error = &'static str;

        async fn row(&self) -> Read<&'static str, &'static str> {
            self.0.rows.fetch_add(1, Ordering::SeqCst);
            let end = self.0.end.load(Ordering::SeqCst);
            if self.0.delay.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(self.0.delay).await;
            }
            self.may_see(&"a")?;
            let broken = *self.0.broken.lock().unwrap();
            broken.map_or(Ok(("a", end)), Err)
        }

        async fn entries(&self, _: &&'static str, from: u64, limit: u32) -> Result<Vec<(u64, usize)>, &'static str> {
            tokio::task::yield_now().await;
            let end = self.0.end.load(Ordering::SeqCst).min(from.saturating_add(limit.into()));
            let read: Vec<_> = (from..end).map(|offset| (offset, self.0.size)).collect();
            self.0.entries.fetch_add(read.len(), Ordering::SeqCst);
            Ok(read)
        }

        fn may_see(&self, row: &&'static str) -> Result<(), &'static str> {
            if self.1 == *row { Ok(()) } else { Err("not yours") }
        }

        fn is_own(error: &&'static str) -> bool {
            *error == "not yours"
        }

        fn size(entry: &(u64, usize)) -> usize {
            entry.1
        }
    }

    impl<K: Copy + Eq + Hash, S: Source> Tails<K, S> {
        async fn page(&self, key: K, source: &S, from: u64, entries: u32) -> Result<Page<S::Row, S::Entry>, S::Error> {
            self.read(key, source, from, Limit { entries, bytes: usize::MAX }).await
        }
    }

    fn offsets(page: &Page<&'static str, (u64, usize)>) -> Vec<u64> {
        page.entries.iter().map(|entry| entry.0).collect()
    }

    #[tokio::test]
    async fn two_hundred_readers_cost_one() {
        let log = Log { end: AtomicU64::new(3000), ..Log::default() };
        let tails = Tails::default();
        let follow = async || {
            let mut next = 0;
            while next < 3000 {
                let page = tails.page(1, &Reader(&log, "a"), next, 500).await.unwrap();
                assert_eq!(offsets(&page), (next..next + 500).collect::<Vec<_>>());
                next += 500;
            }
        };
        futures::future::join_all((0..200).map(|_| follow())).await;
        // Six rounds, each answered by one read; and the first look of each, which makes sure that it may.
        assert_eq!(log.entries.load(Ordering::SeqCst), 3000);
        let rows = log.rows.load(Ordering::SeqCst);
        assert!(rows <= 200 + 2 * 6, "{rows}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer_is_older_than_its_question() {
        let log = Log { end: AtomicU64::new(1), delay: Duration::from_millis(20), ..Log::default() };
        let tails = Tails::default();
        tails.page(1, &Reader(&log, "a"), 0, 10).await.unwrap();
        let own = Reader(&log, "a");
        let early = tails.page(1, &own, 0, 10);
        let late = async {
            // The early one's read is under way and has seen one entry.
            tokio::time::sleep(Duration::from_millis(5)).await;
            log.end.store(2, Ordering::SeqCst);
            tails.page(1, &Reader(&log, "a"), 0, 10).await
        };
        let (early, late) = tokio::join!(early, late);
        assert_eq!((early.unwrap().end, late.unwrap().end), (1, 2));
    }

    #[tokio::test]
    async fn a_page_is_as_long_as_it_can_be_whatever_others_have_read() {
        let log = Log { end: AtomicU64::new(1), ..Log::default() };
        let tails = Tails::default();
        let own = Reader(&log, "a");
        for end in 1..50 {
            log.end.store(end, Ordering::SeqCst);
            assert_eq!(offsets(&tails.page(1, &own, 0, 1000).await.unwrap()), (0..end).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn others_see_neither_row_nor_log_and_push_nothing_out() {
        let log = Log { end: AtomicU64::new(5), ..Log::default() };
        let tails = Tails::default();
        for key in 0..100 {
            assert_eq!(tails.page(key, &Reader(&log, "b"), 0, 10).await.unwrap_err(), "not yours");
        }
        assert!(lock(&tails.logs).tails.is_empty());
        let (own, other) = (Reader(&log, "a"), Reader(&log, "b"));
        let (own, other) = tokio::join!(tails.page(1, &own, 0, 10), tails.page(1, &other, 0, 10));
        assert_eq!((own.unwrap().end, other.unwrap_err()), (5, "not yours"));
        let (other, own) = (Reader(&log, "b"), Reader(&log, "a"));
        let (other, own) = tokio::join!(tails.page(1, &other, 0, 10), tails.page(1, &own, 0, 10));
        assert_eq!((own.unwrap().end, other.unwrap_err()), (5, "not yours"));
        for key in 0..100 {
            tails.page(key, &Reader(&log, "a"), 0, 10).await.unwrap();
        }
        assert_eq!(lock(&tails.logs).tails.len(), LOGS);
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_who_waited_and_to_nobody_else() {
        let log = Log { end: AtomicU64::new(5), ..Log::default() };
        let tails = Tails::default();
        tails.page(1, &Reader(&log, "a"), 0, 10).await.unwrap();
        *log.broken.lock().unwrap() = Some("down");
        let before = log.rows.load(Ordering::SeqCst);
        let readers: Vec<_> = (0..50).map(|_| Reader(&log, "a")).collect();
        let reads = readers.iter().map(|reader| tails.page(1, reader, 0, 10));
        assert!(futures::future::join_all(reads).await.iter().all(|read| matches!(read, Err("down"))));
        assert!(log.rows.load(Ordering::SeqCst) - before <= 2);
        *log.broken.lock().unwrap() = None;
        assert_eq!(tails.page(1, &Reader(&log, "a"), 0, 10).await.unwrap().end, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_leaves_half_way_holds_nobody_up() {
        let log = Log { end: AtomicU64::new(5), delay: Duration::from_millis(20), ..Log::default() };
        let tails = Tails::default();
        tails.page(1, &Reader(&log, "a"), 0, 10).await.unwrap();
        let left = tokio::time::timeout(Duration::from_millis(1), tails.page(1, &Reader(&log, "a"), 0, 10)).await;
        assert!(left.is_err());
        assert_eq!(tails.page(1, &Reader(&log, "a"), 2, 10).await.unwrap().entries.len(), 3);
    }

    #[tokio::test]
    async fn long_logs_and_large_entries_are_kept_in_part() {
        let log = Log { end: AtomicU64::new(5 * KEPT), size: 4096, ..Log::default() };
        let tails = Tails::default();
        let own = Reader(&log, "a");
        let mut next = 0;
        while next < 5 * KEPT {
            let page = tails.page(1, &own, next, 700).await.unwrap();
            assert_eq!(offsets(&page), (next..next + page.entries.len() as u64).collect::<Vec<_>>());
            next += page.entries.len() as u64;
        }
        {
            let logs = lock(&tails.logs);
            let known = lock(&logs.tails[&1].tail.known);
            assert!(known.bytes <= KEPT_BYTES && known.entries.len() <= KEPT as usize);
        }
        // What is gone can still be read, and pushes out nothing.
        let end = tails.page(1, &own, 5 * KEPT - 10, 700).await.unwrap();
        assert_eq!(end.entries.len(), 10);
        let read = log.entries.load(Ordering::SeqCst);
        assert_eq!(offsets(&tails.page(1, &own, 7, 3).await.unwrap()), [7, 8, 9]);
        tails.page(1, &own, 5 * KEPT - 10, 700).await.unwrap();
        assert_eq!(log.entries.load(Ordering::SeqCst) - read, 3);
    }

    #[tokio::test]
    async fn all_logs_together_have_a_bound_and_what_nobody_reads_is_let_go() {
        let log = Log { end: AtomicU64::new(700), size: 4096, ..Log::default() };
        let tails = Tails::default();
        for key in 0..200 {
            assert_eq!(tails.page(key, &Reader(&log, "a"), 0, 1000).await.unwrap().entries.len(), 700);
            let logs = lock(&tails.logs);
            let kept: usize = logs.tails.values().map(|kept| lock(&kept.tail.known).bytes).sum();
            assert!(kept <= ALL_BYTES && logs.tails.len() <= LOGS, "{kept} bytes of {} logs", logs.tails.len());
        }
        tails.forget(Duration::from_secs(3600));
        assert!(!lock(&tails.logs).tails.is_empty());
        tails.forget(Duration::ZERO);
        assert!(lock(&tails.logs).tails.is_empty());
    }

    #[tokio::test]
    async fn a_page_may_be_bounded_in_bytes_and_is_never_empty_for_that() {
        let log = Log { end: AtomicU64::new(3000), size: 4096, ..Log::default() };
        let tails = Tails::default();
        let own = Reader(&log, "a");
        for bytes in [0, 1, 4096, 100_000] {
            let mut next = 0;
            while next < 3000 {
                let page = tails.read(1, &own, next, Limit { entries: 1000, bytes: bytes.max(1) }).await.unwrap();
                let got = page.entries.len() as u64;
                assert!(
                    got > 0 && got * 4096 <= (bytes as u64 + 4096).max(17 * 4096),
                    "{got} entries for {bytes} bytes"
                );
                assert_eq!(offsets(&page), (next..next + got).collect::<Vec<_>>());
                next += got;
            }
        }
    }

    proptest! {
        #[test]
        fn every_page_is_a_run_of_the_log(
            steps in prop::collection::vec((0u64..30_000, 1u32..1500, 0u64..4000), 1..40),
            size in 0usize..20_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let log = Log { end: AtomicU64::new(20), size, ..Log::default() };
                let tails = Tails::default();
                for (from, limit, grown) in steps {
                    let end = log.end.fetch_add(grown, Ordering::SeqCst) + grown;
                    let page = tails.page(1, &Reader(&log, "a"), from, limit).await.unwrap();
                    let got = offsets(&page);
                    assert_eq!(page.end, end);
                    assert_eq!(got.len() as u64, u64::from(limit.min(PAGE)).min(end.saturating_sub(from)));
                    assert_eq!(got, (from..from + got.len() as u64).collect::<Vec<_>>());
                }
            });
        }
    }
}
