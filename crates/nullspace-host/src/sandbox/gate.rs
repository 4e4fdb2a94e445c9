//! The gate in front of a sandbox's agent: operations pass while it is open, wait while a snapshot is taken, and are refused
//! during a pause.
//!
//! ```text
//!   Open ── close(Snapshot) ──> Closed: operations wait ─────────── open(new agent) ──> Open
//!     └──── close(Pause) ─────> Closed: operations are refused,  ── open(new agent) ──> Open
//!                                       those under way are interrupted
//! ```
//! An operation under way is counted by its [`Pass`]. The machine is not frozen before the last one is back: a new connection to
//! the agent would end what runs in the old one.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The reason for which a gate is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// A snapshot or a fork: the sandbox goes on.
    Snapshot,
    /// A pause: the sandbox ends, unless the snapshot cannot be stored.
    Pause,
}

/// The reasons for which an operation does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shut {
    /// The sandbox is being paused.
    Pausing,
    /// It was closed for longer than an operation waits.
    TooLong,
}

#[derive(Debug)]
struct State<A> {
    agent: A,
    closed: Option<Why>,
    /// How often it was closed.
    closings: u64,
    /// Operations under way.
    passes: u64,
    /// Cancelled to interrupt the operations that passed while this agent was used.
    interrupt: CancellationToken,
    /// Cancelled as soon as the gate is closed for a pause.
    pausing: CancellationToken,
}

/// A gate to an agent of type `A`.
#[derive(Debug)]
pub(super) struct Gate<A> {
    state: watch::Sender<State<A>>,
}

/// An operation under way, and the agent that it uses.
#[derive(Debug)]
pub(super) struct Pass<A> {
    gate: Arc<Gate<A>>,
    agent: A,
    /// Cancelled when the operation has to end.
    pub(super) interrupt: CancellationToken,
    /// Cancelled when a pause begins: what is no operation, and no pause waits for, ends then.
    pub(super) pausing: CancellationToken,
}

impl<A> Deref for Pass<A> {
    type Target = A;

    fn deref(&self) -> &A {
        &self.agent
    }
}

impl<A> Drop for Pass<A> {
    fn drop(&mut self) {
        self.gate.state.send_modify(|state| state.passes = state.passes.saturating_sub(1));
    }
}

impl<A: Clone> Gate<A> {
    /// An open gate.
    pub(super) fn new(agent: A) -> Arc<Gate<A>> {
        let (interrupt, pausing) = (CancellationToken::new(), CancellationToken::new());
        let state = State { agent, closed: None, closings: 0, passes: 0, interrupt, pausing };
        Arc::new(Gate { state: watch::Sender::new(state) })
    }

    /// Passes as soon as the gate is open, at most after `limit`.
    pub(super) async fn enter(self: &Arc<Self>, limit: Duration) -> Result<Pass<A>, Shut> {
        let mut states = self.state.subscribe();
        let entering = async {
            loop {
                if let Some(tried) = self.try_enter() {
                    return tried;
                }
                // The sender is this gate.
                let _ = states.changed().await;
            }
        };
        tokio::time::timeout(limit, entering).await.unwrap_or(Err(Shut::TooLong))
    }

    /// Passes, or is refused, or has to wait (`None`).
    fn try_enter(self: &Arc<Self>) -> Option<Result<Pass<A>, Shut>> {
        let mut tried = None;
        self.state.send_if_modified(|state| {
            match state.closed {
                None => {
                    state.passes += 1;
                    let (agent, interrupt, pausing) =
                        (state.agent.clone(), state.interrupt.clone(), state.pausing.clone());
                    tried = Some(Ok(Pass { gate: Arc::clone(self), agent, interrupt, pausing }));
                }
                Some(Why::Pause) => tried = Some(Err(Shut::Pausing)),
                Some(Why::Snapshot) => {}
            }
            // Nobody waits for more passes.
            false
        });
        tried
    }

    /// Closes the gate. The operations under way go on.
    pub(super) fn close(&self, why: Why) {
        self.state.send_modify(|state| {
            state.closed = Some(why);
            state.closings = state.closings.wrapping_add(1);
        });
        if why == Why::Pause {
            let pausing = self.state.borrow().pausing.clone();
            pausing.cancel();
        }
    }

    /// Waits until no operation is under way, at most for `limit`. Returns whether that is so.
    pub(super) async fn drained(&self, limit: Duration) -> bool {
        let mut states = self.state.subscribe();
        let empty = states.wait_for(|state| state.passes == 0);
        tokio::time::timeout(limit, empty).await.is_ok_and(|waited| waited.is_ok())
    }

    /// Interrupts the operations under way.
    pub(super) fn interrupt(&self) {
        self.state.borrow().interrupt.cancel();
    }

    /// Opens the gate to `agent`; `None`: to the same as before.
    pub(super) fn open(&self, agent: Option<A>) {
        self.state.send_modify(|state| {
            if let Some(agent) = agent {
                state.agent = agent;
            }
            if state.interrupt.is_cancelled() {
                state.interrupt = CancellationToken::new();
            }
            if state.pausing.is_cancelled() {
                state.pausing = CancellationToken::new();
            }
            state.closed = None;
        });
    }

    /// The agent, whether or not the gate is open.
    pub(super) fn agent(&self) -> A {
        self.state.borrow().agent.clone()
    }

    /// The agent, if the gate is open. Using it does not count as an operation.
    pub(super) fn agent_if_open(&self) -> Option<A> {
        let state = self.state.borrow();
        state.closed.is_none().then(|| state.agent.clone())
    }

    /// Resolves with the reason when `closed` does for the agent of an open gate. What happens to the agent of a closed one is no
    /// loss: it is disconnected for a snapshot.
    pub(super) async fn lost<E, F: Future<Output = E>>(&self, closed: impl Fn(A) -> F) -> E {
        let mut states = self.state.subscribe();
        loop {
            let (open, closings) = {
                let state = states.borrow_and_update();
                (state.closed.is_none().then(|| state.agent.clone()), state.closings)
            };
            let Some(agent) = open else {
                // The sender is this gate.
                let _ = states.changed().await;
                continue;
            };
            // Passes change the state, too: then the same agent is watched on.
            let closing = states.wait_for(|state| state.closings != closings);
            tokio::select! {
                biased;
                _ = closing => {}
                error = closed(agent) => {
                    if self.state.borrow().closings == closings {
                        return error;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn operations_wait_for_a_snapshot_and_use_the_new_agent() {
        let gate = Gate::new(1);
        let first = gate.enter(LONG).await.unwrap();
        gate.close(Why::Snapshot);
        assert!(!gate.drained(Duration::from_secs(1)).await, "one is under way");
        assert!(gate.agent_if_open().is_none());
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.enter(LONG).await.map(|pass| *pass) }
        });
        drop(first);
        assert!(gate.drained(Duration::from_secs(1)).await);
        assert!(!waiting.is_finished());
        gate.open(Some(2));
        assert_eq!(waiting.await.unwrap(), Ok(2));
        assert!(gate.drained(Duration::ZERO).await, "it is back");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_for_ever() {
        let gate = Gate::new(());
        gate.close(Why::Snapshot);
        assert_eq!(gate.enter(LONG).await.unwrap_err(), Shut::TooLong);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_refuses_and_interrupts_and_what_comes_after_it_is_free() {
        let gate = Gate::new(1);
        let pass = gate.enter(LONG).await.unwrap();
        gate.close(Why::Snapshot);
        gate.open(None);
        assert!(!pass.pausing.is_cancelled(), "a snapshot ends nothing");
        gate.close(Why::Pause);
        assert_eq!(gate.enter(LONG).await.unwrap_err(), Shut::Pausing);
        assert!(!pass.interrupt.is_cancelled() && pass.pausing.is_cancelled());
        gate.interrupt();
        assert!(pass.interrupt.is_cancelled());
        drop(pass);
        assert!(gate.drained(Duration::ZERO).await);
        gate.open(None);
        let pass = gate.enter(LONG).await.unwrap();
        assert!(*pass == 1 && !pass.interrupt.is_cancelled() && !pass.pausing.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_connection_is_a_loss_while_the_gate_is_open_alone() {
        let (gate, ends) = (Gate::new(1), watch::Sender::new(0));
        // Ends of the agents up to a number.
        let lost = tokio::spawn({
            let (gate, ends) = (Arc::clone(&gate), ends.clone());
            async move {
                gate.lost(|agent| {
                    let mut ended = ends.subscribe();
                    async move {
                        let _ = ended.wait_for(|ended| *ended >= agent).await;
                        agent
                    }
                })
                .await
            }
        });
        drop(gate.enter(LONG).await.unwrap());
        gate.close(Why::Snapshot);
        ends.send_replace(1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        gate.open(Some(2));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!lost.is_finished(), "the first was closed for a snapshot");
        ends.send_replace(2);
        assert_eq!(lost.await.unwrap(), 2);
    }
}
