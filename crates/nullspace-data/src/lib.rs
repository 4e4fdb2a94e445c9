//! The data folder: snapshots, root images and uploaded files, each complete or absent.
//!
//! ```text
//!   ArtifactStore ──── work/<random>/  ──rename──┬──>   artifacts/tmpl_….<nonce>/   snapshot of one build
//!                      written, fsynced          ├──>   chunks/, rootfs/            shared root images
//!                                                └──>   blobs/tn_…/<sha256>         file of a build context
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
//!   artifacts · share   rootfs   blobs   inventory   space   host      methods of ArtifactStore, each with its data
//!           └──────────────┴───────┼─────────┴─────────┴──────┘
//!                                store                                lock, scratch, blocking jobs
//!                             images   promises                       chunks and raw files; promised space
//!                             folders ── names                        operations on files; their names
//! ```

mod artifacts;
mod blobs;
mod error;
mod folders;
mod host;
mod images;
mod inventory;
mod names;
mod promises;
mod rootfs;
mod share;
mod space;
mod store;

pub use artifacts::PublishedArtifact;
pub use error::{DataError, Result};
pub use images::CacheUsage;
pub use inventory::{Inventory, SweepReport, stored_without_database};
pub use names::artifact_of;
pub use nullspace_chunks::{Changes, Collected, Extent, Fault, ManifestId, Stats, Verified};
pub use promises::Room;
pub use rootfs::{PublishedRootfs, RootfsPin, look_at_chunks};
pub use space::{DiskUsage, Space};
pub use store::{ArtifactStore, DEFAULT_CACHE, Scratch};
