//! Sandboxes: create, list, get, destroy, and look one up that runs.

use std::sync::Arc;

use async_trait::async_trait;
use nullspace_api::{
    CreateSandboxRequest, CreateSandboxResponse, DestroySandboxResponse, JsonObject, SandboxInfo, SandboxListPage,
    SandboxStatus,
};

use crate::{Caller, LiveSandbox, RequestContext, Result};

/// Which sandboxes to list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SandboxQuery {
    /// Only these states; all that have not ended when empty.
    pub states: Vec<SandboxStatus>,
    /// At most so many, 1 to 1000; `None`: 1000.
    pub limit: Option<u32>,
    /// Where the page starts, from the page before.
    pub next_token: Option<String>,
    /// Made from this reference, as it was written.
    pub template: Option<String>,
    /// Only with these entries in their metadata.
    pub metadata: JsonObject,
}

/// Sandboxes.
#[async_trait]
pub trait Sandboxes: Send + Sync + 'static {
    /// Resumes a template's snapshot as a new sandbox. Returns when the guest is a new one and answers.
    ///
    /// Dropping the future does not stop the work: a caller who hangs up leaves a sandbox that lists and times out, never
    /// half of one.
    async fn create_sandbox(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        context: &RequestContext,
    ) -> Result<CreateSandboxResponse>;

    /// The caller's sandboxes, newest first.
    async fn list_sandboxes(&self, caller: &Caller, query: SandboxQuery) -> Result<SandboxListPage>;

    /// One sandbox of the caller's, also one that has ended.
    async fn get_sandbox(&self, caller: &Caller, id: &str) -> Result<SandboxInfo>;

    /// Ends a sandbox; returns when nothing of it is left.
    async fn destroy_sandbox(&self, caller: &Caller, id: &str) -> Result<DestroySandboxResponse>;

    /// The caller's sandbox, if it runs. Its operations are those of [`LiveSandbox`].
    ///
    /// # Errors
    /// `SandboxNotReady` while it starts; else not found, also when it is another tenant's or has ended.
    async fn live_sandbox(&self, caller: &Caller, id: &str) -> Result<Arc<dyn LiveSandbox>>;
}
