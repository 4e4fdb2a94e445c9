//! A whole image, from the registry into a sink, in one overlapped pass.
//!
//! ```text
//!  download threads (3)          decode threads (this layer, and the next one)      this thread
//!  blob n   ─▶ queue ─────────▶  gunzip / unzstd ─▶ 2 MiB ─▶  sha256 (diff id) ─▶ tar ─▶ merge ─▶ sink
//!  blob n-1 ─▶ queue (+ file) ─▶ …
//!  blob n-2 ─▶ queue (+ file)
//!  (sha256 of the blob as it comes)
//! ```
//! A layer that a [`LayerCache`] has is checked whole and read from its file instead of being downloaded.
//!
//! Layers are merged from the top down (see [`crate::merge`]). Memory is bounded: a few MiB for each download and each
//! decoder (a zstd layer may ask for a window of up to 128 MiB), plus the tree itself, some 200 bytes a name. Nothing is
//! returned before every digest and diff id has been found right.

mod cache;
mod download;
mod error;
mod local;
mod options;
mod pipeline;
mod queue;

pub use cache::{CachedLayer, LayerCache, NewLayer};
pub use download::import;
pub use error::ImportError;
pub use local::import_local;
pub use options::{ImportOptions, Imported, Progress};
pub use pipeline::import_tar;
