//! Control's view of this host's stored data: naming, sweeping, collection.

use std::collections::BTreeSet;

use async_trait::async_trait;
use nullspace_data::DataError;
use nullspace_host_interface::{Collected, HostError, KnownImages, Storage};
use nullspace_types::{Blob, KnownFiles, Streams};

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
