//! Storing an image.
//!
//! ```text
//!   cells ──> threads: read · compare with the parent · hash · known? · compress ──bounded──> this thread: the pack
//!                                                                                                  │
//!   pack durable, then named  ──>  its chunks known to all  ──>  manifest durable, then named and pinned
//! ```

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::codec::Encoder;
use crate::error::io_error;
use crate::files::{Draft, remove, sync_dir};
use crate::manifest::{Content, MAX_DEPTH, Manifest, Piece, overlay};
use crate::pack::{PackName, PackWriter};
use crate::source::{BLOCK, Cell, Cells, Changes, WholeFile, is_zero};
use crate::store::{Inner, Pin, Stop};
use crate::{ChunkId, Error, ManifestId, Result, Store};

/// Cells on their way from the threads to the pack.
pub(crate) const QUEUED: usize = 32;

/// The result of a put. A collection keeps the image while `pin` lives. Drop the pin once the store's owner has recorded the
/// image.
#[derive(Debug)]
pub struct Stored {
    /// The image.
    pub pin: Pin,
    /// Its length, bytes.
    pub image_bytes: u64,
    /// Its cost.
    pub put: Put,
}

impl Stored {
    /// The image.
    pub fn id(&self) -> ManifestId {
        self.pin.id()
    }
}

/// The cost of a put.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Put {
    /// Bytes that were not zeros and, in changes, not the parent's.
    pub content_bytes: u64,
    /// Of them in chunks that were not stored before.
    pub new_bytes: u64,
    /// Bytes that the store grew by: pack and manifest.
    pub stored_bytes: u64,
}

impl Store {
    /// Stores a sparse raw image.
    pub fn put_image(&self, image: &File, stop: &Stop) -> Result<Stored> {
        let read = |source| Error::Io { what: "read the image to store".to_owned(), source };
        let source = WholeFile::new(image).map_err(read)?;
        self.put(&source, Base::None, stop)
    }

    /// Stores an image that differs from a stored one only by these changes. `parent_file` is the parent as a raw file, if
    /// there is one: blocks that were written and are the same as before are then left out.
    ///
    /// # Errors
    /// [`Error::Unknown`] when the parent is not stored, [`Error::Invalid`] when the image would be shorter than it.
    pub fn put_changes(
        &self,
        parent: ManifestId,
        changes: &dyn Changes,
        parent_file: Option<&File>,
        stop: &Stop,
    ) -> Result<Stored> {
        // What the manifest will name must still be there when it is.
        let _pin = self.pin(parent)?;
        let chain = self.inner.chain(&parent)?;
        self.put(changes, Base::Parent { id: parent, chain: &chain, file: parent_file }, stop)
    }

    fn put(&self, source: &dyn Changes, base: Base<'_>, stop: &Stop) -> Result<Stored> {
        let inner = &self.inner;
        let image_bytes = source.image_bytes();
        if base.bytes() > image_bytes {
            return Err(Error::invalid("it is shorter than the image that it lies on"));
        }
        let cells = Cells::new(source.extents(), image_bytes, u64::from(inner.settings.chunk_bytes))?;
        let work = Work {
            inner,
            source,
            base: &base,
            stop,
            cells: Mutex::new(cells),
            seen: Mutex::default(),
            holds: Holds::new(inner),
        };
        let (mut pieces, pack, mut put) = work.run()?;
        pieces.sort_unstable_by_key(|piece| piece.at);
        inner.step("chunks written");

        let mut added = 0;
        if let Some(pack) = pack {
            added = name_pack(inner, pack)?;
        }
        let manifest = base.manifest(image_bytes, pieces);
        let encoded = [manifest.encode().map_err(|error| Error::invalid(error.to_string()))?];
        let pin = publish(inner, &encoded, &work.holds)?.remove(0);
        let [encoded] = encoded;
        put.stored_bytes = added + encoded.len() as u64;
        Ok(Stored { pin, image_bytes, put })
    }
}

/// Makes a pack durable, gives it its name, and its chunks to all. Returns its length.
pub(crate) fn name_pack(inner: &Inner, pack: PackWriter) -> Result<u64> {
    let (draft, entries, bytes) = pack.finish()?;
    let name = PackName::new();
    inner.step("pack flushed");
    draft.place(&name.path(&inner.packs()))?;
    inner.step("pack named");
    sync_dir(&inner.packs())?;
    inner.step("pack durable");
    if let Err(error) = inner.upload_pack(name, bytes) {
        // Nothing names it, and the next put of its chunks makes another one.
        remove(&name.path(&inner.packs()))?;
        return Err(error);
    }
    inner.state().add_pack(name, bytes, &entries);
    Ok(bytes)
}

/// Makes manifests durable, gives them their names, and pins them. The pins are in the order of the manifests.
pub(crate) fn publish(inner: &Arc<Inner>, encoded: &[Vec<u8>], holds: &Holds<'_>) -> Result<Vec<Pin>> {
    let mut drafts = Vec::with_capacity(encoded.len());
    for encoded in encoded {
        let draft = Draft::create(&inner.work())?;
        (&draft.file).write_all(encoded).map_err(io_error("write", draft.path()))?;
        draft.sync()?;
        drafts.push((ManifestId::of(encoded), encoded.len() as u64, draft));
    }
    inner.step("manifest flushed");
    let mut pins = Vec::with_capacity(drafts.len());
    {
        let mut state = inner.state();
        // A chunk that this put relied on may have proven damaged meanwhile.
        if !holds.all().iter().all(|id| state.find(id).is_some()) {
            return Err(Error::Io {
                what: "store an image: a chunk that it shares with another was found damaged meanwhile; try again"
                    .into(),
                source: io::ErrorKind::InvalidData.into(),
            });
        }
        for (id, bytes, draft) in drafts {
            // With the lock: a collection removes manifests with it.
            if let Err(error) = draft.place(&inner.manifest_path(&id)) {
                // The pins take the lock when they go.
                drop(state);
                return Err(error);
            }
            state.add_manifest(id, bytes);
            state.pin(id);
            pins.push(Pin::new(inner, id));
        }
    }
    inner.step("manifest named");
    // Also when one was there before: whoever put it first may not have come so far.
    sync_dir(&inner.manifests())?;
    inner.step("manifest durable");
    for pin in &pins {
        inner.upload_manifest(&pin.id())?;
    }
    Ok(pins)
}

/// The base of an image.
enum Base<'a> {
    None,
    Parent { id: ManifestId, chain: &'a [(ManifestId, Manifest)], file: Option<&'a File> },
}

impl Base<'_> {
    fn bytes(&self) -> u64 {
        match self {
            Base::None => 0,
            Base::Parent { chain, .. } => chain.first().map_or(0, |(_, parent)| parent.bytes),
        }
    }

    /// The manifest of the image with these pieces over this.
    fn manifest(&self, bytes: u64, pieces: Vec<Piece>) -> Manifest {
        match self {
            Base::Parent { id, chain, .. } => {
                let depth = chain.len() as u32;
                if depth <= MAX_DEPTH {
                    return Manifest { bytes, parent: Some(*id), depth, pieces };
                }
                // Too deep: all changes since the lowest become one layer on it.
                let mut all = Vec::new();
                let changed = chain.len().saturating_sub(1);
                for (_, manifest) in chain.iter().take(changed).rev() {
                    all = overlay(&all, &manifest.pieces);
                }
                let lowest = chain.last().map(|(id, _)| *id);
                Manifest { bytes, parent: lowest, depth: 1, pieces: overlay(&all, &pieces) }
            }
            Base::None => Manifest { bytes, parent: None, depth: 0, pieces },
        }
    }
}

/// Chunks that must not be collected before the manifest is there.
pub(crate) struct Holds<'a> {
    inner: &'a Inner,
    ids: Mutex<Vec<ChunkId>>,
}

impl<'a> Holds<'a> {
    /// None yet.
    pub(crate) fn new(inner: &'a Inner) -> Holds<'a> {
        Holds { inner, ids: Mutex::default() }
    }

    /// Holds a chunk, and returns whether it is stored.
    pub(crate) fn take(&self, id: ChunkId) -> bool {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.inner.state().hold(id)
    }

    fn all(&self) -> Vec<ChunkId> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Holds<'_> {
    fn drop(&mut self) {
        let ids = std::mem::take(self.ids.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.inner.state().release(ids);
    }
}

/// One put on its way.
struct Work<'a> {
    inner: &'a Arc<Inner>,
    source: &'a dyn Changes,
    base: &'a Base<'a>,
    stop: &'a Stop,
    cells: Mutex<Cells>,
    /// Chunks that this put has met.
    seen: Mutex<HashSet<ChunkId>>,
    holds: Holds<'a>,
}

/// What a thread made of a cell.
struct Done {
    piece: Piece,
    /// To be stored: the encoded bytes.
    new: Option<Vec<u8>>,
}

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Data,
    Zero,
    /// As in the parent.
    Same,
}

impl Work<'_> {
    fn run(&self) -> Result<(Vec<Piece>, Option<PackWriter>, Put)> {
        std::thread::scope(|scope| {
            let (done, results) = sync_channel(QUEUED);
            for _ in 0..self.inner.settings.threads {
                let done = done.clone();
                scope.spawn(move || {
                    if let Err(error) = self.thread(&done) {
                        // Nobody listens when another thread's error came first.
                        let _ = done.send(Err(error));
                    }
                });
            }
            drop(done);
            let (mut pieces, mut pack, mut put) = (Vec::new(), None, Put::default());
            for result in results {
                let Done { piece, new } = result?;
                if let Some(id) = piece.chunk() {
                    put.content_bytes += u64::from(piece.len);
                    if let Some(stored) = new {
                        put.new_bytes += u64::from(piece.len);
                        let pack = match &mut pack {
                            Some(pack) => pack,
                            none => none.insert(PackWriter::create(&self.inner.work())?),
                        };
                        pack.push(id, &stored, piece.len)?;
                    }
                }
                pieces.push(piece);
            }
            Ok((pieces, pack, put))
        })
    }

    fn thread(&self, done: &SyncSender<Result<Done>>) -> Result<()> {
        let read = |source| Error::Io { what: "read the image to store".to_owned(), source };
        let mut encoder = Encoder::new(self.inner.settings.level).map_err(read)?;
        let (mut bytes, mut before) = (Vec::new(), Vec::new());
        loop {
            self.stop.check()?;
            let next = self.cells.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(cell) = next else { return Ok(()) };
            let mut made = Vec::new();
            if cell.zero {
                if matches!(self.base, Base::Parent { .. }) {
                    made.extend(Piece::zeros(cell.at, cell.len).map(|piece| Done { piece, new: None }));
                }
            } else {
                bytes.resize(cell.len as usize, 0);
                self.source.read_at(cell.at, &mut bytes).map_err(read)?;
                let same = self.parent_bytes(&cell, &mut before).map_err(read)?;
                for (kind, start, end) in runs(cell.at, &bytes, same) {
                    let at = cell.at + start as u64;
                    match kind {
                        Block::Same => {}
                        Block::Zero => {
                            if matches!(self.base, Base::Parent { .. }) {
                                let zeros = Piece::zeros(at, (end - start) as u64);
                                made.extend(zeros.map(|piece| Done { piece, new: None }));
                            }
                        }
                        Block::Data => made.push(self.chunk(at, &bytes[start..end], &mut encoder).map_err(read)?),
                    }
                }
            }
            for result in made {
                if done.send(Ok(result)).is_err() {
                    return Ok(());
                }
            }
        }
    }

    /// What the parent has in a cell's place; `None` when that is not known.
    fn parent_bytes<'b>(&self, cell: &Cell, before: &'b mut Vec<u8>) -> io::Result<Option<&'b [u8]>> {
        let Base::Parent { file: Some(file), .. } = self.base else { return Ok(None) };
        before.clear();
        before.resize(cell.len as usize, 0);
        // Beyond its end a parent is zeros.
        let mut read = 0;
        while read < before.len() {
            match file.read_at(&mut before[read..], cell.at + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(before))
    }

    fn chunk(&self, at: u64, bytes: &[u8], encoder: &mut Encoder) -> io::Result<Done> {
        let id = ChunkId::of(bytes);
        // A cell is at most a chunk long.
        let piece = Piece { at, len: bytes.len() as u32, content: Content::Chunk { id, skip: 0 } };
        let met = !self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        let new = if met || self.holds.take(id) { None } else { Some(encoder.encode(bytes)?) };
        Ok(Done { piece, new })
    }
}

/// Runs of blocks of one kind, as ranges of `bytes`, which lie at `at`. Zeros between data belong to the data: they
/// compress to nothing, and a run less is a chunk less.
fn runs(at: u64, bytes: &[u8], parent: Option<&[u8]>) -> Vec<(Block, usize, usize)> {
    let mut runs: Vec<(Block, usize, usize)> = Vec::new();
    let mut start = 0;
    while start < bytes.len() {
        let rest = BLOCK - (at + start as u64) % BLOCK;
        let end = bytes.len().min(start + rest as usize);
        let block = &bytes[start..end];
        let kind = match parent {
            Some(parent) if parent[start..end] == *block => Block::Same,
            _ if is_zero(block) => Block::Zero,
            _ => Block::Data,
        };
        match runs.as_mut_slice() {
            [.., last] if last.0 == kind => last.2 = end,
            // Data, zeros, data again.
            [.., data, zeros] if (data.0, zeros.0, kind) == (Block::Data, Block::Zero, Block::Data) => {
                data.2 = end;
                runs.pop();
            }
            _ => runs.push((kind, start, end)),
        }
        start = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_one_kind_become_one_run() {
        const B: usize = BLOCK as usize;
        let (data, zero) = (vec![1; B], vec![0; B]);
        let bytes = [&zero, &data, &zero, &zero, &data, &data, &zero].map(Vec::as_slice).concat();
        let shown = |parent: Option<&[u8]>| {
            let kind = |kind| match kind {
                Block::Data => 'd',
                Block::Zero => 'z',
                Block::Same => 's',
            };
            runs(0, &bytes, parent).iter().map(|(k, start, end)| (kind(*k), start / B, end / B)).collect::<Vec<_>>()
        };
        assert_eq!(shown(None), [('z', 0, 1), ('d', 1, 6), ('z', 6, 7)]);
        let mut parent = bytes.clone();
        parent[2 * B] = 9;
        parent[5 * B] = 9;
        assert_eq!(shown(Some(&parent)), [('s', 0, 2), ('z', 2, 3), ('s', 3, 5), ('d', 5, 6), ('s', 6, 7)]);
        // Blocks are those of the image, wherever the bytes begin.
        assert_eq!(runs(BLOCK - 5, &[0, 0, 0, 0, 0, 7], None), [(Block::Zero, 0, 5), (Block::Data, 5, 6)].to_vec());
    }
}
