//! Overlays in QEMU's format qcow2: how an empty one is written, and what a used one holds.

mod allocated;
mod overlay;

pub(crate) use self::allocated::allocated;
pub(crate) use self::overlay::{create, verify};
