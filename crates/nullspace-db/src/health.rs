//! Settings of the running service, and whether the database works.

use async_trait::async_trait;
use jiff::Timestamp;

use crate::Result;

/// Settings, counters and the state of the database itself.
#[async_trait]
pub trait Health: Send + Sync + 'static {
    /// A setting of the running service.
    async fn get_setting(&self, key: &str) -> Result<Option<serde_json::Value>>;

    /// Stores a setting.
    async fn put_setting(&self, key: &str, value: &serde_json::Value, now: Timestamp) -> Result<()>;

    /// How full the service is.
    async fn counters(&self) -> Result<Counters>;

    /// Whether the database answers and takes writes: it stores `now`.
    async fn ping(&self, now: Timestamp) -> Result<()>;

    /// Ends every connection; calls after it fail.
    async fn close(&self);
}

/// How full the service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Builds that wait.
    pub builds_waiting: u64,
    /// Since when the first of them does.
    pub oldest_waiting: Option<Timestamp>,
    /// Builds that a worker has or had.
    pub builds_building: u64,
    /// Sandboxes that are not over.
    pub sandboxes_live: u64,
}
