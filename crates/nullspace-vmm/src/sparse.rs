//! Files that are mostly holes: what they take on the disk, and copies of them.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

const PAGE: usize = 4096;
const BUFFER: usize = 1 << 20;

/// Returns the bytes that a file takes on its disk or in memory: its length without holes, rounded up to blocks.
pub(crate) fn stored_bytes(metadata: &Metadata) -> u64 {
    // st_blocks counts units of 512 bytes on every filesystem.
    metadata.blocks().saturating_mul(512)
}

/// Copies the first `len` bytes of `from` into the empty file `to`: holes and pages of zeros become holes. Returns the
/// bytes written. It is an error when `from` is shorter than `len`. Blocks.
pub(crate) fn copy(from: &File, to: &File, len: u64) -> io::Result<u64> {
    if from.metadata()?.len() < len {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the file is shorter than {len} bytes")));
    }
    to.set_len(len)?;
    let mut buffer = vec![0; BUFFER];
    let (mut at, mut written) = (0, 0);
    while let Some((start, end)) = next_data(from, at, len)? {
        at = end;
        written += copy_range(from, to, start, end, &mut buffer)?;
    }
    Ok(written)
}

/// Copies the bytes from `start` to `end` to the same place in `to`, but for pages of zeros. Returns the bytes written. Blocks.
pub(crate) fn copy_range(from: &File, to: &File, start: u64, end: u64, buffer: &mut [u8]) -> io::Result<u64> {
    let (mut at, mut written) = (start, 0);
    while at < end {
        let len = (end - at).min(buffer.len() as u64) as usize;
        let part = &mut buffer[..len];
        from.read_exact_at(part, at)?;
        written += write_nonzero(to, part, at)?;
        at += len as u64;
    }
    Ok(written)
}

/// The next extent at or after `at` that is not a hole.
pub(crate) fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= len {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) if start < len => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        // A filesystem that knows no holes: all of it is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, len))),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(len))))
}

/// Writes the runs of pages that are not all zeros. Returns the bytes written.
pub(crate) fn write_nonzero(to: &File, bytes: &[u8], at: u64) -> io::Result<u64> {
    let mut written = 0;
    for (run, _) in runs(bytes).filter(|(_, zero)| !zero) {
        to.write_all_at(&bytes[run.clone()], at + run.start as u64)?;
        written += run.len() as u64;
    }
    Ok(written)
}

/// Writes over what is there: pages of zeros become holes where the filesystem can. Returns the bytes written.
pub(crate) fn write_over(to: &File, bytes: &[u8], at: u64) -> io::Result<u64> {
    let mut written = 0;
    for (run, zero) in runs(bytes) {
        let (start, len) = (at + run.start as u64, run.len() as u64);
        if zero {
            match rustix::fs::fallocate(to, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, len) {
                Ok(()) => continue,
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        to.write_all_at(&bytes[run], start)?;
        written += len;
    }
    Ok(written)
}

/// Runs of pages that are all zeros, or are not.
fn runs(bytes: &[u8]) -> impl Iterator<Item = (Range<usize>, bool)> {
    const ZEROS: [u8; PAGE] = [0; PAGE];
    let mut pages = bytes.chunks(PAGE).map(|page| (page.len(), *page == ZEROS[..page.len()])).peekable();
    let mut at = 0;
    std::iter::from_fn(move || {
        let (len, zero) = pages.next()?;
        let start = at;
        at += len;
        while let Some((len, _)) = pages.next_if(|(_, same)| *same == zero) {
            at += len;
        }
        Some((start..at, zero))
    })
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
        #[test]
        fn a_copy_reads_the_same_and_takes_no_more(
            extents in prop::collection::vec((0u64..8 << 20, 1usize..100_000, any::<u8>()), 0..6), tail in 0u64..10_000
        ) {
            let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            let mut len = tail;
            for (at, count, byte) in extents {
                from.write_all_at(&vec![byte; count], at).unwrap();
                len = len.max(at + count as u64);
            }
            from.set_len(len).unwrap();
            let written = copy(&from, &to, len).unwrap();
            let (mut ours, mut theirs) = (vec![0; len as usize], vec![0; len as usize]);
            from.read_exact_at(&mut ours, 0).unwrap();
            to.read_exact_at(&mut theirs, 0).unwrap();
            prop_assert!(ours == theirs);
            let nonzero = ours.chunks(PAGE).filter(|page| page.iter().any(|byte| *byte != 0)).map(<[u8]>::len).sum::<usize>();
            prop_assert_eq!(written, nonzero as u64);
            prop_assert!(to.metadata().unwrap().blocks() <= from.metadata().unwrap().blocks() + 8);
        }
    }

    #[test]
    fn writing_over_leaves_nothing_of_before_and_holes_for_zeros() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 8 * PAGE], 0).unwrap();
        let before = file.metadata().unwrap().blocks();
        let bytes = [vec![0; PAGE], vec![2; PAGE], vec![0; 3 * PAGE]].concat();
        assert!(write_over(&file, &bytes, 2 * PAGE as u64).unwrap() >= PAGE as u64);
        let mut found = vec![9; 8 * PAGE];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == [vec![1; 2 * PAGE], bytes, vec![1; PAGE]].concat());
        assert!(file.metadata().unwrap().blocks() < before);
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(100).unwrap();
        assert_eq!(copy(&from, &to, 101).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
