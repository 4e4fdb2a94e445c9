//! The catalog: templates, their names, their visibility, and the built-in one.

pub(crate) mod base;
pub(crate) mod names;
pub(crate) mod publication;
pub(crate) mod templates;
pub(crate) mod wire;
