//! Builds: what is asked for, what is accepted, and how it comes to its end.
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

/// What builds share in this process.
#[derive(Default)]
pub(crate) struct State {
    hub: Arc<logs::LogHub>,
    reads: logs::LogReads,
    running: worker::Running,
    credentials: credentials::Credentials,
    /// A build was accepted: a waiting worker looks.
    queued: Notify,
}

/// Lets go of what readers of logs and ended builds left in memory, until the service stops.
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
