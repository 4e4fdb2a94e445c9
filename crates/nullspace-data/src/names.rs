//! Names in the data folder.
//!
//! A name carries a nonce because the same thing may be published more than once. Two builds make the same root image at
//! the same time while a third is collected; an attempt that was interrupted after it published is followed by another
//! that publishes again, and may still be writing itself. With one name for all, removing or replacing one's files could
//! hit another's. Which files count is decided by the database, in the transaction that names them.

use nullspace_types::ArtifactId;

/// The folder of scratch.
pub(crate) const WORK: &str = "work";
/// The folder of snapshots of older versions, as files.
pub(crate) const ARTIFACTS: &str = "artifacts";
/// The folder of captures that are not stored as chunks yet.
pub(crate) const CAPTURES: &str = "captures";
/// The folder of the chunk store.
pub(crate) const CHUNKS: &str = "chunks";
/// The folder of root images as raw files.
pub(crate) const ROOTFS: &str = "rootfs";
/// The folder of snapshots as raw files: a cache.
pub(crate) const SNAPSHOTS: &str = "snapshots";
/// The folder of cached image layers.
pub(crate) const LAYERS: &str = "layers";
/// The folder of uploaded files.
pub(crate) const BLOBS: &str = "blobs";
/// The folder of uploaded files from an object store: a cache.
pub(crate) const UPLOADS: &str = "uploads";
/// The folder of segments of logs.
pub(crate) const LOGS: &str = "logs";

/// Whether this is a key that names a root image: lower-case hex, 32 to 128 digits.
pub(crate) fn is_rootfs_key(key: &str) -> bool {
    (32..=128).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_nonce(text: &str) -> bool {
    text.len() == 32 && is_rootfs_key(text)
}

/// The artifact with this folder name; `None` if no artifact's folder can have it.
pub fn artifact_of(folder: &str) -> Option<ArtifactId> {
    let (id, nonce) = folder.split_once('.')?;
    id.parse().ok().filter(|_| is_nonce(nonce))
}

/// Whether a file of a snapshot can have this name: letters, digits, `.`, `-` and `_`, and no `.` in front.
pub(crate) fn is_stream(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (1..=64).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
}

/// Whether a root image's raw file can have this name.
pub(crate) fn is_rootfs_file(file: &str) -> bool {
    let mut parts = file.split('.');
    let (Some(key), Some(nonce), Some("ext4"), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    is_rootfs_key(key) && is_nonce(nonce)
}
