//! Layers: root images that steps leave behind, kept as what the machine wrote over their parent.

use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use nullspace_store::{Changes, Extent, Lease, Rootfs, StoreError};
use nullspace_vmm::DiskChanges;
use serde_json::json;

use crate::Inner;

/// A layer to store.
pub(crate) struct Layer<'a> {
    /// The root image that the machine stood on.
    pub(crate) parent: &'a Rootfs,
    /// Key of the new image itself.
    pub(crate) key: &'a str,
    /// Key of the step that it is found by.
    pub(crate) layer_key: &'a str,
    /// What the machine wrote.
    pub(crate) changes: DiskChanges,
}

/// Stores a layer, at the cost of what has changed.
pub(crate) async fn store(inner: &Inner, lease: &Lease, layer: Layer<'_>) -> Result<Rootfs, StoreError> {
    let Layer { parent, key, layer_key, changes } = layer;
    let written = Written { bytes: changes.disk_bytes().max(parent.bytes), changes };
    let published = inner.files.publish_layer(parent, key, Arc::new(written)).await?;
    inner.metadata.put_layer(lease, published.row(key, json!({})), layer_key, Timestamp::now()).await
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
