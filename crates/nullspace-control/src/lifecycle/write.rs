//! Writing of queued events to the database, and their publication to followers.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nullspace_db::{Database, DbError, NewEvent};
use nullspace_service::chain;
use serde_json::Value;

use super::record::{Recorded, State};
use super::wire::word;
use crate::Inner;

/// Most events of one transaction.
const BATCH: usize = 100;
/// Time before the database is asked again after it refused; doubled up to the longest.
const AGAIN: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);

fn row(recorded: Recorded) -> NewEvent {
    let Recorded { id, at, event } = recorded;
    NewEvent {
        id,
        tenant: event.tenant,
        occurred_at: at,
        operation: word(event.operation),
        status: word(event.status),
        actor: word(event.actor),
        sandbox: event.sandbox,
        snapshot: event.snapshot,
        source: event.source,
        target: event.target,
        reason: event.reason,
        error: event.error,
        metadata: Value::Object(event.metadata),
    }
}

impl State {
    /// Writes all events that wait, tells followers, and wakes the deliveries. An event that the database refuses for good is
    /// lost, and counted.
    ///
    /// # Errors
    /// When the database cannot take events now. What is not written stays in the queue.
    pub(crate) async fn flush(&self, db: &dyn Database) -> Result<(), DbError> {
        // One writer at a time, so that events are written and published in the order of their ids.
        let _one = self.writing.lock().await;
        let mut most = BATCH;
        loop {
            let batch: Vec<NewEvent> = self.batch(most).into_iter().map(row).collect();
            let Some(first) = batch.first() else { return Ok(()) };
            let (number, id) = (batch.len(), first.id);
            match db.record_events(batch.clone(), Timestamp::now()).await {
                Ok(()) => {
                    self.remove(number);
                    self.followers.publish(batch);
                    self.due.notify_one();
                    most = BATCH;
                }
                Err(error) if error.is_retryable() => return Err(error),
                // The one that it refuses is among them.
                Err(_) if number > 1 => most = 1,
                Err(error) => {
                    self.remove(1);
                    self.counts.lost();
                    tracing::error!(event = %id, error = %chain(&error), "a lifecycle event is lost: the database refused it");
                }
            }
        }
    }
}

/// Writes events to the database until the service stops. [`Inner::flush_events`] writes the last ones.
pub(crate) async fn write(inner: Arc<Inner>) {
    let mut wait = AGAIN;
    loop {
        tokio::select! {
            () = inner.shutdown.cancelled() => return,
            () = inner.lifecycle.recorded.notified() => {}
        }
        while let Err(error) = inner.lifecycle.flush(&*inner.db).await {
            let waiting = inner.lifecycle.waiting();
            tracing::warn!(waiting, error = %chain(&error), "lifecycle events wait: the database does not take them");
            tokio::select! {
                () = inner.shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(LONGEST);
        }
        wait = AGAIN;
    }
}

impl Inner {
    /// Writes the events that wait, for at most 5 seconds, before the database is closed, and ends all followers.
    pub(crate) async fn flush_events(&self) {
        let flushed = tokio::time::timeout(LONGEST, self.lifecycle.flush(&*self.db)).await;
        let waiting = self.lifecycle.waiting();
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(waiting, error = %chain(&error), "lifecycle events are lost"),
            Err(_) => tracing::error!(waiting, "lifecycle events are lost: the database did not take them in time"),
        }
        self.lifecycle.followers.close();
    }
}
