//! The stop and the start of the service: running sandboxes are paused, and continue as themselves.
//!
//! ```text
//!   stop    running ──pause──> paused, marked to continue      all side by side, within `stop_pause_secs`
//!              │                  └── published in the rest of that time, or flushed and published after the next start
//!              └── not in time, ephemeral, refused ──> ended, with the reason
//!   start   marked ──continue──> running, same id, rest of its timeout     in the background, oldest first
//!              └── cannot be resumed ──> paused, not marked
//! ```
//! A killed service marks nothing: its machines are gone with it, and their rows become `error`, with the reason `lost: …`.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use nullspace_api::{ErrorResponseCode, LifecycleActorKind, LifecycleOperation};
use nullspace_db::{DbError, Sandbox, SandboxStatus};
use nullspace_host_interface::Found;
use nullspace_service::chain;
use nullspace_types::{SandboxId, TenantId};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::pause::Cause;
use super::resume::Why;
use super::timeouts::for_tenant;
use crate::Inner;
use crate::lifecycle::Event;

/// Sandboxes that are paused at once, and continued at once.
const AT_ONCE: usize = 4;
/// Time before a pause is tried again that another transition has kept off.
const AGAIN: Duration = Duration::from_millis(200);
/// Tries to continue a sandbox, and the time before the second; doubled for each further one.
const TRIES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Reason of an end with the service.
const STOPPED: &str = "the service stopped";
/// Reason of a lost sandbox.
const LOST: &str = "lost: the service was killed while the sandbox ran";

impl Inner {
    /// Pauses the running sandboxes, to continue at the next start, and ends those that cannot be paused in time.
    pub(crate) async fn stop_sandboxes(self: &Arc<Self>) {
        let bound = self.config.life.stop_pause;
        let deadline = Instant::now() + bound;
        if bound.is_zero() {
            self.end_all_sandboxes(STOPPED).await;
            self.stop_publications(deadline).await;
            return;
        }
        // One that is just being continued runs, or stays paused, before it is looked at.
        if tokio::time::timeout_at(deadline, self.sandboxes.continuations.ended()).await.is_err() {
            tracing::warn!("sandboxes that were being resumed are left to the next start");
        }
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let pauses = self.host.sandboxes().into_iter().map(|id| {
            let (inner, turns) = (Arc::clone(self), Arc::clone(&turns));
            // A task of its own: a pause that is under way at the deadline is not torn apart.
            self.tasks.spawn(async move {
                let Ok(_turn) = turns.acquire().await else { return };
                inner.pause_to_continue(id, deadline).await;
            })
        });
        let all = futures::future::join_all(pauses.collect::<Vec<_>>());
        if tokio::time::timeout_at(deadline, all).await.is_err() {
            tracing::warn!(
                secs = bound.as_secs(),
                "not all sandboxes could be paused in time (stop_pause_secs): they end"
            );
        }
        self.end_all_sandboxes("the service stopped before the sandbox could be paused").await;
        self.stop_publications(deadline).await;
    }

    async fn pause_to_continue(&self, id: SandboxId, deadline: Instant) {
        let Found::Running(_, tenant) = self.host.find_sandbox(id) else { return };
        let caller = for_tenant(tenant);
        let remaining_ms = match self.db.get_sandbox(&caller, id).await {
            Ok(sandbox) if sandbox.status == SandboxStatus::Running => sandbox.timeout_at.map(super::spec::until),
            Ok(_) => return,
            Err(error) => {
                tracing::error!(sandbox_id = %id, error = %chain(&error), "a sandbox is not paused at the stop");
                return;
            }
        };
        while Instant::now() < deadline {
            match self.pause(&caller, id, Cause::Stop).await {
                // Its owner has paused it.
                Ok(paused) if paused.earlier => return,
                Ok(_) => return self.mark(id, remaining_ms).await,
                Err(error) if error.code == ErrorResponseCode::TransitionInProgress => tokio::time::sleep(AGAIN).await,
                Err(error) => {
                    tracing::warn!(sandbox_id = %id, %error, "a sandbox is not paused at the stop");
                    return;
                }
            }
        }
    }

    async fn mark(&self, id: SandboxId, remaining_ms: Option<u64>) {
        if let Err(error) = self.db.mark_to_continue(id, remaining_ms).await {
            let error = chain(&error);
            tracing::error!(sandbox_id = %id, error, "a sandbox is paused, and will not continue by itself: resume it");
        }
    }

    /// Ends all sandboxes of the host, concurrently.
    pub(crate) async fn end_all_sandboxes(&self, reason: &str) {
        let ends = self.host.sandboxes().into_iter().map(|id| async move {
            // One whose pause was recorded at the last moment is stored: only its machine ends.
            if let Found::Running(_, tenant) = self.host.find_sandbox(id) {
                let row = self.db.get_sandbox(&for_tenant(tenant), id).await;
                if row.is_ok_and(|row| row.status == SandboxStatus::Paused) {
                    self.host.end_sandbox(id).await;
                } else {
                    self.destroy(tenant, id, LifecycleActorKind::System, "service_stopped", Some(reason)).await;
                }
            } else if self.sandboxes.continuations.has(id) {
                // Its row is still that of a paused one.
                self.host.end_sandbox(id).await;
            } else {
                self.end_sandbox(id, SandboxStatus::Destroyed, Some(reason)).await;
            }
        });
        futures::future::join_all(ends).await;
    }

    /// Records as lost the sandboxes whose machines went with a killed service.
    pub(crate) async fn record_lost(&self, now: Timestamp) -> std::result::Result<usize, DbError> {
        let lost = self.db.end_sandboxes_of_host(&self.config.host, SandboxStatus::Error, LOST, now).await?;
        for (id, tenant) in &lost {
            self.lifecycle.record(reconciled(*tenant, *id, LOST));
        }
        Ok(lost.len())
    }

    /// Returns the sandboxes that continue, oldest first. Until they run, requests to them are told to wait.
    pub(crate) async fn awaited(&self) -> std::result::Result<Vec<Sandbox>, DbError> {
        let marked = self.db.to_continue(&self.config.host).await?;
        let sandboxes: Vec<Sandbox> = marked.into_iter().map(|(sandbox, _)| sandbox).collect();
        let mut awaited = self.sandboxes.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        awaited.extend(sandboxes.iter().map(|sandbox| sandbox.id));
        Ok(sandboxes)
    }

    /// True for a paused sandbox that the service is about to continue.
    pub(super) fn is_awaited(&self, id: SandboxId) -> bool {
        self.sandboxes.awaited.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }
}

/// Continues the sandboxes that ran when the service stopped.
pub(crate) async fn continue_all(inner: Arc<Inner>, sandboxes: Vec<Sandbox>) {
    if sandboxes.is_empty() {
        return;
    }
    let number = sandboxes.len();
    let begun = Instant::now();
    let work = sandboxes.into_iter().map(|sandbox| {
        let inner = Arc::clone(&inner);
        async move {
            let done = inner.continue_marked(&sandbox).await;
            inner.sandboxes.awaited.lock().unwrap_or_else(PoisonError::into_inner).remove(&sandbox.id);
            done
        }
    });
    let continued =
        futures::stream::iter(work).buffered(AT_ONCE).filter(|done| std::future::ready(*done)).count().await;
    let ms = begun.elapsed().as_millis();
    tracing::info!(continued, of = number, ms, "sandboxes of before the stop run again");
}

impl Inner {
    /// Continues one. False when it does not run.
    async fn continue_marked(self: &Arc<Self>, sandbox: &Sandbox) -> bool {
        let (id, caller) = (sandbox.id, for_tenant(sandbox.tenant));
        let why = Why::Restarted { remaining_ms: sandbox.continue_ms };
        let mut wait = FIRST_WAIT;
        for attempt in 1..=TRIES {
            let error = match self.continue_shared(&caller, id, why).await {
                Ok(()) => return true,
                Err(error) => error,
            };
            // It keeps its mark for the next start.
            if self.shutdown.is_cancelled() {
                return false;
            }
            if error.code == ErrorResponseCode::SandboxNotFound {
                return false;
            }
            tracing::warn!(sandbox_id = %id, attempt, %error, "a sandbox of before the stop does not run yet");
            if attempt == TRIES || !may_pass(error.code) {
                break;
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return false,
                () = tokio::time::sleep(wait) => {}
            }
            wait *= 2;
        }
        tracing::error!(sandbox_id = %id, "a sandbox of before the stop stays paused: it can be resumed by hand");
        if let Err(error) = self.db.give_up_continuing(id).await {
            tracing::warn!(sandbox_id = %id, error = %chain(&error), "the next start will try again to continue it");
        }
        false
    }
}

/// Whether an error may pass by itself.
fn may_pass(code: ErrorResponseCode) -> bool {
    !matches!(
        code,
        ErrorResponseCode::IncompatibleSnapshot
            | ErrorResponseCode::RebuildRequired
            | ErrorResponseCode::SameHostRequired
            | ErrorResponseCode::TransitionConflict
    )
}

/// The event of a row that was corrected because its machine is gone.
pub(super) fn reconciled(tenant: TenantId, id: SandboxId, reason: &str) -> Event {
    Event::succeeded(tenant, LifecycleOperation::Reconcile)
        .by(LifecycleActorKind::Reconcile)
        .sandbox(id)
        .reason(reason)
        .detail("status", "error")
}
