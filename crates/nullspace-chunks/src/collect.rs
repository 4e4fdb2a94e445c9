//! Collection: removes data that no wanted image needs.
//!
//! ```text
//!   start_collection()         from here on pins are remembered
//!        the owner lists the images it wants
//!   finish(live)               mark live images, those pinned since the start, and what they lie on
//!        under the lock:       once nothing unmarked was pinned: forget manifests, chunks that are neither marked nor held
//!        then:                 remove packs without chunks in use; rewrite those that are mostly unused
//! ```
//! An image whose row comes to be while its owner makes the list is pinned at some moment of the collection, so it stays.
//! A put that meets a chunk holds it under the same lock that chunks are forgotten under: it finds it either held for it,
//! or not there, and stores it anew.
//!
//! Files go in the order that a crash may fall into: manifests first, durably, then the chunks that only they needed. A
//! rewritten pack is durable before the old ones go; until then chunks are there twice, which is settled at the next
//! collection by reading them.

use std::collections::HashSet;
use std::os::unix::fs::FileExt;

use crate::error::io_error;
use crate::files::{remove, sync_dir};
use crate::pack::{PackName, PackWriter};
use crate::read::{Reader, Unread};
use crate::state::PackUse;
use crate::store::Stop;
use crate::{ChunkId, Error, ManifestId, Result, Store};

/// A rewritten pack is closed when it has so many bytes.
const FULL: u64 = 256 << 20;

/// A collection between its start and its end. Dropped, it collects nothing.
#[derive(Debug)]
#[must_use]
pub struct Collection {
    store: Store,
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images that went.
    pub manifests: u64,
    /// Chunks that went.
    pub chunks: u64,
    /// Packs that went, the rewritten ones too.
    pub packs: u64,
    /// Packs that were rewritten without what is unused.
    pub rewritten: u64,
    /// Bytes by which all pack files together became shorter.
    pub freed_bytes: u64,
    /// Wanted images that are not stored, or whose list cannot be read.
    pub lost: Vec<ManifestId>,
}

impl Store {
    /// Starts a collection. List the images to keep *after* this, and give them to [`Collection::finish`].
    ///
    /// # Errors
    /// [`Error::Busy`] when one is running.
    pub fn start_collection(&self) -> Result<Collection> {
        if !self.inner.state().begin_collection() {
            return Err(Error::Busy);
        }
        Ok(Collection { store: self.clone() })
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        self.store.inner.state().end_collection();
    }
}

impl Collection {
    /// Removes what neither these images nor anything pinned needs. Puts, reads and materialisations may run beside it.
    ///
    /// # Errors
    /// [`Error::Busy`] while another process looks at the store.
    pub fn finish(self, live: impl IntoIterator<Item = ManifestId>, stop: &Stop) -> Result<Collected> {
        let inner = &self.store.inner;
        let _alone = inner.alone()?;
        let mut report = Collected::default();
        self.settle_copies(stop)?;

        let mut marked = Marked::default();
        let mut todo: Vec<ManifestId> = live.into_iter().collect();
        let (dead, unused) = loop {
            for id in todo {
                stop.check()?;
                self.mark(id, &mut marked, &mut report)?;
            }
            let mut state = inner.state();
            todo = state.unmarked(&marked.manifests);
            if !todo.is_empty() {
                continue;
            }
            let dead = state.retain_manifests(&marked.manifests);
            for id in &dead {
                // With the lock: the same image may be put again at any moment.
                remove(&inner.manifest_path(id))?;
                inner.doom_manifest(id);
            }
            report.chunks = state.retain_chunks(&marked.chunks);
            let packs = state.pack_use();
            let unused: Vec<PackUse> = packs.into_iter().filter(|pack| pack.live * 2 < pack.bytes).collect();
            break (dead, unused);
        };
        drop(marked);
        report.manifests = dead.len() as u64;
        inner.step("manifests removed");
        if !dead.is_empty() {
            sync_dir(&inner.manifests())?;
        }
        inner.step("manifests durably removed");

        let (empty, sparse): (Vec<_>, Vec<_>) = unused.into_iter().partition(|pack| pack.live == 0);
        for pack in &empty {
            self.remove_pack(pack, &mut report)?;
        }
        // One that was written a moment ago may hold only what others stored first: it counts like any other.
        self.rewrite(&sparse, &mut report, stop)?;
        sync_dir(&inner.packs())?;
        inner.delete_doomed(stop)?;
        Ok(report)
    }

    /// An image, what it lies on, and all their chunks.
    fn mark(&self, id: ManifestId, marked: &mut Marked, report: &mut Collected) -> Result<()> {
        let mut next = Some(id);
        while let Some(current) = next {
            if !marked.manifests.insert(current) {
                return Ok(());
            }
            match self.store.inner.manifest(&current) {
                Ok(manifest) => {
                    marked.chunks.extend(manifest.pieces.iter().filter_map(|piece| piece.chunk()));
                    next = manifest.parent;
                }
                // It cannot be read, so nothing can be kept for it. The file stays, to be looked at or restored.
                Err(Error::Damaged { what, .. }) => {
                    tracing::error!(manifest = %id, what, "a stored image is damaged");
                    report.lost.push(id);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Keeps one good copy of each chunk that is there more than once.
    fn settle_copies(&self, stop: &Stop) -> Result<()> {
        let inner = &self.store.inner;
        let twice = inner.state().spares();
        let mut reader = Reader::new(inner)?;
        for id in twice {
            stop.check()?;
            match reader.read(&id) {
                // Reading has forgotten every copy that was damaged.
                Ok(_) | Err(Unread::Missing | Unread::Damaged(_)) => inner.state().drop_spares(&id),
                Err(Unread::Io(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn remove_pack(&self, pack: &PackUse, report: &mut Collected) -> Result<()> {
        let inner = &self.store.inner;
        let name = {
            let mut state = inner.state();
            // A put cannot have taken up one of its chunks: they are forgotten.
            state.remove_pack(pack.slot)
        };
        if let Some(name) = name {
            remove(&name.path(&inner.packs()))?;
            inner.doom_pack(name);
            inner.step("pack removed");
            report.packs += 1;
            report.freed_bytes += pack.bytes;
        }
        Ok(())
    }

    /// Copies what is in use of these packs into new ones, and removes them.
    fn rewrite(&self, sparse: &[PackUse], report: &mut Collected, stop: &Stop) -> Result<()> {
        let inner = &self.store.inner;
        let mut done = 0;
        while done < sparse.len() {
            let mut pack = PackWriter::create(&inner.work())?;
            let first = done;
            while let Some(old) = sparse.get(done).filter(|_| pack.bytes() < FULL) {
                stop.check()?;
                self.copy(old, &mut pack)?;
                done += 1;
            }
            let old = sparse.get(first..done).unwrap_or_default();
            let (draft, entries, bytes) = pack.finish()?;
            inner.step("rewritten pack flushed");
            let name = PackName::new();
            draft.place(&name.path(&inner.packs()))?;
            inner.step("rewritten pack named");
            sync_dir(&inner.packs())?;
            inner.step("rewritten pack durable");
            let slots: Vec<u32> = old.iter().map(|pack| pack.slot).collect();
            if let Err(error) = inner.upload_pack(name, bytes) {
                remove(&name.path(&inner.packs()))?;
                return Err(error);
            }
            inner.state().move_chunks(&slots, name, bytes, &entries);
            for pack in old {
                self.remove_pack(pack, report)?;
                report.rewritten += 1;
            }
            report.freed_bytes = report.freed_bytes.saturating_sub(bytes);
        }
        Ok(())
    }

    /// Bytes are copied as they are: whether they are good is found out when they are read.
    fn copy(&self, from: &PackUse, to: &mut PackWriter) -> Result<()> {
        let inner = &self.store.inner;
        let path = from.name.path(&inner.packs());
        let file = inner.open_pack(from.name)?.map_err(io_error("open", &path))?;
        let entries = inner.state().entries_of(from.slot);
        let mut bytes = Vec::new();
        for entry in entries {
            bytes.resize(entry.stored as usize, 0);
            file.read_exact_at(&mut bytes, entry.offset).map_err(io_error("read", &path))?;
            to.push(entry.id, &bytes, entry.plain)?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Marked {
    manifests: HashSet<ManifestId>,
    chunks: HashSet<ChunkId>,
}
