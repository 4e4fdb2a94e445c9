//! The parts of a restored machine's memory that it has used: found from outside, by its process's page tables
//! (`mappings.rs`).
//!
//! The kernel maps the neighbours of a page that is read, 16 pages at a time, so the runs are a little longer than what the
//! guest has used. Pages of the file that are shared with other machines count when this process has mapped them.

use std::io;

use crate::mappings;

/// Runs of 4 KiB pages: the first page's number, and the number of pages.
pub(crate) type Runs = Vec<(u32, u32)>;

/// Most runs. Near ones are joined until so many are left.
const MOST_RUNS: usize = 1024;
/// Gap between two runs that is not worth two reads, pages.
const NEAR: u32 = 16;
/// Largest memory that is looked through, bytes: its pagemap has 32 MiB.
const LARGEST: u64 = 16 << 30;

/// The pages of the memory of `len` bytes that the process `pid` has used since it mapped it. `None` when it maps no such
/// memory, or a larger one than is looked through. Blocks.
pub(crate) fn touched(pid: u32, len: u64) -> io::Result<Option<Runs>> {
    if len > LARGEST {
        return Ok(None);
    }
    let parts = mappings::of_memory(pid, len)?;
    if parts.is_empty() {
        return Ok(None);
    }
    let mut runs = Runs::new();
    mappings::for_pages(pid, &parts, |first, pages| {
        for (page, state) in (first..).zip(pages) {
            if state.is_used() {
                // `LARGEST` has fewer pages than a u32 can count.
                add(&mut runs, page as u32);
            }
        }
        Ok(())
    })?;
    Ok(Some(few(runs)))
}

/// Adds a page that comes after all others, and the gap before it when that is short.
fn add(runs: &mut Runs, page: u32) {
    match runs.last_mut() {
        Some((first, pages)) if page - (*first + *pages) <= NEAR => *pages = page - *first + 1,
        _ => runs.push((page, 1)),
    }
}

/// Joins runs over ever larger gaps until there are few enough.
fn few(mut runs: Runs) -> Runs {
    let mut gap = NEAR;
    while runs.len() > MOST_RUNS {
        gap = gap.saturating_mul(2);
        let mut joined = Runs::new();
        for (first, pages) in runs {
            match joined.last_mut() {
                Some((begin, count)) if first - (*begin + *count) <= gap => *count = first + pages - *begin,
                _ => joined.push((first, pages)),
            }
        }
        runs = joined;
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;
    use crate::mappings::PAGE;
    use crate::memory::anonymous;

    #[test]
    #[allow(unsafe_code, reason = "maps a file privately and uses some pages, as a VMM does")]
    fn pages_that_were_read_or_written_are_found_and_far_ones_are_not() {
        // No other mapping of this process has this size.
        const LEN: u64 = (64 << 20) + 3 * PAGE;
        let file = anonymous("test", LEN).unwrap();
        for at in (0..LEN).step_by(PAGE as usize) {
            file.write_all_at(&[1], at).unwrap();
        }
        let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        // SAFETY: a new mapping of its own place, unmapped by nobody before the process ends.
        let memory = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), LEN as usize, protection, rustix::mm::MapFlags::PRIVATE, &file, 0)
        };
        let memory = memory.unwrap().cast::<u8>();
        let (own, used) = (std::process::id(), [0_u32, 5_000, 9_000, (LEN / PAGE) as u32 - 1]);
        assert_eq!(touched(own, LEN).unwrap(), Some(Vec::new()), "nothing was used yet");
        for (index, page) in used.iter().enumerate() {
            // SAFETY: inside the mapping, which nobody else knows.
            unsafe {
                let at = memory.add(*page as usize * PAGE as usize);
                if index % 2 == 0 { at.write_volatile(2) } else { assert_eq!(at.read_volatile(), 1) }
            }
        }
        let runs = touched(own, LEN).unwrap().unwrap();
        let has = |page: u32| runs.iter().any(|(first, pages)| (*first..first + pages).contains(&page));
        assert!(used.iter().all(|page| has(*page)), "{runs:?}");
        for far in [1_000, 4_000, 6_000, 8_000, 12_000] {
            assert!(!has(far), "{far}: {runs:?}");
        }
        assert_eq!(touched(own, LEN + PAGE).unwrap(), None, "no memory of that size");
        assert_eq!(touched(own, LARGEST + PAGE).unwrap(), None);
    }

    proptest! {
        #[test]
        fn runs_hold_every_page_in_order_and_are_few(pages in prop::collection::btree_set(0_u32..2_000_000, 0..5_000)) {
            let mut runs = Runs::new();
            pages.iter().for_each(|page| add(&mut runs, *page));
            let runs = few(runs);
            prop_assert!(runs.len() <= MOST_RUNS);
            prop_assert!(runs.windows(2).all(|pair| pair[0].0 + pair[0].1 + NEAR < pair[1].0), "{:?}", runs);
            let holds = |page: u32| {
                let after = runs.partition_point(|(first, _)| *first <= page);
                after > 0 && page < runs[after - 1].0 + runs[after - 1].1
            };
            prop_assert!(pages.iter().all(|page| holds(*page)));
            // Each run begins and ends with a page that was used.
            prop_assert!(runs.iter().all(|(first, count)| pages.contains(first) && pages.contains(&(first + count - 1))));
        }
    }
}
