//! What is durable: metadata in a database, artifacts in a folder.
//!
//! ```text
//!        engine                                   on disk, under the data directory
//!          │
//!          ├── Metadata (trait) ── SqliteStore ── nullspace.db     tenants, keys, templates, tags,
//!          │        │                                               builds and their logs, queue,
//!          │        └── PostgreSQL, later                          artifacts, sandboxes
//!          │
//!          └── ArtifactStore ──── work/<random>/  ──rename──┬──>   artifacts/tmpl_….<nonce>/   snapshot of one build
//!                                 written, fsynced          ├──>   chunks/, rootfs/            shared root images
//!                                                           └──>   blobs/tn_…/<sha256>         file of a build context
//! ```
//!
//! The order that makes an artifact visible only whole: its files are written in `work/`, flushed, renamed, the parent
//! folder flushed; only then does one transaction name it, end the build and move the tags. A crash before the
//! transaction leaves files that no row names: [`ArtifactStore::sweep`] removes them at the next start. A crash after it
//! leaves nothing to do.
//!
//! This crate knows no HTTP and runs no builds; plans, log entries, configurations are JSON that it keeps and returns
//! unread.

mod artifacts;
mod blobs;
mod build;
mod claim;
mod error;
mod host;
mod images;
mod metadata;
mod sandbox;
mod share;
mod space;
mod sqlite;
mod survey;
mod template;
mod tenant;
mod text_enum;

pub use artifacts::{ArtifactStore, DEFAULT_CACHE, DiskUsage, PublishedArtifact, Scratch, SweepReport};
pub use build::{
    ArtifactState, Build, BuildBackend, BuildFilter, BuildPage, BuildStatus, CancelOutcome, CancelRequest, Counters,
    FinishError, FinishReady, Finished, Heartbeat, HeldBlob, Lease, Leased, LogEntry, NewBuild, NewLogEntry,
    QueueLimits, Release, SourceType, WantedBlob,
};
pub use claim::{ClaimHash, ClaimToken, NewClaim};
pub use error::{Result, StoreError};
pub use images::{CacheUsage, PublishedRootfs, RootfsPin, look_at_chunks};
pub use metadata::{Metadata, UnusedArtifact};
pub use nullspace_chunks::{Changes, Collected, Extent, Fault, ManifestId, Stats, Verified};
pub use nullspace_types::{
    ArtifactId, Blob, BlobId, BuildId, Caller, InvalidBlobId, InvalidId, InvalidReference, KeyId, KnownFiles,
    MAX_NAME_CHARS, PrivateJson, Rootfs, SYSTEM_NAMESPACE, SandboxId, Selector, Tag, TemplateId, TemplateName,
    TemplateRef, TenantId, is_namespace_slug,
};
pub use sandbox::{Idempotency, Inserted, NewSandbox, Sandbox, SandboxFilter, SandboxStatus};
pub use space::{Room, Space};
pub use sqlite::SqliteStore;
pub use survey::{Survey, stored_without_database, survey};
pub use template::{Alias, Artifact, Resolved, Standing, TagTarget, Template, Visibility};
pub use tenant::{ApiKey, KeyHash, Namespace, NamespaceKind, NewKey, Tenant};
pub use text_enum::UnknownWord;
