//! Database rows of sandboxes and snapshots in their wire form.

use jiff::Timestamp;
use nullspace_api::{
    CreateSandboxResponse, JsonObject, SandboxConfig, SandboxHandle, SandboxInfo, SandboxMetrics,
    SandboxStatus as WireStatus, SnapshotInfo,
};
use nullspace_db::{Sandbox, SandboxStatus, Snapshot};
use nullspace_host_interface::SandboxUse;

use super::spec::{Config, until};
use crate::catalog::wire::column;
use crate::error::{Result, Stored};

pub(super) fn created(sandbox: &Sandbox, warnings: Vec<String>) -> Result<CreateSandboxResponse> {
    let info = info(sandbox, None)?;
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
        warm_pool_checkout: info.warm_pool_checkout,
        warnings,
    })
}

/// A sandbox; `last_active` is what its host knows, and newer than the row.
pub(super) fn info(sandbox: &Sandbox, last_active: Option<Timestamp>) -> Result<SandboxInfo> {
    let config = Config::stored(&sandbox.config)?;
    let metadata: JsonObject = column("sandboxes.metadata", &sandbox.metadata).stored()?;
    // While it is paused, the row's time is that of its end.
    let timeout_at = sandbox.timeout_at.filter(|_| sandbox.status != SandboxStatus::Paused);
    Ok(SandboxInfo {
        id: sandbox.id.to_string(),
        status: status_to_wire(sandbox.status),
        config: size(&config),
        template: sandbox.template_ref.clone(),
        created_at: sandbox.created_at.into(),
        metadata: Some(metadata),
        started_at: sandbox.started_at.map(Into::into),
        timeout_ms: Some(config.timeout_ms),
        timeout_at: timeout_at.map(Into::into),
        expires_at: sandbox.timeout_at.map(Into::into),
        remaining_ms: timeout_at.filter(|_| !sandbox.status.is_final()).map(until),
        timeout_action: Some(config.at_timeout.wire()),
        last_active_at: last_active.max(sandbox.last_active_at).map(Into::into),
        inactivity_timeout_ms: config.inactivity_timeout_ms,
        auto_delete_after_ms: config.auto_delete_after_ms,
        ephemeral: config.ephemeral.then_some(true),
        cwd: Some(config.cwd),
        snapshot_id: sandbox.snapshot.map(|snapshot| snapshot.to_string()),
        traffic_access_token: None,
        warm_pool_checkout: config.warm_pool,
    })
}

pub(super) fn handle(sandbox: &Sandbox) -> Result<SandboxHandle> {
    let config = Config::stored(&sandbox.config)?;
    Ok(SandboxHandle {
        id: sandbox.id.to_string(),
        status: status_to_wire(sandbox.status),
        config: size(&config),
        cwd: Some(config.cwd),
    })
}

pub(super) fn snapshot(snapshot: &Snapshot) -> Result<SnapshotInfo> {
    let metadata: JsonObject = column("snapshots.metadata", &snapshot.metadata).stored()?;
    Ok(SnapshotInfo {
        id: snapshot.id.to_string(),
        sandbox_id: snapshot.sandbox.to_string(),
        size_bytes: snapshot.size_bytes,
        created_at: snapshot.created_at.into(),
        metadata: (!metadata.is_empty()).then_some(metadata),
    })
}

pub(super) fn metrics(used: SandboxUse) -> SandboxMetrics {
    SandboxMetrics {
        timestamp: used.at.into(),
        cpu_percent: used.cpu_percent,
        cpu_count: used.vcpus,
        mem_used_bytes: used.memory_used,
        mem_total_bytes: used.memory_total,
        disk_used_bytes: used.disk_used,
        disk_total_bytes: used.disk_total,
        network_rx_bytes: used.received,
        network_tx_bytes: used.sent,
    }
}

fn size(config: &Config) -> SandboxConfig {
    SandboxConfig { vcpus: config.vcpus, memory_mb: config.memory_mb, disk_mb: Some(config.disk_mb) }
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
