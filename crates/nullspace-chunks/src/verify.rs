//! Verification: reads and checks all stored data.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::read::{Reader, Unread};
use crate::store::{Inner, Stop};
use crate::{ChunkId, Error, ManifestId, Result, Store};

/// Chunks that a thread takes at a time.
const BATCH: usize = 64;

/// The result of [`Store::verify`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Images checked.
    pub manifests: u64,
    /// Chunks read, each once.
    pub chunks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The faults, sorted.
    pub faults: Vec<Fault>,
}

/// A fault: data that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The manifest of an image, or of one of its parents, is missing or damaged.
    Manifest {
        /// The image.
        manifest: ManifestId,
        /// The fault.
        what: String,
    },
    /// A chunk is missing or damaged.
    Chunk {
        /// One of the images that need it.
        manifest: ManifestId,
        /// The chunk.
        chunk: ChunkId,
        /// The fault.
        what: String,
    },
    /// A pack's index is damaged. Chunks that are in no other pack are missing.
    Pack {
        /// The file's name.
        name: String,
        /// The fault.
        what: String,
    },
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Manifest { manifest, what } => write!(f, "image {manifest}: {what}"),
            Fault::Chunk { manifest, chunk, what } => write!(f, "image {manifest}: chunk {chunk}: {what}"),
            Fault::Pack { name, what } => write!(f, "pack {name}: {what}"),
        }
    }
}

impl Store {
    /// Reads everything: all stored manifests, those in `wanted`, which may be missing, and every chunk that they name. No
    /// collection runs meanwhile.
    pub fn verify(&self, wanted: impl IntoIterator<Item = ManifestId>, stop: &Stop) -> Result<Verified> {
        let _alone = self.start_collection()?;
        let inner = &self.inner;
        let mut manifests = self.manifests();
        manifests.extend(wanted);
        manifests.sort_unstable();
        manifests.dedup();
        let mut report = Verified { manifests: manifests.len() as u64, ..Verified::default() };
        // Each chunk with one image that needs it.
        let mut needed: HashMap<ChunkId, ManifestId> = HashMap::new();
        for id in &manifests {
            stop.check()?;
            let fault = |what: String| Fault::Manifest { manifest: *id, what };
            match inner.manifest(id) {
                Ok(manifest) => {
                    if let Some(parent) = manifest.parent
                        && manifests.binary_search(&parent).is_err()
                    {
                        report.faults.push(fault(format!("image {parent}, which it lies on, is missing")));
                    }
                    needed.extend(manifest.pieces.iter().filter_map(|piece| Some((piece.chunk()?, *id))));
                }
                Err(Error::Damaged { what, .. }) => report.faults.push(fault(what)),
                Err(error) => return Err(error),
            }
        }
        for (path, what) in inner.unreadable() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            report.faults.push(Fault::Pack { name, what: what.clone() });
        }
        let mut chunks: Vec<(ChunkId, ManifestId)> = needed.into_iter().collect();
        let place = |id: &ChunkId| inner.state().find(id).map(|(location, pack)| (pack, location.offset));
        // In the order of the files.
        chunks.sort_by_cached_key(|(id, _)| place(id));
        report.chunks = chunks.len() as u64;
        let batches = Mutex::new(chunks.chunks(BATCH));
        let parts: Vec<Result<(u64, Vec<Fault>)>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..inner.settings.threads).map(|_| scope.spawn(|| read_all(inner, &batches, stop))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
                Ok(part) => part,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().map(join).collect()
        });
        for part in parts {
            let (bytes, faults) = part?;
            report.bytes += bytes;
            report.faults.extend(faults);
        }
        report.faults.sort();
        Ok(report)
    }
}

type Batches<'a> = Mutex<std::slice::Chunks<'a, (ChunkId, ManifestId)>>;

fn read_all(inner: &Inner, batches: &Batches<'_>, stop: &Stop) -> Result<(u64, Vec<Fault>)> {
    let mut reader = Reader::new(inner)?;
    let (mut bytes, mut faults) = (0, Vec::new());
    loop {
        stop.check()?;
        let next = batches.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some(batch) = next else { return Ok((bytes, faults)) };
        for (chunk, manifest) in batch {
            let fault = |what: String| Fault::Chunk { manifest: *manifest, chunk: *chunk, what };
            match reader.read(chunk) {
                Ok(plain) => bytes += plain.len() as u64,
                Err(Unread::Missing) => faults.push(fault("is missing".to_owned())),
                Err(Unread::Damaged(pack)) => faults.push(fault(format!("is damaged in pack {pack}"))),
                Err(Unread::Io(error)) => return Err(error),
            }
        }
    }
}
