//! What the fake service answers with.

use nullspace_api::*;

use super::{BUILD, SANDBOX, TEMPLATE};

pub(crate) fn entry(offset: u64, kind: TemplateBuildLogKind, message: &str) -> TemplateBuildLogEntry {
    TemplateBuildLogEntry {
        build_id: BUILD.into(),
        template_id: TEMPLATE.into(),
        offset,
        timestamp: Time::from_microsecond(1_700_000_000_000_000 + i64::try_from(offset).unwrap()).unwrap(),
        kind,
        level: TemplateBuildLogLevel::Info,
        message: message.into(),
        error_detail: None,
        result: None,
        result_metadata: None,
        phase: None,
        step_index: None,
        total_steps: None,
        attempt: None,
        max_attempts: None,
        cache_kind: None,
        cache_status: None,
        cache_reason: None,
        cache_subject: None,
    }
}

pub(crate) fn build(status: TemplateBuildStatus) -> TemplateBuild {
    let time: Time = "2025-01-31T10:00:00Z".parse().unwrap();
    TemplateBuild {
        build_id: BUILD.into(),
        template_id: TEMPLATE.into(),
        name: "app".into(),
        tags: vec!["default".into()],
        status,
        build_backend: TemplateBuildBackend::Native,
        source_type: TemplateBuildSourceType::OciImport,
        canonical_ref: "ns/app:default".into(),
        namespace_slug: "ns".into(),
        visibility: TemplateVisibility::Private,
        created_at: time,
        updated_at: time,
        source_digest: None,
        context_digest: None,
        dockerfile_digest: None,
        build_config: None,
        triggered_by: None,
        queued_at: None,
        started_at: None,
        finished_at: None,
        duration_ms: None,
        failure_phase: None,
        cache_summary: None,
        artifact_availability: None,
        promotability: None,
        retention_expires_at: None,
        runtime_defaults: None,
        oci_metadata: None,
        artifact_ids: Vec::new(),
        retry_of_build_id: None,
        original_build_id: None,
        cancel_requested_at: None,
        cancel_requested_by: None,
        cancellation_reason: None,
        error: None,
        error_detail: None,
    }
}

pub(crate) fn template() -> TemplateInfo {
    TemplateInfo {
        id: TEMPLATE.into(),
        name: "app".into(),
        description: String::new(),
        builtin: false,
        canonical_ref: "ns/app:default".into(),
        namespace_slug: "ns".into(),
        visibility: TemplateVisibility::Private,
        tags: vec!["default".into()],
        default_tag: Some("default".into()),
        runtime_defaults: Some(TemplateRuntimeDefaults::default()),
    }
}

pub(crate) fn sandbox() -> SandboxInfo {
    SandboxInfo {
        id: SANDBOX.into(),
        status: SandboxStatus::Running,
        config: SandboxConfig { vcpus: 1, memory_mb: 512, disk_mb: None },
        template: "app".into(),
        created_at: "2025-01-31T10:00:00Z".parse().unwrap(),
        metadata: None,
        started_at: None,
        timeout_ms: None,
        timeout_at: None,
        expires_at: None,
        remaining_ms: None,
        timeout_action: None,
        last_active_at: None,
        inactivity_timeout_ms: None,
        auto_delete_after_ms: None,
        ephemeral: None,
        cwd: None,
        snapshot_id: None,
        traffic_access_token: None,
        warm_pool_checkout: None,
    }
}
