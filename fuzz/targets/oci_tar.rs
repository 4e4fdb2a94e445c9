//! Any archive is read to its end or to an error, within its limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nullspace_fuzz::input::Input;
use nullspace_oci::tar::{Chunk, EntryKind, TarError, TarLimits, TarReader};

const LIMITS: TarLimits =
    TarLimits { extended_header: 2048, sparse_segments: 40, xattr_value: 100, file_size: 1 << 40 };

fuzz_target!(|bytes: &[u8]| {
    let Some((&mode, rest)) = bytes.split_first() else { return };
    let archive = if mode == 255 { rest.to_vec() } else { Input(rest).archive() };
    // In pieces of any size: nothing may depend on how the bytes arrive.
    let whole = read(&archive, archive.len().max(1), mode % 2 == 0);
    assert_eq!(whole, read(&archive, 1 + usize::from(mode), mode % 2 == 0));
});

/// What was in it, as text.
fn read(archive: &[u8], piece: usize, skips: bool) -> String {
    let mut tar = TarReader::new(std::io::BufReader::with_capacity(piece, archive), LIMITS);
    let mut seen = String::new();
    loop {
        let entry = match tar.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(error) => return seen + &error.to_string(),
        };
        assert!(entry.kind == EntryKind::File || entry.size == 0);
        assert!(entry.size <= LIMITS.file_size && entry.mode <= 0o7777 && entry.mtime.nanos < 1_000_000_000);
        assert!(entry.xattrs.is_sorted_by(|a, b| a.0 < b.0), "{:?}", entry.xattrs);
        assert!(entry.xattrs.iter().all(|(name, value)| !name.is_empty() && value.len() <= LIMITS.xattr_value));
        seen.push_str(&format!("{entry:?}\n"));
        if skips && entry.path.len() % 2 == 0 {
            continue;
        }
        let mut length = 0;
        let mut data = Vec::new();
        let all = tar.read_data::<TarError>(|chunk| {
            match chunk {
                Chunk::Data(bytes) => {
                    assert!(!bytes.is_empty());
                    data.extend_from_slice(bytes);
                    length += bytes.len() as u64;
                }
                Chunk::Hole(hole) => {
                    assert!(hole > 0);
                    length += hole;
                }
            }
            Ok(())
        });
        assert!(length <= entry.size);
        seen.push_str(&format!("{length} {data:?}\n"));
        match all {
            Ok(()) => assert_eq!(length, entry.size),
            Err(error) => return seen + &error.to_string(),
        }
    }
    match tar.drain() {
        Ok(()) => assert_eq!(tar.offset(), archive.len() as u64),
        Err(error) => seen.push_str(&error.to_string()),
    }
    seen
}
