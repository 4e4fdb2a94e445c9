//! The start of a sandbox: from a template, a snapshot, a paused sandbox's snapshot, or a running sandbox.
//!
//! ```text
//!   admit ──┬── machine:  start the VMM ──resumed──> give the guest its identity ──┬── live
//!           └── database: insert `creating` ········> set `running` ───────────────┘
//!
//!   in place of a paused one:  … identity given ──> one transaction: `running`, the paused one and its snapshot over ──> live
//! ```
//! Each commit waits for the disk, so machine and database go side by side. This is safe because:
//! - The insert fails if the template or snapshot was deleted meanwhile, and its answer is awaited before the machine's. The machine
//!   is then ended. Once the row is there, the artifact is in use and stays.
//! - A request with an idempotency key is inserted first: a repetition starts no machine.
//! - A sandbox that is ended while it starts loses its place on the host. Its start finds that out when the machine is ready,
//!   and ends the machine. The task that ends the sandbox waits for that.
//! - A killed service takes its machines along, and the next start ends the rows that it left.
//! - A paused sandbox is given up only when its successor's guest has confirmed its identity. Before that, the start fails and the
//!   paused one stays.

use std::collections::BTreeMap;
use std::future::ready;
use std::time::Duration;

use futures::future::Either;
use jiff::Timestamp;
use nullspace_api::ErrorResponseCode;
use nullspace_db::{DbError, Idempotency, Inserted, NewSandbox, Sandbox, SandboxStatus, Snapshot as StoredSnapshot};
use nullspace_definition::runtime::Runtime;
use nullspace_host_interface::{SandboxSpec, Snapshot, StartedSandbox, Unfit};
use nullspace_service::chain;
use nullspace_types::{ArtifactId, Caller, SandboxId, SnapshotId, SpareId, WarmPoolId};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::spec::Config;
use crate::Inner;
use crate::catalog::wire::column;
use crate::error::{Error, Result, Stored, internal, of_store};
use crate::lifecycle::Event;

/// Time between two looks at a row whose change the database has not answered, and their number.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const LOOKS: u32 = 40;
/// Time after which a caller tries again while the service stops.
const STOPPING: Duration = Duration::from_secs(5);

/// A sandbox to start.
pub(super) struct Start<'a> {
    pub(super) caller: &'a Caller,
    pub(super) id: SandboxId,
    /// What it resumes.
    pub(super) snapshot: Snapshot,
    /// The machine that it takes, which is resumed already.
    pub(super) spare: Option<SpareId>,
    pub(super) artifact: ArtifactId,
    pub(super) template_ref: String,
    pub(super) config: Config,
    pub(super) envs: BTreeMap<String, String>,
    pub(super) metadata: Value,
    pub(super) origin: Origin,
    /// The pool that the spare is of.
    pub(super) warm_pool: Option<WarmPoolId>,
    pub(super) idempotency: Option<Idempotency>,
    /// The event of this start, `requested`.
    pub(super) event: Event,
    /// The error when the origin is over.
    pub(super) missing: Error,
}

/// What a sandbox is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Template,
    /// A reusable snapshot.
    Kept(SnapshotId),
    /// The snapshot of a paused sandbox, in whose place it runs.
    Paused(SnapshotId),
    /// A running sandbox.
    Fork(SandboxId),
}

/// The result of a start.
pub(super) enum Begun {
    New(Sandbox),
    /// The same request was made before, with this result.
    Repeated(Sandbox),
}

impl Begun {
    pub(super) fn sandbox(&self) -> &Sandbox {
        match self {
            Begun::New(sandbox) | Begun::Repeated(sandbox) => sandbox,
        }
    }
}

impl Inner {
    /// Refuses what would begin while the service stops.
    pub(super) fn not_stopping(&self) -> Result<()> {
        if self.shutdown.is_cancelled() {
            let message = "the service is stopping; try again when it is back";
            return Err(Error {
                retry_after: Some(STOPPING),
                ..Error::new(ErrorResponseCode::FeatureUnavailable, message)
            });
        }
        Ok(())
    }

    /// Starts a sandbox, and records its events. Returns when it can be used.
    pub(super) async fn start_sandbox(&self, start: Start<'_>) -> Result<Begun> {
        self.not_stopping()?;
        let event = start.event.clone();
        let begun = self.start_recorded(start).await;
        match &begun {
            Ok(Begun::New(_)) => self.lifecycle.record(event.now_succeeded()),
            Ok(Begun::Repeated(_)) => {}
            // It is tried again without the spare, or with another one.
            Err(error) if error.code == ErrorResponseCode::WarmPoolUnavailable => {}
            Err(error) => self.lifecycle.record(event.now_failed(error)),
        }
        begun
    }

    async fn start_recorded(&self, start: Start<'_>) -> Result<Begun> {
        let Start { caller, id, snapshot, spare, config, envs, origin, missing, event, .. } = start;
        self.enforceable(&config)?;
        let sealed_traffic_token = self.new_traffic_token(id, &config)?;
        let sealed_envs = self.seal_envs(id, &envs)?;
        let admitted = self.admit(SandboxSpec { id, tenant: caller.tenant, snapshot, spare }).await?;
        let now = Timestamp::now();
        let (from_snapshot, forked_from) = match origin {
            Origin::Template => (None, None),
            Origin::Kept(snapshot) | Origin::Paused(snapshot) => (Some(snapshot), None),
            Origin::Fork(source) => (None, Some(source)),
        };
        let row = NewSandbox {
            id,
            artifact: start.artifact,
            template_ref: start.template_ref,
            config: json!(config),
            metadata: start.metadata,
            timeout_at: Some(config.timeout_at(now)),
            host: self.config.host.clone(),
            idempotency: start.idempotency,
            sealed_envs,
            sealed_traffic_token,
            from_snapshot,
            forked_from,
            warm_pool: start.warm_pool,
        };
        let repeatable = row.idempotency.is_some();
        let absent = missing.clone();
        let insert = async {
            match self.db.insert_sandbox(caller, row, now).await {
                Ok(Inserted::New(_)) => Ok(None),
                Ok(Inserted::Repeated(sandbox)) => Ok(Some(sandbox)),
                Err(error) => Err(error).or_missing(|| absent),
            }
        };
        let insert = if repeatable {
            match insert.await? {
                Some(sandbox) => return Ok(Begun::Repeated(sandbox)),
                None => Either::Left(ready(Ok(None))),
            }
        } else {
            Either::Right(insert)
        };
        self.lifecycle.record(event);
        let (resumed, is_resumed) = oneshot::channel();
        let record = async {
            insert.await?;
            if is_resumed.await.is_err() {
                return Ok(Err(DbError::Conflict { what: "the sandbox has no machine".to_owned() }));
            }
            if matches!(origin, Origin::Paused(_)) {
                return Ok(Ok(None));
            }
            Ok(self.db.set_sandbox_status(id, SandboxStatus::Running, None, Timestamp::now()).await.map(Some))
        };
        let (sandbox, started) = match tokio::join!(record, admitted.start(config.settings(envs), resumed)) {
            (Ok(Ok(sandbox)), Ok(started)) => (sandbox, started),
            (Ok(Err(error)), Ok(started)) => {
                started.discard().await;
                self.give_up(id, "its start could not be recorded").await;
                return Err(of_store(error));
            }
            (Ok(_), Err(error)) => {
                let failed = error.detail.is_some().then(|| error.message.clone());
                self.give_up(id, failed.as_deref().unwrap_or("the snapshot could not be resumed")).await;
                return Err(error);
            }
            (Err(error), started) => {
                if let Ok(started) = started {
                    started.discard().await;
                }
                return Err(error);
            }
        };
        let (sandbox, started) = match (sandbox, origin) {
            (None, Origin::Paused(paused)) => self.take_place(caller, paused, id, &config, started, missing).await?,
            (Some(sandbox), _) => (sandbox, started),
            (None, _) => {
                started.discard().await;
                return Err(Error::new(ErrorResponseCode::InternalError, "the sandbox's start could not be recorded"));
            }
        };
        if !started.run(config.limits(sandbox.timeout_at)).await {
            return Err(Error::sandbox_not_found(&id.to_string()));
        }
        Ok(Begun::New(sandbox))
    }

    /// Records that a started sandbox runs in place of a paused one.
    async fn take_place(
        &self,
        caller: &Caller,
        paused: SnapshotId,
        id: SandboxId,
        config: &Config,
        started: Box<dyn StartedSandbox>,
        missing: Error,
    ) -> Result<(Sandbox, Box<dyn StartedSandbox>)> {
        let now = Timestamp::now();
        let timeout_at = Some(config.timeout_at(now));
        let failed = match self.db.resume_paused(paused, id, timeout_at, now).await {
            Ok(sandbox) => return Ok((sandbox, started)),
            Err(DbError::NotFound | DbError::Conflict { .. }) => missing,
            // Whether it was recorded is unknown. If it was, this machine has the only copy of the paused sandbox.
            Err(error) => match self.look(caller, id).await {
                Some(sandbox) if sandbox.status == SandboxStatus::Running => return Ok((sandbox, started)),
                Some(_) => of_store(error),
                None => {
                    tracing::error!(sandbox_id = %id, "it is unknown whether a resumed sandbox is recorded: it runs");
                    started.run(config.limits(timeout_at)).await;
                    return Err(of_store(error));
                }
            },
        };
        started.discard().await;
        self.give_up(id, "the paused sandbox was resumed or ended by another request").await;
        Err(failed)
    }

    /// Looks at a row until the database answers, for a bounded time. `None` when it never did.
    pub(super) async fn look(&self, caller: &Caller, id: SandboxId) -> Option<Sandbox> {
        for _ in 0..LOOKS {
            match self.db.get_sandbox(caller, id).await {
                Ok(sandbox) => return Some(sandbox),
                Err(error) => tracing::warn!(sandbox_id = %id, error = %chain(&error), "the database does not answer"),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        None
    }

    /// Records that a sandbox has failed to start.
    pub(super) async fn give_up(&self, id: SandboxId, reason: &str) {
        self.set_status(id, SandboxStatus::Error, Some(reason)).await;
        self.collect.notify_one();
    }

    /// What a host needs to resume a stored snapshot of a sandbox.
    ///
    /// # Errors
    /// `incompatible_snapshot` when this host cannot resume it; nothing has changed then.
    pub(super) async fn resumable(&self, snapshot: &StoredSnapshot) -> Result<Snapshot> {
        self.host.judge(&snapshot.summary).map_err(|unfit| match unfit {
            Unfit::Incompatible(conflict) => Error::new(
                ErrorResponseCode::IncompatibleSnapshot,
                format!(
                    "snapshot {} cannot be resumed on this host: {conflict}. It is kept; nothing was changed",
                    snapshot.id
                ),
            ),
            Unfit::Corrupt(_) => internal("read a snapshot", &unfit),
        })?;
        let artifact = self.db.get_artifact(snapshot.artifact).await.or_missing(|| {
            Error::new(
                ErrorResponseCode::RebuildRequired,
                format!("the files of the template under snapshot {} are lost: it cannot be resumed", snapshot.id),
            )
        })?;
        let runtime: Runtime = column("artifacts.runtime", &artifact.runtime.0).stored()?;
        Ok(Snapshot {
            artifact: artifact.id,
            folder: snapshot.folder.clone(),
            streams: snapshot.streams.clone(),
            rootfs: artifact.rootfs,
            summary: snapshot.summary.clone(),
            runtime,
            held: None,
        })
    }
}
