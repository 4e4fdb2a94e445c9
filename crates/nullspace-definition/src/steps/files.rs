//! The files of a build that its steps copy, as parts of layers' keys.

use std::collections::HashMap;

use super::sources::CopySource;
use crate::context::PlannedContext;
use crate::encoder::Encoder;

/// The files that a build's steps can copy.
pub(crate) struct Files<'b> {
    /// The build context.
    pub(crate) context: &'b PlannedContext,
    /// Generations of its files by blob id; 0 for a file without one.
    pub(crate) generations: &'b HashMap<String, u64>,
}

impl Files<'_> {
    /// Adds a copy's source: its name, and the path, mode and content of its entries.
    pub(super) fn encode(&self, key: &mut Encoder, source: &CopySource) {
        key.option(source.name.as_deref());
        key.count(source.entries.len());
        for entry in &source.entries {
            key.text(&entry.path);
            key.number(entry.mode.into());
            key.option(entry.blob.as_deref());
            let generation = entry.blob.as_ref().and_then(|blob| self.generations.get(blob));
            key.number(generation.copied().unwrap_or_default());
        }
    }
}
