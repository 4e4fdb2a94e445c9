//! Atomic and durable file creation.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::Result;
use crate::error::io_error;

/// Makes a folder that no other user of the host may read: images are their owners' data.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("make", path))
}

pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("flush", path))
}

/// A new file in a working folder. Dropping it before [`Self::place`] removes it.
#[derive(Debug)]
pub(crate) struct Draft {
    path: PathBuf,
    pub(crate) file: File,
    placed: bool,
}

impl Draft {
    pub(crate) fn create(work: &Path) -> Result<Draft> {
        let path = work.join(Uuid::new_v4().as_simple().to_string());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("make", &path))?;
        Ok(Draft { path, file, placed: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(io_error("flush", &self.path))
    }

    /// Renames it. The caller flushes the folder.
    pub(crate) fn place(mut self, to: &Path) -> Result<()> {
        fs::rename(&self.path, to).map_err(io_error("publish", to))?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.placed
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // The next start empties the folder.
            tracing::warn!(path = %self.path.display(), %error, "remove an unfinished file");
        }
    }
}

/// Removes a file; nothing when there is none.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Paths in a folder.
pub(crate) fn list(path: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(io_error("read", path))
}
