//! Builds as callers see them: start, status, log, cancel.

use std::pin::Pin;

use futures::Stream;
use jiff::Timestamp;
use nullspace_api::{
    CreateTemplateRequest, TemplateBuild, TemplateBuildConfig, TemplateBuildLogEntry, TemplateBuildLogKind,
    TemplateBuildLogLevel, TemplateBuildStatusSnapshot,
};
use nullspace_store::{
    ArtifactId, BuildBackend, BuildId, Caller, CancelRequest, NewBuild, SourceType, TemplateId, TemplateRef,
};
use serde_json::json;

use crate::error::{Error, Result};
use crate::logs::{LogIds, POLL, entry, from_store, to_store};
use crate::plan::{BuildPlan, Source};
use crate::templates::generated_name;
use crate::validate::{self, WantedSource};
use crate::{Engine, Inner, records};

/// Entries of one status answer; the rest is read from `next_offset` on.
const PAGE: u32 = 1_000;

/// A build's log, entry after entry.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<TemplateBuildLogEntry>> + Send>>;

impl Engine {
    /// Accepts a build: durable before this returns, run in the background.
    pub async fn start_build(&self, caller: &Caller, mut request: CreateTemplateRequest) -> Result<TemplateBuild> {
        let valid = validate::check(&request)?;
        let auth = request.base_image_auth.take();
        let inner = &self.inner;
        if inner.admission.never_fits(valid.machine.memory_mib, valid.machine.vcpus) {
            let limit = inner.admission.limit();
            return Err(Error::invalid(format!(
                "build_config asks for more than this host has: at most {} MiB and {} vCPUs",
                limit.memory_mib, limit.vcpus
            )));
        }
        let source = match valid.source {
            WantedSource::Image(reference) => inner.source(caller, &reference).await?,
            WantedSource::DefaultBase => inner.template_source(caller, "nullspace/base").await?,
        };
        if auth.is_some() && matches!(source, Source::Template { .. }) {
            return Err(Error::invalid("base_image_auth is for images in registries, base_image is a template"));
        }
        let name = match valid.name {
            Some(name) => name,
            None => generated_name(TemplateId::new())?,
        };
        let plan = BuildPlan {
            source,
            machine: valid.machine,
            build_envs: valid.build_envs,
            start_cmd: valid.start_cmd,
            runtime: valid.runtime,
            skip_cache: valid.skip_cache,
            authenticated: auth.is_some(),
        };
        let build = inner.new_build(name, valid.tags, plan, Some(caller.namespace.clone()))?;
        if let Some(auth) = auth {
            // Before acceptance: a worker may lease the build in the same instant.
            inner.credentials.keep(build.id, auth);
        }
        let id = build.id;
        match inner.accept(caller, build).await {
            Ok(build) => Ok(build),
            Err(error) => {
                inner.credentials.forget(id);
                Err(error)
            }
        }
    }

    /// A build and its log from `offset` on, at most a thousand entries.
    pub async fn build_status(
        &self,
        caller: &Caller,
        build_id: &str,
        offset: u64,
    ) -> Result<TemplateBuildStatusSnapshot> {
        self.inner.snapshot(caller, parse(build_id)?, offset).await
    }

    /// The log from `offset` on; with `follow`, until the entry that ends it.
    pub async fn build_logs(&self, caller: &Caller, build_id: &str, offset: u64, follow: bool) -> Result<LogStream> {
        let id = parse(build_id)?;
        let missing = || Error::build_not_found(build_id);
        self.inner.metadata.get_build(caller, id).await.map_err(|error| Error::store(error, missing))?;
        let inner = self.inner.clone();
        let caller = caller.clone();
        let changed = inner.hub.follow(id);
        let state = (inner, changed, std::collections::VecDeque::new(), offset, false);
        let stream = futures::stream::try_unfold(state, move |(inner, mut changed, mut ready, mut next, mut last)| {
            let caller = caller.clone();
            async move {
                loop {
                    if let Some(entry) = ready.pop_front() {
                        return Ok(Some((entry, (inner, changed, ready, next, last))));
                    }
                    if last {
                        return Ok(None);
                    }
                    changed.borrow_and_update();
                    // The state is read before the entries: a build final by then has no entry that this read misses.
                    let (build, _) = inner.metadata.build_and_next_offset(&caller, id).await?;
                    for stored in inner.metadata.log_entries(&caller, id, next, PAGE).await? {
                        next = stored.offset + 1;
                        ready.push_back(from_store(stored, (&build).into())?);
                    }
                    if !ready.is_empty() {
                        continue;
                    }
                    if !follow || build.status.is_final() {
                        last = true;
                        continue;
                    }
                    tokio::select! {
                        () = inner.shutdown.cancelled() => last = true,
                        _ = changed.changed() => {}
                        () = tokio::time::sleep(POLL) => {}
                    }
                }
            }
        });
        Ok(Box::pin(stream))
    }

    /// Asks for a build to be cancelled. Idempotent; a build that is over stays as it is.
    pub async fn cancel_build(
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
        let build = self.inner.metadata.get_build(caller, id).await.map_err(|error| Error::store(error, missing))?;
        let request = CancelRequest {
            by: caller.namespace.clone(),
            reason,
            entry: to_store(&crate::worker::cancelled_entry(&build), now)?,
        };
        let outcome = self.inner.metadata.request_cancel(caller, id, request, now).await;
        let outcome = outcome.map_err(|error| Error::store(error, missing))?;
        if outcome.ended_now {
            self.inner.credentials.forget(id);
            self.inner.hub.notify(id);
        } else {
            self.inner.running.nudge(id);
        }
        self.inner.snapshot(caller, id, 0).await
    }
}

fn parse(build_id: &str) -> Result<BuildId> {
    build_id.parse().map_err(|_| Error::build_not_found(build_id))
}

impl Inner {
    /// What `base_image` means: a template where it is written as one, or names a namespace that has it; else an image.
    async fn source(&self, caller: &Caller, reference: &str) -> Result<Source> {
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

    async fn template_source(&self, caller: &Caller, reference: &str) -> Result<Source> {
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
            Source::Image { .. } | Source::BaseTar { .. } => SourceType::OciImport,
            Source::Template { .. } => SourceType::TemplateBase,
        };
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
            backend: BuildBackend::Native,
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
        })
    }

    /// One transaction: the build waits, its log has its first entry. Wakes a worker.
    pub(crate) async fn accept(&self, caller: &Caller, build: NewBuild) -> Result<TemplateBuild> {
        let now = Timestamp::now();
        let ids = LogIds { build: build.id, artifact: build.artifact_id };
        let message = format!("Build of {}/{} accepted", caller.namespace, build.name);
        let first = entry(ids, TemplateBuildLogKind::Start, TemplateBuildLogLevel::Info, message);
        let first = to_store(&first, now)?;
        let stored = self.metadata.accept_build(caller, build, first, self.config.queue, now).await?;
        tracing::info!(build_id = %stored.id, template = stored.canonical_ref(), "build accepted");
        self.queued.notify_one();
        Ok(records::build(&stored, now)?)
    }

    async fn snapshot(&self, caller: &Caller, id: BuildId, offset: u64) -> Result<TemplateBuildStatusSnapshot> {
        let missing = || Error::build_not_found(&id.to_string());
        // The row before the entries: a final status is never shown with a log that lacks its end.
        let read = self.metadata.build_and_next_offset(caller, id).await;
        let (build, end) = read.map_err(|error| Error::store(error, missing))?;
        let limit = u32::try_from(end.saturating_sub(offset)).unwrap_or(PAGE).min(PAGE);
        let stored = if limit == 0 { Vec::new() } else { self.metadata.log_entries(caller, id, offset, limit).await? };
        let entries = stored.into_iter().map(|entry| from_store(entry, (&build).into()));
        let entries = entries.collect::<std::result::Result<Vec<_>, _>>()?;
        let next_offset = entries.last().map_or(offset.min(end), |entry| entry.offset + 1);
        Ok(TemplateBuildStatusSnapshot { build: records::build(&build, Timestamp::now())?, entries, next_offset })
    }
}
