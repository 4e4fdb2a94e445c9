//! Root images: keys, sizes, proofs, progress of an import, and errors of what is imported. `nullspace-rootfs` writes the
//! image itself.
//!
//! # Keys
//! The content of a root image is named by its content key: BLAKE3 over length-prefixed parts. The parts are the kind of source,
//! its digest, the platform, [`IMPORTER`] and the disk's size. The digest is that of an image's *manifest*: a moved tag gives
//! another key, and an index that only gained platforms does not. Equal content keys mean equal bytes: identifiers inside the
//! filesystem come from the key, and times are fixed. So copies under several keys share their chunks.
//!
//! A digest is only a claim: a registry can serve any manifest and config without having its layers. So a root image is not
//! found by its content alone, but by its content and a [`Proof`] that the tenant may have it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use nullspace_api::TemplateFailurePhase as Phase;
use nullspace_ext4::Options;
use nullspace_host_interface::{BuildFailure, reason};
use nullspace_oci::merge::{LayerError, MergedTree};
use nullspace_rootfs::{Content, Sink, Written};
use nullspace_types::TenantId;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use super::log::BuildLog;

/// Version of the importer's output. Raise it when the bytes of an image from the same source change.
pub(crate) const IMPORTER: &str = "2";
/// Disk of the base template.
pub(crate) const BASE_DISK_BYTES: u64 = 4 << 30;
/// Smallest disk that is chosen when the request names none, MiB.
const DEFAULT_DISK_MIB: u64 = 4 << 10;
/// Free space that a machine needs on its disk: for mount points, host name, resolver, and a minimum for the start command.
const SPARE_BYTES: u64 = 32 << 20;
/// Free space beside the image's own content when the request names no disk, MiB.
const HEADROOM_MIB: u64 = 1 << 10;
/// Lines that wait for the log: more than an image has layers, each named twice.
const WAITING: usize = 600;
/// Time between two progress lines.
const EVERY: Duration = Duration::from_secs(2);

/// Disk of a template made from an image: the requested size, or a generous estimate of the content plus headroom. Blocks
/// that are never written cost nothing.
pub(crate) fn disk_bytes(asked_mib: Option<u32>, compressed_bytes: u64) -> u64 {
    let mib = match asked_mib {
        Some(asked) => u64::from(asked),
        None => {
            let content = (compressed_bytes >> 20).saturating_mul(5);
            DEFAULT_DISK_MIB.max(content.saturating_add(HEADROOM_MIB).next_multiple_of(512))
        }
    };
    mib.saturating_mul(1 << 20)
}

/// The reason for which a tenant may have the root image of a manifest, or of layers whose digests it can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Proof {
    /// This repository served the image, with all layers, to a client without credentials. So it is public.
    Public {
        /// Host, perhaps with a port.
        registry: String,
        /// Path in it.
        repository: String,
    },
    /// This tenant has had all layers: fetched with its own credentials, or built.
    Tenant(TenantId),
}

impl Proof {
    /// The key under which the content is found with this proof.
    pub(super) fn key(&self, content: &str) -> String {
        match self {
            Proof::Public { registry, repository } => key(&["public", registry, repository, content]),
            Proof::Tenant(tenant) => key(&["tenant", &tenant.to_string(), content]),
        }
    }
}

/// The keys of a root image, and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootKey {
    /// Key that it is stored under; looked for first.
    pub(crate) key: String,
    /// Keys that it may also be found under.
    pub(crate) others: Vec<String>,
    /// Content key.
    pub(crate) content: String,
}

impl RootKey {
    /// A key that any of the proofs finds. The image is stored under the first.
    fn proven(content: String, first: &Proof, others: &[Proof]) -> RootKey {
        let others = others.iter().map(|proof| proof.key(&content)).collect();
        RootKey { key: first.key(&content), others, content }
    }

    /// The root image of an image in a registry, for a tenant to which the registry has just served the manifest.
    pub(crate) fn of_image(
        manifest_digest: &str,
        disk_bytes: u64,
        public: Proof,
        tenant: TenantId,
        credentials: bool,
    ) -> RootKey {
        let content = key(&["image", manifest_digest, std::env::consts::ARCH, IMPORTER, &disk_bytes.to_string()]);
        let own = Proof::Tenant(tenant);
        // What this repository gives to everybody, or this tenant has, need not be fetched again in either case.
        if credentials { RootKey::proven(content, &own, &[public]) } else { RootKey::proven(content, &public, &[own]) }
    }

    /// The root of an image that was built here for a tenant, from the digests that its config claims for its layers.
    pub(crate) fn of_layers(diff_ids: &[&str], disk_bytes: u64, tenant: TenantId) -> RootKey {
        let disk = disk_bytes.to_string();
        let content = key(&[&["layers", std::env::consts::ARCH, IMPORTER, &disk], diff_ids].concat());
        RootKey::proven(content, &Proof::Tenant(tenant), &[])
    }

    /// The root image of the base template, which is the operator's and public.
    pub(crate) fn of_tar(sha256: &str) -> RootKey {
        let content = tar_key(sha256);
        RootKey { key: content.clone(), others: Vec::new(), content }
    }
}

/// Key of the base template's root image.
pub(crate) fn tar_key(sha256: &str) -> String {
    key(&["tar", sha256, std::env::consts::ARCH, IMPORTER, &BASE_DISK_BYTES.to_string()])
}

/// A key of these parts: BLAKE3, each part with its length before it.
pub(super) fn key(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// Imports that run in this process: a second import of a key waits for the first and finds its result.
#[derive(Default)]
pub(crate) struct InFlight {
    keys: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl InFlight {
    pub(crate) async fn enter(&self, key: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.retain(|_, lock| lock.strong_count() > 0);
            match keys.get(key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::default();
                    keys.insert(key.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

/// Progress of an import as log lines. Called from the threads of the import.
pub(crate) struct Lines {
    lines: tokio::sync::mpsc::Sender<String>,
    last: Mutex<Instant>,
}

impl Lines {
    pub(crate) fn new(log: BuildLog, tasks: &TaskTracker) -> Lines {
        let (lines, mut said) = tokio::sync::mpsc::channel::<String>(WAITING);
        tasks.spawn(async move {
            while let Some(line) = said.recv().await {
                if log.say("prepare", line).await.is_err() {
                    return;
                }
            }
        });
        Lines { lines, last: Mutex::new(Instant::now()) }
    }

    /// Writes a line about progress, unless one was written in the last two seconds.
    pub(crate) fn say(&self, line: impl FnOnce() -> String) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= EVERY {
            *last = Instant::now();
            self.tell(line());
        }
    }

    /// Writes a line of its own right.
    pub(crate) fn tell(&self, line: String) {
        // Full only when the log has not taken a line for minutes; the end of the build says so itself.
        let _ = self.lines.try_send(line);
    }
}

/// Imports a root tree's tar with a known SHA-256.
pub(crate) async fn tar(path: PathBuf, sha256: String, target: Target) -> Result<Written, BuildFailure> {
    let hashed = path.clone();
    blocking(move || {
        // Read twice, but hashed first: what was pinned is what is imported.
        let found = digest_of(&hashed).map_err(|error| BuildFailure::internal(Phase::Prepare, &error))?;
        if found != sha256 {
            let message = "the tar of the base template has changed since this build was accepted";
            return Err(BuildFailure::user(Phase::Prepare, reason::INVALID_IMAGE, message, "Restart the service."));
        }
        Ok(())
    })
    .await?;
    plain_tar(path, target).await
}

/// Imports a root tree's tar as it is.
pub(crate) async fn plain_tar(path: PathBuf, target: Target) -> Result<Written, BuildFailure> {
    let cancel = target.cancel.clone();
    let (sink, writing) = target.begin()?;
    let merged = blocking(move || {
        let file = File::open(&path).map_err(|error| BuildFailure::internal(Phase::Prepare, &error))?;
        let reader = Cancellable { inner: file, cancel };
        let imported = nullspace_oci::import::import_tar(reader, sink, &Default::default());
        imported.map(|imported| imported.tree).map_err(|error| layer_failed(&error, &error))
    })
    .await;
    writing.finish(merged).await
}

/// A layer's error in the user's terms; `whole` is the error that says which layer.
pub(crate) fn layer_failed(error: &LayerError, whole: &dyn std::error::Error) -> BuildFailure {
    match error {
        LayerError::UnsupportedSpecialFile { path, entry_type } => BuildFailure::user(
            Phase::Prepare,
            reason::UNSUPPORTED_SPECIAL_FILE,
            whole.to_string(),
            "Remove that file from the image; devices appear in the guest by themselves.",
        )
        .with("path", path.as_str())
        .with("entry_type", *entry_type),
        _ => invalid(whole),
    }
}

/// The failure of a build whose image is not one that can be read.
pub(crate) fn invalid(error: &dyn std::error::Error) -> BuildFailure {
    BuildFailure::user(
        Phase::Prepare,
        reason::INVALID_IMAGE,
        format!("the image cannot be imported: {error}"),
        "Build and push the image again.",
    )
}

/// SHA-256 of a file, hex.
pub(crate) fn digest_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// A reader that ends when the build does.
struct Cancellable<R> {
    inner: R,
    cancel: CancellationToken,
}

impl<R: Read> Read for Cancellable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(std::io::Error::other("the build was stopped"));
        }
        self.inner.read(buffer)
    }
}

/// Runs a job on a thread of its own and waits for it.
async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, BuildFailure> + Send + 'static,
) -> Result<T, BuildFailure> {
    let done = tokio::task::spawn_blocking(job).await;
    done.unwrap_or_else(|error| Err(BuildFailure::internal(Phase::Prepare, &error)))
}

/// The image file to write.
pub(crate) struct Target {
    pub(crate) file: File,
    /// Content key.
    pub(crate) content: String,
    pub(crate) disk_bytes: u64,
    /// Ends the import.
    pub(crate) cancel: CancellationToken,
    /// Held by the writer's thread, which ends last: the file's folder stays until then.
    pub(crate) busy: TaskTrackerToken,
}

impl Target {
    /// Starts the writer's thread.
    pub(crate) fn begin(self) -> Result<(Sink, Writing), BuildFailure> {
        let options = options(&self.content, self.disk_bytes);
        let begun = nullspace_rootfs::begin(self.file, options, self.busy.clone());
        let (sink, inner) = begun.map_err(|error| Unwritten::from(error).0)?;
        Ok((sink, Writing { inner, busy: self.busy }))
    }
}

/// The writer's thread, from outside.
pub(crate) struct Writing {
    inner: nullspace_rootfs::Writing,
    busy: TaskTrackerToken,
}

impl Writing {
    /// Waits for the contents and writes the tree that `merged` describes. The sink must be dropped before.
    pub(crate) async fn finish(
        self,
        merged: Result<MergedTree<Content>, BuildFailure>,
    ) -> Result<Written, BuildFailure> {
        blocking(move || {
            let _busy = self.busy;
            self.inner.finish(merged.map_err(Unwritten)).map_err(|unwritten| unwritten.0)
        })
        .await
    }
}

/// The image's options except its content, derived from the content key.
fn options(key: &str, disk_bytes: u64) -> Options {
    let id = |name: &str| {
        let hash = blake3::keyed_hash(blake3::hash(name.as_bytes()).as_bytes(), key.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.as_bytes()[..16]);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    };
    let (uuid, hash_seed): (Uuid, Uuid) = (id("filesystem"), id("directories"));
    Options {
        label: "nullspace".to_owned(),
        spare_bytes: SPARE_BYTES,
        ..Options::new(disk_bytes, uuid, hash_seed, Default::default())
    }
}

/// A failure of an import, with the image writer's error in the user's terms.
struct Unwritten(BuildFailure);

impl From<nullspace_rootfs::Error> for Unwritten {
    fn from(error: nullspace_rootfs::Error) -> Unwritten {
        Unwritten(match &error {
            nullspace_rootfs::Error::Ext4 { path, source } => {
                let failure = written(path.as_deref(), source);
                match path {
                    Some(path) => failure.with("path", path.as_str()),
                    None => failure,
                }
            }
            _ => BuildFailure::own(Phase::Prepare, &error),
        })
    }
}

/// An ext4 error in the user's terms. `path` is the file that caused it, if it was a file.
fn written(path: Option<&str>, error: &nullspace_ext4::Error) -> BuildFailure {
    match error {
        nullspace_ext4::Error::TooSmall { size_bytes, needed_bytes } => {
            let (size, needed) = (size_bytes >> 20, needed_bytes.div_ceil(1 << 20));
            BuildFailure::user(
                Phase::Prepare,
                reason::DISK_TOO_SMALL,
                format!("the image and its machine need {needed} MiB, the disk has {size} MiB"),
                format!("Set build_config.disk_mb to at least {needed}, and more for what the template is to write."),
            )
            .with("needed_mb", needed)
        }
        nullspace_ext4::Error::Io { .. } => BuildFailure::own(Phase::Prepare, error),
        other => BuildFailure::user(
            Phase::Prepare,
            reason::INVALID_IMAGE,
            match path {
                Some(path) => format!("the image cannot be stored as a filesystem: {}: {other}", path.escape_debug()),
                None => format!("the image cannot be stored as a filesystem: {other}"),
            },
            "Mend the file that the message names and build the image again.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn public(registry: &str, repository: &str) -> Proof {
        Proof::Public { registry: registry.to_owned(), repository: repository.to_owned() }
    }

    fn image(registry: &str, repository: &str, tenant: TenantId, credentials: bool) -> RootKey {
        RootKey::of_image(DIGEST, 1 << 30, public(registry, repository), tenant, credentials)
    }

    /// Whether `asking` finds what `stored` left.
    fn finds(asking: &RootKey, stored: &RootKey) -> bool {
        assert_eq!(asking.content, stored.content, "copies hold the same bytes");
        asking.key == stored.key || asking.others.contains(&stored.key)
    }

    #[test]
    fn a_claimed_manifest_finds_nothing_of_another_tenant() {
        let (a, b) = (TenantId::new(), TenantId::new());
        let private = image("r.example", "a/private", a, true);
        for claimed in [
            image("evil.example", "x", b, false),
            image("evil.example", "x", b, true),
            image("evil.example", "a/private", b, false),
            // Even where it can be read: another tenant's credentials are no proof.
            image("r.example", "a/private", b, true),
            image("r.example", "a/private", b, false),
        ] {
            assert!(!finds(&claimed, &private), "{claimed:?}");
        }
        // What is served to everybody somewhere is not thereby served by others.
        let open = image("r.example", "open", a, false);
        for claimed in [image("evil.example", "open", b, false), image("r.example", "x", b, false)] {
            assert!(!finds(&claimed, &open), "{claimed:?}");
        }
        // Length-prefixed: no other split of the same text is the same repository.
        assert_ne!(public("r.example/a", "b").key("c"), public("r.example", "a/b").key("c"));
    }

    #[test]
    fn what_is_public_is_shared_and_what_a_tenant_has_had_is_found_by_it() {
        let (a, b) = (TenantId::new(), TenantId::new());
        let open = image("r.example", "open", a, false);
        assert!(finds(&image("r.example", "open", b, false), &open));
        assert!(finds(&image("r.example", "open", b, true), &open));
        let private = image("r.example", "private", a, true);
        assert!(finds(&image("r.example", "private", a, true), &private));
        assert!(finds(&image("copy.example", "private", a, false), &private));
    }

    #[test]
    fn built_layers_are_their_tenants_alone() {
        let (a, b) = (TenantId::new(), TenantId::new());
        let of = |tenant| RootKey::of_layers(&[DIGEST], 1 << 30, tenant);
        assert!(finds(&of(a), &of(a)));
        assert!(!finds(&of(b), &of(a)));
    }
}
