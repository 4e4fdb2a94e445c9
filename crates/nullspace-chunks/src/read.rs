//! Reading chunks, and writing an image back as a sparse raw file.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::FallocateFlags;

use crate::ahead::read_ahead;
use crate::codec::Decoder;
use crate::error::io_error;
use crate::manifest::{Content, Piece, overlay};
use crate::pack::PackName;
use crate::source::{BLOCK, is_zero};
use crate::store::{Inner, Stop};
use crate::{ChunkId, Error, ManifestId, Result, Store};

/// Chunks that a thread takes at once.
const BATCH: usize = 16;
/// A pack that is rewritten while it is read is looked for again so many times.
const LOOKS: usize = 5;

/// What [`Store::materialise`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Materialised {
    /// Length of the file.
    pub image_bytes: u64,
    /// Bytes written to it.
    pub written_bytes: u64,
    /// It began as a copy of its parent's file that shares its blocks.
    pub cloned: bool,
}

impl Store {
    /// Writes an image into an empty file, sparsely. Every chunk is verified. The file is not flushed.
    ///
    /// `parent`, an image that this one may lie on and a file that holds it, spares most of the work on filesystems that
    /// copy by reference.
    ///
    /// # Errors
    /// [`Error::Unknown`], or [`Error::Damaged`]: the file is then of no use.
    pub fn materialise(
        &self,
        id: ManifestId,
        to: &File,
        parent: Option<(ManifestId, &File)>,
        stop: &Stop,
    ) -> Result<Materialised> {
        let _pin = self.pin(id)?;
        let write = |source| Error::Io { what: "write a stored image into a file".to_owned(), source };
        let chain = self.inner.chain(&id)?;
        let image_bytes = chain.first().map_or(0, |(_, manifest)| manifest.bytes);
        let below = parent.and_then(|(parent, file)| {
            let index = chain.iter().position(|(id, _)| *id == parent)?;
            rustix::fs::ioctl_ficlone(to, file).ok().map(|()| index)
        });
        let layers = below.unwrap_or(chain.len());
        let mut pieces = Vec::new();
        for (_, manifest) in chain.iter().take(layers).rev() {
            pieces = overlay(&pieces, &manifest.pieces);
        }
        drop(chain);
        to.set_len(image_bytes).map_err(write)?;
        group(&mut pieces);
        let job = Job { inner: &self.inner, manifest: id, pieces: &pieces, to, fresh: below.is_none(), stop };
        let written_bytes = job.run(self.inner.settings.threads)?;
        Ok(Materialised { image_bytes, written_bytes, cloned: below.is_some() })
    }
}

/// Brings the pieces of a chunk together, where the first of them is, so that a chunk is read and decompressed once: memory
/// names a chunk from many places.
fn group(pieces: &mut [Piece]) {
    let mut first = HashMap::new();
    for (index, piece) in pieces.iter().enumerate() {
        if let Some(id) = piece.chunk() {
            first.entry(id).or_insert(index);
        }
    }
    let first = |piece: &Piece| piece.chunk().and_then(|id| first.get(&id).copied()).unwrap_or_default();
    pieces.sort_by_key(first);
}

/// Cuts off the first batch: pieces of [`BATCH`] chunks, each chunk's all.
fn batch<'a>(pieces: &mut &'a [Piece]) -> Option<&'a [Piece]> {
    let (mut chunks, mut last) = (0, None);
    let end = pieces.iter().position(|piece| {
        if chunks == 0 || piece.chunk() != last || last.is_none() {
            chunks += 1;
            last = piece.chunk();
        }
        chunks > BATCH
    });
    let (batch, rest) = pieces.split_at(end.unwrap_or(pieces.len()));
    *pieces = rest;
    (!batch.is_empty()).then_some(batch)
}

/// An image on its way into a file.
struct Job<'a> {
    inner: &'a Inner,
    manifest: ManifestId,
    /// Those of a chunk side by side.
    pieces: &'a [Piece],
    to: &'a File,
    /// The file was empty: zeros need not be written.
    fresh: bool,
    stop: &'a Stop,
}

impl Job<'_> {
    fn run(&self, threads: usize) -> Result<u64> {
        let batches = Mutex::new(self.pieces);
        std::thread::scope(|scope| {
            scope.spawn(|| read_ahead(self.inner, self.pieces.iter().filter_map(Piece::chunk)));
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| self.thread(&batches))).collect();
            let mut written = 0;
            let mut failed = Ok(());
            for thread in threads {
                match thread.join() {
                    Ok(Ok(bytes)) => written += bytes,
                    Ok(Err(error)) => failed = failed.and(Err(error)),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            failed.map(|()| written)
        })
    }

    fn thread(&self, batches: &Mutex<&[Piece]>) -> Result<u64> {
        let write = |source| Error::Io { what: "write a stored image into a file".to_owned(), source };
        let mut reader = Reader::new(self.inner)?;
        let mut written = 0;
        loop {
            self.stop.check()?;
            let next = batch(&mut batches.lock().unwrap_or_else(PoisonError::into_inner));
            let Some(batch) = next else { return Ok(written) };
            let each = batch.iter().try_for_each(|piece| {
                match piece.content {
                    Content::Zeros if self.fresh => {}
                    Content::Zeros => clear(self.to, piece.at, u64::from(piece.len)).map_err(write)?,
                    Content::Chunk { id, skip } => {
                        let chunk = reader.chunk(&id, self.manifest)?;
                        let part = chunk.get(skip as usize..).and_then(|rest| rest.get(..piece.len as usize));
                        let part = part.ok_or_else(|| Error::Damaged {
                            manifest: self.manifest,
                            what: format!("chunk {id} is shorter than its manifest says"),
                        })?;
                        written += self.write(part, piece.at).map_err(write)?;
                    }
                }
                Ok(())
            });
            if let Err(error) = each {
                // The others need not go on.
                *batches.lock().unwrap_or_else(PoisonError::into_inner) = &[];
                return Err(error);
            }
        }
    }

    /// Writes a piece; into a fresh file without its blocks of zeros.
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<u64> {
        if !self.fresh {
            self.to.write_all_at(bytes, at)?;
            return Ok(bytes.len() as u64);
        }
        let (mut written, mut start, mut run) = (0, 0, None);
        while start < bytes.len() {
            let rest = BLOCK - (at + start as u64) % BLOCK;
            let end = bytes.len().min(start + rest as usize);
            let zero = is_zero(&bytes[start..end]);
            if !zero {
                run.get_or_insert(start);
            }
            let done = if zero {
                Some(start)
            } else if end == bytes.len() {
                Some(end)
            } else {
                None
            };
            if let Some(until) = done
                && let Some(from) = run.take()
            {
                self.to.write_all_at(&bytes[from..until], at + from as u64)?;
                written += (until - from) as u64;
            }
            start = end;
        }
        Ok(written)
    }
}

/// Makes a range of a file zeros.
fn clear(file: &File, at: u64, len: u64) -> io::Result<()> {
    if rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len).is_ok() {
        return Ok(());
    }
    let zeros = vec![0; 1 << 16];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(zeros.len() as u64);
        file.write_all_at(&zeros[..part as usize], at + done)?;
        done += part;
    }
    Ok(())
}

/// Reads chunks, one thread's.
pub(crate) struct Reader<'a> {
    inner: &'a Inner,
    decoder: Decoder,
    /// The pack read last: chunks of an image mostly lie in one, in order.
    open: Option<(PackName, File)>,
    stored: Vec<u8>,
    plain: Vec<u8>,
    /// What `plain` is.
    last: Option<ChunkId>,
}

/// Why a chunk cannot be read.
#[derive(Debug)]
pub(crate) enum Unread {
    /// No pack has it.
    Missing,
    /// Every copy of it is damaged.
    Damaged(PackName),
    /// The system refused.
    Io(Error),
}

/// Why a chunk's bytes did not come.
enum Fetch {
    /// The remote could not be asked: the chunk may be well.
    Remote(Error),
    /// The pack.
    Pack(io::Error),
}

impl Unread {
    pub(crate) fn of(self, id: &ChunkId, manifest: ManifestId) -> Error {
        let what = match self {
            Unread::Missing => format!("chunk {id} is missing"),
            Unread::Damaged(pack) => format!("chunk {id} in pack {pack} is damaged"),
            Unread::Io(error) => return error,
        };
        tracing::error!(%manifest, what, "a stored image is damaged");
        Error::Damaged { manifest, what }
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Result<Reader<'a>> {
        let decoder = Decoder::new().map_err(|source| Error::Io { what: "start a zstd decoder".to_owned(), source })?;
        Ok(Reader { inner, decoder, open: None, stored: Vec::new(), plain: Vec::new(), last: None })
    }

    /// A chunk's bytes, verified, for an image.
    pub(crate) fn chunk(&mut self, id: &ChunkId, manifest: ManifestId) -> Result<&[u8]> {
        self.read(id).map_err(|why| why.of(id, manifest))?;
        Ok(&self.plain)
    }

    /// A chunk's bytes, verified. A damaged copy is forgotten, and another one tried.
    pub(crate) fn read(&mut self, id: &ChunkId) -> std::result::Result<&[u8], Unread> {
        if self.last == Some(*id) {
            return Ok(&self.plain);
        }
        self.last = None;
        let (mut damaged, mut looks) = (None, 0);
        loop {
            // Not one expression: the lock must be free when the chunk is read.
            let found = self.inner.state().find(id);
            let Some((location, pack)) = found else {
                return Err(damaged.map_or(Unread::Missing, Unread::Damaged));
            };
            match self.fetch(pack, location.offset, location.stored, location.plain) {
                Ok(()) if ChunkId::of(&self.plain) == *id => {
                    self.last = Some(*id);
                    return Ok(&self.plain);
                }
                Err(Fetch::Remote(error)) => return Err(Unread::Io(error)),
                // The pack is gone: rewritten by a collection, which then says where, or lost.
                Err(Fetch::Pack(error)) if error.kind() == io::ErrorKind::NotFound && looks < LOOKS => {
                    looks += 1;
                    let moved = self.inner.state().find(id).is_some_and(|(now, _)| now != location);
                    if !moved {
                        self.inner.state().forget_copy(id, location);
                    }
                }
                Err(Fetch::Pack(error)) if !is_damage(&error) => {
                    let path = pack.path(&self.inner.packs());
                    return Err(Unread::Io(io_error("read", &path)(error)));
                }
                _ => {
                    tracing::error!(chunk = %id, %pack, "a stored chunk is damaged");
                    damaged = Some(pack);
                    self.inner.state().forget_copy(id, location);
                }
            }
        }
    }

    fn fetch(&mut self, pack: PackName, offset: u64, stored: u32, plain: u32) -> std::result::Result<(), Fetch> {
        let file = match &self.open {
            Some((name, file)) if *name == pack => file,
            _ => {
                self.open = None;
                let opened = self.inner.open_pack(pack).map_err(Fetch::Remote)?;
                &self.open.insert((pack, opened.map_err(Fetch::Pack)?)).1
            }
        };
        self.stored.resize(stored as usize, 0);
        file.read_exact_at(&mut self.stored, offset).map_err(Fetch::Pack)?;
        self.decoder.decode(&self.stored, plain as usize, &mut self.plain).map_err(Fetch::Pack)
    }
}

/// The bytes are wrong, or there are too few: asking again changes nothing. zstd's own errors are of kind `Other`.
fn is_damage(error: &io::Error) -> bool {
    match error.raw_os_error() {
        // A disk that cannot read a block.
        Some(code) => code == rustix::io::Errno::IO.raw_os_error(),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::tests::{image_file, open, put, random_changes, random_image};

    /// What happens after a copy by reference, which the tests' filesystem may not know.
    #[test]
    fn changes_written_over_a_copy_of_the_parent_make_the_child() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let mut random = StdRng::seed_from_u64(21);
        for _ in 0..20 {
            let before = random_image(&mut random, 60);
            let parent = put(&store, &before);
            let changed = random_changes(&mut random, &before);
            let child = store.put_changes(parent.id(), &changed, None, &Stop::default()).unwrap();
            let chain = store.inner.chain(&child.id()).unwrap();
            let copy = image_file(&before);
            copy.set_len(changed.bytes.len() as u64).unwrap();
            let (inner, pieces, stop) = (&store.inner, &chain[0].1.pieces, &Stop::default());
            let job = Job { inner, manifest: child.id(), pieces, to: &copy, fresh: false, stop };
            job.run(2).unwrap();
            let mut bytes = vec![0; changed.bytes.len()];
            copy.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == changed.bytes);
        }
    }
}
