//! Snapshots of sandboxes.
//!
//! ```text
//!   running ──pause──> paused + snapshot (kind pause) ──resume──> a new sandbox runs; the old one and its snapshot are over
//!                                 └──────────────────── destroy ──> both are over
//!   running ──snapshot──> snapshot (kind kept) ──create, resume──> sandboxes;  delete: gone when no sandbox starts from it
//! ```

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, Caller, SandboxId, SnapshotId, Streams, TenantId};
use serde_json::Value;

#[cfg(doc)]
use crate::{DbError, Sandboxes};
use crate::{FinishReady, Idempotency, NewBuild, NewLogEntry, Resolved, Result, Sandbox, text_enum::text_enum};

text_enum! {
    /// Kind of a snapshot.
    SnapshotKind {
        /// A paused sandbox is stored in it. It can be resumed once.
        Pause = "pause",
        /// Taken by its owner; many sandboxes can be made from it.
        Kept = "kept",
    }
}

/// A snapshot to record. Its files are durable, but for those of a capture.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    /// Identity.
    pub id: SnapshotId,
    /// What it is for.
    pub kind: SnapshotKind,
    /// True for a pause that freed capacity on a full host.
    pub evicted: bool,
    /// The sandbox that it was taken of.
    pub sandbox: SandboxId,
    /// Its name on the host.
    pub folder: String,
    /// Its files. `None`: a capture, which the host has under this name and has not stored yet ([`Snapshots::set_streams`]).
    pub streams: Option<Streams>,
    /// Its description, in the host's own format.
    pub summary: Value,
    /// Memory, device state and disk changes before compression, bytes.
    pub size_bytes: u64,
    /// Growth of the store, bytes.
    pub stored_bytes: u64,
    /// The owner's notes.
    pub metadata: Value,
    /// The caller's idempotency key and a digest of its request.
    pub idempotency: Option<Idempotency>,
}

/// A snapshot as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Identity.
    pub id: SnapshotId,
    /// The tenant that owns it.
    pub tenant: TenantId,
    /// What it is for.
    pub kind: SnapshotKind,
    /// True while the sandbox is paused to free capacity on a full host: its timeout goes on ([`Snapshots::settle_eviction`]).
    pub evicted: bool,
    /// The sandbox that it was taken of.
    pub sandbox: SandboxId,
    /// The artifact that the sandbox was made from. It keeps the root image under the disk.
    pub artifact: ArtifactId,
    /// Its name on the host.
    pub folder: String,
    /// Its files. `None`: a capture that is not stored yet.
    pub streams: Option<Streams>,
    /// Its description, in the host's own format.
    pub summary: Value,
    /// Memory, device state and disk changes before compression, bytes.
    pub size_bytes: u64,
    /// Growth of the store, bytes.
    pub stored_bytes: u64,
    /// The owner's notes.
    pub metadata: Value,
    /// The template reference of the sandbox, as its user wrote it.
    pub template_ref: String,
    /// The sandbox's configuration when it was taken; opaque to the database.
    pub config: Value,
    /// The sandbox's notes when it was taken.
    pub sandbox_metadata: Value,
    /// The sandbox's variables when it was taken, sealed.
    pub sealed_envs: Option<Vec<u8>>,
    /// When it was taken.
    pub created_at: Timestamp,
}

/// A query for snapshots.
#[derive(Debug, Clone, Default)]
pub struct SnapshotFilter {
    /// Only those of this sandbox.
    pub sandbox: Option<SandboxId>,
    /// Continue after this snapshot: the last one of the page before.
    pub after: Option<SnapshotId>,
    /// Page size, 1 to 1000.
    pub limit: u32,
}

/// A promotion of a snapshot to a template.
#[derive(Debug, Clone)]
pub struct Promotion {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The build that stands for it.
    pub build: NewBuild,
    /// The first entry of that build's log.
    pub first: NewLogEntry,
    /// The artifact, with the last entry.
    pub ready: FinishReady,
    /// Most promoted artifacts of the tenant.
    pub most: u32,
}

/// The result of recording a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub enum Recorded {
    /// It is new.
    New(Snapshot),
    /// The same request was made before, with this result, which may be over since. The files of the second one are named by
    /// nothing.
    Repeated(Snapshot),
}

/// A tenant's snapshots that are not over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotCounts {
    /// Paused sandboxes, without the evicted ones.
    pub paused: u64,
    /// Evicted sandboxes.
    pub evicted: u64,
    /// Reusable snapshots.
    pub kept: u64,
}

/// Stores snapshots of sandboxes.
///
/// A snapshot that is not over keeps its artifact (and with it the root image) from collection, and its own files are known
/// files ([`Collection::known_files`](crate::Collection::known_files)).
#[async_trait]
pub trait Snapshots: Send + Sync + 'static {
    /// Records a snapshot of a running sandbox: its configuration, notes and variables are copied from the sandbox's row.
    /// [`SnapshotKind::Pause`] also sets the sandbox `paused`, stored in it, without deadline unless `delete_at` is given, in the
    /// same transaction. That of an eviction keeps the sandbox's timeout instead, as the time of its end. [`DbError::Conflict`] when the
    /// sandbox does not run; [`DbError::NotFound`] when there is none.
    async fn record_snapshot(
        &self,
        snapshot: NewSnapshot,
        delete_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Recorded>;

    /// The captures of a host's sandboxes that are not stored yet and not over, oldest first.
    async fn captures(&self, host: &str) -> Result<Vec<Snapshot>>;

    /// Says that a capture is stored as these files, and how much the store grew by that. `false` when it is over, or has files already.
    async fn set_streams(&self, snapshot: SnapshotId, streams: &Streams, stored_bytes: u64) -> Result<bool>;

    /// Turns the pause of an evicted sandbox into one that its owner wants: it ends at `delete_at`, or stays, and counts as such.
    /// [`DbError::Conflict`] when the sandbox is not stored in this snapshot any more, or the pause is no eviction.
    async fn settle_eviction(&self, snapshot: SnapshotId, delete_at: Option<Timestamp>) -> Result<Snapshot>;

    /// Counts the caller's snapshots that are not over.
    async fn count_snapshots(&self, caller: &Caller) -> Result<SnapshotCounts>;

    /// One of the caller's snapshots that is not over.
    async fn get_snapshot(&self, caller: &Caller, snapshot: SnapshotId) -> Result<Snapshot>;

    /// The caller's snapshots that are not over, newest first.
    async fn list_snapshots(&self, caller: &Caller, filter: SnapshotFilter) -> Result<Vec<Snapshot>>;

    /// Promotes one of the caller's snapshots that is not over to a template's artifact, in one transaction: a build that is `ready`
    /// at once, with the snapshot's files and the root image under them, and the tags that point to it. The template is created
    /// if the name is new. The artifact stays when the snapshot is deleted. [`DbError::Conflict`] when the name is an alias, or
    /// claimed; [`DbError::LimitReached`] when the tenant has [`Promotion::most`] promoted artifacts that are not deleted. A repeated
    /// request ([`NewBuild::idempotency`]) is answered with the target of the first one.
    ///
    /// `ready` has the files' streams and the root image's key from [`Snapshot::streams`] and the snapshot's artifact; others are a
    /// [`DbError::Conflict`], and so is a capture that is not stored yet.
    async fn promote_snapshot(&self, caller: &Caller, promotion: Promotion, now: Timestamp) -> Result<Resolved>;

    /// Returns the target of an earlier promotion with this idempotency key, also when its snapshot is over. Without one, checks that
    /// one more promotion fits. The errors are those of [`promote_snapshot`](Self::promote_snapshot).
    async fn promoted_before(
        &self,
        caller: &Caller,
        idempotency: Option<&Idempotency>,
        most: u32,
    ) -> Result<Option<Resolved>>;

    /// Says that `resumed` runs in place of the paused sandbox that is stored in this snapshot, in one transaction: the paused one
    /// is `destroyed` with a reason, the snapshot is over, `resumed` is `running` from `now` until `timeout_at`. Returns `resumed`.
    /// [`DbError::Conflict`] when the paused one is not paused any more, or `resumed` is not `creating` from this snapshot.
    /// [`DbError::NotFound`] when there is no such snapshot, or no `resumed`.
    async fn resume_paused(
        &self,
        snapshot: SnapshotId,
        resumed: SandboxId,
        timeout_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Sandbox>;

    /// Says that a paused sandbox of a host runs again itself, with its own id, in one transaction: the sandbox is `running` until
    /// `timeout_at`, and its snapshot is over. For the start after a stop of the service. [`DbError::Conflict`] when it is not paused.
    async fn continue_paused(
        &self,
        sandbox: SandboxId,
        timeout_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Sandbox>;

    /// The sandboxes of a host that the service paused when it stopped ([`Snapshots::mark_to_continue`]), with their snapshots, oldest
    /// first. They keep the mark until they run or end. [`Sandbox::continue_ms`] is what is left of their timeout.
    async fn to_continue(&self, host: &str) -> Result<Vec<(Sandbox, Snapshot)>>;

    /// Marks a paused sandbox as one that is to run again at the host's next start, with so many milliseconds left of its timeout.
    /// It is not due meanwhile ([`Sandboxes::due_sandboxes`]). [`DbError::Conflict`] when it is not paused.
    async fn mark_to_continue(&self, sandbox: SandboxId, remaining_ms: Option<u64>) -> Result<()>;

    /// Takes the mark off: it stays paused.
    async fn give_up_continuing(&self, sandbox: SandboxId) -> Result<()>;

    /// Ends a snapshot. [`DbError::Conflict`] for one that a paused sandbox is stored in, [`DbError::NotFound`] when it is over. A
    /// sandbox that starts from it at this moment still finds its files for a grace of the collection.
    async fn delete_snapshot(&self, caller: &Caller, snapshot: SnapshotId, now: Timestamp) -> Result<()>;

    /// The snapshot with this name on the host, any tenant's, also one that is over. For the service itself.
    async fn snapshot_in_folder(&self, folder: &str) -> Result<Option<Snapshot>>;

    /// Snapshots that were over before `before` and whose files were not removed yet, the oldest first; at most `limit`. A paused
    /// sandbox that ends ends its snapshot, too. One from which a sandbox is `creating` is left out.
    async fn snapshots_to_remove(&self, before: Timestamp, limit: u32) -> Result<Vec<(SnapshotId, String)>>;

    /// Says that a snapshot's files are removed. Its row goes. [`DbError::Conflict`] for one that is not over.
    async fn snapshot_removed(&self, snapshot: SnapshotId) -> Result<()>;
}
