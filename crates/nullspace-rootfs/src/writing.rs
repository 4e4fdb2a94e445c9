//! The writer's thread, and its completion after the last contents.

use std::fs::File;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, JoinHandle};

use nullspace_ext4::{BLOCK_SIZE, FileData, ImageWriter, NodeId, Options, Summary, Tree};
use nullspace_oci::merge::{EntryKind, MergedTree, Meta};

use crate::Error;
use crate::sink::{Content, Op, Sink};

/// Messages between the two threads: with pieces of up to 256 KiB, at most 16 MiB.
const QUEUED: usize = 64;

/// Summary of a finished image.
#[derive(Debug)]
pub struct Written {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of file contents in whole blocks, holes left out.
    pub content_bytes: u64,
}

/// Starts writing an image into `file`, which must be empty. `held` is dropped at the very end of the writer's thread. It can
/// keep resources that must outlive the use of the file.
pub fn begin<H: Send + 'static>(file: File, options: Options, held: H) -> Result<(Sink, Writing), Error> {
    let mut image = ImageWriter::create(file, options)?;
    // Read to its end, an image that does not fit has one error, with the size that it needs.
    image.count_what_does_not_fit();
    let (ops, queue) = sync_channel(QUEUED);
    let thread = Builder::new().name("image-writer".to_owned()).spawn(move || {
        let _held = held;
        write(image, &queue)
    });
    Ok((Sink::new(ops), Writing { thread: thread.map_err(Error::Thread)? }))
}

/// Handle of the writer's thread.
#[derive(Debug)]
pub struct Writing {
    thread: JoinHandle<Result<(ImageWriter, Vec<FileData>), Error>>,
}

impl Writing {
    /// Waits for the contents, then names them as `tree` does and completes the image. Blocks. The sink must be gone.
    ///
    /// When the import failed, `tree` is its error; it comes back unless the writer's own explains it: a reader only
    /// sees its channel close.
    pub fn finish<E: From<Error>>(self, tree: Result<MergedTree<Content>, E>) -> Result<Written, E> {
        let (image, contents) = self.thread.join().unwrap_or(Err(Error::Died))?;
        Ok(name(image, contents, tree?)?)
    }
}

/// The writer's thread: contents in their order of arrival.
fn write(mut image: ImageWriter, queue: &Receiver<Op>) -> Result<(ImageWriter, Vec<FileData>), Error> {
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
fn name(image: ImageWriter, contents: Vec<FileData>, merged: MergedTree<Content>) -> Result<Written, Error> {
    let mut contents: Vec<Option<FileData>> = contents.into_iter().map(Some).collect();
    let mut tree = Tree::new(nullspace_ext4::Meta::default())?;
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
            EntryKind::Symlink { meta: of, target } => {
                // As every link on Linux has them, whatever the archive says: links have no permissions of their own.
                let meta = nullspace_ext4::Meta { mode: 0o777, ..meta(of) };
                tree.add_symlink(parent, name, meta, target)
            }
            EntryKind::HardLink { to } => {
                let node = nodes.get(*to).copied().ok_or(Error::ForeignTree)?;
                tree.link(parent, name, node).map(|()| node)
            }
            EntryKind::File { meta: of, content, .. } => {
                let data = contents.get_mut(*content as usize).and_then(Option::take).ok_or(Error::ForeignTree)?;
                tree.add_file(parent, name, meta(of), data)
            }
        };
        let path = || Some(String::from_utf8_lossy(&merged.path(index)).into_owned());
        nodes.push(added.map_err(|source| Error::Ext4 { path: path(), source })?);
    }
    let Summary { content_blocks, .. } = image.finish(tree)?;
    Ok(Written { entries: nodes.len() as u64, content_bytes: content_blocks.saturating_mul(BLOCK_SIZE) })
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
