//! Builds as callers see them: start, status, log, cancel.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use jiff::Timestamp;
use nullspace_api::{
    CreateTemplateRequest, ErrorResponseCode, RequestSecrets, TemplateBuild, TemplateBuildConfig,
    TemplateBuildLogEntry, TemplateBuildLogKind, TemplateBuildLogLevel, TemplateBuildStatusSnapshot,
    TemplateFailureDetailCode, TemplateFailurePhase, TemplateInfo,
};
use nullspace_service::{Builds, LogStream, RequestContext, Templates, Warned};
use nullspace_store::{
    ArtifactId, Build, BuildBackend, BuildId, Caller, CancelRequest, Idempotency, NewBuild, SourceType, TemplateId,
    TemplateRef,
};
use serde_json::json;

use crate::dockerfile::Outline;
use crate::error::{Error, Result, Stored, internal};
use crate::logs::{LogIds, LogSource, POLL, entry, to_store};
use crate::plan::{BuildPlan, PlannedDockerfile, Source};
use crate::publication::{self, Published};
use crate::tails::{Limit, PAGE, Page};
use crate::templates::generated_name;
use crate::validate::{Valid, WantedSource};
use crate::{Engine, Inner, records, steps};

/// What a request without a source builds from.
pub(crate) const DEFAULT_BASE: &str = "nullspace/base";

/// Entries that a follower keeps on their way, about so many bytes.
const FOLLOW_BYTES: usize = 128 << 10;

#[async_trait]
impl Builds for Engine {
    async fn start_build(
        &self,
        caller: &Caller,
        mut request: CreateTemplateRequest,
        context: &RequestContext,
    ) -> Result<Warned<TemplateBuild>> {
        let secrets = request.take_secrets();
        let examined = self.inner.examine(caller, &request, &secrets).await?;
        let (valid, lacking) = match context.refuse_unknown_files {
            true => (examined.accepted()?, BTreeSet::new()),
            false => examined.accepted_without_files()?,
        };
        let inner = &self.inner;
        let idempotency = match context.idempotency_key.clone() {
            None => None,
            // What is left of the request has no secret in it.
            Some(key) => Some(Idempotency { key, request_digest: digest(&request)? }),
        };
        // Valid, but not in this version: said plainly, after what is wrong with the request.
        valid.runnable()?;
        inner.ensure_possible(valid.machine.disk_mb)?;
        let _room = inner.ensure_room(0, Some(TemplateFailurePhase::Prepare))?;
        if valid.dockerfile.is_some() {
            inner.buildkits.ensure_there().await?;
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
        let plan = BuildPlan {
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

    async fn wait_for_template(&self, caller: &Caller, build_id: &str) -> Result<TemplateInfo> {
        let mut log = self.build_logs(caller, build_id, 0, true).await?;
        while let Some(entry) = log.next().await {
            let entry = entry?;
            match entry.kind {
                TemplateBuildLogKind::End => return self.get_template(caller, &entry.template_id).await,
                TemplateBuildLogKind::Cancelled => {
                    let error = Error::new(ErrorResponseCode::TransitionConflict, "the build was cancelled");
                    return Err(Error { build_id: Some(build_id.to_owned()), ..error });
                }
                TemplateBuildLogKind::Error => {
                    let code = match entry.error_detail.as_ref().map(|detail| detail.code) {
                        Some(TemplateFailureDetailCode::InternalError) | None => ErrorResponseCode::InternalError,
                        Some(TemplateFailureDetailCode::Unauthorized | TemplateFailureDetailCode::BuildError) => {
                            ErrorResponseCode::BuildError
                        }
                        Some(TemplateFailureDetailCode::FileUploadError) => ErrorResponseCode::FileUploadError,
                    };
                    let error = Error::new(code, entry.message);
                    let detail = entry.error_detail.map(Box::new);
                    return Err(Error { build_id: Some(build_id.to_owned()), detail, ..error });
                }
                _ => {}
            }
        }
        let what = "the service stops; the build goes on: follow it by its build_id";
        let error = Error::new(ErrorResponseCode::FeatureUnavailable, what);
        Err(Error { build_id: Some(build_id.to_owned()), retry_after: Some(Duration::from_secs(5)), ..error })
    }

    async fn build_status(&self, caller: &Caller, build_id: &str, offset: u64) -> Result<TemplateBuildStatusSnapshot> {
        self.inner.snapshot(caller, parse(build_id)?, offset).await
    }

    async fn build_logs(&self, caller: &Caller, build_id: &str, offset: u64, follow: bool) -> Result<LogStream> {
        let id = parse(build_id)?;
        let missing = || Error::build_not_found(build_id);
        self.inner.metadata.get_build(caller, id).await.or_missing(missing)?;
        let inner = self.inner.clone();
        let caller = caller.clone();
        let changed = inner.hub.follow(id);
        let state = (inner, changed, std::collections::VecDeque::new(), offset, false);
        let stream = futures::stream::try_unfold(state, move |(inner, mut changed, mut ready, mut next, mut last)| {
            let caller = caller.clone();
            async move {
                loop {
                    if let Some(entry) = ready.pop_front() {
                        let entry = Arc::unwrap_or_clone(entry);
                        return Ok(Some((entry, (inner, changed, ready, next, last))));
                    }
                    if last {
                        return Ok(None);
                    }
                    changed.look();
                    let page = inner.read_log(&caller, id, next, Limit { entries: PAGE, bytes: FOLLOW_BYTES }).await?;
                    if let Some(entry) = page.entries.last() {
                        next = entry.offset + 1;
                        ready.extend(page.entries);
                        continue;
                    }
                    // Row and end are of one moment: a build that is final has no entry after these.
                    if !follow || page.row.status.is_final() {
                        last = true;
                        continue;
                    }
                    tokio::select! {
                        () = inner.shutdown.cancelled() => last = true,
                        () = changed.changed() => {}
                        () = tokio::time::sleep(POLL) => {}
                    }
                }
            }
        });
        Ok(stream.boxed())
    }

    async fn cancel_build(
        &self,
        caller: &Caller,
        build_id: &str,
        reason: Option<String>,
    ) -> Result<TemplateBuildStatusSnapshot> {
        let id = parse(build_id)?;
        let missing = || Error::build_not_found(build_id);
        if reason.as_ref().is_some_and(|reason| reason.len() > 4096) {
            return Err(Error::invalid("reason is longer than 4096 bytes"));
        }
        let now = Timestamp::now();
        let build = self.inner.metadata.get_build(caller, id).await.or_missing(missing)?;
        let request = CancelRequest {
            by: caller.namespace.clone(),
            reason,
            entry: to_store(&crate::worker::cancelled_entry(&build), now).stored()?,
        };
        let outcome = self.inner.metadata.request_cancel(caller, id, request, now).await;
        let outcome = outcome.or_missing(missing)?;
        if outcome.ended_now {
            self.inner.credentials.forget(id);
            self.inner.hub.notify(id);
        } else {
            self.inner.running.nudge(id);
        }
        self.inner.snapshot(caller, id, 0).await
    }
}

/// What the plan keeps of a checked request's Dockerfile.
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

pub(crate) fn parse(build_id: &str) -> Result<BuildId> {
    build_id.parse().map_err(|_| Error::build_not_found(build_id))
}

/// Digest of a request without its secrets, to tell a repetition from another request under the same idempotency key.
fn digest(request: &CreateTemplateRequest) -> Result<String> {
    let bytes = serde_json::to_vec(request).map_err(|error| internal("digest a request", &error))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

impl Inner {
    /// Accepts a build whose credentials and secrets, if it has any, stay in memory.
    pub(crate) async fn accept_with(
        &self,
        caller: &Caller,
        build: NewBuild,
        secrets: RequestSecrets,
    ) -> Result<TemplateBuild> {
        let _room = self.ensure_room(0, Some(TemplateFailurePhase::Prepare))?;
        let id = build.id;
        let kept = !secrets.is_empty();
        if kept {
            // Before acceptance: a worker may lease the build in the same instant.
            self.credentials.keep(caller, id, secrets)?;
        }
        let accepted = self.accept(caller, build).await;
        // Refused, or answered with the build of an earlier request.
        if kept && accepted.as_ref().is_ok_and(|build| build.build_id == id.to_string()) {
            return accepted;
        }
        self.credentials.forget(id);
        accepted
    }

    /// What `base_image` means: a template where it is written as one, or names a namespace that has it; else an image.
    pub(crate) async fn source(&self, caller: &Caller, reference: &str) -> Result<Source> {
        let image = || -> Result<Source> {
            reference
                .parse::<nullspace_oci::reference::Reference>()
                .map_err(|error| Error::invalid(format!("base_image is not valid: {error}")))?;
            Ok(Source::Image { reference: reference.to_owned() })
        };
        match reference.parse::<TemplateRef>() {
            Err(_) => image(),
            // `ubuntu:22.04` is an image, whatever templates the caller has.
            Ok(TemplateRef::Named { namespace: None, selector, .. })
                if !matches!(selector, Some(nullspace_store::Selector::Build(_))) =>
            {
                image()
            }
            Ok(parsed) => {
                let certain = parsed.is_system()
                    || matches!(&parsed, TemplateRef::Artifact(_))
                    || matches!(
                        &parsed,
                        TemplateRef::Named { selector: Some(nullspace_store::Selector::Build(_)), .. }
                    );
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
        Ok(Source::Template { reference: reference.to_owned(), artifact: resolved.artifact.id })
    }

    /// A build of this plan, not accepted yet.
    pub(crate) fn new_build(
        &self,
        name: nullspace_store::TemplateName,
        tags: Vec<nullspace_store::Tag>,
        plan: BuildPlan,
        triggered_by: Option<String>,
    ) -> Result<NewBuild> {
        let source_type = match plan.source {
            Source::Dockerfile(_) => SourceType::Dockerfile,
            _ if !plan.steps.is_empty() => SourceType::Declarative,
            Source::Image { .. } | Source::BaseTar { .. } => SourceType::OciImport,
            Source::Template { .. } => SourceType::TemplateBase,
        };
        let blobs = steps::wanted_blobs(&plan);
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

    /// One transaction: the build waits, its log has its first entry. Wakes a worker.
    pub(crate) async fn accept(&self, caller: &Caller, build: NewBuild) -> Result<TemplateBuild> {
        let now = Timestamp::now();
        let ids = LogIds { build: build.id, artifact: build.artifact_id };
        let message = format!("Build of {}/{} accepted", caller.namespace, build.name);
        let first = entry(ids, TemplateBuildLogKind::Start, TemplateBuildLogLevel::Info, message);
        let first = to_store(&first, now).stored()?;
        let claimed = build.claim.is_some();
        let id = build.id;
        let stored = self.metadata.accept_build(caller, build, first, self.config.queue, now).await.stored()?;
        if stored.id != id {
            tracing::info!(build_id = %stored.id, "repeated request answered with its build");
            return records::build(&stored, now).stored();
        }
        tracing::info!(claimed, build_id = %stored.id, template = stored.canonical_ref(), "build accepted");
        self.queued.notify_one();
        records::build(&stored, now).stored()
    }

    async fn snapshot(&self, caller: &Caller, id: BuildId, offset: u64) -> Result<TemplateBuildStatusSnapshot> {
        let page = self.read_log(caller, id, offset, Limit { entries: PAGE, bytes: usize::MAX }).await?;
        let entries: Vec<_> = page.entries.into_iter().map(Arc::unwrap_or_clone).collect();
        let next_offset = entries.last().map_or(offset.min(page.end), |entry| entry.offset + 1);
        Ok(TemplateBuildStatusSnapshot {
            build: records::build(&page.row, Timestamp::now()).stored()?,
            entries,
            next_offset,
        })
    }

    /// A build and a part of its log, of one moment after this was asked.
    async fn read_log(
        &self,
        caller: &Caller,
        id: BuildId,
        from: u64,
        limit: Limit,
    ) -> Result<Page<Arc<Build>, TemplateBuildLogEntry>> {
        let source = LogSource { metadata: Arc::clone(&self.metadata), caller: caller.clone(), build: id };
        self.tails.read(id, &source, from, limit).await
    }
}
