//! Creation of a sandbox.
//!
//! ```text
//!   resolve, admit ──┬── machine:  start the VMM ──resumed──> give the guest its identity ──┬── live
//!                    └── database: insert `creating` ········> set `running` ───────────────┘
//! ```
//! Each commit waits for the disk, so the two go side by side. This is safe because:
//! - The insert fails if the template was deleted meanwhile, and its answer is awaited before the machine's. The machine is then
//!   ended. Once the row is there, the artifact is in use and stays.
//! - A request with an idempotency key is inserted first: a repetition starts no machine.
//! - A sandbox that is ended while it starts loses its place on the host. Its start finds that out when the machine is ready,
//!   and ends the machine. The task that ends the sandbox waits for that.
//! - A killed service takes its machines along, and the next start ends the rows that it left.

use std::future::ready;
use std::time::Instant;

use futures::future::Either;
use jiff::{SignedDuration, Timestamp};
use nullspace_api::{
    CreateSandboxRequest, CreateSandboxResponse, ErrorResponseCode, LifecycleConfigOnTimeout, SandboxTimeoutAction,
};
use nullspace_db::{DbError, Idempotency, Inserted, NewSandbox, SandboxStatus};
use nullspace_definition::runtime::Runtime;
use nullspace_definition::sandbox::check_create;
use nullspace_host_interface::{SandboxSettings, SandboxSpec, Snapshot, Unfit, invalid};
use nullspace_types::{Caller, SandboxId};
use serde_json::json;
use tokio::sync::oneshot;

use super::Config;
use super::answers::created;
use crate::catalog::wire::column;
use crate::error::{Error, Result, Stored, internal, of_store};
use crate::{Control, Inner};

impl Control {
    /// Resumes a template's snapshot; see [`nullspace_service::Sandboxes::create_sandbox`].
    pub(super) async fn create(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        idempotency_key: Option<String>,
    ) -> Result<CreateSandboxResponse> {
        let began = Instant::now();
        refuse_unserved(&request)?;
        check_create(&request).map_err(invalid)?;
        let timeout_ms = request.timeout_ms.unwrap_or(CreateSandboxRequest::DEFAULT_TIMEOUT_MS);
        let reference = request.template.as_deref().unwrap_or(CreateSandboxRequest::DEFAULT_TEMPLATE);
        let inner = &self.inner;
        let artifact = inner.resolve(caller, reference).await?.artifact;
        let runtime: Runtime = column("artifacts.runtime", &artifact.runtime.0).stored()?;
        let size = inner.host.judge(&artifact.snapshot).map_err(|unfit| match unfit {
            Unfit::Incompatible(conflict) => Error::new(
                ErrorResponseCode::RebuildRequired,
                format!("template {reference} cannot run on this host: {conflict}; build it again"),
            ),
            Unfit::Corrupt(_) => internal("read a template", &unfit),
        })?;
        let config = Config {
            vcpus: size.vcpus,
            memory_mb: size.memory_mib,
            disk_mb: u32::try_from(size.disk_bytes >> 20).unwrap_or(u32::MAX),
            timeout_ms,
            cwd: request.cwd.clone().unwrap_or_else(|| runtime.workdir.clone()),
            internet_access: request.internet_access.unwrap_or(true),
        };
        fits(&request, &config)?;
        let id = SandboxId::new();
        let snapshot = Snapshot {
            artifact: artifact.id,
            folder: artifact.folder,
            rootfs: artifact.rootfs,
            summary: artifact.snapshot,
            runtime,
        };
        let admitted = inner.host.admit_sandbox(SandboxSpec { id, tenant: caller.tenant, snapshot }).await?;

        let now = Timestamp::now();
        let idempotency = match idempotency_key {
            None => None,
            Some(key) => Some(Idempotency { key, request_digest: digest(&request)? }),
        };
        let row = NewSandbox {
            id,
            artifact: artifact.id,
            template_ref: reference.to_owned(),
            config: json!(config),
            metadata: json!(request.metadata.clone().unwrap_or_default()),
            timeout_at: Some(now + SignedDuration::from_millis(timeout_ms.try_into().unwrap_or(i64::MAX))),
            host: inner.config.host.clone(),
            idempotency,
        };
        let repeatable = row.idempotency.is_some();
        let insert = async {
            match inner.db.insert_sandbox(caller, row, now).await {
                Ok(Inserted::New(_)) => Ok(None),
                Ok(Inserted::Repeated(sandbox)) => Ok(Some(sandbox)),
                Err(error) => Err(error).or_missing(|| Error::template_not_found(reference)),
            }
        };
        let insert = if repeatable {
            match insert.await? {
                Some(sandbox) => return created(&sandbox, Vec::new()),
                None => Either::Left(ready(Ok(None))),
            }
        } else {
            Either::Right(insert)
        };
        let (resumed, is_resumed) = oneshot::channel();
        let record = async {
            insert.await?;
            if is_resumed.await.is_err() {
                return Ok(Err(DbError::Conflict { what: "the sandbox has no machine".to_owned() }));
            }
            Ok(inner.db.set_sandbox_status(id, SandboxStatus::Running, None, Timestamp::now()).await)
        };
        let envs = request.envs.clone().unwrap_or_default().0;
        let settings = SandboxSettings { envs, cwd: config.cwd.clone(), internet_access: config.internet_access };
        let (sandbox, started) = match tokio::join!(record, admitted.start(settings, resumed)) {
            (Ok(Ok(sandbox)), Ok(started)) => (sandbox, started),
            (Ok(Err(error)), Ok(started)) => {
                started.discard().await;
                inner.give_up(id, "its start could not be recorded").await;
                return Err(of_store(error));
            }
            (Ok(_), Err(error)) => {
                let failed = error.detail.is_some().then(|| error.message.clone());
                inner.give_up(id, failed.as_deref().unwrap_or("the snapshot could not be resumed")).await;
                return Err(error);
            }
            (Err(error), started) => {
                if let Ok(started) = started {
                    started.discard().await;
                }
                return Err(error);
            }
        };
        if !started.run(sandbox.timeout_at).await {
            return Err(Error::sandbox_not_found(&id.to_string()));
        }
        let ms = began.elapsed().as_millis();
        tracing::info!(sandbox_id = %id, template = reference, ms, "sandbox is running");
        created(&sandbox, warnings(&request, &config))
    }
}

impl Inner {
    /// Records that a sandbox has failed to start.
    async fn give_up(&self, id: SandboxId, reason: &str) {
        self.set_status(id, SandboxStatus::Error, Some(reason)).await;
        self.collect.notify_one();
    }
}

/// Refuses fields of the contract that this version does not implement. They are never ignored.
fn refuse_unserved(request: &CreateSandboxRequest) -> Result<()> {
    let network = request.network.as_ref().is_some_and(|network| *network != Default::default());
    let pauses = request.lifecycle.as_ref().and_then(|lifecycle| lifecycle.on_timeout);
    for (field, given) in [
        ("snapshot_id", request.snapshot_id.is_some()),
        ("warm_pool", request.warm_pool.is_some()),
        ("desktop", request.desktop.is_some()),
        ("network", network),
        ("volumes", request.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty())),
        ("timeout_action hibernate", request.timeout_action == Some(SandboxTimeoutAction::Hibernate)),
        ("lifecycle.on_timeout pause", pauses == Some(LifecycleConfigOnTimeout::Pause)),
        ("inactivity_timeout_ms", request.inactivity_timeout_ms.is_some()),
        ("auto_delete_after_ms", request.auto_delete_after_ms.is_some()),
        ("auto_resume", request.auto_resume == Some(true)),
    ] {
        if given {
            return Err(Error::not_implemented(format!("{field} is not in this version: leave it out")));
        }
    }
    Ok(())
}

/// Refuses a request whose `disk_mb` is larger than the template's disk.
fn fits(request: &CreateSandboxRequest, config: &Config) -> Result<()> {
    match request.disk_mb {
        Some(asked) if asked > config.disk_mb => Err(Error::invalid(format!(
            "disk_mb is {asked}: it must be at most {}, which the template's disk has; a template with a larger one is \
             built with build_config.disk_mb",
            config.disk_mb
        ))),
        _ => Ok(()),
    }
}

/// Warnings about `vcpus` and `memory_mb` that differ from the snapshot's, which are used.
fn warnings(request: &CreateSandboxRequest, config: &Config) -> Vec<String> {
    [("vcpus", request.vcpus, config.vcpus), ("memory_mb", request.memory_mb, config.memory_mb)]
        .into_iter()
        .filter_map(|(field, asked, has)| match asked {
            Some(asked) if asked != has => Some(format!("{field} is {has}, as in the template, not {asked}")),
            _ => None,
        })
        .collect()
}

/// Digest of a request. It tells a repetition from another request under the same idempotency key.
fn digest(request: &CreateSandboxRequest) -> Result<String> {
    let bytes = serde_json::to_vec(request).map_err(|error| internal("digest a request", &error))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}
