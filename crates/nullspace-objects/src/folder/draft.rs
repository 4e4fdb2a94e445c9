//! Files in the working folder: unnamed objects.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use uuid::Uuid;

use crate::error::io_error;
use crate::{Error, Result};

/// Tries to make a file that no process that starts at the same time removes.
const CREATE_TRIES: usize = 16;

/// A new file in the working folder, locked while it is open. Dropping it before [`Self::place`] removes it.
#[derive(Debug)]
pub(crate) struct Draft {
    path: PathBuf,
    file: File,
    gone: AtomicBool,
}

/// The outcome of [`Draft::place`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// The file has its name.
    Done,
    /// The name is taken; the draft is discarded.
    Taken,
    /// The folder of the name does not exist.
    NoFolder,
}

impl Draft {
    pub(crate) fn create(work: &Path) -> Result<Draft> {
        for _ in 0..CREATE_TRIES {
            let path = work.join(Uuid::new_v4().as_simple().to_string());
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(io_error("make", &path))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) | Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(Error::io("lock", &path, error.into())),
            }
            // Another process that starts now may have swept the file before it was locked.
            if file.metadata().map_err(io_error("look at", &path))?.nlink() == 1 {
                return Ok(Draft { path, file, gone: AtomicBool::new(false) });
            }
        }
        Err(Error::unavailable(format!("other processes sweep {} again and again", work.display())))
    }

    /// The file, for reading and writing.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(data, offset).map_err(io_error("write", &self.path))
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(io_error("flush", &self.path))
    }

    /// Whether the file was placed or discarded.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Renames the file unless the name is taken. The caller flushes the folder.
    pub(crate) fn place(&self, to: &Path) -> Result<Placed> {
        let renamed = match renameat_with(CWD, &self.path, CWD, to, RenameFlags::NOREPLACE) {
            // A filesystem without this kind of rename.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                fs::hard_link(&self.path, to).and_then(|()| fs::remove_file(&self.path))
            }
            renamed => renamed.map_err(io::Error::from),
        };
        match renamed {
            Ok(()) => {
                self.gone.store(true, Ordering::Release);
                Ok(Placed::Done)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.discard();
                Ok(Placed::Taken)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.exists() => Ok(Placed::NoFolder),
            Err(error) => Err(Error::io("publish", to, error)),
        }
    }

    /// Removes the file.
    pub(crate) fn discard(&self) {
        if !self.gone.swap(true, Ordering::AcqRel)
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // The next start empties the folder.
            tracing::warn!(path = %self.path.display(), %error, "remove an unfinished object");
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.discard();
    }
}

/// Removes the files of processes that no longer run. Those of living processes are locked.
pub(crate) fn sweep(work: &Path) -> Result<()> {
    for entry in fs::read_dir(work).map_err(io_error("read", work))? {
        let path = entry.map_err(io_error("read", work))?.path();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &path, error)),
                _ => tracing::info!(path = %path.display(), "removed the unfinished object of an earlier process"),
            }
        }
    }
    Ok(())
}
