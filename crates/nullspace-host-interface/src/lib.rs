//! What control asks of a host, as one trait: [`Host`]. Control knows what should be, and has the database; a host has machines,
//! caches and disks, and knows no database.
//!
//! ```text
//!   control ── Host ──────────────> host      builds, sandboxes, context files, what can go
//!           <── BuildRecord ──────             a running build: its log, what may be reused, what was made
//!           <── HostEvents ───────             a sandbox that ended by itself
//! ```
//! Today both are in one process. Everything that passes here is a plain value or one of these traits, so that a host on another
//! machine is another implementation. No path of a file passes: what a host stores has a name (an artifact's folder, the file of
//! a root image, a blob's id), and only the host knows where that is.

mod build;
mod error;
mod failure;
mod files;
mod log;
mod sandbox;
mod storage;
mod usage;

pub use build::{
    BaseRoot, BuildEnd, BuildHost, BuildJob, BuildRecord, BuildStop, CacheKind, CacheLookup, DiskPressure,
    FinishedArtifact, HeldFile, ImageAccess, Made, Parent,
};
pub use error::{HostError, RecordError, invalid, storage_full};
pub use failure::{BuildFailure, is_storage_full, reason};
pub use files::{ContextFiles, ReceivedFile};
pub use log::{LogIds, Place, entry};
pub use sandbox::{
    AdmittedSandbox, Found, HostEvents, SandboxEnd, SandboxHost, SandboxSettings, SandboxSpec, Snapshot, SnapshotSize,
    StartedSandbox, Unfit,
};
pub use storage::{Collected, KnownImages, Storage};
pub use usage::{Capacity, HostInfo, HostUsage, ImageStoreUsage, RawImageUsage};

use std::sync::Arc;

use async_trait::async_trait;

/// A host, whole. An implementation has a body for each topic, and says `impl Host for … {}` once.
pub trait Host: Lifecycle + BuildHost + SandboxHost + ContextFiles + Storage {}

/// Its start, its end, and what it is.
#[async_trait]
pub trait Lifecycle: Send + Sync + 'static {
    /// Begins its background work, and removes what an earlier run of it left outside the data folder. `events` is told of
    /// sandboxes that end by themselves.
    async fn start(&self, events: Arc<dyn HostEvents>);

    /// Waits for its background work, at most two minutes. Control has ended builds and sandboxes before.
    async fn stop(&self);

    /// What it is, as it was at its start.
    fn info(&self) -> HostInfo;

    /// What machines hold, and what they may hold.
    fn admitted(&self) -> (Capacity, Capacity);

    /// What it stores, and the room on its disk.
    async fn usage(&self) -> Result<HostUsage, HostError>;
}
