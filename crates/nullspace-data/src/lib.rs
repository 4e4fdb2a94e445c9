//! The data folder: snapshots, root images and uploaded files, each whole or not there.
//!
//! ```text
//!   ArtifactStore ──── work/<random>/  ──rename──┬──>   artifacts/tmpl_….<nonce>/   snapshot of one build
//!                      written, fsynced          ├──>   chunks/, rootfs/            shared root images
//!                                                └──>   blobs/tn_…/<sha256>         file of a build context
//! ```
//!
//! The order that makes an artifact visible only whole: its files are written in `work/`, flushed, renamed, the parent
//! folder flushed; only then does one transaction of the database name it, end the build and move the tags. A crash before
//! the transaction leaves files that no row names: [`ArtifactStore::sweep`] removes them at the next start. A crash after
//! it leaves nothing to do.
//!
//! This crate knows no database. Its callers bring the names that a database has ([`KnownFiles`]).

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
