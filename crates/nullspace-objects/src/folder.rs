//! Objects as files of a folder.
//!
//! ```text
//!   FOLDER/work/<random>     written, flushed, locked while its writer lives; swept at the next start
//!          │ rename that never replaces
//!          v
//!   FOLDER/objects/<name>    its folders are flushed up to objects/ before a put returns
//! ```

pub(crate) mod draft;

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions, ReadDir};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use rustix::fs::OFlags;
use tokio::sync::mpsc;

use crate::backend::{Backend, Entry, Pages, Put, Reading, Upload};
use crate::error::io_error;
use crate::{Error, ObjectName, PART_BYTES, Result};
use draft::{Draft, Placed};

/// Bytes that one read of a file takes.
const READ_BYTES: u64 = 1 << 20;
/// Entries of a listing that wait for their reader.
const LISTED_AHEAD: usize = 256;
/// Tries to place a file whose folder is removed at the same time, because its last object was deleted.
const PLACE_TRIES: usize = 16;

/// A folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    objects: Arc<Path>,
    work: Arc<Path>,
}

impl Folder {
    /// Opens a folder, makes it when there is none, and removes what a killed process left in `work`.
    pub(crate) fn open(root: &Path) -> Result<Folder> {
        let folder = Folder { objects: root.join("objects").into(), work: root.join("work").into() };
        for path in [root, &folder.objects, &folder.work] {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("make", path))?;
        }
        sync_dir(root)?;
        draft::sweep(&folder.work)?;
        Ok(folder)
    }

    fn path(&self, name: &ObjectName) -> PathBuf {
        self.objects.join(name.as_str())
    }

    /// Opens the file of an object.
    fn file(&self, name: &ObjectName) -> Result<(File, u64)> {
        let path = self.path(name);
        // Whatever somebody put there, opening it ends.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Err(Error::not_found(name)),
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let metadata = file.metadata().map_err(io_error("look at", &path))?;
        if metadata.is_file() { Ok((file, metadata.len())) } else { Err(Error::not_found(name)) }
    }

    /// Gives a flushed draft its name.
    fn place(&self, name: &ObjectName, draft: &Draft) -> Result<Put> {
        draft.sync()?;
        let to = self.path(name);
        let Some(parent) = to.parent() else { return Err(Error::Invalid(format!("{} has no folder", to.display()))) };
        for _ in 0..PLACE_TRIES {
            match DirBuilder::new().recursive(true).mode(0o700).create(parent) {
                Ok(()) => {}
                Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::AlreadyExists => {
                    self.check_unobstructed(name, parent)?;
                    continue;
                }
                Err(error) => return Err(Error::io("make", parent, error)),
            }
            let put = match draft.place(&to)? {
                Placed::Done => Put::Stored,
                Placed::Taken => Put::Exists,
                Placed::NoFolder => continue,
            };
            if put == Put::Exists && to.is_dir() {
                return Err(Error::Invalid(format!("{name} is a folder of objects and cannot be an object too")));
            }
            self.sync_up(parent)?;
            return Ok(put);
        }
        Err(Error::unavailable(format!("the folder of {name} was removed each time it was made")))
    }

    /// Tells an object in the place of a folder from a folder that is removed at the same time.
    fn check_unobstructed(&self, name: &ObjectName, parent: &Path) -> Result<()> {
        for folder in parent.ancestors().take_while(|folder| *folder != &*self.objects) {
            if fs::symlink_metadata(folder).is_ok_and(|metadata| !metadata.is_dir()) {
                return Err(Error::Invalid(format!(
                    "a part of the name {name} is an object itself and cannot be a folder of objects"
                )));
            }
        }
        Ok(())
    }

    /// Flushes a folder and those above it up to `objects`: another writer may have made them a moment ago.
    fn sync_up(&self, from: &Path) -> Result<()> {
        for folder in from.ancestors() {
            sync_dir(folder)?;
            if folder == &*self.objects {
                break;
            }
        }
        Ok(())
    }

    /// Removes a file, and the folders that it leaves empty.
    fn remove(&self, name: &ObjectName) -> Result<()> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::IsADirectory => return Ok(()),
            Err(error) => return Err(Error::io("remove", &path, error)),
        }
        for folder in path.ancestors().skip(1) {
            if folder == &*self.objects {
                return sync_dir(folder);
            }
            match fs::remove_dir(folder) {
                // Not empty, or another deletion was first: the flush of what is there is what counts.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return sync_dir(folder),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", folder, error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Backend for Folder {
    async fn put(&self, name: &ObjectName, data: Bytes) -> Result<Put> {
        let (folder, name) = (self.clone(), name.clone());
        blocking(move || {
            let draft = Draft::create(&folder.work)?;
            draft.write_at(&data, 0)?;
            folder.place(&name, &draft)
        })
        .await
    }

    async fn begin(&self, name: &ObjectName) -> Result<Box<dyn Upload>> {
        let (folder, name) = (self.clone(), name.clone());
        blocking(move || {
            let draft = Arc::new(Draft::create(&folder.work)?);
            Ok(Box::new(FolderUpload { folder, name, draft }) as Box<dyn Upload>)
        })
        .await
    }

    async fn get(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Reading> {
        let (folder, wanted) = (self.clone(), name.clone());
        let (file, object_bytes) = blocking(move || folder.file(&wanted)).await?;
        let range = range.unwrap_or(0..object_bytes);
        let (file, path) = (Arc::new(file), Arc::<Path>::from(self.path(name)));
        let body = stream::try_unfold(range, move |range| {
            let (file, path) = (Arc::clone(&file), Arc::clone(&path));
            async move {
                if range.is_empty() {
                    return Ok(None);
                }
                let bytes = blocking(move || {
                    let length = (range.end - range.start).min(READ_BYTES);
                    let mut buffer = vec![0; usize::try_from(length).unwrap_or(0)];
                    let read = read_at(&file, &mut buffer, range.start).map_err(io_error("read", &path))?;
                    buffer.truncate(read);
                    Ok((Bytes::from(buffer), range))
                })
                .await?;
                let (bytes, range) = bytes;
                let next = range.start + bytes.len() as u64;
                Ok(if bytes.is_empty() { None } else { Some((bytes, next..range.end)) })
            }
        });
        Ok(Reading { object_bytes, mark: None, body: body.boxed() })
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        let path = self.path(name);
        blocking(move || match fs::symlink_metadata(&path) {
            Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(Error::io("look at", &path, error)),
        })
        .await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        let (folder, name) = (self.clone(), name.clone());
        blocking(move || folder.remove(&name)).await
    }

    fn list(&self, below: Option<&ObjectName>) -> Box<dyn Pages> {
        let (sender, receiver) = mpsc::channel(LISTED_AHEAD);
        let (objects, below) = (Arc::clone(&self.objects), below.cloned());
        // Ends when the listing is dropped: the next send fails.
        tokio::task::spawn_blocking(move || {
            let outcome = walk(&objects, below.as_ref(), |entry| sender.blocking_send(Ok(entry)).is_ok());
            if let Err(error) = outcome {
                let _ = sender.blocking_send(Err(error));
            }
        });
        Box::new(FolderPages(receiver))
    }
}

/// Entries from the thread that walks the folder.
struct FolderPages(mpsc::Receiver<Result<Entry>>);

#[async_trait]
impl Pages for FolderPages {
    async fn next(&mut self) -> Result<Option<Vec<Entry>>> {
        let mut page = Vec::new();
        self.0.recv_many(&mut page, LISTED_AHEAD).await;
        if page.is_empty() { Ok(None) } else { page.into_iter().collect::<Result<_>>().map(Some) }
    }
}

/// An object whose parts are written into one draft.
#[derive(Debug)]
struct FolderUpload {
    folder: Folder,
    name: ObjectName,
    draft: Arc<Draft>,
}

#[async_trait]
impl Upload for FolderUpload {
    async fn part(&self, index: usize, data: Bytes) -> Result<()> {
        let draft = Arc::clone(&self.draft);
        blocking(move || draft.write_at(&data, index as u64 * PART_BYTES as u64)).await
    }

    async fn complete(&self) -> Result<Put> {
        if self.draft.is_gone() {
            return Err(Error::not_found(&self.name));
        }
        let (folder, name, draft) = (self.folder.clone(), self.name.clone(), Arc::clone(&self.draft));
        blocking(move || folder.place(&name, &draft)).await
    }

    async fn abort(&self) -> Result<()> {
        let draft = Arc::clone(&self.draft);
        blocking(move || {
            draft.discard();
            Ok(())
        })
        .await
    }
}

/// Calls `take` for each object below a folder until it returns false. Objects that come or go meanwhile may be missed.
fn walk(objects: &Path, below: Option<&ObjectName>, mut take: impl FnMut(Entry) -> bool) -> Result<()> {
    let start = below.map_or_else(|| objects.to_owned(), |name| objects.join(name.as_str()));
    let prefix = below.map_or_else(String::new, |name| format!("{name}/"));
    let mut open: VecDeque<(String, PathBuf, ReadDir)> = VecDeque::new();
    open.extend(open_dir(&start)?.map(|entries| (prefix, start, entries)));
    while let Some((prefix, path, entries)) = open.back_mut() {
        let Some(entry) = entries.next() else {
            open.pop_back();
            continue;
        };
        let entry = entry.map_err(io_error("read", path))?;
        // Files that others put here are no objects.
        let Some(name) = entry.file_name().to_str().and_then(|file| ObjectName::parse(&format!("{prefix}{file}")).ok())
        else {
            tracing::debug!(path = %entry.path().display(), "not the name of an object");
            continue;
        };
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(Error::io("look at", &entry.path(), error)),
        };
        if metadata.is_dir() {
            let path = entry.path();
            open.extend(open_dir(&path)?.map(|entries| (format!("{name}/"), path, entries)));
        } else if metadata.is_file() {
            let modified = metadata.modified().map_err(io_error("look at", &entry.path()))?;
            if !take(Entry { name, bytes: metadata.len(), modified }) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Opens a folder for reading; `None` when it does not exist.
fn open_dir(path: &Path) -> Result<Option<ReadDir>> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(Some(entries)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn sync_dir(path: &Path) -> Result<()> {
    match File::open(path).and_then(|dir| dir.sync_all()) {
        // Its last object was deleted, and it with it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(io_error("flush", path)),
    }
}

/// Fills a buffer from an offset; returns less than its length only at the end of the file.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(bytes) => read += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Runs work on files on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::unavailable("the process is shutting down")),
    }
}
