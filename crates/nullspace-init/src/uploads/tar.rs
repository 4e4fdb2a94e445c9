//! A reader of tar archives: ustar, with the extended headers of POSIX (pax) and the long names of GNU.
//!
//! The archive is hostile. Sizes are checked before memory is taken, and every header's checksum is checked.

use std::io::{self, Read};

/// Bytes of a block.
const BLOCK: usize = 512;
/// Longest extended header, bytes.
const MAX_EXTENDED: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Dir,
    Symlink,
    HardLink,
    /// Anything else: its type byte.
    Other(u8),
}

/// The head of an entry. `size` bytes of content follow it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// As the archive has it.
    pub(super) path: Vec<u8>,
    /// Of a link.
    pub(super) target: Vec<u8>,
    pub(super) mode: u32,
    pub(super) size: u64,
}

/// Why an archive cannot be read.
#[derive(Debug)]
pub(super) enum TarError {
    Read(io::Error),
    Damaged(&'static str),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> TarError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Damaged("it ends within an entry"),
            _ => TarError::Read(error),
        }
    }
}

/// An archive that is read from its beginning.
pub(super) struct Archive<R> {
    input: R,
    /// Bytes of the current entry that were not read, and of the padding behind them.
    left: u64,
    padding: u64,
}

#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(input: R) -> Archive<R> {
        Archive { input, left: 0, padding: 0 }
    }

    /// Reads some of the current entry's content; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..most).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        loop {
            match self.input.read(buffer) {
                Ok(0) => return Err(TarError::Damaged("it ends within an entry")),
                Ok(len) => {
                    self.left = self.left.saturating_sub(u64::try_from(len).unwrap_or(u64::MAX));
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let rest = self.left.saturating_add(self.padding);
        if io::copy(&mut self.input.by_ref().take(rest), &mut io::sink())? < rest {
            return Err(TarError::Damaged("it ends within an entry"));
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next block; `None` at the end of the input.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Damaged("it ends within a header")),
                Ok(len) => filled += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(block))
    }

    /// The whole content of an extended header.
    fn extended(&mut self) -> Result<Vec<u8>, TarError> {
        if self.left > MAX_EXTENDED {
            return Err(TarError::Damaged("an extended header is too long"));
        }
        let mut content = vec![0; usize::try_from(self.left).unwrap_or_default()];
        self.input.read_exact(&mut content)?;
        self.left = 0;
        Ok(content)
    }

    /// The next entry; `None` at the end. What was not read of the one before is passed over.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            let Some(block) = self.block()? else { return Ok(None) };
            if block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = Header(&block);
            if !header.is_sound() {
                return Err(TarError::Damaged("a header's checksum is wrong"));
            }
            let size = header.number(124, 12).ok_or(TarError::Damaged("an entry's size is no number"))?;
            let kind = header.byte(156);
            let meta = matches!(kind, b'x' | b'g' | b'L' | b'K');
            let size = if meta { size } else { extended.size.unwrap_or(size) };
            let block_len = BLOCK as u64;
            self.left = size;
            self.padding = (block_len - size % block_len) % block_len;
            match kind {
                b'x' => parse_pax(&self.extended()?, &mut extended)?,
                b'g' => drop(self.extended()?),
                b'L' => extended.path = Some(until_nul(self.extended()?)),
                b'K' => extended.target = Some(until_nul(self.extended()?)),
                kind => {
                    let kind = match kind {
                        b'0' | 0 | b'7' => Kind::File,
                        b'5' => Kind::Dir,
                        b'2' => Kind::Symlink,
                        b'1' => Kind::HardLink,
                        other => Kind::Other(other),
                    };
                    if matches!(kind, Kind::Symlink | Kind::HardLink | Kind::Dir) {
                        // Some writers give links the size of what they lead to, without its content.
                        (self.left, self.padding) = (0, 0);
                    }
                    let mode = header.number(100, 8).ok_or(TarError::Damaged("an entry's mode is no number"))?;
                    return Ok(Some(Entry {
                        kind,
                        path: extended.path.unwrap_or_else(|| header.path()),
                        target: extended.target.unwrap_or_else(|| until_nul(header.bytes(157, 100).to_vec())),
                        mode: u32::try_from(mode & 0o7777).unwrap_or_default(),
                        size: self.left,
                    }));
                }
            }
        }
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(len) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(len);
    }
    bytes
}

/// Records of `<length> <key>=<value>\n`.
fn parse_pax(mut records: &[u8], extended: &mut Extended) -> Result<(), TarError> {
    const WRONG: TarError = TarError::Damaged("an extended header is wrong");
    while !records.is_empty() {
        let blank = records.iter().position(|byte| *byte == b' ').ok_or(WRONG)?;
        let digits = records.get(..blank).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or(WRONG)?;
        let len: usize = digits.parse().map_err(|_| WRONG)?;
        let record = records.get(blank + 1..len).ok_or(WRONG)?;
        records = records.get(len..).unwrap_or_default();
        let record = record.strip_suffix(b"\n").ok_or(WRONG)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(WRONG)?;
        let (key, value) = (&record[..equals], record.get(equals + 1..).unwrap_or_default());
        match key {
            b"path" => extended.path = Some(value.to_vec()),
            b"linkpath" => extended.target = Some(value.to_vec()),
            b"size" => {
                let size = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
                extended.size = Some(size.ok_or(WRONG)?);
            }
            key if key.starts_with(b"GNU.sparse.") => return Err(TarError::Damaged("it has a sparse file")),
            _ => {}
        }
    }
    Ok(())
}

struct Header<'a>(&'a [u8; BLOCK]);

impl Header<'_> {
    fn bytes(&self, at: usize, len: usize) -> &[u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }

    fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or_default()
    }

    /// An octal number, or one of base 256.
    fn number(&self, at: usize, len: usize) -> Option<u64> {
        let field = self.bytes(at, len);
        if field.first().is_some_and(|first| first & 0x80 != 0) {
            let (first, rest) = field.split_first()?;
            let start = u64::from(first & 0x7f);
            return rest.iter().try_fold(start, |number, byte| {
                number.checked_mul(256).and_then(|number| number.checked_add(u64::from(*byte)))
            });
        }
        let text = std::str::from_utf8(field).ok()?.trim_matches(|part| part == ' ' || part == '\0');
        if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
    }

    fn is_sound(&self) -> bool {
        let sum: u64 = self.0.iter().enumerate().fold(0, |sum, (at, byte)| {
            // The checksum's own field counts as blanks.
            sum + u64::from(if (148..156).contains(&at) { b' ' } else { *byte })
        });
        self.number(148, 8) == Some(sum)
    }

    fn path(&self) -> Vec<u8> {
        let name = until_nul(self.bytes(0, 100).to_vec());
        let prefix = until_nul(self.bytes(345, 155).to_vec());
        // GNU's format uses the prefix's place for other things.
        if self.bytes(257, 6) == b"ustar\0" && !prefix.is_empty() {
            return [prefix.as_slice(), b"/", name.as_slice()].concat();
        }
        name
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One entry as it is written.
    pub(in super::super) fn entry(kind: u8, path: &str, target: &str, mode: u32, content: &[u8]) -> Vec<u8> {
        let mut block = [0u8; BLOCK];
        block[..path.len()].copy_from_slice(path.as_bytes());
        block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[156] = kind;
        block[157..157 + target.len()].copy_from_slice(target.as_bytes());
        block[257..263].copy_from_slice(b"ustar\0");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let padding = (BLOCK - content.len() % BLOCK) % BLOCK;
        [&block[..], content, &vec![0; padding]].concat()
    }

    fn names(bytes: &[u8]) -> Result<Vec<(Kind, String, String, u64)>, TarError> {
        let mut archive = Archive::new(bytes);
        let mut found = Vec::new();
        while let Some(entry) = archive.next()? {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            found.push((entry.kind, text(&entry.path), text(&entry.target), entry.size));
        }
        Ok(found)
    }

    #[test]
    fn entries_are_read_with_their_long_names() {
        let pax = format!("{}{}", record("path", &"p".repeat(300)), record("mtime", "0"));
        let archive = [
            entry(b'5', "d/", "", 0o755, b""),
            entry(b'0', "d/file", "", 0o640, &[7; 700]),
            entry(b'x', "ignored", "", 0, pax.as_bytes()),
            entry(b'0', "short", "", 0o644, b"x"),
            entry(b'L', "ignored", "", 0, b"long-by-gnu\0"),
            entry(b'2', "short", "file", 0o777, b""),
            entry(b'1', "hard", "d/file", 0o644, b""),
            entry(b'6', "fifo", "", 0o644, b""),
            vec![0; 2 * BLOCK],
        ];
        let long = "p".repeat(300);
        let expected = [
            (Kind::Dir, "d/", "", 0),
            (Kind::File, "d/file", "", 700),
            (Kind::File, long.as_str(), "", 1),
            (Kind::Symlink, "long-by-gnu", "file", 0),
            (Kind::HardLink, "hard", "d/file", 0),
            (Kind::Other(b'6'), "fifo", "", 0),
        ];
        let expected = expected.map(|(kind, path, target, size)| (kind, path.to_owned(), target.to_owned(), size));
        assert_eq!(names(&archive.concat()).unwrap(), expected);
    }

    fn record(key: &str, value: &str) -> String {
        let rest = key.len() + value.len() + 3;
        let len = (1..10).map(|digits| rest + digits).find(|len| len.to_string().len() + rest == *len).unwrap();
        format!("{len} {key}={value}\n")
    }

    #[test]
    fn damaged_archives_are_refused() {
        let mut torn = entry(b'0', "file", "", 0o644, &[1; 600]);
        torn.truncate(800);
        let mut changed = entry(b'0', "file", "", 0o644, b"");
        changed[3] = b'f';
        for (what, bytes) in [
            ("torn", torn),
            ("changed", changed),
            ("half a header", vec![1; 100]),
            ("pax without a length", entry(b'x', "", "", 0, b"path=a\n")),
            ("pax that is too long", entry(b'x', "", "", 0, b"99 path=a\n")),
            ("sparse", [entry(b'x', "", "", 0, record("GNU.sparse.major", "1").as_bytes())].concat()),
        ] {
            assert!(matches!(names(&bytes), Err(TarError::Damaged(_))), "{what}");
        }
        let huge = {
            let mut block = entry(b'x', "", "", 0, b"");
            block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            block
        };
        assert!(matches!(names(&huge), Err(TarError::Damaged(_))));
    }
}
