//! Layers or a tar into an ext4 image: the reader on one thread, the writer on another.
//!
//! ```text
//!   reader thread (nullspace-oci)                     writer thread (nullspace-ext4)
//!     decompress, hash, merge ──bounded channel──>      blocks of file contents, as they come
//!     merged tree ───────────────────────────────>      directories, inodes, journal: the image
//! ```
//! Names from an image exist only in the two trees in memory; what is opened on this host is one file of ours.
//!
//! # Keys
//! A root image's key is BLAKE3 over length-prefixed parts: kind of source, its digest (an image's *manifest*, so that
//! a moved tag is another key and an index that only gained platforms is not), platform, [`IMPORTER`] and the disk's
//! size. Equal keys mean equal bytes: identifiers inside the filesystem come from the key, times are fixed.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nullspace_api::TemplateFailurePhase as Phase;
use nullspace_ext4::{FileData, ImageWriter, NodeId, Options, Summary, Tree};
use nullspace_oci::merge::{ContentSink, EntryKind, MergedTree, Meta, SinkError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use crate::failure::{BuildFailure, reason};
use crate::logs::BuildLog;

/// Version of what an import makes of the same source; raise it when the bytes change.
pub(crate) const IMPORTER: &str = "1";
/// Disk of the base template.
pub(crate) const BASE_DISK_BYTES: u64 = 4 << 30;
/// Smallest disk that is chosen when the request names none, MiB.
const DEFAULT_DISK_MIB: u64 = 4 << 10;
/// Room beside the image's own content when the request names none, MiB.
const HEADROOM_MIB: u64 = 1 << 10;
/// Messages between the two threads: with pieces of up to 256 KiB, at most 16 MiB.
const QUEUED: usize = 64;
/// Between two progress lines.
const EVERY: Duration = Duration::from_secs(2);

/// What an import made.
#[derive(Debug)]
pub(crate) struct Imported {
    /// Files, directories and links.
    pub(crate) entries: u64,
    /// Bytes of file contents, holes left out.
    pub(crate) content_bytes: u64,
}

/// Disk of a template made from an image: as asked, or the content by a generous guess and headroom. Blocks that nobody
/// writes cost nothing.
pub(crate) fn disk_bytes(asked_mib: Option<u32>, compressed_bytes: u64) -> u64 {
    let mib = match asked_mib {
        Some(asked) => u64::from(asked),
        None => {
            let content = (compressed_bytes >> 20).saturating_mul(5);
            DEFAULT_DISK_MIB.max(content.saturating_add(HEADROOM_MIB).next_multiple_of(512))
        }
    };
    mib.saturating_mul(1 << 20)
}

/// Key of an image's root.
pub(crate) fn image_key(manifest_digest: &str, disk_bytes: u64) -> String {
    key(&["image", manifest_digest, std::env::consts::ARCH, IMPORTER, &disk_bytes.to_string()])
}

/// Key of the base template's root.
pub(crate) fn tar_key(sha256: &str) -> String {
    key(&["tar", sha256, std::env::consts::ARCH, IMPORTER, &BASE_DISK_BYTES.to_string()])
}

fn key(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// Imports that run in this process: whoever wants the same key waits for the first and finds its result.
#[derive(Default)]
pub(crate) struct InFlight {
    keys: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl InFlight {
    pub(crate) async fn enter(&self, key: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.retain(|_, lock| lock.strong_count() > 0);
            match keys.get(key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::default();
                    keys.insert(key.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

/// Progress of an import as log lines, at a humane rate. Called from the reader's thread.
pub(crate) struct Lines {
    lines: tokio::sync::mpsc::Sender<String>,
    last: Mutex<Instant>,
}

impl Lines {
    pub(crate) fn new(log: BuildLog, tasks: &TaskTracker) -> Lines {
        let (lines, mut said) = tokio::sync::mpsc::channel::<String>(1);
        tasks.spawn(async move {
            while let Some(line) = said.recv().await {
                if log.say("prepare", line).await.is_err() {
                    return;
                }
            }
        });
        Lines { lines, last: Mutex::new(Instant::now()) }
    }

    /// Says it, unless something was said a moment ago.
    pub(crate) fn say(&self, line: impl FnOnce() -> String) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= EVERY {
            *last = Instant::now();
            // Full: the log is slower than we are; the next line will do.
            let _ = self.lines.try_send(line());
        }
    }
}

/// Imports a root tree's tar whose SHA-256 is known.
pub(crate) async fn tar(path: PathBuf, sha256: String, target: Target) -> Result<Imported, BuildFailure> {
    let cancel = target.cancel.clone();
    let (sink, writing) = target.begin()?;
    let merged = blocking(move || {
        // Read twice, but hashed first: what was pinned is what is imported.
        let found = crate::builtin::sha256(&path).map_err(|error| BuildFailure::internal(Phase::Prepare, &error))?;
        if found != sha256 {
            let message = "the tar of the base template has changed since this build was accepted";
            return Err(BuildFailure::user(Phase::Prepare, reason::INVALID_IMAGE, message, "Restart the service."));
        }
        let file = File::open(&path).map_err(|error| BuildFailure::internal(Phase::Prepare, &error))?;
        let reader = Cancellable { inner: file, cancel };
        let imported = nullspace_oci::import::import_tar(reader, sink, &Default::default());
        imported.map(|imported| imported.tree).map_err(|error| crate::image::layer_failed(&error, &error))
    })
    .await;
    writing.finish(merged).await
}

/// A reader that ends when the build does.
struct Cancellable<R> {
    inner: R,
    cancel: CancellationToken,
}

impl<R: Read> Read for Cancellable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(std::io::Error::other("the build was stopped"));
        }
        self.inner.read(buffer)
    }
}

/// Runs a job on a thread of its own and waits for it.
async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, BuildFailure> + Send + 'static,
) -> Result<T, BuildFailure> {
    let done = tokio::task::spawn_blocking(job).await;
    done.unwrap_or_else(|error| Err(BuildFailure::internal(Phase::Prepare, &error)))
}

/// The image file to write.
pub(crate) struct Target {
    pub(crate) file: File,
    pub(crate) key: String,
    pub(crate) disk_bytes: u64,
    /// Ends the import.
    pub(crate) cancel: CancellationToken,
    /// Held by the writer's thread, which ends last: the file's folder stays until then.
    pub(crate) busy: TaskTrackerToken,
}

impl Target {
    /// Starts the writer's thread.
    pub(crate) fn begin(self) -> Result<(Sink, Writing), BuildFailure> {
        let options = options(&self.key, self.disk_bytes);
        let image = ImageWriter::create(self.file, options).map_err(|error| written(&error))?;
        let (ops, queue) = sync_channel(QUEUED);
        let busy = self.busy.clone();
        let thread = std::thread::Builder::new().name("image-writer".to_owned()).spawn(move || {
            let _busy = busy;
            write(image, queue)
        });
        let thread = thread.map_err(|error| BuildFailure::internal(Phase::Prepare, &error))?;
        Ok((Sink { ops, next: 0, buffer: Vec::new() }, Writing { thread, busy: self.busy }))
    }
}

/// The writer's thread, from outside.
pub(crate) struct Writing {
    thread: JoinHandle<Result<(ImageWriter, Vec<FileData>), WriteError>>,
    busy: TaskTrackerToken,
}

impl Writing {
    /// Waits for the contents and writes what `merged` says of them. The sink must be gone by now.
    pub(crate) async fn finish(
        self,
        merged: Result<MergedTree<Content>, BuildFailure>,
    ) -> Result<Imported, BuildFailure> {
        blocking(move || {
            let _busy = self.busy;
            match self.thread.join().unwrap_or(Err(WriteError::Died)) {
                // The cause, when both have failed: the reader only saw its channel close.
                Err(WriteError::Ext4(error)) => Err(written(&error)),
                Err(error @ WriteError::Died) => Err(BuildFailure::internal(Phase::Prepare, &error)),
                Ok((image, contents)) => finish(image, contents, merged?),
            }
        })
        .await
    }
}

/// Everything in the image that is not its content, from the key.
fn options(key: &str, disk_bytes: u64) -> Options {
    let id = |name: &str| {
        let hash = blake3::keyed_hash(blake3::hash(name.as_bytes()).as_bytes(), key.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.as_bytes()[..16]);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    };
    let (uuid, hash_seed): (Uuid, Uuid) = (id("filesystem"), id("directories"));
    Options { label: "nullspace".to_owned(), ..Options::new(disk_bytes, uuid, hash_seed, Default::default()) }
}

/// Which file a content is, in the order of arrival.
pub(crate) type Content = u32;

/// Bytes of one message.
const PIECE: usize = 256 * 1024;

enum Op {
    Bytes(Vec<u8>),
    Hole(u64),
    /// The file is complete; a file begins with its first byte or with this.
    End,
}

/// The reader's end of the channel.
pub(crate) struct Sink {
    ops: SyncSender<Op>,
    next: Content,
    buffer: Vec<u8>,
}

impl Sink {
    fn send(&self, op: Op) -> Result<(), SinkError> {
        self.ops.send(op).map_err(|_| SinkError::new("the image's writer stopped"))
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.send(Op::Bytes(piece))
    }
}

impl ContentSink for Sink {
    type Content = Content;

    fn begin(&mut self, size: u64) -> Result<(), SinkError> {
        // Small files get small buffers: there are tens of thousands of them in the queue's time.
        if let Ok(size) = usize::try_from(size)
            && size < PIECE
        {
            self.buffer = Vec::with_capacity(size);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        if self.buffer.len() + bytes.len() > PIECE {
            self.flush()?;
        }
        if bytes.len() >= PIECE {
            return self.send(Op::Bytes(bytes.to_vec()));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<(), SinkError> {
        self.flush()?;
        self.send(Op::Hole(len))
    }

    fn finish(&mut self) -> Result<Content, SinkError> {
        self.flush()?;
        self.send(Op::End)?;
        let content = self.next;
        self.next = content.checked_add(1).ok_or_else(|| SinkError::new("more than 4294967295 files"))?;
        Ok(content)
    }
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Ext4(#[from] nullspace_ext4::Error),
    #[error("the image's writer died")]
    Died,
}

/// The writer's thread: contents in their order of arrival.
fn write(mut image: ImageWriter, queue: Receiver<Op>) -> Result<(ImageWriter, Vec<FileData>), WriteError> {
    let mut contents = Vec::new();
    'files: loop {
        let mut file = image.begin_file();
        loop {
            match queue.recv() {
                Ok(Op::Bytes(bytes)) => file.push(&bytes)?,
                Ok(Op::Hole(length)) => file.push_hole(length)?,
                Ok(Op::End) => {
                    contents.push(file.finish()?);
                    continue 'files;
                }
                // The reader is done, or gave up in the middle of a file.
                Err(_) => break 'files,
            }
        }
    }
    Ok((image, contents))
}

/// Names for the contents, and everything else that makes the image a filesystem.
fn finish(image: ImageWriter, contents: Vec<FileData>, merged: MergedTree<Content>) -> Result<Imported, BuildFailure> {
    let mut contents: Vec<Option<FileData>> = contents.into_iter().map(Some).collect();
    let mut tree = Tree::new(nullspace_ext4::Meta::default()).map_err(|error| written(&error))?;
    // Index of an entry -> its node. A directory comes before what is in it, a hard link after what it refers to.
    let mut nodes: Vec<NodeId> = Vec::with_capacity(merged.entries().len());
    for (index, entry) in merged.entries().iter().enumerate() {
        let parent = nodes.get(entry.parent).copied().unwrap_or(Tree::ROOT);
        let name = &entry.name;
        let added = match &entry.kind {
            EntryKind::Directory { meta: root } if index == 0 => {
                tree.set_meta(Tree::ROOT, meta(root)).map(|()| Tree::ROOT)
            }
            EntryKind::Directory { meta: of } => tree.add_dir(parent, name, meta(of)),
            EntryKind::Symlink { meta: of, target } => tree.add_symlink(parent, name, meta(of), target),
            EntryKind::HardLink { to } => {
                let node = nodes.get(*to).copied().unwrap_or(Tree::ROOT);
                tree.link(parent, name, node).map(|()| node)
            }
            EntryKind::File { meta: of, content, .. } => {
                let data = contents.get_mut(*content as usize).and_then(Option::take);
                let data =
                    data.ok_or_else(|| BuildFailure::internal(Phase::Prepare, &"a file's content is used twice"))?;
                tree.add_file(parent, name, meta(of), data)
            }
        };
        let node = added
            .map_err(|error| written(&error).with("path", String::from_utf8_lossy(&merged.path(index)).into_owned()))?;
        nodes.push(node);
    }
    let Summary { content_blocks, .. } = image.finish(tree).map_err(|error| written(&error))?;
    Ok(Imported { entries: nodes.len() as u64, content_bytes: content_blocks * nullspace_ext4::BLOCK_SIZE })
}

fn meta(meta: &Meta) -> nullspace_ext4::Meta {
    nullspace_ext4::Meta {
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        mtime: nullspace_ext4::Timestamp { seconds: meta.mtime.seconds, nanoseconds: meta.mtime.nanos },
        xattrs: meta.xattrs.clone(),
    }
}

/// An ext4 error in the user's terms.
fn written(error: &nullspace_ext4::Error) -> BuildFailure {
    match error {
        nullspace_ext4::Error::TooSmall { size_bytes, needed_bytes } => {
            let (size, needed) = (size_bytes >> 20, needed_bytes.div_ceil(1 << 20));
            BuildFailure::user(
                Phase::Prepare,
                reason::DISK_TOO_SMALL,
                format!("the image needs at least {needed} MiB, its disk has {size} MiB"),
                format!("Set build_config.disk_mb to at least {}.", needed + needed / 4),
            )
            .with("needed_mb", needed)
        }
        nullspace_ext4::Error::Io { .. } => BuildFailure::internal(Phase::Prepare, error),
        other => BuildFailure::user(
            Phase::Prepare,
            reason::INVALID_IMAGE,
            format!("the image cannot be stored as a filesystem: {other}"),
            "Mend the file that the message names and build the image again.",
        ),
    }
}
