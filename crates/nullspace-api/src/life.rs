//! The life of a sandbox after its start: its timeout, pauses, snapshots and forks, and its measured use.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{JsonObject, SandboxConfig, SandboxStatus, SandboxTimeoutAction, Time};

/// A sandbox that was resumed or forked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxHandle {
    /// `sb_…`: an id of its own.
    pub id: String,
    /// `running`.
    pub status: SandboxStatus,
    /// Its size.
    pub config: SandboxConfig,
    /// Working directory of its execs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

/// A snapshot of a sandbox. Published clients reject other keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotInfo {
    /// `snap_…`.
    pub id: String,
    /// The sandbox that it was taken of.
    pub sandbox_id: String,
    /// Memory, device state and disk changes before compression, bytes.
    pub size_bytes: u64,
    /// When it was taken.
    pub created_at: Time,
    /// The caller's own notes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonObject>,
}

/// What to note with a snapshot. The contract's clients send no body.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreateSnapshotRequest {
    /// The caller's own notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonObject>,
}

/// The template that a snapshot becomes. An extension of the contract.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PromoteSnapshotRequest {
    /// Name of the template in the caller's namespace. A template of this name gets another version.
    pub name: String,
    /// The tag that points to it; `default` when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// A new timeout of a sandbox, from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetTimeoutRequest {
    /// Milliseconds from now.
    pub timeout_ms: u64,
    /// What happens then; as before when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_action: Option<SandboxTimeoutAction>,
}

/// The timeout of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetTimeoutResponse {
    /// Milliseconds from when it was set.
    pub timeout_ms: u64,
    /// What happens then.
    pub timeout_action: SandboxTimeoutAction,
    /// When that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_at: Option<Time>,
    /// Milliseconds left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining_ms: Option<u64>,
}

/// The use of a sandbox at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxMetrics {
    /// The moment.
    pub timestamp: Time,
    /// Processor time since the sample before, in percent of one processor.
    pub cpu_percent: f64,
    /// Virtual processors.
    pub cpu_count: u32,
    /// Memory that the guest uses, bytes.
    pub mem_used_bytes: u64,
    /// Memory that the guest has, bytes.
    pub mem_total_bytes: u64,
    /// Space used on its root filesystem, bytes.
    pub disk_used_bytes: u64,
    /// Size of its root filesystem, bytes.
    pub disk_total_bytes: u64,
    /// Received since its start, bytes.
    pub network_rx_bytes: u64,
    /// Sent since its start, bytes.
    pub network_tx_bytes: u64,
}
