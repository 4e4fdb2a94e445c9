//! Sandboxes: create, list, get, destroy, and look up a running one.

use std::sync::Arc;

use async_trait::async_trait;
use nullspace_api::{
    CreateSandboxRequest, CreateSandboxResponse, DestroySandboxResponse, JsonObject, SandboxInfo, SandboxListPage,
    SandboxStatus,
};

use crate::{Caller, LiveSandbox, RequestContext, Result};

/// A query for sandboxes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SandboxQuery {
    /// Only these states. Empty: all that have not ended.
    pub states: Vec<SandboxStatus>,
    /// Page size, 1 to 1000; `None`: 1000.
    pub limit: Option<u32>,
    /// Start of the page, from the page before.
    pub next_token: Option<String>,
    /// Only sandboxes made from this reference, as it was written.
    pub template: Option<String>,
    /// Only sandboxes with these entries in their metadata.
    pub metadata: JsonObject,
}

/// Sandboxes.
#[async_trait]
pub trait Sandboxes: Send + Sync + 'static {
    /// Resumes a template's or a sandbox's snapshot as a new sandbox. Returns when the guest has its own identity and answers.
    ///
    /// Dropping the future does not stop the work: a caller that disconnects leaves a complete sandbox, which is listed and times
    /// out.
    async fn create_sandbox(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        context: &RequestContext,
    ) -> Result<CreateSandboxResponse>;

    /// Returns the caller's sandboxes, newest first.
    async fn list_sandboxes(&self, caller: &Caller, query: SandboxQuery) -> Result<SandboxListPage>;

    /// Returns one sandbox of the caller, also one that is paused or has failed. A destroyed one is not found.
    async fn get_sandbox(&self, caller: &Caller, id: &str) -> Result<SandboxInfo>;

    /// Ends a sandbox. Returns when its resources are released.
    async fn destroy_sandbox(&self, caller: &Caller, id: &str) -> Result<DestroySandboxResponse>;

    /// Returns the caller's sandbox if it runs. Its operations are those of [`LiveSandbox`]. A paused one with `auto_resume` is resumed
    /// first, once, however many ask.
    ///
    /// # Errors
    /// `SandboxNotReady` while it starts or is paused; those of a resume. Not found if it does not exist, belongs to another tenant or has ended.
    async fn live_sandbox(&self, caller: &Caller, id: &str) -> Result<Arc<dyn LiveSandbox>>;
}
