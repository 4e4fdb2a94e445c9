//! Settings of the running service, and the state of the database.

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

    /// Returns the service's load.
    async fn counters(&self) -> Result<Counters>;

    /// Whether the database answers and takes writes: it stores `now`.
    async fn ping(&self, now: Timestamp) -> Result<()>;

    /// Closes every connection. Later calls fail.
    async fn close(&self);
}

/// Load of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Builds that wait for a worker.
    pub builds_waiting: u64,
    /// Time since which the oldest of them waits.
    pub oldest_waiting: Option<Timestamp>,
    /// Builds in the state `building`.
    pub builds_building: u64,
    /// Sandboxes that have not ended.
    pub sandboxes_live: u64,
}
