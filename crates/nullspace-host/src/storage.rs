//! Control's view of this host's stored data: naming, sweeping, collection.

use std::collections::BTreeSet;

use async_trait::async_trait;
use nullspace_data::{CaptureState, ChunkStop, DataError};
use nullspace_host_interface::{CaptureLeft, Collected, HostError, KnownImages, PublishedCapture, Storage};
use nullspace_types::{Blob, KnownFiles, Streams};
use tokio_util::sync::CancellationToken;

use crate::LocalHost;
use crate::failures::to_control;

#[async_trait]
impl Storage for LocalHost {
    async fn sweep(&self, known: KnownFiles, files: BTreeSet<Blob>) -> Result<Vec<String>, HostError> {
        let report = self.inner.files.sweep(known).await.map_err(to_control)?;
        self.inner.files.sweep_blobs(files).await.map_err(to_control)?;
        Ok(report.removed)
    }

    fn artifact_named(&self, folder: &str) {
        self.inner.files.artifact_named(folder);
    }

    async fn publish_capture(
        &self,
        folder: &str,
        similar: Vec<Streams>,
        cancel: CancellationToken,
    ) -> Result<PublishedCapture, HostError> {
        let files = &self.inner.files;
        // Chunks take as much as the raw files at most.
        let bytes = files.capture_bytes(folder).await.map_err(to_control)?;
        let _room = self.inner.disk.room(bytes).map_err(to_control)?;
        let stop = ChunkStop::default();
        let publish = files.publish_capture(folder, similar, stop.clone());
        tokio::pin!(publish);
        let published = tokio::select! {
            published = &mut publish => published,
            () = cancel.cancelled() => {
                stop.stop();
                publish.await
            }
        };
        let published = published.map_err(to_control)?;
        Ok(PublishedCapture { streams: published.streams, stored_bytes: published.stored_bytes })
    }

    async fn drop_capture(&self, folder: &str) -> Result<(), HostError> {
        self.inner.files.drop_capture(folder).await.map_err(to_control)
    }

    async fn flush_capture(&self, folder: &str) -> Result<(), HostError> {
        self.inner.files.flush_capture(folder).await.map_err(to_control)
    }

    async fn capture_left(&self, folder: &str) -> Result<CaptureLeft, HostError> {
        let state = self.inner.files.capture_state(folder).await.map_err(to_control)?;
        Ok(match state {
            CaptureState::Whole => CaptureLeft::Whole,
            CaptureState::Torn => CaptureLeft::Torn,
            CaptureState::Missing => CaptureLeft::Missing,
        })
    }

    async fn adopt_artifact(&self, folder: &str) -> Result<Streams, HostError> {
        self.inner.files.adopt_artifact(folder).await.map_err(to_control)
    }

    async fn remove_artifact(&self, folder: &str) -> Result<(), HostError> {
        self.inner.files.remove_artifact(folder).await.map_err(to_control)
    }

    async fn remove_rootfs(&self, file: &str) -> Result<(), HostError> {
        self.inner.files.remove_rootfs(file).await.map_err(to_control)
    }

    async fn trim_rootfs(&self) -> Result<(), HostError> {
        self.inner.files.trim_rootfs().await.map_err(to_control)
    }

    async fn collect_images(&self, known: &dyn KnownImages) -> Result<Collected, HostError> {
        let known =
            async { known.known_files().await.map_err(|error| DataError::Conflict { what: error.to_string() }) };
        let collected = self.inner.files.collect_images(known).await.map_err(to_control)?;
        Ok(Collected {
            manifests: collected.manifests,
            chunks: collected.chunks,
            packs: collected.packs,
            freed_bytes: collected.freed_bytes,
            lost: collected.lost.iter().map(ToString::to_string).collect(),
        })
    }

    async fn adopt_rootfs(&self, file: &str) -> Result<String, HostError> {
        self.inner.files.adopt_rootfs(file).await.map(|published| published.manifest).map_err(to_control)
    }
}
