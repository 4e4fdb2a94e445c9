//! The reader itself: headers in, entries and their data out.

use std::io::BufRead;

use super::header::{BLOCK, Format, RawHeader, until_nul};
use super::pax::{Pax, gnu_pairs, plain_decimal};
use super::sparse::{self, Segment};
use super::{Chunk, Entry, EntryKind, TarError, TarLimits, shown};

/// Reads a tar archive from `R`, entry by entry, in one forward pass.
///
/// After [`next_entry`](TarReader::next_entry) the entry's data can be read once with
/// [`read_data`](TarReader::read_data); what is not read is skipped by the next call.
#[derive(Debug)]
pub struct TarReader<R> {
    source: R,
    limits: TarLimits,
    /// Bytes taken from the source.
    offset: u64,
    /// Stored bytes of the current entry not yet read, and the padding after them.
    stored: u64,
    padding: u64,
    /// The current entry's data segments, if it is sparse.
    segments: Option<Vec<Segment>>,
    /// The current entry's size with holes.
    size: u64,
    finished: bool,
}

impl<R: BufRead> TarReader<R> {
    /// Starts reading at an archive's first byte.
    pub fn new(source: R, limits: TarLimits) -> TarReader<R> {
        TarReader { source, limits, offset: 0, stored: 0, padding: 0, segments: None, size: 0, finished: false }
    }

    /// Bytes of the archive consumed so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry's header; `None` at the end of the archive.
    ///
    /// As in Go, two zero blocks end the archive, and so does the end of the stream between entries. Global PAX headers
    /// are skipped, as Docker does; so are volume labels.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut pax: Option<Pax> = None;
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        loop {
            self.skip_data()?;
            if self.finished {
                return Ok(None);
            }
            let start = self.offset;
            let Some(block) = self.header_block()? else {
                self.finished = true;
                let dangling = pax.is_some() || long_name.is_some() || long_link.is_some();
                return if dangling { Err(TarError::Truncated { offset: start }) } else { Ok(None) };
            };
            let raw = RawHeader(&block);
            match raw.flag() {
                b'x' | b'X' => {
                    let data = self.extended(&raw, start)?;
                    let parsed = Pax::parse(&data, &self.limits);
                    pax = Some(parsed.map_err(|reason| TarError::Pax { offset: start, reason })?);
                }
                b'g' => {
                    let data = self.extended(&raw, start)?;
                    Pax::parse(&data, &self.limits).map_err(|reason| TarError::Pax { offset: start, reason })?;
                }
                b'L' => long_name = Some(until_nul(&self.extended(&raw, start)?).to_vec()),
                b'K' => long_link = Some(until_nul(&self.extended(&raw, start)?).to_vec()),
                b'V' => self.begin_data(stored_size(&raw, start)?),
                _ => {
                    let mut pax = pax.unwrap_or_default();
                    // The order of precedence is Go's: header < PAX < GNU long name.
                    pax.path = long_name.or(pax.path);
                    pax.link = long_link.or(pax.link);
                    return self.entry(&raw, start, pax).map(Some);
                }
            }
        }
    }

    /// Hands the current entry's content to `each`, in order, holes included. Call it once per entry.
    pub fn read_data<E: From<TarError>>(&mut self, mut each: impl FnMut(Chunk<'_>) -> Result<(), E>) -> Result<(), E> {
        let Some(segments) = self.segments.take() else {
            let len = self.stored;
            return self.data(len, &mut each);
        };
        let mut at = 0_u64;
        for segment in segments {
            // `sparse::check` has proved order and bounds.
            if segment.offset > at {
                each(Chunk::Hole(segment.offset - at))?;
            }
            self.data(segment.len, &mut each)?;
            at = segment.offset.saturating_add(segment.len);
        }
        if self.size > at {
            each(Chunk::Hole(self.size - at))?;
        }
        Ok(())
    }

    /// Reads on to the end of the stream, past the end of the archive: padding belongs to the digest too.
    pub fn drain(&mut self) -> Result<(), TarError> {
        loop {
            let len = self.source.fill_buf().map_err(TarError::Read)?.len();
            if len == 0 {
                return Ok(());
            }
            self.source.consume(len);
            self.offset = self.offset.saturating_add(len as u64);
        }
    }

    fn data<E: From<TarError>>(
        &mut self,
        mut len: u64,
        each: &mut impl FnMut(Chunk<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while len > 0 {
            let buffer = self.source.fill_buf().map_err(TarError::Read)?;
            if buffer.is_empty() {
                return Err(TarError::Truncated { offset: self.offset }.into());
            }
            let take = usize::try_from(len).unwrap_or(usize::MAX).min(buffer.len());
            each(Chunk::Data(buffer.get(..take).unwrap_or(buffer)))?;
            self.source.consume(take);
            let taken = take as u64;
            self.offset = self.offset.saturating_add(taken);
            self.stored = self.stored.saturating_sub(taken);
            len -= taken;
        }
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        self.segments = None;
        let mut left = self.stored.saturating_add(self.padding);
        while left > 0 {
            let available = self.source.fill_buf().map_err(TarError::Read)?.len();
            if available == 0 {
                // Some writers leave out the padding after the very last entry. As in Go, all of it or nothing.
                if left == self.padding {
                    self.finished = true;
                    break;
                }
                return Err(TarError::Truncated { offset: self.offset });
            }
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(available);
            self.source.consume(take);
            self.offset = self.offset.saturating_add(take as u64);
            left -= take as u64;
        }
        (self.stored, self.padding) = (0, 0);
        Ok(())
    }

    fn begin_data(&mut self, stored: u64) {
        self.stored = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
    }

    /// The next header block; `None` at the archive's end.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut after_zero = false;
        loop {
            let start = self.offset;
            let Some(block) = self.block()? else { return Ok(None) };
            let raw = RawHeader(&block);
            match (raw.is_zero(), after_zero) {
                (true, true) => return Ok(None),
                (true, false) => after_zero = true,
                (false, true) => {
                    return Err(TarError::Header { offset: start, reason: "data after a single zero block" });
                }
                (false, false) if raw.checksum_ok() => return Ok(Some(block)),
                (false, false) => return Err(TarError::Header { offset: start, reason: "wrong checksum" }),
            }
        }
    }

    /// One block; `None` if the stream ends before its first byte.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0_u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let buffer = self.source.fill_buf().map_err(TarError::Read)?;
            if buffer.is_empty() {
                return if filled == 0 { Ok(None) } else { Err(TarError::Truncated { offset: self.offset }) };
            }
            let take = buffer.len().min(BLOCK - filled);
            block[filled..filled + take].copy_from_slice(&buffer[..take]);
            self.source.consume(take);
            self.offset = self.offset.saturating_add(take as u64);
            filled += take;
        }
        Ok(Some(block))
    }

    fn required_block(&mut self) -> Result<[u8; BLOCK], TarError> {
        self.block()?.ok_or(TarError::Truncated { offset: self.offset })
    }

    /// The data of an `x`, `g`, `L` or `K` header.
    fn extended(&mut self, raw: &RawHeader<'_>, start: u64) -> Result<Vec<u8>, TarError> {
        let size = stored_size(raw, start)?;
        let limit = self.limits.extended_header;
        if size > limit {
            return Err(TarError::TooLarge { what: "an extended header", offset: start, size, limit });
        }
        self.begin_data(size);
        // Grown as bytes arrive: a size alone must not make memory be taken.
        let mut data = Vec::new();
        self.data::<TarError>(size, &mut |chunk| {
            if let Chunk::Data(bytes) = chunk {
                data.extend_from_slice(bytes);
            }
            Ok(())
        })?;
        Ok(data)
    }

    fn entry(&mut self, raw: &RawHeader<'_>, start: u64, pax: Pax) -> Result<Entry, TarError> {
        let bad = |reason| TarError::Header { offset: start, reason };
        let path = pax.path.unwrap_or_else(|| raw.name());
        let flag = raw.flag();
        let kind = match flag {
            // Before POSIX, a directory was a file whose name ends in a slash.
            0 if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            b's' => EntryKind::Socket,
            _ => return Err(TarError::UnsupportedType { path: shown(&path), flag: char::from(flag) }),
        };
        let stored = match (kind, pax.size) {
            // Links and directories have no data, whatever their size field says (old tars repeat the target's).
            (EntryKind::File, Some(size)) => size,
            (EntryKind::File, None) => stored_size(raw, start)?,
            _ => 0,
        };
        let id = |value: Option<u64>, field: Option<i64>, reason| {
            let value = match value {
                Some(value) => Some(value),
                None => field.and_then(|value| u64::try_from(value).ok()),
            };
            value.and_then(|value| u32::try_from(value).ok()).ok_or(bad(reason))
        };
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => super::Timestamp { seconds: raw.mtime().ok_or(bad("bad mtime"))?, nanos: 0 },
        };
        let mode = raw.mode().ok_or(bad("bad mode"))?;
        let mut entry = Entry {
            kind,
            path,
            link: pax.link.unwrap_or_else(|| raw.link()),
            size: stored,
            // Writers put the file type into the upper bits; the type flag decides about that.
            mode: u16::try_from(mode & 0o7777).map_err(|_| bad("bad mode"))?,
            uid: id(pax.uid, raw.uid(), "uid out of range")?,
            gid: id(pax.gid, raw.gid(), "gid out of range")?,
            mtime,
            xattrs: pax.xattrs,
        };
        self.begin_data(stored);
        let map = if flag == b'S' {
            let size = raw.gnu_real_size().and_then(|size| u64::try_from(size).ok());
            entry.size = size.ok_or(bad("bad size of a sparse file"))?;
            Some(self.gnu_map(raw, &entry.path)?)
        } else if kind == EntryKind::File {
            if let Some(name) = pax.sparse.name {
                entry.path = name;
            }
            self.pax_map(pax.sparse.major, pax.sparse.minor, pax.sparse.map, &entry.path)?
        } else {
            None
        };
        if let Some(mut map) = map {
            if flag != b'S' {
                entry.size = pax.sparse.real_size.ok_or(bad("a sparse file without its size"))?;
            }
            sparse::check(&mut map, entry.size, self.stored)
                .map_err(|reason| TarError::Sparse { path: shown(&entry.path), reason })?;
            self.segments = Some(map);
        }
        let limit = self.limits.file_size;
        if entry.size > limit || self.stored > limit {
            let size = entry.size.max(self.stored);
            return Err(TarError::TooLarge { what: "a file", offset: start, size, limit });
        }
        self.size = entry.size;
        Ok(entry)
    }

    /// GNU's old sparse format: four pairs in the header, then blocks of twenty-one while a flag says so.
    fn gnu_map(&mut self, raw: &RawHeader<'_>, path: &[u8]) -> Result<Vec<Segment>, TarError> {
        let bad = |reason| TarError::Sparse { path: shown(path), reason };
        if raw.format() != Format::Gnu {
            return Err(bad("a GNU sparse entry in a header that is not GNU's"));
        }
        let mut map = Vec::new();
        gnu_pairs(raw.gnu_sparse_map(), &mut map).ok_or(bad("a bad number"))?;
        let mut more = raw.gnu_sparse_extended();
        while more {
            let block = self.required_block()?;
            gnu_pairs(&block[..504], &mut map).ok_or(bad("a bad number"))?;
            if map.len() > self.limits.sparse_segments {
                return Err(bad("too many segments"));
            }
            more = block[504] != 0;
        }
        Ok(map)
    }

    /// GNU's sparse formats in PAX headers; `None` if the file is not sparse.
    fn pax_map(
        &mut self,
        major: Option<u64>,
        minor: Option<u64>,
        map: Option<Vec<Segment>>,
        path: &[u8],
    ) -> Result<Option<Vec<Segment>>, TarError> {
        let bad = |reason| TarError::Sparse { path: shown(path), reason };
        match (major, minor) {
            (None, None) => Ok(map),
            (Some(0), Some(0 | 1)) => map.map(Some).ok_or(bad("no map")),
            (Some(1), Some(0)) => self.map_in_data(path).map(Some),
            _ => Err(bad("an unknown version of the sparse format")),
        }
    }

    /// Version 1.0: the map is decimal lines in front of the data, padded to a block.
    fn map_in_data(&mut self, path: &[u8]) -> Result<Vec<Segment>, TarError> {
        let bad = |reason| TarError::Sparse { path: shown(path), reason };
        let mut text: Vec<u8> = Vec::new();
        let mut wanted: Option<usize> = None;
        let mut lines = 0_usize;
        // A line is at most 20 digits; the count is known after the first.
        while wanted.is_none_or(|wanted| lines < wanted) {
            if self.stored < BLOCK as u64 {
                return Err(bad("the map is longer than the data"));
            }
            let block = self.required_block()?;
            self.stored -= BLOCK as u64;
            lines += block.iter().filter(|&&b| b == b'\n').count();
            text.extend_from_slice(&block);
            if wanted.is_none() {
                let first = text.split(|&b| b == b'\n').next().filter(|_| lines > 0);
                let count = first.and_then(plain_decimal).and_then(|count| usize::try_from(count).ok());
                let count = count.filter(|&count| count <= self.limits.sparse_segments);
                let count = count.ok_or(bad("the number of segments is missing or too large"))?;
                wanted = Some(count * 2 + 1);
            }
            if text.len() > self.limits.sparse_segments.saturating_mul(48).saturating_add(BLOCK) {
                return Err(bad("the map is too long"));
            }
        }
        let mut numbers = text.split(|&b| b == b'\n').map(plain_decimal).skip(1);
        let count = wanted.unwrap_or(1) / 2;
        let mut map = Vec::with_capacity(count.min(4096));
        for _ in 0..count {
            let (Some(Some(offset)), Some(Some(len))) = (numbers.next(), numbers.next()) else {
                return Err(bad("a bad number"));
            };
            map.push(Segment { offset, len });
        }
        Ok(map)
    }
}

fn stored_size(raw: &RawHeader<'_>, start: u64) -> Result<u64, TarError> {
    raw.size().and_then(|size| u64::try_from(size).ok()).ok_or(TarError::Header { offset: start, reason: "bad size" })
}
