//! Growth that ends: rows that are over are removed after their retention, logs are compressed, and the file gives space back.
//!
//! ```text
//!   sandbox ended ──sandboxes──> removed                     build finished ──log──> rows of its log become segments
//!   build failed, or its artifact purged ──builds──> removed, with its log and the artifact's row
//!   template deleted, or without tags ──builds──> removed when its last build is      claim expired ──> removed
//! ```
//! Events, deliveries and snapshots of sandboxes have their own ends: [`Events::forget_events`](crate::Events::forget_events),
//! [`Snapshots::snapshot_removed`](crate::Snapshots::snapshot_removed). A row that something refers to stays: see [`Expiring`]. Each call is one short transaction. A removed row answers
//! [`DbError::NotFound`](crate::DbError::NotFound), as if it had never been.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::BuildId;

use crate::{Result, text_enum::text_enum};

/// Removes rows that are over, compresses logs, and gives space back to the file system.
#[async_trait]
pub trait Retention: Send + Sync + 'static {
    /// Removes up to `limit` rows of one kind that are over since `before` and that nothing refers to. Returns their number;
    /// 0 when there is nothing to remove.
    async fn remove_expired(&self, kind: Expiring, before: Timestamp, limit: u32) -> Result<u32>;

    /// Replaces one run of rows of the log of a build that is finished since `finished_before` by a compressed segment. `None`
    /// when no such log has rows. Readers get the same entries before and after.
    async fn compact_log(&self, finished_before: Timestamp) -> Result<Option<CompactedLog>>;

    /// Returns what the rows of segments keep whose bytes are not in the row ([`is_segment_in_row`](crate::is_segment_in_row)): for
    /// a sweep of the place where they are.
    async fn segments_elsewhere(&self) -> Result<Vec<Vec<u8>>>;

    /// Forgets which artifacts' builds were removed. Call it when no file of them can be left, after the sweep at the start.
    async fn forget_removed(&self) -> Result<()>;

    /// Gives up to `pages` of the database's free pages back to the file system. A part of the free pages is kept for the next
    /// rows: see [`Space::surplus_bytes`].
    async fn give_back(&self, pages: u32) -> Result<Space>;

    /// Rewrites the database if an older version made it, so that [`Retention::give_back`] works, unless the file is larger
    /// than `limit_bytes`. Writers wait meanwhile: some 30 ms for each MiB. Returns whether `give_back` works now.
    async fn allow_give_back(&self, limit_bytes: u64) -> Result<bool>;

    /// Returns the sizes of the tables that grow, and what retention removes next. Reads the whole file.
    async fn growth(&self, cutoffs: Cutoffs) -> Result<Growth>;
}

text_enum! {
    /// Kind of rows with a retention.
    Expiring {
        /// Sandboxes that have ended.
        Sandboxes = "sandboxes",
        /// Builds that failed or were cancelled, and ready ones whose artifact was purged; with their log and the artifact's
        /// row. A build stays while its log has rows, and while something refers to it: a tag, a sandbox, a snapshot, an unfinished build
        /// that starts from it, or its template, when that has tags, as its newest build. A retry stays when the build that
        /// it repeats is removed, and names no such build then. A template without tags is removed with its last build.
        Builds = "builds",
        /// Deleted templates without builds.
        Templates = "templates",
        /// Claims of names that have expired.
        Claims = "claims",
        /// Idempotency keys of finished builds, ended sandboxes, and snapshots of sandboxes. Their rows stay.
        IdempotencyKeys = "idempotency keys",
    }
}

/// For each kind, the time before which it must be over to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cutoffs {
    /// Of ended sandboxes.
    pub sandboxes: Timestamp,
    /// Of builds and deleted templates.
    pub builds: Timestamp,
    /// Of idempotency keys.
    pub idempotency_keys: Timestamp,
    /// Of logs, to be compressed.
    pub logs: Timestamp,
    /// The present: a claim that has expired is over.
    pub now: Timestamp,
}

impl Cutoffs {
    /// The time of one kind.
    pub fn of(&self, kind: Expiring) -> Timestamp {
        match kind {
            Expiring::Sandboxes => self.sandboxes,
            Expiring::Builds | Expiring::Templates => self.builds,
            Expiring::Claims => self.now,
            Expiring::IdempotencyKeys => self.idempotency_keys,
        }
    }
}

/// One step of the compression of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactedLog {
    /// The build.
    pub build: BuildId,
    /// Entries in the new segment.
    pub entries: u64,
    /// Their size, bytes.
    pub plain_bytes: u64,
    /// The segment's size, bytes.
    pub stored_bytes: u64,
    /// Whether the log has no rows left.
    pub complete: bool,
}

/// Size of the database's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// The file's size, bytes, without its journal.
    pub file_bytes: u64,
    /// Bytes of it in pages that hold nothing.
    pub free_bytes: u64,
    /// Bytes that this call gave back.
    pub given_back: u64,
    /// Bytes of free pages beyond those that are kept for the next rows: 4 MiB, and an eighth of the file.
    pub surplus_bytes: u64,
}

/// The tables that grow, and what leaves them next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// The tables, the largest first.
    pub tables: Vec<TableSize>,
    /// The file.
    pub space: Space,
    /// What is due, for each kind.
    pub due: Vec<Due>,
    /// Finished builds whose log is compressed next.
    pub logs_due: u64,
}

/// Size of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSize {
    /// Its name.
    pub table: &'static str,
    /// Its rows.
    pub rows: u64,
    /// Its pages and those of its indexes, bytes.
    pub bytes: u64,
}

/// What retention removes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The kind.
    pub kind: Expiring,
    /// Rows that the next rounds remove.
    pub now: u64,
    /// Rows that are over and wait for the end of their retention.
    pub later: u64,
    /// Time since which the oldest of all of them is over.
    pub oldest: Option<Timestamp>,
}
