//! A VMM's mapping of its guest's memory, seen from outside.
//!
//! ```text
//!   /proc/PID/maps     the private, writable mapping of a file of the memory's size ──> its parts
//!   /proc/PID/pagemap  8 bytes for each page of them: in memory? swapped out? the file's, or the process's own?
//! ```
//! A process may be in a guest's hands: what it maps decides what is read of it, and of nothing else.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// Pages that are looked at in one step.
pub(crate) const BATCH: usize = 8192;
/// Longest list of mappings that is read, bytes. A VMM has some hundred lines.
const MAPS: u64 = 4 << 20;
/// Flags of an entry: the page is in memory; swapped out; of a file.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// A part of the process's address space that shows a part of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    inode: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) offset: u64,
}

/// A page of a private mapping of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page(u64);

impl Page {
    /// True when the process has used it: it is in memory or swapped out.
    pub(crate) fn is_used(self) -> bool {
        self.0 & (PRESENT | SWAPPED) != 0
    }

    /// True when the process has written to it: it is a copy, and no longer the file's.
    pub(crate) fn is_own(self) -> bool {
        self.is_used() && self.0 & OF_FILE == 0
    }
}

/// Returns the parts of the mapping by which the process `pid` has a memory of `len` bytes privately, in the order of the
/// memory; none when it has no such memory. Blocks.
pub(crate) fn of_memory(pid: u32, len: u64) -> io::Result<Vec<Mapping>> {
    let maps = BufReader::new(io::Read::take(File::open(format!("/proc/{pid}/maps"))?, MAPS));
    let mut found = Vec::new();
    for line in maps.lines() {
        found.extend(parse(&line?));
    }
    Ok(memory_of(&found, len))
}

/// Reads the states of all pages of a memory, [`BATCH`] at a time, in their order: `each` gets the first page's number and the
/// pages. Blocks.
pub(crate) fn for_pages(
    pid: u32,
    parts: &[Mapping],
    mut each: impl FnMut(u64, &[Page]) -> io::Result<()>,
) -> io::Result<()> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let (mut entries, mut states) = (vec![0; BATCH * 8], Vec::with_capacity(BATCH));
    for part in parts {
        let pages = (part.end - part.start) / PAGE;
        let mut at = 0;
        while at < pages {
            let batch = &mut entries[..(pages - at).min(BATCH as u64) as usize * 8];
            pagemap.read_exact_at(batch, (part.start / PAGE + at) * 8)?;
            states.clear();
            states.extend(batch.as_chunks().0.iter().map(|entry| Page(u64::from_ne_bytes(*entry))));
            each(part.offset / PAGE + at, &states)?;
            at += states.len() as u64;
        }
    }
    Ok(())
}

/// A private, writable mapping of a file.
fn parse(line: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let private = fields.next()? == "rw-p";
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end, offset) = (hex(start)?, hex(end)?, hex(fields.next()?)?);
    let inode = fields.nth(1)?.parse().ok()?;
    (private && inode != 0 && start < end).then_some(Mapping { inode, start, end, offset })
}

/// The mappings of the one file of which exactly `len` bytes from its beginning are mapped, in the order of the file. The kernel
/// shows one mapping in several lines when their flags differ.
fn memory_of(found: &[Mapping], len: u64) -> Vec<Mapping> {
    for inode in found.iter().map(|mapping| mapping.inode) {
        let mut parts: Vec<Mapping> = found.iter().filter(|mapping| mapping.inode == inode).copied().collect();
        parts.sort_by_key(|mapping| mapping.offset);
        let mut next = 0;
        let whole = parts.iter().all(|part| {
            let follows = part.offset == next;
            next = part.offset + (part.end - part.start);
            follows
        });
        if whole && next == len {
            return parts;
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_other_mappings_are_passed_over() {
        let line = "7f00c0000000-7f00cc000000 rw-p 00000000 00:01 1025                       /memfd:nullspace-template (deleted)";
        let mapping = Mapping { inode: 1025, start: 0x7f00_c000_0000, end: 0x7f00_cc00_0000, offset: 0 };
        assert_eq!(parse(line), Some(mapping));
        for other in [
            "",
            "7f00c0000000-7f00cc000000 rw-s 00000000 00:01 1025 /memfd:x",
            "7f00c0000000-7f00cc000000 r--p 00000000 00:01 1025 /memfd:x",
            "7f00c0000000-7f00cc000000 rw-p 00000000 00:00 0 ",
            "7f00cc000000-7f00c0000000 rw-p 00000000 00:01 1025",
            "x-y rw-p 00000000 00:01 1025",
            "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_memory_in_several_lines_is_one() {
        let part = |inode, start, end, offset| Mapping { inode, start, end, offset };
        let (low, high) = (part(7, 0x1000, 0x3000, 0), part(7, 0x9000, 0xA000, 0x2000));
        let other = part(8, 0x20_0000, 0x20_1000, 0);
        assert_eq!(memory_of(&[other, high, low], 0x3000), [low, high]);
        assert_eq!(memory_of(&[other, high], 0x3000), [], "a part is missing");
        assert_eq!(memory_of(&[low, low], 0x4000), [], "mapped twice");
        assert_eq!(memory_of(&[other, high, low], 0x1000), [other]);
    }
}
