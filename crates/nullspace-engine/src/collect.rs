//! Collection: files that nothing refers to any more go, by reference and never by age alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nullspace_store::StoreError;

use crate::Inner;
use crate::failure::chain;

/// Between two looks when nobody asks for one.
const EVERY: Duration = Duration::from_secs(60);
/// A root image without artifacts is kept for the next build of the same source.
const KEEP_ROOTFS: SignedDuration = SignedDuration::from_hours(24);
/// Things collected in one look.
const BATCH: u32 = 100;

/// Between two looks at the chunk store when no root image went: builds that failed leave chunks there, too.
const CHUNKS_EVERY: Duration = Duration::from_secs(3600);

/// Collects until the service stops.
pub(crate) async fn run(inner: Arc<Inner>) {
    adopt(&inner).await;
    let mut chunks = Chunks::default();
    loop {
        tokio::select! {
            () = inner.shutdown.cancelled() => return,
            () = inner.collect.notified() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Err(error) = once(&inner, &mut chunks).await {
            tracing::warn!(error = %chain(&error), "collection failed");
        }
    }
}

/// When chunks are looked at next.
#[derive(Default)]
struct Chunks {
    /// `None`: never yet, since the start.
    last: Option<Instant>,
    /// Some may have become unused.
    unused: bool,
}

async fn once(inner: &Inner, chunks: &mut Chunks) -> Result<(), StoreError> {
    let now = Timestamp::now();
    for unused in inner.metadata.collectable_artifacts(now, BATCH).await? {
        // The row first: files without a row are swept at the next start, a row without files would be a lie.
        if inner.metadata.purge_artifact(unused.id, now).await? {
            inner.files.remove_artifact(&unused.folder).await?;
            tracing::info!(artifact = %unused.id, "artifact removed");
        }
    }
    inner.collect_blobs(now, BATCH).await?;
    let unused_since = now - KEEP_ROOTFS;
    for rootfs in inner.metadata.collectable_rootfs(unused_since, BATCH).await? {
        if inner.metadata.purge_rootfs(&rootfs.key, unused_since).await? {
            chunks.unused = true;
            inner.files.remove_rootfs(&rootfs.file).await?;
            tracing::info!(file = rootfs.file, "root image removed");
        }
    }
    inner.files.trim_rootfs().await?;
    if chunks.unused || chunks.last.is_none_or(|last| last.elapsed() >= CHUNKS_EVERY) {
        let began = Instant::now();
        let collected = inner.files.collect_images(inner.metadata.known_files()).await?;
        chunks.unused = false;
        chunks.last = Some(Instant::now());
        if !collected.lost.is_empty() {
            tracing::error!(lost = ?collected.lost, "stored root images cannot be read: see `nullspace store verify`");
        }
        if collected.packs > 0 || collected.manifests > 0 {
            let ms = began.elapsed().as_millis();
            tracing::info!(collected.manifests, collected.chunks, collected.freed_bytes, ms, "chunks collected");
        }
    }
    Ok(())
}

/// Takes root images that an older version left as files into the chunk store, one after the other.
async fn adopt(inner: &Inner) {
    let known = match inner.metadata.known_files().await {
        Ok(known) => known,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "root images of an older version are looked for at the next start");
            return;
        }
    };
    for (file, _) in known.rootfs.iter().filter(|(_, manifest)| manifest.is_none()) {
        if inner.shutdown.is_cancelled() {
            return;
        }
        let adopted = async {
            let stored = inner.files.adopt_rootfs(file).await?;
            inner.metadata.set_rootfs_manifest(file, &stored.manifest).await
        };
        match adopted.await {
            Ok(_) => tracing::info!(file, "a root image of an older version is stored as chunks now"),
            Err(error) => tracing::warn!(file, error = %chain(&error), "a root image of an older version stays a file"),
        }
    }
}
