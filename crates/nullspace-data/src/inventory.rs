//! Inventory of the data folder, its comparison with the database, and the removal of files that the database lacks.
//!
//! ```text
//!   inventory ──> comparison with the database ──┬──> remove_foreign    files of another database
//!                                                └──> sweep             files that the database lacks
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use nullspace_chunks::ManifestId;
use nullspace_types::{Blob, KnownFiles, Streams, TenantId};

use crate::{
    ArtifactStore, DataError, Result,
    artifacts::is_stored,
    folders::{io_error, read_dir, remove, sync_dir},
    names::{ARTIFACTS, BLOBS, CAPTURES, CHUNKS, LOGS, ROOTFS, artifact_of},
};

/// Names of everything durable in a data folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The data folder.
    pub root: PathBuf,
    /// Under `artifacts/`: snapshots of older versions.
    pub artifacts: BTreeSet<String>,
    /// Under `captures/`: paused sandboxes that are not stored as chunks yet.
    pub captures: BTreeSet<String>,
    /// Under `rootfs/`: root images as raw files.
    pub raw_files: BTreeSet<String>,
    /// Root images, and files of snapshots, whose chunks are stored.
    pub manifests: BTreeSet<ManifestId>,
    /// Under `blobs/`, here and in the object store: folders, one for each tenant, and the digests that are in each.
    pub blobs: BTreeMap<String, BTreeSet<String>>,
}

impl Inventory {
    /// Folder of the snapshots of older versions within the data folder.
    pub const ARTIFACTS: &'static str = ARTIFACTS;
    /// Folder of captures within the data folder.
    pub const CAPTURES: &'static str = CAPTURES;
    /// Folder of the chunks of root images and snapshots within the data folder.
    pub const CHUNKS: &'static str = CHUNKS;
    /// Folder of uploaded files within the data folder.
    pub const BLOBS: &'static str = BLOBS;
    /// Folder of the parts of builds' logs within the data folder.
    pub const LOGS: &'static str = LOGS;

    /// Whether a root image is stored: as this raw file, or as the chunks of this manifest.
    pub fn has_rootfs(&self, file: &str, manifest: Option<&str>) -> bool {
        self.raw_files.contains(file)
            || manifest.and_then(|id| id.parse().ok()).is_some_and(|id| self.manifests.contains(&id))
    }

    /// Whether a snapshot is stored: as the chunks of these streams, as a folder of an older version, or as a capture.
    pub fn has_artifact(&self, folder: &str, streams: Option<&Streams>) -> bool {
        let Some(streams) = streams else {
            return self.artifacts.contains(folder) || self.captures.contains(folder);
        };
        streams.0.values().all(|id| id.parse().is_ok_and(|id| self.manifests.contains(&id)))
    }

    /// Whether a tenant's uploaded file is stored.
    pub fn has_blob(&self, blob: &Blob) -> bool {
        self.blobs.get(&blob.tenant.to_string()).is_some_and(|files| files.contains(blob.id.sha256()))
    }
}

/// The result of [`ArtifactStore::sweep`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Removed names, relative to the data folder.
    pub removed: Vec<String>,
    /// Names that the database has and the disk does not. Another program has removed them.
    pub missing: KnownFiles,
}

impl ArtifactStore {
    /// Lists the stored data. Reads every folder: for the start of a service, not for requests.
    ///
    /// # Errors
    /// [`DataError::Io`] when a folder cannot be read.
    pub async fn inventory(&self) -> Result<Inventory> {
        let store = self.clone();
        let mut blobs = self.blob_objects().await?;
        self.blocking(move |root| {
            for path in read_dir(&root.join(BLOBS))? {
                let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
                // A stray file is no tenant's folder, and the sweep's to remove.
                let files = if path.is_dir() { names(&path)? } else { BTreeSet::new() };
                blobs.entry(name.to_owned()).or_default().extend(files);
            }
            Ok(Inventory {
                root: root.to_owned(),
                artifacts: names(&root.join(ARTIFACTS))?,
                captures: names(&root.join(CAPTURES))?,
                raw_files: names(&root.join(ROOTFS))?,
                manifests: store.images().manifests().into_iter().collect(),
                blobs,
            })
        })
        .await
    }
}

fn names(dir: &Path) -> Result<BTreeSet<String>> {
    let paths = read_dir(dir)?;
    Ok(paths.iter().filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
}

/// Lists the stored data of a data folder without a database, as `folder/` with a count; empty for a new one. A new database
/// beside such files would not know them.
///
/// # Errors
/// [`DataError::Io`] when a folder that is there cannot be read.
pub fn stored_without_database(data_dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let packs = format!("{CHUNKS}/packs");
    for folder in [ARTIFACTS, CAPTURES, &packs, ROOTFS, BLOBS, LOGS] {
        let path = data_dir.join(folder);
        let count = match fs::read_dir(&path) {
            Ok(entries) => entries.count(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        if count > 0 {
            found.push(format!("{folder}/ ({count})"));
        }
    }
    Ok(found)
}

impl ArtifactStore {
    /// Removes from `artifacts/`, `captures/`, `snapshots/` and `rootfs/` the names that are not in `known`. Call it at the start of the service, before
    /// any build runs: published files without a row look like leftovers of a crash. Call it only after a comparison of the
    /// [`inventory`](Self::inventory) with the database: files of another database look the same. A root image or
    /// snapshot without raw files is not missing while its chunks are stored.
    pub async fn sweep(&self, known: KnownFiles) -> Result<SweepReport> {
        let store = self.clone();
        self.blocking(move |root| {
            let snapshots = store.snapshot_names(&known);
            let mut report = SweepReport { removed: Vec::new(), missing: known };
            let mut removed = store.images().sweep(root, &mut report.missing.rootfs, &snapshots)?;
            for dir in [root.join(ARTIFACTS), root.join(CAPTURES)] {
                for path in read_dir(&dir)? {
                    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                    // Each name found is struck from the list; what stays on it is missing.
                    if matches!(report.missing.artifacts.get(name), Some(None)) {
                        report.missing.artifacts.remove(name);
                        continue;
                    }
                    // Also a folder of an older version, or a capture, whose snapshot is stored as chunks by now.
                    remove(&path)?;
                    removed.push(path);
                }
                sync_dir(&dir)?;
            }
            let images = store.images();
            let lost = |streams: &Streams| !is_stored(images, streams);
            report.missing.artifacts.retain(|_, streams| streams.as_ref().is_none_or(lost));
            let shown = |path: &PathBuf| path.strip_prefix(root).unwrap_or(path).display().to_string();
            report.removed = removed.iter().map(shown).collect();
            report.removed.sort();
            Ok(report)
        })
        .await
    }

    /// Removes files that a comparison of the [`inventory`](Self::inventory) with the database assigned to another database.
    ///
    /// # Errors
    /// [`DataError::Conflict`] for a name that such a comparison cannot give; [`DataError::Objects`] when an object stays.
    pub async fn remove_foreign(&self, foreign: &BTreeSet<String>) -> Result<()> {
        let tenants = foreign.iter().filter_map(|name| name.strip_prefix(BLOBS)?.strip_prefix('/')?.parse().ok());
        for tenant in tenants {
            self.remove_blob_objects(tenant).await?;
        }
        let foreign = foreign.clone();
        self.blocking(move |root| {
            for name in &foreign {
                let path: Option<PathBuf> = match name.split_once('/') {
                    Some((ARTIFACTS, folder)) if artifact_of(folder).is_some() => Some(root.join(name)),
                    Some((BLOBS, tenant)) if tenant.parse::<TenantId>().is_ok() => Some(root.join(name)),
                    _ => None,
                };
                let path = path.ok_or_else(|| DataError::conflict(format!("{name} is nothing that a survey finds")))?;
                // It may have been in the object store alone.
                if path.symlink_metadata().is_ok() {
                    remove(&path)?;
                }
            }
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use nullspace_types::{ArtifactId, BlobId};
    use tempfile::TempDir;

    use super::*;

    #[tokio::test]
    async fn what_lies_in_each_folder_is_listed() {
        let dir = TempDir::new().unwrap();
        let files = ArtifactStore::open(dir.path()).unwrap();
        let blob = Blob { tenant: TenantId::new(), id: BlobId::new(&"a".repeat(64), 1).unwrap() };
        let folder = format!("{}.{}", ArtifactId::new(), "b".repeat(32));
        fs::create_dir(files.root().join("artifacts").join(&folder)).unwrap();
        fs::write(files.root().join("rootfs/raw"), "image").unwrap();
        fs::write(files.root().join("blobs/stray"), "x").unwrap();
        fs::create_dir(files.root().join("blobs").join(blob.tenant.to_string())).unwrap();
        let there = files.inventory().await.unwrap();
        assert!(!there.has_blob(&blob));
        fs::write(files.blob_path(&blob), "x").unwrap();
        let there = files.inventory().await.unwrap();
        assert_eq!(there.artifacts, [folder].into());
        assert!(there.has_blob(&blob) && there.has_rootfs("raw", None));
        assert!(!there.has_rootfs("other", Some("no manifest")));
    }

    #[test]
    fn files_without_a_database_are_counted() {
        let dir = TempDir::new().unwrap();
        assert!(stored_without_database(&dir.path().join("new")).unwrap().is_empty());
        let files = ArtifactStore::open(dir.path()).unwrap();
        assert!(stored_without_database(dir.path()).unwrap().is_empty(), "empty folders are nothing");
        fs::create_dir(files.root().join("artifacts/one")).unwrap();
        fs::write(files.root().join("chunks/packs/p"), "x").unwrap();
        fs::create_dir_all(files.root().join("logs/0a")).unwrap();
        let found = stored_without_database(dir.path()).unwrap();
        assert_eq!(found, ["artifacts/ (1)", "chunks/packs/ (1)", "logs/ (1)"]);
    }
}
