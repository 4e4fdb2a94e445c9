//! The interface between control and a host, as one trait: [`Host`]. Control has the database and the desired state. A host
//! has machines, caches and disks, and no access to the database.
//!
//! ```text
//!   control ── Host ──────────────> host      builds, sandboxes, context files, stored data
//!           <── BuildRecord ──────             a running build: its log, what may be reused, what was made
//!           <── HostEvents ───────             a sandbox that ended by itself
//! ```
//! Both run in one process today. The interface has only plain values and these traits, so a host on another machine would be
//! another implementation. No file path crosses it: stored data has names (an artifact's folder, the file of a root image, a
//! blob's id), and only the host knows their location.

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
pub use error::{HostError, RecordError, internal, invalid, storage_full, store_away, upload_detail, upload_refused};
pub use failure::{BuildFailure, is_storage_full, reason};
pub use files::{ContextFiles, ReceivedFile};
pub use log::{LogIds, Place, entry};
pub use sandbox::{
    AdmittedSandbox, Adopted, Captured, Due, Found, FrozenSandbox, HeldFiles, HostEvents, SandboxEnd, SandboxHost,
    SandboxSettings, SandboxSpec, SandboxUse, Snapshot, SnapshotSize, SpareSpec, StartedSandbox, TimeLimits, Unfit,
};
pub use storage::{CaptureLeft, Collected, KnownImages, PublishedCapture, Storage};
pub use usage::{
    Capacity, HostInfo, HostUsage, ImageStoreUsage, LayerCacheUsage, ObjectStoreState, ObjectStoreUsage, RawImageUsage,
};

use std::sync::Arc;

use async_trait::async_trait;

/// A complete host. An implementation has a body for each topic, and says `impl Host for … {}` once.
pub trait Host: Lifecycle + BuildHost + SandboxHost + ContextFiles + Storage {}

/// The start and the end of a host, and information about it.
#[async_trait]
pub trait Lifecycle: Send + Sync + 'static {
    /// Starts its background work, and removes the leftovers of an earlier run outside the data folder. `events` receives the
    /// ends of sandboxes that end by themselves.
    async fn start(&self, events: Arc<dyn HostEvents>);

    /// Waits for its background work, at most two minutes. Control ends builds and sandboxes first.
    async fn stop(&self);

    /// Information about the host, as of its start.
    fn info(&self) -> HostInfo;

    /// Returns the resources of admitted machines, and the limits.
    fn admitted(&self) -> (Capacity, Capacity);

    /// Returns the use of its storage, and the free space on its disk.
    async fn usage(&self) -> Result<HostUsage, HostError>;

    /// Asks the object store whether it can be used, for at most ten seconds; `None` without one.
    async fn object_store(&self) -> Option<ObjectStoreState>;
}
