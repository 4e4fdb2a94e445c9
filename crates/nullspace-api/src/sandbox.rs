//! Sandboxes: microVMs resumed from a template's snapshot.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Envs, JsonObject, Time, WarmPoolCheckoutRequest, WarmPoolCheckoutResult};

/// Make a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreateSandboxRequest {
    /// Resume a snapshot of a sandbox instead of a template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Take one from a warm pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_pool: Option<WarmPoolCheckoutRequest>,
    /// Template reference; `base`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Virtual processors, 1 to 32. The snapshot fixes them: a template's own count is used, and `warnings` says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in MiB, 128 to 65536. The snapshot fixes it, as with `vcpus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Minimum size of the disk in MiB, 512 to 1048576. A value above the template's disk size is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u32>,
    /// Lifetime in milliseconds, 1 to 86400000. Default 300000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Action at the timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_action: Option<SandboxTimeoutAction>,
    /// Milliseconds without use until the sandbox ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactivity_timeout_ms: Option<u64>,
    /// Milliseconds until a paused sandbox is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_delete_after_ms: Option<u64>,
    /// Keep nothing of it when it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<bool>,
    /// Resume it when someone uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<bool>,
    /// Environment of its execs; the start command, which ran at build, never sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envs: Option<Envs>,
    /// The caller's own notes, shown and searchable; at most 64 KiB as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonObject>,
    /// False: no network. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internet_access: Option<bool>,
    /// Working directory of its execs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// A graphical desktop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desktop: Option<DesktopCreateConfig>,
    /// Network policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkCreateConfig>,
    /// Volumes to mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<VolumeMountRequest>>,
    /// Lifecycle settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<LifecycleConfig>,
}

impl CreateSandboxRequest {
    /// `template` of a request that gives none.
    pub const DEFAULT_TEMPLATE: &str = "base";
    /// `timeout_ms` of a request that gives none.
    pub const DEFAULT_TIMEOUT_MS: u64 = 300_000;
}

/// The sandbox that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreateSandboxResponse {
    /// `sb_…`.
    pub id: String,
    /// Status of the sandbox.
    pub status: SandboxStatus,
    /// Actual size of the machine.
    pub config: SandboxConfig,
    /// The template it was made from.
    pub template: String,
    /// When it was made.
    pub created_at: Time,
    /// The caller's own notes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonObject>,
    /// When it was first resumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Lifetime in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// When its time is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_at: Option<Time>,
    /// Time at which the sandbox is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Action at the timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_action: Option<SandboxTimeoutAction>,
    /// Working directory of its execs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Token for its ports, when they are not public.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_access_token: Option<String>,
    /// The use of the warm pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_pool_checkout: Option<WarmPoolCheckoutResult>,
    /// Warnings about differences from the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxInfo {
    /// `sb_…`.
    pub id: String,
    /// Status of the sandbox.
    pub status: SandboxStatus,
    /// Its size.
    pub config: SandboxConfig,
    /// The template it was made from.
    pub template: String,
    /// When it was made.
    pub created_at: Time,
    /// The caller's own notes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonObject>,
    /// When it was first resumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Lifetime in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// When its time is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_at: Option<Time>,
    /// Time at which the sandbox is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Milliseconds left until `timeout_at`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining_ms: Option<u64>,
    /// Action at the timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_action: Option<SandboxTimeoutAction>,
    /// When it was last used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_active_at: Option<Time>,
    /// Milliseconds without use until the sandbox ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactivity_timeout_ms: Option<u64>,
    /// Milliseconds until a paused sandbox is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_delete_after_ms: Option<u64>,
    /// Nothing of it is kept when it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<bool>,
    /// Working directory of its execs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The snapshot that the sandbox was resumed from, or is stored in while it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Token for its ports, when they are not public. Shown to its owner, when one sandbox is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_access_token: Option<String>,
    /// The use of the warm pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_pool_checkout: Option<WarmPoolCheckoutResult>,
}

/// Sandboxes: a bare array, or a page when `limit` or `next_token` was given. Published clients read both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum SandboxListResponse {
    /// All of them.
    All(Vec<SandboxInfo>),
    /// Some of them.
    Page(SandboxListPage),
}

/// A page of sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxListPage {
    /// The sandboxes of this page, newest first.
    pub items: Vec<SandboxInfo>,
    /// Cursor of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_token: Option<String>,
    /// True when there is a next page.
    pub has_next: bool,
}

/// A sandbox that was ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DestroySandboxResponse {
    /// `sb_…`.
    pub id: String,
    /// `destroyed`.
    pub status: SandboxStatus,
}

/// Size of a sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxConfig {
    /// Virtual processors. Always sent: published clients need it.
    #[serde(default)]
    pub vcpus: u32,
    /// Memory in MiB. Always sent.
    #[serde(default)]
    pub memory_mb: u32,
    /// Disk in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u32>,
}

/// Status of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxStatus {
    /// It is being resumed.
    Creating,
    /// It has ended.
    Destroyed,
    /// It is broken.
    Error,
    /// It is kept on disk.
    Paused,
    /// It runs.
    Running,
}

/// Action at a sandbox's timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxTimeoutAction {
    /// It ends.
    Destroy,
    /// It is kept on disk.
    Hibernate,
}

/// A graphical desktop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DesktopCreateConfig {
    /// Its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<DesktopResolution>,
    /// Dots per inch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dpi: Option<u32>,
    /// X display.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display: Option<String>,
}

/// Size of a desktop in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DesktopResolution {
    /// Across.
    pub width: u32,
    /// Down.
    pub height: u32,
}

/// Network policy of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkCreateConfig {
    /// Whether its ports can be reached without a token. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// Host header that its servers see, instead of the request's. `${PORT}` in it is the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_request_host: Option<String>,
    /// Egress policy. Default `allow_all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<NetworkEgressPolicy>,
    /// Denied destinations: the `deny_cidrs` of a custom policy. Not together with `egress`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny_out: Option<Vec<String>>,
    /// Allowed destinations: the `allow_cidrs` of a custom policy. Not together with `egress`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_out: Option<Vec<String>>,
}

/// Egress policy of a sandbox. It narrows what the deployment lets sandboxes reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkEgressPolicy {
    /// Mode of the policy.
    pub mode: NetworkEgressPolicyMode,
    /// Allowed networks, with `custom`: addresses or CIDRs, at most 64. They win over `deny_cidrs`. Without `deny_cidrs` all else
    /// is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_cidrs: Option<Vec<String>>,
    /// Denied networks, with `custom`: addresses or CIDRs, at most 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny_cidrs: Option<Vec<String>>,
    /// Limit of the outgoing rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<EgressRateLimit>,
}

/// Modes of an egress policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkEgressPolicyMode {
    /// Everything public.
    AllowAll,
    /// As the lists say.
    Custom,
    /// Nothing.
    DenyAll,
}

/// Limit of a sandbox's outgoing rate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EgressRateLimit {
    /// Kilobits a second, 8 to 10000000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kbit_per_sec: Option<u64>,
    /// Packets a second, 1 to 10000000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pps: Option<u64>,
    /// Packets that may be sent at once beyond `pps`, 1 to 1000000. Default one second's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// Change a sandbox's egress policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdateEgressRequest {
    /// The policy from now on. It replaces the one before wholly.
    pub egress: NetworkEgressPolicy,
}

/// A sandbox's egress policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdateEgressResponse {
    /// `sb_…`.
    pub sandbox_id: String,
    /// The policy that holds.
    pub egress: NetworkEgressPolicy,
}

/// A volume to mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeMountRequest {
    /// The volume.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Mount point in the sandbox.
    pub mount_path: String,
    /// Subpath of the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subpath: Option<String>,
    /// Whether it cannot be written. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

/// Lifecycle settings of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LifecycleConfig {
    /// When its time is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<LifecycleConfigOnTimeout>,
}

/// Action at a sandbox's timeout, as the client names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LifecycleConfigOnTimeout {
    /// It ends.
    Destroy,
    /// It is kept on disk.
    Pause,
}

/// Answer of `/healthz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthCheckResponse200 {
    /// `ok`.
    pub status: String,
}
