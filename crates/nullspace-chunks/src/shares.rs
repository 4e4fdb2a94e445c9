//! What each of several owners alone costs, and what they share.

use std::collections::{HashMap, HashSet};

use crate::{ChunkId, Error, ManifestId, Result, Store};

/// Bytes of an owner's chunks as they are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// In chunks that no other owner has: what goes when the owner goes.
    pub alone: u64,
    /// In chunks that another owner has, too.
    pub shared: u64,
}

impl Store {
    /// Tells apart what only one of these owners has and what several have. An owner is a list of images. Reads every
    /// manifest: for operators, not for requests. Images that are not stored count nothing.
    pub fn shares(&self, owners: &[Vec<ManifestId>]) -> Result<Vec<Share>> {
        let mut chunks: Vec<HashSet<ChunkId>> = Vec::with_capacity(owners.len());
        let mut count: HashMap<ChunkId, u32> = HashMap::new();
        for owner in owners {
            let mut own = HashSet::new();
            for id in owner {
                let Ok(_pin) = self.pin(*id) else { continue };
                let chain = match self.inner.chain(id) {
                    Err(Error::Damaged { .. }) => continue,
                    chain => chain?,
                };
                own.extend(chain.iter().flat_map(|(_, manifest)| &manifest.pieces).filter_map(|piece| piece.chunk()));
            }
            for id in &own {
                *count.entry(*id).or_default() += 1;
            }
            chunks.push(own);
        }
        let state = self.inner.state();
        let share = |own: HashSet<ChunkId>| {
            let mut share = Share::default();
            for id in own {
                let stored = state.find(&id).map_or(0, |(location, _)| u64::from(location.stored));
                *(if count.get(&id) == Some(&1) { &mut share.alone } else { &mut share.shared }) += stored;
            }
            share
        };
        Ok(chunks.into_iter().map(share).collect())
    }
}
