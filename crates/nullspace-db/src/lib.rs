//! The database of the service: one trait for each domain, and SQLite or PostgreSQL behind all of them.
//!
//! ```text
//!   control ── dyn Database ─┬── Tenants      tenants, namespaces
//!                            ├── Keys         API keys
//!                            ├── Catalog      templates, tags, aliases, claims
//!                            ├── Queue        builds, for the worker that holds one under a lease
//!                            ├── Builds       builds and logs, for readers
//!                            ├── Reuse        root images, layers and artifacts, for a build under its lease
//!                            ├── Blobs        files of build contexts
//!                            ├── Sandboxes    sandboxes
//!                            ├── Snapshots    snapshots of sandboxes: pauses, and those that are kept
//!                            ├── Grants       tokens for ports of sandboxes
//!                            ├── SshAccesses  rights to log in to sandboxes
//!                            ├── WarmPools    machines that are resumed ahead: what there should be
//!                            ├── Events       lifecycle events, webhooks and their deliveries
//!                            ├── Collection   required and collectable data of the data folder
//!                            ├── Retention    rows that are over, compressed logs, the file's size
//!                            └── Health       settings, counters, the database itself
//!                                   │
//!                                   ├── SqliteStore ── nullspace.db
//!                                   └── PostgresStore ── a schema on a PostgreSQL server
//! ```
//!
//! These rules hold for every method:
//!
//! * It is one transaction: all of it happens or nothing, even if its future is dropped.
//! * When it returns `Ok`, the change survives a power failure.
//! * Data of a tenant is reached through a [`Caller`](nullspace_types::Caller). Another tenant's is [`DbError::NotFound`].
//! * Writes of a worker are fenced by its [`Lease`]. Without it the error is [`DbError::LeaseLost`], and nothing is written.
//! * The caller passes the time as `now`, so that tests control the clock. Stored times have microseconds.
//!
//! This crate has no HTTP, no access to the data folder or its chunks, and runs no builds. Definitions, log entries and
//! configurations are JSON that it stores and returns unread. A root image's manifest is a text.
//!
//! The statements are written once, in `sql/`, and compiled for both drivers: `postgres` says how.

#![allow(clippy::duplicate_mod, reason = "sql/ is compiled once for each driver")]

mod blobs;
mod builds;
mod catalog;
mod claim;
mod collection;
mod copy;
mod error;
mod events;
mod grants;
mod health;
mod keys;
mod postgres;
mod queue;
mod retention;
mod reuse;
mod sandboxes;
mod segments;
mod snapshots;
mod sqlite;
mod ssh;
mod tenants;
mod text_enum;
mod warm_pools;

pub use blobs::{Blobs, HeldBlob};
pub use builds::{
    ArtifactState, Build, BuildBackend, BuildFilter, BuildPage, BuildStatus, Builds, CancelOutcome, CancelRequest,
    LogEntry, SourceType,
};
pub use catalog::{Alias, Artifact, Catalog, Resolved, Standing, TagTarget, Template, Visibility};
pub use claim::{ClaimHash, ClaimToken, NewClaim};
pub use collection::{Collection, SealedRows, UnusedArtifact};
pub use copy::{Copied, copy};
pub use error::{DbError, Result};
pub use events::{Attempt, Delivery, Event, EventFilter, Events, NewEvent, TakenDelivery, Webhook, WebhookChange};
pub use grants::{Grant, GrantKind, GrantUse, Grants, NewGrant, OVER_PER_SANDBOX};
pub use health::{Counters, Health};
pub use keys::{ApiKey, KeyHash, KeyLimits, KeyScope, KeySpec, Keys, NewKey, Rotation};
pub use postgres::{PostgresStore, ServiceLock};
pub use queue::{
    FinishError, FinishReady, Finished, Heartbeat, Lease, Leased, NewBuild, NewLogEntry, Queue, QueueLimits, Release,
    WantedBlob,
};
pub use retention::{CompactedLog, Cutoffs, Due, Expiring, Growth, Retention, Space, TableSize};
pub use reuse::Reuse;
pub use sandboxes::{Idempotency, Inserted, NewSandbox, Sandbox, SandboxFilter, SandboxStatus, Sandboxes};
pub use segments::{SegmentBytes, is_segment_in_row};
pub use snapshots::{
    NewSnapshot, Promotion, Recorded, Snapshot, SnapshotCounts, SnapshotFilter, SnapshotKind, Snapshots,
};
pub use sqlite::SqliteStore;
pub use ssh::{NewSshAccess, SshAccess, SshAccesses};
pub use tenants::{Namespace, NamespaceKind, Tenant, Tenants};
pub use text_enum::UnknownWord;
pub use warm_pools::{WarmPool, WarmPoolLimits, WarmPoolState, WarmPools};

/// The database of the service: the sum of the traits of its domains, used as one `dyn Database`.
pub trait Database:
    Tenants
    + Keys
    + Catalog
    + Queue
    + Builds
    + Reuse
    + Blobs
    + Sandboxes
    + Snapshots
    + Grants
    + SshAccesses
    + WarmPools
    + Events
    + Collection
    + Retention
    + Health
    + 'static
{
}

impl<T> Database for T where
    T: Tenants
        + Keys
        + Catalog
        + Queue
        + Builds
        + Reuse
        + Blobs
        + Sandboxes
        + Snapshots
        + Grants
        + SshAccesses
        + WarmPools
        + Events
        + Collection
        + Retention
        + Health
        + 'static
{
}
