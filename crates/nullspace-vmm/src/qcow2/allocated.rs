//! The extents of an overlay, read from its tables.

use std::fs::File;
use std::io;

use super::overlay::CLUSTER;
use super::tables::{ENTRIES, Entry, SUBCLUSTER, SUBCLUSTERS, Tables, offset_of};
use crate::changes::Extent;

/// Returns all that `file`, an overlay of `size` bytes, has instead of its backing: extents and their offsets in it.
pub(crate) fn allocated(file: &File, size: u64) -> io::Result<Vec<(Extent, u64)>> {
    let tables = Tables::read(file, size)?;
    let mut parts = Vec::new();
    let mut table = vec![0; CLUSTER as usize];
    for index in 0..tables.count() {
        if !tables.load(index, &mut table)? {
            continue;
        }
        for cluster in 0..ENTRIES {
            if let Some(entry) = tables.entry(index, &table, cluster)? {
                runs(offset_of(index, cluster), entry, size, &mut parts);
            }
        }
    }
    Ok(parts)
}

/// One cluster's runs of equal subclusters.
fn runs(offset: u64, entry: Entry, size: u64, parts: &mut Vec<(Extent, u64)>) {
    let kind = |index: u64| (entry.allocated >> index & 1, entry.zeros >> index & 1);
    let mut from = 0;
    while from < SUBCLUSTERS {
        let this = kind(from);
        let mut to = from + 1;
        while to < SUBCLUSTERS && kind(to) == this {
            to += 1;
        }
        let (start, end) = (offset + from * SUBCLUSTER, (offset + to * SUBCLUSTER).min(size));
        if this != (0, 0) && start < end {
            let extent = Extent { offset: start, len: end - start, zero: this.1 == 1 };
            parts.push((extent, entry.place.saturating_add(from * SUBCLUSTER)));
        }
        from = to;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::changes::DiskChanges;
    use crate::qcow2::create;

    const SIZE: u64 = 600 << 20;

    #[derive(Debug, Clone)]
    enum Write {
        Data { at: u64, len: u64, byte: u8 },
        Zeros { at: u64, len: u64 },
    }

    /// Writes near the borders of clusters and of L2 tables (256 MiB), and anywhere.
    fn write() -> impl Strategy<Value = Write> {
        let place = prop_oneof![
            0..SIZE / 512,
            (0..4u64, -9i64..9).prop_map(|(table, off)| (table * (256 << 20) / 512).saturating_add_signed(off)),
            (0..40u64, -5i64..5).prop_map(|(cluster, off)| (cluster * 128).saturating_add_signed(off)),
        ];
        (place, 1..300u64, any::<Option<u8>>()).prop_map(|(at, len, byte)| {
            let at = (at * 512).min(SIZE - 512);
            let len = (len * 512).min(SIZE - at);
            match byte {
                Some(byte) => Write::Data { at, len, byte: byte.max(1) },
                None => Write::Zeros { at, len },
            }
        })
    }

    fn apply(base: &Path, top: &Path, writes: &[Write]) {
        let image = format!(
            "json:{{\"driver\":\"qcow2\",\"discard\":\"unmap\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}},\"backing\":{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}}}",
            top.display(),
            base.display()
        );
        let mut command = Command::new("qemu-io");
        for write in writes {
            let line = match write {
                Write::Data { at, len, byte } => format!("write -P {byte} {at} {len}"),
                Write::Zeros { at, len } => format!("write -z -u {at} {len}"),
            };
            command.args(["-c", &line]);
        }
        let output = command.arg(&image).output().expect("qemu-io (package qemu-utils)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn what_qemu_wrote_is_found_and_nothing_else(writes in proptest::collection::vec(write(), 0..12)) {
            let folder = tempfile::tempdir().unwrap();
            let (base, top) = (folder.path().join("base"), folder.path().join("top"));
            File::create_new(&base).unwrap().set_len(SIZE).unwrap();
            create(&File::create_new(&top).unwrap(), SIZE).unwrap();
            apply(&base, &top, &writes);

            // The oracle: the same writes in order, on a map of sectors.
            let mut sectors = std::collections::BTreeMap::new();
            for write in &writes {
                let (at, len, byte) = match write {
                    Write::Data { at, len, byte } => (*at, *len, *byte),
                    Write::Zeros { at, len } => (*at, *len, 0),
                };
                sectors.extend((at / 512..(at + len) / 512).map(|sector| (sector, byte)));
            }

            let file = File::open(&top).unwrap();
            let changes = DiskChanges::new(SIZE, allocated(&file, SIZE).unwrap(), file);
            let mut covered = 0;
            for extent in changes.extents() {
                let mut bytes = vec![0; extent.len as usize];
                changes.read_at(extent.offset, &mut bytes).unwrap();
                for (index, sector) in bytes.chunks_exact(512).enumerate() {
                    let number = extent.offset / 512 + index as u64;
                    let expected = sectors.get(&number).copied();
                    // A subcluster holds whole what was written in a part of it; the base is zeros.
                    prop_assert!(sector.iter().all(|byte| *byte == expected.unwrap_or(0)), "sector {}", number);
                    covered += usize::from(expected.is_some());
                }
            }
            // Zeros over zeros need not be kept.
            let written = sectors.values().filter(|byte| **byte != 0).count();
            prop_assert!(covered >= written, "{} of {} sectors", covered, written);
            for (sector, byte) in sectors.iter().filter(|(_, byte)| **byte != 0) {
                prop_assert!(changes.read_at(sector * 512, &mut [0; 512]).is_ok(), "sector {} of {}", sector, byte);
            }
        }

        #[test]
        fn tables_full_of_anything_are_read_or_refused(
            words in proptest::collection::vec((3 * CLUSTER / 8..5 * CLUSTER / 8, any::<u64>(), any::<bool>()), 0..40)
        ) {
            let file = tempfile::tempfile().unwrap();
            create(&file, SIZE).unwrap();
            file.set_len(6 * CLUSTER).unwrap();
            for (at, word, small) in words {
                let word = if small { word % 8 * CLUSTER } else { word };
                file.write_all_at(&word.to_be_bytes(), at * 8).unwrap();
                file.write_all_at(&(4 * CLUSTER).to_be_bytes(), 3 * CLUSTER).unwrap();
            }
            if let Ok(parts) = allocated(&file, SIZE) {
                for (extent, _) in &parts {
                    prop_assert!(extent.len > 0 && extent.offset + extent.len <= SIZE);
                }
                let changes = DiskChanges::new(SIZE, parts, file);
                for extent in changes.extents().iter().take(100) {
                    // May end beyond the file; never panics.
                    let _ = changes.read_at(extent.offset, &mut [0; 512]);
                }
            }
        }
    }
}
