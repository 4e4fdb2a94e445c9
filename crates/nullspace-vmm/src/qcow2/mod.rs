//! Overlays in QEMU's format qcow2: a writer of empty ones, a reader of used ones, and a merger of several.

mod allocated;
mod merge;
mod overlay;
mod tables;

pub(crate) use self::allocated::allocated;
pub(crate) use self::merge::merge;
pub(crate) use self::overlay::{create, verify};
