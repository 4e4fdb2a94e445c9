//! Images as others see them: e2fsck, debugfs, and a reader of our own that shares no code with the writer.

#![expect(clippy::unwrap_used, reason = "a setup that fails is a test that fails")]

mod contents;
mod growing;
mod large;
mod metadata;
mod random;
mod reader;
mod sizes;
mod support;
