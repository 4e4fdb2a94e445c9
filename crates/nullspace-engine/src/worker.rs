//! Workers: take builds from the queue and bring each to its end, whatever happens.
//!
//! ```text
//!  lease ──> run ──┬─ artifact ────────────> finish_ready   (a cancel that was answered wins: cancelled)
//!   ^              ├─ typed failure ───────> retry later while it may pass and attempts are left, else finish_error
//!   │              ├─ cancel asked ────────> finish_cancelled
//!   │              ├─ service stops ───────> hand back, another worker takes it at once
//!   └── notified,  ├─ over its time ───────> finish_error
//!       or POLL    ├─ the disk was full ───> retry later, as a typed failure, whatever it seemed to end with
//!                  └─ lease lost ──────────> write nothing more
//! ```
//! Whatever the end, everything that the run had on this host (machine, folder, threads) is gone *before* the end is
//! written, so that whoever sees a final status finds nothing left behind.
//!
//! Only the task that runs a build writes its row and its log. Others ask: through the store (`cancel_requested`, seen at
//! the next heartbeat) and, in the same process, through [`Running`], which makes the heartbeat come at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nullspace_api::{TemplateBuildCacheSummary, TemplateBuildLogKind, TemplateBuildLogLevel, TemplateFailurePhase};
use nullspace_store::{Build, BuildId, FinishError, FinishReady, Finished, Lease, Leased, Release, StoreError};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::failure::{BuildFailure, chain, reason};
use crate::logs::{BuildLog, entry, to_store};
use crate::pipeline::{self, Scope};
use crate::{EngineConfig, Inner};

/// How long a worker without work waits for a notification before it asks the queue again.
const POLL: Duration = Duration::from_secs(1);
/// Pause before another attempt, doubled with each.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Builds that run in this process: who wants one looked at at once finds it here.
#[derive(Debug, Default)]
pub(crate) struct Running {
    builds: Mutex<HashMap<BuildId, Arc<Notify>>>,
}

impl Running {
    /// Makes the build's worker ask the store now whether it is to go on.
    pub(crate) fn nudge(&self, build: BuildId) {
        if let Some(notify) = self.lock().get(&build) {
            notify.notify_one();
        }
    }

    fn enter(&self, build: BuildId) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        self.lock().insert(build, Arc::clone(&notify));
        notify
    }

    fn leave(&self, build: BuildId) {
        self.lock().remove(&build);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BuildId, Arc<Notify>>> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a run stops before its own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Cancelled,
    LeaseLost,
    ShuttingDown,
    /// The disk runs full, and this build has written most of late.
    Overran,
}

/// One worker. Returns when the service shuts down and its build, if it had one, is handed back.
pub(crate) async fn work(inner: Arc<Inner>) {
    let mut storage_down = false;
    while !inner.shutdown.is_cancelled() {
        if inner.room(0).is_err() {
            // Said by `disk`. Builds wait as they do for a free worker.
            tokio::select! {
                () = inner.shutdown.cancelled() => {}
                () = tokio::time::sleep(POLL) => {}
            }
            continue;
        }
        let EngineConfig { host, lease_ttl, running_per_tenant, .. } = &inner.config;
        match inner.metadata.lease_build(host, *lease_ttl, *running_per_tenant, Timestamp::now()).await {
            Ok(Some(leased)) => {
                storage_down = false;
                run(&inner, leased).await;
                continue;
            }
            Ok(None) => storage_down = false,
            // Said once per outage, not once per second.
            Err(error) if !storage_down => {
                storage_down = true;
                tracing::error!(error = %chain(&error), "the queue cannot be read");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = inner.shutdown.cancelled() => {}
            () = inner.queued.notified() => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

#[tracing::instrument(name = "build", skip_all, fields(build_id = tracing::field::Empty, attempt = tracing::field::Empty))]
async fn run(inner: &Arc<Inner>, leased: Leased) {
    let (lease, build, spent) = match leased {
        Leased::Run { lease, build } => (lease, build, false),
        Leased::Spent { lease, build } => (lease, build, true),
    };
    let span = tracing::Span::current();
    span.record("build_id", build.id.to_string());
    span.record("attempt", build.attempt);
    let log = BuildLog::new(Arc::clone(&inner.metadata), Arc::clone(&inner.hub), lease.clone(), &build);
    let end = if build.cancel_requested_at.is_some() {
        // A request to cancel outlives the worker that it was meant for.
        finish_cancelled(inner, &lease, &build).await
    } else if spent {
        finish_error(inner, &lease, &build, &interrupted(&build), None).await
    } else {
        attempt(inner, &lease, &build, log).await
    };
    inner.hub.notify(build.id);
    match end {
        Ok(()) => {}
        Err(StoreError::LeaseLost) => tracing::warn!("another worker has this build now"),
        // The lease runs out and the next worker finds the build: nothing is lost but time.
        Err(error) => tracing::error!(error = %chain(&error), "the build's end could not be written"),
    }
}

fn interrupted(build: &Build) -> BuildFailure {
    BuildFailure::infrastructure(
        TemplateFailurePhase::Interrupted,
        reason::ATTEMPTS_SPENT,
        format!("the build was interrupted {} times, each time because its worker stopped", build.max_attempts),
    )
}

async fn attempt(inner: &Arc<Inner>, lease: &Lease, build: &Build, log: BuildLog) -> Result<(), StoreError> {
    let (stop_tx, mut stop) = watch::channel(None);
    let nudge = inner.running.enter(build.id);
    let heartbeat =
        AbortOnDropHandle::new(tokio::spawn(heartbeats(Arc::clone(inner), lease.clone(), Arc::clone(&nudge), stop_tx)));

    let began = Instant::now();
    let scope = Scope::new(build);
    let result = {
        let run = pipeline::run(inner, build, lease, &log, &scope);
        tokio::select! {
            biased;
            () = scope.overran.cancelled() => Err(Stop::Overran),
            stopped = stop.wait_for(Option::is_some) => Err(stopped.ok().and_then(|stop| *stop).unwrap_or(Stop::LeaseLost)),
            result = tokio::time::timeout(inner.config.build_timeout, run) => Ok(result),
        }
    };
    if let Ok(Ok(Err(pipeline::Error::Build(failure)))) = &result
        && failure.reason == reason::MACHINE_FAILED
        && let Some(console) = scope.console_tail()
    {
        tracing::warn!(console, "the failed machine's console");
    }
    let had_machine = scope.has_machine();
    let full = scope.lost_writes() || inner.disk_was_full(began);
    // The lease is held while the machine ends and the folder goes, and until the end is written.
    scope.close().await;
    let ended = end(inner, lease, build, &scope, result, Full { full, had_machine }).await;
    drop(heartbeat);
    inner.running.leave(build.id);
    ended
}

/// What a run came to: why it was stopped, that it took too long, or what the pipeline says.
type Outcome = Result<Result<Result<FinishReady, pipeline::Error>, tokio::time::error::Elapsed>, Stop>;

/// What is known of the host's disk during a run.
#[derive(Debug, Clone, Copy)]
struct Full {
    /// It was full.
    full: bool,
    /// A machine ran when the run ended.
    had_machine: bool,
}

impl Full {
    /// Whether a full disk may have caused this failure. What a registry says of an image, for one, it did not.
    fn explains(self, failure: &BuildFailure) -> bool {
        self.full && (self.had_machine || [reason::INTERNAL, reason::MACHINE_FAILED].contains(&failure.reason))
    }
}

/// Writes what a run came to.
async fn end(
    inner: &Arc<Inner>,
    lease: &Lease,
    build: &Build,
    scope: &Scope,
    outcome: Outcome,
    full: Full,
) -> Result<(), StoreError> {
    let failed = match outcome {
        Ok(Ok(Ok(done))) => match finish_ready(inner, lease, build, done).await {
            Err(error) if error.is_storage_full() => BuildFailure::store(TemplateFailurePhase::Finalize, &error),
            written => return written,
        },
        Err(Stop::Cancelled) => return insist(inner, || finish_cancelled(inner, lease, build)).await,
        Err(Stop::LeaseLost) => return Err(StoreError::LeaseLost),
        Err(Stop::ShuttingDown) => {
            let message = "The service is shutting down; another worker will continue the build";
            return release(inner, lease, build, Release::HandBack, message).await;
        }
        Err(Stop::Overran) => BuildFailure::host_disk_full(TemplateFailurePhase::Interrupted),
        Ok(Err(_elapsed)) => {
            let limit = inner.config.build_timeout.as_secs();
            let failure = BuildFailure::user(
                TemplateFailurePhase::Interrupted,
                reason::BUILD_TIMEOUT,
                format!("the build took longer than this service allows ({limit} s)"),
                "Make the build shorter, or ask the operator to raise build_timeout_secs.",
            );
            failure.with("limit_secs", limit)
        }
        Ok(Ok(Err(pipeline::Error::Store(StoreError::LeaseLost)))) => return Err(StoreError::LeaseLost),
        Ok(Ok(Err(pipeline::Error::Store(error)))) => BuildFailure::store(TemplateFailurePhase::Interrupted, &error),
        Ok(Ok(Err(pipeline::Error::Build(failure)))) => failure,
    };
    let failure = if full.explains(&failed) { failed.for_want_of_room() } else { failed };
    if !failure.retryable || build.attempt >= build.max_attempts {
        return insist(inner, || finish_error(inner, lease, build, &failure, Some(scope.cache_summary()))).await;
    }
    tracing::warn!(reason = failure.reason, %failure, "attempt failed; it will be retried");
    let delay = RETRY_AFTER.saturating_mul(1 << build.attempt.min(8).saturating_sub(1));
    let message = format!(
        "Attempt {} of {} failed: {failure}; the next one starts in {} s",
        build.attempt,
        build.max_attempts,
        delay.as_secs()
    );
    insist(inner, || release(inner, lease, build, Release::RetryAfter(delay), &message)).await
}

/// Writes a build's end, again and again while the database refuses for a reason that may pass: room on its disk comes back
/// with what the build had there. Gives up after a lease's time; then the build is found by its lease, which runs out.
async fn insist<W>(inner: &Inner, write: impl Fn() -> W) -> Result<(), StoreError>
where
    W: Future<Output = Result<(), StoreError>>,
{
    let until = Instant::now() + inner.config.lease_ttl;
    loop {
        match write().await {
            Err(error) if error.is_retryable() && Instant::now() < until && !inner.shutdown.is_cancelled() => {
                tracing::warn!(error = %chain(&error), "a build's end is not written yet: trying again");
                tokio::time::sleep(POLL).await;
            }
            written => return written,
        }
    }
}

/// Names the published artifact. One that nobody names goes; but when it is not known whether the transaction happened,
/// it stays for the sweep of the next start.
async fn finish_ready(inner: &Inner, lease: &Lease, build: &Build, done: FinishReady) -> Result<(), StoreError> {
    let folder = done.folder.clone();
    let finished = inner.metadata.finish_ready(lease, done, Timestamp::now()).await;
    let unnamed = match &finished {
        Ok(Finished::CancelRequested) | Err(StoreError::LeaseLost | StoreError::Conflict { .. }) => true,
        // SQLite commits nothing when there is no room for it.
        Err(error) => error.is_storage_full(),
        Ok(Finished::Ready(_)) => false,
    };
    if unnamed && let Err(error) = inner.files.remove_artifact(&folder).await {
        tracing::warn!(error = %chain(&error), "an artifact without a name could not be removed");
    }
    match finished? {
        Finished::Ready(_) => {
            inner.credentials.forget(build.id);
            inner.metrics.ended("ready");
            tracing::info!("build is ready");
            Ok(())
        }
        Finished::CancelRequested => finish_cancelled(inner, lease, build).await,
    }
}

/// Keeps the lease and says when the run must stop.
async fn heartbeats(inner: Arc<Inner>, lease: Lease, nudge: Arc<Notify>, stop: watch::Sender<Option<Stop>>) {
    let ttl = inner.config.lease_ttl;
    let mut held_until = tokio::time::Instant::now() + ttl;
    loop {
        tokio::select! {
            () = inner.shutdown.cancelled() => { stop.send_replace(Some(Stop::ShuttingDown)); return; }
            () = nudge.notified() => {}
            () = tokio::time::sleep(ttl / 3) => {}
        }
        let asked = tokio::time::Instant::now();
        match inner.metadata.heartbeat(&lease, ttl, Timestamp::now()).await {
            Ok(answer) if answer.cancel_requested => {
                stop.send_replace(Some(Stop::Cancelled));
                // Go on holding the lease: ending the machine takes a moment.
            }
            Ok(_) => held_until = asked + ttl,
            Err(StoreError::LeaseLost) => {
                stop.send_replace(Some(Stop::LeaseLost));
                return;
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "heartbeat failed");
                // Past this moment another worker may have the build.
                if tokio::time::Instant::now() >= held_until {
                    stop.send_replace(Some(Stop::LeaseLost));
                    return;
                }
            }
        }
    }
}

async fn release(inner: &Inner, lease: &Lease, build: &Build, how: Release, message: &str) -> Result<(), StoreError> {
    let now = Timestamp::now();
    let mut retry = entry(build.into(), TemplateBuildLogKind::Retry, TemplateBuildLogLevel::Warn, message);
    if matches!(how, Release::RetryAfter(_)) {
        inner.metrics.retried();
    }
    retry.attempt = Some(build.attempt);
    retry.max_attempts = Some(build.max_attempts);
    inner.metadata.release_build(lease, how, vec![to_store(&retry, now)?], now).await
}

async fn finish_cancelled(inner: &Inner, lease: &Lease, build: &Build) -> Result<(), StoreError> {
    inner.credentials.forget(build.id);
    let now = Timestamp::now();
    let last = cancelled_entry(build);
    inner.metadata.finish_cancelled(lease, to_store(&last, now)?, now).await?;
    inner.metrics.ended("cancelled");
    tracing::info!("build is cancelled");
    Ok(())
}

/// The `cancelled` entry that ends a log.
pub(crate) fn cancelled_entry(build: &Build) -> nullspace_api::TemplateBuildLogEntry {
    entry(build.into(), TemplateBuildLogKind::Cancelled, TemplateBuildLogLevel::Warn, "Build cancelled")
}

async fn finish_error(
    inner: &Inner,
    lease: &Lease,
    build: &Build,
    failure: &BuildFailure,
    cache_summary: Option<TemplateBuildCacheSummary>,
) -> Result<(), StoreError> {
    inner.credentials.forget(build.id);
    let now = Timestamp::now();
    let detail = failure.detail(&build.id.to_string(), build.attempt, build.max_attempts);
    let phase = failure.phase.as_str().to_owned();
    let mut last =
        entry(build.into(), TemplateBuildLogKind::Error, TemplateBuildLogLevel::Error, failure.message.clone());
    last.phase = Some(phase.clone());
    last.error_detail = Some(detail.clone());
    let error = FinishError {
        phase,
        message: failure.message.clone(),
        detail: json!(detail),
        cache_summary: cache_summary.map(|summary| json!(summary)),
        entry: to_store(&last, now)?,
    };
    inner.metadata.finish_error(lease, error, now).await?;
    inner.metrics.failed(failure.phase.as_str(), failure.reason);
    if failure.reason == reason::MACHINE_FAILED && failure.retryable {
        tracing::error!(reason = failure.reason, phase = ?failure.phase, "build ended because machines fail on this host");
    } else {
        tracing::info!(reason = failure.reason, phase = ?failure.phase, "build ended with an error");
    }
    Ok(())
}
