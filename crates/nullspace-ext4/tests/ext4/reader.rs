//! A reader of ext4 that shares nothing with the writer: what it finds is what a kernel would find, but for indexes,
//! journals and checksums, which e2fsck judges.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

const BLOCK: u64 = 4096;

/// One name of an image, with all that is known about its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// With the type bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
    pub(crate) links: u16,
    /// Contents of a file, target of a link, nothing for a directory.
    pub(crate) contents: Vec<u8>,
    /// As the kernel would show them.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub(crate) struct Reader {
    file: File,
    inodes_per_group: u32,
}

struct Inode {
    number: u32,
    raw: Vec<u8>,
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes[offset..offset + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

impl Reader {
    pub(crate) fn open(file: File) -> Reader {
        let mut reader = Reader { file, inodes_per_group: 0 };
        let first = reader.block(0);
        assert_eq!(u16_at(&first, 1024 + 0x38), 0xef53, "superblock");
        reader.inodes_per_group = u32_at(&first, 1024 + 0x28);
        reader
    }

    /// Every name but the root's, by path (`a/b/c`), and the root under the empty path. `lost+found` is left out if it
    /// is empty.
    pub(crate) fn tree(&self) -> BTreeMap<Vec<u8>, Found> {
        let mut found = BTreeMap::new();
        let mut open = vec![(Vec::new(), 2)];
        while let Some((path, number)) = open.pop() {
            let inode = self.inode(number);
            if inode.mode() & 0o170_000 == 0o040_000 {
                let entries = self.entries(&inode);
                if path == b"lost+found" && entries.is_empty() {
                    continue;
                }
                for (name, child) in entries {
                    let separator = if path.is_empty() { &b""[..] } else { b"/" };
                    open.push(([&path[..], separator, &name].concat(), child));
                }
            }
            assert!(found.insert(path, self.found(&inode)).is_none());
        }
        found
    }

    fn found(&self, inode: &Inode) -> Found {
        let raw = &inode.raw;
        let wide = |low, high| u32::from(u16_at(raw, low)) | u32::from(u16_at(raw, high)) << 16;
        let extra = u32_at(raw, 0x88);
        let contents = match inode.mode() & 0o170_000 {
            0o040_000 => Vec::new(),
            0o120_000 if !inode.has_extents() => raw[0x28..0x28 + inode.size() as usize].to_vec(),
            _ => self.contents(inode),
        };
        Found {
            mode: inode.mode(),
            uid: wide(0x02, 0x78),
            gid: wide(0x18, 0x7a),
            seconds: i64::from(u32_at(raw, 0x10).cast_signed()) + (i64::from(extra & 3) << 32),
            nanoseconds: extra >> 2,
            links: u16_at(raw, 0x1a),
            contents,
            xattrs: self.xattrs(inode),
        }
    }

    fn block(&self, number: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        self.file.read_exact_at(&mut block, number * BLOCK).unwrap();
        block
    }

    fn inode(&self, number: u32) -> Inode {
        let (group, index) = ((number - 1) / self.inodes_per_group, (number - 1) % self.inodes_per_group);
        let descriptors = self.block(1 + u64::from(group) / 64);
        let descriptor = &descriptors[group as usize % 64 * 64..][..64];
        let table = u64::from(u32_at(descriptor, 0x08)) | u64::from(u32_at(descriptor, 0x28)) << 32;
        let mut raw = vec![0; 256];
        self.file.read_exact_at(&mut raw, table * BLOCK + u64::from(index) * 256).unwrap();
        Inode { number, raw }
    }

    fn contents(&self, inode: &Inode) -> Vec<u8> {
        let size = inode.size() as usize;
        let mut contents = vec![0; size.next_multiple_of(BLOCK as usize)];
        assert!(inode.has_extents());
        self.extents(&inode.raw[0x28..0x64], &mut |logical, start, len| {
            let at = logical as usize * BLOCK as usize;
            let part = &mut contents[at..at + len as usize * BLOCK as usize];
            self.file.read_exact_at(part, start * BLOCK).unwrap();
        });
        contents.truncate(size);
        contents
    }

    fn extents(&self, node: &[u8], each: &mut dyn FnMut(u32, u64, u16)) {
        assert_eq!(u16_at(node, 0), 0xf30a, "extent magic");
        let (count, depth) = (usize::from(u16_at(node, 2)), u16_at(node, 6));
        for entry in node[12..].chunks(12).take(count) {
            if depth == 0 {
                let start = u64::from(u32_at(entry, 8)) | u64::from(u16_at(entry, 6)) << 32;
                each(u32_at(entry, 0), start, u16_at(entry, 4));
            } else {
                let child = u64::from(u32_at(entry, 4)) | u64::from(u16_at(entry, 8)) << 32;
                self.extents(&self.block(child), each);
            }
        }
    }

    /// The entries in the order of the blocks; index blocks look empty from here, as they are meant to.
    fn entries(&self, directory: &Inode) -> Vec<(Vec<u8>, u32)> {
        let contents = self.contents(directory);
        let mut entries = Vec::new();
        for block in contents.chunks(BLOCK as usize) {
            let mut position = 0;
            while position < block.len() {
                let entry = &block[position..];
                let (number, name_len) = (u32_at(entry, 0), usize::from(entry[6]));
                if number != 0 {
                    let name = entry[8..8 + name_len].to_vec();
                    match &name[..] {
                        b"." => assert_eq!(number, directory.number),
                        b".." => {}
                        _ => entries.push((name, number)),
                    }
                }
                position += usize::from(u16_at(entry, 4));
            }
        }
        entries
    }

    fn xattrs(&self, inode: &Inode) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut xattrs = BTreeMap::new();
        let inside = 128 + usize::from(u16_at(&inode.raw, 0x80));
        if u32_at(&inode.raw, inside) == 0xea02_0000 {
            let area = &inode.raw[inside + 4..];
            self.read_entries(area, area, &mut xattrs);
        }
        let block = u64::from(u32_at(&inode.raw, 0x68)) | u64::from(u16_at(&inode.raw, 0x76)) << 32;
        if block != 0 {
            let block = self.block(block);
            assert_eq!(u32_at(&block, 0), 0xea02_0000, "attribute magic");
            self.read_entries(&block[32..], &block, &mut xattrs);
        }
        xattrs
    }

    /// A value that has an inode of its own.
    fn outside(&self, number: u32, size: usize) -> Vec<u8> {
        let inode = self.inode(number);
        assert_eq!(inode.mode() & 0o170_000, 0o100_000);
        assert!(u32_at(&inode.raw, 0x20) & 0x20_0000 != 0, "the inode of a value is marked as one");
        assert_eq!((u16_at(&inode.raw, 0x1a), u32_at(&inode.raw, 0x24)), (1, 1), "links and users");
        let value = self.contents(&inode);
        assert_eq!(value.len(), size);
        value
    }

    fn read_entries(&self, mut entries: &[u8], values: &[u8], into: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
        while u32_at(entries, 0) != 0 {
            let (name_len, namespace) = (usize::from(entries[0]), entries[1]);
            let (offset, size) = (usize::from(u16_at(entries, 2)), u32_at(entries, 8) as usize);
            let value = match u32_at(entries, 4) {
                0 => values[offset..offset + size].to_vec(),
                inode => self.outside(inode, size),
            };
            let prefix: &[u8] = match namespace {
                1 => b"user.",
                2 => b"system.posix_acl_access",
                3 => b"system.posix_acl_default",
                4 => b"trusted.",
                6 => b"security.",
                other => panic!("namespace {other}"),
            };
            let value = if matches!(namespace, 2 | 3) { acl_attribute(&value) } else { value };
            let name = [prefix, &entries[16..16 + name_len]].concat();
            assert!(into.insert(name, value).is_none());
            entries = &entries[(16 + name_len).next_multiple_of(4)..];
        }
    }
}

impl Inode {
    fn mode(&self) -> u16 {
        u16_at(&self.raw, 0)
    }

    fn size(&self) -> u64 {
        u64::from(u32_at(&self.raw, 4)) | u64::from(u32_at(&self.raw, 0x6c)) << 32
    }

    fn has_extents(&self) -> bool {
        u32_at(&self.raw, 0x20) & 0x8_0000 != 0
    }
}

/// An access control list as the kernel hands it out, from what is stored.
fn acl_attribute(stored: &[u8]) -> Vec<u8> {
    assert_eq!(u32_at(stored, 0), 1, "version");
    let mut value = 2u32.to_le_bytes().to_vec();
    let mut rest = &stored[4..];
    while !rest.is_empty() {
        let named = matches!(u16_at(rest, 0), 0x02 | 0x08);
        let (entry, behind) = rest.split_at(if named { 8 } else { 4 });
        value.extend_from_slice(entry);
        if !named {
            value.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        rest = behind;
    }
    value
}
