//! Layers: the root images after steps, stored as the blocks that a machine wrote over their parent.

use std::io;
use std::sync::Arc;

use nullspace_data::{ArtifactStore, Changes, Extent};
use nullspace_host_interface::BuildRecord;
use nullspace_types::Rootfs;
use nullspace_vmm::DiskChanges;
use serde_json::json;

use super::Error;

/// A layer to store.
pub(crate) struct Layer<'a> {
    /// The root image under the machine's disk.
    pub(crate) parent: &'a Rootfs,
    /// Key of the new image itself.
    pub(crate) key: &'a str,
    /// Key of the step, by which the layer is found.
    pub(crate) layer_key: &'a str,
    /// The machine's writes.
    pub(crate) changes: DiskChanges,
}

/// Stores a layer. The cost is proportional to the changes.
pub(crate) async fn store(files: &ArtifactStore, record: &dyn BuildRecord, layer: Layer<'_>) -> Result<Rootfs, Error> {
    let Layer { parent, key, layer_key, changes } = layer;
    let written = Written { bytes: changes.disk_bytes().max(parent.bytes), changes };
    let published = files.publish_layer(parent, key, Arc::new(written)).await?;
    Ok(record.put_layer(published.row(key, json!({})), layer_key).await?)
}

/// A machine's writes in the form that the store reads.
struct Written {
    changes: DiskChanges,
    bytes: u64,
}

impl Changes for Written {
    fn image_bytes(&self) -> u64 {
        self.bytes
    }

    fn extents(&self) -> Vec<Extent> {
        let extent = |extent: &nullspace_vmm::Extent| Extent { at: extent.offset, len: extent.len, zero: extent.zero };
        self.changes.extents().iter().map(extent).collect()
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.changes.read_at(at, buffer)
    }
}
