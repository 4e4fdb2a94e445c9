//! The database of the service: one trait for each domain, and SQLite behind all of them.
//!
//! ```text
//!   engine ── dyn Database ──┬── Tenants      tenants, namespaces, API keys
//!                            ├── Catalog      templates, tags, aliases, claims
//!                            ├── Queue        builds, for the worker that holds one under a lease
//!                            ├── Builds       builds and logs, for readers
//!                            ├── Reuse        root images, layers and artifacts, for a build under its lease
//!                            ├── Blobs        files of build contexts
//!                            ├── Sandboxes    sandboxes
//!                            ├── Collection   what the data folder must have, and what can go
//!                            └── Health       settings, counters, the database itself
//!                                   │
//!                                   ├── SqliteStore ── nullspace.db
//!                                   └── PostgreSQL, later
//! ```
//!
//! Of every method holds:
//!
//! * It is one transaction: it happened wholly or not at all, also when its future was dropped.
//! * When it returns `Ok`, the change survives the loss of power.
//! * What belongs to a tenant is reached through a [`Caller`]; another tenant's is [`DbError::NotFound`].
//! * What a worker writes is fenced by its [`Lease`]; without it, [`DbError::LeaseLost`] and nothing is written.
//! * Time comes in as `now`, so that tests own the clock. Stored times have microseconds.
//!
//! This crate knows no HTTP, no files of the data folder and no chunks, and runs no builds. Plans, log entries and
//! configurations are JSON that it keeps and returns unread. A root image's manifest is a text.

mod blobs;
mod builds;
mod catalog;
mod claim;
mod collection;
mod error;
mod health;
mod queue;
mod reuse;
mod sandboxes;
mod sqlite;
mod tenants;
mod text_enum;

// For this crate's own modules: callers name these by the crate that defines them.
#[allow(unused_imports)]
use nullspace_types::{
    ArtifactId, Blob, BlobId, BuildId, Caller, KeyId, KnownFiles, MAX_NAME_CHARS, PrivateJson, Rootfs,
    SYSTEM_NAMESPACE, SandboxId, Selector, Tag, TemplateId, TemplateName, TemplateRef, TenantId,
};

pub use blobs::{Blobs, HeldBlob};
pub use builds::{
    ArtifactState, Build, BuildBackend, BuildFilter, BuildPage, BuildStatus, Builds, CancelOutcome, CancelRequest,
    LogEntry, SourceType,
};
pub use catalog::{Alias, Artifact, Catalog, Resolved, Standing, TagTarget, Template, Visibility};
pub use claim::{ClaimHash, ClaimToken, NewClaim};
pub use collection::{Collection, UnusedArtifact};
pub use error::{DbError, Result};
pub use health::{Counters, Health};
pub use queue::{
    FinishError, FinishReady, Finished, Heartbeat, Lease, Leased, NewBuild, NewLogEntry, Queue, QueueLimits, Release,
    WantedBlob,
};
pub use reuse::Reuse;
pub use sandboxes::{Idempotency, Inserted, NewSandbox, Sandbox, SandboxFilter, SandboxStatus, Sandboxes};
pub use sqlite::SqliteStore;
pub use tenants::{ApiKey, KeyHash, Namespace, NamespaceKind, NewKey, Tenant, Tenants};
pub use text_enum::UnknownWord;

/// All of the service's database: the sum of the traits of its domains, to be held as one `dyn Database`.
pub trait Database:
    Tenants + Catalog + Queue + Builds + Reuse + Blobs + Sandboxes + Collection + Health + 'static
{
}

impl<T> Database for T where
    T: Tenants + Catalog + Queue + Builds + Reuse + Blobs + Sandboxes + Collection + Health + 'static
{
}
