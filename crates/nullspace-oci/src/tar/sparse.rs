//! Sparse files: a list of data segments, and holes between them.

/// `len` bytes of stored data that belong at `offset` of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Checks a map against the file's size and the bytes the archive stores: segments in order, apart, inside the file, and
/// exactly as long together as what is stored. Empty segments (writers end the map with one) are dropped.
pub(super) fn check(map: &mut Vec<Segment>, size: u64, stored: u64) -> Result<(), &'static str> {
    let mut end = 0_u64;
    let mut total = 0_u64;
    for segment in map.iter() {
        if segment.offset < end {
            return Err("segments overlap or are out of order");
        }
        end = segment.offset.checked_add(segment.len).ok_or("a segment's end overflows")?;
        if end > size {
            return Err("a segment lies beyond the end of the file");
        }
        total = total.checked_add(segment.len).ok_or("the segments' length overflows")?;
    }
    if total != stored {
        return Err("the segments and the stored data differ in length");
    }
    map.retain(|segment| segment.len > 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_checked() {
        let segment = |offset, len| Segment { offset, len };
        let mut good = vec![segment(0, 5), segment(10, 5), segment(20, 0)];
        assert_eq!(check(&mut good, 20, 10), Ok(()));
        assert_eq!(good.len(), 2);
        for (map, size, stored) in [
            (vec![segment(5, 5), segment(0, 5)], 20, 10),
            (vec![segment(0, 6), segment(5, 5)], 20, 11),
            (vec![segment(18, 5)], 20, 5),
            (vec![segment(u64::MAX, 5)], u64::MAX, 5),
            (vec![segment(0, 5)], 20, 6),
            (vec![], 20, 1),
        ] {
            assert!(check(&mut map.clone(), size, stored).is_err(), "{map:?}");
        }
    }
}
