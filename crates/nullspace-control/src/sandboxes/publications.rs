//! Publications: captures of paused sandboxes are stored as chunks after the pause has been answered.
//!
//! ```text
//!   pause ── admit ──> capture, row ── publish_behind ──> waits ──one of a few──> publish ──> row has its files ──> raw ones go
//!              │                                            ^  ^                     │
//!              │ too much waits                             │  └── resumed: held ────┤
//!              └──> published before the answer             └── failed: flushed, ────┤
//!                                                               tried again          └── over: nothing is left to do
//!   stop ── waits within its bound ──> flushed, left to the next start
//!   start ── rows without files ──> whole: waits     torn by a crash of the host: the sandbox is lost
//! ```
//! The row of a capture is its journal: a snapshot without files, and the name of the raw ones on the host. Until it has files the
//! sandbox is resumed from the raw ones. Only the end of the sandbox removes them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use nullspace_db::{SandboxStatus, Snapshot};
use nullspace_host_interface::{CaptureLeft, PublishedCapture};
use nullspace_service::chain;
use nullspace_types::{Caller, SandboxId, SnapshotId, Streams};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::restart::reconciled;
use crate::Inner;
use crate::collect::Broken;
use crate::error::{Error, Result, of_host};

/// Most captures that wait, and most bytes of them. Beyond, a pause publishes before it answers.
const MOST: usize = 32;
const MOST_BYTES: u64 = 8 << 30;
/// Captures that are published at once.
const AT_ONCE: usize = 2;
/// Time before a publication that failed is tried again; doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Longest time for captures to be flushed when the service stops.
const FLUSHED: Duration = Duration::from_secs(30);
/// Longest wait of a request for the publication of a snapshot that it needs.
const WAIT: Duration = Duration::from_secs(60);
/// Reason of a sandbox whose capture a crash of the host has torn.
const TORN: &str = "lost: the host crashed before the paused sandbox was stored";

/// The captures that are not stored yet.
#[derive(Debug)]
pub(super) struct Publications {
    state: Mutex<State>,
    /// Something is held no more, is over, or has ended.
    changed: Notify,
    turns: Semaphore,
    /// The service ends: what is not stored is flushed and left.
    closing: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    waiting: HashMap<u64, Waiting>,
    /// Sandboxes that are being resumed, how often.
    held: HashMap<SandboxId, usize>,
}

#[derive(Debug)]
struct Waiting {
    sandbox: SandboxId,
    bytes: u64,
    /// Its sandbox was resumed or has ended: nobody wants it.
    over: CancellationToken,
    /// Ends the attempt that runs.
    attempt: CancellationToken,
}

/// A capture that waits. Dropping it ends the wait.
#[derive(Debug)]
pub(super) struct Place {
    all: Arc<Publications>,
    number: u64,
    sandbox: SandboxId,
    over: CancellationToken,
}

/// While it lives, no capture of the sandbox is published: its resume does not share the processors with that.
#[derive(Debug)]
pub(super) struct Hold {
    all: Arc<Publications>,
    sandbox: SandboxId,
}

/// A capture to publish.
#[derive(Debug, Clone)]
pub(super) struct Capture {
    pub(super) snapshot: Snapshot,
    /// Files of the snapshot that the sandbox was resumed from.
    pub(super) resumed_from: Option<Streams>,
}

impl Default for Publications {
    fn default() -> Publications {
        Publications {
            state: Mutex::default(),
            changed: Notify::new(),
            turns: Semaphore::new(AT_ONCE),
            closing: CancellationToken::new(),
        }
    }
}

impl Publications {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a capture of so many bytes; `None` when too much waits already.
    pub(super) fn admit(self: &Arc<Self>, sandbox: SandboxId, bytes: u64) -> Option<Place> {
        let mut state = self.state();
        let waiting: u64 = state.waiting.values().map(|other| other.bytes).sum();
        if state.waiting.len() >= MOST || waiting.saturating_add(bytes) > MOST_BYTES {
            return None;
        }
        Some(self.enter(&mut state, sandbox, bytes))
    }

    /// A place for a capture of an earlier run.
    fn take_up(self: &Arc<Self>, sandbox: SandboxId, bytes: u64) -> Place {
        self.enter(&mut self.state(), sandbox, bytes)
    }

    fn enter(self: &Arc<Self>, state: &mut State, sandbox: SandboxId, bytes: u64) -> Place {
        let (number, over) = (state.next, CancellationToken::new());
        state.next += 1;
        let attempt = CancellationToken::new();
        state.waiting.insert(number, Waiting { sandbox, bytes, over: over.clone(), attempt });
        Place { all: Arc::clone(self), number, sandbox, over }
    }

    /// Gives up the captures of a sandbox, which has ended or runs.
    pub(super) fn over(&self, sandbox: SandboxId) {
        for waiting in self.state().waiting.values().filter(|waiting| waiting.sandbox == sandbox) {
            waiting.over.cancel();
            waiting.attempt.cancel();
        }
        self.changed.notify_waiters();
    }

    /// Ends attempts to publish captures of a sandbox, and begins none, until the value is dropped.
    pub(super) fn hold(self: &Arc<Self>, sandbox: SandboxId) -> Hold {
        let mut state = self.state();
        *state.held.entry(sandbox).or_default() += 1;
        for waiting in state.waiting.values().filter(|waiting| waiting.sandbox == sandbox) {
            waiting.attempt.cancel();
        }
        Hold { all: Arc::clone(self), sandbox }
    }

    /// Waits until no capture waits.
    async fn ended(&self) {
        self.until(|state| state.waiting.is_empty()).await;
    }

    /// Waits until no capture of this sandbox waits.
    async fn ended_of(&self, sandbox: SandboxId) {
        self.until(|state| state.waiting.values().all(|waiting| waiting.sandbox != sandbox)).await;
    }

    async fn until(&self, is: impl Fn(&State) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if is(&self.state()) {
                return;
            }
            changed.await;
        }
    }

    /// Number of captures that wait.
    #[cfg(test)]
    pub(super) fn number(&self) -> usize {
        self.state().waiting.len()
    }
}

impl Place {
    /// Waits for a turn, and until nothing holds the sandbox. The attempt must end when its token is cancelled.
    async fn attempt(&self) -> (Option<SemaphorePermit<'_>>, CancellationToken) {
        let free = || self.all.until(|state| !state.held.contains_key(&self.sandbox));
        loop {
            free().await;
            // It is never closed.
            let turn = self.all.turns.acquire().await.ok();
            let mut state = self.all.state();
            let held = state.held.contains_key(&self.sandbox);
            if let Some(waiting) = state.waiting.get_mut(&self.number).filter(|_| !held) {
                waiting.attempt = self.over.child_token();
                return (turn, waiting.attempt.clone());
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.state().waiting.remove(&self.number);
        self.all.changed.notify_waiters();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.all.state();
        if let Some(number) = state.held.get_mut(&self.sandbox) {
            *number -= 1;
            if *number == 0 {
                state.held.remove(&self.sandbox);
            }
        }
        drop(state);
        self.all.changed.notify_waiters();
    }
}

impl Inner {
    /// Publishes a capture that no row names yet. For a pause for which there is no place.
    pub(super) async fn publish_at_once(&self, folder: &str, similar: Vec<Streams>) -> Result<PublishedCapture> {
        let published = self.host.publish_capture(folder, similar, CancellationToken::new()).await;
        published.map_err(of_host)
    }

    /// Publishes a capture whose pause is recorded, behind its answer.
    pub(super) fn publish_behind(&self, place: Place, capture: Capture) {
        let Some(inner) = self.me.upgrade() else { return };
        self.tasks.spawn(async move { inner.publish_until_stored(place, capture).await });
    }

    async fn publish_until_stored(&self, place: Place, capture: Capture) {
        let closing = &self.sandboxes.publications.closing;
        let (sandbox, folder) = (capture.snapshot.sandbox, &capture.snapshot.folder);
        let (mut wait, mut flushed) = (FIRST_WAIT, false);
        loop {
            let attempt = tokio::select! {
                biased;
                () = place.over.cancelled() => return,
                () = closing.cancelled() => None,
                attempt = place.attempt() => Some(attempt),
            };
            let failed = match attempt {
                None => None,
                Some((_turn, attempt)) => {
                    // Its end ends the attempt, too.
                    let publish = self.publish(&capture, attempt.clone());
                    tokio::pin!(publish);
                    let done = tokio::select! {
                        done = &mut publish => done,
                        () = closing.cancelled() => {
                            attempt.cancel();
                            publish.await
                        }
                    };
                    match done {
                        Ok(()) => return,
                        Err(_) if place.over.is_cancelled() => return,
                        Err(_) if attempt.is_cancelled() && !closing.is_cancelled() => continue,
                        Err(error) => Some(error),
                    }
                }
            };
            if let Some(error) = failed.as_ref().filter(|_| !closing.is_cancelled()) {
                let (error, secs) = (chain(error), wait.as_secs());
                tracing::warn!(sandbox_id = %sandbox, folder, error, secs, "a paused sandbox is not stored yet: tried again");
            }
            // It may take longer: the host may crash meanwhile.
            if !flushed {
                match self.host.flush_capture(folder).await {
                    Ok(()) => flushed = true,
                    Err(error) => tracing::warn!(sandbox_id = %sandbox, folder, %error, "a capture is not flushed"),
                }
            }
            // A service that stops does not wait for what has failed.
            if closing.is_cancelled() || self.shutdown.is_cancelled() {
                tracing::info!(sandbox_id = %sandbox, folder, "a paused sandbox is stored after the next start");
                return;
            }
            tokio::select! {
                () = place.over.cancelled() => return,
                () = self.shutdown.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Publishes a capture, and gives its row its files.
    async fn publish(&self, capture: &Capture, attempt: CancellationToken) -> std::result::Result<(), Broken> {
        let Capture { snapshot, resumed_from } = capture;
        let (folder, began) = (&snapshot.folder, Instant::now());
        let mut similar: Vec<Streams> = resumed_from.iter().cloned().collect();
        similar.extend(self.template_streams(snapshot.artifact).await);
        let published = self.host.publish_capture(folder, similar, attempt).await?;
        let named = self.db.set_streams(snapshot.id, &published.streams, published.stored_bytes).await?;
        self.host.artifact_named(folder);
        if !named {
            // Over meanwhile. The capture goes with its row.
            return Ok(());
        }
        self.drop_published(folder).await;
        let (ms, stored_bytes) = (began.elapsed().as_millis(), published.stored_bytes);
        tracing::info!(sandbox_id = %snapshot.sandbox, folder, ms, stored_bytes, "a paused sandbox is stored");
        Ok(())
    }

    /// Removes a capture's raw files, after its row has the stored ones.
    pub(super) async fn drop_published(&self, folder: &str) {
        if let Err(error) = self.host.drop_capture(folder).await {
            tracing::warn!(folder, error = %chain(&error), "a capture that is stored stays until the next start");
        }
    }

    /// Returns a snapshot when it is stored, for what needs more than the raw files.
    ///
    /// # Errors
    /// `sandbox_not_ready` when it takes too long; try again.
    pub(super) async fn stored_snapshot(&self, caller: &Caller, snapshot: Snapshot) -> Result<Snapshot> {
        if snapshot.streams.is_some() {
            return Ok(snapshot);
        }
        let (id, sandbox) = (snapshot.id, snapshot.sandbox);
        let _ = tokio::time::timeout(WAIT, self.sandboxes.publications.ended_of(sandbox)).await;
        let snapshot = self.snapshot_of(caller, &id.to_string()).await?;
        match snapshot.streams {
            Some(_) => Ok(snapshot),
            None => Err(not_stored(id)),
        }
    }

    /// Takes up the captures that an earlier run has not published. Sandboxes whose captures a crash of the host has torn are lost.
    pub(crate) async fn take_up_captures(&self, now: Timestamp) -> std::result::Result<Vec<Unpublished>, Broken> {
        let mut found = Vec::new();
        for snapshot in self.db.captures(&self.config.host).await? {
            let (sandbox, tenant) = (snapshot.sandbox, snapshot.tenant);
            match self.host.capture_left(&snapshot.folder).await? {
                CaptureLeft::Whole => {
                    let place = self.sandboxes.publications.take_up(sandbox, snapshot.size_bytes);
                    found.push(Unpublished { place, capture: Capture { snapshot, resumed_from: None } });
                }
                CaptureLeft::Torn => {
                    tracing::error!(sandbox_id = %sandbox, folder = snapshot.folder, "a paused sandbox is lost: {TORN}");
                    self.db.set_sandbox_status(sandbox, SandboxStatus::Error, Some(TORN), now).await?;
                    self.lifecycle.record(reconciled(tenant, sandbox, TORN));
                }
                // Nothing is given up because it is not seen.
                CaptureLeft::Missing => {
                    tracing::error!(sandbox_id = %sandbox, folder = snapshot.folder, "the files of a paused sandbox are missing");
                }
            }
        }
        Ok(found)
    }

    /// Waits for publications until `deadline`. What is not stored by then is flushed, and left to the next start.
    pub(super) async fn stop_publications(&self, deadline: Instant) {
        let publications = &self.sandboxes.publications;
        let _ = tokio::time::timeout_at(deadline, publications.ended()).await;
        publications.closing.cancel();
        if tokio::time::timeout(FLUSHED, publications.ended()).await.is_err() {
            tracing::error!("not all captures of paused sandboxes were flushed in time");
        }
    }
}

/// A capture of an earlier run.
#[derive(Debug)]
pub(crate) struct Unpublished {
    place: Place,
    capture: Capture,
}

/// Publishes the captures of an earlier run.
pub(crate) fn publish_all(inner: &Inner, captures: Vec<Unpublished>) {
    for Unpublished { place, capture } in captures {
        inner.publish_behind(place, capture);
    }
}

fn not_stored(id: SnapshotId) -> Error {
    Error {
        retry_after: Some(Duration::from_secs(5)),
        ..Error::new(
            nullspace_api::ErrorResponseCode::SandboxNotReady,
            format!("snapshot {id} is not stored yet; try again"),
        )
    }
}
