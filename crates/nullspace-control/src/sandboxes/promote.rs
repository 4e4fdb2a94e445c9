//! Promotion of a snapshot to a template.
//!
//! ```text
//!   snapshot ──trial──> one transaction: a build that is ready at once, its artifact, a tag
//!      │         └── it cannot be resumed, the name clashes: nothing has changed
//!      └── deleted later: the template has the same files, and keeps them
//! ```
//! The template's settings are those of the template that the sandbox was made from. What the sandbox got of its own (variables,
//! working directory, notes, limits in time) is not among them; what its processes have in memory, and what lies on its disk, is
//! in every sandbox of the new template. The answer says so.

use jiff::Timestamp;
use nullspace_api::{
    ErrorResponseCode, PromoteSnapshotRequest, TemplateBuildLogKind, TemplateBuildLogLevel,
    TemplateBuildResultMetadata, TemplateInfo,
};
use nullspace_db::{
    Artifact, DbError, FinishReady, Idempotency, NewBuild, Promotion, Resolved, Snapshot, Template, Visibility,
};
use nullspace_definition::machine::MachineSize;
use nullspace_definition::runtime::Runtime;
use nullspace_definition::{Definition, Source};
use nullspace_host_interface::{Adopted, LogIds, SandboxSpec, entry};
use nullspace_service::Warned;
use nullspace_types::{Caller, SandboxId, Tag, TemplateId, TemplateRef};
use serde_json::json;

use super::snapshots::missing;
use super::spec::Config;
use crate::Inner;
use crate::builds::logs::to_store;
use crate::builds::worker::retention;
use crate::catalog::names::{own_name, parse_tags};
use crate::catalog::wire::{self, column};
use crate::error::{Error, Result, Stored, internal, of_store};

/// The error of a promotion that the database refuses.
fn refused(error: DbError, gone: impl FnOnce() -> Error) -> Error {
    match error {
        DbError::NotFound => gone(),
        DbError::LimitReached { limit, .. } => Error::new(
            ErrorResponseCode::QuotaExceeded,
            format!(
                "the tenant has {limit} versions of templates that were promoted from snapshots, which is the most: delete such a \
                 template, and try again"
            ),
        ),
        other => of_store(other),
    }
}

impl Inner {
    /// Makes a template of a snapshot.
    pub(super) async fn promote_snapshot(
        &self,
        caller: &Caller,
        id: &str,
        request: PromoteSnapshotRequest,
        idempotency: Option<Idempotency>,
    ) -> Result<Warned<TemplateInfo>> {
        self.not_stopping()?;
        let name = own_name("name", caller, &request.name)?;
        let tags = match request.tag {
            None => vec![Tag::default_tag()],
            Some(tag) => parse_tags(&[tag])?,
        };
        let (gone, most) = (|| missing(id), self.config.life.snapshots_per_tenant);
        // Also when its snapshot is over.
        let earlier = self.db.promoted_before(caller, idempotency.as_ref(), most).await;
        if let Some(earlier) = earlier.map_err(|error| refused(error, gone))? {
            return self.promoted(caller, &earlier).await;
        }
        let snapshot = self.snapshot_of(caller, id).await?;
        let config = Config::stored(&snapshot.config)?;
        let source = self.resumable(&snapshot).await?;
        let trial = SandboxSpec { id: SandboxId::new(), tenant: caller.tenant, snapshot: source, spare: None };
        // Only for a moment: nothing is paused for it.
        self.host.admit_sandbox(trial).await?.try_out().await?;
        let snapshot = self.stored_snapshot(caller, snapshot).await?;
        let under = self.db.get_artifact(snapshot.artifact).await.stored()?;
        let machine = MachineSize {
            vcpus: config.vcpus,
            memory_mib: config.memory_mb,
            internet_access: config.internet_access,
            disk_mb: Some(config.disk_mb),
        };
        let source = Source::Snapshot { snapshot: snapshot.id, sandbox: snapshot.sandbox };
        let plan = Definition::of_source(source, machine);
        let triggered_by = Some(caller.namespace.clone());
        let build = NewBuild { idempotency, ..self.new_build(name, tags, plan, triggered_by)? };
        let promotion = self.promotion(caller, &snapshot, under, build).await?;
        let resolved = self.db.promote_snapshot(caller, promotion, Timestamp::now()).await;
        let resolved = resolved.map_err(|error| refused(error, gone))?;
        self.collect.notify_one();
        let template = resolved.template.canonical_ref();
        tracing::info!(snapshot_id = %snapshot.id, template, artifact = %resolved.artifact.id, "snapshot is promoted");
        self.promoted(caller, &resolved).await
    }

    /// The answer to a promotion.
    async fn promoted(&self, caller: &Caller, resolved: &Resolved) -> Result<Warned<TemplateInfo>> {
        let info = wire::template(resolved).stored()?;
        let mut promoted = self.publishes_build(caller, resolved.artifact.build, info).await.stored()?;
        promoted.warnings.push(format!(
            "every sandbox of {} has what was in the memory and on the disk of the promoted sandbox: variables of its processes, \
             keys and data; new variables reach new processes alone",
            resolved.template.canonical_ref()
        ));
        Ok(promoted)
    }

    /// The build and the artifact that stand for a snapshot on the root image of `under`.
    async fn promotion(
        &self,
        caller: &Caller,
        snapshot: &Snapshot,
        under: Artifact,
        build: NewBuild,
    ) -> Result<Promotion> {
        let now = Timestamp::now();
        let runtime: Runtime = column("artifacts.runtime", &under.runtime.0).stored()?;
        let defaults = runtime.shown();
        let adopted = self.host.adopt_snapshot(build.artifact_id, &snapshot.summary);
        let Adopted { folder, size, compatibility } =
            adopted.map_err(|unfit| internal("name a snapshot's files", &unfit))?;
        let reference =
            TemplateRef::Named { namespace: Some(caller.namespace.clone()), name: build.name.clone(), selector: None };
        // For the log: the template as it is, or will be.
        let template = match self.db.standing(caller, &reference).await {
            Ok(standing) => standing.template,
            Err(DbError::NotFound) => Template {
                id: TemplateId::new(),
                tenant: caller.tenant,
                namespace: caller.namespace.clone(),
                namespace_kind: nullspace_db::NamespaceKind::User,
                name: build.name.clone(),
                visibility: Visibility::Private,
                description: String::new(),
                created_at: now,
            },
            Err(error) => return Err(of_store(error)),
        };
        let ids = LogIds { build: build.id, artifact: build.artifact_id };
        let said = |kind, text: String| entry(ids, kind, TemplateBuildLogLevel::Info, text);
        let first = said(
            TemplateBuildLogKind::Start,
            format!(
                "Snapshot {} of sandbox {} is promoted to {}",
                snapshot.id,
                snapshot.sandbox,
                template.canonical_ref()
            ),
        );
        let mut last = said(TemplateBuildLogKind::End, format!("Template {} is ready", template.canonical_ref()));
        let tags = build.tags.iter().map(Tag::to_string).collect();
        let id = build.artifact_id.to_string();
        last.result = Some(wire::template_info(&template, id, tags, Some(defaults.clone())));
        last.result_metadata =
            Some(TemplateBuildResultMetadata { runtime_defaults: Some(defaults.clone()), oci_metadata: None });
        Ok(Promotion {
            snapshot: snapshot.id,
            most: self.config.life.snapshots_per_tenant,
            first: to_store(&first, now).stored()?,
            ready: FinishReady {
                folder,
                streams: snapshot.streams.clone(),
                rootfs_key: under.rootfs.key,
                disk_bytes: size.disk_bytes,
                stored_bytes: snapshot.stored_bytes,
                compatibility,
                snapshot: snapshot.summary.clone(),
                runtime: under.runtime,
                runtime_defaults: json!(defaults),
                oci_metadata: under.oci_metadata,
                cache_summary: None,
                retention_expires_at: retention(self.config.untagged_retention),
                final_key: None,
                entry: to_store(&last, now).stored()?,
            },
            build,
        })
    }
}
