//! The first phase: from the plan's source to an immutable root image on this host.
//!
//! ```text
//!  image     resolve the tag to a digest ── key ── image there? ── no: import, publish ──┐
//!  base tar  its SHA-256 ───────────────── key ── there? ─────── no: import, publish ──┼──> root image + runtime
//!  dockerfile  BuildKit ── archive ── key ── there? ─ no: import, publish ──────────────┤   (buildkit)
//!  template  the parent's root image, as it was before the parent's start command ran ──┘
//! ```
//! Root images are shared: the key says everything that the bytes depend on, and why whoever asks may have them (see
//! [`import`]), so the same source twice is one file, and a tag that moved is another key.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use nullspace_api::{
    RequestSecrets, TemplateBuildCacheSummary, TemplateBuildLogEntryCacheKind as CacheKind,
    TemplateBuildLogEntryCacheReason as CacheReason, TemplateBuildLogEntryCacheStatus as CacheStatus,
    TemplateFailurePhase as Phase, TemplateOciImageMetadata,
};
use nullspace_rootfs::Written;
use nullspace_store::{Build, Lease, Rootfs, StoreError};
use serde_json::json;

use crate::Inner;
use crate::failure::{BuildFailure, reason};
use crate::image;
use crate::import::{self, RootKey, Target};
use crate::logs::BuildLog;
use crate::pipeline::{Error, Scope};
use crate::plan::{BuildPlan, Runtime, Source};
use crate::records::column;

/// What the following phases build on.
pub(crate) struct Prepared {
    pub(crate) rootfs: Rootfs,
    /// What the guest's disk is to have.
    pub(crate) disk_bytes: u64,
    /// What the source says of run time.
    pub(crate) runtime: Runtime,
    pub(crate) oci_metadata: Option<TemplateOciImageMetadata>,
    pub(crate) cache: TemplateBuildCacheSummary,
}

/// One build at its first phase.
pub(crate) struct Preparing<'a> {
    pub(crate) inner: &'a Arc<Inner>,
    pub(crate) build: &'a Build,
    pub(crate) lease: &'a Lease,
    pub(crate) plan: &'a BuildPlan,
    pub(crate) log: &'a BuildLog,
    pub(crate) scope: &'a Scope,
}

impl Preparing<'_> {
    pub(crate) async fn run(&self) -> Result<Prepared, Error> {
        match &self.plan.source {
            Source::Image { reference } => self.image(reference).await,
            Source::BaseTar { sha256 } => self.base_tar(sha256).await,
            Source::Template { reference, artifact } => self.template(reference, *artifact).await,
            Source::Dockerfile(dockerfile) => self.dockerfile(dockerfile).await,
        }
    }

    /// The credentials and secrets that came with the request.
    pub(crate) fn secrets(&self) -> Result<Arc<RequestSecrets>, BuildFailure> {
        match (self.plan.authenticated, self.inner.credentials.get(self.build.id)) {
            (true, None) => {
                let mut failure = BuildFailure::infrastructure(
                    Phase::Interrupted,
                    reason::CREDENTIALS_LOST,
                    "the service restarted, and credentials of a build are kept in memory only",
                );
                failure.suggested_action = "Send the build again with its credentials.".to_owned();
                // Another attempt would not have them either.
                failure.retryable = false;
                Err(failure)
            }
            (_, secrets) => Ok(secrets.unwrap_or_default()),
        }
    }

    async fn image(&self, reference: &str) -> Result<Prepared, Error> {
        let credentials = self.secrets()?.base_image_auth.clone();
        let own_credentials = credentials.is_some();
        self.log.say("prepare", format!("Resolving {reference}")).await?;
        let resolved = image::resolve(&self.inner.registry, reference, credentials).await?;
        let digest = resolved.digest();
        self.inner.metadata.set_source_digest(self.lease, &digest, Timestamp::now()).await?;
        self.log.say("prepare", format!("{reference} resolved to {digest}")).await?;

        let disk_bytes = import::disk_bytes(self.plan.machine.disk_mb, resolved.compressed_bytes());
        let (manifest, tenant) = (resolved.manifest_digest(), self.build.tenant);
        let key = RootKey::of_image(&manifest, disk_bytes, resolved.public_proof(), tenant, own_credentials);
        let mut cache = TemplateBuildCacheSummary::default();
        let rootfs = self
            .rootfs(&key, &digest, disk_bytes, &mut cache, |target, spool| {
                let lines = import::Lines::new(self.log.clone(), &self.scope.tasks);
                let resolved = resolved.clone();
                async move {
                    // What it takes is not known before it is there: at least as much as is downloaded.
                    let room = self.inner.room(resolved.compressed_bytes());
                    let _room = room.map_err(|error| BuildFailure::store(Phase::Prepare, &error))?;
                    image::import(resolved, target, spool, lines).await
                }
            })
            .await?;
        let runtime = image::runtime(resolved.config());
        let oci_metadata = Some(image::metadata(resolved.config()));
        self.prepared(rootfs, disk_bytes, runtime, oci_metadata, cache)
    }

    async fn base_tar(&self, sha256: &str) -> Result<Prepared, Error> {
        let Some(tar) = self.inner.config.base_tar.clone() else {
            let message = "this host has no tar of the base template";
            return Err(BuildFailure::infrastructure(Phase::Prepare, reason::INTERNAL, message).into());
        };
        let disk_bytes = import::BASE_DISK_BYTES;
        let mut cache = TemplateBuildCacheSummary::default();
        let digest = sha256.to_owned();
        let rootfs = self
            .rootfs(&RootKey::of_tar(sha256), &format!("sha256:{sha256}"), disk_bytes, &mut cache, |target, _| {
                import::tar(tar, digest, target)
            })
            .await?;
        self.prepared(rootfs, disk_bytes, Runtime::default(), None, cache)
    }

    async fn template(&self, reference: &str, artifact: nullspace_store::ArtifactId) -> Result<Prepared, Error> {
        let parent = match self.inner.metadata.hold_artifact(self.lease, artifact).await {
            Ok(parent) => parent,
            Err(StoreError::NotFound) => {
                return Err(BuildFailure::user(
                    Phase::Prepare,
                    reason::PARENT_NOT_FOUND,
                    format!("template {reference} was deleted after this build was accepted"),
                    "Build from a template that exists.",
                )
                .into());
            }
            Err(error) => return Err(error.into()),
        };
        self.inner.metadata.set_source_digest(self.lease, &parent.build.to_string(), Timestamp::now()).await?;
        let rootfs = self
            .inner
            .metadata
            .find_rootfs(self.lease, &parent.rootfs.key, Timestamp::now())
            .await?
            .ok_or_else(|| StoreError::Corrupt { what: format!("root image of artifact {artifact}") })?;
        self.log.say("prepare", format!("Starting from template {reference} ({})", parent.build)).await?;
        let wanted = self.plan.machine.disk_mb.map_or(0, |mb| u64::from(mb) << 20);
        let disk_bytes = parent.disk_bytes.max(wanted);
        let runtime: Runtime = column("artifacts.runtime", &parent.runtime.0)?;
        let oci_metadata =
            parent.oci_metadata.as_ref().map(|json| column("artifacts.oci_metadata", json)).transpose()?;
        self.prepared(rootfs, disk_bytes, runtime, oci_metadata, TemplateBuildCacheSummary::default())
    }

    pub(crate) fn prepared(
        &self,
        rootfs: Rootfs,
        disk_bytes: u64,
        runtime: Runtime,
        oci_metadata: Option<TemplateOciImageMetadata>,
        cache: TemplateBuildCacheSummary,
    ) -> Result<Prepared, Error> {
        Ok(Prepared { disk_bytes: disk_bytes.max(rootfs.bytes), rootfs, runtime, oci_metadata, cache })
    }

    /// The root image of this key: found, or imported and published. At most one import of a key runs in this process.
    pub(crate) async fn rootfs<F, R>(
        &self,
        root: &RootKey,
        subject: &str,
        disk_bytes: u64,
        cache: &mut TemplateBuildCacheSummary,
        start: F,
    ) -> Result<Rootfs, Error>
    where
        F: FnOnce(Target, PathBuf) -> R,
        R: Future<Output = Result<Written, BuildFailure>>,
    {
        let key = root.key.as_str();
        let _alone = self.inner.imports.enter(key).await;
        if self.plan.skip_cache {
            cache.layer_bypasses += 1;
            self.inner.metrics.lookup("layer", "bypass");
            let message = format!("{subject}: cache bypassed (skip_cache)");
            let reason = Some(CacheReason::WholeBuildSkipCache);
            self.log.cache("prepare", CacheKind::Layer, CacheStatus::Bypass, reason, subject, message).await?;
        } else if let Some(rootfs) = self.found(root).await? {
            cache.layer_hits += 1;
            self.inner.metrics.lookup("layer", "hit");
            let message = format!("{subject}: cache hit, imported before");
            self.log.cache("prepare", CacheKind::Layer, CacheStatus::Hit, None, subject, message).await?;
            return Ok(rootfs);
        } else {
            cache.layer_misses += 1;
            self.inner.metrics.lookup("layer", "miss");
            let message = format!("{subject}: cache miss");
            let reason = Some(CacheReason::MissingOrIncompatible);
            self.log.cache("prepare", CacheKind::Layer, CacheStatus::Miss, reason, subject, message).await?;
        }

        let began = Instant::now();
        let scratch = self.scope.scratch(self.inner)?;
        let path = scratch.path().join("rootfs.ext4");
        let file = std::fs::File::options().create_new(true).read(true).write(true).open(&path);
        let target = Target {
            file: file.map_err(|error| BuildFailure::own(Phase::Prepare, &error))?,
            content: root.content.clone(),
            disk_bytes,
            cancel: self.scope.cancel.clone(),
            busy: self.scope.tasks.token(),
        };
        let imported = start(target, scratch.path().to_owned()).await?;
        let published = self.inner.files.publish_rootfs(&path, key).await?;
        let kept = self.inner.metadata.put_rootfs(self.lease, published.row(key, json!({})), Timestamp::now()).await?;
        if kept.file != published.file {
            self.inner.files.remove_rootfs(&published.file).await?;
        }
        cache.layer_stores += 1;
        let message = format!(
            "Imported {} files and {} MiB in {} ms",
            imported.entries,
            imported.content_bytes >> 20,
            began.elapsed().as_millis()
        );
        self.log.cache("prepare", CacheKind::Layer, CacheStatus::Stored, None, subject, message).await?;
        Ok(kept)
    }

    async fn found(&self, root: &RootKey) -> Result<Option<Rootfs>, Error> {
        for key in std::iter::once(&root.key).chain(&root.others) {
            if let Some(rootfs) = self.inner.metadata.find_rootfs(self.lease, key, Timestamp::now()).await? {
                return Ok(Some(rootfs));
            }
        }
        Ok(None)
    }
}

/// A root image that cannot be opened, in the user's terms.
pub(crate) fn unreadable(error: StoreError) -> Error {
    let StoreError::Damaged { what } = error else { return error.into() };
    tracing::error!(what, "a stored root image is damaged");
    let mut failure = BuildFailure::infrastructure(
        Phase::Prepare,
        reason::ROOT_DAMAGED,
        "the stored root image that this build starts from is damaged",
    );
    failure.suggested_action =
        "Build again with skip_cache, which makes an image's root anew; of a template, build that one again so. The \
         operator's `nullspace store verify` says what is damaged."
            .to_owned();
    // The same file would be read again.
    failure.retryable = false;
    failure.into()
}
