//! Directory blocks: a plain list for a directory of one block, a hash index for larger ones.
//!
//! ```text
//!  plain:    | . | .. | entries ............................. | checksum |
//!
//!  indexed:  block 0    | . | .. | hash -> block, hash -> block ... | checksum |
//!                          |
//!            index      | hash -> block ... | checksum |      (only beyond 507 leaves)
//!                          |
//!            leaf       | entries of adjoining hashes ......... | checksum |
//! ```
//! (kernel documentation: "Directory Entries", "Hash Tree Directories")

use crate::BLOCK;
use crate::checksum::Checksum;
use crate::error::Error;
use crate::hash::{NameHash, NameHasher};
use crate::le::{put_u16, put_u32};

/// The fake entry at the end of each leaf that holds its checksum.
const TAIL: usize = 12;
const TAIL_TYPE: u8 = 0xde;
/// Bytes of `.` and `..`.
const DOTS: usize = 24;
/// Leaves of an indexed directory are filled to four fifths, as `e2fsck -D` does: the first files that are added
/// should not split a block each.
const LEAF_FILL: usize = (BLOCK - TAIL) / 5 * 4;
/// Index entries of the first block and of an index block, the first of each being half a header.
const ROOT_ENTRIES: usize = (BLOCK - DOTS - 8 - 8) / 8;
const NODE_ENTRIES: usize = (BLOCK - 8 - 8) / 8;
/// Set in an index hash when the block before ends with names of the same hash.
const CONTINUED: u32 = 1;

/// The type byte of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EntryType {
    File = 1,
    Directory = 2,
    Symlink = 7,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) inode: u32,
    pub(crate) kind: EntryType,
}

/// A directory ready to be stored.
#[derive(Debug)]
pub(crate) struct DirectoryBlocks {
    /// Whole blocks.
    pub(crate) bytes: Vec<u8>,
    /// Whether they carry an index.
    pub(crate) indexed: bool,
}

/// Which directory is written, and what its checksums start from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) inode: u32,
    pub(crate) parent: u32,
    pub(crate) seed: Checksum,
}

impl Entry<'_> {
    fn len(&self) -> usize {
        entry_len(self.name.len())
    }
}

fn entry_len(name: usize) -> usize {
    (8 + name).next_multiple_of(4)
}

/// Blocks that a directory with names of these lengths takes at most.
pub(crate) fn most_blocks(name_lens: impl Iterator<Item = usize>) -> u64 {
    let bytes: usize = name_lens.map(entry_len).sum();
    if DOTS + bytes <= BLOCK - TAIL {
        return 1;
    }
    // A leaf is closed when the next entry would exceed its fill; the longest entry has 264 bytes.
    let leaves = bytes.div_ceil(LEAF_FILL - 264);
    let nodes = index_blocks(leaves).unwrap_or(ROOT_ENTRIES);
    (1 + nodes + leaves) as u64
}

/// Index blocks between the first block and so many leaves. None if two levels cannot name them.
fn index_blocks(leaves: usize) -> Option<usize> {
    let blocks = if leaves > ROOT_ENTRIES { leaves.div_ceil(NODE_ENTRIES) } else { 0 };
    (blocks <= ROOT_ENTRIES).then_some(blocks)
}

/// Lays out a directory.
pub(crate) fn build(place: Place, entries: &[Entry<'_>], hasher: &NameHasher) -> Result<DirectoryBlocks, Error> {
    let total: usize = entries.iter().map(Entry::len).sum();
    if DOTS + total <= BLOCK - TAIL {
        return Ok(DirectoryBlocks { bytes: plain(place, entries), indexed: false });
    }
    let mut order: Vec<(NameHash, &Entry<'_>)> = entries.iter().map(|entry| (hasher.hash(entry.name), entry)).collect();
    order.sort_unstable_by_key(|(hash, entry)| (*hash, entry.name));

    let leaves = leaves(&order);
    let nodes = index_blocks(leaves.len()).ok_or(Error::DirectoryTooLarge { entries: entries.len() })?;
    let mut bytes = vec![0; (1 + nodes + leaves.len()) * BLOCK];
    let (index, leaf_blocks) = bytes.split_at_mut((1 + nodes) * BLOCK);
    let mut pointers = Vec::with_capacity(leaves.len());
    for ((number, leaf), block) in leaves.iter().enumerate().zip(leaf_blocks.chunks_exact_mut(BLOCK)) {
        put_leaf(block, place.seed, 0, order[leaf.range.clone()].iter().map(|(_, entry)| *entry));
        pointers.push((leaf.hash, (1 + nodes + number) as u32));
    }
    let (root, node_blocks) = index.split_at_mut(BLOCK);
    if nodes > 0 {
        let mut above = Vec::with_capacity(nodes);
        for ((number, part), block) in
            pointers.chunks(NODE_ENTRIES).enumerate().zip(node_blocks.chunks_exact_mut(BLOCK))
        {
            put_u16(block, 4, BLOCK as u16); // an entry without a name that spans the block
            put_index(block, 8, NODE_ENTRIES, part, place.seed);
            above.push((part[0].0, (1 + number) as u32));
        }
        pointers = above;
    }
    put_root(root, place, &pointers, nodes > 0);
    Ok(DirectoryBlocks { bytes, indexed: true })
}

/// An empty `lost+found`: blocks in advance, so that e2fsck can use it on a full filesystem.
pub(crate) fn empty_with_room(place: Place, blocks: usize) -> DirectoryBlocks {
    let mut bytes = plain(place, &[]);
    bytes.resize(blocks * BLOCK, 0);
    for block in bytes.chunks_exact_mut(BLOCK).skip(1) {
        put_leaf(block, place.seed, 0, std::iter::empty());
    }
    DirectoryBlocks { bytes, indexed: false }
}

/// The names of one leaf, and the hash by which the index finds it.
struct Leaf {
    range: std::ops::Range<usize>,
    hash: u32,
}

fn leaves(order: &[(NameHash, &Entry<'_>)]) -> Vec<Leaf> {
    let mut leaves: Vec<Leaf> = Vec::new();
    let mut filled = 0;
    let mut before = None;
    for (position, (hash, entry)) in order.iter().enumerate() {
        match leaves.last_mut() {
            Some(leaf) if filled + entry.len() <= LEAF_FILL => leaf.range.end = position + 1,
            _ => {
                let continued = if before == Some(hash.major) { CONTINUED } else { 0 };
                leaves.push(Leaf { range: position..position + 1, hash: hash.major | continued });
                filled = 0;
            }
        }
        filled += entry.len();
        before = Some(hash.major);
    }
    leaves
}

fn plain(place: Place, entries: &[Entry<'_>]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    put_dots(&mut block, place, if entries.is_empty() { BLOCK - TAIL - 12 } else { 12 });
    if entries.is_empty() {
        put_tail(&mut block, place.seed);
    } else {
        put_leaf(&mut block, place.seed, DOTS, entries.iter());
    }
    block
}

fn put_dots(block: &mut [u8], place: Place, second_len: usize) {
    put_entry(block, 0, 12, &Entry { name: b".", inode: place.inode, kind: EntryType::Directory });
    put_entry(block, 12, second_len, &Entry { name: b"..", inode: place.parent, kind: EntryType::Directory });
}

/// Fills a block with entries from `start` on; the last one reaches to the tail.
fn put_leaf<'a, 'b: 'a>(block: &mut [u8], seed: Checksum, start: usize, entries: impl Iterator<Item = &'a Entry<'b>>) {
    let end = BLOCK - TAIL;
    let mut position = start;
    let mut last = None;
    for entry in entries {
        put_entry(block, position, entry.len(), entry);
        last = Some(position);
        position += entry.len();
    }
    // Without any entry this makes one unused entry of the whole block.
    let last = last.unwrap_or(start);
    put_u16(block, last + 4, (end - last) as u16);
    put_tail(block, seed);
}

fn put_entry(block: &mut [u8], position: usize, len: usize, entry: &Entry<'_>) {
    put_u32(block, position, entry.inode);
    put_u16(block, position + 4, len as u16);
    block[position + 6] = entry.name.len() as u8;
    block[position + 7] = entry.kind as u8;
    block[position + 8..position + 8 + entry.name.len()].copy_from_slice(entry.name);
}

fn put_tail(block: &mut [u8], seed: Checksum) {
    let tail = BLOCK - TAIL;
    put_u16(block, tail + 4, TAIL as u16);
    block[tail + 7] = TAIL_TYPE;
    let checksum = seed.with(&block[..tail]).value();
    put_u32(block, tail + 8, checksum);
}

fn put_root(block: &mut [u8], place: Place, pointers: &[(u32, u32)], two_levels: bool) {
    // For a reader without indexes `..` covers the rest of the block.
    put_dots(block, place, BLOCK - 12);
    block[DOTS + 4] = 1; // half MD4
    block[DOTS + 5] = 8; // bytes of this header
    block[DOTS + 6] = u8::from(two_levels);
    put_index(block, DOTS + 8, ROOT_ENTRIES, pointers, place.seed);
}

/// Writes index entries. The place of the first one's hash holds the counts: everything below the second hash is its.
fn put_index(block: &mut [u8], start: usize, most: usize, pointers: &[(u32, u32)], seed: Checksum) {
    for (position, (hash, target)) in pointers.iter().enumerate() {
        put_u32(block, start + position * 8, *hash);
        put_u32(block, start + position * 8 + 4, *target);
    }
    put_u16(block, start, most as u16);
    put_u16(block, start + 2, pointers.len() as u16);
    // The checksum covers the entries in use and the tail, with zeros in its own place.
    let checksum = seed.with(&block[..start + pointers.len() * 8]).with(&[0; 8]).value();
    put_u32(block, start + most * 8 + 4, checksum);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use uuid::Uuid;

    use super::*;
    use crate::le::{get_u16, get_u32};
    use crate::{ImageWriter, Meta, Options, Timestamp, Tree};

    const PLACE: Place = Place { inode: 12, parent: 2, seed: Checksum::EMPTY };

    fn built(names: &[Vec<u8>]) -> DirectoryBlocks {
        let entries: Vec<Entry<'_>> =
            names.iter().map(|name| Entry { name, inode: 100, kind: EntryType::File }).collect();
        build(PLACE, &entries, &NameHasher::new(&[7; 16])).unwrap()
    }

    fn numbered(count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|number| format!("file-with-a-name-{number:08}").into_bytes()).collect()
    }

    /// The names of a block, read the way a reader without indexes does.
    fn names(block: &[u8]) -> Vec<Vec<u8>> {
        let (mut position, mut names) = (0, Vec::new());
        while position < BLOCK {
            let length = usize::from(get_u16(block, position + 4));
            if get_u32(block, position) != 0 {
                names.push(block[position + 8..position + 8 + usize::from(block[position + 6])].to_vec());
            }
            position += length;
        }
        assert_eq!(position, BLOCK);
        names
    }

    #[test]
    fn a_directory_stays_plain_as_long_as_one_block_holds_it() {
        // 16 names of 247 bytes take 256 bytes each: 4096 with the dots is too much, 15 of them is not.
        let name = |number: u8| [vec![b'x'; 246], vec![number]].concat();
        let fifteen: Vec<_> = (0..15).map(name).collect();
        assert!(!built(&fifteen).indexed);
        let sixteen: Vec<_> = (0..16).map(name).collect();
        assert!(built(&sixteen).indexed);
        assert_eq!(names(&built(&[]).bytes), [b".".to_vec(), b"..".to_vec()]);
    }

    #[test]
    fn an_indexed_directory_holds_every_name_once_and_within_its_estimate() {
        for count in [200, 70_000] {
            let input = numbered(count);
            let directory = built(&input);
            let mut found: Vec<Vec<u8>> = directory.bytes.chunks(BLOCK).flat_map(names).collect();
            found.retain(|name| !name.starts_with(b"."));
            found.sort();
            assert_eq!(found, input);
            assert!((directory.bytes.len() / BLOCK) as u64 <= most_blocks(input.iter().map(Vec::len)));
            assert_eq!(directory.bytes[DOTS + 6], u8::from(count == 70_000), "levels");
        }
    }

    #[test]
    fn a_run_of_equal_hashes_over_two_leaves_is_marked_as_continued() {
        let long: Vec<Vec<u8>> = (0..40u8).map(|number| [vec![b'x'; 240], vec![number]].concat()).collect();
        let entries: Vec<Entry<'_>> =
            long.iter().map(|name| Entry { name, inode: 100, kind: EntryType::File }).collect();
        let same = NameHash { major: 0x1000, minor: 0 };
        let order: Vec<_> = entries.iter().map(|entry| (same, entry)).collect();
        let hashes: Vec<u32> = leaves(&order).iter().map(|leaf| leaf.hash).collect();
        assert_eq!(hashes[..2], [0x1000, 0x1001]);
        assert!(hashes[1..].iter().all(|&hash| hash == 0x1001));
    }

    #[test]
    fn two_levels_of_index_name_so_many_leaves() {
        // Three million names of 255 bytes, or a hundred million short ones.
        assert_eq!(index_blocks(507), Some(0));
        assert_eq!(index_blocks(508), Some(1));
        assert_eq!(index_blocks(507 * 510), Some(507));
        assert_eq!(index_blocks(507 * 510 + 1), None);
    }

    /// Names of one hash on both sides of a leaf's border: whoever looks for the second must be led past the first.
    #[test]
    fn names_of_equal_hash_in_two_leaves_are_found_by_others() {
        let options = Options::new(64 << 20, Uuid::from_u128(1), Uuid::from_u128(2), Timestamp::default());
        let hasher = NameHasher::new(options.hash_seed.as_bytes());
        // By the birthday rule about five pairs of equal hash.
        let mut names: Vec<Vec<u8>> = (0..150_000).map(|number| format!("{number:016}").into_bytes()).collect();
        names.sort_by_key(|name| hasher.hash(name));
        let in_leaf = LEAF_FILL / entry_len(16);
        let major = |index: usize| hasher.hash(&names[index]).major;
        let pair = (in_leaf..names.len() - 1000).find(|&index| major(index) == major(index + 1)).unwrap();
        let chosen = &names[pair + 1 - in_leaf..pair + 500];

        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = ImageWriter::create(file.reopen().unwrap(), options).unwrap();
        let mut tree = Tree::new(Meta::default()).unwrap();
        let directory = tree.add_dir(Tree::ROOT, b"d", Meta::default()).unwrap();
        for name in chosen {
            tree.add_symlink(directory, name, Meta::default(), b"x").unwrap();
        }
        writer.finish(tree).unwrap();

        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).arg(file.path()).output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (clean, messages) = run("e2fsck", &["-fn"]);
        assert!(clean, "{messages}");
        let (_, index) = run("debugfs", &["-R", "htree_dump /d"]);
        assert!(index.contains(&format!("{:#010x}", major(pair) | CONTINUED)), "no continued leaf: {index}");
    }
}
