//! Information about this host, and its start and end.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nullspace_data::ObjectUsage;
use nullspace_host_interface::{
    Capacity, HostError, HostEvents, HostInfo, HostUsage, ImageStoreUsage, LayerCacheUsage, Lifecycle,
    ObjectStoreState, ObjectStoreUsage, RawImageUsage,
};
use nullspace_service::chain;
use nullspace_vmm::VmmKind;

use crate::failures::to_control;
use crate::{LocalHost, builder_disks, disk};

/// Time limit of a question whether the object store can be used.
const STORE: Duration = Duration::from_secs(10);
/// Time limit of background work at the end.
const ENDING: Duration = Duration::from_secs(120);

#[async_trait]
impl Lifecycle for LocalHost {
    async fn start(&self, events: Arc<dyn HostEvents>) {
        let inner = &self.inner;
        inner.actors.report_to(events);
        inner.builder.buildkits.sweep().await;
        if let Some(builders) = inner.builder.buildkits.builders.clone() {
            inner.tasks.spawn(async move { builders.tend().await });
        }
        inner.tasks.spawn(disk::watch(Arc::clone(&inner.disk), inner.shutdown.clone()));
    }

    async fn stop(&self) {
        let inner = &self.inner;
        inner.shutdown.cancel();
        if tokio::time::timeout(ENDING, inner.spares.close()).await.is_err() {
            tracing::error!("spares have not ended in time");
        }
        if let Some(builders) = &inner.builder.buildkits.builders
            && tokio::time::timeout(ENDING, builders.stop()).await.is_err()
        {
            tracing::error!("builder machines have not ended in time");
        }
        for tasks in [&inner.tasks, &inner.builder.tasks, &inner.actors.tasks] {
            tasks.close();
            if tokio::time::timeout(ENDING, tasks.wait()).await.is_err() {
                tracing::error!("background work of the host has not ended in time");
            }
        }
    }

    fn info(&self) -> HostInfo {
        let (vmm, what) = (&self.inner.machines.vmm, self.inner.machines.vmm.compatibility());
        HostInfo {
            vmm: match what.vmm {
                VmmKind::Firecracker => "firecracker",
                VmmKind::Qemu => "qemu",
            },
            version: what.vmm_version.clone(),
            accelerator: what.accelerator.clone(),
            walls: vmm.walls(),
        }
    }

    fn admitted(&self) -> (Capacity, Capacity) {
        self.inner.machines.admission.usage()
    }

    async fn usage(&self) -> Result<HostUsage, HostError> {
        let (stored, raw) = (self.inner.files.image_stats(), self.inner.files.cache_usage());
        let layers = self.inner.files.image_layer_usage();
        let (disk_free, disk_reserve) = self.inner.disk.free_and_reserve().map_err(to_control)?;
        let (builder_machines, disks) = match &self.inner.builder.buildkits.builders {
            Some(builders) => builders.usage().await,
            None => (0, builder_disks(self.inner.files.root())),
        };
        Ok(HostUsage {
            images: ImageStoreUsage {
                chunks: stored.chunks,
                pack_bytes: stored.pack_bytes,
                plain_bytes: stored.plain_bytes,
            },
            raw: RawImageUsage { files: raw.files, bytes: raw.bytes, written_back: raw.written_back },
            layers: LayerCacheUsage { files: layers.files, bytes: layers.bytes, hits: layers.found },
            objects: self.inner.files.object_usage().map(objects).unwrap_or_default(),
            builder_machines,
            builder_disks: disks.number,
            builder_disk_bytes: disks.bytes,
            disk_free,
            disk_reserve,
        })
    }

    async fn object_store(&self) -> Option<ObjectStoreState> {
        let files = &self.inner.files;
        let location = files.objects()?.location().to_owned();
        let failure = files.check_objects(STORE).await?.err().map(|error| chain(&error).to_string());
        Some(ObjectStoreState { location, failure })
    }
}

fn objects(usage: ObjectUsage) -> ObjectStoreUsage {
    let ObjectUsage { counts, packs, cache_bytes } = usage;
    ObjectStoreUsage {
        uploads: counts.uploads,
        uploaded_bytes: counts.uploaded_bytes,
        downloads: counts.downloads,
        downloaded_bytes: counts.downloaded_bytes,
        failures: counts.failures,
        pack_bytes: packs.pack_bytes,
        missing_bytes: packs.missing_bytes,
        cache_bytes,
    }
}
