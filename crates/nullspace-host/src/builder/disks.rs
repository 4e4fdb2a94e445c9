//! The disks of builder machines, kept from one machine of a tenant to its next.
//!
//! ```text
//!   builders/TENANT/KEY.ext4   the engine's root with its images and cache; KEY names the tar and the size
//!   builders/TENANT/in-use     a machine has the disk, or had it and did not end in order
//! ```
//! A disk whose machine was killed may lack what its engine took for written. So it is used again only when its machine has
//! shut down. It is a cache: nothing is lost with it but time.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use nullspace_api::TemplateFailurePhase as Phase;
use nullspace_host_interface::BuildFailure;
use nullspace_types::TenantId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::BuilderConfig;
use crate::build::import::{self, Target};

/// Folder of the data folder.
const FOLDER: &str = "builders";
/// Name of the mark on a disk that may not be used again.
const IN_USE: &str = "in-use";
/// Disks that are kept for later at the most. The longest unused one goes first.
const KEPT: usize = 16;

/// Disks of builder machines in a data folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BuilderDisks {
    /// How many.
    pub number: u64,
    /// Size on the host's disk, bytes, without holes.
    pub bytes: u64,
}

/// Measures the disks of builder machines in a data folder. A running service may change them meanwhile.
#[must_use]
pub fn builder_disks(data: &Path) -> BuilderDisks {
    measured(&data.join(FOLDER))
}

fn measured(folder: &Path) -> BuilderDisks {
    let mut found = BuilderDisks::default();
    for (_, folder) in folders(folder) {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        let disks = files.filter(|file| Path::new(&file.file_name()).extension().is_some_and(|end| end == "ext4"));
        for metadata in disks.filter_map(|file| file.metadata().ok()) {
            found.number += 1;
            found.bytes = found.bytes.saturating_add(metadata.blocks().saturating_mul(512));
        }
    }
    found
}

/// The disks of this host.
pub(super) struct Disks {
    folder: PathBuf,
    tar: PathBuf,
    disk_bytes: u64,
    /// Folders that a machine has now.
    used: Arc<Mutex<Vec<PathBuf>>>,
}

/// A disk, in use by one machine.
#[derive(Debug)]
pub(super) struct Kept {
    folder: PathBuf,
    path: PathBuf,
    fresh: bool,
    used: Arc<Mutex<Vec<PathBuf>>>,
}

impl Kept {
    /// The raw image.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that it is alone in.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// True when it was made for this machine.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Keeps it for the tenant's next machine: this one has written everything out.
    pub(super) fn keep(&self) {
        if let Err(error) = fs::remove_file(self.folder.join(IN_USE)) {
            tracing::warn!(%error, disk = %self.path.display(), "the disk of a builder machine cannot be kept");
        }
    }

    /// Removes it.
    pub(super) fn remove(&self) {
        remove(&self.folder);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|folder| *folder != self.folder);
    }
}

fn remove(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, folder = %folder.display(), "the disk of a builder machine cannot be removed");
        }
        _ => {}
    }
}

impl Disks {
    pub(super) fn new(data: &Path, config: &BuilderConfig) -> Disks {
        let (folder, tar) = (data.join(FOLDER), config.tar.clone());
        Disks { folder, tar, disk_bytes: config.disk_mib.saturating_mul(1 << 20), used: Arc::default() }
    }

    /// Names the tar and the size: another of either makes other disks.
    fn key(&self) -> std::io::Result<String> {
        let metadata = fs::metadata(&self.tar)?;
        let made = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let text = format!("{} {} {} {}", metadata.len(), made.as_nanos(), self.disk_bytes, import::IMPORTER);
        Ok(blake3::hash(text.as_bytes()).to_hex().chars().take(32).collect())
    }

    /// The tenant's disk: the one that was kept, or a new one. The caller sees to it that a tenant has one machine.
    pub(super) async fn open(
        &self,
        tenant: TenantId,
        cancel: &CancellationToken,
        busy: TaskTrackerToken,
    ) -> Result<Kept, BuildFailure> {
        let own = |error: std::io::Error| BuildFailure::own(Phase::Prepare, &error);
        let key = self.key().map_err(own)?;
        let folder = self.folder.join(tenant.to_string());
        self.used.lock().unwrap_or_else(PoisonError::into_inner).push(folder.clone());
        let path = folder.join(format!("{key}.ext4"));
        let fresh = !path.exists() || folder.join(IN_USE).exists();
        let kept = Kept { folder, path, fresh, used: Arc::clone(&self.used) };
        if !fresh {
            File::create(kept.folder.join(IN_USE)).map_err(own)?;
            return Ok(kept);
        }
        self.trim(KEPT.saturating_sub(1)).await;
        let made = self.make(&kept, &key, cancel, busy).await;
        made.inspect_err(|_| kept.remove())?;
        Ok(kept)
    }

    async fn make(
        &self,
        kept: &Kept,
        key: &str,
        cancel: &CancellationToken,
        busy: TaskTrackerToken,
    ) -> Result<(), BuildFailure> {
        remove(&kept.folder);
        let made = || {
            DirBuilder::new().mode(0o700).recursive(true).create(&kept.folder)?;
            File::create(kept.folder.join(IN_USE))?;
            File::options().create_new(true).read(true).write(true).open(&kept.path)
        };
        let file = made().map_err(|error| BuildFailure::own(Phase::Prepare, &error))?;
        let (content, cancel) = (format!("builder {key}"), cancel.clone());
        let target = Target { file, content, disk_bytes: self.disk_bytes, cancel, busy };
        import::plain_tar(self.tar.clone(), target).await.map(drop)
    }

    pub(super) async fn usage(&self) -> BuilderDisks {
        let folder = self.folder.clone();
        tokio::task::spawn_blocking(move || measured(&folder)).await.unwrap_or_default()
    }

    /// Removes disks that no machine has, the longest unused ones first, until so many are left.
    pub(super) async fn trim(&self, most: usize) {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (folder, trimmed) = (self.folder.clone(), move |mut idle: Vec<(SystemTime, PathBuf)>| {
            idle.retain(|(_, folder)| !used.contains(folder));
            idle.sort();
            let many = idle.len().saturating_sub(most);
            idle.iter().take(many).for_each(|(_, folder)| remove(folder));
        });
        let _ = tokio::task::spawn_blocking(move || trimmed(folders(&folder))).await;
    }

    /// Removes what machines of an earlier run left without an end.
    pub(super) async fn sweep(&self) {
        let (folder, used) = (self.folder.clone(), Arc::clone(&self.used));
        let swept = move || {
            for (_, folder) in folders(&folder) {
                let in_use = used.lock().unwrap_or_else(PoisonError::into_inner).contains(&folder);
                if !in_use && folder.join(IN_USE).exists() {
                    remove(&folder);
                }
            }
        };
        let _ = tokio::task::spawn_blocking(swept).await;
    }
}

/// Folders of tenants, each with the time of its last use.
fn folders(folder: &Path) -> Vec<(SystemTime, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let used = entry.metadata().and_then(|metadata| metadata.modified());
            (used.unwrap_or(SystemTime::UNIX_EPOCH), entry.path())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_util::task::TaskTracker;

    use super::*;

    fn disks(data: &Path) -> Disks {
        let tar = data.join("builder.tar");
        // A tar without entries.
        fs::write(&tar, [0; 1024]).unwrap();
        let config = BuilderConfig {
            tar,
            memory_mib: 512,
            vcpus: 1,
            disk_mib: 256,
            idle: Duration::ZERO,
            most: 1,
            engine_options: Vec::new(),
        };
        Disks::new(data, &config)
    }

    async fn open(disks: &Disks, tenant: TenantId) -> Kept {
        disks.open(tenant, &CancellationToken::new(), TaskTracker::new().token()).await.unwrap()
    }

    #[tokio::test]
    async fn a_disk_is_used_again_after_an_orderly_end_alone() {
        let data = tempfile::tempdir().unwrap();
        let (disks, tenant) = (disks(data.path()), TenantId::new());
        let first = open(&disks, tenant).await;
        assert!(first.is_fresh());
        assert_eq!(fs::metadata(first.path()).unwrap().len(), 256 << 20);
        fs::write(first.folder().join("canary"), "x").unwrap();
        first.keep();
        drop(first);
        let second = open(&disks, tenant).await;
        assert!(!second.is_fresh() && second.folder().join("canary").exists());
        // Killed.
        drop(second);
        let third = open(&disks, tenant).await;
        assert!(third.is_fresh() && !third.folder().join("canary").exists());
        let other = open(&disks, TenantId::new()).await;
        assert!(other.is_fresh() && other.path() != third.path());
    }

    #[tokio::test]
    async fn another_tar_makes_another_disk() {
        let data = tempfile::tempdir().unwrap();
        let (disks, tenant) = (disks(data.path()), TenantId::new());
        open(&disks, tenant).await.keep();
        fs::write(data.path().join("builder.tar"), [0; 2048]).unwrap();
        let kept = open(&disks, tenant).await;
        assert!(kept.is_fresh());
        assert_eq!(fs::read_dir(kept.folder()).unwrap().count(), 2, "the disk and its mark");
    }

    #[tokio::test]
    async fn unused_disks_make_room_and_used_ones_stay() {
        let data = tempfile::tempdir().unwrap();
        let disks = disks(data.path());
        let tenants: Vec<TenantId> = (0..4).map(|_| TenantId::new()).collect();
        for tenant in &tenants {
            open(&disks, *tenant).await.keep();
        }
        let usage = disks.usage().await;
        assert_eq!((usage.number, usage), (4, builder_disks(data.path())));
        assert!(usage.bytes > 0 && usage.bytes < 4 * (64 << 20), "{usage:?}: what was written, not the size");
        let used = open(&disks, tenants[0]).await;
        disks.trim(1).await;
        assert_eq!(folders(&disks.folder).len(), 2);
        disks.trim(0).await;
        assert_eq!(folders(&disks.folder).into_iter().map(|(_, path)| path).collect::<Vec<_>>(), [used.folder()]);
        // What a killed service leaves.
        let folder = used.folder().to_owned();
        disks.sweep().await;
        assert!(folder.exists(), "a machine has it");
        drop(used);
        disks.sweep().await;
        assert!(!folder.exists());
    }
}
