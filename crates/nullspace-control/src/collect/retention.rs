//! Retention: rows that are over leave the database after their time, logs of finished builds are compressed, and the
//! database's file gives its free space back.
//!
//! ```text
//!   idempotency keys ─> expired claims ─> logs ─> sandboxes ─> builds ─> templates ─> lifecycle events ─> free pages
//! ```
//! Each step is one short transaction, so requests and builds wait for one of them at most. A round takes a limited number of
//! steps of each kind; the next one continues.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nullspace_db::{Cutoffs, Database, DbError, Expiring};
use tokio_util::sync::CancellationToken;

use crate::Inner;

/// Rows that one transaction removes. Builds go with their logs and artifacts.
const ROWS: u32 = 200;
const BUILDS: u32 = 20;
/// Most transactions of one kind in a round.
const STEPS: u32 = 100;
/// Database pages that one transaction gives back: a MiB.
const PAGES: u32 = 256;
/// A database of an older version is rewritten at the start up to this size, in some seconds.
pub(crate) const REWRITE_BYTES: u64 = 64 << 20;
/// Kinds in the order in which they are removed: what refers to others goes first.
const ORDER: [Expiring; 5] =
    [Expiring::IdempotencyKeys, Expiring::Claims, Expiring::Sandboxes, Expiring::Builds, Expiring::Templates];

/// Times for which rows are kept after they are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Ended sandboxes.
    pub sandboxes: Duration,
    /// Failed and cancelled builds, ready builds after their artifact was removed, and deleted templates.
    pub builds: Duration,
    /// Idempotency keys, after the end of the build or sandbox.
    pub idempotency_keys: Duration,
    /// Logs of finished builds, before they are compressed.
    pub plain_logs: Duration,
    /// Lifecycle events, with their deliveries to webhooks. One with a delivery that is not over stays.
    pub events: Duration,
}

impl Retention {
    /// The times before which rows must be over to be removed now.
    pub fn cutoffs(&self, now: Timestamp) -> Cutoffs {
        Cutoffs {
            sandboxes: before(now, self.sandboxes),
            builds: before(now, self.builds),
            idempotency_keys: before(now, self.idempotency_keys),
            logs: before(now, self.plain_logs),
            now,
        }
    }
}

/// The time so long ago. An age that reaches before all time keeps everything.
fn before(now: Timestamp, age: Duration) -> Timestamp {
    let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
    now.checked_sub(age).unwrap_or(Timestamp::MIN)
}

/// Sums of a round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// Rows that were removed, or whose key was.
    pub(super) rows: u64,
    /// Runs of log entries that were compressed, and their sizes in bytes.
    pub(super) segments: u64,
    pub(super) plain_bytes: u64,
    pub(super) stored_bytes: u64,
    /// Bytes of the database's file that were given back.
    pub(super) given_back: u64,
    /// Something is left for the next round.
    pub(super) more: bool,
}

impl Inner {
    /// One round of retention.
    pub(super) async fn expire(&self, now: Timestamp) -> Result<Round, DbError> {
        let began = Instant::now();
        let cutoffs = self.config.retention.cutoffs(now);
        let mut steps = Steps { db: &*self.db, stop: &self.shutdown, round: Round::default() };
        let done = steps.take(&cutoffs, before(now, self.config.retention.events)).await;
        let Round { rows, segments, plain_bytes, stored_bytes, given_back, more } = steps.round;
        if rows > 0 || segments > 0 || given_back > 0 {
            let ms = began.elapsed().as_millis();
            tracing::info!(rows, segments, plain_bytes, stored_bytes, given_back, more, ms, "retention");
        }
        done.map(|()| steps.round)
    }
}

/// The steps of one round.
struct Steps<'a> {
    db: &'a dyn Database,
    /// Ends the round after the step that is under way.
    stop: &'a CancellationToken,
    round: Round,
}

impl Steps<'_> {
    /// Takes all steps. A kind that fails does not keep the others from their turn. Returns the first error.
    async fn take(&mut self, cutoffs: &Cutoffs, events_before: Timestamp) -> Result<(), DbError> {
        let mut done = Ok(());
        for kind in ORDER {
            // A build leaves with its log compressed.
            if kind == Expiring::Builds {
                done = done.and(self.compress_logs(cutoffs.logs).await);
            }
            done = done.and(self.remove(kind, cutoffs.of(kind)).await);
        }
        done = done.and(self.forget_events(events_before).await);
        done.and(self.give_back().await)
    }

    async fn remove(&mut self, kind: Expiring, before: Timestamp) -> Result<(), DbError> {
        let batch = if kind == Expiring::Builds { BUILDS } else { ROWS };
        for step in 1..=STEPS {
            if self.stop.is_cancelled() {
                break;
            }
            let removed = self.db.remove_expired(kind, before, batch).await?;
            self.round.rows += u64::from(removed);
            if removed == 0 {
                break;
            }
            self.round.more |= step == STEPS;
        }
        Ok(())
    }

    async fn forget_events(&mut self, before: Timestamp) -> Result<(), DbError> {
        for step in 1..=STEPS {
            if self.stop.is_cancelled() {
                break;
            }
            let removed = self.db.forget_events(before, ROWS).await?;
            self.round.rows += removed;
            if removed == 0 {
                break;
            }
            self.round.more |= step == STEPS;
        }
        Ok(())
    }

    async fn compress_logs(&mut self, finished_before: Timestamp) -> Result<(), DbError> {
        for step in 1..=STEPS {
            if self.stop.is_cancelled() {
                break;
            }
            let Some(segment) = self.db.compact_log(finished_before).await? else { break };
            self.round.segments += 1;
            self.round.plain_bytes += segment.plain_bytes;
            self.round.stored_bytes += segment.stored_bytes;
            self.round.more |= step == STEPS;
        }
        Ok(())
    }

    async fn give_back(&mut self) -> Result<(), DbError> {
        for step in 1..=STEPS {
            if self.stop.is_cancelled() {
                break;
            }
            let space = self.db.give_back(PAGES).await?;
            self.round.given_back += space.given_back;
            if space.given_back == 0 || space.surplus_bytes == 0 {
                break;
            }
            self.round.more |= step == STEPS;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nullspace_db::{BuildFilter, NamespaceKind, NewEvent, SqliteStore};

    use super::*;
    use crate::builds::logs::compressed::{at, failed};

    #[tokio::test]
    async fn a_round_takes_what_is_due_in_one_go_and_stops_when_the_service_does() {
        let dir = tempfile::TempDir::new().unwrap();
        let db = SqliteStore::open(&dir.path().join("nullspace.db")).await.unwrap();
        let db: &dyn Database = &db;
        let caller = db.ensure_tenant("acme", NamespaceKind::User, at(0)).await.unwrap().caller();
        for _ in 0..3 {
            failed(db, &caller).await;
        }
        let retention = Retention {
            sandboxes: Duration::ZERO,
            builds: Duration::from_secs(100),
            idempotency_keys: Duration::ZERO,
            plain_logs: Duration::from_secs(10),
            events: Duration::from_secs(50),
        };
        let stop = CancellationToken::new();
        let round = async |now, stop: &CancellationToken| {
            let mut steps = Steps { db, stop, round: Round::default() };
            steps.take(&retention.cutoffs(at(now)), before(at(now), retention.events)).await.unwrap();
            steps.round
        };
        let event = NewEvent {
            id: uuid::Uuid::now_v7(),
            tenant: caller.tenant,
            occurred_at: at(95),
            operation: "create".into(),
            status: "succeeded".into(),
            actor: "user".into(),
            sandbox: None,
            snapshot: None,
            source: None,
            target: None,
            reason: None,
            error: None,
            metadata: serde_json::json!({}),
        };
        db.record_events(vec![event], at(95)).await.unwrap();
        assert_eq!(round(99, &stop).await, Round::default(), "the builds ended at 90");
        let compressed = round(100, &stop).await;
        assert!(compressed.segments >= 9 && compressed.stored_bytes * 4 < compressed.plain_bytes, "{compressed:?}");
        assert_eq!((compressed.rows, compressed.more), (0, false));
        assert_eq!(round(100, &stop).await.segments, 0);
        // One that comes late is compressed and removed in the same round.
        failed(db, &caller).await;
        let stopped = CancellationToken::new();
        stopped.cancel();
        assert_eq!(round(190, &stopped).await, Round::default());
        let removed = round(190, &stop).await;
        assert!(removed.segments >= 3 && removed.rows == 5, "the event and four builds: {removed:?}");
        let left = db.list_builds(&caller, BuildFilter { limit: 10, ..BuildFilter::default() }).await.unwrap();
        assert!(left.builds.is_empty(), "{left:?}");
        assert_eq!(round(10_000, &stop).await, Round::default());
    }

    #[test]
    fn a_retention_that_is_longer_than_time_keeps_everything() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let hour = Duration::from_secs(3600);
        let retention = Retention {
            sandboxes: hour,
            builds: Duration::MAX,
            idempotency_keys: hour,
            plain_logs: Duration::ZERO,
            events: hour,
        };
        let cutoffs = retention.cutoffs(now);
        assert_eq!(cutoffs.sandboxes, Timestamp::from_second(1_700_000_000 - 3600).unwrap());
        assert_eq!((cutoffs.builds, cutoffs.logs, cutoffs.now), (Timestamp::MIN, now, now));
    }

    #[test]
    fn every_kind_has_its_turn() {
        let named: std::collections::HashSet<Expiring> = ORDER.into();
        assert_eq!(named.len(), Expiring::ALL.len());
    }
}
