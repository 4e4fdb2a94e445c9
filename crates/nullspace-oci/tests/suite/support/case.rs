//! Layers and trees as text: the files of `tests/cases`. See `merge_cases` for the form.

use super::tar::Item;

/// The layers of a `layers.txt`.
pub(crate) fn parse(text: &str) -> Vec<Vec<Item>> {
    let mut layers: Vec<Vec<Item>> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line == "layer" {
            layers.push(Vec::new());
            continue;
        }
        layers.last_mut().expect("an entry before the first layer").push(parse_item(line));
    }
    layers
}

fn parse_item(line: &str) -> Item {
    let mut words = line.split(' ');
    let kind = words.next().unwrap();
    let path = unescape(words.next().unwrap());
    let marker = |name: &[u8]| match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => [&path[..=slash], name, &path[slash + 1..]].concat(),
        None => [name, &path[..]].concat(),
    };
    let mut item = match kind {
        "file" => Item::file(&path, ""),
        "dir" => Item::dir(&path),
        "symlink" => Item::symlink(&path, ""),
        "link" => Item::hard_link(&path, ""),
        "char" => Item::new(b'3', &path),
        "block" => Item::new(b'4', &path),
        "fifo" => Item::new(b'6', &path),
        "whiteout" => Item::file(marker(b".wh."), ""),
        "opaque" => Item::file([&path[..], b"/.wh..wh..opq"].concat(), ""),
        other => panic!("unknown kind {other}"),
    };
    for word in words {
        let (key, value) = word.split_once('=').unwrap();
        match key {
            "to" => item.link = unescape(value),
            "data" => item.data = unescape(value),
            "mode" => item.mode = u32::from_str_radix(value, 8).unwrap(),
            "uid" => item.uid = value.parse().unwrap(),
            "gid" => item.gid = value.parse().unwrap(),
            "mtime" => (item.mtime, item.nanos) = time(value),
            _ => {
                let name = key.strip_prefix("xattr.").unwrap_or_else(|| panic!("unknown key {key}"));
                item.xattrs.push((name.to_owned(), unescape(value)));
            }
        }
    }
    item
}

/// Decimal seconds, as floor and nanoseconds.
fn time(text: &str) -> (i64, u32) {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos: i64 = format!("{fraction:0<9}").parse().unwrap();
    let negative = whole.starts_with('-');
    let total = whole.parse::<i64>().unwrap() * 1_000_000_000 + if negative { -nanos } else { nanos };
    (total.div_euclid(1_000_000_000), u32::try_from(total.rem_euclid(1_000_000_000)).unwrap())
}

/// Takes Rust's byte escapes back.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next().unwrap() {
            b'n' => out.push(b'\n'),
            b't' => out.push(b'\t'),
            b'r' => out.push(b'\r'),
            quoted @ (b'\\' | b'\'' | b'"') => out.push(quoted),
            b'x' => {
                let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                out.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
            }
            other => panic!("unknown escape {other}"),
        }
    }
    out
}
