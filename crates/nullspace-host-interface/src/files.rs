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
    /// Returns the stored ones of these files.
    async fn has_files(&self, tenant: TenantId, ids: &[BlobId]) -> BTreeSet<BlobId>;

    /// Writes a file while it arrives, and checks its size and digest against its id. It has no owner until it is published.
    ///
    /// # Errors
    /// For the caller: a full disk, an interrupted body, or bytes that do not match the id.
    async fn receive_file(&self, file: Blob, content: ByteStream) -> Result<Box<dyn ReceivedFile>>;

    /// Removes a file. A missing file is no error.
    async fn remove_file(&self, file: &Blob) -> std::result::Result<(), HostError>;

    /// Refuses new work while the host's disk has no space for it. For a build, the error has the typed detail of `phase`.
    ///
    /// # Errors
    /// `capacity_exceeded`, with the time after which to try again.
    async fn ensure_room(&self, phase: Option<TemplateFailurePhase>) -> Result<()>;
}

/// A complete file that is not yet stored under its name. Dropping it removes it.
#[async_trait]
pub trait ReceivedFile: Send {
    /// Stores it under its name, durably. The same bytes may be published again.
    async fn publish(self: Box<Self>) -> std::result::Result<(), HostError>;
}
