//! Collection: removes files that nothing refers to. References decide, never age alone. Rows follow after their retention
//! ([`retention`]).

pub(crate) mod retention;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use nullspace_db::DbError;
use nullspace_host_interface::{HostError, KnownImages, RecordError};
use nullspace_service::chain;
use nullspace_types::KnownFiles;

use crate::Inner;

/// Longest time between two rounds of collection.
const EVERY: Duration = Duration::from_secs(60);
/// Time for which a root image without artifacts is kept for the next build of the same source.
const KEEP_ROOTFS: SignedDuration = SignedDuration::from_hours(24);
/// Most things that one round removes.
const BATCH: u32 = 100;

/// Time between two collections of the chunk store when no root image was removed: failed builds leave chunks, too.
const CHUNKS_EVERY: Duration = Duration::from_secs(3600);

/// Shortest time between two rounds of retention.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(5);

/// Collects until the service stops.
pub(crate) async fn run(inner: Arc<Inner>) {
    adopt(&inner).await;
    let mut chunks = Chunks::default();
    let mut rows: Option<Instant> = None;
    let mut wait = EVERY;
    loop {
        tokio::select! {
            () = inner.shutdown.cancelled() => return,
            () = inner.collect.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        if let Err(error) = once(&inner, &mut chunks).await {
            tracing::warn!(error = %chain(&error), "collection failed");
        }
        if rows.is_some_and(|last| last.elapsed() < BETWEEN_ROUNDS) {
            continue;
        }
        wait = match inner.expire(Timestamp::now()).await {
            Ok(round) if round.more => BETWEEN_ROUNDS,
            Ok(_) => EVERY,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "retention failed; the next round tries again");
                EVERY
            }
        };
        rows = Some(Instant::now());
    }
}

/// The error that ended a round of collection. The next round goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Database(#[from] DbError),
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The database's answers for a collection that has begun.
struct Known<'a>(&'a Inner);

#[async_trait]
impl KnownImages for Known<'_> {
    async fn known_files(&self) -> Result<KnownFiles, RecordError> {
        self.0.db.known_files().await.map_err(|error| RecordError::Failed(chain(&error)))
    }
}

/// The next time at which chunks are collected.
#[derive(Default)]
struct Chunks {
    /// `None`: not yet since the start.
    last: Option<Instant>,
    /// Chunks may have become unused.
    unused: bool,
}

async fn once(inner: &Inner, chunks: &mut Chunks) -> Result<(), Broken> {
    let now = Timestamp::now();
    for unused in inner.db.collectable_artifacts(now, BATCH).await? {
        // The row first: files without a row are swept at the next start, a row without files would be a lie.
        if inner.db.purge_artifact(unused.id, now).await? {
            chunks.unused = true;
            inner.host.remove_artifact(&unused.folder).await?;
            tracing::info!(artifact = %unused.id, "artifact removed");
        }
    }
    inner.record_use().await?;
    inner.end_due(now, BATCH).await?;
    chunks.unused |= inner.collect_snapshots(now, BATCH).await?;
    inner.collect_blobs(now, BATCH).await?;
    let unused_since = now - KEEP_ROOTFS;
    for rootfs in inner.db.collectable_rootfs(unused_since, BATCH).await? {
        if inner.db.purge_rootfs(&rootfs.key, unused_since).await? {
            chunks.unused = true;
            inner.host.remove_rootfs(&rootfs.file).await?;
            tracing::info!(file = rootfs.file, "root image removed");
        }
    }
    inner.host.trim_rootfs().await?;
    if chunks.unused || chunks.last.is_none_or(|last| last.elapsed() >= CHUNKS_EVERY) {
        let began = Instant::now();
        let collected = inner.host.collect_images(&Known(inner)).await?;
        chunks.unused = false;
        chunks.last = Some(Instant::now());
        if !collected.lost.is_empty() {
            tracing::error!(lost = ?collected.lost, "stored images cannot be read: see `nullspace store verify`");
        }
        if collected.packs > 0 || collected.manifests > 0 {
            let ms = began.elapsed().as_millis();
            tracing::info!(collected.manifests, collected.chunks, collected.freed_bytes, ms, "chunks collected");
        }
    }
    Ok(())
}

/// Imports root images and snapshots that an older version stored as files into the chunk store, one after the other.
async fn adopt(inner: &Inner) {
    let known = match inner.db.known_files().await {
        Ok(known) => known,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "files of an older version are imported at the next start");
            return;
        }
    };
    for (file, _) in known.rootfs.iter().filter(|(_, manifest)| manifest.is_none()) {
        if inner.shutdown.is_cancelled() {
            return;
        }
        let adopted = async {
            let manifest = inner.host.adopt_rootfs(file).await?;
            Ok::<_, Broken>(inner.db.set_rootfs_manifest(file, &manifest).await?)
        };
        match adopted.await {
            Ok(_) => tracing::info!(file, "a root image of an older version is stored as chunks now"),
            Err(error) => tracing::warn!(file, error = %chain(&error), "a root image of an older version stays a file"),
        }
    }
    for (folder, _) in known.artifacts.iter().filter(|(_, streams)| streams.is_none()) {
        if inner.shutdown.is_cancelled() {
            return;
        }
        let adopted = async {
            // A capture of a paused sandbox is published by itself.
            if inner.db.snapshot_in_folder(folder).await?.is_some() {
                return Ok(None);
            }
            let streams = inner.host.adopt_artifact(folder).await?;
            let named = inner.db.set_artifact_streams(folder, &streams).await?;
            inner.host.artifact_named(folder);
            Ok::<_, Broken>(Some(named))
        };
        match adopted.await {
            Ok(None) => {}
            Ok(Some(_)) => tracing::info!(folder, "a snapshot of an older version is stored as chunks now"),
            Err(error) => {
                tracing::warn!(folder, error = %chain(&error), "a snapshot of an older version stays a folder")
            }
        }
    }
}
