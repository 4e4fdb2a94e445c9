//! At most one transition of a sandbox at a time: a pause, a resume, a snapshot or a fork.
//!
//! ```text
//!   begin ──Transition──> the work ──drop──> free
//!     └── another one is under way: `transition_in_progress`, to be retried
//! ```
//! An end needs no turn: it ends the machine, and a transition that is under way finds the row ended.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nullspace_api::ErrorResponseCode;
use nullspace_types::SandboxId;
use tokio::sync::Notify;
use tokio::time::timeout_at;

use crate::error::{Error, Result};

/// Time after which a caller tries again.
const AGAIN: Duration = Duration::from_secs(1);

/// The sandboxes in transition, with what is done to them. There are at most as many as requests and machines.
#[derive(Debug, Default)]
pub(super) struct Transitions {
    under_way: Mutex<HashMap<SandboxId, &'static str>>,
    ended: Notify,
}

/// A sandbox's turn. Dropping it ends the transition.
#[derive(Debug)]
pub(super) struct Transition {
    all: Arc<Transitions>,
    id: SandboxId,
}

impl Transitions {
    /// Begins a transition. `what` completes "the sandbox is being …".
    ///
    /// # Errors
    /// `transition_in_progress`.
    pub(super) fn begin(self: &Arc<Self>, id: SandboxId, what: &'static str) -> Result<Transition> {
        match self.under_way.lock().unwrap_or_else(PoisonError::into_inner).entry(id) {
            Entry::Vacant(free) => {
                free.insert(what);
                Ok(Transition { all: Arc::clone(self), id })
            }
            Entry::Occupied(other) => Err(Error {
                retry_after: Some(AGAIN),
                ..Error::new(
                    ErrorResponseCode::TransitionInProgress,
                    format!("sandbox {id} is being {}; try again", other.get()),
                )
            }),
        }
    }

    /// Begins a transition as soon as the one under way has ended, at most so much later.
    ///
    /// # Errors
    /// `transition_in_progress`.
    pub(super) async fn begin_within(
        self: &Arc<Self>,
        id: SandboxId,
        what: &'static str,
        bound: Duration,
    ) -> Result<Transition> {
        let deadline = tokio::time::Instant::now() + bound;
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // From here on no end is missed.
            ended.as_mut().enable();
            match self.begin(id, what) {
                Ok(begun) => return Ok(begun),
                Err(busy) => {
                    if timeout_at(deadline, ended).await.is_err() {
                        return Err(busy);
                    }
                }
            }
        }
    }
}

impl Drop for Transition {
    fn drop(&mut self) {
        self.all.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.all.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_for_each_sandbox_and_who_waits_gets_the_next_turn() {
        let all = Arc::new(Transitions::default());
        let (one, other) = (SandboxId::new(), SandboxId::new());
        let first = all.begin(one, "paused").unwrap();
        let refused = all.begin(one, "forked").unwrap_err();
        assert_eq!((refused.code, refused.retry_after), (ErrorResponseCode::TransitionInProgress, Some(AGAIN)));
        assert!(refused.message.contains("being paused"), "{refused}");
        let second = all.begin(other, "forked").unwrap();
        let late = all.begin_within(one, "resumed", Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(late.code, ErrorResponseCode::TransitionInProgress);
        let waits = tokio::spawn({
            let all = Arc::clone(&all);
            async move { all.begin_within(one, "resumed", Duration::from_secs(5)).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(second);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waits.is_finished(), "another sandbox's end is not its turn");
        drop(first);
        let third = waits.await.unwrap().unwrap();
        assert!(all.begin(one, "paused").is_err());
        drop(third);
        assert!(all.under_way.lock().unwrap().is_empty());
    }
}
