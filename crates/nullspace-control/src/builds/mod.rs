//! Builds: checked, accepted, run on a host, and followed to their end.
//!
//! ```text
//!   request ── check ──> accept ──> queue ── worker ── Host::build ──> ready | error | cancelled
//!                                              │ BuildRecord (record)
//!   follow  <── shared_reads <── logs <────────┘                finished: history, retry, promote
//! ```

mod accept;
mod check;
mod credentials;
mod finished;
mod follow;
pub(crate) mod logs;
mod record;
mod shared_reads;
pub(crate) mod worker;

use std::sync::Arc;

use tokio::sync::Notify;

use crate::Inner;

/// State that builds share in this process.
#[derive(Default)]
pub(crate) struct State {
    hub: Arc<logs::LogHub>,
    reads: logs::LogReads,
    running: worker::Running,
    credentials: credentials::Credentials,
    /// Wakes a waiting worker when a build was accepted.
    queued: Notify,
}

/// Removes idle logs and the secrets of ended builds from memory, until the service stops.
pub(crate) async fn forget(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.shutdown.cancelled() => return,
            () = tokio::time::sleep(shared_reads::IDLE) => {}
        }
        inner.builds.reads.forget(shared_reads::IDLE);
        inner.builds.credentials.sweep(&*inner.db).await;
    }
}
