//! A warm pool as the API shows it.

use nullspace_api::{
    JsonObject, ListTemplateWarmPoolsStatus as Fares, TemplateWarmPool, TemplateWarmPoolDegradedReason as Reason,
    TemplateWarmPoolState, TemplateWarmPoolStatusCounts,
};
use nullspace_db::{WarmPool, WarmPoolState};
use serde_json::json;

use super::keep::want;
use super::spec::{Spec, Version};
use super::stock::Stock;
use crate::catalog::wire::column;
use crate::error::{Result, Stored};

/// A pool with its spares and the number of its sandboxes.
pub(super) fn pool(row: &WarmPool, stock: &Stock, claimed: u64) -> Result<TemplateWarmPool> {
    let spec: Spec = column("warm_pools.spec", &row.spec).stored()?;
    let version: Version = column("warm_pools.version", &row.version).stored()?;
    let status = counts(row, &spec, stock, claimed);
    let rollout = rollout(row, &spec, &version, stock, &status);
    let before = version.before.as_ref();
    Ok(TemplateWarmPool {
        id: row.id.to_string(),
        name: spec.name,
        template_ref: spec.template_ref,
        resolved_template: version.now.template.clone(),
        resources: spec.resources,
        min_ready: spec.min_ready,
        max_ready: spec.max_ready,
        idle_timeout_seconds: spec.idle_timeout_seconds,
        stale_after_seconds: spec.stale_after_seconds,
        checkout_policy: spec.checkout_policy,
        version_policy: spec.version_policy,
        rollout_generation: version.generation,
        rollout_status: rollout,
        status,
        state: state(row.state),
        labels: spec.labels,
        metadata: spec.metadata,
        created_at: row.created_at.into(),
        updated_at: row.updated_at.into(),
        resolved_template_build_id: Some(version.now.build.to_string()),
        runtime_artifact_id: Some(version.now.artifact.to_string()),
        host_pool_id: spec.host_pool_id,
        cell_id: spec.cell_id,
        compatibility_key: Some(version.now.artifact.to_string()),
        track_tag: spec.track_tag,
        previous_resolved_template: before.map(|before| before.template.clone()),
        previous_resolved_template_build_id: before.map(|before| before.build.to_string()),
        previous_runtime_artifact_id: before.map(|before| before.artifact.to_string()),
        degraded_reason: degraded(row, stock, &status),
        enabled_at: row.enabled_at.map(Into::into),
        disabled_at: row.disabled_at.map(Into::into),
        drain_requested_at: row.drain_requested_at.map(Into::into),
        last_reconciled_at: stock.compared_at.map(Into::into),
        deleted_at: row.deleted_at.map(Into::into),
    })
}

fn counts(row: &WarmPool, spec: &Spec, stock: &Stock, claimed: u64) -> TemplateWarmPoolStatusCounts {
    let target = stock.target(want(row, spec));
    let ready = u32::try_from(stock.ready.len()).unwrap_or(u32::MAX);
    TemplateWarmPoolStatusCounts {
        target,
        ready,
        warming: stock.making,
        claimed: u32::try_from(claimed).unwrap_or(u32::MAX),
        draining: stock.ending,
        failed: stock.failed,
        expired: stock.expired,
        unavailable: target.saturating_sub(ready).saturating_sub(stock.making),
    }
}

/// The reason for which a pool has too few spares now. One with enough has none, whatever failed before.
fn degraded(row: &WarmPool, stock: &Stock, status: &TemplateWarmPoolStatusCounts) -> Option<Reason> {
    match row.state {
        WarmPoolState::Draining => Some(Reason::DrainActive),
        WarmPoolState::Enabled if status.ready < status.target => stock.degraded,
        _ => None,
    }
}

fn rollout(
    row: &WarmPool,
    spec: &Spec,
    version: &Version,
    stock: &Stock,
    status: &TemplateWarmPoolStatusCounts,
) -> JsonObject {
    let current = stock.ready.iter().filter(|spare| spare.artifact == version.now.artifact).count();
    let old = stock.ready.len() - current;
    let counts = |ready: usize| {
        json!({
            "ready": ready, "warming": status.warming, "claimed": status.claimed, "failed": status.failed,
            "draining": status.draining, "released": stock.released, "other": 0,
        })
    };
    let status = json!({
        "version_policy": spec.version_policy,
        "track_tag": spec.track_tag,
        "rollout_generation": version.generation,
        "current_identity": {
            "template": version.now.template,
            "resolved_template_build_id": version.now.build.to_string(),
            "runtime_artifact_id": version.now.artifact.to_string(),
        },
        "current_counts": counts(current),
        "observed_pool_counts": counts(stock.ready.len()),
        "old_ready_or_warming": old,
        "old_ready_or_warming_released_this_tick": 0,
        "updated_at": nullspace_api::Time::from(row.updated_at),
    });
    match status {
        serde_json::Value::Object(mut status) => {
            status.retain(|_, value| !value.is_null());
            status
        }
        _ => JsonObject::new(),
    }
}

/// How a pool fares.
pub(super) fn fares(pool: &TemplateWarmPool) -> Fares {
    match pool.state {
        TemplateWarmPoolState::Deleted | TemplateWarmPoolState::Disabled => Fares::Unavailable,
        TemplateWarmPoolState::Draining => Fares::Draining,
        TemplateWarmPoolState::Enabled if pool.status.ready >= pool.status.target => Fares::Ready,
        TemplateWarmPoolState::Enabled if pool.degraded_reason.is_some() => Fares::Degraded,
        TemplateWarmPoolState::Enabled => Fares::Warming,
    }
}

pub(super) fn state(state: WarmPoolState) -> TemplateWarmPoolState {
    match state {
        WarmPoolState::Enabled => TemplateWarmPoolState::Enabled,
        WarmPoolState::Disabled => TemplateWarmPoolState::Disabled,
        WarmPoolState::Draining => TemplateWarmPoolState::Draining,
        WarmPoolState::Deleted => TemplateWarmPoolState::Deleted,
    }
}
