//! Pack files: chunks one after the other, then an index of them.
//!
//! ```text
//!   magic 8 | chunk | chunk | ... | entry 40 | entry 40 | ... | index at 8 | entries 4 | 0 4 | BLAKE3 of the entries 32 | magic 8
//!   entry: chunk's id 32 | stored bytes 4 | plain bytes 4        stored = plain: not compressed
//! ```
//! Numbers are little-endian. Opening a store reads the indexes only. A chunk needs no checksum besides its id.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use uuid::Uuid;

use crate::codec::MAX_CHUNK;
use crate::error::io_error;
use crate::files::Draft;
use crate::{ChunkId, Result};

pub(crate) const MAGIC: &[u8; 8] = b"nspack01";
pub(crate) const ENTRY: usize = 40;
pub(crate) const TAIL: usize = 56;
const EXTENSION: &str = "pack";
/// Bytes of a pack that are written between two flushes, while it grows.
const FLUSH_AFTER: u64 = 32 << 20;

/// A pack's name, unique for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PackName(u128);

impl PackName {
    pub(crate) fn new() -> PackName {
        PackName(Uuid::new_v4().as_u128())
    }

    pub(crate) fn path(self, packs: &Path) -> PathBuf {
        packs.join(format!("{self}.{EXTENSION}"))
    }

    /// The pack that a file is; `None` when its name is not a pack's.
    pub(crate) fn of(path: &Path) -> Option<PackName> {
        path.file_name()?.to_str()?.strip_suffix(EXTENSION)?.strip_suffix('.')?.parse().ok()
    }
}

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for PackName {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<PackName, ()> {
        let plain = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if plain { u128::from_str_radix(text, 16).map(PackName).map_err(|_| ()) } else { Err(()) }
    }
}

/// A chunk in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: ChunkId,
    pub(crate) offset: u64,
    pub(crate) stored: u32,
    pub(crate) plain: u32,
}

/// A pack that is being written. The disk takes what is there while more is compressed, so that little is left to flush at the end.
pub(crate) struct PackWriter {
    draft: Draft,
    out: BufWriter<File>,
    flusher: Option<Flusher>,
    entries: Vec<Entry>,
    end: u64,
    /// Bytes for which a flush was asked last.
    asked: u64,
}

impl PackWriter {
    pub(crate) fn create(work: &Path) -> Result<PackWriter> {
        let draft = Draft::create(work)?;
        let file = draft.file.try_clone().map_err(io_error("open", draft.path()))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(MAGIC).map_err(io_error("write", draft.path()))?;
        Ok(PackWriter { draft, out, flusher: None, entries: Vec::new(), end: MAGIC.len() as u64, asked: 0 })
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.end
    }

    /// Adds a chunk: `stored` of `plain` bytes.
    pub(crate) fn push(&mut self, id: ChunkId, stored: &[u8], plain: u32) -> Result<()> {
        self.out.write_all(stored).map_err(io_error("write", self.draft.path()))?;
        // A chunk has at most MAX_CHUNK bytes, stored at most plain.
        self.entries.push(Entry { id, offset: self.end, stored: stored.len() as u32, plain });
        self.end += stored.len() as u64;
        if self.end - self.asked >= FLUSH_AFTER {
            self.asked = self.end;
            let flusher = match &mut self.flusher {
                Some(flusher) => flusher,
                none => none.insert(Flusher::start(&self.draft.file).map_err(io_error("flush", self.draft.path()))?),
            };
            flusher.ask();
        }
        Ok(())
    }

    /// Writes the index and makes the pack durable, still without its name. Returns its entries and its length.
    pub(crate) fn finish(mut self) -> Result<(Draft, Vec<Entry>, u64)> {
        let mut index = Vec::with_capacity(self.entries.len() * ENTRY + TAIL);
        for entry in &self.entries {
            index.extend_from_slice(entry.id.as_bytes());
            index.extend_from_slice(&entry.stored.to_le_bytes());
            index.extend_from_slice(&entry.plain.to_le_bytes());
        }
        let hash = blake3::hash(&index);
        index.extend_from_slice(&self.end.to_le_bytes());
        index.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        index.extend_from_slice(&[0; 4]);
        index.extend_from_slice(hash.as_bytes());
        index.extend_from_slice(MAGIC);
        let written = self.out.write_all(&index).and_then(|()| self.out.flush());
        written.map_err(io_error("write", self.draft.path()))?;
        // The system tells an error of the disk once: the flusher may have got it.
        self.flusher.take().map_or(Ok(()), Flusher::end).map_err(io_error("flush", self.draft.path()))?;
        self.draft.sync()?;
        Ok((self.draft, self.entries, self.end + index.len() as u64))
    }
}

/// A thread that flushes a file when it is asked to. It ends when this is dropped.
struct Flusher {
    asks: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Flusher {
    fn start(file: &File) -> io::Result<Flusher> {
        let file = file.try_clone()?;
        let (asks, asked) = sync_channel(1);
        let flush = move || asked.iter().try_for_each(|()| file.sync_data());
        let thread = std::thread::Builder::new().name("flush a pack".to_owned()).spawn(flush)?;
        Ok(Flusher { asks, thread })
    }

    /// Asks for a flush. It does not wait: one that was asked for before, and has not begun, takes these bytes, too.
    fn ask(&self) {
        // After an error the thread has ended, which `end` tells.
        let _ = self.asks.try_send(());
    }

    /// Waits for the flushes that were asked for. Returns the first error.
    fn end(self) -> io::Result<()> {
        drop(self.asks);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that flushes a pack panicked")))
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("its index {what}"))
}

/// Reads a pack's entries and its length. [`io::ErrorKind::InvalidData`] when the index is damaged.
pub(crate) fn read_index(file: &File) -> io::Result<(Vec<Entry>, u64)> {
    let length = file.metadata()?.len();
    let read = |at, len| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    };
    Ok((read_index_by(length, read)?, length))
}

/// Reads the entries of a pack of `length` bytes, by a function that reads so many bytes from a place on.
pub(crate) fn read_index_by(length: u64, read: impl Fn(u64, usize) -> io::Result<Vec<u8>>) -> io::Result<Vec<Entry>> {
    let tail_at = length.checked_sub(TAIL as u64).ok_or_else(|| bad("is cut off"))?;
    let tail = read(tail_at, TAIL)?;
    let (index_at, rest) = tail.split_first_chunk::<8>().ok_or_else(|| bad("is cut off"))?;
    let (count, rest) = rest.split_first_chunk::<4>().ok_or_else(|| bad("is cut off"))?;
    let (hash, magic) =
        rest.get(4..).and_then(|rest| rest.split_first_chunk::<32>()).ok_or_else(|| bad("is cut off"))?;
    let (index_at, count) = (u64::from_le_bytes(*index_at), u32::from_le_bytes(*count));
    let size = u64::from(count) * ENTRY as u64;
    if magic != MAGIC || index_at.checked_add(size) != Some(tail_at) {
        return Err(bad("has no end mark: the file is cut off or overwritten"));
    }
    let index = read(index_at, usize::try_from(size).map_err(|_| bad("is too large"))?)?;
    if blake3::hash(&index) != *hash {
        return Err(bad("does not have its checksum"));
    }
    let mut offset = MAGIC.len() as u64;
    let mut entries = Vec::with_capacity(count as usize);
    for entry in index.chunks_exact(ENTRY) {
        let (id, rest) = entry.split_first_chunk::<32>().ok_or_else(|| bad("is cut off"))?;
        let (stored, rest) = rest.split_first_chunk::<4>().ok_or_else(|| bad("is cut off"))?;
        let (plain, _) = rest.split_first_chunk::<4>().ok_or_else(|| bad("is cut off"))?;
        let (stored, plain) = (u32::from_le_bytes(*stored), u32::from_le_bytes(*plain));
        let end = offset.checked_add(u64::from(stored)).filter(|end| *end <= index_at);
        let end = end.filter(|_| stored <= plain && plain <= MAX_CHUNK).ok_or_else(|| bad("makes no sense"))?;
        entries.push(Entry { id: ChunkId::from_bytes(*id), offset, stored, plain });
        offset = end;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path) -> (Vec<Entry>, Vec<u8>) {
        let mut pack = PackWriter::create(folder).unwrap();
        for text in ["one", "twenty", "three hundred"] {
            pack.push(ChunkId::of(text.as_bytes()), text.as_bytes(), 100).unwrap();
        }
        let (draft, entries, length) = pack.finish().unwrap();
        let bytes = std::fs::read(draft.path()).unwrap();
        assert_eq!(bytes.len() as u64, length);
        (entries, bytes)
    }

    #[test]
    fn an_index_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let (entries, bytes) = written(folder.path());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a draft leaves nothing");
        let path = folder.path().join("pack");
        std::fs::write(&path, &bytes).unwrap();
        let (found, length) = read_index(&File::open(&path).unwrap()).unwrap();
        assert_eq!((&found, length), (&entries, bytes.len() as u64));
        let second = &bytes[entries[1].offset as usize..][..entries[1].stored as usize];
        assert_eq!(second, b"twenty");
    }

    #[test]
    fn a_pack_that_is_flushed_on_the_way_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut pack = PackWriter::create(folder.path()).unwrap();
        let chunk = vec![7; 1 << 20];
        for number in 0..FLUSH_AFTER >> 19 {
            pack.push(ChunkId::of(&number.to_le_bytes()), &chunk, 1 << 20).unwrap();
        }
        assert!(pack.flusher.is_some());
        let (draft, entries, length) = pack.finish().unwrap();
        let (found, found_length) = read_index(&File::open(draft.path()).unwrap()).unwrap();
        assert_eq!((found, found_length), (entries, length));
    }

    #[test]
    fn an_error_of_a_flush_on_the_way_is_told_at_the_end() {
        // Nothing can be flushed there.
        let flusher = Flusher::start(&File::options().write(true).open("/dev/full").unwrap()).unwrap();
        flusher.ask();
        flusher.end().unwrap_err();
    }

    #[test]
    fn every_damage_of_an_index_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (entries, bytes) = written(folder.path());
        let path = folder.path().join("pack");
        let index_at = (entries[2].offset + u64::from(entries[2].stored)) as usize;
        for at in index_at..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            let reserved = bytes.len() - TAIL + 12;
            let read = read_index(&File::open(&path).unwrap());
            assert_eq!(read.is_ok(), (reserved..reserved + 4).contains(&at), "byte {at}");
        }
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            read_index(&File::open(&path).unwrap()).unwrap_err();
        }
    }

    #[test]
    fn a_pack_has_one_name() {
        let name = PackName::new();
        assert_eq!(PackName::of(&name.path(Path::new("/x"))), Some(name));
        for other in ["/x/a.pack", "/x/0123.txt", "/x/.pack"] {
            assert_eq!(PackName::of(Path::new(other)), None);
        }
    }
}
