//! Collection: files that nothing refers to any more go, by reference and never by age alone.

use std::sync::Arc;
use std::time::Duration;

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

/// Collects until the service stops.
pub(crate) async fn run(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.shutdown.cancelled() => return,
            () = inner.collect.notified() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Err(error) = once(&inner).await {
            tracing::warn!(error = %chain(&error), "collection failed");
        }
    }
}

async fn once(inner: &Inner) -> Result<(), StoreError> {
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
            inner.files.remove_rootfs(&rootfs.file).await?;
            tracing::info!(file = rootfs.file, "root image removed");
        }
    }
    Ok(())
}
