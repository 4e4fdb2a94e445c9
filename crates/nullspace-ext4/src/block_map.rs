//! Block bitmaps, one for each group, and the search for free blocks.
//!
//! A group that holds nothing but its superblock copy has no bitmap in memory (nor later on disk), so a map of a large
//! disk with little on it is small.

use crate::geometry::{BLOCKS_PER_GROUP, Geometry};

const WORDS: usize = BLOCKS_PER_GROUP as usize / 64;
type Bitmap = Box<[u64; WORDS]>;

/// The used blocks of a filesystem.
#[derive(Debug)]
pub(crate) struct BlockMap {
    geometry: Geometry,
    groups: Vec<Option<Bitmap>>,
    /// Where the search for a free block starts; everything before may be taken, nothing after it has been looked at.
    cursor: u32,
}

impl BlockMap {
    /// A filesystem of which only the superblocks and descriptors are in use.
    pub(crate) fn new(geometry: &Geometry) -> BlockMap {
        let groups = (0..geometry.groups).map(|_| None).collect();
        BlockMap { geometry: geometry.clone(), groups, cursor: 0 }
    }

    /// Continues the search for free blocks at `block`.
    pub(crate) fn seek(&mut self, block: u32) {
        self.cursor = block;
    }

    /// Whether nothing but superblock and descriptors lies in the group.
    pub(crate) fn is_untouched(&self, group: u32) -> bool {
        self.groups[group as usize].is_none()
    }

    /// Marks a range as used. False, and nothing changed, if a part of it is used already or outside.
    pub(crate) fn mark(&mut self, start: u32, len: u32) -> bool {
        let Some(end) = start.checked_add(len).filter(|&end| end <= self.geometry.blocks) else {
            return false;
        };
        if self.free_run(start, end) != end {
            return false;
        }
        self.set(start, end);
        true
    }

    /// Takes up to `most` adjoining free blocks, from the cursor on, then from the start. None if there are none.
    pub(crate) fn take(&mut self, most: u32) -> Option<(u32, u32)> {
        let end = self.geometry.blocks;
        let start = self.find_free(self.cursor, end).or_else(|| self.find_free(0, end))?;
        let stop = self.free_run(start, start.saturating_add(most).min(end));
        self.set(start, stop);
        self.cursor = stop;
        Some((start, stop - start))
    }

    /// Takes exactly `len` adjoining blocks. The cursor does not skip what was too short for them: single blocks still
    /// find room there.
    pub(crate) fn take_adjoining(&mut self, len: u32) -> Option<u32> {
        let end = self.geometry.blocks;
        let start = self.find_run(self.cursor, len, end).or_else(|| self.find_run(0, len, end))?;
        self.set(start, start + len);
        if start == self.cursor {
            self.cursor = start + len;
        }
        Some(start)
    }

    /// Free blocks of a group.
    pub(crate) fn free_in_group(&self, group: u32) -> u32 {
        match &self.groups[group as usize] {
            Some(bitmap) => bitmap.iter().map(|word| word.count_zeros()).sum(),
            None => self.geometry.group_len(group) - self.geometry.base_len(group),
        }
    }

    /// The group's bitmap as it is stored. Blocks behind the end of the filesystem count as used.
    pub(crate) fn bitmap(&self, group: u32) -> Vec<u8> {
        let stored = |bitmap: &Bitmap| bitmap.iter().flat_map(|word| word.to_le_bytes()).collect();
        match &self.groups[group as usize] {
            Some(bitmap) => stored(bitmap),
            None => stored(&fresh(&self.geometry, group)),
        }
    }

    /// Free ranges below `limit`, in ascending order.
    pub(crate) fn free_ranges(&self, limit: u32) -> Vec<(u32, u32)> {
        let limit = limit.min(self.geometry.blocks);
        let mut ranges = Vec::new();
        let mut position = 0;
        while let Some(start) = self.find_free(position, limit) {
            position = self.free_run(start, limit);
            ranges.push((start, position - start));
        }
        ranges
    }

    fn find_run(&self, from: u32, len: u32, end: u32) -> Option<u32> {
        let mut position = from;
        loop {
            let start = self.find_free(position, end)?;
            let wanted = start.checked_add(len).filter(|&wanted| wanted <= end)?;
            position = self.free_run(start, wanted);
            if position == wanted {
                return Some(start);
            }
        }
    }

    /// The first free block of `from..end`.
    fn find_free(&self, from: u32, end: u32) -> Option<u32> {
        let found = self.scan(from, end, u64::trailing_ones);
        (found < end).then_some(found)
    }

    /// Where the run of free blocks that starts at `from` ends, at most `end`.
    fn free_run(&self, from: u32, end: u32) -> u32 {
        self.scan(from, end, u64::trailing_zeros)
    }

    /// Skips blocks as long as `skip` (the number of equal bits at the low end of a word) reaches on.
    fn scan(&self, from: u32, end: u32, skip: impl Fn(u64) -> u32) -> u32 {
        let mut position = from;
        while position < end {
            let group = position / BLOCKS_PER_GROUP;
            let start = self.geometry.group_start(group);
            let stop = start + self.geometry.group_len(group);
            let base_end = start + self.geometry.base_len(group);
            let next = match &self.groups[group as usize] {
                Some(bitmap) => {
                    let bit = position - start;
                    let word = bitmap[bit as usize / 64] >> (bit % 64);
                    let left = 64 - bit % 64;
                    let skipped = skip(word).min(left);
                    if skipped < left {
                        return (position + skipped).min(end);
                    }
                    (position + skipped).min(stop)
                }
                // Without a bitmap: the base is used, the rest is free.
                None if position < base_end => {
                    if skip(u64::MAX) == 0 {
                        return position;
                    }
                    base_end
                }
                None => {
                    if skip(0) == 0 {
                        return position;
                    }
                    stop
                }
            };
            position = next;
        }
        end
    }

    fn set(&mut self, start: u32, end: u32) {
        let mut position = start;
        while position < end {
            let group = position / BLOCKS_PER_GROUP;
            let first = self.geometry.group_start(group);
            let stop = end.min(first + self.geometry.group_len(group));
            let geometry = &self.geometry;
            let bitmap = self.groups[group as usize].get_or_insert_with(|| fresh(geometry, group));
            set_bits(&mut bitmap[..], position - first, stop - first);
            position = stop;
        }
    }
}

/// The bitmap of a group that holds only its superblock copy.
fn fresh(geometry: &Geometry, group: u32) -> Bitmap {
    let mut bitmap = Box::new([0; WORDS]);
    set_bits(&mut bitmap[..], 0, geometry.base_len(group));
    set_bits(&mut bitmap[..], geometry.group_len(group), BLOCKS_PER_GROUP);
    bitmap
}

/// Sets bits `from..to` of a bitmap.
pub(crate) fn set_bits(words: &mut [u64], from: u32, to: u32) {
    let mut bit = from;
    while bit < to {
        let count = (64 - bit % 64).min(to - bit);
        let ones = if count == 64 { u64::MAX } else { (1 << count) - 1 };
        words[bit as usize / 64] |= ones << (bit % 64);
        bit += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(size: u64) -> BlockMap {
        BlockMap::new(&Geometry::of_size(size).unwrap())
    }

    #[test]
    fn runs_stop_at_superblock_copies_and_cross_other_group_borders() {
        let mut map = map(1 << 30);
        let base = map.geometry.base_len(0);
        assert_eq!(map.take(u32::MAX), Some((base, BLOCKS_PER_GROUP - base)));
        // Group 1 has a copy, group 2 has none, group 3 has one again.
        assert_eq!(map.take(u32::MAX), Some((BLOCKS_PER_GROUP + base, 2 * BLOCKS_PER_GROUP - base)));
    }

    #[test]
    fn adjoining_blocks_leave_a_short_gap_to_single_ones() {
        let mut map = map(1 << 30);
        let base = map.geometry.base_len(0);
        map.seek(BLOCKS_PER_GROUP - 10);
        assert_eq!(map.take_adjoining(100), Some(BLOCKS_PER_GROUP + base));
        assert_eq!(map.take(100), Some((BLOCKS_PER_GROUP - 10, 10)));
        assert_eq!(map.take(1), Some((BLOCKS_PER_GROUP + base + 100, 1)));
    }

    #[test]
    fn the_search_goes_round_to_the_start_and_ends() {
        let mut map = map(8 << 20);
        let base = map.geometry.base_len(0);
        map.seek(2000);
        assert_eq!(map.take(u32::MAX), Some((2000, 48)));
        assert_eq!(map.take(u32::MAX), Some((base, 2000 - base)));
        assert_eq!(map.take(1), None);
        assert_eq!(map.free_in_group(0), 0);
        assert!(map.bitmap(0).iter().all(|&byte| byte == 0xff));
    }

    #[test]
    fn a_range_is_marked_once_and_only_inside() {
        let mut map = map(1 << 30);
        assert!(map.mark(1000, 500));
        assert!(!map.mark(1499, 1));
        assert!(!map.mark(900, 101));
        assert!(!map.mark(0, 1));
        assert!(!map.mark(map.geometry.blocks - 1, 2));
        assert!(!map.mark(u32::MAX, 2));
        assert!(map.mark(1500, 3));
        let base = map.geometry.base_len(0);
        assert_eq!(map.free_ranges(2000), [(base, 1000 - base), (1503, 497)]);
    }

    #[test]
    fn groups_without_content_stay_untouched_and_count_their_free_blocks() {
        let mut map = map((1 << 30) + 100 * 4096);
        assert!(map.is_untouched(8));
        assert_eq!(map.free_in_group(8), 100);
        assert_eq!(map.free_in_group(1), BLOCKS_PER_GROUP - map.geometry.base_len(1));
        assert!(map.mark(8 * BLOCKS_PER_GROUP, 1));
        assert_eq!(map.free_in_group(8), 99);
        assert_eq!(map.bitmap(8)[..14], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0xff]);
    }
}
