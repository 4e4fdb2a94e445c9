//! The first phase: from the definition's source to an immutable root image on this host.
//!
//! ```text
//!  image     resolve the tag to a digest ── key ── image there? ── no: import, publish ──┐
//!  base tar  its SHA-256 ───────────────── key ── there? ─────── no: import, publish ──┼──> root image + runtime
//!  dockerfile  BuildKit ── archive ── key ── there? ─ no: import, publish ──────────────┤   (buildkit)
//!  template  the parent's root image, as it was before the parent's start command ran ──┘
//! ```
//! Root images are shared. The key covers everything that determines the bytes, and the proof that the tenant may have them
//! (see `import`). The same source is stored once, and a moved tag gives another key.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use nullspace_api::{
    RequestSecrets, TemplateBuildLogEntryCacheReason as CacheReason, TemplateBuildLogLevel, TemplateFailureDetailCode,
    TemplateFailurePhase as Phase, TemplateOciImageMetadata,
};
use nullspace_data::DataError;
use nullspace_definition::Source;
use nullspace_definition::machine::larger_disk;
use nullspace_definition::runtime::Runtime;
use nullspace_host_interface::{BuildFailure, CacheKind, RecordError, reason};
use nullspace_image_ref::Written as Reference;
use nullspace_rootfs::Written;
use nullspace_types::{ArtifactId, Rootfs};
use serde_json::json;

use super::cache::Answer;
use super::image_layers::ImageLayers;
use super::import::{self, RootKey, Target};
use super::{Attempt, Error, image};
use crate::failures;

/// Most paths named in one message.
const MAX_NAMED: usize = 10;

/// The result of the phase.
#[derive(Clone)]
pub(crate) struct Prepared {
    pub(crate) rootfs: Rootfs,
    /// Size of the guest's disk.
    pub(crate) disk_bytes: u64,
    /// The source's runtime settings.
    pub(crate) runtime: Runtime,
    pub(crate) oci_metadata: Option<TemplateOciImageMetadata>,
}

/// Makes or finds the root image.
pub(crate) async fn run(attempt: &Attempt) -> Result<Prepared, Error> {
    match &attempt.job.definition.source {
        Source::Image { reference } => attempt.image(reference).await,
        Source::BaseTar { sha256 } => attempt.base_tar(sha256).await,
        Source::Template { reference, artifact } => attempt.template(reference, *artifact).await,
        Source::Dockerfile(dockerfile) => attempt.dockerfile(dockerfile).await,
        // Such a build is ready from its first moment, so no worker gets one.
        Source::Snapshot { snapshot, .. } => {
            let message = format!("snapshot {snapshot} became a template as it is: there is nothing to build");
            let advice = "Promote the snapshot again, or start a build from an image.";
            Err(BuildFailure::user(Phase::Preflight, reason::INTERNAL, message, advice).into())
        }
    }
}

impl Attempt {
    /// The credentials and secrets that came with the request.
    pub(crate) fn secrets(&self) -> Result<Arc<RequestSecrets>, BuildFailure> {
        match (self.job.definition.authenticated, &self.job.secrets) {
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
            (_, secrets) => Ok(secrets.clone().unwrap_or_default()),
        }
    }

    async fn image(&self, reference: &Reference) -> Result<Prepared, Error> {
        let credentials = self.secrets()?.base_image_auth.clone();
        let own_credentials = credentials.is_some();
        self.log.say("prepare", format!("Resolving {reference}")).await?;
        let resolved = image::resolve(&self.builder.registry, reference.reference(), credentials).await?;
        let digest = resolved.digest();
        self.record.set_source_digest(&digest).await?;
        self.log.say("prepare", format!("{reference} resolved to {digest}")).await?;

        let disk_bytes = import::disk_bytes(self.job.definition.machine.disk_mb, resolved.compressed_bytes());
        let (manifest, tenant) = (resolved.manifest_digest(), self.job.tenant);
        let key = RootKey::of_image(&manifest, disk_bytes, resolved.public_proof(), tenant, own_credentials);
        let rootfs = self
            .rootfs(&key, &digest, disk_bytes, |target, spool| {
                let lines = import::Lines::new(self.log.clone(), &self.scope.tasks);
                let resolved = resolved.clone();
                let (files, disk) = (self.builder.files.clone(), Arc::clone(&self.builder.disk));
                let layers = ImageLayers::new(files, disk, resolved.repository(), tenant, own_credentials);
                async move {
                    // What it takes is not known before it is there: at least as much as is downloaded.
                    let room = self.builder.disk.room(resolved.compressed_bytes());
                    let _room = room.map_err(|error| failures::data(Phase::Prepare, &error))?;
                    image::import(resolved, target, spool, layers, lines).await
                }
            })
            .await?;
        let runtime = image::runtime(resolved.config());
        let oci_metadata = Some(image::metadata(resolved.config()));
        self.prepared(rootfs, disk_bytes, runtime, oci_metadata)
    }

    async fn base_tar(&self, sha256: &str) -> Result<Prepared, Error> {
        let Some(tar) = self.builder.settings.base_tar.clone() else {
            let message = "this host has no tar of the base template";
            return Err(BuildFailure::infrastructure(Phase::Prepare, reason::INTERNAL, message).into());
        };
        let disk_bytes = import::BASE_DISK_BYTES;
        let digest = sha256.to_owned();
        let rootfs = self
            .rootfs(&RootKey::of_tar(sha256), &format!("sha256:{sha256}"), disk_bytes, |target, _| {
                import::tar(tar, digest, target)
            })
            .await?;
        self.prepared(rootfs, disk_bytes, Runtime::default(), None)
    }

    async fn template(&self, reference: &str, artifact: ArtifactId) -> Result<Prepared, Error> {
        let parent = match self.record.parent(artifact).await {
            Ok(parent) => parent,
            Err(RecordError::NotFound) => {
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
        self.record.set_source_digest(&parent.build.to_string()).await?;
        self.log.say("prepare", format!("Starting from template {reference} ({})", parent.build)).await?;
        let wanted = self.job.definition.machine.disk_mb.map_or(0, |mb| u64::from(mb) << 20);
        let disk_bytes = parent.disk_bytes.max(wanted);
        self.prepared(parent.rootfs, disk_bytes, parent.runtime, parent.oci_metadata)
    }

    pub(crate) fn prepared(
        &self,
        rootfs: Rootfs,
        disk_bytes: u64,
        runtime: Runtime,
        oci_metadata: Option<TemplateOciImageMetadata>,
    ) -> Result<Prepared, Error> {
        Ok(Prepared { disk_bytes: disk_bytes.max(rootfs.bytes), rootfs, runtime, oci_metadata })
    }

    /// The root image of this key: found, or imported and published. At most one import of a key runs in this process.
    pub(crate) async fn rootfs<F, R>(
        &self,
        root: &RootKey,
        subject: &str,
        disk_bytes: u64,
        start: F,
    ) -> Result<Rootfs, Error>
    where
        F: FnOnce(Target, PathBuf) -> R,
        R: Future<Output = Result<Written, BuildFailure>>,
    {
        let key = root.key.as_str();
        let _alone = self.builder.imports.enter(key).await;
        let layer = CacheKind::Layer;
        if self.job.definition.skip_cache {
            let message = format!("{subject}: cache bypassed (skip_cache)");
            let answer = Answer::Bypass(CacheReason::WholeBuildSkipCache);
            self.cache.say("prepare", layer, answer, subject, message).await?;
        } else if let Some(rootfs) = self.found(root).await? {
            let message = format!("{subject}: cache hit, imported before");
            self.cache.say("prepare", layer, Answer::Hit, subject, message).await?;
            return Ok(rootfs);
        } else {
            self.cache.say("prepare", layer, Answer::Miss, subject, format!("{subject}: cache miss")).await?;
        }

        let began = Instant::now();
        let scratch = self.scope.scratch(&self.builder.files, &self.builder.disk)?;
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
        let published = self.builder.files.publish_rootfs(&path, key).await?;
        let kept = self.record.put_rootfs(published.row(key, json!({}))).await?;
        if kept.file != published.file {
            self.builder.files.remove_rootfs(&published.file).await?;
        }
        let message = format!(
            "Imported {} files and {} MiB in {} ms",
            imported.entries,
            imported.content_bytes >> 20,
            began.elapsed().as_millis()
        );
        self.cache.say("prepare", layer, Answer::Stored, subject, message).await?;
        Ok(kept)
    }

    async fn found(&self, root: &RootKey) -> Result<Option<Rootfs>, Error> {
        for key in std::iter::once(&root.key).chain(&root.others) {
            if let Some(rootfs) = self.record.find_rootfs(key).await? {
                return Ok(Some(rootfs));
            }
        }
        Ok(None)
    }
}

/// Ends a build whose context has files that were not uploaded. Such a build is accepted, and fails before its first phase.
pub(crate) async fn context(attempt: &Attempt) -> Result<(), Error> {
    let files = &attempt.job.definition.context;
    if files.is_empty() {
        return Ok(());
    }
    let held: BTreeSet<String> =
        attempt.record.held_files().await?.into_iter().map(|file| file.id.to_string()).collect();
    let lacks = |id: &String| !held.contains(id);
    let unknown: Vec<(&String, &String)> =
        files.0.iter().filter_map(|(path, entry)| Some((path, entry.blob.as_ref().filter(|id| lacks(id))?))).collect();
    let Some((path, id)) = unknown.first() else { return Ok(()) };
    let named: Vec<String> = unknown
        .iter()
        .take(MAX_NAMED)
        .map(|(path, id)| format!("'{}' ({})", path.escape_debug(), id.escape_debug()))
        .collect();
    let message = format!("files of the build context were never uploaded: {}", named.join(", "));
    let advice =
        "Ask POST /v1/templates/blobs/preflight which files to upload, upload them, and send the request again.";
    let mut failure = BuildFailure::user(Phase::Preflight, reason::UNKNOWN_BLOB, message, advice)
        .with("path", path.as_str())
        .with("blob_id", id.as_str())
        .with("count", unknown.len());
    failure.code = TemplateFailureDetailCode::FileUploadError;
    Err(failure.into())
}

/// Logs and records the disk's size when it is larger than requested.
pub(crate) async fn say_disk(attempt: &Attempt, prepared: &Prepared) -> Result<(), Error> {
    let definition = &attempt.job.definition;
    let from = match &definition.source {
        Source::Image { reference } => reference.as_str(),
        Source::Template { reference, .. } => reference.as_str(),
        Source::Dockerfile(_) => "the Dockerfile's image",
        Source::BaseTar { .. } => "the base",
        Source::Snapshot { .. } => "the snapshot",
    };
    let warning = larger_disk(definition.machine.disk_mb, prepared.disk_bytes, from);
    let Some(warning) = warning else { return Ok(()) };
    if let Ok(disk_mb) = u32::try_from(prepared.disk_bytes >> 20) {
        attempt.record.set_disk_mb(disk_mb).await?;
    }
    attempt.log.append(vec![attempt.log.message("prepare", TemplateBuildLogLevel::Warn, warning)]).await?;
    Ok(())
}

/// A root image that cannot be opened, in the user's terms.
pub(crate) fn unreadable(error: DataError) -> Error {
    let DataError::Damaged { what } = error else { return error.into() };
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
