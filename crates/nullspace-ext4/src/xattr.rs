//! Extended attributes: as many as fit behind the inode's own fields, the others in one block; values for which there is
//! no room there in inodes of their own (`ea_inode`).
//!
//! ```text
//!  inode (256 bytes):  | fields, 160 bytes | magic | entries -> | 0 | ... free ... | <- values |
//!  block (4096 bytes): | header, 32 bytes          | entries -> | 0 | ... free ... | <- values |
//!                                                       └─ inode number ──> inode whose contents are one value
//! ```
//! (kernel documentation: "Extended Attributes"; fs/ext4/xattr.c for `ea_inode`)

use crate::checksum::Checksum;
use crate::error::{Error, XattrFault, readable};
use crate::geometry::{INODE_FIELDS, INODE_SIZE};
use crate::le::{put_u16, put_u32};
use crate::meta::NodeKind;
use crate::{BLOCK, acl};

const MAGIC: u32 = 0xea02_0000;
const BLOCK_HEADER: usize = 32;
/// Room behind the inode's fields, the magic number not counted.
const IN_INODE: usize = INODE_SIZE - INODE_FIELDS - 4;
const IN_BLOCK: usize = BLOCK - BLOCK_HEADER;
/// Four zero bytes end the list of entries.
const END_MARK: usize = 4;
const ENTRY_HEADER: usize = 16;
/// `XATTR_NAME_MAX`, the namespace included.
const MAX_NAME: usize = 255;
/// `XATTR_SIZE_MAX`: a longer value could not be read.
const MAX_VALUE: usize = 64 << 10;

const ACL_ACCESS: u8 = 2;
const ACL_DEFAULT: u8 = 3;
const NAMESPACES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];

/// An attribute as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Attribute {
    namespace: u8,
    // The length before the name: entries of a block are sorted like this.
    name_len: usize,
    name: Box<[u8]>,
    value: Box<[u8]>,
    /// The value has an inode of its own.
    outside: bool,
}

/// The attributes of one file, checked, and known to fit.
#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    in_inode: Vec<Attribute>,
    in_block: Vec<Attribute>,
}

impl Attributes {
    /// Checks attributes of a node of this kind as they come from an archive: names with their namespace, values in the
    /// kernel's formats. None if there are none.
    pub(crate) fn new(pairs: &[(Vec<u8>, Vec<u8>)], kind: NodeKind) -> Result<Option<Box<Attributes>>, Error> {
        let mut all = Vec::with_capacity(pairs.len());
        for (name, value) in pairs {
            let fail = |fault| Error::BadXattr { attribute: readable(name), fault };
            all.push(attribute(name, value, kind == NodeKind::Directory).map_err(fail)?);
        }
        if all.is_empty() {
            return Ok(None);
        }
        all.sort_unstable();
        if let Some(twice) = all.windows(2).find(|pair| {
            let [first, second] = pair else { return false };
            (first.namespace, &first.name) == (second.namespace, &second.name)
        }) {
            let attribute = readable(&twice[0].name);
            return Err(Error::BadXattr { attribute, fault: XattrFault::Duplicate });
        }
        // First come, first served, as the kernel does it when attributes are set one after the other.
        let mut placed = Attributes { in_inode: Vec::new(), in_block: Vec::new() };
        let (mut inode_room, mut block_room) = (IN_INODE - END_MARK, IN_BLOCK - END_MARK);
        let mut place = |attribute: Attribute| {
            let length = attribute.stored_len();
            // A value outside counts among its file's blocks. From a symbolic link that has such and no attribute block,
            // e2fsck concludes that its target is not in the inode (lib/ext2fs/valid_blk.c).
            let beside = attribute.outside && kind == NodeKind::Symlink;
            if length <= inode_room && !beside {
                inode_room -= length;
                placed.in_inode.push(attribute);
            } else if length <= block_room {
                block_room -= length;
                placed.in_block.push(attribute);
            } else {
                return Err(attribute);
            }
            Ok(())
        };
        for attribute in all {
            let left = match place(attribute) {
                Err(attribute) => place(Attribute { outside: true, ..attribute }),
                Ok(()) => Ok(()),
            };
            left.map_err(|left| Error::BadXattr { attribute: readable(&left.name), fault: XattrFault::TooMany })?;
        }
        Ok(Some(Box::new(placed)))
    }

    /// Values with inodes of their own, in the order of these inodes.
    pub(crate) fn outside(&self) -> impl Iterator<Item = &[u8]> {
        let outside = self.in_inode.iter().chain(&self.in_block).filter(|attribute| attribute.outside);
        outside.map(|attribute| &*attribute.value)
    }

    /// Whether a block is needed beside the inode.
    pub(crate) fn needs_block(&self) -> bool {
        !self.in_block.is_empty()
    }

    /// Writes the attributes that live in the inode behind its fields. `values` is the first inode of a value outside.
    pub(crate) fn put_in_inode(&self, inode: &mut [u8; INODE_SIZE], seed: Checksum, values: u32) {
        if !self.in_inode.is_empty() {
            put_u32(inode, INODE_FIELDS, MAGIC);
            // Offsets of values count from the first entry.
            put_entries(&mut inode[INODE_FIELDS + 4..], 0, &self.in_inode, seed, values);
        }
    }

    /// The attribute block that will lie at `block`. `values` is the first inode of a value outside.
    pub(crate) fn block(&self, seed: Checksum, block: u32, values: u32) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        put_u32(&mut bytes, 0, MAGIC);
        put_u32(&mut bytes, 4, 1); // files that use it
        put_u32(&mut bytes, 8, 1); // blocks
        let values = values + self.in_inode.iter().filter(|attribute| attribute.outside).count() as u32;
        let hashes = put_entries(&mut bytes, BLOCK_HEADER, &self.in_block, seed, values);
        let hash = hashes.into_iter().fold(0u32, |hash, entry| hash.rotate_left(16) ^ entry);
        put_u32(&mut bytes, 12, hash);
        let checksum = seed.with(&u64::from(block).to_le_bytes()).with(&bytes).value();
        put_u32(&mut bytes, 16, checksum);
        bytes
    }
}

impl Attribute {
    /// Bytes of its entry and its value, both of them padded.
    fn stored_len(&self) -> usize {
        let value = if self.outside { 0 } else { self.value.len() };
        self.entry_len() + value.next_multiple_of(4)
    }

    fn entry_len(&self) -> usize {
        (ENTRY_HEADER + self.name.len()).next_multiple_of(4)
    }

    /// The hash by which e2fsck and the kernel check an entry: of its name and its value, or the hash of its value.
    fn hash(&self, seed: Checksum) -> u32 {
        let name = self.name.iter().fold(0u32, |hash, &byte| hash.rotate_left(5) ^ u32::from(byte));
        let hashed;
        let value = if self.outside {
            hashed = value_hash(seed, &self.value).to_le_bytes();
            &hashed[..]
        } else {
            &self.value
        };
        value.chunks(4).fold(name, |hash, bytes| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

/// The hash of a value with an inode of its own, by which its inode is known.
pub(crate) fn value_hash(seed: Checksum, value: &[u8]) -> u32 {
    seed.with(value).value()
}

/// Checks one attribute and splits its name.
fn attribute(name: &[u8], value: &[u8], directory: bool) -> Result<Attribute, XattrFault> {
    if name.len() > MAX_NAME || name.contains(&0) {
        return Err(XattrFault::Name);
    }
    let acl = match name {
        b"system.posix_acl_access" => Some(ACL_ACCESS),
        b"system.posix_acl_default" => Some(ACL_DEFAULT),
        _ => None,
    };
    if let Some(namespace) = acl {
        if namespace == ACL_DEFAULT && !directory {
            return Err(XattrFault::DefaultAclOnFile);
        }
        let value = acl::to_disk(value).ok_or(XattrFault::Acl)?.into();
        return Ok(Attribute { namespace, name_len: 0, name: Box::default(), value, outside: false });
    }
    let split = |(prefix, namespace): (&[u8], u8)| Some((name.strip_prefix(prefix)?, namespace));
    let (name, namespace) = NAMESPACES.into_iter().find_map(split).ok_or(XattrFault::Namespace)?;
    if name.is_empty() {
        return Err(XattrFault::Name);
    }
    if value.len() > MAX_VALUE {
        return Err(XattrFault::TooLarge);
    }
    Ok(Attribute { namespace, name_len: name.len(), name: name.into(), value: value.into(), outside: false })
}

/// Writes entries from `first` on and their values from the end of `area` back. They are known to fit. Values outside are
/// in inodes from `outside` on. Returns the hashes of the entries.
fn put_entries(area: &mut [u8], first: usize, attributes: &[Attribute], seed: Checksum, mut outside: u32) -> Vec<u32> {
    let mut hashes = Vec::with_capacity(attributes.len());
    let (mut entry, mut values_start) = (first, area.len());
    for attribute in attributes {
        let value = &attribute.value;
        area[entry] = attribute.name.len() as u8;
        area[entry + 1] = attribute.namespace;
        if attribute.outside {
            put_u32(area, entry + 4, outside);
            outside += 1;
        } else {
            values_start -= value.len().next_multiple_of(4);
            area[values_start..values_start + value.len()].copy_from_slice(value);
            put_u16(area, entry + 2, if value.is_empty() { 0 } else { values_start as u16 });
        }
        put_u32(area, entry + 8, value.len() as u32);
        let hash = attribute.hash(seed);
        put_u32(area, entry + 12, hash);
        area[entry + ENTRY_HEADER..entry + ENTRY_HEADER + attribute.name.len()].copy_from_slice(&attribute.name);
        entry += attribute.entry_len();
        hashes.push(hash);
    }
    hashes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pairs: &[(&[u8], &[u8])]) -> Result<Option<Box<Attributes>>, Error> {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        Attributes::new(&pairs, NodeKind::File)
    }

    fn fault(pairs: &[(&[u8], &[u8])]) -> XattrFault {
        match check(pairs) {
            Err(Error::BadXattr { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_capability_stays_in_the_inode() {
        let attributes = check(&[(b"security.capability", &[1; 20])]).unwrap().unwrap();
        assert!(!attributes.needs_block());
        let mut inode = [0; INODE_SIZE];
        attributes.put_in_inode(&mut inode, Checksum::EMPTY, 0);
        assert_eq!(inode[160..166], [0, 0, 2, 0xea, 10, 6]);
        assert_eq!(&inode[180..190], b"capability");
        assert_eq!(inode[236..], [1; 20]);
    }

    #[test]
    fn what_does_not_fit_the_inode_goes_into_the_block_and_then_outside() {
        let attributes = check(&[(b"user.a", &[1; 100]), (b"user.b", b"")]).unwrap().unwrap();
        assert!(attributes.needs_block());
        assert_eq!((attributes.in_inode.len(), attributes.in_block.len()), (1, 1));
        let outside = |pairs: &[(&[u8], &[u8])]| check(pairs).unwrap().unwrap().outside().count();
        assert_eq!(outside(&[(b"user.a", &[1; 4040])]), 0);
        assert_eq!(outside(&[(b"user.a", &[1; 4041])]), 1);
        assert_eq!(outside(&[(b"user.a", &[1; 64 << 10])]), 1);
        assert_eq!(outside(&[(b"user.a", &[1; 3000]), (b"user.b", &[1; 3000])]), 1);
        assert_eq!(fault(&[(b"user.a", &[1; (64 << 10) + 1])]), XattrFault::TooLarge);
        // An entry needs room even where its value is outside.
        let names: Vec<Vec<u8>> = (0..20).map(|n| format!("user.{n:0240}").into_bytes()).collect();
        let pairs: Vec<(&[u8], &[u8])> = names.iter().map(|name| (name.as_slice(), &b""[..])).collect();
        assert_eq!(fault(&pairs), XattrFault::TooMany);
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(fault(&[(b"user.", b"")]), XattrFault::Name);
        assert_eq!(fault(&[(b"user.a\0b", b"")]), XattrFault::Name);
        assert_eq!(fault(&[(&[b"user.".as_slice(), &[b'x'; 251]].concat(), b"")]), XattrFault::Name);
        assert_eq!(fault(&[(b"system.data", b"")]), XattrFault::Namespace);
        assert_eq!(fault(&[(b"com.apple.quarantine", b"")]), XattrFault::Namespace);
        assert_eq!(fault(&[(b"", b"")]), XattrFault::Namespace);
        assert_eq!(fault(&[(b"user.a", b"1"), (b"user.b", b""), (b"user.a", b"2")]), XattrFault::Duplicate);
        assert_eq!(fault(&[(b"system.posix_acl_access", b"rwx")]), XattrFault::Acl);
        assert_eq!(fault(&[(b"system.posix_acl_default", b"")]), XattrFault::DefaultAclOnFile);
        assert!(check(&[]).unwrap().is_none());
    }
}
