//! Pauses, snapshots, forks, timeouts and events of sandboxes.

use nullspace_api::{
    CreateSnapshotRequest, LifecycleEventListResponse, PromoteSnapshotRequest, SandboxHandle, SandboxMetrics,
    SandboxTimeoutAction, SetTimeoutRequest, SetTimeoutResponse, SnapshotInfo, TemplateInfo,
};
use reqwest::Method;
use serde::Serialize;

use crate::{Client, Result, TIMEOUT};

/// The body of an operation that takes none: `{}`.
#[derive(Debug, Serialize)]
struct Empty {}

const EMPTY: Empty = Empty {};

impl Client {
    /// Pause a sandbox into a snapshot.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn hibernate(&self, id: &str) -> Result<SnapshotInfo> {
        self.post(self.url(&["v1", "sandboxes", id, "hibernate"])?, &EMPTY, "pause the sandbox").await
    }

    /// Resume a paused sandbox, or make one from a snapshot: by the snapshot's id or the sandbox's.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn resume(&self, id: &str) -> Result<SandboxHandle> {
        self.post(self.url(&["v1", "sandboxes", id, "resume"])?, &EMPTY, "resume the sandbox").await
    }

    /// Clone a running sandbox.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn fork(&self, id: &str) -> Result<SandboxHandle> {
        self.post(self.url(&["v1", "sandboxes", id, "fork"])?, &EMPTY, "fork the sandbox").await
    }

    /// Take a reusable snapshot of a running sandbox.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn create_snapshot(&self, id: &str, request: &CreateSnapshotRequest) -> Result<SnapshotInfo> {
        self.post(self.url(&["v1", "sandboxes", id, "snapshots"])?, request, "take the snapshot").await
    }

    /// Set a sandbox's timeout, from now.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn set_timeout(
        &self,
        id: &str,
        timeout_ms: u64,
        timeout_action: Option<SandboxTimeoutAction>,
    ) -> Result<SetTimeoutResponse> {
        let url = self.url(&["v1", "sandboxes", id, "timeout"])?;
        let request = SetTimeoutRequest { timeout_ms, timeout_action };
        self.call(Method::POST, url, Some(&request), TIMEOUT, "set the timeout").await
    }

    /// The use of a sandbox over time, oldest first.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn sandbox_metrics(&self, id: &str) -> Result<Vec<SandboxMetrics>> {
        self.get(self.url(&["v1", "sandboxes", id, "metrics"])?, "get the sandbox's use").await
    }

    /// The newest 50 events of a sandbox, also of one that is over.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn sandbox_events(&self, id: &str) -> Result<LifecycleEventListResponse> {
        self.get(self.url(&["v1", "sandboxes", id, "lifecycle"])?, "list the sandbox's events").await
    }

    /// All snapshots of the key's tenant, newest first.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn list_snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        self.get(self.url(&["v1", "snapshots"])?, "list snapshots").await
    }

    /// A snapshot.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn get_snapshot(&self, id: &str) -> Result<SnapshotInfo> {
        self.get(self.url(&["v1", "snapshots", id])?, "get the snapshot").await
    }

    /// Make a template of a snapshot. Its sandboxes have what was in the snapshot's memory and on its disk.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn promote_snapshot(&self, id: &str, request: &PromoteSnapshotRequest) -> Result<TemplateInfo> {
        self.post(self.url(&["v1", "snapshots", id, "promote"])?, request, "promote the snapshot").await
    }

    /// Delete a snapshot.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn delete_snapshot(&self, id: &str) -> Result<()> {
        let url = self.url(&["v1", "snapshots", id])?;
        self.send(Method::DELETE, url, None, TIMEOUT, "delete the snapshot").await.map(drop)
    }
}
