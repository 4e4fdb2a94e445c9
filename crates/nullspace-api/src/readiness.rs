//! When a started service counts as ready.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// When the start command counts as ready. Attempts are made inside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", expecting = "an object with a `kind`")]
pub enum TemplateReadinessProbe {
    /// A TCP port accepts connections.
    Tcp(TcpReadinessProbe),
    /// Some time has passed.
    Timeout(TimeoutReadinessProbe),
    /// An HTTP server answers 2xx or 3xx.
    Http(HttpReadinessProbe),
    /// A command exits 0.
    Command(CommandReadinessProbe),
}

impl TemplateReadinessProbe {
    /// `timeout_secs` of a probe that gives none.
    pub const DEFAULT_TIMEOUT_SECS: u64 = 30;
    /// `interval_ms` of a probe that gives none.
    pub const DEFAULT_INTERVAL_MS: u64 = 500;
    /// `startup_grace_secs` of a probe that gives none.
    pub const DEFAULT_STARTUP_GRACE_SECS: u64 = 2;
}

/// A TCP port on localhost in the guest accepts connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = TemplateReadinessProbeType0)]
pub struct TcpReadinessProbe {
    /// Port in the guest.
    pub port: u16,
    /// Seconds until the build fails; 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u64>,
    /// Milliseconds between attempts; 500.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Seconds before the first attempt; 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup_grace_secs: Option<u64>,
}

/// Ready after a fixed number of milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = TemplateReadinessProbeType1)]
pub struct TimeoutReadinessProbe {
    /// How long to wait, in milliseconds.
    pub timeout_ms: u64,
}

/// An HTTP server on localhost in the guest answers 2xx or 3xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = TemplateReadinessProbeType2)]
pub struct HttpReadinessProbe {
    /// Port in the guest.
    pub port: u16,
    /// Absolute path, with query.
    pub path: String,
    /// Seconds until the build fails; 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u64>,
    /// Milliseconds between attempts; 500.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Seconds before the first attempt; 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup_grace_secs: Option<u64>,
}

/// A command exits 0 in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = TemplateReadinessProbeType3)]
pub struct CommandReadinessProbe {
    /// Run by `sh -c`.
    pub command: String,
    /// Seconds until the build fails; 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u64>,
    /// Milliseconds between attempts; 500.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Seconds before the first attempt; 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup_grace_secs: Option<u64>,
}
