//! The tables of an overlay that a guest has written over QEMU's: they are read or refused, and what was read lies on the
//! disk and costs no more than the file is long.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use nullspace_fuzz::input::Input;
use nullspace_vmm::fuzzing;

const CLUSTER: u64 = 64 << 10;
/// Three L1 entries.
const DISK: u64 = 600 << 20;
/// Header, refcounts, L1 table (cluster 3), two L2 tables, data.
const CLUSTERS: u64 = 8;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let file: File = tempfile::tempfile_in("/dev/shm").expect("there is a /dev/shm");
    fuzzing::create_overlay(&file, DISK).expect("the size is good");
    let cut = input.byte();
    file.set_len(CLUSTERS * CLUSTER - u64::from(cut) * 512).expect("there is space");
    let put = |at: u64, word: u64| file.write_all_at(&word.to_be_bytes(), at).expect("there is space");
    put(3 * CLUSTER, 4 * CLUSTER);
    put(3 * CLUSTER + 8, 5 * CLUSTER);
    while !input.0.is_empty() {
        let place = input.byte();
        let at = match place % 8 {
            0 => u64::from(input.byte() % 112),
            1 => 3 * CLUSTER + u64::from(input.byte() % 4) * 8,
            2..=4 => 4 * CLUSTER + u64::from(input.byte()) * 8,
            _ => 4 * CLUSTER + u64::from(input.word()) * 2,
        };
        let word = match input.byte() {
            clusters @ 0..=15 => u64::from(clusters) * CLUSTER,
            low @ 16..=31 => u64::from(u32::MAX) << (low % 2 * 32),
            _ => u64::from_be_bytes(std::array::from_fn(|_| input.byte())),
        };
        put(at, word);
    }
    let length = file.metadata().expect("it is open").len();
    let Ok(changes) = fuzzing::read_overlay(file, DISK) else { return };
    let mut end = 0;
    let mut stored = 0;
    for extent in changes.extents() {
        assert!(extent.len > 0 && extent.offset.is_multiple_of(512) && extent.len.is_multiple_of(512), "{extent:?}");
        assert!(extent.offset >= end && extent.offset + extent.len <= DISK, "{extent:?} after {end}");
        end = extent.offset + extent.len;
        stored += u64::from(!extent.zero);
    }
    assert!(stored <= 2 * 4096 * 32, "more runs than two tables have places for");
    for extent in changes.extents().iter().take(50) {
        // The bytes may lie beyond the file's end: an error, never a panic.
        let mut buffer = [9; 512];
        let read = changes.read_at(extent.offset, &mut buffer);
        assert!(!extent.zero || read.is_ok() && buffer == [0; 512]);
        assert!(
            changes.read_at(extent.offset + extent.len, &mut buffer[..1]).is_err() || end > extent.offset + extent.len
        );
    }
    assert!(length <= CLUSTERS * CLUSTER);
});
