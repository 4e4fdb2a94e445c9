//! Recording of events: a builder, and a bounded queue.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use nullspace_api::{LifecycleActorKind, LifecycleOperation, LifecycleStatus, Time};
use nullspace_service::Error;
use nullspace_types::{SandboxId, SnapshotId, TenantId};
use serde_json::{Map, Value};
use tokio::sync::Notify;
use uuid::Uuid;

use super::counts::Counts;
use super::follow::Followers;
use super::wire::word;

/// Most events that wait for the database. One more is lost, and counted.
const QUEUE: usize = 10_000;
/// Most characters of a reason or of an error's text.
const TEXT: usize = 1000;

/// An event to record.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(super) tenant: TenantId,
    pub(super) operation: LifecycleOperation,
    pub(super) status: LifecycleStatus,
    pub(super) actor: LifecycleActorKind,
    pub(super) sandbox: Option<SandboxId>,
    pub(super) snapshot: Option<SnapshotId>,
    pub(super) source: Option<SandboxId>,
    pub(super) target: Option<SandboxId>,
    pub(super) reason: Option<String>,
    pub(super) error: Option<(String, String)>,
    pub(super) metadata: Map<String, Value>,
}

impl Event {
    /// An operation that was asked for.
    pub(crate) fn requested(tenant: TenantId, operation: LifecycleOperation) -> Event {
        Event::new(tenant, operation, LifecycleStatus::Requested)
    }

    /// An operation that is done.
    pub(crate) fn succeeded(tenant: TenantId, operation: LifecycleOperation) -> Event {
        Event::new(tenant, operation, LifecycleStatus::Succeeded)
    }

    /// The same operation of the same things, done now.
    pub(crate) fn now_succeeded(self) -> Event {
        Event { status: LifecycleStatus::Succeeded, ..self }
    }

    /// The same operation of the same things, failed now with the error that its caller gets.
    pub(crate) fn now_failed(self, error: &Error) -> Event {
        let error = Some((word(error.code), cut(&error.message)));
        Event { status: LifecycleStatus::Failed, error, ..self }
    }

    fn new(tenant: TenantId, operation: LifecycleOperation, status: LifecycleStatus) -> Event {
        Event {
            tenant,
            operation,
            status,
            actor: LifecycleActorKind::User,
            sandbox: None,
            snapshot: None,
            source: None,
            target: None,
            reason: None,
            error: None,
            metadata: Map::new(),
        }
    }

    /// Who caused it; without this, a request.
    pub(crate) fn by(self, actor: LifecycleActorKind) -> Event {
        Event { actor, ..self }
    }

    /// The sandbox that it happened to.
    pub(crate) fn sandbox(self, sandbox: SandboxId) -> Event {
        Event { sandbox: Some(sandbox), ..self }
    }

    /// The snapshot that was made or used.
    pub(crate) fn snapshot(self, snapshot: SnapshotId) -> Event {
        Event { snapshot: Some(snapshot), ..self }
    }

    /// The sandbox that was cloned, or whose snapshot was used.
    pub(crate) fn source(self, source: SandboxId) -> Event {
        Event { source: Some(source), ..self }
    }

    /// The sandbox that was made.
    pub(crate) fn target(self, target: SandboxId) -> Event {
        Event { target: Some(target), ..self }
    }

    /// Why, for example `timeout`. At most 1000 characters are kept.
    pub(crate) fn reason(self, reason: &str) -> Event {
        Event { reason: Some(cut(reason)), ..self }
    }

    /// A detail, for example `timeout_action` or `created_via`. No caller's notes: an event has no bound for them.
    pub(crate) fn detail(mut self, key: &str, value: impl Into<Value>) -> Event {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

/// An event with its identity.
#[derive(Debug, Clone)]
pub(super) struct Recorded {
    /// A UUIDv7: ids of this process ascend.
    pub(super) id: Uuid,
    pub(super) at: Timestamp,
    pub(super) event: Event,
}

/// Events that wait for the database, in the order of their ids.
#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Recorded>,
    /// Time of the newest event. Times ascend with ids, also when the clock is set back.
    last: Option<Timestamp>,
}

/// The state of lifecycle events in this process.
#[derive(Debug, Default)]
pub(crate) struct State {
    queue: Mutex<Queue>,
    /// Wakes the task that writes.
    pub(super) recorded: Notify,
    /// Held while events are written.
    pub(super) writing: tokio::sync::Mutex<()>,
    pub(super) followers: Arc<Followers>,
    /// Wakes the deliveries.
    pub(super) due: Notify,
    pub(super) counts: Counts,
}

impl State {
    /// Queues an event, with the next id and the present as its time.
    pub(crate) fn record(&self, event: Event) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (operation, status, sandbox) = (word(event.operation), word(event.status), event.sandbox);
        if queue.events.len() >= QUEUE {
            drop(queue);
            self.counts.lost();
            tracing::error!(operation, status, sandbox_id = ?sandbox, "a lifecycle event is lost: the queue is full");
            return;
        }
        // As exact as the database keeps it, so that a follower sees what a list shows.
        let now = Time::now().timestamp();
        let now = queue.last.map_or(now, |last| last.max(now));
        queue.last = Some(now);
        queue.events.push_back(Recorded { id: Uuid::now_v7(), at: now, event });
        drop(queue);
        self.counts.recorded(operation, status);
        self.recorded.notify_one();
    }

    /// The first events of the queue, which stay there.
    pub(super) fn batch(&self, most: usize) -> Vec<Recorded> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.events.iter().take(most).cloned().collect()
    }

    /// Removes the first events of the queue.
    pub(super) fn remove(&self, number: usize) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.events.drain(..number);
    }

    /// Counters of this state.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Events that wait for the database.
    pub(super) fn waiting(&self) -> usize {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).events.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(status: LifecycleStatus) -> Event {
        Event::new(TenantId::new(), LifecycleOperation::Fork, status)
    }

    #[test]
    fn ids_and_times_ascend_and_a_full_queue_counts_what_it_loses() {
        let state = State::default();
        for _ in 0..QUEUE + 3 {
            state.record(event(LifecycleStatus::Requested));
        }
        let queued = state.batch(usize::MAX);
        assert_eq!((queued.len(), state.counts.lost_so_far()), (QUEUE, 3));
        assert!(queued.is_sorted_by(|a, b| a.id < b.id && a.at <= b.at));
        state.remove(QUEUE - 1);
        assert_eq!(state.batch(10).iter().map(|left| left.id).collect::<Vec<_>>(), [queued[QUEUE - 1].id]);
    }

    #[test]
    fn a_failed_event_keeps_what_it_is_about_and_cuts_long_texts() {
        let sandbox = SandboxId::new();
        let error = Error::sandbox_not_found(&"x".repeat(5000));
        let failed = event(LifecycleStatus::Requested).source(sandbox).reason(&"é".repeat(5000)).now_failed(&error);
        assert_eq!((failed.status, failed.source), (LifecycleStatus::Failed, Some(sandbox)));
        let (code, text) = failed.error.unwrap();
        assert_eq!((code.as_str(), text.chars().count()), ("sandbox_not_found", TEXT));
        assert_eq!(failed.reason.unwrap().chars().count(), TEXT);
    }
}
