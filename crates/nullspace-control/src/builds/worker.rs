//! Workers: each takes builds from the queue and brings them to their end.
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
//! A run's machine, folder and threads on this host are gone *before* its end is written. A final status means that nothing
//! is left behind.
//!
//! Only the task that runs a build writes its row and its log. Others ask it: through the database (`cancel_requested`, seen
//! at the next heartbeat), and in the same process through [`Running`], which brings the heartbeat forward.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nullspace_api::{
    TemplateBuildCacheSummary, TemplateBuildLogKind, TemplateBuildLogLevel, TemplateBuildResultMetadata,
    TemplateFailurePhase,
};
use nullspace_db::{Build, DbError, FinishError, FinishReady, Finished, Lease, Leased, Release};
use nullspace_definition::Definition;
use nullspace_host_interface::{BuildEnd, BuildFailure, BuildJob, BuildStop, Made, RecordError, entry, reason};
use nullspace_service::chain;
use nullspace_types::BuildId;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::logs::{ids, to_store};
use super::record::Record;
use crate::catalog::publication;
use crate::catalog::wire::column;
use crate::{ControlConfig, Inner};

/// Longest wait of an idle worker for a notification before it asks the queue again.
const POLL: Duration = Duration::from_secs(1);
/// Pause before another attempt, doubled with each attempt.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Builds that run in this process, each with the notification of its heartbeat.
#[derive(Debug, Default)]
pub(crate) struct Running {
    builds: Mutex<HashMap<BuildId, Arc<Notify>>>,
}

impl Running {
    /// Makes the build's worker check now whether to go on.
    pub(crate) fn ask_now(&self, build: BuildId) {
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

/// The reasons for which control stops a run before its own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Cancelled,
    LeaseLost,
    ShuttingDown,
    /// It has run for the longest time that the service allows.
    TimeOver,
}

/// Runs one worker. Returns when the service shuts down and its build, if any, is handed back.
pub(crate) async fn work(inner: Arc<Inner>) {
    let mut storage_down = false;
    while !inner.shutdown.is_cancelled() {
        if !inner.host.has_room().await {
            // The host's log says so. Builds wait as they do for a free worker.
            tokio::select! {
                () = inner.shutdown.cancelled() => {}
                () = tokio::time::sleep(POLL) => {}
            }
            continue;
        }
        let ControlConfig { host, lease_ttl, running_per_tenant, .. } = &inner.config;
        match inner.db.lease_build(host, *lease_ttl, *running_per_tenant, Timestamp::now()).await {
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
            () = inner.builds.queued.notified() => {}
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
    let end = if build.cancel_requested_at.is_some() {
        // A request to cancel outlives the worker that it was meant for.
        finish_cancelled(inner, &lease, &build).await
    } else if spent {
        finish_error(inner, &lease, &build, &interrupted(&build), None).await
    } else {
        attempt(inner, &lease, &build).await
    };
    inner.builds.hub.notify(build.id);
    match end {
        Ok(()) => {}
        Err(DbError::LeaseLost) => tracing::warn!("another worker has this build now"),
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

async fn attempt(inner: &Arc<Inner>, lease: &Lease, build: &Build) -> Result<(), DbError> {
    let definition: Definition = match column("builds.definition", &build.definition.0) {
        Ok(definition) => definition,
        Err(error) => {
            let failure = stored(&error);
            return insist(inner, || finish_error(inner, lease, build, &failure, None)).await;
        }
    };
    let (stop_tx, mut stop) = watch::channel(None);
    let wake = inner.builds.running.enter(build.id);
    let heartbeat =
        AbortOnDropHandle::new(tokio::spawn(heartbeats(Arc::clone(inner), lease.clone(), Arc::clone(&wake), stop_tx)));

    let job = BuildJob {
        build: build.id,
        artifact: build.artifact_id,
        tenant: build.tenant,
        attempt: build.attempt,
        epoch: lease.epoch,
        definition,
        context_digest: build.context_digest.clone(),
        secrets: inner.builds.credentials.get(build.id),
    };
    let record = Arc::new(Record::new(Arc::clone(inner), lease.clone(), build.clone()));
    let halt = CancellationToken::new();
    let mut run = inner.host.build(job.clone(), record, halt.clone());
    let asked = async {
        let stopped = stop.wait_for(Option::is_some).await;
        stopped.ok().and_then(|stop| *stop).unwrap_or(Stop::LeaseLost)
    };
    let first = tokio::select! {
        biased;
        why = asked => Err(why),
        ended = &mut run => Ok(ended),
        () = tokio::time::sleep(inner.config.build_timeout) => Err(Stop::TimeOver),
    };
    // The lease is held while the machine ends and the folder goes, and until the end is written.
    let (ended, stopped) = match first {
        Ok(ended) => (ended, None),
        Err(why) => {
            halt.cancel();
            (run.await, Some(why))
        }
    };
    let written = end(inner, lease, build, &job.definition, ended, stopped).await;
    drop(heartbeat);
    inner.builds.running.leave(build.id);
    written
}

/// The failure of a build by an error of the database.
fn stored(error: &DbError) -> BuildFailure {
    let phase = TemplateFailurePhase::Interrupted;
    if error.is_storage_full() {
        BuildFailure::host_disk_full(phase)
    } else {
        BuildFailure::internal(phase, &chain(error))
    }
}

/// Writes the end of a run.
async fn end(
    inner: &Arc<Inner>,
    lease: &Lease,
    build: &Build,
    definition: &Definition,
    ended: BuildEnd,
    stopped: Option<Stop>,
) -> Result<(), DbError> {
    let BuildEnd { outcome, cache, pressure } = ended;
    let failed = match (stopped, outcome) {
        (Some(Stop::Cancelled), outcome) => {
            discard(inner, outcome).await;
            return insist(inner, || finish_cancelled(inner, lease, build)).await;
        }
        (Some(Stop::LeaseLost), outcome) => {
            discard(inner, outcome).await;
            return Err(DbError::LeaseLost);
        }
        (Some(Stop::ShuttingDown), outcome) => {
            discard(inner, outcome).await;
            let message = "The service is shutting down; another worker will continue the build";
            return release(inner, lease, build, Release::HandBack, message).await;
        }
        (_, Ok(made)) => match finish_ready(inner, lease, build, definition, made, cache).await {
            Err(error) if error.is_storage_full() => BuildFailure::host_disk_full(TemplateFailurePhase::Finalize),
            written => return written,
        },
        (Some(Stop::TimeOver), Err(_)) => {
            let limit = inner.config.build_timeout.as_secs();
            let failure = BuildFailure::user(
                TemplateFailurePhase::Interrupted,
                reason::BUILD_TIMEOUT,
                format!("the build took longer than this service allows ({limit} s)"),
                "Make the build shorter, or ask the operator to raise build_timeout_secs.",
            );
            failure.with("limit_secs", limit)
        }
        (None, Err(BuildStop::Overran)) => BuildFailure::host_disk_full(TemplateFailurePhase::Interrupted),
        (None, Err(BuildStop::Failed(failure))) => failure,
        (None, Err(BuildStop::Record(RecordError::LeaseLost))) => return Err(DbError::LeaseLost),
        (None, Err(BuildStop::Record(RecordError::StorageFull(_)))) => {
            BuildFailure::host_disk_full(TemplateFailurePhase::Interrupted)
        }
        (None, Err(stop @ (BuildStop::Record(_) | BuildStop::Stopped))) => {
            BuildFailure::internal(TemplateFailurePhase::Interrupted, &stop)
        }
    };
    let failure = if pressure.explains(&failed) { failed.for_want_of_room() } else { failed };
    if !failure.retryable || build.attempt >= build.max_attempts {
        return insist(inner, || finish_error(inner, lease, build, &failure, Some(cache))).await;
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

/// Removes the files of a run that was stopped at its very end: no row will name them.
async fn discard(inner: &Inner, outcome: Result<Made, BuildStop>) {
    let Ok(made) = outcome else { return };
    if let Err(error) = inner.host.remove_artifact(&made.folder).await {
        tracing::warn!(%error, "an artifact without a name could not be removed");
    }
}

/// Writes a build's end. Retries while the database refuses for a reason that may pass: a full disk has space again once the
/// build's files are removed. Gives up after a lease's time; the lease then runs out, and another worker finds the build.
async fn insist<W>(inner: &Inner, write: impl Fn() -> W) -> Result<(), DbError>
where
    W: Future<Output = Result<(), DbError>>,
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

/// Names the published artifact in the database, and removes it if the database refuses the name. When the outcome of the
/// transaction is unknown, the files stay for the sweep of the next start.
async fn finish_ready(
    inner: &Inner,
    lease: &Lease,
    build: &Build,
    definition: &Definition,
    made: Made,
    cache: TemplateBuildCacheSummary,
) -> Result<(), DbError> {
    let folder = made.folder.clone();
    let finished = async {
        if let Some(warning) = publication::of_ready(inner, build, definition, &made.runtime).await? {
            let mut line = entry(ids(build), TemplateBuildLogKind::Message, TemplateBuildLogLevel::Warn, warning);
            line.phase = Some("finalize".to_owned());
            let now = Timestamp::now();
            inner.db.append_log(lease, vec![to_store(&line, now)?]).await?;
        }
        let ready = ready(inner, build, made, cache).await?;
        inner.db.finish_ready(lease, ready, Timestamp::now()).await
    };
    let finished = finished.await;
    let unnamed = match &finished {
        Ok(Finished::CancelRequested) | Err(DbError::LeaseLost | DbError::Conflict { .. }) => true,
        // SQLite commits nothing when there is no room for it.
        Err(error) => error.is_storage_full(),
        Ok(Finished::Ready(_)) => false,
    };
    if unnamed && let Err(error) = inner.host.remove_artifact(&folder).await {
        tracing::warn!(%error, "an artifact without a name could not be removed");
    }
    match finished? {
        Finished::Ready(_) => {
            inner.host.artifact_named(&folder);
            inner.builds.credentials.forget(build.id);
            inner.metrics.ended("ready");
            tracing::info!("build is ready");
            Ok(())
        }
        Finished::CancelRequested => finish_cancelled(inner, lease, build).await,
    }
}

/// Collects the values of the transaction that makes the build ready.
async fn ready(
    inner: &Inner,
    build: &Build,
    made: Made,
    cache: TemplateBuildCacheSummary,
) -> Result<FinishReady, DbError> {
    let runtime_defaults = made.runtime.shown();
    let mut last = entry(
        ids(build),
        TemplateBuildLogKind::End,
        TemplateBuildLogLevel::Info,
        format!("Template {} is ready", build.canonical_ref()),
    );
    last.result = Some(inner.ready_info(build, &runtime_defaults).await?);
    last.result_metadata = Some(TemplateBuildResultMetadata {
        runtime_defaults: Some(runtime_defaults.clone()),
        oci_metadata: made.oci_metadata.clone(),
    });
    Ok(FinishReady {
        folder: made.folder,
        streams: Some(made.streams),
        rootfs_key: made.rootfs_key,
        disk_bytes: made.disk_bytes,
        stored_bytes: made.stored_bytes,
        compatibility: made.compatibility,
        snapshot: made.snapshot,
        runtime: json!(made.runtime).into(),
        runtime_defaults: json!(runtime_defaults),
        oci_metadata: made.oci_metadata.as_ref().map(|metadata| json!(metadata)),
        cache_summary: Some(json!(cache)),
        retention_expires_at: retention(inner.config.untagged_retention),
        final_key: Some(made.final_key),
        entry: to_store(&last, Timestamp::now())?,
    })
}

/// The time at which an artifact made now may be removed, unless a tag points to it. `None` means for ever: the time is
/// beyond the clock's range.
pub(crate) fn retention(keep: Duration) -> Option<Timestamp> {
    Timestamp::now().checked_add(jiff::SignedDuration::try_from(keep).ok()?).ok()
}

/// Renews the lease, and returns when the run must stop.
async fn heartbeats(inner: Arc<Inner>, lease: Lease, wake: Arc<Notify>, stop: watch::Sender<Option<Stop>>) {
    let ttl = inner.config.lease_ttl;
    let mut held_until = tokio::time::Instant::now() + ttl;
    loop {
        tokio::select! {
            () = inner.shutdown.cancelled() => { stop.send_replace(Some(Stop::ShuttingDown)); return; }
            () = wake.notified() => {}
            () = tokio::time::sleep(ttl / 3) => {}
        }
        let asked = tokio::time::Instant::now();
        match inner.db.heartbeat(&lease, ttl, Timestamp::now()).await {
            Ok(answer) if answer.cancel_requested => {
                stop.send_replace(Some(Stop::Cancelled));
                // Go on holding the lease: ending the machine takes a moment.
            }
            Ok(_) => held_until = asked + ttl,
            Err(DbError::LeaseLost) => {
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

async fn release(inner: &Inner, lease: &Lease, build: &Build, how: Release, message: &str) -> Result<(), DbError> {
    let now = Timestamp::now();
    let mut retry = entry(ids(build), TemplateBuildLogKind::Retry, TemplateBuildLogLevel::Warn, message);
    if matches!(how, Release::RetryAfter(_)) {
        inner.metrics.retried();
    }
    retry.attempt = Some(build.attempt);
    retry.max_attempts = Some(build.max_attempts);
    inner.db.release_build(lease, how, vec![to_store(&retry, now)?], now).await
}

async fn finish_cancelled(inner: &Inner, lease: &Lease, build: &Build) -> Result<(), DbError> {
    inner.builds.credentials.forget(build.id);
    let now = Timestamp::now();
    let last = cancelled_entry(build);
    inner.db.finish_cancelled(lease, to_store(&last, now)?, now).await?;
    inner.metrics.ended("cancelled");
    tracing::info!("build is cancelled");
    Ok(())
}

/// The `cancelled` entry that ends a log.
pub(crate) fn cancelled_entry(build: &Build) -> nullspace_api::TemplateBuildLogEntry {
    entry(ids(build), TemplateBuildLogKind::Cancelled, TemplateBuildLogLevel::Warn, "Build cancelled")
}

async fn finish_error(
    inner: &Inner,
    lease: &Lease,
    build: &Build,
    failure: &BuildFailure,
    cache_summary: Option<TemplateBuildCacheSummary>,
) -> Result<(), DbError> {
    inner.builds.credentials.forget(build.id);
    let now = Timestamp::now();
    let detail = failure.detail(&build.id.to_string(), build.attempt, build.max_attempts);
    let phase = failure.phase.as_str().to_owned();
    let mut last =
        entry(ids(build), TemplateBuildLogKind::Error, TemplateBuildLogLevel::Error, failure.message.clone());
    last.phase = Some(phase.clone());
    last.error_detail = Some(detail.clone());
    let error = FinishError {
        phase,
        message: failure.message.clone(),
        detail: json!(detail),
        cache_summary: cache_summary.map(|summary| json!(summary)),
        entry: to_store(&last, now)?,
    };
    inner.db.finish_error(lease, error, now).await?;
    inner.metrics.failed(failure.phase.as_str(), failure.reason);
    let of_machine = [reason::MACHINE_FAILED, reason::SNAPSHOT_TRIAL_FAILED].contains(&failure.reason);
    if of_machine && failure.retryable {
        tracing::error!(reason = failure.reason, phase = ?failure.phase, "build ended because machines fail on this host");
    } else {
        tracing::info!(reason = failure.reason, phase = ?failure.phase, "build ended with an error");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_that_the_databases_full_disk_ended_is_retried_and_names_the_hosts_disk() {
        let failed = |number| {
            let source = std::io::Error::from_raw_os_error(number);
            stored(&DbError::Io { context: "write the database".into(), source })
        };
        for number in [28 /* ENOSPC */, 122 /* EDQUOT */] {
            let failure = failed(number);
            assert_eq!((failure.reason, failure.retryable), (reason::HOST_DISK_FULL, true), "{failure:?}");
            assert!(failure.message.contains("the host's disk was full"), "{failure:?}");
        }
        assert_eq!(failed(5 /* EIO */).reason, reason::INTERNAL);
    }
}
