//! OCI images: from a reference to one merged tree, with nothing written to the host by a name from the image.
//!
//! ```text
//!  "ubuntu:22.04" ─▶ reference ─▶ registry ── resolve(platform) ─▶ ResolvedImage { digests, config, layers }
//!                                    │                                     │
//!                                    └── blobs ─▶ stream ─▶ tar ─▶ merge ◀─┘   (import runs them overlapped)
//!                                                                    │
//!                                        ContentSink ◀── file bytes ─┴─▶ MergedTree: names, metadata, content handles
//! ```
//!
//! - [`mod@reference`], [`digest`], [`platform`], [`manifest`], [`config`]: what images are called and what they say of
//!   themselves; parsing only.
//! - [`layout`]: images in a folder or tar on this machine.
//! - [`registry`]: the distribution protocol, with mirrors, credentials, retries and checked digests.
//! - [`tar`], [`stream`], [`merge`]: a layer's bytes to entries, layers to one tree. Synchronous, of use without a registry.
//! - [`import`]: all of it at once.
//!
//! What it does not do: store a cache (an import uses one through [`import::LayerCache`]), write a filesystem (the caller's
//! [`merge::ContentSink`] and the tree's walk feed one), push, build, or know what a template is.
//! # Example
//!
//! Two layers, the upper one with a whiteout. They are read from the top down, so the hidden file never reaches the sink:
//!
//! ```
//! use nullspace_oci::merge::{ContentSink, LayerEnd, Merge, MergeLimits, SinkError};
//!
//! #[derive(Default)]
//! struct Memory {
//!     current: Vec<u8>,
//!     files: usize,
//! }
//!
//! impl ContentSink for Memory {
//!     type Content = Vec<u8>;
//!
//!     fn begin(&mut self, _size: u64) -> Result<(), SinkError> {
//!         self.files += 1;
//!         Ok(())
//!     }
//!
//!     fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
//!         self.current.extend_from_slice(bytes);
//!         Ok(())
//!     }
//!
//!     fn finish(&mut self) -> Result<Vec<u8>, SinkError> {
//!         Ok(std::mem::take(&mut self.current))
//!     }
//! }
//! # /// A tar archive of these files.
//! # fn tar(files: &[(&str, &str)]) -> Vec<u8> {
//! #     let mut archive = Vec::new();
//! #     for (name, content) in files {
//! #         let mut header = [0; 512];
//! #         header[..name.len()].copy_from_slice(name.as_bytes());
//! #         header[100..107].copy_from_slice(b"0000644");
//! #         header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
//! #         header[148..156].fill(b' ');
//! #         header[156] = b'0';
//! #         header[257..265].copy_from_slice(b"ustar\x0000");
//! #         let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
//! #         header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
//! #         archive.extend_from_slice(&header);
//! #         archive.extend_from_slice(content.as_bytes());
//! #         archive.resize(archive.len().next_multiple_of(512), 0);
//! #     }
//! #     archive.resize(archive.len() + 1024, 0);
//! #     archive
//! # }
//!
//! let upper = tar(&[("etc/.wh.motd", ""), ("etc/hostname", "box")]);
//! let lower = tar(&[("etc/motd", "welcome"), ("etc/hostname", "base")]);
//! let mut merge = Merge::new(Memory::default(), MergeLimits::default());
//! for layer in [upper, lower] {
//!     assert!(matches!(merge.add_layer(&layer[..])?, LayerEnd::Complete));
//! }
//! let (tree, sink) = merge.finish()?;
//! assert!(tree.find(b"etc/hostname").is_some() && tree.find(b"etc/motd").is_none());
//! assert_eq!(sink.files, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(clippy::cast_possible_truncation)]

pub mod config;
mod format;
pub mod import;
mod json;
pub mod layout;
pub mod manifest;
pub mod merge;
mod offered;
pub mod platform;
pub mod registry;
pub mod stream;
pub mod tar;

pub use nullspace_image_ref::{digest, reference};
