//! Warm pools of a template: machines that are resumed ahead, so that a sandbox has nothing to wait for but its own identity.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{JsonObject, Time};

/// A warm pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateWarmPool {
    /// `twp_…`.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// The template as it was asked for.
    pub template_ref: String,
    /// The template that it stands for now.
    pub resolved_template: String,
    /// The size of its machines, which the template fixes.
    pub resources: TemplateWarmPoolResources,
    /// Machines that are kept ready.
    pub min_ready: u32,
    /// Most machines that are ready or being made.
    pub max_ready: u32,
    /// Time without a checkout after which no more than `min_ready` machines are kept, seconds.
    pub idle_timeout_seconds: u32,
    /// Age at which a machine is replaced, seconds.
    pub stale_after_seconds: u32,
    /// Behaviour of a checkout that does not say how it wants to be treated.
    pub checkout_policy: WarmPoolCheckoutMode,
    /// Whether it follows a tag.
    pub version_policy: TemplateWarmPoolVersionPolicy,
    /// How often its template has changed, from 1 on.
    pub rollout_generation: u32,
    /// The change to its present template.
    #[schema(value_type = Object)]
    pub rollout_status: JsonObject,
    /// Its machines.
    pub status: TemplateWarmPoolStatusCounts,
    /// Its state.
    pub state: TemplateWarmPoolState,
    /// Words to find it by.
    #[schema(value_type = Object)]
    pub labels: BTreeMap<String, String>,
    /// The caller's own notes.
    #[schema(value_type = Object)]
    pub metadata: JsonObject,
    /// When it was made.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
    /// The build of the present template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_template_build_id: Option<String>,
    /// The artifact that its machines are resumed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_artifact_id: Option<String>,
    /// As the request had it. This deployment has no pools of hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_pool_id: Option<String>,
    /// As the request had it. This deployment has no cells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell_id: Option<String>,
    /// Pools with the same key have the same machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compatibility_key: Option<String>,
    /// The tag that it follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_tag: Option<String>,
    /// The template before the last change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_resolved_template: Option<String>,
    /// Its build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_resolved_template_build_id: Option<String>,
    /// Its artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_runtime_artifact_id: Option<String>,
    /// Why it has fewer machines than it should.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded_reason: Option<TemplateWarmPoolDegradedReason>,
    /// When it was last enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled_at: Option<Time>,
    /// When it was last disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_at: Option<Time>,
    /// When it was last drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_requested_at: Option<Time>,
    /// When its machines were last compared with what it should have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reconciled_at: Option<Time>,
    /// When it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Time>,
}

/// Machines of a warm pool, by what they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateWarmPoolStatusCounts {
    /// How many should be ready.
    pub target: u32,
    /// Ready to be checked out.
    pub ready: u32,
    /// Being made.
    pub warming: u32,
    /// Sandboxes that came from it and have not ended.
    pub claimed: u32,
    /// Being ended.
    pub draining: u32,
    /// Failed since the service started.
    pub failed: u32,
    /// Replaced for their age since the service started.
    pub expired: u32,
    /// Lacking, and not being made.
    pub unavailable: u32,
}

/// Size of a warm pool's machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateWarmPoolResources {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mb: u32,
    /// Disk, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u32>,
}

/// State of a warm pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateWarmPoolState {
    /// It is over.
    Deleted,
    /// It keeps no machines.
    Disabled,
    /// It ends its machines and makes no more.
    Draining,
    /// It keeps machines.
    Enabled,
}

/// How a warm pool fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ListTemplateWarmPoolsStatus {
    /// Something keeps it from making machines.
    Degraded,
    /// It is draining.
    Draining,
    /// It has all machines that it should have.
    Ready,
    /// It is disabled or deleted.
    Unavailable,
    /// It makes machines.
    Warming,
}

/// Whether a warm pool follows a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateWarmPoolVersionPolicy {
    /// It stays with the build that its reference meant when it was made.
    PinnedBuild,
    /// It moves with the tag.
    TrackTag,
}

/// Why a warm pool has fewer machines than it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateWarmPoolDegradedReason {
    /// The template's files are not there.
    ArtifactNotReady,
    /// Its machines do not come up.
    ArtifactPrewarmFailed,
    /// The operator has turned warm pools off.
    ControllerDisabled,
    /// It is draining.
    DrainActive,
    /// No host has room for its machines.
    NoEligibleHosts,
    /// The tenant's quota is used up.
    QuotaExceeded,
    /// The template has no build that can be used.
    TemplateBuildUnavailable,
}

/// A warm pool to make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreateTemplateWarmPoolRequest {
    /// Its name, for people: 1 to 128 characters.
    pub name: String,
    /// The template.
    pub template_ref: String,
    /// Machines to keep ready.
    pub min_ready: u32,
    /// Most machines that are ready or being made; at least `min_ready`.
    pub max_ready: u32,
    /// The size of its machines. The template fixes it; others are not made.
    pub resources: TemplateWarmPoolResources,
    /// Another name of `template_ref`, which wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Behaviour of a checkout that does not say how it wants to be treated. Default: `prefer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkout_policy: Option<WarmPoolCheckoutMode>,
    /// Time without a checkout after which no more than `min_ready` machines are kept, seconds. Default: 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u32>,
    /// Age at which a machine is replaced, seconds. Default: 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_after_seconds: Option<u32>,
    /// Whether it follows a tag. Default: `pinned_build`, or `track_tag` when there is a `track_tag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_policy: Option<TemplateWarmPoolVersionPolicy>,
    /// The tag to follow. Default: that of the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_tag: Option<String>,
    /// Kept, and without effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_pool_id: Option<String>,
    /// Kept, and without effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell_id: Option<String>,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub labels: Option<BTreeMap<String, String>>,
    /// The caller's own notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonObject>,
}

/// A change of a warm pool. What is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UpdateTemplateWarmPoolRequest {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_ref: Option<String>,
    /// Another name of `template_ref`, which wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Machines to keep ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ready: Option<u32>,
    /// Most machines that are ready or being made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ready: Option<u32>,
    /// The size of its machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<TemplateWarmPoolResources>,
    /// Behaviour of a checkout that does not say how it wants to be treated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkout_policy: Option<WarmPoolCheckoutMode>,
    /// Time without a checkout after which no more than `min_ready` machines are kept, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u32>,
    /// Age at which a machine is replaced, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_after_seconds: Option<u32>,
    /// Whether it follows a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_policy: Option<TemplateWarmPoolVersionPolicy>,
    /// The tag to follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_tag: Option<String>,
    /// Kept, and without effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_pool_id: Option<String>,
    /// Kept, and without effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell_id: Option<String>,
    /// Words to find it by; they replace those before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub labels: Option<BTreeMap<String, String>>,
    /// The caller's own notes; they replace those before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonObject>,
}

/// Warm pools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateWarmPoolListResponse {
    /// The caller's warm pools, newest first.
    pub items: Vec<TemplateWarmPool>,
}

/// Ask for a sandbox that is ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WarmPoolCheckoutRequest {
    /// The pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Behaviour when no warm sandbox is available. Default: the pool's `checkout_policy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<WarmPoolCheckoutMode>,
    /// Longest wait for a warm sandbox, milliseconds, at most 60 000. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

/// The use of a warm pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WarmPoolCheckoutResult {
    /// Origin of the sandbox.
    pub source: WarmPoolCheckoutResultSource,
    /// True when one was ready.
    pub hit: bool,
    /// The pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Requested mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<WarmPoolCheckoutMode>,
}

/// Modes of using a warm pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WarmPoolCheckoutMode {
    /// Do not.
    Bypass,
    /// If there is one.
    Prefer,
    /// Or fail.
    Require,
}

/// Origin of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WarmPoolCheckoutResultSource {
    /// No pool was asked.
    Bypassed,
    /// It was made.
    ColdCreate,
    /// It was ready.
    ReadyInstance,
}
