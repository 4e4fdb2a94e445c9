//! Followers of commands, across a new connection to the agent.
//!
//! ```text
//!   Follower ── old session ── its last events ── closed ─┐
//!                                                         ├─ Slot ──> new session, what was seen is skipped
//!   snapshot ── attach to each pid before the thaw ───────┘
//! ```
//! A snapshot ends the connection to the agent, and a command runs on in the guest. The snapshot attaches to it again before the
//! guest is thawed, whether or not a client reads at that moment: so a command waits for its slow reader as before, and nothing
//! that it wrote is lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nullspace_guest::host::{Agent, AgentError, ExecSession};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Most commands of one sandbox that are followed at a time. The agent has 64 channels, and other operations need some.
pub(super) const MAX_FOLLOWED: usize = 32;

/// The followers of one sandbox.
#[derive(Debug)]
pub(super) struct Followers {
    permits: Arc<Semaphore>,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    next: u64,
    all: HashMap<u64, Arc<Slot>>,
}

/// The next session of one follower.
#[derive(Debug)]
pub(super) struct Slot {
    pid: u32,
    next: Mutex<Option<Result<ExecSession, AgentError>>>,
    ready: Notify,
}

/// A follower's registration. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Registered {
    followers: Arc<Followers>,
    number: u64,
    slot: Arc<Slot>,
    _permit: OwnedSemaphorePermit,
}

/// New sessions, to be handed over once the guest goes on.
#[derive(Debug, Default)]
pub(super) struct Attached(Vec<(Arc<Slot>, Result<ExecSession, AgentError>)>);

impl Followers {
    pub(super) fn new() -> Arc<Followers> {
        Arc::new(Followers { permits: Arc::new(Semaphore::new(MAX_FOLLOWED)), slots: Mutex::default() })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A permit for one more follower; `None` when there are [`MAX_FOLLOWED`].
    pub(super) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    /// Registers a follower of `pid`. Call it before the gate can be closed: while the operation that began it is under way.
    pub(super) fn register(self: &Arc<Self>, pid: u32, permit: OwnedSemaphorePermit) -> Registered {
        let slot = Arc::new(Slot { pid, next: Mutex::default(), ready: Notify::new() });
        let mut slots = self.slots();
        let number = slots.next;
        slots.next = number.wrapping_add(1);
        slots.all.insert(number, Arc::clone(&slot));
        drop(slots);
        Registered { followers: Arc::clone(self), number, slot, _permit: permit }
    }

    /// Follows every command again over a new connection. [`AgentError::Closed`] when that closes meanwhile.
    pub(super) async fn attach(&self, agent: &Agent) -> Result<Attached, AgentError> {
        let slots: Vec<Arc<Slot>> = self.slots().all.values().cloned().collect();
        let sessions = slots.iter().map(|slot| agent.attach(slot.pid));
        let sessions = futures::future::join_all(sessions).await;
        let attached = slots.into_iter().zip(sessions).map(|(slot, session)| match session {
            Err(AgentError::Closed) => Err(AgentError::Closed),
            session => Ok((slot, session)),
        });
        attached.collect::<Result<_, _>>().map(Attached)
    }
}

impl Attached {
    /// Gives each follower its new session.
    pub(super) fn hand_over(self) {
        for (slot, session) in self.0 {
            *slot.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
            slot.ready.notify_one();
        }
    }
}

impl Registered {
    /// Waits for the next session. Cancel safe.
    pub(super) async fn next(&self) -> Result<ExecSession, AgentError> {
        loop {
            let ready = self.slot.ready.notified();
            if let Some(session) = self.slot.next.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return session;
            }
            ready.await;
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.followers.slots().all.remove(&self.number);
    }
}

/// The bytes of a command's output that a follower has seen, and those that come a second time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    stdout: Stream,
    stderr: Stream,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Stream {
    /// Bytes from the command's start on that were delivered, or were dropped in the guest.
    until: u64,
    /// Bytes that come again.
    skip: u64,
}

impl Seen {
    /// A follower that begins where `lost` bytes of each stream were dropped before.
    pub(super) fn from(lost: (u64, u64)) -> Seen {
        let stream = |until| Stream { until, skip: 0 };
        Seen { stdout: stream(lost.0), stderr: stream(lost.1) }
    }

    /// A new session begins after `lost` bytes of each stream. Returns how many bytes of both cannot be delivered any more.
    pub(super) fn again(&mut self, lost: (u64, u64)) -> u64 {
        self.stdout.again(lost.0).saturating_add(self.stderr.again(lost.1))
    }

    /// The part of a piece of stdout that is new.
    pub(super) fn stdout(&mut self, bytes: Bytes) -> Option<Bytes> {
        self.stdout.new_part(bytes)
    }

    /// The part of a piece of stderr that is new.
    pub(super) fn stderr(&mut self, bytes: Bytes) -> Option<Bytes> {
        self.stderr.new_part(bytes)
    }
}

impl Stream {
    fn again(&mut self, lost: u64) -> u64 {
        let gap = lost.saturating_sub(self.until);
        self.skip = self.until.saturating_sub(lost);
        self.until = self.until.max(lost);
        gap
    }

    fn new_part(&mut self, mut bytes: Bytes) -> Option<Bytes> {
        let known = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        let new = bytes.split_off(known);
        self.skip = self.skip.saturating_sub(known as u64);
        self.until = self.until.saturating_add(new.len() as u64);
        (!new.is_empty()).then_some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_gets_each_byte_once_over_two_sessions() {
        let mut seen = Seen::from((0, 0));
        assert_eq!(seen.stdout(Bytes::from_static(b"hello ")).as_deref(), Some(&b"hello "[..]));
        assert_eq!(seen.again((0, 0)), 0);
        assert_eq!(seen.stdout(Bytes::from_static(b"hel")), None);
        assert_eq!(seen.stdout(Bytes::from_static(b"lo wor")).as_deref(), Some(&b"wor"[..]));
        assert_eq!(seen.stderr(Bytes::from_static(b"e")).as_deref(), Some(&b"e"[..]));
        assert_eq!(seen.again((4, 1)), 0);
        assert_eq!(seen.stdout(Bytes::from_static(b"o world")).as_deref(), Some(&b"ld"[..]));
    }

    #[test]
    fn what_the_guest_dropped_meanwhile_is_counted() {
        let mut seen = Seen::from((10, 0));
        assert_eq!(seen.again((15, 2)), 7);
        assert_eq!(seen.stdout(Bytes::from_static(b"x")).as_deref(), Some(&b"x"[..]));
        assert_eq!(seen, Seen { stdout: Stream { until: 16, skip: 0 }, stderr: Stream { until: 2, skip: 0 } });
    }
}
