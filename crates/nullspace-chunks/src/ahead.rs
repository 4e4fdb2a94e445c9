//! Reading ahead: the disk brings the chunks of an image while the first of them are decompressed.
//!
//! ```text
//!   chunks of an image ── by pack ── in the pack's order, neighbours together ──> page cache
//! ```
//! An image is written in the order of its own bytes, so its chunks are read here and there in their packs. A disk that nothing
//! is cached of is waited for once a chunk then. This is advice: what cannot be read fails where the chunk is wanted. Packs that are
//! elsewhere are left out; they are downloaded whole with their first chunk.

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroU64;

use rustix::fs::{Advice, fadvise};

use crate::ChunkId;
use crate::pack::PackName;
use crate::store::Inner;

/// Bytes between two chunks that are read along with them.
const GAP: u64 = 256 << 10;

/// Asks the system to read these chunks soon.
pub(crate) fn read_ahead(inner: &Inner, chunks: impl Iterator<Item = ChunkId>) {
    let mut packs: HashMap<PackName, Vec<(u64, u64)>> = HashMap::new();
    {
        let state = inner.state();
        for (location, pack) in chunks.filter_map(|id| state.find(&id)) {
            let end = location.offset.saturating_add(u64::from(location.stored));
            packs.entry(pack).or_default().push((location.offset, end));
        }
    }
    for (pack, ranges) in packs {
        let Ok(file) = File::open(pack.path(&inner.packs())) else { continue };
        for (start, end) in together(ranges) {
            let _advice = fadvise(&file, start, NonZeroU64::new(end - start), Advice::WillNeed);
        }
    }
}

/// The ranges in order; those that overlap or are near one another are one.
fn together(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match merged.last_mut() {
            Some((_, last)) if start <= last.saturating_add(GAP) => *last = end.max(*last),
            _ => merged.push((start, end)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_together_and_far_ones_alone() {
        let far = 10 * GAP;
        let ranges = vec![(far, far + 5), (8, 100), (90, 200), (200, 300), (300 + GAP, 400 + GAP), (20, 30)];
        assert_eq!(together(ranges), [(8, 400 + GAP), (far, far + 5)]);
        assert_eq!(together(Vec::new()), []);
    }
}
