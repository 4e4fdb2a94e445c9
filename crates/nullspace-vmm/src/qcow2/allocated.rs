//! The extents of an overlay, read from its tables.
//!
//! ```text
//!  L1 entry -> L2 table (one cluster of 4096 entries) -> entry: 64-bit host cluster, 64-bit bitmap
//!                                                        bitmap: 32 subclusters of 2 KiB: low half "allocated",
//!                                                        high half "reads as zeros", neither: the backing's
//! ```
//! QEMU may have the file open still, and a guest that took it over writes what it likes there: every number is checked,
//! and the file is never read beyond its own bounds. (`docs/interop/qcow2.txt`, "Extended L2 Entries".)

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::overlay::{BYTES_PER_L1_ENTRY, CLUSTER, FIXED_CLUSTERS, verify};
use crate::changes::Extent;

/// Bits 9 to 55: a host offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Compressed clusters, which this service's machines never write.
const COMPRESSED: u64 = 1 << 62;
const SUBCLUSTERS: u64 = 32;
const SUBCLUSTER: u64 = CLUSTER / SUBCLUSTERS;

/// Returns all that `file`, an overlay of `size` bytes, has instead of its backing: extents and their offsets in it.
pub(crate) fn allocated(file: &File, size: u64) -> io::Result<Vec<(Extent, u64)>> {
    verify(file, size)?;
    let length = file.metadata()?.len();
    let l1_entries = size.div_ceil(BYTES_PER_L1_ENTRY);
    let mut l1 = vec![0; usize::try_from(l1_entries * 8).map_err(|_| damaged())?];
    file.read_exact_at(&mut l1, FIXED_CLUSTERS * CLUSTER)?;
    let mut parts = Vec::new();
    let mut table = vec![0; CLUSTER as usize];
    for (index, entry) in l1.chunks_exact(8).map(number).enumerate() {
        let at = entry & OFFSET;
        if at == 0 {
            continue;
        }
        if !at.is_multiple_of(CLUSTER) || at.checked_add(CLUSTER).is_none_or(|end| end > length) {
            return Err(damaged());
        }
        file.read_exact_at(&mut table, at)?;
        for (cluster, entry) in table.chunks_exact(16).enumerate() {
            let (place, bitmap) = (number(&entry[..8]), number(&entry[8..]));
            if bitmap == 0 {
                continue;
            }
            let offset = index as u64 * BYTES_PER_L1_ENTRY + cluster as u64 * CLUSTER;
            if place & COMPRESSED != 0 || bitmap & (bitmap >> 32) & u64::from(u32::MAX) != 0 || offset >= size {
                return Err(damaged());
            }
            runs(offset, place & OFFSET, bitmap, size, &mut parts);
        }
    }
    // A cluster at the end of the file may be shorter than its bitmap says: what QEMU did not write reads as zeros there.
    if parts.iter().any(|(extent, place)| !extent.zero && (*place == 0 || *place > length)) {
        return Err(damaged());
    }
    Ok(parts)
}

/// One cluster's runs of equal subclusters.
fn runs(offset: u64, place: u64, bitmap: u64, size: u64, parts: &mut Vec<(Extent, u64)>) {
    let kind = |index: u64| (bitmap >> index & 1, bitmap >> (32 + index) & 1);
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
            parts.push((extent, place.saturating_add(from * SUBCLUSTER)));
        }
        from = to;
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the disk overlay is damaged")
}

#[cfg(test)]
mod tests {
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
