//! Sandboxes that requests to their ports wake: one attempt at a time for each, and a rest after one that failed.
//!
//! ```text
//!   (none) ──begin──> under way ──dropped──> (none)
//!                          └─────failed────> at rest ──REST──> (none)
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nullspace_types::SandboxId;

/// Time after a failure to wake a sandbox in which a request does not try it again.
const REST: Duration = Duration::from_secs(5);
/// Most sandboxes that wake or rest at a time. A request to one more wakes nothing, and is told to come back.
const MOST: usize = 10_000;

/// The sandboxes that wake or rest.
#[derive(Default, Clone)]
pub(super) struct Wakes(Arc<Mutex<HashMap<SandboxId, State>>>);

enum State {
    Underway,
    RestsSince(Instant),
}

/// An attempt to wake a sandbox. It is over when this is dropped.
pub(super) struct Wake {
    wakes: Wakes,
    id: SandboxId,
}

impl Wakes {
    /// `None`: an attempt is under way, has failed within [`REST`], or there are too many.
    pub(super) fn begin(&self, id: SandboxId) -> Option<Wake> {
        let mut states = self.lock();
        states.retain(|_, state| match state {
            State::Underway => true,
            State::RestsSince(at) => at.elapsed() < REST,
        });
        if states.contains_key(&id) || states.len() >= MOST {
            return None;
        }
        states.insert(id, State::Underway);
        Some(Wake { wakes: self.clone(), id })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake {
    /// It could not be woken.
    pub(super) fn failed(self) {
        self.wakes.lock().insert(self.id, State::RestsSince(Instant::now()));
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        let mut states = self.wakes.lock();
        if matches!(states.get(&self.id), Some(State::Underway)) {
            states.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_woken_by_one_at_a_time_and_rests_after_a_failure() {
        let wakes = Wakes::default();
        let (one, other) = (SandboxId::new(), SandboxId::new());
        let first = wakes.begin(one).expect("nobody wakes it");
        assert!(wakes.begin(one).is_none(), "an attempt is under way");
        let neighbour = wakes.begin(other).expect("another sandbox");
        drop(first);
        let second = wakes.begin(one).expect("the first attempt is over");
        second.failed();
        assert!(wakes.begin(one).is_none(), "it rests");
        drop(neighbour);
        assert_eq!(wakes.lock().len(), 1, "only what rests is remembered");
    }
}
