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
//! What it does not do: keep a cache, write a filesystem (the caller's [`merge::ContentSink`] and the tree's walk feed
//! one), push, build, or know what a template is.

#![warn(clippy::cast_possible_truncation)]

pub mod config;
pub mod import;
mod json;
pub mod layout;
pub mod manifest;
pub mod merge;
pub mod platform;
pub mod registry;
pub mod stream;
pub mod tar;

pub use nullspace_image_ref::{digest, reference};
