//! Disk images stored as content-addressed chunks. Parts that several images have in common are stored once.
//!
//! ```text
//!   image file ──extents──> pieces ──BLAKE3──> known chunk? ── yes: named only
//!   (sparse)                                        └─ no: zstd ──> packs/<nonce>.pack     one file a put
//!                                                                        │ durable
//!                            at, length, chunk, ... ────────────> manifests/<digest>       the image
//!
//!   changes of an image ──> pieces that differ from the parent's ──> a manifest over its parent's, and so on
//! ```
//!
//! * A **chunk** is a run of up to [`Settings::chunk_bytes`] of an image, cut at multiples of that size and known by the
//!   BLAKE3 of its plain bytes. Zeros are not stored at all.
//! * A **pack** holds the chunks that one put added, compressed one by one, with an index at its end.
//! * A **manifest** lists an image's pieces; it is named by its own digest. One made from changes names its parent and
//!   lists only what differs: a template that adds a megabyte to an image of gigabytes costs the megabyte.
//!
//! **Durable and complete.** Packs and manifests are written in `work/`, flushed and renamed, and their folder is flushed. A
//! manifest is written only after every chunk that it names. A crash leaves files in `work/` (emptied at the next start) or
//! chunks without a manifest (removed by the next collection), never an incomplete image.
//!
//! **Collection.** The owner of the store names the wanted images at each [collection](Collection). All others are removed,
//! except those that are [pinned](Pin) in this process because they are being written or read. A put that finds a chunk keeps
//! it until its manifest is stored, so a concurrent collection cannot remove it.
//!
//! **Reads verify.** Each chunk that is read is hashed; damage is an [`Error::Damaged`] that names the image. A damaged
//! chunk is forgotten, so that the next put of the same bytes stores it anew.
//!
//! One process at a time opens a store for writing: its owner has a lock. All calls block; memory is bounded by the index
//! (about 100 bytes a chunk), one manifest, and a few megabytes for each call.
//! # Example
//!
//! ```
//! use std::os::unix::fs::FileExt;
//!
//! use nullspace_chunks::{Settings, Stop, Store};
//!
//! let folder = tempfile::tempdir()?;
//! let store = Store::open(folder.path(), Settings::default())?;
//!
//! let image = tempfile::tempfile()?;
//! image.set_len(1 << 20)?;
//! image.write_all_at(b"boot sector", 512 << 10)?;
//! let first = store.put_image(&image, &Stop::default())?;
//! let again = store.put_image(&image, &Stop::default())?;
//! assert_eq!(first.id(), again.id());
//! assert_eq!(store.stats().manifests, 1);
//!
//! let copy = tempfile::tempfile()?;
//! store.materialise(first.id(), &copy, None, &Stop::default())?;
//! let mut read = [0; 11];
//! copy.read_exact_at(&mut read, 512 << 10)?;
//! assert_eq!(&read, b"boot sector");
//! assert_eq!(copy.metadata()?.len(), 1 << 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod ahead;
mod codec;
mod collect;
mod error;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod id;
mod manifest;
mod pack;
mod put;
mod read;
mod remote;
mod shares;
mod source;
mod state;
mod store;
mod streams;
mod verify;

pub use collect::{Collected, Collection};
pub use error::{Error, Result};
pub use id::{ChunkId, InvalidId, ManifestId};
pub use put::{Put, Stored};
pub use read::Materialised;
pub use remote::{Remote, RemoteFile, RemoteKind, RemoteSettings, RemoteStats};
pub use shares::Share;
pub use source::{Changes, Extent};
pub use store::{Pin, Settings, Stats, Stop, Store};
pub use verify::{Fault, Verified};

#[cfg(test)]
mod tests;
