//! The memory of a stopped machine that maps a template's privately, written to a file at the cost of what it has changed.
//!
//! ```text
//!   template      |tttttttt........tttt|       immutable; . a hole
//!   process       |    DD      D       |       pages of its own: it has written to them
//!   file          |ttttDDtt....D...tttt|       the template's pages, and over them its own; zeros are holes
//! ```
//! The process is not asked: its page tables tell which pages are its own, and they are read from its address space. That takes
//! the right to trace it, which the service has as root, and over its own user's processes on most systems.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::time::Instant;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::mappings::{self, BATCH, Mapping, PAGE};
use crate::sparse;

/// Bytes read from the process at once.
const BUFFER: usize = 1 << 20;
/// Runs read from the process at once; the kernel takes 1024.
const RUNS: usize = 256;
/// Gap between two runs of own pages that is read along, pages: its content is the template's.
const NEAR: u64 = 4;

/// The memory of a process, found and readable.
#[derive(Debug)]
pub(crate) struct Dirty {
    pid: Pid,
    len: u64,
    parts: Vec<Mapping>,
}

/// The work that a file took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Bytes read from the process.
    pub(crate) own_bytes: u64,
    /// Bytes written to the file: pages of zeros are not, where they can be holes.
    pub(crate) bytes: u64,
}

impl Dirty {
    /// Finds the memory of `len` bytes that the process `pid` maps privately. An error when it maps none, and when this service
    /// may not read it. Blocks.
    pub(crate) fn find(pid: u32, len: u64) -> io::Result<Self> {
        let parts = mappings::of_memory(pid, len)?;
        let found = Self { pid: Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?), len, parts };
        let first = found.parts.first().ok_or(io::ErrorKind::NotFound)?;
        found.read(&mut [0; 8], &[RemoteIoVec { base: address(first.start)?, len: 8 }])?;
        mappings::for_pages(pid, &[], |_, _| Ok(()))?;
        Ok(found)
    }

    /// Writes the memory into `to`: an empty file, with the `template` that the process maps, or without one a copy of that.
    /// Asked every 32 MiB, `stop` ends it with an error. A process can make its pages unreadable: then this blocks until the
    /// process has ended.
    pub(crate) fn write(&self, template: Option<&File>, to: &File, stop: &dyn Fn() -> bool) -> io::Result<Written> {
        let begun = Instant::now();
        to.set_len(self.len)?;
        let mut copier = Copier { source: self, template, to, buffer: vec![0; BUFFER], written: Written::default() };
        let pid = self.pid.as_raw().unsigned_abs();
        for part in &self.parts {
            let mut runs = Vec::new();
            mappings::for_pages(pid, std::slice::from_ref(part), |first, pages| {
                if stop() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let is_own = pages.iter().map(|page| page.is_own());
                own_runs(first, is_own, &mut runs);
                copier.copy(part, first, pages.len() as u64, &runs)
            })?;
        }
        tracing::debug!(%pid, written = ?copier.written, took = ?begun.elapsed(), "a machine's memory was written");
        Ok(copier.written)
    }

    fn read(&self, buffer: &mut [u8], from: &[RemoteIoVec]) -> io::Result<()> {
        let wanted = buffer.len();
        match process_vm_readv(self.pid, &mut [IoSliceMut::new(buffer)], from)? {
            read if read == wanted => Ok(()),
            // It unmapped a part meanwhile, which a VMM does not do by itself.
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Runs of own pages among those from `first` on: the first page's number, and the number after the last.
fn own_runs(first: u64, is_own: impl Iterator<Item = bool>, runs: &mut Vec<(u64, u64)>) {
    runs.clear();
    for (page, _) in (first..).zip(is_own).filter(|(_, own)| *own) {
        match runs.last_mut() {
            Some((_, end)) if page - *end <= NEAR => *end = page + 1,
            _ => runs.push((page, page + 1)),
        }
    }
}

struct Copier<'a> {
    source: &'a Dirty,
    /// `None`: the file has it already.
    template: Option<&'a File>,
    to: &'a File,
    buffer: Vec<u8>,
    written: Written,
}

impl Copier<'_> {
    /// Writes `count` pages from `first` on, which `part` maps: `runs` from the process, the rest from the template.
    fn copy(&mut self, part: &Mapping, first: u64, count: u64, runs: &[(u64, u64)]) -> io::Result<()> {
        debug_assert!(count <= BATCH as u64);
        let mut at = first;
        for (start, end) in runs {
            self.template_pages(at * PAGE, start * PAGE)?;
            at = *end;
        }
        self.template_pages(at * PAGE, (first + count) * PAGE)?;

        let mut pieces: Vec<(u64, usize)> = Vec::with_capacity(RUNS);
        let mut filled = 0;
        for (start, end) in runs {
            let (mut at, end) = (start * PAGE, end * PAGE);
            while at < end {
                let len = (end - at).min((BUFFER - filled) as u64) as usize;
                pieces.push((at, len));
                filled += len;
                at += len as u64;
                if filled == BUFFER || pieces.len() == RUNS {
                    self.own_pages(part, &pieces)?;
                    pieces.clear();
                    filled = 0;
                }
            }
        }
        self.own_pages(part, &pieces)
    }

    fn own_pages(&mut self, part: &Mapping, pieces: &[(u64, usize)]) -> io::Result<()> {
        let total: usize = pieces.iter().map(|(_, len)| len).sum();
        if total == 0 {
            return Ok(());
        }
        let place =
            |(at, len): &(u64, usize)| Ok(RemoteIoVec { base: address(part.start + (at - part.offset))?, len: *len });
        let from = pieces.iter().map(place).collect::<io::Result<Vec<_>>>()?;
        self.source.read(&mut self.buffer[..total], &from)?;
        self.written.own_bytes += total as u64;
        let mut rest = &self.buffer[..total];
        for (at, len) in pieces {
            let (bytes, after) = rest.split_at(*len);
            let write = if self.template.is_some() { sparse::write_nonzero } else { sparse::write_over };
            self.written.bytes += write(self.to, bytes, *at)?;
            rest = after;
        }
        Ok(())
    }

    fn template_pages(&mut self, from: u64, to: u64) -> io::Result<()> {
        let Some(template) = self.template else { return Ok(()) };
        let mut next = from;
        while let Some((start, end)) = sparse::next_data(template, next, to)? {
            next = end;
            self.written.bytes += sparse::copy_range(template, self.to, start, end, &mut self.buffer)?;
        }
        Ok(())
    }
}

fn address(number: u64) -> io::Result<usize> {
    usize::try_from(number).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::anonymous;

    /// A private mapping of a file in this process.
    struct Mapped(*mut u8, usize);

    impl Mapped {
        #[allow(unsafe_code, reason = "maps a file privately, as a VMM does")]
        fn new(file: &File, len: u64) -> Self {
            let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
            let flags = rustix::mm::MapFlags::PRIVATE;
            // SAFETY: a new mapping of its own place.
            let memory = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len as usize, protection, flags, file, 0) };
            Self(memory.unwrap().cast(), len as usize)
        }

        #[allow(unsafe_code, reason = "uses the mapping, as a guest does")]
        fn write(&self, at: u64, bytes: &[u8]) {
            assert!(at as usize + bytes.len() <= self.1);
            // SAFETY: inside the mapping, which nobody else uses.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(at as usize), bytes.len()) }
        }

        #[allow(unsafe_code, reason = "uses the mapping, as a guest does")]
        fn read(&self, at: u64) -> u8 {
            assert!((at as usize) < self.1);
            // SAFETY: inside the mapping, which nobody else uses.
            unsafe { self.0.add(at as usize).read_volatile() }
        }
    }

    impl Drop for Mapped {
        #[allow(unsafe_code, reason = "removes the mapping")]
        fn drop(&mut self) {
            // SAFETY: its own mapping, which nobody uses any more.
            unsafe { rustix::mm::munmap(self.0.cast(), self.1) }.unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]
        #[test]
        fn the_file_has_what_the_process_sees(
            template in prop::collection::vec((0..9_000_u64, 1..600_u64, 1..=255_u8), 0..8),
            writes in prop::collection::vec((0..9_000_u64, 0..4096_u64, any::<u8>(), 1..3_000_usize), 0..60),
            reads in prop::collection::vec(0..9_000_u64, 0..20),
        ) {
            // Larger than one batch of the pagemap; a length that no other mapping of this process has.
            const PAGES: u64 = 9_013;
            const LEN: u64 = PAGES * PAGE;
            let file = anonymous("test", LEN).unwrap();
            for (page, pages, byte) in template {
                file.write_all_at(&vec![byte; (pages.min(PAGES - page) * PAGE) as usize], page * PAGE).unwrap();
            }
            let mut expected = vec![0; LEN as usize];
            file.read_exact_at(&mut expected, 0).unwrap();
            let mapped = Mapped::new(&file, LEN);
            for page in reads {
                prop_assert_eq!(mapped.read(page * PAGE), expected[(page * PAGE) as usize]);
            }
            let mut own = std::collections::BTreeSet::new();
            for (page, offset, byte, len) in writes {
                let at = (page * PAGE + offset) as usize;
                // Now and then a whole page becomes zeros again.
                let (at, len) = if byte < 64 { (page as usize * PAGE as usize, PAGE as usize) } else { (at, len) };
                let byte = if byte < 64 { 0 } else { byte };
                expected[at..at + len].fill(byte);
                mapped.write(at as u64, &vec![byte; len]);
                own.extend(at as u64 / PAGE..=(at + len - 1) as u64 / PAGE);
            }
            let to = tempfile::tempfile().unwrap();
            let written = Dirty::find(std::process::id(), LEN).unwrap().write(Some(&file), &to, &|| false).unwrap();
            let mut found = vec![1; LEN as usize];
            to.read_exact_at(&mut found, 0).unwrap();
            prop_assert!(found == expected);
            prop_assert_eq!(to.metadata().unwrap().len(), LEN);
            let own = own.len() as u64 * PAGE;
            prop_assert!((own..=own * (1 + NEAR)).contains(&written.own_bytes), "{:?} of {}", written, own);
            let nonzero = expected.chunks(PAGE as usize).filter(|page| page.iter().any(|byte| *byte != 0)).count();
            prop_assert_eq!(written.bytes, nonzero as u64 * PAGE);

            // The template's part may have been copied before.
            let prepared = tempfile::tempfile().unwrap();
            sparse::copy(&file, &prepared, LEN).unwrap();
            let over = Dirty::find(std::process::id(), LEN).unwrap().write(None, &prepared, &|| false).unwrap();
            prepared.read_exact_at(&mut found, 0).unwrap();
            prop_assert!(found == expected);
            prop_assert!(over.bytes <= over.own_bytes && over.own_bytes == written.own_bytes);
            let stopped = Dirty::find(std::process::id(), LEN).unwrap().write(None, &prepared, &|| true).unwrap_err();
            prop_assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
        }
    }

    #[test]
    fn a_process_without_such_a_memory_and_one_that_is_gone_are_errors() {
        let error = Dirty::find(std::process::id(), 77_777 * PAGE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let mut gone = std::process::Command::new("/bin/true").spawn().unwrap();
        gone.wait().unwrap();
        assert!(Dirty::find(gone.id(), PAGE).is_err());
    }
}
