//! The data folder: snapshots, root images and uploaded files, each complete or absent.
//!
//! ```text
//!   ArtifactStore ──── work/<random>/  ──rename──┬──>   chunks/, snapshots/         snapshots of builds and sandboxes
//!                      written, fsynced          ├──>   chunks/, rootfs/            shared root images
//!                                                └──>   blobs/tn_…/<sha256>         file of a build context
//!                      written ──────────rename──────>   captures/<name>/            a paused sandbox, until it is in chunks/
//! ```
//!
//! An artifact becomes visible only when it is complete. Its files are written in `work/`, flushed and renamed, and the
//! parent folder is flushed. Then one transaction of the database names it, ends the build and moves the tags. After a crash
//! before the transaction, no row names the files: [`ArtifactStore::sweep`] removes them at the next start. A crash after it
//! needs no repair.
//!
//! This crate does not use the database. Its callers pass the names from the database
//! ([`KnownFiles`](nullspace_types::KnownFiles)).
//!
//! ```text
//!   artifacts   captures   rootfs   blobs   logs   layers   inventory   space   host     methods of ArtifactStore, each with its data
//!           └─────────┴───────┴───────┼────────┴────────┴─────────┴─────────┴──────┘
//!                                store                                lock, scratch, blocking jobs
//!                             images   promises                       chunks and raw files; promised space
//!                             folders ── names                        operations on files; their names
//! ```

mod artifacts;
mod blobs;
mod captures;
mod error;
mod folders;
mod host;
mod images;
mod inventory;
mod key_files;
mod layers;
mod logs;
mod moving;
mod names;
mod object_id;
mod promises;
mod remote;
mod rootfs;
mod space;
mod store;
mod store_id;

pub use artifacts::{PublishedArtifact, SnapshotPin};
pub use blobs::UploadedFiles;
pub use captures::CaptureState;
pub use error::{DataError, Result};
pub use images::CacheUsage;
pub use inventory::{Inventory, SweepReport, stored_without_database};
pub use key_files::KeyFile;
pub use layers::{DEFAULT_LAYERS, ImageLayer, ImageLayerUsage, NewImageLayer};
pub use logs::{InvalidSegmentName, LogSegments, SegmentName};
pub use moving::{FetchedAll, ObjectUsage, UploadedAll, check_objects};
pub use names::artifact_of;
pub use nullspace_chunks::{
    Changes, Collected, Extent, Fault, ManifestId, RemoteStats, Share, Stats, Stop as ChunkStop, Store as ChunkStore,
    Verified,
};
pub use object_id::{attached_store, object_store_id};
pub use promises::Room;
pub use remote::ObjectSettings;
pub use rootfs::{PublishedRootfs, RootfsPin, look_at_chunks};
pub use space::{DiskUsage, Space};
pub use store::{ArtifactStore, DEFAULT_CACHE, OpenSettings, Scratch};
pub use store_id::{StoreMark, store_mark};
