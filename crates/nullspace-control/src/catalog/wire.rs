//! Database records in their wire form.

use jiff::Timestamp;
use nullspace_api as api;
use nullspace_db::{Build, BuildBackend, BuildStatus, DbError, Resolved, SourceType, Template, Visibility};
use nullspace_types::Tag;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Parses a JSON column as this type.
pub(crate) fn column<T: DeserializeOwned>(what: &str, value: &Value) -> Result<T, DbError> {
    T::deserialize(value).map_err(|error| DbError::Corrupt { what: format!("{what}: {error}") })
}

fn optional<T: DeserializeOwned>(what: &str, value: &Option<Value>) -> Result<Option<T>, DbError> {
    value.as_ref().map(|value| column(what, value)).transpose()
}

fn visibility(visibility: Visibility) -> api::TemplateVisibility {
    match visibility {
        Visibility::Private => api::TemplateVisibility::Private,
        Visibility::Public => api::TemplateVisibility::Public,
    }
}

fn status(status: BuildStatus) -> api::TemplateBuildStatus {
    match status {
        BuildStatus::Waiting => api::TemplateBuildStatus::Waiting,
        BuildStatus::Building => api::TemplateBuildStatus::Building,
        BuildStatus::Ready => api::TemplateBuildStatus::Ready,
        BuildStatus::Error => api::TemplateBuildStatus::Error,
        BuildStatus::Cancelled => api::TemplateBuildStatus::Cancelled,
    }
}

/// A build as `TemplateBuild`.
pub(crate) fn build(build: &Build, now: Timestamp) -> Result<api::TemplateBuild, DbError> {
    let ended = build.finished_at.unwrap_or(now);
    let duration = build.started_at.map(|started| ended.duration_since(started).as_millis().max(0));
    let usable = build.artifact.as_ref().is_some_and(|artifact| artifact.deleted_at.is_none());
    let (availability, promotability) = standing(build, usable);
    Ok(api::TemplateBuild {
        build_id: build.id.to_string(),
        template_id: build.artifact_id.to_string(),
        name: build.name.to_string(),
        tags: build.tags.iter().map(Tag::to_string).collect(),
        status: status(build.status),
        build_backend: match build.backend {
            BuildBackend::Native => api::TemplateBuildBackend::Native,
            BuildBackend::Buildkit => api::TemplateBuildBackend::Buildkit,
        },
        source_type: match build.source_type {
            SourceType::Declarative => api::TemplateBuildSourceType::Declarative,
            SourceType::Dockerfile => api::TemplateBuildSourceType::Dockerfile,
            SourceType::OciImport => api::TemplateBuildSourceType::OciImport,
            // The contract has no word of its own for a snapshot, whose sandbox was made from a template.
            SourceType::TemplateBase | SourceType::Snapshot => api::TemplateBuildSourceType::TemplateBase,
        },
        canonical_ref: build.canonical_ref(),
        namespace_slug: build.namespace.clone(),
        visibility: visibility(build.visibility),
        created_at: build.created_at.into(),
        updated_at: build.updated_at.into(),
        source_digest: build.source_digest.clone(),
        context_digest: build.context_digest.clone(),
        dockerfile_digest: build.dockerfile_digest.clone(),
        build_config: Some(column("builds.build_config", &build.build_config)?),
        triggered_by: build.triggered_by.clone(),
        queued_at: Some(build.queued_at.into()),
        started_at: build.started_at.map(Into::into),
        finished_at: build.finished_at.map(Into::into),
        duration_ms: duration.and_then(|ms| u64::try_from(ms).ok()),
        failure_phase: build.failure_phase.clone(),
        cache_summary: optional("builds.cache_summary", &build.cache_summary)?,
        artifact_availability: Some(availability),
        promotability: Some(promotability),
        retention_expires_at: build.artifact.as_ref().and_then(|kept| kept.retention_expires_at).map(Into::into),
        runtime_defaults: optional("builds.runtime_defaults", &build.runtime_defaults)?,
        oci_metadata: optional("builds.oci_metadata", &build.oci_metadata)?,
        artifact_ids: if usable { vec![build.artifact_id.to_string()] } else { Vec::new() },
        retry_of_build_id: build.retry_of.map(|id| id.to_string()),
        original_build_id: build.original.map(|id| id.to_string()),
        cancel_requested_at: build.cancel_requested_at.map(Into::into),
        cancel_requested_by: build.cancel_requested_by.clone(),
        cancellation_reason: build.cancel_reason.clone(),
        error: build.error.clone(),
        error_detail: optional("builds.error_detail", &build.error_detail)?,
    })
}

/// A build as histories list it.
pub(crate) fn summary(stored: &Build, now: Timestamp) -> Result<api::TemplateBuildSummary, DbError> {
    let whole = build(stored, now)?;
    Ok(api::TemplateBuildSummary {
        build_id: whole.build_id,
        template_id: whole.template_id,
        name: whole.name,
        tags: whole.tags,
        status: whole.status,
        build_backend: whole.build_backend,
        source_type: whole.source_type,
        created_at: whole.created_at,
        updated_at: whole.updated_at,
        source_digest: whole.source_digest,
        context_digest: whole.context_digest,
        dockerfile_digest: whole.dockerfile_digest,
        triggered_by: whole.triggered_by,
        queued_at: whole.queued_at,
        started_at: whole.started_at,
        finished_at: whole.finished_at,
        duration_ms: whole.duration_ms,
        failure_phase: whole.failure_phase,
        cache_summary: whole.cache_summary,
        artifact_availability: whole.artifact_availability,
        promotability: whole.promotability,
        retention_expires_at: whole.retention_expires_at,
        artifact_ids: whole.artifact_ids,
    })
}

/// The state of the build's artifact now.
fn standing(build: &Build, usable: bool) -> (api::TemplateBuildArtifactAvailability, api::TemplateBuildPromotability) {
    use api::TemplateBuildArtifactAvailabilityStatus as Available;
    use api::TemplateBuildPromotabilityStatus as Promotable;
    let (available, promotable, reason) = match build.status {
        BuildStatus::Waiting | BuildStatus::Building => {
            (Available::Unavailable, Promotable::NotReady, Some("the build is not finished"))
        }
        BuildStatus::Ready if usable => (Available::Available, Promotable::Promotable, None),
        BuildStatus::Ready => (Available::Unavailable, Promotable::Purged, Some("the artifact was deleted")),
        BuildStatus::Error => (Available::Failed, Promotable::Unavailable, Some("the build failed")),
        BuildStatus::Cancelled => (Available::Unavailable, Promotable::Unavailable, Some("the build was cancelled")),
    };
    let reason = reason.map(str::to_owned);
    (
        api::TemplateBuildArtifactAvailability { status: available, reason: reason.clone() },
        api::TemplateBuildPromotability {
            status: promotable,
            promotable: promotable == Promotable::Promotable,
            reason,
        },
    )
}

/// A template with the current target of a reference to it.
pub(crate) fn template(resolved: &Resolved) -> Result<api::TemplateInfo, DbError> {
    // The tags of *this* artifact: what another tag of the template points to has an id of its own.
    let here = resolved.tags.iter().filter(|target| target.build == resolved.artifact.build);
    let tags = here.map(|target| target.tag.to_string()).collect();
    let defaults = column("artifacts.runtime_defaults", &resolved.artifact.runtime_defaults)?;
    Ok(template_info(&resolved.template, resolved.artifact.id.to_string(), tags, Some(defaults)))
}

/// A `TemplateInfo` from its parts; `tags` in any order.
pub(crate) fn template_info(
    template: &Template,
    id: String,
    mut tags: Vec<String>,
    runtime_defaults: Option<api::TemplateRuntimeDefaults>,
) -> api::TemplateInfo {
    tags.sort();
    tags.dedup();
    api::TemplateInfo {
        id,
        name: template.name.to_string(),
        description: template.description.clone(),
        builtin: template.is_builtin(),
        canonical_ref: template.canonical_ref(),
        namespace_slug: template.namespace.clone(),
        visibility: visibility(template.visibility),
        tags,
        default_tag: Some(Tag::DEFAULT.to_owned()),
        runtime_defaults,
    }
}
