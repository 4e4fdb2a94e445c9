//! Room for file contents: blocks from the first to the last, around the superblock copies.

use crate::geometry::{BLOCKS_PER_GROUP, Geometry, has_superblock};

/// How far contents have come. A copy remembers a point to go back to.
#[derive(Clone, Debug)]
pub(crate) struct ContentArea {
    blocks: u32,
    base_len: u32,
    /// No block from here on is taken.
    cursor: u32,
    /// Blocks given out.
    taken: u64,
    /// Blocks that may still be given out: the rest is needed for the filesystem itself.
    room: u64,
}

impl ContentArea {
    /// All of a filesystem, of which `room` blocks may be taken.
    pub(crate) fn new(geometry: &Geometry, room: u64) -> ContentArea {
        ContentArea { blocks: geometry.blocks, base_len: geometry.base_len(0), cursor: 0, taken: 0, room }
    }

    /// Up to `most` adjoining blocks as `(start, length)`, or none when the image is full.
    pub(crate) fn take(&mut self, most: u32) -> Option<(u32, u32)> {
        let most = most.min(u32::try_from(self.room).unwrap_or(u32::MAX));
        let group = self.cursor / BLOCKS_PER_GROUP;
        let mut start = self.cursor;
        if has_superblock(group) {
            start = start.max(group * BLOCKS_PER_GROUP + self.base_len);
        }
        let limit = start.saturating_add(most).min(self.blocks);
        let next_copy = (group + 1..=limit / BLOCKS_PER_GROUP).find(|&group| has_superblock(group));
        let end = next_copy.map_or(limit, |group| limit.min(group * BLOCKS_PER_GROUP));
        if start >= end {
            return None;
        }
        self.cursor = end;
        self.taken += u64::from(end - start);
        self.room -= u64::from(end - start);
        Some((start, end - start))
    }

    /// The first block that was not looked at.
    pub(crate) fn cursor(&self) -> u32 {
        self.cursor
    }

    /// Blocks given out.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Blocks that may still be given out.
    pub(crate) fn room(&self) -> u64 {
        self.room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_flow_around_superblock_copies_and_stop_when_the_room_is_used_up() {
        let geometry = Geometry::of_size(1 << 30).unwrap();
        let base = geometry.base_len(0);
        let room = u64::from(4 * BLOCKS_PER_GROUP - 3 * base) + 10;
        let mut area = ContentArea::new(&geometry, room);
        assert_eq!(area.take(1), Some((base, 1)));
        assert_eq!(area.take(u32::MAX), Some((base + 1, BLOCKS_PER_GROUP - base - 1)));
        assert_eq!(area.take(5), Some((BLOCKS_PER_GROUP + base, 5)));
        assert_eq!(area.take(u32::MAX), Some((BLOCKS_PER_GROUP + base + 5, 2 * BLOCKS_PER_GROUP - base - 5)));
        assert_eq!(area.take(u32::MAX), Some((3 * BLOCKS_PER_GROUP + base, BLOCKS_PER_GROUP - base + 10)));
        assert_eq!(area.take(1), None);
        assert_eq!(area.taken(), room);
    }

    #[test]
    fn the_end_of_the_filesystem_is_the_end() {
        let geometry = Geometry::of_size(8 << 20).unwrap();
        let mut area = ContentArea::new(&geometry, u64::MAX);
        let base = geometry.base_len(0);
        assert_eq!(area.take(u32::MAX), Some((base, 2048 - base)));
        assert_eq!(area.take(1), None);
        assert_eq!(area.cursor(), 2048);
    }
}
