//! Files and folders of the data folder: made, listed, flushed, renamed and removed.
//!
//! ```text
//!   work/<random>  ── sync_tree ── rename_over ──>  <folder>/<name>  ── discard ──> work/removed-…
//!                     flushed      parent folders flushed       whole               moved, then removed
//! ```
//! A refusal of the file system is a [`DataError::Io`] that says what was tried, with the path.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::names::WORK;
use crate::{DataError, Result};

/// These folders have tenants' memory: no other user of the host may read them.
pub(crate) const DIR_MODE: u32 = 0o700;

/// The error of something that was tried with a path.
pub(crate) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DataError + 'a {
    move |source| DataError::Io { context: format!("{what} {}", path.display()), source }
}

/// The text of a small file, at most `limit` bytes of it; `None` when there is no such file.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    let mut text = String::new();
    file.take(limit).read_to_string(&mut text).map_err(io_error("read", path))?;
    Ok(Some(text))
}

/// Makes a folder and those above it, if they are missing.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(path).map_err(io_error("make", path))
}

/// The paths of everything in a folder, in no order.
pub(crate) fn read_dir(path: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(io_error("read", path))
}

/// Flushes a folder, or a file.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("flush", path))
}

/// The path without symbolic links and `..`, if it is inside `work/`.
pub(crate) fn inside_work(root: &Path, path: &Path) -> Result<PathBuf> {
    let real = fs::canonicalize(path).map_err(io_error("resolve", path))?;
    let work = root.join(WORK);
    if real.starts_with(&work) && real != work {
        Ok(real)
    } else {
        Err(DataError::conflict("only what is in the work folder can be published"))
    }
}

/// Flushes a file, or a folder with its contents, children before parents. Returns its size on the disk.
pub(crate) fn sync_tree(path: &Path) -> Result<u64> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("read", path))?;
    let kind = metadata.file_type();
    let mut stored = metadata.blocks().saturating_mul(512);
    if kind.is_dir() {
        for child in read_dir(path)? {
            stored = stored.saturating_add(sync_tree(&child)?);
        }
    } else if !kind.is_file() {
        return Err(DataError::conflict("an artifact holds files and folders only"));
    }
    sync_dir(path)?;
    Ok(stored)
}

/// Size of a file or folder on the disk. Files that disappear meanwhile count nothing.
pub(crate) fn stored_bytes(path: &Path) -> Result<u64> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if gone(&error) => return Ok(0),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let mut stored = metadata.blocks().saturating_mul(512);
    if metadata.is_dir() {
        let children = match read_dir(path) {
            Ok(children) => children,
            Err(DataError::Io { source, .. }) if gone(&source) => return Ok(0),
            Err(error) => return Err(error),
        };
        for child in children {
            stored = stored.saturating_add(stored_bytes(&child)?);
        }
    }
    Ok(stored)
}

/// Renames, and replaces a file of the same name, which has the same bytes.
pub(crate) fn rename_over(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(io_error("publish", to))?;
    for path in [to, from] {
        if let Some(parent) = path.parent() {
            sync_dir(parent)?;
        }
    }
    Ok(())
}

/// Moves a file or folder to `bin` and removes it there; nothing when there is none.
pub(crate) fn discard(path: &Path, bin: &Path) -> Result<()> {
    match fs::rename(path, bin) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("remove", path)(error)),
    }
    if let Some(parent) = path.parent() {
        sync_dir(parent)?;
    }
    remove(bin)
}

/// Removes a file, a link (not its target), or a folder with its contents.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("read", path))?;
    if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.map_err(io_error("remove", path))
}
