//! Database rows of sandboxes in their wire form.

use jiff::Timestamp;
use nullspace_api::{
    CreateSandboxResponse, JsonObject, SandboxConfig, SandboxInfo, SandboxStatus as WireStatus, SandboxTimeoutAction,
};
use nullspace_db::{Sandbox, SandboxStatus};

use super::Config;
use crate::catalog::wire::column;
use crate::error::{Result, Stored};

pub(super) fn created(sandbox: &Sandbox, warnings: Vec<String>) -> Result<CreateSandboxResponse> {
    let info = info(sandbox)?;
    Ok(CreateSandboxResponse {
        id: info.id,
        status: info.status,
        config: info.config,
        template: info.template,
        created_at: info.created_at,
        metadata: info.metadata,
        started_at: info.started_at,
        timeout_ms: info.timeout_ms,
        timeout_at: info.timeout_at,
        expires_at: info.expires_at,
        timeout_action: info.timeout_action,
        cwd: info.cwd,
        traffic_access_token: None,
        warm_pool_checkout: None,
        warnings,
    })
}

pub(super) fn info(sandbox: &Sandbox) -> Result<SandboxInfo> {
    let config: Config = column("sandboxes.config", &sandbox.config).stored()?;
    let metadata: JsonObject = column("sandboxes.metadata", &sandbox.metadata).stored()?;
    let left = |at: Timestamp| u64::try_from(at.duration_since(Timestamp::now()).as_millis()).unwrap_or(0);
    Ok(SandboxInfo {
        id: sandbox.id.to_string(),
        status: status_to_wire(sandbox.status),
        config: SandboxConfig { vcpus: config.vcpus, memory_mb: config.memory_mb, disk_mb: Some(config.disk_mb) },
        template: sandbox.template_ref.clone(),
        created_at: sandbox.created_at.into(),
        metadata: Some(metadata),
        started_at: sandbox.started_at.map(Into::into),
        timeout_ms: Some(config.timeout_ms),
        timeout_at: sandbox.timeout_at.map(Into::into),
        expires_at: sandbox.timeout_at.map(Into::into),
        remaining_ms: sandbox.timeout_at.filter(|_| !sandbox.status.is_final()).map(left),
        timeout_action: Some(SandboxTimeoutAction::Destroy),
        last_active_at: None,
        inactivity_timeout_ms: None,
        auto_delete_after_ms: None,
        ephemeral: None,
        cwd: Some(config.cwd),
        snapshot_id: None,
        warm_pool_checkout: None,
    })
}

fn status_to_wire(status: SandboxStatus) -> WireStatus {
    match status {
        SandboxStatus::Creating => WireStatus::Creating,
        SandboxStatus::Running => WireStatus::Running,
        SandboxStatus::Paused => WireStatus::Paused,
        SandboxStatus::Destroyed => WireStatus::Destroyed,
        SandboxStatus::Error => WireStatus::Error,
    }
}

pub(super) fn status_to_store(status: WireStatus) -> SandboxStatus {
    match status {
        WireStatus::Creating => SandboxStatus::Creating,
        WireStatus::Running => SandboxStatus::Running,
        WireStatus::Paused => SandboxStatus::Paused,
        WireStatus::Destroyed => SandboxStatus::Destroyed,
        WireStatus::Error => SandboxStatus::Error,
    }
}
