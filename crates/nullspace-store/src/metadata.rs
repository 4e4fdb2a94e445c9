//! What the service asks of its database.

use std::{collections::BTreeSet, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

#[cfg(doc)]
use crate::StoreError;
use crate::{
    Alias, ApiKey, Artifact, ArtifactId, Blob, BlobId, Build, BuildFilter, BuildId, BuildPage, Caller, CancelOutcome,
    CancelRequest, ClaimHash, Counters, FinishError, FinishReady, Finished, Heartbeat, HeldBlob, Inserted, KeyHash,
    KeyId, KnownFiles, Lease, Leased, LogEntry, Namespace, NamespaceKind, NewBuild, NewClaim, NewKey, NewLogEntry,
    NewSandbox, QueueLimits, Release, Resolved, Result, Rootfs, Sandbox, SandboxFilter, SandboxId, SandboxStatus,
    Standing, Tag, TemplateName, TemplateRef, Tenant, Visibility,
};

/// The durable half of the service.
///
/// One trait, so that SQLite (one host) and PostgreSQL (many) are the same to everything above. Of every method holds:
///
/// * It is one transaction: it happened wholly or not at all, also when its future was dropped.
/// * When it returns `Ok`, the change survives the loss of power.
/// * What belongs to a tenant is reached through a [`Caller`]; another tenant's is [`StoreError::NotFound`].
/// * What a worker writes is fenced by its [`Lease`]; without it, [`StoreError::LeaseLost`] and nothing is written.
/// * Time comes in as `now`, so that tests own the clock. Stored times have microseconds.
#[async_trait]
pub trait Metadata: Send + Sync + 'static {
    // ---- tenants ----

    /// The tenant of this name, made with its default namespace if there is none. The namespace's slug is the name made
    /// into one, with a number when taken; for [`NamespaceKind::System`] it is [`SYSTEM_NAMESPACE`](crate::SYSTEM_NAMESPACE).
    async fn ensure_tenant(&self, name: &str, kind: NamespaceKind, now: Timestamp) -> Result<Tenant>;

    /// All tenants by name.
    async fn list_tenants(&self) -> Result<Vec<Tenant>>;

    /// Stores the hash of a key for a tenant. The key itself is not kept.
    async fn create_key(&self, tenant: &Tenant, label: &str, key: &NewKey, now: Timestamp) -> Result<ApiKey>;

    /// A tenant's keys, oldest first, revoked ones too.
    async fn list_keys(&self, tenant: &Tenant) -> Result<Vec<ApiKey>>;

    /// Makes a key open nothing from now on. Doing it again changes nothing.
    async fn revoke_key(&self, key: KeyId, now: Timestamp) -> Result<()>;

    /// Whose key this is; [`StoreError::NotFound`] when it is unknown or revoked.
    async fn authenticate(&self, key: &KeyHash, now: Timestamp) -> Result<Caller>;

    /// Which of these keys [`Metadata::authenticate`] would still know: neither revoked nor their tenant gone.
    async fn keys_in_force(&self, keys: &[KeyId]) -> Result<Vec<KeyId>>;

    /// A namespace that the caller can see: its own, the system's, the deployment's, or one with a public template.
    async fn get_namespace(&self, caller: &Caller, slug: &str) -> Result<Namespace>;

    // ---- queue ----

    /// Accepts a build: `waiting`, with `first` at log offset 0. Makes the template if the name is new. A repeated request
    /// (see [`NewBuild::idempotency`]) is answered with the build that is there. [`StoreError::Conflict`] when the name is
    /// an alias, or reserved and the build's claim is not the one that holds it, or a file of its context is gone.
    async fn accept_build(
        &self,
        caller: &Caller,
        build: NewBuild,
        first: NewLogEntry,
        limits: QueueLimits,
        now: Timestamp,
    ) -> Result<Build>;

    /// The next build for `owner`, held until `now + ttl`; `None` when there is nothing to do.
    ///
    /// Builds whose lease ran out come with those that wait. Among tenants: the one with the fewest running builds,
    /// then the one served longest ago, then the one that waits longest. A tenant of whom `running_per_tenant` builds run
    /// already is passed over, but for builds whose attempts are spent: those are only to be ended.
    async fn lease_build(
        &self,
        owner: &str,
        ttl: Duration,
        running_per_tenant: u32,
        now: Timestamp,
    ) -> Result<Option<Leased>>;

    /// Holds the build until `now + ttl`. [`StoreError::LeaseLost`] when another has it; an overdue lease that nobody has
    /// taken yet is held again.
    async fn heartbeat(&self, lease: &Lease, ttl: Duration, now: Timestamp) -> Result<Heartbeat>;

    /// Frees the builds that `owner` holds, for an owner that is known to be gone: they can be leased at once, and
    /// whatever it has left behind finds its leases lost. Returns them.
    async fn take_over(&self, owner: &str, now: Timestamp) -> Result<Vec<BuildId>>;

    /// Records what the source turned out to be: an image's digest, a parent's build.
    async fn set_source_digest(&self, lease: &Lease, digest: &str, now: Timestamp) -> Result<()>;

    /// Records what became of the sizes that the build was asked for, as the API shows them.
    async fn set_build_config(&self, lease: &Lease, config: serde_json::Value, now: Timestamp) -> Result<()>;

    /// Appends to the build's log and returns the first entry's offset; [`StoreError::LeaseLost`] appends nothing.
    async fn append_log(&self, lease: &Lease, entries: Vec<NewLogEntry>) -> Result<u64>;

    /// Gives the build back to the queue with these last entries.
    async fn release_build(&self, lease: &Lease, how: Release, entries: Vec<NewLogEntry>, now: Timestamp)
    -> Result<()>;

    /// Ends the build as `ready`: artifact, tags, row and last entry together. The artifact's bytes must be durable
    /// before.
    async fn finish_ready(&self, lease: &Lease, result: FinishReady, now: Timestamp) -> Result<Finished>;

    /// Ends the build as `error`.
    async fn finish_error(&self, lease: &Lease, error: FinishError, now: Timestamp) -> Result<Build>;

    /// Ends the build as `cancelled`.
    async fn finish_cancelled(&self, lease: &Lease, entry: NewLogEntry, now: Timestamp) -> Result<Build>;

    /// Asks for a build to be cancelled; one that waits ends here and now. Asking again changes nothing.
    async fn request_cancel(
        &self,
        caller: &Caller,
        build: BuildId,
        request: CancelRequest,
        now: Timestamp,
    ) -> Result<CancelOutcome>;

    // ---- builds and their logs ----

    /// One of the caller's builds.
    async fn get_build(&self, caller: &Caller, build: BuildId) -> Result<Build>;

    /// The caller's builds, newest first.
    async fn list_builds(&self, caller: &Caller, filter: BuildFilter) -> Result<BuildPage>;

    /// Up to `limit` entries of the log from `from` on; none at its end.
    async fn log_entries(&self, caller: &Caller, build: BuildId, from: u64, limit: u32) -> Result<Vec<LogEntry>>;

    /// The build with the offset that its next entry will have, read at one moment: when the build is final, no entry
    /// at or after that offset will ever be.
    async fn build_and_next_offset(&self, caller: &Caller, build: BuildId) -> Result<(Build, u64)>;

    // ---- templates ----

    /// The built-ins and the caller's own that have something to use, by canonical reference.
    async fn list_templates(&self, caller: &Caller) -> Result<Vec<Resolved>>;

    /// What the reference means to the caller right now.
    async fn resolve(&self, caller: &Caller, reference: &TemplateRef) -> Result<Resolved>;

    /// The template that the reference is about, whether or not there is anything to use in it.
    async fn standing(&self, caller: &Caller, reference: &TemplateRef) -> Result<Standing>;

    /// Makes tags point to what the reference means. Of the caller's own templates only: a built-in is a
    /// [`StoreError::Conflict`], another tenant's is [`StoreError::NotFound`]; so with all changes below.
    async fn assign_tags(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        tags: &[Tag],
        now: Timestamp,
    ) -> Result<Resolved>;

    /// Makes tags point to a ready build whose artifact can be used; else [`StoreError::Conflict`].
    async fn promote_build(&self, caller: &Caller, build: BuildId, tags: &[Tag], now: Timestamp) -> Result<Resolved>;

    /// Removes a tag of the template that the reference is about; [`StoreError::NotFound`] when it has none of that name.
    async fn remove_tag(&self, caller: &Caller, reference: &TemplateRef, tag: &Tag) -> Result<()>;

    /// Says who can use the template.
    async fn set_visibility(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        visibility: Visibility,
    ) -> Result<Standing>;

    /// Gives the template another name in its namespace and keeps the old one as an alias. A name that a template, an
    /// alias or a claim has is a [`StoreError::Conflict`].
    async fn rename_template(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        name: &TemplateName,
        now: Timestamp,
    ) -> Result<Standing>;

    /// The template's older names.
    async fn list_aliases(&self, caller: &Caller, reference: &TemplateRef) -> Result<Vec<Alias>>;

    /// Removes one of them, whose name is then free.
    async fn remove_alias(&self, caller: &Caller, reference: &TemplateRef, alias: &TemplateName) -> Result<()>;

    /// Holds a name of the caller's namespace that is nobody's: only a build with the claim's token may use it.
    async fn reserve_name(&self, caller: &Caller, claim: NewClaim, now: Timestamp) -> Result<()>;

    /// The name that a live claim of the caller holds.
    async fn claimed_name(&self, caller: &Caller, token: ClaimHash, now: Timestamp) -> Result<TemplateName>;

    /// Gives a claim back.
    async fn release_name(&self, caller: &Caller, token: ClaimHash, now: Timestamp) -> Result<()>;

    // ---- files of build contexts ----

    /// Which of these the tenant has. Those found are kept from collection for another while.
    async fn find_blobs(&self, caller: &Caller, blobs: &[BlobId], now: Timestamp) -> Result<BTreeSet<BlobId>>;

    /// Records a blob whose bytes are durable; the same one again changes only when it was last used. `limit_bytes` is
    /// what the tenant may have together, else [`StoreError::LimitReached`].
    async fn put_blob(&self, caller: &Caller, blob: &BlobId, limit_bytes: u64, now: Timestamp) -> Result<()>;

    /// What the build keeps from collection of its context's files.
    async fn held_blobs(&self, lease: &Lease) -> Result<Vec<HeldBlob>>;

    /// Blobs that no unfinished build needs, last used before `unused_since`, longest ago first.
    async fn collectable_blobs(&self, unused_since: Timestamp, limit: u32) -> Result<Vec<Blob>>;

    /// Forgets such a blob, so that its file can be removed. `false` when it was used meanwhile.
    async fn purge_blob(&self, blob: &Blob, unused_since: Timestamp) -> Result<bool>;

    /// Every blob that is supposed to be on disk.
    async fn known_blobs(&self) -> Result<BTreeSet<Blob>>;

    /// Deletes the template that the reference leads to, with its tags. Its artifacts can be used no more, its
    /// unfinished builds are cancelled (`cancel` as in [`request_cancel`](Self::request_cancel)); running sandboxes stay.
    /// Built-ins are a [`StoreError::Conflict`].
    async fn delete_template(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        cancel: CancelRequest,
        now: Timestamp,
    ) -> Result<()>;

    // ---- root images ----

    /// The root image of this key, kept from collection until the build is over.
    async fn find_rootfs(&self, lease: &Lease, key: &str, now: Timestamp) -> Result<Option<Rootfs>>;

    /// Records a published root image, kept from collection until the build is over. When another build was quicker, its
    /// record is returned and the file of this one is to be removed.
    async fn put_rootfs(&self, lease: &Lease, rootfs: Rootfs, now: Timestamp) -> Result<Rootfs>;

    /// Records the manifest of a root image that an older version stored without one. `false` when there is no such root
    /// image, or it has one.
    async fn set_rootfs_manifest(&self, file: &str, manifest: &str) -> Result<bool>;

    /// The newest root image that a step of this key left behind, kept from collection until the build is over.
    async fn find_layer(&self, lease: &Lease, layer_key: &str, now: Timestamp) -> Result<Option<Rootfs>>;

    /// As [`put_rootfs`](Self::put_rootfs), for what a step left behind. The image's own key is new each time: two runs of
    /// a step leave two trees, and a machine that goes on runs over its own.
    async fn put_layer(&self, lease: &Lease, rootfs: Rootfs, layer_key: &str, now: Timestamp) -> Result<Rootfs>;

    /// An artifact that a build starts from, kept from collection until the build is over; [`StoreError::NotFound`] when
    /// it can be used no more or is not visible to the build's tenant.
    async fn hold_artifact(&self, lease: &Lease, artifact: ArtifactId) -> Result<Artifact>;

    /// An artifact of this key ([`FinishReady::final_key`]) that can be used, the newest, kept from collection until the
    /// build is over.
    async fn find_final(&self, lease: &Lease, key: &str) -> Result<Option<Artifact>>;

    // ---- sandboxes ----

    /// Records a sandbox as `creating`; [`StoreError::NotFound`] when its artifact can be used no more. From here on the
    /// artifact is not collected.
    async fn insert_sandbox(&self, caller: &Caller, sandbox: NewSandbox, now: Timestamp) -> Result<Inserted>;

    /// Changes a sandbox's status; one that is over stays as it is ([`StoreError::Conflict`]).
    async fn set_sandbox_status(
        &self,
        sandbox: SandboxId,
        status: SandboxStatus,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<Sandbox>;

    /// Changes when a sandbox ends by itself.
    async fn set_sandbox_timeout(
        &self,
        caller: &Caller,
        sandbox: SandboxId,
        timeout_at: Option<Timestamp>,
    ) -> Result<Sandbox>;

    /// One of the caller's sandboxes.
    async fn get_sandbox(&self, caller: &Caller, sandbox: SandboxId) -> Result<Sandbox>;

    /// The caller's sandboxes, newest first.
    async fn list_sandboxes(&self, caller: &Caller, filter: SandboxFilter) -> Result<Vec<Sandbox>>;

    /// Ends every sandbox of a host whose machines are known to be gone; returns them.
    async fn end_sandboxes_of_host(
        &self,
        host: &str,
        status: SandboxStatus,
        reason: &str,
        now: Timestamp,
    ) -> Result<Vec<SandboxId>>;

    // ---- collection ----

    /// Artifacts that nothing uses: their template is deleted, or no tag points to them and their retention is over;
    /// and no sandbox runs from them.
    async fn collectable_artifacts(&self, now: Timestamp, limit: u32) -> Result<Vec<UnusedArtifact>>;

    /// Makes a collectable artifact unusable for ever, so that its folder can be removed. `false` when it is in use after
    /// all.
    async fn purge_artifact(&self, artifact: ArtifactId, now: Timestamp) -> Result<bool>;

    /// Root images that no artifact and no unfinished build uses, last used before `unused_since`, longest ago first.
    async fn collectable_rootfs(&self, unused_since: Timestamp, limit: u32) -> Result<Vec<Rootfs>>;

    /// Forgets such a root image, so that its file can be removed. `false` when it is in use after all.
    async fn purge_rootfs(&self, key: &str, unused_since: Timestamp) -> Result<bool>;

    /// Every artifact and root image that is supposed to be on disk.
    async fn known_files(&self) -> Result<KnownFiles>;

    /// Those of these artifacts that a build of this database, of whatever state, has made or may have made.
    async fn allotted(&self, artifacts: &BTreeSet<ArtifactId>) -> Result<BTreeSet<ArtifactId>>;

    /// Stops offering what is gone from the disk ([`Survey::lost`](crate::Survey::lost)): those artifacts, and those whose
    /// root image is lost, can be used no more, and a lost root image is made anew when next needed. Only an operator can
    /// know that something will not come back: never called by the service itself.
    async fn forget_lost(&self, lost: &KnownFiles, now: Timestamp) -> Result<()>;

    // ---- the rest ----

    /// An artifact by its id, for the service itself.
    async fn get_artifact(&self, artifact: ArtifactId) -> Result<Artifact>;

    /// A setting of the running service.
    async fn get_setting(&self, key: &str) -> Result<Option<serde_json::Value>>;

    /// Stores a setting.
    async fn put_setting(&self, key: &str, value: &serde_json::Value, now: Timestamp) -> Result<()>;

    /// How full the service is.
    async fn counters(&self) -> Result<Counters>;

    /// Whether the database answers and takes writes: it stores `now`.
    async fn ping(&self, now: Timestamp) -> Result<()>;

    /// Ends every connection; calls after it fail.
    async fn close(&self);
}

/// An artifact that can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedArtifact {
    /// For [`Metadata::purge_artifact`].
    pub id: ArtifactId,
    /// For [`ArtifactStore::remove_artifact`](crate::ArtifactStore::remove_artifact), afterwards.
    pub folder: String,
}
