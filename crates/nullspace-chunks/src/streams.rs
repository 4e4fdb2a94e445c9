//! Storing the files of a machine's snapshot: memory above all, whose pages are found again elsewhere.
//!
//! ```text
//!   pages ──threads──> zero | hash ──┬─ in a similar image ──> piece of its chunk      unless few pages of that chunk are used
//!                                    ├─ met before ─────────> piece of the same frame
//!                                    └─ new ──> frames of new pages ──threads──> compress ──> one pack for all files
//!                                                                        pieces ──> a manifest for each file
//! ```
//! Two machines of one kernel hold mostly the same pages, at other addresses. So pages are compared by content with those of
//! images that the caller names, and new ones are stored side by side in *frames*: chunks of [`Settings::chunk_bytes`]. A
//! manifest made here has no parent: its pieces name chunks of the similar image directly. So a chain of snapshots is never
//! deeper than one, and each can be removed alone.
//!
//! **Fragments.** A chunk of which less than an eighth is used would be read and decompressed for little: its pages are
//! stored anew. docs/architecture.md has the measurements.
//!
//! [`Settings::chunk_bytes`]: crate::Settings::chunk_bytes

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::codec::Encoder;
use crate::manifest::{Content, Manifest, Piece};
use crate::pack::PackWriter;
use crate::put::{Holds, Put, QUEUED, Stored, name_pack, publish};
use crate::read::Reader;
use crate::source::{BLOCK, Changes, WholeFile, is_zero};
use crate::store::{Inner, Stop};
use crate::{ChunkId, Error, ManifestId, Result, Store};

/// A chunk of a similar image is used when at least so much of it is: one part in this.
const LEAST_USED: usize = 8;
/// Bytes that a thread hashes at once.
const RUN: u64 = 1 << 20;
/// Page tables are kept for the next put while they have so many pages together: some 50 MiB.
const KEPT_PAGES: usize = 1 << 19;

/// Where the bytes of a page are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spot {
    chunk: ChunkId,
    skip: u32,
}

/// The pages of a stored image, by content.
#[derive(Debug, Default)]
pub(crate) struct PageTable(HashMap<ChunkId, Spot>);

/// Page tables of the images that were named as similar last.
#[derive(Debug, Default)]
pub(crate) struct PageTables(Mutex<VecDeque<(ManifestId, Arc<PageTable>)>>);

impl PageTables {
    pub(crate) fn get(&self, id: &ManifestId) -> Option<Arc<PageTable>> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = tables.iter().position(|(known, _)| known == id)?;
        let found = tables.remove(at)?;
        tables.push_back(found.clone());
        Some(found.1)
    }

    fn keep(&self, id: ManifestId, table: &Arc<PageTable>) {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.retain(|(known, _)| *known != id);
        tables.push_back((id, Arc::clone(table)));
        let mut pages: usize = tables.iter().map(|(_, table)| table.0.len()).sum();
        while pages > KEPT_PAGES
            && let Some((_, oldest)) = tables.pop_front()
        {
            pages -= oldest.0.len();
        }
    }
}

/// A page of a file that is not zeros.
#[derive(Debug, Clone, Copy)]
struct Page {
    at: u64,
    len: u32,
    /// BLAKE3 of its bytes.
    id: ChunkId,
}

impl Page {
    fn end(&self) -> u64 {
        self.at + u64::from(self.len)
    }
}

/// Some new pages, to become one chunk.
type Frame = Vec<(usize, Page)>;

impl Store {
    /// Stores sparse files, with one pack for all. Pages with the content of a page of `similar` images are named and not
    /// stored again; similar images that are not stored are left out.
    ///
    /// Memory: a page table for each similar image (some 100 bytes a page), and the same for the files.
    pub fn put_files(&self, files: &[&File], similar: &[ManifestId], stop: &Stop) -> Result<Vec<Stored>> {
        let inner = &self.inner;
        let read = |source| Error::Io { what: "read the snapshot to store".to_owned(), source };
        // Pinned: what the manifests will name must still be there when they are.
        let pins: Vec<_> = similar.iter().filter_map(|id| self.pin(*id).ok()).collect();
        let mut tables = Vec::with_capacity(pins.len());
        for pin in &pins {
            tables.push(inner.page_table(pin.id(), stop)?);
        }
        let mut pages = Vec::with_capacity(files.len());
        let mut lengths = Vec::with_capacity(files.len());
        for file in files {
            let source = WholeFile::new(file).map_err(read)?;
            lengths.push(source.image_bytes());
            pages.push(hash_pages(inner, &source, stop)?);
        }
        inner.step("pages hashed");
        let holds = Holds::new(inner);
        let shared = shared_spots(&pages, &tables, inner.settings.chunk_bytes, &holds);
        drop(pins);
        let (frames, places) = frames(&pages, &shared, inner.settings.chunk_bytes);

        let work = Work { inner, files, frames: &frames, next: Mutex::new(0), holds: &holds, stop };
        let (chunks, pack, mut put) = work.run()?;
        inner.step("chunks written");
        let mut added = 0;
        if let Some(pack) = pack {
            added = name_pack(inner, pack)?;
        }
        let mut encoded = Vec::with_capacity(files.len());
        for (pages, bytes) in pages.iter().zip(&lengths) {
            let pieces = pieces(pages, &shared, &places, &chunks);
            put.content_bytes += pages.iter().map(|page| u64::from(page.len)).sum::<u64>();
            let manifest = Manifest { bytes: *bytes, parent: None, depth: 0, pieces };
            encoded.push(manifest.encode().map_err(|error| Error::invalid(error.to_string()))?);
        }
        let pins = publish(inner, &encoded, &holds)?;
        // The cost belongs to all of them together: the first one tells it.
        put.stored_bytes = added + encoded.iter().map(|encoded| encoded.len() as u64).sum::<u64>();
        let stored = pins.into_iter().zip(&lengths).enumerate().map(|(index, (pin, bytes))| Stored {
            pin,
            image_bytes: *bytes,
            put: if index == 0 { put } else { Put::default() },
        });
        Ok(stored.collect())
    }
}

impl Inner {
    /// The pages of a stored image. Reads all of it, unless it was asked for lately.
    fn page_table(&self, id: ManifestId, stop: &Stop) -> Result<Arc<PageTable>> {
        if let Some(table) = self.tables.get(&id) {
            return Ok(table);
        }
        let mut chunks = HashMap::new();
        for (_, manifest) in self.chain(&id)? {
            for piece in manifest.pieces {
                if let Content::Chunk { id, .. } = piece.content {
                    chunks.insert(id, ());
                }
            }
        }
        let chunks: Vec<ChunkId> = chunks.into_keys().collect();
        let (mut table, mut reader) = (PageTable::default(), Reader::new(self)?);
        for chunk in chunks {
            stop.check()?;
            // A chunk that cannot be read is not shared; whoever needs the image is told so.
            let Ok(bytes) = reader.chunk(&chunk, id) else { continue };
            for (index, page) in bytes.chunks(BLOCK as usize).enumerate() {
                let skip = (index * BLOCK as usize) as u32;
                table.0.entry(ChunkId::of(page)).or_insert(Spot { chunk, skip });
            }
        }
        let table = Arc::new(table);
        self.tables.keep(id, &table);
        Ok(table)
    }
}

/// The pages of a file that are not zeros, in order.
fn hash_pages(inner: &Inner, source: &WholeFile<'_>, stop: &Stop) -> Result<Vec<Page>> {
    let read = |source| Error::Io { what: "read the snapshot to store".to_owned(), source };
    let mut runs = Vec::new();
    for extent in source.extents() {
        let (mut at, end) = (extent.at - extent.at % BLOCK, extent.at + extent.len);
        while at < end {
            let until = end.min(at + RUN - at % RUN);
            // Extents are those of the filesystem: a page is hashed once.
            if runs.last().is_none_or(|(_, last)| *last <= at) {
                runs.push((at, until));
            } else if let Some((_, last)) = runs.last_mut() {
                *last = until.max(*last);
            }
            at = until;
        }
    }
    let next = Mutex::new(runs.into_iter());
    let thread = || {
        let (mut pages, mut bytes) = (Vec::new(), Vec::new());
        loop {
            stop.check()?;
            let run = next.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((at, end)) = run else { return Ok::<_, Error>(pages) };
            bytes.resize((end - at) as usize, 0);
            source.read_at(at, &mut bytes).map_err(read)?;
            let new = bytes.chunks(BLOCK as usize).enumerate().filter(|(_, page)| !is_zero(page));
            pages.extend(new.map(|(index, page)| Page {
                at: at + index as u64 * BLOCK,
                len: page.len() as u32,
                id: ChunkId::of(page),
            }));
        }
    };
    let mut pages = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..inner.settings.threads).map(|_| scope.spawn(thread)).collect();
        let mut all = Vec::new();
        for thread in threads {
            match thread.join() {
                Ok(pages) => all.extend(pages?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok::<_, Error>(all)
    })?;
    pages.sort_unstable_by_key(|page: &Page| page.at);
    Ok(pages)
}

/// Pages that a similar image has, where enough of its chunk is used.
fn shared_spots(
    pages: &[Vec<Page>],
    tables: &[Arc<PageTable>],
    chunk_bytes: u32,
    holds: &Holds<'_>,
) -> HashMap<ChunkId, Spot> {
    let mut used: HashMap<ChunkId, HashMap<ChunkId, Spot>> = HashMap::new();
    for page in pages.iter().flatten() {
        if let Some(spot) = tables.iter().find_map(|table| table.0.get(&page.id)) {
            used.entry(spot.chunk).or_default().insert(page.id, *spot);
        }
    }
    let least = (chunk_bytes as usize / BLOCK as usize).div_ceil(LEAST_USED);
    let mut shared = HashMap::new();
    for (chunk, spots) in used {
        // A chunk that has proven damaged since the table was made is stored anew.
        if spots.len() >= least && holds.take(chunk) {
            shared.extend(spots);
        }
    }
    shared
}

/// New pages in frames, and each one's frame and place in it.
fn frames(
    pages: &[Vec<Page>],
    shared: &HashMap<ChunkId, Spot>,
    chunk_bytes: u32,
) -> (Vec<Frame>, HashMap<ChunkId, (usize, u32)>) {
    let (mut frames, mut places) = (Vec::<Frame>::new(), HashMap::new());
    for (file, pages) in pages.iter().enumerate() {
        // A frame of one file alone: what did not change between snapshots then is the same chunk.
        let mut room = 0;
        for page in pages {
            if shared.contains_key(&page.id) || places.contains_key(&page.id) {
                continue;
            }
            if room < page.len {
                frames.push(Frame::new());
                room = chunk_bytes;
            }
            let index = frames.len() - 1;
            places.insert(page.id, (index, chunk_bytes - room));
            frames[index].push((file, *page));
            // A short page at a file's end ends its frame: pages lie at multiples of their size.
            room = if u64::from(page.len) == BLOCK { room - page.len } else { 0 };
        }
    }
    (frames, places)
}

/// A file's pieces: neighbours in a chunk are one.
fn pieces(
    pages: &[Page],
    shared: &HashMap<ChunkId, Spot>,
    places: &HashMap<ChunkId, (usize, u32)>,
    chunks: &[ChunkId],
) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for page in pages {
        let spot = shared.get(&page.id).copied().or_else(|| {
            let (frame, skip) = places.get(&page.id)?;
            Some(Spot { chunk: *chunks.get(*frame)?, skip: *skip })
        });
        // Every page is shared or in a frame.
        let Some(Spot { chunk, skip }) = spot else { continue };
        if let Some(last) = pieces.last_mut()
            && last.end() == page.at
            && let Content::Chunk { id, skip: begin } = last.content
            && id == chunk
            && begin + last.len == skip
        {
            last.len += page.len;
            continue;
        }
        pieces.push(Piece { at: page.at, len: page.len, content: Content::Chunk { id: chunk, skip } });
    }
    pieces
}

/// Frames on their way into a pack.
struct Work<'a> {
    inner: &'a Inner,
    files: &'a [&'a File],
    frames: &'a [Frame],
    next: Mutex<usize>,
    holds: &'a Holds<'a>,
    stop: &'a Stop,
}

/// A frame that was read: its number, its id and length, and its stored form when it is new.
struct Done {
    frame: usize,
    id: ChunkId,
    plain: u32,
    new: Option<Vec<u8>>,
}

impl Work<'_> {
    /// Each frame's id, and the pack with those that were not stored before.
    fn run(&self) -> Result<(Vec<ChunkId>, Option<PackWriter>, Put)> {
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
            let mut chunks = vec![ChunkId::of(&[]); self.frames.len()];
            let (mut pack, mut put) = (None, Put::default());
            for result in results {
                let Done { frame, id, plain, new } = result?;
                if let Some(place) = chunks.get_mut(frame) {
                    *place = id;
                }
                if let Some(stored) = new {
                    put.new_bytes += u64::from(plain);
                    let pack = match &mut pack {
                        Some(pack) => pack,
                        none => none.insert(PackWriter::create(&self.inner.work())?),
                    };
                    pack.push(id, &stored, plain)?;
                }
            }
            Ok((chunks, pack, put))
        })
    }

    fn thread(&self, done: &SyncSender<Result<Done>>) -> Result<()> {
        let read = |source| Error::Io { what: "read the snapshot to store".to_owned(), source };
        let mut encoder = Encoder::new(self.inner.settings.level).map_err(read)?;
        let mut bytes = Vec::new();
        loop {
            self.stop.check()?;
            let frame = {
                let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
                *next += 1;
                *next - 1
            };
            let Some(pages) = self.frames.get(frame) else { return Ok(()) };
            bytes.clear();
            for run in pages.chunk_by(|(file, page), (next_file, next)| file == next_file && page.end() == next.at) {
                let Some((file, first)) = run.first() else { continue };
                let start = bytes.len();
                bytes.resize(start + run.iter().map(|(_, page)| page.len as usize).sum::<usize>(), 0);
                self.files[*file].read_exact_at(&mut bytes[start..], first.at).map_err(read)?;
                let mut rest = &bytes[start..];
                for (_, page) in run {
                    let (own, others) = rest.split_at(page.len as usize);
                    if ChunkId::of(own) != page.id {
                        return Err(read(std::io::Error::other("its bytes changed while it was stored")));
                    }
                    rest = others;
                }
            }
            let id = ChunkId::of(&bytes);
            let new = if self.holds.take(id) { None } else { Some(encoder.encode(&bytes).map_err(read)?) };
            if done.send(Ok(Done { frame, id, plain: bytes.len() as u32, new })).is_err() {
                return Ok(());
            }
        }
    }
}
