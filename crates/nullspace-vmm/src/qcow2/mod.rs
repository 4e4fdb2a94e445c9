//! Overlays in QEMU's format qcow2: a writer of empty ones and a reader of used ones.

mod allocated;
mod overlay;

pub(crate) use self::allocated::allocated;
pub(crate) use self::overlay::{create, verify};
