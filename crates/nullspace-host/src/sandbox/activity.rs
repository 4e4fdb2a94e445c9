//! The use of a sandbox, and the limits in time that it has: when it is due.
//!
//! ```text
//!   operations, followed commands ── Active ──> open, last use ──┐
//!   control ── set_limits ──> deadline, idle ────────────────────┴─> due() ──> HostEvents::sandbox_due
//! ```
//! A limit is reported once for each setting of limits. The sandbox goes on: control ends it, pauses it, or sets new limits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nullspace_host_interface::{Due, TimeLimits};
use tokio::sync::Notify;

/// Longest sleep of a watch: the system's clock may be set meanwhile.
const LOOK: Duration = Duration::from_secs(60);

/// The use and the limits of one sandbox.
#[derive(Debug)]
pub(super) struct Activity {
    state: Mutex<State>,
    /// New limits, or the last use has ended.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Uses under way.
    open: usize,
    /// Beginning or end of the last use.
    last: Timestamp,
    limits: TimeLimits,
    /// The limits that were reported since they were set.
    told: Told,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Told {
    deadline: bool,
    idle: bool,
}

/// What a watch has to do.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Report(Due),
    /// Look again after this time, or after a change.
    Wait(Option<Duration>),
}

/// A use under way. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Active(Arc<Activity>);

impl Drop for Active {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.open = state.open.saturating_sub(1);
        state.last = Timestamp::now();
        let quiet = state.open == 0 && state.limits.idle.is_some();
        drop(state);
        if quiet {
            self.0.changed.notify_one();
        }
    }
}

impl Activity {
    /// A sandbox that is used now and never due.
    pub(super) fn new() -> Arc<Activity> {
        let state = State { open: 0, last: Timestamp::now(), limits: TimeLimits::default(), told: Told::default() };
        Arc::new(Activity { state: Mutex::new(state), changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a use.
    pub(super) fn begin(self: &Arc<Self>) -> Active {
        let mut state = self.lock();
        state.open += 1;
        state.last = Timestamp::now();
        drop(state);
        Active(Arc::clone(self))
    }

    /// The time of the last use: now, while one is under way.
    pub(super) fn last(&self) -> Timestamp {
        let state = self.lock();
        if state.open > 0 { Timestamp::now() } else { state.last }
    }

    /// The end of the last use; `None` while one is under way.
    pub(super) fn idle_since(&self) -> Option<Timestamp> {
        let state = self.lock();
        (state.open == 0).then_some(state.last)
    }

    /// Sets new limits.
    pub(super) fn set(&self, limits: TimeLimits) {
        let mut state = self.lock();
        (state.limits, state.told) = (limits, Told::default());
        drop(state);
        self.changed.notify_one();
    }

    /// Resolves when a limit is reached that was not reported yet. One task may call it.
    pub(super) async fn due(&self) -> Due {
        loop {
            let changed = self.changed.notified();
            let next = self.lock().next(Timestamp::now());
            match next {
                Next::Report(due) => return due,
                Next::Wait(None) => changed.await,
                Next::Wait(Some(wait)) => {
                    let _ = tokio::time::timeout(wait.min(LOOK), changed).await;
                }
            }
        }
    }
}

impl State {
    fn next(&mut self, now: Timestamp) -> Next {
        let mut wait: Option<Duration> = None;
        let TimeLimits { deadline, idle } = self.limits;
        if let Some(deadline) = deadline.filter(|_| !self.told.deadline) {
            let left = left(now, deadline);
            if left.is_zero() {
                // Nothing is left to be said of the use.
                self.told = Told { deadline: true, idle: true };
                return Next::Report(Due::Deadline);
            }
            wait = Some(left);
        }
        if let Some(idle) = idle.filter(|_| !self.told.idle && self.open == 0) {
            // A limit beyond the end of time is none.
            let at = SignedDuration::try_from(idle).ok().and_then(|idle| self.last.checked_add(idle).ok());
            if let Some(at) = at {
                let left = left(now, at);
                if left.is_zero() {
                    self.told.idle = true;
                    return Next::Report(Due::Idle);
                }
                wait = Some(wait.map_or(left, |wait| wait.min(left)));
            }
        }
        Next::Wait(wait)
    }
}

/// The time from `now` until `then`; zero when it has passed.
fn left(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(limits: TimeLimits) -> State {
        State { open: 0, last: at(0), limits, told: Told::default() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn wait(seconds: u64) -> Next {
        Next::Wait(Some(Duration::from_secs(seconds)))
    }

    #[test]
    fn the_nearer_limit_is_reported_first_and_each_once() {
        let mut state = state(TimeLimits { deadline: Some(at(100)), idle: Some(Duration::from_secs(10)) });
        assert_eq!(state.next(at(3)), wait(7));
        assert_eq!(state.next(at(10)), Next::Report(Due::Idle));
        assert_eq!(state.next(at(11)), wait(89));
        assert_eq!(state.next(at(101)), Next::Report(Due::Deadline));
        assert_eq!(state.next(at(102)), Next::Wait(None));
    }

    #[test]
    fn a_sandbox_in_use_does_not_idle_and_idles_anew_afterwards() {
        let mut state = state(TimeLimits { deadline: None, idle: Some(Duration::from_secs(10)) });
        state.open = 1;
        assert_eq!(state.next(at(50)), Next::Wait(None));
        (state.open, state.last) = (0, at(50));
        assert_eq!(state.next(at(51)), wait(9));
        assert_eq!(state.next(at(60)), Next::Report(Due::Idle));
    }

    #[test]
    fn a_limit_beyond_the_end_of_time_is_none() {
        let mut state = state(TimeLimits { deadline: None, idle: Some(Duration::MAX) });
        assert_eq!(state.next(at(1)), Next::Wait(None));
    }

    #[tokio::test]
    async fn new_limits_and_the_end_of_the_last_use_wake_the_watch() {
        let activity = Activity::new();
        let waiting = tokio::spawn({
            let activity = Arc::clone(&activity);
            async move { (activity.due().await, activity.due().await) }
        });
        let active = activity.begin();
        assert_eq!(activity.idle_since(), None);
        activity.set(TimeLimits { deadline: None, idle: Some(Duration::from_millis(20)) });
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(!waiting.is_finished(), "it is used");
        drop(active);
        let before = activity.last();
        assert_eq!(activity.idle_since(), Some(before));
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(activity.last() == before && before <= Timestamp::now());
        activity.set(TimeLimits { deadline: Some(Timestamp::now()), idle: None });
        let told = tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap();
        assert_eq!(told, (Due::Idle, Due::Deadline));
    }
}
