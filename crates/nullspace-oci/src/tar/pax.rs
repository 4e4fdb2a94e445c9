//! PAX extended header records: `"<length> <key>=<value>\n"`, where the length counts the whole record.
//!
//! Only what changes the resulting tree is kept. A value may hold any byte but, in the fields that become names, NUL.

use super::header::number;
use super::sparse::Segment;
use super::{MAX_XATTR_NAME, TarLimits, Timestamp};

/// The records of one `x` header that matter here.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

/// GNU's three ways to describe a sparse file in PAX records.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// The map of 0.0 (offset and numbytes records in turn) and 0.1 (one record).
    pub(super) map: Option<Vec<Segment>>,
    pending_offset: Option<u64>,
}

impl Pax {
    /// Parses the records of one extended header.
    pub(super) fn parse(mut data: &[u8], limits: &TarLimits) -> Result<Pax, &'static str> {
        let mut pax = Pax::default();
        while !data.is_empty() {
            let (key, value, rest) = record(data).ok_or("a record's length, key or end is wrong")?;
            pax.apply(key, value, limits)?;
            data = rest;
        }
        if pax.sparse.pending_offset.is_some() {
            return Err("a sparse offset without its length");
        }
        // Stable, so that of equal names the last stays last; that one counts.
        pax.xattrs.sort_by(|a, b| a.0.cmp(&b.0));
        pax.xattrs.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        Ok(pax)
    }

    fn apply(&mut self, key: &[u8], value: &[u8], limits: &TarLimits) -> Result<(), &'static str> {
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = decimal(value)?,
            b"uid" => self.uid = decimal(value)?,
            b"gid" => self.gid = decimal(value)?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value).ok_or("bad mtime")?) },
            b"GNU.sparse.major" => self.sparse.major = decimal(value)?,
            b"GNU.sparse.minor" => self.sparse.minor = decimal(value)?,
            b"GNU.sparse.name" => self.sparse.name = name(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = decimal(value)?,
            b"GNU.sparse.offset" => {
                if self.sparse.pending_offset.is_some() {
                    return Err("two sparse offsets in a row");
                }
                self.sparse.pending_offset = decimal(value)?;
            }
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.pending_offset.take().ok_or("a sparse length without its offset")?;
                let len = decimal(value)?.ok_or("an empty sparse length")?;
                let map = self.sparse.map.get_or_insert_default();
                if map.len() >= limits.sparse_segments {
                    return Err("the sparse map has too many segments");
                }
                map.push(Segment { offset, len });
            }
            b"GNU.sparse.map" => self.sparse.map = Some(map_record(value, limits)?),
            _ => {
                if let Some(xattr) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(xattr, value, limits)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, xattr: &[u8], value: &[u8], limits: &TarLimits) -> Result<(), &'static str> {
        if xattr.is_empty() || xattr.len() > MAX_XATTR_NAME || xattr.contains(&0) {
            return Err("an extended attribute's name is empty, too long or has a NUL");
        }
        if value.len() > limits.xattr_value {
            return Err("an extended attribute's value is too long");
        }
        self.xattrs.push((xattr.to_vec(), value.to_vec()));
        Ok(())
    }
}

/// Takes the first record off `data`: key, value, rest.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().position(|&b| b == b' ')?;
    // The longest decimal that still fits below the header limit is short; this also stops absurd padding.
    let digits = data.get(..space).filter(|digits| (1..=10).contains(&digits.len()))?;
    let len = usize::try_from(plain_decimal(digits)?).ok()?;
    let (whole, rest) = data.split_at_checked(len)?;
    let body = whole.get(space.checked_add(1)?..)?;
    let (&last, body) = body.split_last()?;
    let equals = body.iter().position(|&b| b == b'=').filter(|&at| at > 0)?;
    (last == b'\n').then_some(())?;
    Some((body.get(..equals)?, body.get(equals.checked_add(1)?..)?, rest))
}

/// An empty value takes an earlier record back.
fn name(value: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    if value.contains(&0) {
        return Err("a name has a NUL");
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn decimal(value: &[u8]) -> Result<Option<u64>, &'static str> {
    if value.is_empty() {
        return Ok(None);
    }
    plain_decimal(value).map(Some).ok_or("a number is malformed or negative")
}

pub(super) fn plain_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// `[-]seconds[.fraction]`; digits beyond nanoseconds are cut off.
fn time(value: &[u8]) -> Option<Timestamp> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (whole, fraction) = match value.iter().position(|&b| b == b'.') {
        Some(dot) => (value.get(..dot)?, value.get(dot.checked_add(1)?..)?),
        None => (value, &[][..]),
    };
    let seconds = i64::try_from(plain_decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos =
        (0..9).fold(0_u32, |nanos, at| nanos * 10 + fraction.get(at).map_or(0, |&digit| u32::from(digit - b'0')));
    if !negative {
        return Some(Timestamp { seconds, nanos });
    }
    let seconds = seconds.checked_neg()?;
    if nanos == 0 {
        return Some(Timestamp { seconds, nanos });
    }
    Some(Timestamp { seconds: seconds.checked_sub(1)?, nanos: 1_000_000_000 - nanos })
}

/// Version 0.1: `offset,length,offset,length,…`
fn map_record(value: &[u8], limits: &TarLimits) -> Result<Vec<Segment>, &'static str> {
    let mut map = Vec::new();
    if value.is_empty() {
        return Ok(map);
    }
    let mut numbers = value.split(|&b| b == b',').map(plain_decimal);
    while let Some(offset) = numbers.next() {
        let (Some(offset), Some(Some(len))) = (offset, numbers.next()) else { return Err("bad GNU.sparse.map") };
        if map.len() >= limits.sparse_segments {
            return Err("the sparse map has too many segments");
        }
        map.push(Segment { offset, len });
    }
    Ok(map)
}

/// The four or twenty-one `offset, length` pairs of a GNU old sparse block; a pair of NULs ends the map.
pub(super) fn gnu_pairs(block: &[u8], map: &mut Vec<Segment>) -> Option<()> {
    for pair in block.chunks_exact(24) {
        let (offset, len) = pair.split_at_checked(12)?;
        if offset.first() == Some(&0) {
            break;
        }
        let offset = u64::try_from(number(offset)?).ok()?;
        let len = u64::try_from(number(len)?).ok()?;
        map.push(Segment { offset, len });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &[u8]) -> Result<Pax, &'static str> {
        Pax::parse(data, &TarLimits::default())
    }

    #[test]
    fn records_parse_and_later_ones_win() {
        let pax = parse(b"11 path=abc\n").unwrap_err();
        assert!(!pax.is_empty());
        let pax = parse(b"12 path=abc\n12 path=xyz\n9 uid=77\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"xyz"[..]));
        assert_eq!(pax.uid, Some(77));
        let taken_back = parse(b"12 path=abc\n8 path=\n").unwrap();
        assert_eq!(taken_back.path, None);
        let newline = parse(b"14 path=a\nb\xff\n").unwrap_err();
        assert!(!newline.is_empty());
        assert_eq!(parse(b"13 path=a\nb\xff\n").unwrap().path.as_deref(), Some(&b"a\nb\xff"[..]));
    }

    #[test]
    fn times_keep_nanoseconds_on_both_sides_of_the_epoch() {
        let at = |text: &[u8]| time(text).map(|t| (t.seconds, t.nanos));
        assert_eq!(at(b"1"), Some((1, 0)));
        assert_eq!(at(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(at(b"1."), Some((1, 0)));
        assert_eq!(at(b"1.123456789999"), Some((1, 123_456_789)));
        assert_eq!(at(b"-1"), Some((-1, 0)));
        assert_eq!(at(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(at(b"-1.000000001"), Some((-2, 999_999_999)));
        assert_eq!(at(b""), None);
        assert_eq!(at(b"1e3"), None);
        assert_eq!(at(b"99999999999999999999"), None);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"x"[..],
            b"5",
            b"0 a=b\n",
            b"3 a=\n",
            b"6 a=b\n\n",
            b"99 a=b\n",
            b"6 =bc\n",
            b"5 abc",
            b"99999999999 a=b\n",
            b"8 size=-1\n",
            b"13 path=a\0bc\n",
            b"11 mtime=x\n",
            b"25 GNU.sparse.numbytes=1\n",
            b"23 GNU.sparse.offset=1\n",
            b"20 SCHILY.xattr.=x\n",
            b"22 GNU.sparse.map=1,2,\n",
        ] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn xattrs_are_bytes_sorted_and_unique() {
        let pax = parse(b"27 SCHILY.xattr.user.b=x=\0\n25 SCHILY.xattr.user.a=1\n25 SCHILY.xattr.user.a=2\n").unwrap();
        let wanted: Vec<(Vec<u8>, Vec<u8>)> =
            vec![(b"user.a".to_vec(), b"2".to_vec()), (b"user.b".to_vec(), b"x=\0".to_vec())];
        assert_eq!(pax.xattrs, wanted);
    }
}
