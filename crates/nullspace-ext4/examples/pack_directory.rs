//! Packs a directory into an ext4 image, as `mke2fs -d` does.
//!
//! ```text
//! cargo run --release -p nullspace-ext4 --example pack_directory <directory> <image> <MiB>
//! ```
//! Device nodes and sockets are left out. Small as it is, it shows all there is to the interface.

use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nullspace_ext4::{ImageWriter, Meta, NodeId, Options, Timestamp, Tree};
use uuid::Uuid;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, image, mebibytes] = &arguments[..] else {
        return Err("usage: pack_directory <directory> <image> <MiB>".into());
    };
    let size = mebibytes.parse::<u64>()?.checked_mul(1 << 20).ok_or("too large")?;
    let root = Path::new(directory);
    let attributes = fs::symlink_metadata(root)?;
    let time = Timestamp { seconds: attributes.mtime(), nanoseconds: 0 };
    // A real program takes random identifiers, or derives them from what it packs.
    let options = Options::new(size, Uuid::from_u128(1), Uuid::from_u128(2), time);
    let file = File::options().read(true).write(true).create_new(true).open(image)?;
    let mut packer = Packer {
        writer: ImageWriter::create(file, options)?,
        tree: Tree::new(meta(root, &attributes)?)?,
        linked: HashMap::new(),
    };
    packer.pack(root, Tree::ROOT)?;
    let summary = packer.writer.finish(packer.tree)?;
    println!("{} of {} blocks free, {} inodes free", summary.free_blocks, summary.blocks, summary.free_inodes);
    Ok(())
}

struct Packer {
    writer: ImageWriter,
    tree: Tree,
    /// Files with more than one name, by device and inode.
    linked: HashMap<(u64, u64), NodeId>,
}

impl Packer {
    fn pack(&mut self, directory: &Path, parent: NodeId) -> Result<(), Box<dyn Error>> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().ok_or("an entry has no name")?.as_bytes();
            let attributes = fs::symlink_metadata(&path)?;
            let meta = meta(&path, &attributes)?;
            let identity = (attributes.dev(), attributes.ino());
            if attributes.is_dir() {
                let node = self.tree.add_dir(parent, name, meta)?;
                self.pack(&path, node)?;
            } else if let Some(&existing) = self.linked.get(&identity) {
                self.tree.link(parent, name, existing)?;
            } else if attributes.is_symlink() {
                self.tree.add_symlink(parent, name, meta, fs::read_link(&path)?.as_os_str().as_bytes())?;
            } else if attributes.is_file() {
                let mut source = File::open(&path)?;
                let mut contents = self.writer.begin_file();
                let mut buffer = vec![0; 1 << 20];
                loop {
                    let length = source.read(&mut buffer)?;
                    if length == 0 {
                        break;
                    }
                    contents.push(&buffer[..length])?;
                }
                let data = contents.finish()?;
                let node = self.tree.add_file(parent, name, meta, data)?;
                if attributes.nlink() > 1 {
                    self.linked.insert(identity, node);
                }
            }
        }
        Ok(())
    }
}

fn meta(path: &Path, attributes: &fs::Metadata) -> Result<Meta, Box<dyn Error>> {
    Ok(Meta {
        mode: (attributes.mode() & 0o7777) as u16,
        uid: attributes.uid(),
        gid: attributes.gid(),
        mtime: Timestamp { seconds: attributes.mtime(), nanoseconds: u32::try_from(attributes.mtime_nsec())? },
        xattrs: xattrs(path)?,
    })
}

/// Names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

fn xattrs(path: &Path) -> Result<Xattrs, Box<dyn Error>> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut xattrs = Vec::new();
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        xattrs.push((name.to_vec(), value));
    }
    Ok(xattrs)
}
