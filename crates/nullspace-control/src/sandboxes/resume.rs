//! Resume: a paused sandbox runs again as a new one with an id of its own, or, for its use and after a stop of the service, as
//! itself.
//!
//! ```text
//!   paused ──resume──────> a new sandbox runs in its place        ─ one transaction gives the paused one up
//!   paused ──continue────> the same sandbox runs                  ─ one transaction ends its snapshot
//!      └── it cannot be resumed: it stays paused, and its snapshot usable
//! ```
//! However many requests use a paused sandbox at once, it is continued once; all of them wait for that.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use jiff::Timestamp;
use nullspace_api::{CreateSandboxRequest, ErrorResponseCode, LifecycleActorKind, LifecycleOperation};
use nullspace_db::{DbError, Idempotency, Sandbox, SandboxStatus, Snapshot, SnapshotKind};
use nullspace_host_interface::SandboxSpec;
use nullspace_types::{Caller, SandboxId, SnapshotId};
use serde_json::Value;
use tokio::sync::oneshot;

use super::joined;
use super::pause::not_ready;
use super::spec::{Config, later};
use super::start::{Begun, Origin, Start};
use crate::Inner;
use crate::error::{Error, Result, Stored, of_store};
use crate::lifecycle::Event;

/// Longest wait of a request for the end of a transition of the sandbox that it resumes.
pub(super) const TURN: Duration = Duration::from_secs(20);
/// Longest wait of a request for a sandbox that is continued.
const CONTINUED: Duration = Duration::from_secs(120);

/// A continuation that all who need it share.
type Continuation = Shared<BoxFuture<'static, Result<()>>>;

/// Sandboxes that are being continued. There are at most as many as paused sandboxes in use.
#[derive(Default)]
pub(super) struct Continuations(Mutex<HashMap<SandboxId, Continuation>>);

impl Continuations {
    fn all(&self) -> MutexGuard<'_, HashMap<SandboxId, Continuation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a sandbox is being continued.
    pub(super) fn has(&self, id: SandboxId) -> bool {
        self.all().contains_key(&id)
    }

    /// Waits for the end of those under way.
    pub(super) async fn ended(&self) {
        let under_way: Vec<Continuation> = self.all().values().cloned().collect();
        futures::future::join_all(under_way).await;
    }
}

impl std::fmt::Debug for Continuations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Continuations").finish_non_exhaustive()
    }
}

/// Why a paused sandbox is continued as itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// A request uses it.
    Used,
    /// The service is back.
    Restarted { remaining_ms: Option<u64> },
}

impl Inner {
    /// Resumes a paused sandbox by its own id or its snapshot's, or makes one from a reusable snapshot.
    pub(super) async fn resume(&self, caller: &Caller, id: &str, idempotency: Option<Idempotency>) -> Result<Sandbox> {
        let missing = || Error::sandbox_not_found(id);
        let snapshot = if let Ok(snapshot) = id.parse::<SnapshotId>() {
            match self.db.get_snapshot(caller, snapshot).await.or_missing(missing) {
                Ok(snapshot) => snapshot,
                Err(over) => return self.made_before(caller, id, idempotency).await?.ok_or(over),
            }
        } else {
            let sandbox = self.sandbox_of(caller, id.parse().map_err(|_| missing())?).await?;
            match (sandbox.status, sandbox.snapshot) {
                (SandboxStatus::Paused, Some(snapshot)) => {
                    self.db.get_snapshot(caller, snapshot).await.or_missing(missing)?
                }
                (SandboxStatus::Running | SandboxStatus::Creating, _) => {
                    return Err(Error::new(
                        ErrorResponseCode::TransitionConflict,
                        format!("sandbox {id} is not paused: there is nothing to resume"),
                    ));
                }
                _ => return Err(missing()),
            }
        };
        let began = Instant::now();
        let request = CreateSandboxRequest::default();
        let (begun, _) = self.create_from_snapshot(caller, snapshot, &request, idempotency).await?;
        let sandbox = begun.sandbox().clone();
        if let Begun::New(_) = begun {
            tracing::info!(sandbox_id = %sandbox.id, ms = began.elapsed().as_millis(), "sandbox is resumed");
        }
        Ok(sandbox)
    }

    /// Starts a new sandbox in place of the paused one that is stored in a snapshot.
    #[allow(clippy::too_many_arguments, reason = "each is a setting of the new sandbox")]
    pub(super) async fn resume_paused(
        &self,
        caller: &Caller,
        snapshot: Snapshot,
        id: SandboxId,
        config: Config,
        envs: BTreeMap<String, String>,
        metadata: Value,
        idempotency: Option<Idempotency>,
    ) -> Result<(Begun, Config)> {
        debug_assert_eq!(snapshot.kind, SnapshotKind::Pause);
        let paused = snapshot.sandbox;
        // Its row says `paused` a moment before the machine has ended. Whoever comes after another resume finds the snapshot over.
        let _turn = self.sandboxes.transitions.begin_within(paused, "resumed", TURN).await?;
        let _held = self.sandboxes.publications.hold(paused);
        let event =
            resume_requested(caller, &snapshot, id).reason("api").detail("timeout_action", config.at_timeout.word());
        let start = Start {
            caller,
            id,
            snapshot: self.resumable(&snapshot).await?,
            artifact: snapshot.artifact,
            template_ref: snapshot.template_ref.clone(),
            config: config.clone(),
            envs,
            metadata,
            origin: Origin::Paused(snapshot.id),
            spare: None,
            warm_pool: None,
            idempotency,
            event,
            missing: Error::sandbox_not_found(&paused.to_string()),
        };
        let begun = self.start_sandbox(start).await?;
        if let Begun::New(_) = begun {
            self.sandboxes.publications.over(paused);
        }
        self.collect.notify_one();
        Ok((begun, config))
    }

    /// Continues a paused sandbox as itself, once, however many ask. Returns when it runs.
    pub(super) async fn continue_shared(self: &Arc<Self>, caller: &Caller, id: SandboxId, why: Why) -> Result<()> {
        let shared = {
            let mut all = self.sandboxes.continuations.all();
            match all.get(&id) {
                Some(shared) => shared.clone(),
                None => {
                    let (inner, caller) = (Arc::clone(self), caller.clone());
                    let work = self.tasks.spawn(async move {
                        let done = inner.continue_as_itself(&caller, id, why).await;
                        inner.sandboxes.continuations.all().remove(&id);
                        done
                    });
                    let shared = work.map(joined).boxed().shared();
                    all.insert(id, shared.clone());
                    shared
                }
            }
        };
        match tokio::time::timeout(CONTINUED, shared).await {
            Ok(done) => done,
            Err(_) => Err(not_ready(id, "is still being resumed; try again")),
        }
    }

    async fn continue_as_itself(&self, caller: &Caller, id: SandboxId, why: Why) -> Result<()> {
        self.not_stopping()?;
        let began = Instant::now();
        let missing = || Error::sandbox_not_found(&id.to_string());
        let _turn = self.sandboxes.transitions.begin_within(id, "resumed", TURN).await?;
        let _held = self.sandboxes.publications.hold(id);
        let sandbox = self.sandbox_of(caller, id).await?;
        let snapshot = match (sandbox.status, sandbox.snapshot) {
            (SandboxStatus::Paused, Some(snapshot)) => {
                self.db.get_snapshot(caller, snapshot).await.or_missing(missing)?
            }
            (SandboxStatus::Running, _) => return Ok(()),
            (SandboxStatus::Creating, _) => return Err(not_ready(id, "is not running yet; try again")),
            _ => return Err(missing()),
        };
        let reason = match why {
            Why::Used => "auto_resume",
            Why::Restarted { .. } => "service_started",
        };
        let event = resume_requested(caller, &snapshot, id).by(LifecycleActorKind::System).reason(reason);
        self.lifecycle.record(event.clone());
        let done = self.continue_from(caller, &sandbox, &snapshot, why).await;
        match &done {
            Ok(()) => {
                self.sandboxes.publications.over(id);
                self.lifecycle.record(event.now_succeeded());
                tracing::info!(sandbox_id = %id, reason, ms = began.elapsed().as_millis(), "sandbox is resumed");
                self.collect.notify_one();
            }
            Err(error) => self.lifecycle.record(event.now_failed(error)),
        }
        done
    }

    async fn continue_from(&self, caller: &Caller, sandbox: &Sandbox, snapshot: &Snapshot, why: Why) -> Result<()> {
        let id = sandbox.id;
        let missing = || Error::sandbox_not_found(&id.to_string());
        let config = Config::stored(&sandbox.config)?;
        self.enforceable(&config)?;
        let envs = self.envs_of(sandbox)?;
        let spec = SandboxSpec { id, tenant: caller.tenant, snapshot: self.resumable(snapshot).await?, spare: None };
        let admitted = match why {
            Why::Used => self.admit(spec).await?,
            // Those that ran before the stop have room, or wait.
            Why::Restarted { .. } => self.host.admit_sandbox(spec).await?,
        };
        let (resumed, _) = oneshot::channel();
        let started = admitted.start(config.settings(envs), resumed).await?;
        let now = Timestamp::now();
        let timeout_at = match why {
            // Its timeout goes on. It is not due at once.
            Why::Used if snapshot.evicted => sandbox.timeout_at.map(|at| at.max(later(now, 1000))),
            Why::Used => Some(config.timeout_at(now)),
            // Not at once: whoever holds it has a moment to notice that it is back.
            Why::Restarted { remaining_ms } => remaining_ms.map(|ms| later(now, ms.max(1000))),
        };
        let error = match self.db.continue_paused(id, timeout_at, now).await {
            Ok(_) => None,
            Err(error @ (DbError::NotFound | DbError::Conflict { .. })) => {
                tracing::debug!(sandbox_id = %id, %error, "a sandbox was ended while it was resumed");
                started.discard().await;
                return Err(missing());
            }
            // Whether it was recorded is unknown. If it was, this machine has the only copy.
            Err(error) => match self.look(caller, id).await {
                Some(sandbox) if sandbox.status == SandboxStatus::Running => None,
                Some(_) => {
                    started.discard().await;
                    return Err(of_store(error));
                }
                None => Some(of_store(error)),
            },
        };
        if !started.run(config.limits(timeout_at)).await {
            return Err(missing());
        }
        error.map_or(Ok(()), Err)
    }
}

/// The event of a sandbox that is to be made from a snapshot.
pub(super) fn resume_requested(caller: &Caller, snapshot: &Snapshot, target: SandboxId) -> Event {
    Event::requested(caller.tenant, LifecycleOperation::ResumeFromSnapshot)
        .sandbox(target)
        .snapshot(snapshot.id)
        .source(snapshot.sandbox)
        .target(target)
}
