//! Creation of a sandbox on request, from a template or from a snapshot.

use std::time::Instant;

use jiff::Timestamp;
use nullspace_api::{CreateSandboxRequest, CreateSandboxResponse, ErrorResponseCode, LifecycleOperation};
use nullspace_db::{DbError, Idempotency, Inserted, NewSandbox, Sandbox, Snapshot as StoredSnapshot, SnapshotKind};
use nullspace_definition::sandbox::check_create;
use nullspace_host_interface::{Unfit, invalid};
use nullspace_types::{ArtifactId, Caller, EgressPolicy, SandboxId, SnapshotId};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::json;

use super::answers::created;
use super::resume::resume_requested;
use super::spec::{AtTimeout, Config};
use super::start::{Begun, Origin, Start};
use crate::catalog::templates::template_snapshot;
use crate::error::{Error, Result, internal, of_store};
use crate::lifecycle::Event;
use crate::pools::{Checkout, refuse_for_snapshot};
use crate::{Control, Inner};

impl Control {
    /// Resumes a template's or a sandbox's snapshot; see [`nullspace_service::Sandboxes::create_sandbox`].
    pub(super) async fn create(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        idempotency_key: Option<String>,
    ) -> Result<CreateSandboxResponse> {
        let began = Instant::now();
        refuse_unserved(&request)?;
        check_create(&request).map_err(invalid)?;
        let idempotency = idempotency_key.map(|key| idempotency(key, &request)).transpose()?;
        let inner = &self.inner;
        let (begun, config) = match request.snapshot_id.as_deref() {
            None => inner.create_from_template(caller, &request, idempotency).await?,
            Some(id) => match inner.snapshot_of(caller, id).await {
                Ok(snapshot) => inner.create_from_snapshot(caller, snapshot, &request, idempotency).await?,
                Err(missing) => match inner.made_before(caller, id, idempotency).await? {
                    Some(sandbox) => return inner.created(&sandbox, Vec::new()),
                    None => return Err(missing),
                },
            },
        };
        let sandbox = begun.sandbox();
        if let Begun::Repeated(_) = begun {
            return inner.created(sandbox, Vec::new());
        }
        let (template, ms) = (&sandbox.template_ref, began.elapsed().as_millis());
        tracing::info!(sandbox_id = %sandbox.id, template, ms, "sandbox is running");
        inner.created(sandbox, warnings(&request, &config))
    }
}

impl Inner {
    /// The answer to a create, with the token for the sandbox's ports.
    fn created(&self, sandbox: &Sandbox, warnings: Vec<String>) -> Result<CreateSandboxResponse> {
        let token = self.traffic_token(sandbox).map(|token| token.expose_secret().to_owned());
        Ok(CreateSandboxResponse { traffic_access_token: token, ..created(sandbox, warnings)? })
    }

    async fn create_from_template(
        &self,
        caller: &Caller,
        request: &CreateSandboxRequest,
        idempotency: Option<Idempotency>,
    ) -> Result<(Begun, Config)> {
        let checkout = self.checkout(caller, request).await?;
        let of_pool = checkout.as_ref().and_then(Checkout::template);
        let reference = request.template.as_deref().or(of_pool).unwrap_or(CreateSandboxRequest::DEFAULT_TEMPLATE);
        let snapshot = template_snapshot(self.resolve(caller, reference).await?.artifact)?;
        let size = self.host.judge(&snapshot.summary).map_err(|unfit| match unfit {
            Unfit::Incompatible(conflict) => Error::new(
                ErrorResponseCode::RebuildRequired,
                format!("template {reference} cannot run on this host: {conflict}; build it again"),
            ),
            Unfit::Corrupt(_) => internal("read a template", &unfit),
        })?;
        let mut config = Config {
            vcpus: size.vcpus,
            memory_mb: size.memory_mib,
            disk_mb: u32::try_from(size.disk_bytes >> 20).unwrap_or(u32::MAX),
            timeout_ms: CreateSandboxRequest::DEFAULT_TIMEOUT_MS,
            cwd: snapshot.runtime.workdir.clone(),
            internet_access: request.internet_access.unwrap_or(true),
            at_timeout: AtTimeout::default(),
            inactivity_timeout_ms: None,
            auto_delete_after_ms: None,
            auto_resume: false,
            ephemeral: false,
            public_ports: true,
            egress: EgressPolicy::default(),
            mask_request_host: None,
            warm_pool: None,
        };
        config.take(request)?;
        fits(request, &config)?;
        loop {
            let spare = match &checkout {
                Some(checkout) => self.take_spare(caller, checkout, snapshot.artifact).await?,
                None => None,
            };
            let id = SandboxId::new();
            config.warm_pool = checkout.as_ref().map(|checkout| checkout.result(spare));
            let start = Start {
                caller,
                id,
                snapshot: snapshot.clone(),
                spare,
                artifact: snapshot.artifact,
                template_ref: reference.to_owned(),
                config: config.clone(),
                envs: request.envs.clone().unwrap_or_default().0,
                metadata: json!(request.metadata.clone().unwrap_or_default()),
                origin: Origin::Template,
                warm_pool: checkout.as_ref().and_then(|checkout| checkout.pool(spare)),
                idempotency: idempotency.clone(),
                event: created_event(caller, id, &config),
                missing: Error::template_not_found(reference),
            };
            match self.start_sandbox(start).await {
                // The host has ended it a moment ago: nothing of the sandbox exists. Another one, or none.
                Err(error) if spare.is_some() && error.code == ErrorResponseCode::WarmPoolUnavailable => {}
                begun => return Ok((begun?, config)),
            }
        }
    }

    /// The sandbox that an earlier request under the same key has made from a snapshot that is over since. For one that is not
    /// over, the start itself finds it.
    pub(super) async fn made_before(
        &self,
        caller: &Caller,
        snapshot: &str,
        idempotency: Option<Idempotency>,
    ) -> Result<Option<Sandbox>> {
        let (Ok(snapshot), Some(key)) = (snapshot.parse::<SnapshotId>(), idempotency) else { return Ok(None) };
        // No row comes of it: the snapshot is over, and stays so.
        let row = NewSandbox {
            id: SandboxId::new(),
            artifact: ArtifactId::new(),
            template_ref: String::new(),
            config: json!({}),
            metadata: json!({}),
            timeout_at: None,
            host: self.config.host.clone(),
            idempotency: Some(key),
            sealed_envs: None,
            sealed_traffic_token: None,
            from_snapshot: Some(snapshot),
            forked_from: None,
            warm_pool: None,
        };
        match self.db.insert_sandbox(caller, row, Timestamp::now()).await {
            Ok(Inserted::Repeated(sandbox)) => Ok(Some(sandbox)),
            Err(DbError::NotFound) => Ok(None),
            Ok(Inserted::New(_)) => {
                Err(Error::new(ErrorResponseCode::InternalError, "a snapshot that was over is not"))
            }
            Err(error) => Err(of_store(error)),
        }
    }

    /// Makes a sandbox from a snapshot with the settings of a request over those that the snapshot has.
    pub(super) async fn create_from_snapshot(
        &self,
        caller: &Caller,
        snapshot: StoredSnapshot,
        request: &CreateSandboxRequest,
        idempotency: Option<Idempotency>,
    ) -> Result<(Begun, Config)> {
        refuse_for_snapshot(request)?;
        let mut config = Config { warm_pool: None, ..Config::stored(&snapshot.config)? };
        if request.internet_access.is_some_and(|asked| asked != config.internet_access) {
            return Err(Error::invalid(format!(
                "internet_access of a sandbox from a snapshot is the snapshot's, {}: leave it out",
                config.internet_access
            )));
        }
        if request.template.is_some() {
            return Err(Error::invalid("template and snapshot_id are given: a sandbox is made from one of them"));
        }
        config.take(request)?;
        fits(request, &config)?;
        let mut envs = self.open_envs(snapshot.sandbox, snapshot.sealed_envs.as_deref())?;
        envs.extend(request.envs.clone().unwrap_or_default().0);
        let metadata = match &request.metadata {
            Some(given) if !given.is_empty() => json!(given),
            _ => snapshot.sandbox_metadata.clone(),
        };
        let id = SandboxId::new();
        if snapshot.kind == SnapshotKind::Pause {
            return self.resume_paused(caller, snapshot, id, config, envs, metadata, idempotency).await;
        }
        let event = created_event(caller, id, &config).snapshot(snapshot.id).source(snapshot.sandbox).target(id);
        let resumed = resume_requested(caller, &snapshot, id)
            .reason("api")
            .detail("timeout_action", config.at_timeout.word())
            .now_succeeded();
        let start = Start {
            caller,
            id,
            snapshot: self.resumable(&snapshot).await?,
            artifact: snapshot.artifact,
            template_ref: snapshot.template_ref.clone(),
            config: config.clone(),
            envs,
            metadata,
            origin: Origin::Kept(snapshot.id),
            spare: None,
            warm_pool: None,
            idempotency,
            event,
            missing: super::snapshots::missing(&snapshot.id.to_string()),
        };
        let begun = self.start_sandbox(start).await?;
        if let Begun::New(_) = begun {
            self.lifecycle.record(resumed);
        }
        Ok((begun, config))
    }
}

fn created_event(caller: &Caller, id: SandboxId, config: &Config) -> Event {
    Event::requested(caller.tenant, LifecycleOperation::Create)
        .sandbox(id)
        .reason("api")
        .detail("timeout_action", config.at_timeout.word())
}

/// Refuses fields of the contract that this version does not implement. They are never ignored.
fn refuse_unserved(request: &CreateSandboxRequest) -> Result<()> {
    for (field, given) in [
        ("desktop", request.desktop.is_some()),
        ("volumes", request.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty())),
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

/// The key of a request with the request's digest, which tells a repetition from another request under the same key.
pub(super) fn idempotency(key: String, request: &impl Serialize) -> Result<Idempotency> {
    let bytes = serde_json::to_vec(request).map_err(|error| internal("digest a request", &error))?;
    Ok(Idempotency { key, request_digest: blake3::hash(&bytes).to_hex().to_string() })
}
