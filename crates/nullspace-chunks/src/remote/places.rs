//! What the folder and the remote have: files that one of them lacks, and images that lack files in both.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Mutex;

use super::{RemoteKind, RemoteStats, lock, unreachable};
use crate::manifest::MAX_DEPTH;
use crate::pack::PackName;
use crate::store::Stop;
use crate::{Error, ManifestId, Result, Store};

/// Threads that upload or download missing files.
const THREADS: usize = 4;

impl Store {
    /// Uploads the files that only this folder has, packs before manifests, several at a time. Returns how many. Nothing to do
    /// without a remote.
    ///
    /// # Errors
    /// [`Error::Io`] when the remote does not answer: what was uploaded stays, and the next call goes on.
    pub fn upload_missing(&self, stop: &Stop) -> Result<u64> {
        let inner = &self.inner;
        let Some(elsewhere) = &inner.elsewhere else { return Ok(0) };
        let listed = |kind| -> Result<HashSet<String>> {
            let files = elsewhere.remote().list(kind).map_err(unreachable("list", "files"))?;
            Ok(files.into_iter().map(|file| file.name).collect())
        };
        let there = listed(RemoteKind::Pack)?;
        let here = inner.state().pack_names();
        let missing = here.into_iter().filter(|(name, _)| !there.contains(&name.to_string())).collect();
        let packs = each(missing, stop, |(name, bytes)| match inner.upload_pack(*name, *bytes) {
            // Collected meanwhile.
            Err(_) if inner.state().pack_bytes(*name).is_none() => Ok(false),
            uploading => uploading.map(|()| true),
        })?;
        let there = listed(RemoteKind::Manifest)?;
        let missing = self.manifests().into_iter().filter(|id| !there.contains(&id.to_string())).collect();
        let manifests = each(missing, stop, |id| {
            // It may be collected at any moment.
            let Ok(_pin) = self.pin(*id) else { return Ok(false) };
            inner.upload_manifest(id).map(|()| true)
        })?;
        Ok(packs + manifests)
    }

    /// Brings every pack and manifest into the folder that only the remote has, as far as the cache is large enough to keep them.
    /// Returns how many packs the folder lacks afterwards: with 0, the store can be opened without its remote.
    ///
    /// # Errors
    /// [`Error::Io`] when the remote does not answer; the next call goes on.
    pub fn download_missing(&self, stop: &Stop) -> Result<u64> {
        let inner = &self.inner;
        if inner.elsewhere.is_none() {
            return Ok(0);
        }
        let flush = |file: &File| {
            file.sync_all().map_err(|source| Error::Io { what: "flush a file of the object store".to_owned(), source })
        };
        each(self.manifests(), stop, |id| {
            if let Some(file) = inner.bring_manifest(id)? {
                flush(&file)?;
            }
            Ok(true)
        })?;
        let packs = inner.state().pack_names();
        let absent = |(name, _): &(PackName, u64)| !name.path(&inner.packs()).exists();
        // Also those that are here: files of a cache are not flushed.
        each(packs.clone(), stop, |(name, _)| {
            let Ok(file) = inner.open_pack(*name)? else { return Ok(false) };
            flush(&file).map(|()| true)
        })?;
        crate::files::sync_dir(&inner.packs())?;
        crate::files::sync_dir(&inner.manifests())?;
        Ok(packs.iter().filter(|pack| absent(pack)).count() as u64)
    }

    /// Where the files are; `None` without a remote.
    pub fn remote_stats(&self) -> Option<RemoteStats> {
        let elsewhere = self.inner.elsewhere.as_ref()?;
        let packs = self.inner.state().pack_names();
        let there = lock(&elsewhere.there);
        let mut stats = RemoteStats {
            packs: there.packs.len() as u64,
            pack_bytes: there.packs.values().sum(),
            manifests: there.manifests.len() as u64,
            ..RemoteStats::default()
        };
        for (_, bytes) in packs.iter().filter(|(name, _)| !there.packs.contains_key(name)) {
            stats.missing_packs += 1;
            stats.missing_bytes += bytes;
        }
        drop(there);
        for entry in lock(&elsewhere.cached).packs.values() {
            stats.cached_packs += 1;
            stats.cached_bytes += entry.bytes;
        }
        Some(stats)
    }

    /// Those of the images of which a manifest or a chunk is stored nowhere that is known of. Reads their manifests and no chunk.
    ///
    /// # Errors
    /// [`Error::Io`] when a manifest cannot be read for another reason than that it is missing or damaged.
    pub fn incomplete(&self, images: impl IntoIterator<Item = ManifestId>) -> Result<Vec<ManifestId>> {
        // Each manifest once, with those that many lie on: whether it lacks something itself, and what it lies on.
        let mut known: HashMap<ManifestId, (bool, Option<ManifestId>)> = HashMap::new();
        let mut incomplete = Vec::new();
        for id in images {
            let (mut next, mut lacks, mut depth) = (Some(id), false, 0_u32);
            while let Some(current) = next.filter(|_| !lacks && depth <= MAX_DEPTH) {
                let (own, below) = match known.get(&current) {
                    Some(found) => *found,
                    None => {
                        let found = self.lacks_a_chunk(&current)?;
                        *known.entry(current).or_insert(found)
                    }
                };
                lacks = own;
                next = below;
                depth += 1;
            }
            if lacks || next.is_some() {
                incomplete.push(id);
            }
        }
        Ok(incomplete)
    }

    fn lacks_a_chunk(&self, id: &ManifestId) -> Result<(bool, Option<ManifestId>)> {
        match self.inner.manifest(id) {
            Ok(manifest) => {
                let state = self.inner.state();
                let lacks =
                    manifest.pieces.iter().filter_map(|piece| piece.chunk()).any(|id| state.find(&id).is_none());
                Ok((lacks, manifest.parent))
            }
            Err(Error::Damaged { .. }) => Ok((true, None)),
            Err(error) => Err(error),
        }
    }
}

/// Does something for each of many things in a few threads, until the first error. Returns for how many it was done.
fn each<T: Sync>(things: Vec<T>, stop: &Stop, work: impl Fn(&T) -> Result<bool> + Sync) -> Result<u64> {
    let next = Mutex::new(things.iter());
    let thread = || {
        let mut done = 0;
        loop {
            stop.check()?;
            let Some(thing) = lock(&next).next() else { return Ok(done) };
            match work(thing) {
                Ok(did) => done += u64::from(did),
                Err(error) => {
                    // The others need not go on.
                    *lock(&next) = [].iter();
                    return Err(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS.min(things.len())).map(|_| scope.spawn(thread)).collect();
        let (mut total, mut failed) = (0, Ok(()));
        for thread in threads {
            match thread.join() {
                Ok(Ok(done)) => total += done,
                Ok(Err(error)) => failed = failed.and(Err(error)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        failed.map(|()| total)
    })
}
