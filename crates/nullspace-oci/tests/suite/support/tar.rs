//! A tar writer for tests. It writes whatever it is told to, good or bad.

/// One entry. Fields that do not fit the plain header go into PAX records.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) flag: u8,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: i64,
    pub(crate) nanos: u32,
    pub(crate) data: Vec<u8>,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

impl Item {
    pub(crate) fn new(flag: u8, path: impl AsRef<[u8]>) -> Item {
        Item {
            flag,
            path: path.as_ref().to_vec(),
            link: Vec::new(),
            mode: if flag == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 0,
            nanos: 0,
            data: Vec::new(),
            xattrs: Vec::new(),
        }
    }

    pub(crate) fn file(path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Item {
        Item { data: data.as_ref().to_vec(), ..Item::new(b'0', path) }
    }

    pub(crate) fn dir(path: impl AsRef<[u8]>) -> Item {
        Item::new(b'5', path)
    }

    pub(crate) fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
        Item { link: target.as_ref().to_vec(), mode: 0o777, ..Item::new(b'2', path) }
    }

    pub(crate) fn hard_link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
        Item { link: target.as_ref().to_vec(), ..Item::new(b'1', path) }
    }
}

/// A whole archive with its two closing blocks.
pub(crate) fn archive(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        append(&mut out, item);
    }
    out.resize(out.len() + 1024, 0);
    out
}

pub(crate) fn append(out: &mut Vec<u8>, item: &Item) {
    let mut records = Vec::new();
    let mut record = |key: &str, value: &[u8]| records.extend_from_slice(&pax_record(key, value));
    if item.path.len() > 100 || !item.path.is_ascii() {
        record("path", &item.path);
    }
    if item.link.len() > 100 || !item.link.is_ascii() {
        record("linkpath", &item.link);
    }
    if item.nanos != 0 || item.mtime < 0 {
        record("mtime", pax_time(item.mtime, item.nanos).as_bytes());
    }
    if item.uid > 0o7777777 {
        record("uid", item.uid.to_string().as_bytes());
    }
    if item.gid > 0o7777777 {
        record("gid", item.gid.to_string().as_bytes());
    }
    for (name, value) in &item.xattrs {
        record(&format!("SCHILY.xattr.{name}"), value);
    }
    if !records.is_empty() {
        block(out, b'x', b"PaxHeaders/x", b"", 0o644, 0, 0, 0, records.len() as u64);
        data(out, &records);
    }
    let cut = |bytes: &[u8]| bytes[..bytes.len().min(100)].to_vec();
    block(
        out,
        item.flag,
        &cut(&item.path),
        &cut(&item.link),
        item.mode,
        if item.uid > 0o7777777 { 0 } else { item.uid },
        if item.gid > 0o7777777 { 0 } else { item.gid },
        item.mtime.max(0).unsigned_abs(),
        item.data.len() as u64,
    );
    data(out, &item.data);
}

fn pax_time(seconds: i64, nanos: u32) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let sign = if total < 0 { "-" } else { "" };
    let total = total.unsigned_abs();
    format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000)
}

pub(crate) fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// Appends content with its padding.
pub(crate) fn data(out: &mut Vec<u8>, data: &[u8]) {
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// Appends a ustar header block.
#[allow(clippy::too_many_arguments)]
pub(crate) fn block(
    out: &mut Vec<u8>,
    flag: u8,
    path: &[u8],
    link: &[u8],
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: u64,
    size: u64,
) {
    let mut block = [0_u8; 512];
    block[..path.len()].copy_from_slice(path);
    block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
    block[108..115].copy_from_slice(format!("{uid:07o}").as_bytes());
    block[116..123].copy_from_slice(format!("{gid:07o}").as_bytes());
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(format!("{mtime:011o}").as_bytes());
    block[156] = flag;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    out.extend_from_slice(&block);
}

/// Writes a header block's checksum.
pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
