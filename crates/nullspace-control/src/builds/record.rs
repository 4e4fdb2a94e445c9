//! The record of a running build: the host's questions and reports, written under the worker's lease.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{TemplateBuildConfig, TemplateBuildLogEntry};
use nullspace_db::{Artifact, Build, DbError, Lease};
use nullspace_host_interface::{BuildRecord, CacheLookup, FinishedArtifact, HeldFile, Parent, RecordError};
use nullspace_service::chain;
use nullspace_types::{ArtifactId, Rootfs, Streams};
use serde_json::json;

use super::logs::to_store;
use crate::Inner;
use crate::catalog::wire::column;

/// The record of one attempt.
pub(crate) struct Record {
    inner: Arc<Inner>,
    lease: Lease,
    build: Build,
}

impl Record {
    pub(crate) fn new(inner: Arc<Inner>, lease: Lease, build: Build) -> Record {
        Record { inner, lease, build }
    }
}

/// The database's error, as a host gets it.
fn to_host(error: DbError) -> RecordError {
    match error {
        DbError::LeaseLost => RecordError::LeaseLost,
        DbError::NotFound => RecordError::NotFound,
        DbError::Corrupt { what } => RecordError::Corrupt(what),
        full if full.is_storage_full() => RecordError::StorageFull(chain(&full)),
        other => RecordError::Failed(chain(&other)),
    }
}

#[async_trait]
impl BuildRecord for Record {
    async fn append(&self, entries: Vec<TemplateBuildLogEntry>) -> Result<(), RecordError> {
        let now = Timestamp::now();
        let entries =
            entries.iter().map(|entry| to_store(entry, now)).collect::<Result<Vec<_>, _>>().map_err(to_host)?;
        self.inner.db.append_log(&self.lease, entries).await.map_err(to_host)?;
        self.inner.builds.hub.notify(self.build.id);
        Ok(())
    }

    async fn set_source_digest(&self, digest: &str) -> Result<(), RecordError> {
        self.inner.db.set_source_digest(&self.lease, digest, Timestamp::now()).await.map_err(to_host)
    }

    async fn set_disk_mb(&self, disk_mb: u32) -> Result<(), RecordError> {
        let config: Result<TemplateBuildConfig, DbError> = column("builds.build_config", &self.build.build_config);
        let config = TemplateBuildConfig { disk_mb: Some(disk_mb), ..config.map_err(to_host)? };
        self.inner.db.set_build_config(&self.lease, json!(config), Timestamp::now()).await.map_err(to_host)
    }

    async fn held_files(&self) -> Result<Vec<HeldFile>, RecordError> {
        let held = self.inner.db.held_blobs(&self.lease).await.map_err(to_host)?;
        Ok(held.into_iter().map(|blob| HeldFile { id: blob.id, generation: blob.generation }).collect())
    }

    async fn parent(&self, artifact: ArtifactId) -> Result<Parent, RecordError> {
        let held = self.inner.db.hold_artifact(&self.lease, artifact).await.map_err(to_host)?;
        let rootfs = self.find_rootfs(&held.rootfs.key).await?;
        let missing = || RecordError::Corrupt(format!("root image of artifact {artifact}"));
        let read = || -> Result<Parent, DbError> {
            let oci_metadata = held.oci_metadata.as_ref();
            Ok(Parent {
                build: held.build,
                rootfs: held.rootfs.clone(),
                disk_bytes: held.disk_bytes,
                runtime: column("artifacts.runtime", &held.runtime.0)?,
                oci_metadata: oci_metadata.map(|json| column("artifacts.oci_metadata", json)).transpose()?,
            })
        };
        Ok(Parent { rootfs: rootfs.ok_or_else(missing)?, ..read().map_err(to_host)? })
    }

    async fn find_rootfs(&self, key: &str) -> Result<Option<Rootfs>, RecordError> {
        self.inner.db.find_rootfs(&self.lease, key, Timestamp::now()).await.map_err(to_host)
    }

    async fn put_rootfs(&self, rootfs: Rootfs) -> Result<Rootfs, RecordError> {
        self.inner.db.put_rootfs(&self.lease, rootfs, Timestamp::now()).await.map_err(to_host)
    }

    async fn find_layer(&self, key: &str) -> Result<Option<Rootfs>, RecordError> {
        self.inner.db.find_layer(&self.lease, key, Timestamp::now()).await.map_err(to_host)
    }

    async fn put_layer(&self, rootfs: Rootfs, key: &str) -> Result<Rootfs, RecordError> {
        self.inner.db.put_layer(&self.lease, rootfs, key, Timestamp::now()).await.map_err(to_host)
    }

    async fn find_final(&self, key: &str) -> Result<Option<FinishedArtifact>, RecordError> {
        let found = self.inner.db.find_final(&self.lease, key).await.map_err(to_host)?;
        let finished = |Artifact { id, folder, streams, disk_bytes, compatibility, snapshot, .. }| FinishedArtifact {
            id,
            folder,
            streams,
            disk_bytes,
            compatibility,
            snapshot,
        };
        Ok(found.map(finished))
    }

    async fn similar_snapshots(&self) -> Result<Vec<Streams>, RecordError> {
        self.inner.db.similar_snapshots(self.lease.build).await.map_err(to_host)
    }

    fn looked_up(&self, lookup: CacheLookup) {
        self.inner.metrics.looked_up(lookup);
    }

    fn phase(&self, phase: &'static str, took: Duration) {
        self.inner.metrics.phase(phase, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_of_the_database_is_told_to_the_host_apart_from_other_faults() {
        let told = |number| {
            let source = std::io::Error::from_raw_os_error(number);
            to_host(DbError::Io { context: "write the database".into(), source })
        };
        for number in [28 /* ENOSPC */, 122 /* EDQUOT */] {
            assert!(matches!(told(number), RecordError::StorageFull(text) if text.contains("write the database")));
        }
        assert!(matches!(told(5 /* EIO */), RecordError::Failed(_)));
    }
}
