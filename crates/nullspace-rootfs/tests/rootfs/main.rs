//! Images made of layers and tars, judged by others: e2fsck, and the kernel of a guest that mounts them.

#![allow(missing_docs)]
// A helper that fails is a test that fails.
#![allow(clippy::unwrap_used)]

mod expected;
mod guest;
mod mounted;
mod support;
