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
//! This crate does not use the database. Its callers pass the names from the database ([`KnownFiles`]).

mod artifacts;
mod blobs;
mod error;
mod host;
mod images;
mod inventory;
mod share;
mod space;

use nullspace_types::{ArtifactId, KnownFiles, Rootfs};

pub use artifacts::{ArtifactStore, DEFAULT_CACHE, DiskUsage, PublishedArtifact, Scratch, SweepReport, artifact_of};
pub use error::{DataError, Result};
pub use images::{CacheUsage, PublishedRootfs, RootfsPin, look_at_chunks};
pub use inventory::{Inventory, stored_without_database};
pub use nullspace_chunks::{Changes, Collected, Extent, Fault, ManifestId, Stats, Verified};
pub use space::{Room, Space};
