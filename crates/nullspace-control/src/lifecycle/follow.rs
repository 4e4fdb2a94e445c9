//! Followers of events: those of the past from the database, then those that are written, without a gap or a double.
//!
//! ```text
//!   after an event:   page ── page ── last page ── join ── what was written meanwhile ──> live
//!   the newest few:   join ── list them ───────────────────────────────────────────────> live
//!                                                    live events that were listed already are skipped, by their id
//! ```
//! Events are published after their write, in the order of their ids, by one writer. So what a follower has not listed after it
//! joined, it receives. A follower has a buffer of 256 events. One whose buffer is full is ended with an error: nothing waits for a
//! slow reader.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use nullspace_api::{ErrorResponseCode, LifecycleEventInfo};
use nullspace_db::{Database, Event, EventFilter};
use nullspace_service::EventStream;
use nullspace_types::{Caller, TenantId};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::wire;
use crate::error::{Error, Result, Stored};

/// Events that wait for one follower.
const BUFFER: usize = 256;
/// Most followers of one tenant, and of all.
const PER_TENANT: usize = 100;
const FOLLOWERS: usize = 2000;
/// Events of the past that are read at a time.
const PAGE: u32 = 100;
/// Most events of the past that are sent to a follower that names no event.
const REPLAY: u32 = 1000;

/// A follower that is told of events.
#[derive(Debug)]
struct Follower {
    number: u64,
    tenant: TenantId,
    filter: EventFilter,
    sender: mpsc::Sender<Event>,
    slow: Arc<AtomicBool>,
}

/// All followers of this process.
#[derive(Debug, Default)]
pub(super) struct Followers {
    list: Mutex<Listed>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Listed {
    followers: Vec<Follower>,
    /// The service stops.
    closed: bool,
}

impl Followers {
    /// Tells followers of events that were written. It never waits.
    pub(super) fn publish(&self, events: Vec<Event>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            list.followers.retain(|follower| {
                if follower.tenant != event.tenant || !matches(&follower.filter, &event) {
                    return true;
                }
                match follower.sender.try_send(event.clone()) {
                    Ok(()) => true,
                    Err(mpsc::error::TrySendError::Closed(_)) => false,
                    Err(mpsc::error::TrySendError::Full(_)) => {
                        follower.slow.store(true, Ordering::Release);
                        false
                    }
                }
            });
        }
    }

    /// Ends all followers, and takes no others.
    pub(super) fn close(&self) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.closed = true;
        list.followers.clear();
    }

    fn join(self: &Arc<Self>, tenant: TenantId, filter: &EventFilter) -> Result<Live> {
        let (sender, receiver) = mpsc::channel(BUFFER);
        let slow = Arc::new(AtomicBool::new(false));
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.closed {
            return Err(Error::new(ErrorResponseCode::FeatureUnavailable, "the service is shutting down; try again"));
        }
        let of_tenant = list.followers.iter().filter(|other| other.tenant == tenant).count();
        if of_tenant >= PER_TENANT || list.followers.len() >= FOLLOWERS {
            let message = "Too many followers of lifecycle events: close some, or try again later.";
            let error = Error::new(ErrorResponseCode::RateLimitExceeded, message);
            return Err(Error { retry_after: Some(Duration::from_secs(5)), ..error });
        }
        list.followers.push(Follower { number, tenant, filter: filter.clone(), sender, slow: Arc::clone(&slow) });
        drop(list);
        Ok(Live { followers: Arc::clone(self), number, receiver, slow })
    }

    /// Number of followers.
    #[cfg(test)]
    pub(super) fn number(&self) -> usize {
        self.list.lock().unwrap().followers.len()
    }
}

/// The live end of a follower. It leaves when it is dropped.
struct Live {
    followers: Arc<Followers>,
    number: u64,
    receiver: mpsc::Receiver<Event>,
    slow: Arc<AtomicBool>,
}

impl Drop for Live {
    fn drop(&mut self) {
        let mut list = self.followers.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.followers.retain(|follower| follower.number != self.number);
    }
}

/// Whether the database would list an event for this filter, offset and limit aside.
pub(super) fn matches(filter: &EventFilter, event: &Event) -> bool {
    fn is<T: PartialEq>(wanted: &Option<T>, has: Option<&T>) -> bool {
        wanted.as_ref().is_none_or(|wanted| Some(wanted) == has)
    }
    let about = filter.about.is_none_or(|id| [event.sandbox, event.source, event.target].contains(&Some(id)));
    about
        && is(&filter.sandbox, event.sandbox.as_ref())
        && is(&filter.snapshot, event.snapshot.as_ref())
        && is(&filter.source, event.source.as_ref())
        && is(&filter.target, event.target.as_ref())
        && is(&filter.operation, Some(&event.operation))
        && is(&filter.status, Some(&event.status))
        && filter.from.is_none_or(|from| event.occurred_at >= from)
        && filter.to.is_none_or(|to| event.occurred_at <= to)
        && filter.after.is_none_or(|after| event.id > after)
}

/// Follows a caller's events that match a filter: those from now on, and before them at most `replay` of the past; or those after
/// the event `after`.
pub(super) async fn follow(
    db: Arc<dyn Database>,
    followers: &Arc<Followers>,
    caller: &Caller,
    filter: EventFilter,
    after: Option<Uuid>,
    replay: u32,
) -> Result<EventStream> {
    let filter = EventFilter { after, offset: 0, ascending: true, limit: PAGE, ..filter };
    let mut following = Following {
        db,
        followers: Arc::clone(followers),
        caller: caller.clone(),
        filter,
        listed: VecDeque::new(),
        phase: Phase::Past,
    };
    if after.is_none() {
        let live = followers.join(caller.tenant, &following.filter)?;
        let limit = replay.min(REPLAY);
        if limit > 0 {
            let newest = EventFilter { ascending: false, limit, ..following.filter.clone() };
            let newest = following.db.list_events(caller, newest).await.stored()?;
            following.filter.after = newest.first().map(|event| event.id);
            following.listed = newest.into_iter().rev().collect();
        }
        following.phase = Phase::Live(live);
    }
    let events = futures::stream::unfold(Some(following), |following| async move {
        let mut following = following?;
        match following.next().await {
            Ok(Some(event)) => Some((Ok(event), Some(following))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(events.boxed())
}

enum Phase {
    /// Events of the past are listed.
    Past,
    /// It has joined; what was written since the last page is listed.
    Joined(Live),
    Live(Live),
}

/// The state of a follower. `filter.after` is the last event that was listed.
struct Following {
    db: Arc<dyn Database>,
    followers: Arc<Followers>,
    caller: Caller,
    filter: EventFilter,
    listed: VecDeque<Event>,
    phase: Phase,
}

impl Following {
    async fn next(&mut self) -> Result<Option<LifecycleEventInfo>> {
        loop {
            if let Some(event) = self.listed.pop_front() {
                return wire::event(event).map(Some);
            }
            match std::mem::replace(&mut self.phase, Phase::Past) {
                Phase::Past => {
                    if self.list().await? {
                        let live = self.followers.join(self.caller.tenant, &self.filter)?;
                        self.phase = Phase::Joined(live);
                    }
                }
                Phase::Joined(live) => {
                    let last = self.list().await?;
                    self.phase = if last { Phase::Live(live) } else { Phase::Joined(live) };
                }
                Phase::Live(mut live) => {
                    let Some(event) = live.receiver.recv().await else {
                        if live.slow.load(Ordering::Acquire) {
                            let message =
                                "The events were read too slowly: follow again after the last event that was read.";
                            return Err(Error::new(ErrorResponseCode::RateLimitExceeded, message));
                        }
                        return Ok(None);
                    };
                    self.phase = Phase::Live(live);
                    if self.filter.after.is_none_or(|last| event.id > last) {
                        return wire::event(event).map(Some);
                    }
                }
            }
        }
    }

    /// Lists the next page. Returns whether it was the last one.
    async fn list(&mut self) -> Result<bool> {
        let page = self.db.list_events(&self.caller, self.filter.clone()).await.stored()?;
        let last = page.len() < PAGE as usize;
        self.filter.after = page.last().map(|event| event.id).or(self.filter.after);
        self.listed = page.into();
        Ok(last)
    }
}
