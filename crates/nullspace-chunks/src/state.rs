//! The in-memory index of the store's files. All rules for removing files are here, under one lock.

use std::collections::{HashMap, HashSet};

use crate::pack::{Entry, PackName};
use crate::{ChunkId, ManifestId};

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    slot: u32,
    pub(crate) stored: u32,
    pub(crate) plain: u32,
    pub(crate) offset: u64,
}

/// A pack file.
#[derive(Debug, Clone, Copy)]
struct Pack {
    name: PackName,
    /// Length of the file.
    bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    chunks: HashMap<ChunkId, Location>,
    /// Further copies of chunks, from puts at the same time or a crash while packs were rewritten.
    spare: Vec<(ChunkId, Location)>,
    /// By slot: a location is smaller with a number than with a name.
    packs: Vec<Option<Pack>>,
    /// With their lengths, bytes.
    manifests: HashMap<ManifestId, u64>,
    pins: HashMap<ManifestId, usize>,
    /// Chunks that a put has found or stored, until its manifest is pinned.
    holds: HashMap<ChunkId, usize>,
    /// While a collection runs: every manifest that was pinned at any moment of it.
    touched: Option<HashSet<ManifestId>>,
}

/// A pack as a collection sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PackUse {
    pub(crate) slot: u32,
    pub(crate) name: PackName,
    pub(crate) bytes: u64,
    /// Of them in chunks that are wanted.
    pub(crate) live: u64,
}

/// Totals.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    pub(crate) manifests: u64,
    pub(crate) packs: u64,
    pub(crate) pack_bytes: u64,
    pub(crate) chunks: u64,
    pub(crate) plain_bytes: u64,
    pub(crate) stored_bytes: u64,
}

impl State {
    // ---- packs and chunks ----

    /// Takes up a pack whose file is durable.
    pub(crate) fn add_pack(&mut self, name: PackName, bytes: u64, entries: &[Entry]) {
        let slot = self.packs.len() as u32;
        self.packs.push(Some(Pack { name, bytes }));
        for entry in entries {
            let location = Location { slot, stored: entry.stored, plain: entry.plain, offset: entry.offset };
            match self.chunks.entry(entry.id) {
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(location);
                }
                std::collections::hash_map::Entry::Occupied(_) => self.spare.push((entry.id, location)),
            }
        }
    }

    /// Length of a pack's file, bytes; `None` when there is no such pack.
    pub(crate) fn pack_bytes(&self, name: PackName) -> Option<u64> {
        self.packs.iter().flatten().find(|pack| pack.name == name).map(|pack| pack.bytes)
    }

    /// All packs, with their lengths.
    pub(crate) fn pack_names(&self) -> Vec<(PackName, u64)> {
        self.packs.iter().flatten().map(|pack| (pack.name, pack.bytes)).collect()
    }

    /// Where a chunk is, and in which pack.
    pub(crate) fn find(&self, id: &ChunkId) -> Option<(Location, PackName)> {
        let location = self.chunks.get(id)?;
        let pack = self.packs.get(location.slot as usize)?.as_ref()?;
        Some((*location, pack.name))
    }

    /// A copy of a chunk has proven damaged: another one takes its place, else the chunk is stored no more.
    pub(crate) fn forget_copy(&mut self, id: &ChunkId, damaged: Location) {
        self.spare.retain(|(spare, location)| (spare, location) != (id, &damaged));
        if self.chunks.get(id) != Some(&damaged) {
            return;
        }
        match self.spare.iter().position(|(spare, _)| spare == id) {
            Some(index) => {
                let (_, location) = self.spare.swap_remove(index);
                self.chunks.insert(*id, location);
            }
            None => {
                self.chunks.remove(id);
            }
        }
    }

    /// Chunks of which there is more than one copy.
    pub(crate) fn spares(&self) -> Vec<ChunkId> {
        self.spare.iter().map(|(id, _)| *id).collect()
    }

    /// Gives up the further copies of a chunk whose first is good.
    pub(crate) fn drop_spares(&mut self, id: &ChunkId) {
        self.spare.retain(|(spare, _)| spare != id);
    }

    /// Entries of a pack that are in use, by offset.
    pub(crate) fn entries_of(&self, slot: u32) -> Vec<Entry> {
        let here = self.chunks.iter().filter(|(_, location)| location.slot == slot);
        let mut entries: Vec<Entry> =
            here.map(|(id, at)| Entry { id: *id, offset: at.offset, stored: at.stored, plain: at.plain }).collect();
        entries.sort_unstable_by_key(|entry| entry.offset);
        entries
    }

    /// Chunks of rewritten packs are in a new one now.
    pub(crate) fn move_chunks(&mut self, from: &[u32], name: PackName, bytes: u64, entries: &[Entry]) {
        let slot = self.packs.len() as u32;
        self.packs.push(Some(Pack { name, bytes }));
        for entry in entries {
            if let Some(location) = self.chunks.get_mut(&entry.id).filter(|location| from.contains(&location.slot)) {
                *location = Location { slot, stored: entry.stored, plain: entry.plain, offset: entry.offset };
            }
        }
    }

    /// Forgets a pack that has nothing in use, and returns its name.
    pub(crate) fn remove_pack(&mut self, slot: u32) -> Option<PackName> {
        self.spare.retain(|(_, location)| location.slot != slot);
        self.packs.get_mut(slot as usize)?.take().map(|pack| pack.name)
    }

    /// How much of each pack is in use.
    pub(crate) fn pack_use(&self) -> Vec<PackUse> {
        let mut live = vec![0_u64; self.packs.len()];
        for location in self.chunks.values().chain(self.spare.iter().map(|(_, location)| location)) {
            if let Some(live) = live.get_mut(location.slot as usize) {
                *live += u64::from(location.stored);
            }
        }
        let packs = self.packs.iter().zip(live).enumerate();
        packs
            .filter_map(|(slot, (pack, live))| {
                let Pack { name, bytes } = (*pack)?;
                Some(PackUse { slot: slot as u32, name, bytes, live })
            })
            .collect()
    }

    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals { manifests: self.manifests.len() as u64, ..Totals::default() };
        for pack in self.packs.iter().flatten() {
            totals.packs += 1;
            totals.pack_bytes += pack.bytes;
        }
        for location in self.chunks.values() {
            totals.chunks += 1;
            totals.plain_bytes += u64::from(location.plain);
            totals.stored_bytes += u64::from(location.stored);
        }
        totals
    }

    // ---- holds ----

    /// Keeps a chunk from collection until [`release`](Self::release). `false` when it is not stored: held all the same.
    pub(crate) fn hold(&mut self, id: ChunkId) -> bool {
        *self.holds.entry(id).or_default() += 1;
        self.chunks.contains_key(&id)
    }

    pub(crate) fn release(&mut self, ids: impl IntoIterator<Item = ChunkId>) {
        for id in ids {
            if let Some(count) = self.holds.get_mut(&id) {
                *count -= 1;
                if *count == 0 {
                    self.holds.remove(&id);
                }
            }
        }
    }

    // ---- manifests ----

    /// Takes up a manifest whose file has its name.
    pub(crate) fn add_manifest(&mut self, id: ManifestId, bytes: u64) {
        self.manifests.insert(id, bytes);
    }

    /// Length of a manifest's file, bytes.
    pub(crate) fn manifest_bytes(&self, id: &ManifestId) -> Option<u64> {
        self.manifests.get(id).copied()
    }

    pub(crate) fn has_manifest(&self, id: &ManifestId) -> bool {
        self.manifests.contains_key(id)
    }

    pub(crate) fn manifests(&self) -> Vec<ManifestId> {
        let mut all: Vec<_> = self.manifests.keys().copied().collect();
        all.sort_unstable();
        all
    }

    /// Keeps a manifest, with all that it needs, from collection until [`unpin`](Self::unpin). `false`: there is none.
    pub(crate) fn pin(&mut self, id: ManifestId) -> bool {
        if !self.manifests.contains_key(&id) {
            return false;
        }
        *self.pins.entry(id).or_default() += 1;
        if let Some(touched) = &mut self.touched {
            touched.insert(id);
        }
        true
    }

    pub(crate) fn unpin(&mut self, id: &ManifestId) {
        if let Some(count) = self.pins.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(id);
            }
        }
    }

    // ---- collection ----

    /// From now on pins are remembered. `false`: a collection runs already.
    pub(crate) fn begin_collection(&mut self) -> bool {
        if self.touched.is_some() {
            return false;
        }
        self.touched = Some(self.pins.keys().copied().collect());
        true
    }

    pub(crate) fn end_collection(&mut self) {
        self.touched = None;
    }

    /// Manifests that were pinned since the collection began and are not in `marked`.
    pub(crate) fn unmarked(&self, marked: &HashSet<ManifestId>) -> Vec<ManifestId> {
        self.touched.iter().flatten().filter(|id| !marked.contains(id)).copied().collect()
    }

    /// Forgets every manifest but the marked ones, and returns those forgotten.
    pub(crate) fn retain_manifests(&mut self, marked: &HashSet<ManifestId>) -> Vec<ManifestId> {
        let dead: Vec<_> = self.manifests.keys().filter(|id| !marked.contains(id)).copied().collect();
        self.manifests.retain(|id, _| marked.contains(id));
        dead
    }

    /// Forgets every chunk that is neither marked nor held, and returns how many that were.
    pub(crate) fn retain_chunks(&mut self, marked: &HashSet<ChunkId>) -> u64 {
        let (before, holds) = (self.chunks.len(), &self.holds);
        self.chunks.retain(|id, _| marked.contains(id) || holds.contains_key(id));
        self.spare.retain(|(id, _)| self.chunks.contains_key(id));
        (before - self.chunks.len()) as u64
    }
}
