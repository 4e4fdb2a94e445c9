//! The 512-byte header block: where each field is, and how its numbers are written.
//!
//! Offsets are those of POSIX ustar (IEEE 1003.1, pax, "ustar Interchange Format"), GNU tar's manual ("Basic Tar Format")
//! and star.

pub(super) const BLOCK: usize = 512;

/// Which of the formats a header block is in: it decides what the bytes after 257 mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A view of one header block.
pub(super) struct RawHeader<'a>(pub(super) &'a [u8; BLOCK]);

impl<'a> RawHeader<'a> {
    fn field(&self, start: usize, len: usize) -> &'a [u8] {
        // Callers pass constants inside the block; an empty field is the harmless answer to anything else.
        self.0.get(start..start.saturating_add(len)).unwrap_or(&[])
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|&b| b == 0)
    }

    /// The stored checksum equals the sum of the block with that field as spaces; old writers summed signed bytes.
    pub(super) fn checksum_ok(&self) -> bool {
        let Some(stored) = octal(self.field(148, 8)) else { return false };
        let mut unsigned = 0_i64;
        let mut signed = 0_i64;
        for (at, &byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        i64::try_from(stored).is_ok_and(|stored| stored == unsigned || stored == signed)
    }

    pub(super) fn format(&self) -> Format {
        match (self.field(257, 6), self.field(263, 2), self.field(508, 4)) {
            (b"ustar\0", _, b"tar\0") => Format::Star,
            (b"ustar\0", _, _) => Format::Ustar,
            (b"ustar ", b" \0", _) => Format::Gnu,
            _ => Format::V7,
        }
    }

    pub(super) fn flag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        let prefix = match self.format() {
            Format::Ustar => until_nul(self.field(345, 155)),
            Format::Star => until_nul(self.field(345, 131)),
            // Go before 1.8 wrote a ustar prefix into GNU headers, over the access and change time. Images of that age
            // exist; Go still reads them: if the times are no numbers, the field is a prefix.
            Format::Gnu => {
                let no_time = |field: &[u8]| field.first().is_some_and(|&b| b != 0) && number(field).is_none();
                if no_time(self.field(345, 12)) || no_time(self.field(357, 12)) {
                    let prefix = until_nul(self.field(345, 155));
                    if prefix.is_ascii() { prefix } else { &[] }
                } else {
                    &[]
                }
            }
            Format::V7 => &[],
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(self.field(157, 100)).to_vec()
    }

    pub(super) fn mode(&self) -> Option<i64> {
        number(self.field(100, 8))
    }

    pub(super) fn uid(&self) -> Option<i64> {
        number(self.field(108, 8))
    }

    pub(super) fn gid(&self) -> Option<i64> {
        number(self.field(116, 8))
    }

    pub(super) fn size(&self) -> Option<i64> {
        number(self.field(124, 12))
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        number(self.field(136, 12))
    }

    /// GNU old sparse: the four map entries in the header block.
    pub(super) fn gnu_sparse_map(&self) -> &'a [u8] {
        self.field(386, 96)
    }

    /// GNU old sparse: whether map blocks follow the header.
    pub(super) fn gnu_sparse_extended(&self) -> bool {
        self.0[482] != 0
    }

    /// GNU old sparse: the file's size with holes.
    pub(super) fn gnu_real_size(&self) -> Option<i64> {
        number(self.field(483, 12))
    }
}

/// A number field: octal text, or GNU's base-256 (two's complement, big endian, the top bit of the first byte set).
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let Some((&first, rest)) = field.split_first() else { return Some(0) };
    if first & 0x80 == 0 {
        return octal(field).and_then(|value| i64::try_from(value).ok());
    }
    // Bit 6 of the first byte is the sign; sign-extend, then take the bytes while no bit is lost.
    let sign = if first & 0x40 != 0 { -1_i128 } else { 0 };
    let top = i128::from(first & 0x7f) | if sign < 0 { !0x7f_i128 } else { 0 };
    let mut value = top;
    for &byte in rest {
        value = value.checked_mul(256)?.checked_add(i128::from(byte))?;
        if i64::try_from(value).is_err() {
            return None;
        }
    }
    i64::try_from(value).ok()
}

/// Octal text between spaces and NULs; an empty field is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let padding = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !padding(b));
    let Some(start) = start else { return Some(0) };
    let digits = field.get(start..)?;
    let end = digits.iter().position(padding).unwrap_or(digits.len());
    let (digits, tail) = digits.split_at_checked(end)?;
    if tail.iter().any(|b| !padding(b)) {
        // "123 45": Go cuts at the first NUL only and refuses the rest.
        let nul = tail.first() == Some(&0);
        if !nul {
            return None;
        }
    }
    digits.iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    field.get(..end).unwrap_or(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_octal_and_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"644\0\0\0\0\0"), Some(0o644));
        assert_eq!(number(b"644\0junk"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b""), Some(0));
        assert_eq!(number(b"77777777777"), Some(0o77777777777));
        assert_eq!(number(b"12 34\0\0\0"), None);
        assert_eq!(number(b"0000009\0"), None);
        assert_eq!(number(b"-1\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), Some(-2));
        assert_eq!(number(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Some(i64::MAX));
        assert_eq!(number(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(number(&[0xbf; 12]), None);
    }
}
