//! Captures: raw files of a paused sandbox that are not stored as chunks yet.
//!
//! ```text
//!   work/…/snapshot ── keep_capture ──> captures/<name>/        renamed, not flushed; it says in which boot it was written
//!                                          │   ├── open_snapshot ──> links in work/: it may go while a machine uses its files
//!                                          │   ├── flush_capture ──> flushed, and it says so
//!                                          │   └── publish_capture ──> chunks/, and links in snapshots/
//!                                          └── drop_capture, once a row has its streams
//! ```
//! Nothing is flushed while the machine stands still. The page cache outlives this process, and not the host: a capture that was
//! neither flushed nor stored before the host's crash may have holes, so it is [`CaptureState::Torn`] in every later boot.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nullspace_chunks::Stop;
use nullspace_types::Streams;

use crate::artifacts::PublishedArtifact;
use crate::folders::{DIR_MODE, discard, inside_work, io_error, read_dir, read_text, sync_dir, sync_tree};
use crate::images::BOOT_ID;
use crate::names::{CAPTURES, artifact_of, is_stream};
use crate::store::Scratch;
use crate::{ArtifactStore, DataError, Result};

/// File with the boot id in which a capture was written. No file of a machine begins with a point.
const WRITTEN: &str = ".written";
/// File of a capture that was flushed.
const FLUSHED: &str = ".flushed";
/// A boot id has 37 bytes.
const MAX_BOOT_ID: u64 = 64;

/// What is left of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureState {
    /// It can be used.
    Whole,
    /// The host has crashed or restarted since, and it was not flushed before.
    Torn,
    /// There is none.
    Missing,
}

/// The streams of captures that were published since the start, by name: whoever has read a row before it got its streams still
/// finds the snapshot. There are at most as many as snapshots.
#[derive(Debug, Default)]
pub(crate) struct Published(Mutex<HashMap<String, Streams>>);

impl Published {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Streams>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn streams_of(&self, name: &str) -> Option<Streams> {
        self.all().get(name).cloned()
    }

    pub(crate) fn forget(&self, name: &str) {
        self.all().remove(name);
    }
}

impl ArtifactStore {
    /// Keeps the files in a folder of `work/` as the capture of this name, an artifact's. They are not flushed. The folder is gone then.
    ///
    /// # Errors
    /// [`DataError::Conflict`] when the folder contains anything but files.
    pub async fn keep_capture(&self, dir: &Path, name: &str) -> Result<()> {
        let (from, to) = (dir.to_owned(), self.capture_dir(name)?);
        self.blocking(move |root| {
            let from = inside_work(root, &from)?;
            for path in read_dir(&from)? {
                let metadata = fs::symlink_metadata(&path).map_err(io_error("read", &path))?;
                if !metadata.is_file() || stream_of(&path).is_none() {
                    return Err(DataError::conflict("a capture holds files of a machine only"));
                }
            }
            let written = from.join(WRITTEN);
            fs::write(&written, boot_id()?).map_err(io_error("write", &written))?;
            fs::rename(&from, &to).map_err(io_error("keep", &to))
        })
        .await
    }

    /// What is left of a capture.
    pub async fn capture_state(&self, name: &str) -> Result<CaptureState> {
        let dir = self.capture_dir(name)?;
        self.blocking(move |_| state(&dir)).await
    }

    /// Flushes a capture: from then on it outlives a crash of the host. Nothing for one that is not whole.
    pub async fn flush_capture(&self, name: &str) -> Result<()> {
        let dir = self.capture_dir(name)?;
        self.blocking(move |_| {
            if state(&dir)? != CaptureState::Whole {
                return Ok(());
            }
            sync_tree(&dir)?;
            let flushed = dir.join(FLUSHED);
            let file = File::create(&flushed).map_err(io_error("make", &flushed))?;
            file.sync_all().map_err(io_error("flush", &flushed))?;
            sync_dir(&dir)?;
            dir.parent().map_or(Ok(()), sync_dir)
        })
        .await
    }

    /// Stores a capture as chunks, as [`publish_artifact`](Self::publish_artifact) does with a folder, and under the capture's name.
    /// The capture stays until [`drop_capture`](Self::drop_capture). It can be published again.
    ///
    /// # Errors
    /// [`DataError::Damaged`] when it is torn or missing.
    pub async fn publish_capture(&self, name: &str, similar: Vec<Streams>, stop: Stop) -> Result<PublishedArtifact> {
        self.capture_dir(name)?;
        let (store, name) = (self.clone(), name.to_owned());
        self.blocking(move |root| {
            let Some((_scratch, from)) = store.link_capture(&name)? else { return Err(missing(&name)) };
            let published = store.publish(root, &from, name.clone(), &similar, &stop)?;
            store.published().all().insert(name, published.streams.clone());
            Ok(published)
        })
        .await
    }

    /// Removes a capture whose row has its streams. A missing one is no error.
    pub async fn drop_capture(&self, name: &str) -> Result<()> {
        let (dir, bin) = (self.capture_dir(name)?, self.bin());
        self.blocking(move |_| discard(&dir, &bin)).await
    }

    /// Bytes of a capture on the disk; 0 when there is none.
    pub async fn capture_bytes(&self, name: &str) -> Result<u64> {
        let dir = self.capture_dir(name)?;
        self.blocking(move |_| crate::folders::stored_bytes(&dir)).await
    }

    /// The folder of a capture, which need not exist.
    pub(crate) fn capture_dir(&self, name: &str) -> Result<PathBuf> {
        if artifact_of(name).is_none() {
            return Err(DataError::corrupt("folder name of a capture"));
        }
        Ok(self.root().join(CAPTURES).join(name))
    }

    /// Links a capture's files into a folder of scratch; `None` when there is none (any more). Blocks.
    ///
    /// # Errors
    /// [`DataError::Damaged`] when it is torn.
    pub(crate) fn link_capture(&self, name: &str) -> Result<Option<(Scratch, PathBuf)>> {
        let dir = self.capture_dir(name)?;
        match state(&dir)? {
            CaptureState::Whole => {}
            CaptureState::Missing => return Ok(None),
            CaptureState::Torn => {
                let what = format!("the host crashed before the capture {name} was stored: it may be incomplete");
                return Err(DataError::Damaged { what });
            }
        }
        let scratch = self.scratch()?;
        let to = scratch.path().join("snapshot");
        DirBuilder::new().mode(DIR_MODE).create(&to).map_err(io_error("make", &to))?;
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        // Dropped as a whole, by a rename: it is there with all files, or not at all.
        let paths = match read_dir(&dir) {
            Err(DataError::Io { source, .. }) if gone(&source) => return Ok(None),
            paths => paths?,
        };
        for path in paths {
            let Some(file) = stream_of(&path) else { continue };
            match fs::hard_link(&path, to.join(file)) {
                Err(error) if gone(&error) => return Ok(None),
                linked => linked.map_err(io_error("link", &path))?,
            }
        }
        Ok(Some((scratch, to)))
    }
}

/// The error of a capture that is not there.
pub(crate) fn missing(name: &str) -> DataError {
    DataError::Damaged { what: format!("the snapshot {name} is missing") }
}

fn stream_of(path: &Path) -> Option<&str> {
    path.file_name().and_then(|name| name.to_str()).filter(|name| is_stream(name))
}

fn boot_id() -> Result<String> {
    let path = Path::new(BOOT_ID);
    read_text(path, MAX_BOOT_ID)?.ok_or_else(|| io_error("read", path)(io::ErrorKind::NotFound.into()))
}

fn state(dir: &Path) -> Result<CaptureState> {
    if !dir.is_dir() {
        return Ok(CaptureState::Missing);
    }
    if dir.join(FLUSHED).is_file() {
        return Ok(CaptureState::Whole);
    }
    let written = read_text(&dir.join(WRITTEN), MAX_BOOT_ID)?;
    match written {
        Some(written) if written == boot_id()? => Ok(CaptureState::Whole),
        // Dropped since it was looked at.
        None if !dir.is_dir() => Ok(CaptureState::Missing),
        _ => Ok(CaptureState::Torn),
    }
}
