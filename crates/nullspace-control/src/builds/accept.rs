//! Accepting a build: the request becomes a definition, and one transaction makes it wait.

use std::collections::BTreeSet;

use jiff::Timestamp;
use nullspace_api::{
    CreateTemplateRequest, RequestSecrets, TemplateBuild, TemplateBuildConfig, TemplateBuildLogKind,
    TemplateBuildLogLevel, TemplateFailurePhase,
};
use nullspace_db::{BuildBackend, Idempotency, NewBuild, SourceType, WantedBlob};
use nullspace_definition::dockerfile::Outline;
use nullspace_definition::steps::forced_blobs;
use nullspace_definition::validate::{Valid, WantedSource};
use nullspace_definition::{Definition, PlannedDockerfile, Source};
use nullspace_host_interface::{LogIds, entry};
use nullspace_image_ref::Written;
use nullspace_service::{RequestContext, Warned};
use nullspace_types::{ArtifactId, BuildId, Caller, Selector, Tag, TemplateId, TemplateName, TemplateRef};
use serde_json::json;

use super::logs::to_store;
use crate::Inner;
use crate::catalog::publication::{self, Published};
use crate::catalog::templates::generated_name;
use crate::catalog::wire;
use crate::error::{Error, Result, Stored, internal};

/// The template that a request without a source starts from.
pub(crate) const DEFAULT_BASE: &str = "nullspace/base";

/// The part of a checked request's Dockerfile that the definition keeps.
fn planned(
    request: &CreateTemplateRequest,
    valid: &Valid,
    outline: &Outline,
    secrets: &RequestSecrets,
) -> PlannedDockerfile {
    PlannedDockerfile {
        text: request.dockerfile.clone().unwrap_or_default(),
        path: valid.dockerfile_path.clone().unwrap_or_else(|| "Dockerfile".to_owned()),
        args: valid.build_args.clone(),
        target: valid.build_target.clone(),
        base_registry: secrets.base_image_auth.as_ref().and_then(|_| outline.only_registry()),
        registries: secrets.registry_auth.iter().map(|auth| auth.registry.trim().to_owned()).collect(),
        secrets: secrets.build_secrets.iter().map(|secret| secret.id.clone()).collect(),
    }
}

/// Digest of a request without its secrets. It tells a repetition from another request under the same idempotency key.
fn digest(request: &CreateTemplateRequest) -> Result<String> {
    let bytes = serde_json::to_vec(request).map_err(|error| internal("digest a request", &error))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

/// The files of a build's context. A file is forced when a step asks for a new upload.
pub(super) fn wanted_blobs(definition: &Definition) -> Vec<WantedBlob> {
    let forced = forced_blobs(&definition.steps, &definition.context);
    let blobs = definition.context.blobs().into_iter();
    blobs.map(|id| WantedBlob { force: forced.contains(&id), id }).collect()
}

impl Inner {
    /// Checks a request whole and accepts it; see [`Builds::start_build`](nullspace_service::Builds::start_build).
    pub(super) async fn start_build(
        &self,
        caller: &Caller,
        mut request: CreateTemplateRequest,
        context: &RequestContext,
    ) -> Result<Warned<TemplateBuild>> {
        let inner = self;
        let secrets = request.take_secrets();
        let examined = inner.examine(caller, &request, &secrets).await?;
        let (valid, lacking) = match context.refuse_unknown_files {
            true => (examined.accepted()?, BTreeSet::new()),
            false => examined.accepted_without_files()?,
        };
        let idempotency = match context.idempotency_key.clone() {
            None => None,
            // What is left of the request has no secret in it.
            Some(key) => Some(Idempotency { key, request_digest: digest(&request)? }),
        };
        // Valid, but not in this version: said plainly, after what is wrong with the request.
        valid.runnable().map_err(|error| Error::not_implemented(error.to_string()))?;
        if let Some(disk_mb) = valid.machine.disk_mb {
            inner.host.ensure_possible(disk_mb).await?;
        }
        inner.host.ensure_room(Some(TemplateFailurePhase::Prepare)).await?;
        if valid.dockerfile.is_some() {
            inner.host.ensure_dockerfiles().await?;
        }
        let (claim, claimed) = match &request.claim_token {
            None => (None, None),
            Some(token) => {
                let (hash, name) = inner.claim(caller, token).await?;
                (Some(hash), Some(name))
            }
        };
        let dockerfile = valid.dockerfile.as_ref().map(|outline| planned(&request, &valid, outline, &secrets));
        let name = match valid.name.or(claimed) {
            Some(name) => name,
            None => generated_name(TemplateId::new())?,
        };
        let dockerfile_digest = valid.dockerfile.as_ref().map(|outline| format!("sha256:{}", outline.digest));
        let source = match (dockerfile, valid.source) {
            (Some(dockerfile), _) => Source::Dockerfile(dockerfile),
            (None, WantedSource::Image(reference)) => inner.source(caller, &reference).await?,
            (None, WantedSource::DefaultBase) => inner.template_source(caller, DEFAULT_BASE).await?,
        };
        if secrets.base_image_auth.is_some() && matches!(source, Source::Template { .. }) {
            return Err(Error::invalid("base_image_auth is for images in registries, base_image is a template"));
        }
        inner.keep_inline(caller, request.build_context.as_ref()).await?;
        let context_digest = valid.context.summary().map(|summary| summary.context_digest);
        let plan = Definition {
            source,
            steps: valid.steps,
            context: valid.context.planned(),
            machine: valid.machine,
            build_envs: valid.build_envs,
            start_cmd: valid.start_cmd,
            resume_cmd: valid.resume_cmd,
            runtime: valid.runtime,
            skip_cache: valid.skip_cache,
            authenticated: !secrets.is_empty(),
        };
        let published = Published::of_plan(&plan);
        let mut build = NewBuild {
            claim,
            idempotency,
            context_digest,
            dockerfile_digest,
            ..inner.new_build(name, valid.tags, plan, Some(caller.namespace.clone()))?
        };
        build.blobs.retain(|blob| !lacking.contains(&blob.id));
        let value = inner.accept_with(caller, build, secrets).await?;
        let warnings = publication::accepted(value.visibility, &value.canonical_ref, published);
        Ok(Warned { value, warnings })
    }

    /// Accepts a build. Its credentials and secrets stay in memory.
    pub(crate) async fn accept_with(
        &self,
        caller: &Caller,
        build: NewBuild,
        secrets: RequestSecrets,
    ) -> Result<TemplateBuild> {
        self.host.ensure_room(Some(TemplateFailurePhase::Prepare)).await?;
        let id = build.id;
        let kept = !secrets.is_empty();
        if kept {
            // Before acceptance: a worker may lease the build in the same instant.
            self.builds.credentials.keep(caller, id, secrets)?;
        }
        let accepted = self.accept(caller, build).await;
        // Refused, or answered with the build of an earlier request.
        if kept && accepted.as_ref().is_ok_and(|build| build.build_id == id.to_string()) {
            return accepted;
        }
        self.builds.credentials.forget(id);
        accepted
    }

    /// Parses `base_image`. It is a template if it is written as one or names a namespace that has it; else it is an image.
    pub(crate) async fn source(&self, caller: &Caller, reference: &str) -> Result<Source> {
        let image = || -> Result<Source> {
            let parsed = reference.parse::<Written>();
            let reference = parsed.map_err(|error| Error::invalid(format!("base_image is not valid: {error}")))?;
            Ok(Source::Image { reference })
        };
        match reference.parse::<TemplateRef>() {
            Err(_) => image(),
            // `ubuntu:22.04` is an image, whatever templates the caller has.
            Ok(TemplateRef::Named { namespace: None, selector, .. })
                if !matches!(selector, Some(Selector::Build(_))) =>
            {
                image()
            }
            Ok(parsed) => {
                let certain = parsed.is_system()
                    || matches!(&parsed, TemplateRef::Artifact(_))
                    || matches!(&parsed, TemplateRef::Named { selector: Some(Selector::Build(_)), .. });
                match self.template_source(caller, reference).await {
                    // `bitnami/redis` reads like a namespace and is an image when there is no such template.
                    Err(error) if error.code == nullspace_api::ErrorResponseCode::TemplateNotFound && !certain => {
                        image()
                    }
                    other => other,
                }
            }
        }
    }

    pub(crate) async fn template_source(&self, caller: &Caller, reference: &str) -> Result<Source> {
        let resolved = self.resolve(caller, reference).await?;
        // Its disk is in the snapshot. The root image alone would lack all that the sandbox wrote.
        if resolved.artifact.source_type == SourceType::Snapshot {
            return Err(Error::invalid(format!(
                "template {reference} was promoted from a snapshot of a sandbox: sandboxes start from it, but nothing can be \
                 built on it; build on the template that the sandbox was made from"
            )));
        }
        Ok(Source::Template { reference: reference.to_owned(), artifact: resolved.artifact.id })
    }

    /// A build of this definition, not accepted yet.
    pub(crate) fn new_build(
        &self,
        name: TemplateName,
        tags: Vec<Tag>,
        plan: Definition,
        triggered_by: Option<String>,
    ) -> Result<NewBuild> {
        let source_type = match plan.source {
            Source::Dockerfile(_) => SourceType::Dockerfile,
            _ if !plan.steps.is_empty() => SourceType::Declarative,
            Source::Image { .. } | Source::BaseTar { .. } => SourceType::OciImport,
            Source::Template { .. } => SourceType::TemplateBase,
            Source::Snapshot { .. } => SourceType::Snapshot,
        };
        let blobs = wanted_blobs(&plan);
        let config = TemplateBuildConfig {
            vcpus: Some(plan.machine.vcpus),
            memory_mib: Some(plan.machine.memory_mib),
            internet_access: Some(plan.machine.internet_access),
            disk_mb: plan.machine.disk_mb,
        };
        Ok(NewBuild {
            id: BuildId::new(),
            artifact_id: ArtifactId::new(),
            name,
            description: None,
            tags,
            backend: match source_type {
                SourceType::Dockerfile => BuildBackend::Buildkit,
                _ => BuildBackend::Native,
            },
            source_type,
            definition: json!(plan).into(),
            build_config: json!(config),
            source_digest: None,
            context_digest: None,
            dockerfile_digest: None,
            triggered_by,
            retry_of: None,
            original: None,
            max_attempts: self.config.max_attempts,
            claim: None,
            idempotency: None,
            blobs,
        })
    }

    /// Puts the build into the queue with its first log entry, in one transaction, and wakes a worker.
    pub(crate) async fn accept(&self, caller: &Caller, build: NewBuild) -> Result<TemplateBuild> {
        let now = Timestamp::now();
        let ids = LogIds { build: build.id, artifact: build.artifact_id };
        let message = format!("Build of {}/{} accepted", caller.namespace, build.name);
        let first = entry(ids, TemplateBuildLogKind::Start, TemplateBuildLogLevel::Info, message);
        let first = to_store(&first, now).stored()?;
        let claimed = build.claim.is_some();
        let id = build.id;
        let stored = self.db.accept_build(caller, build, first, self.config.queue, now).await.stored()?;
        if stored.id != id {
            tracing::info!(build_id = %stored.id, "repeated request answered with its build");
            return wire::build(&stored, now).stored();
        }
        tracing::info!(claimed, build_id = %stored.id, template = stored.canonical_ref(), "build accepted");
        self.builds.queued.notify_one();
        wire::build(&stored, now).stored()
    }
}
