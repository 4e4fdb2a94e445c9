//! Files of build contexts, which callers upload before the build that uses them.

use std::collections::BTreeSet;

use async_trait::async_trait;
use nullspace_api::TemplateFailurePhase;
use nullspace_service::{ByteStream, Result};
use nullspace_types::{Blob, BlobId, TenantId};

use crate::HostError;

/// Context files of a host.
#[async_trait]
pub trait ContextFiles: Send + Sync + 'static {
    /// Those of these files that are stored.
    async fn has_files(&self, tenant: TenantId, ids: &[BlobId]) -> BTreeSet<BlobId>;

    /// Writes a file as it arrives, and compares size and digest with its id. It is nobody's until it is published.
    ///
    /// # Errors
    /// For the caller: no room on the disk, a body that breaks off, or bytes that are not those of the id.
    async fn receive_file(&self, file: Blob, content: ByteStream) -> Result<Box<dyn ReceivedFile>>;

    /// Removes a file. One that is not there is no error.
    async fn remove_file(&self, file: &Blob) -> std::result::Result<(), HostError>;

    /// Refuses a request that would begin something while the host's disk has no room for it; for a build with the typed
    /// detail of `phase`.
    ///
    /// # Errors
    /// `capacity_exceeded`, with the time after which to try again.
    async fn ensure_room(&self, phase: Option<TemplateFailurePhase>) -> Result<()>;
}

/// A file that is whole and not yet stored under its name. Dropping it removes it.
#[async_trait]
pub trait ReceivedFile: Send {
    /// Stores it under its name, durably. The same bytes may be published again.
    async fn publish(self: Box<Self>) -> std::result::Result<(), HostError>;
}
