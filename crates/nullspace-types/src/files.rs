//! Files of the data folder, as the database names them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An immutable root image that artifacts share.
#[derive(Debug, Clone, PartialEq)]
pub struct Rootfs {
    /// Cache key: lower-case hex, 32 to 128 digits.
    pub key: String,
    /// Name of the file under `rootfs/` of the data folder, allotted when the image is published.
    pub file: String,
    /// The image's length, bytes.
    pub bytes: u64,
    /// Its manifest in the chunk store. `None`: an older version stored it, as a file only.
    pub manifest: Option<String>,
    /// Data of its maker (the image's configuration); opaque to the store.
    pub info: Value,
}

/// The files of a snapshot (memory, device state, disk changes): their manifests in the chunk store, by file name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Streams(pub BTreeMap<String, String>);

/// The files that the database names. The data folder must have them; all other files there are leftovers of a crash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownFiles {
    /// Artifacts by folder name, with the streams of their snapshots. `None`: it is a folder of files, under `artifacts/` when an older
    /// version stored it, under `captures/` for a paused sandbox that is not stored as chunks yet.
    pub artifacts: BTreeMap<String, Option<Streams>>,
    /// Files under `rootfs/`, with their manifests in the chunk store.
    pub rootfs: BTreeMap<String, Option<String>>,
}
