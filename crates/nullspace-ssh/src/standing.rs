//! Ends connections whose access is over: expired, revoked with its API key, or gone with its sandbox.
//!
//! One task asks again and again which of the accesses in use are in force. When the service does not answer, nothing is ended.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nullspace_service::chain;
use nullspace_types::SshAccessId;
use tokio_util::sync::CancellationToken;

use crate::gate::Gate;

/// Time limit of one look.
const PATIENCE: Duration = Duration::from_secs(10);

/// The accesses in use.
#[derive(Default)]
pub(crate) struct Standings(Mutex<HashMap<SshAccessId, Use>>);

struct Use {
    connections: usize,
    over: CancellationToken,
}

/// A connection's access, as long as the connection.
pub(crate) struct Standing {
    standings: Arc<Standings>,
    access: SshAccessId,
    over: CancellationToken,
}

impl Standings {
    fn lock(&self) -> MutexGuard<'_, HashMap<SshAccessId, Use>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection with this access.
    pub(crate) fn begin(self: &Arc<Self>, access: SshAccessId) -> Standing {
        let mut uses = self.lock();
        let entry = uses.entry(access).or_insert_with(|| Use { connections: 0, over: CancellationToken::new() });
        entry.connections += 1;
        Standing { standings: Arc::clone(self), access, over: entry.over.clone() }
    }

    /// Ends the connections whose access is not in force.
    async fn look(&self, gate: &dyn Gate) {
        let accesses: Vec<SshAccessId> = self.lock().keys().copied().collect();
        if accesses.is_empty() {
            return;
        }
        let in_force = match tokio::time::timeout(PATIENCE, gate.in_force(&accesses)).await {
            Ok(Ok(in_force)) => in_force.into_iter().collect::<HashSet<_>>(),
            Ok(Err(error)) => {
                tracing::warn!(
                    cause = chain(&error),
                    "cannot look whether SSH accesses are in force: nothing is ended"
                );
                return;
            }
            Err(_) => {
                tracing::warn!("cannot look whether SSH accesses are in force: no answer in time, nothing is ended");
                return;
            }
        };
        for access in accesses.iter().filter(|access| !in_force.contains(*access)) {
            // Cancelled under the lock: see `Standing::drop`.
            let mut uses = self.lock();
            if let Some(ended) = uses.remove(access) {
                ended.over.cancel();
                tracing::info!(%access, connections = ended.connections, "an SSH access is over: its connections end");
            }
        }
    }

    /// Looks repeatedly, for ever.
    pub(crate) async fn watch(&self, gate: &dyn Gate, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            self.look(gate).await;
        }
    }
}

impl Standing {
    /// Cancelled when the access is over.
    pub(crate) fn over(&self) -> &CancellationToken {
        &self.over
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let mut uses = self.standings.lock();
        if self.over.is_cancelled() {
            // Its entry is gone; one of the same name is another's.
            return;
        }
        if let Some(entry) = uses.get_mut(&self.access) {
            entry.connections = entry.connections.saturating_sub(1);
            if entry.connections == 0 {
                uses.remove(&self.access);
            }
        }
    }
}
