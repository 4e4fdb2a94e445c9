//! Layers merged to one tree, the top layer first.
//!
//! Taking the layers from the top down means that everything that could hide a file is known before the file's bytes
//! arrive: content that a later layer hides is skipped in the stream and never reaches the [`ContentSink`]. Nothing is
//! ever looked up or written on the host by a name from an image; the tree lives in memory.
//!
//! ```text
//!  layer n (top)   tar ─▶ layer tree ─┐ fold below
//!  layer n-1       tar ─▶ layer tree ─┤            merged tree ─▶ MergedTree (ordered walk)
//!  …                                  ┘                ▲
//!                       file bytes that are visible ───┴──▶ ContentSink ─▶ Content handles in the tree
//! ```
//!
//! # What a layer means
//! The OCI image-spec (`layer.md`) leaves corners open; where it does, this follows what Docker's overlay2 driver and
//! containerd do, because that is where images have been tried:
//! - *Each layer is first read by itself*, as if unpacked into an empty directory, and then laid over those below it.
//!   Within it, entries count in archive order and a later entry for a name replaces an earlier one (two directories
//!   merge; the later one's metadata counts).
//! - *Symlinks in the middle of a path* are followed inside the layer, and only inside it: `lib -> usr/lib` and then
//!   `lib/x` in one layer is `usr/lib/x`; `lib/x` over a lower layer's symlink `lib` makes `lib` a directory. Following
//!   never leaves the tree: `..` above the root is the root.
//! - *Whiteouts* (`.wh.x`, `.wh..wh..opq`) act on lower layers only, wherever they stand in the archive, and never
//!   create anything. AUFS' own `.wh..wh.*` files are dropped, hard links into `.wh..wh.plnk` are honoured.
//! - *Directories that no entry describes* take the metadata of the next lower layer that has the directory, else mode
//!   0755, root's, time 0.
//! - *Hard links* to a name of the same layer, before or after the link, share its inode; else the name is looked up in
//!   the layers below the link's own, as they were before anything above hid it.
//! - *The link's own metadata is ignored*, as umoci does: an inode has one set of metadata.
//! - Names may not contain `..`. Devices, fifos and sockets are refused wherever they are, hidden or not.

mod apply;
mod error;
mod fold;
mod links;
mod output;
mod path;
mod sink;
mod tree;

pub use error::{LayerError, MergeLimits};
pub use output::{Entry, EntryKind, MergedTree};
pub use sink::{ContentSink, SinkError};
pub use tree::Meta;

pub use apply::{LayerEnd, Merge};
