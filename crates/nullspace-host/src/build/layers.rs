//! Layers: root images that steps leave behind, kept as what the machine wrote over their parent.

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
    /// The root image that the machine's disk lay on.
    pub(crate) parent: &'a Rootfs,
    /// Key of the new image itself.
    pub(crate) key: &'a str,
    /// Key of the step that it is found by.
    pub(crate) layer_key: &'a str,
    /// What the machine wrote.
    pub(crate) changes: DiskChanges,
}

/// Stores a layer, at the cost of what has changed.
pub(crate) async fn store(files: &ArtifactStore, record: &dyn BuildRecord, layer: Layer<'_>) -> Result<Rootfs, Error> {
    let Layer { parent, key, layer_key, changes } = layer;
    let written = Written { bytes: changes.disk_bytes().max(parent.bytes), changes };
    let published = files.publish_layer(parent, key, Arc::new(written)).await?;
    Ok(record.put_layer(published.row(key, json!({})), layer_key).await?)
}

/// What a machine wrote, as the store reads it.
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
