//! A filesystem tree written as an ext4 image: without root, without mounting, without mke2fs.
//!
//! An image importer reads file contents long before it knows the whole tree, and must not touch a byte twice. So
//! writing has two halves. File contents go to the image *as they arrive* and come back as a [`FileData`], a list of
//! extents. The tree that names them is handed over at the end, and everything that describes it is written behind
//! the contents:
//!
//! ```text
//!  ImageWriter::create(file, options)
//!      |
//!      |   begin_file().push(bytes)... .finish() -> FileData      (contents, streamed, zero runs become holes)
//!      v
//!  [sb gdt | contents of all files ............ | (free) ........................ | (free) ...]
//!      |
//!      |   finish(Tree { names, metadata, FileData })
//!      v
//!  [sb gdt | contents of all files ............ | journal, bitmaps, inode tables, directories | (free) ...]
//! ```
//!
//! What comes out is what `mke2fs -t ext4` of e2fsprogs 1.47 would lay down for that size, feature for feature:
//! 4 KiB blocks, 256-byte inodes, extents, 64bit, flex_bg, metadata_csum, a journal, indexed directories, and reserved
//! descriptor blocks so that a running kernel can grow the filesystem. `e2fsck -fn` finds nothing to say about it.
//! Inode tables and unused bitmaps are left as holes, so cost follows the contents and not the size of the disk.
//!
//! The same calls with the same [`Options`] give the same bytes: identifiers and times come from the caller.
//!
//! Names, link targets, attributes and numbers may come from a hostile image: each is checked, and refused with an
//! [`Error`] that says what was wrong.
//!
//! [`grow()`] enlarges an image, [`Superblock::read`] tells its size and free space. Device nodes, sockets, encryption, quotas and reading
//! files back are not in here.
//!
//! The on-disk format follows the kernel's `Documentation/filesystems/ext4/` and, where that is silent, the kernel's
//! `fs/ext4` and e2fsprogs.
//! # Example
//!
//! ```
//! use nullspace_ext4::{ImageWriter, Meta, Options, Superblock, Timestamp, Tree};
//! use uuid::Uuid;
//!
//! let file = tempfile::tempfile()?;
//! let time = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
//! let mut writer = ImageWriter::create(file.try_clone()?, Options::new(64 << 20, Uuid::from_u128(1), Uuid::from_u128(2), time))?;
//!
//! let mut contents = writer.begin_file();
//! contents.push(b"hello\n")?;
//! let contents = contents.finish()?;
//!
//! let directory = || Meta { mode: 0o755, ..Meta::default() };
//! let mut tree = Tree::new(directory())?;
//! let etc = tree.add_dir(Tree::ROOT, b"etc", directory())?;
//! tree.add_file(etc, b"greeting", Meta { mode: 0o644, ..Meta::default() }, contents)?;
//! writer.finish(tree)?;
//!
//! let superblock = Superblock::read(&file)?;
//! assert_eq!(superblock.uuid(), Uuid::from_u128(1));
//! assert!(superblock.is_clean() && superblock.free_bytes() < 64 << 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod acl;
mod block_map;
mod checksum;
mod content;
mod directory;
mod error;
mod extent;
mod file;
mod finish;
mod geometry;
mod group;
mod grow;
mod hash;
mod inode;
mod journal;
mod le;
mod meta;
mod nodes;
mod number;
mod options;
mod output;
mod resize_inode;
mod superblock;
mod tables;
mod tree;
mod writer;
mod xattr;

pub use error::{Error, NameFault, XattrFault};
pub use extent::FileData;
pub use file::FileWriter;
pub use grow::grow;
pub use meta::{Meta, NodeKind, Timestamp};
pub use options::{Options, Summary};
pub use superblock::Superblock;
pub use tree::{NodeId, Tree};
pub use writer::ImageWriter;

/// Bytes of a block. The only size this crate writes, and the one every kernel with 4 KiB pages likes best.
pub const BLOCK_SIZE: u64 = 4096;

/// [`BLOCK_SIZE`] for buffers.
pub(crate) const BLOCK: usize = 4096;
