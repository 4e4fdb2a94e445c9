//! References of OCI images and content digests: parsed once, where they enter, and carried as types from there.
//!
//! ```text
//!   "ghcr.io/org/app:1.2@sha256:…" ──> Reference { registry, repository, tag, Digest }
//!   the same, and its text as a user wrote it ──> Written
//! ```
//! There is no I/O here: `nullspace-oci` asks registries.

pub mod digest;
pub mod reference;
mod written;

pub use reference::{Reference, ReferenceError};
pub use written::Written;
