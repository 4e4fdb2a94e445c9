//! An image that a guest has filled with nonsense grows or does not, and nothing worse happens.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nullspace_ext4::{ImageWriter, Meta, Options, Superblock, Timestamp, Tree, grow};
use uuid::Uuid;

const SIZE: u64 = 2500 * 4096;

/// The first MiB of an image holds all that growing reads.
static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let options = Options::new(SIZE, Uuid::from_u128(1), Uuid::from_u128(2), Timestamp::default());
    let file = tempfile::tempfile().expect("there is room");
    let writer = ImageWriter::create(file, options).expect("the options are good");
    let summary = writer.finish(Tree::new(Meta::default()).expect("it is empty")).expect("it fits");
    let mut bytes = vec![0; 1 << 20];
    summary.file.read_exact_at(&mut bytes, 0).expect("it was written");
    bytes
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&[seals, groups, extra, trim], changes)) = bytes.split_first_chunk::<4>() else { return };
    let mut image = IMAGE.clone();
    for change in changes.chunks_exact(4) {
        // Fields are in the superblock, the first descriptor, and inode 7; most changes shall hit one.
        let offset = usize::from(u16::from_le_bytes([change[0], change[1]]));
        let offset = match change[2] % 4 {
            0 | 1 => 1024 + offset % 1024,
            2 => 4096 + offset % 128,
            _ => offset * 16,
        };
        image[offset] = change[3];
    }
    if seals & 1 != 0 {
        let raw: [u8; 64] = image[4096..4160].try_into().expect("64 bytes");
        let mut sum = Sum::start(&image[1024 + 0x68..1024 + 0x78]).with(&0u32.to_le_bytes());
        let mut blank = raw;
        blank[0x1e..0x20].fill(0);
        sum = sum.with(&blank);
        image[4096 + 0x1e..4096 + 0x20].copy_from_slice(&(sum.0 as u16).to_le_bytes());
    }
    if seals & 2 != 0 {
        let sum = Sum(!0).with(&image[1024..1024 + 0x3fc]).0;
        image[1024 + 0x3fc..2048].copy_from_slice(&sum.to_le_bytes());
    }
    let file: File = tempfile::tempfile_in("/dev/shm").expect("there is a /dev/shm");
    file.write_all_at(&image, 0).expect("there is room");
    file.set_len(SIZE - u64::from(trim) * 1000).expect("there is room");
    let before = file.metadata().expect("it is open").len();
    let size = u64::from(groups) * (32768 * 4096) + u64::from(extra) * (50 * 4096);
    let after = match grow(&file, size) {
        Ok(superblock) => {
            assert!(superblock.size_bytes() <= size);
            size
        }
        Err(_) => file.metadata().expect("it is open").len(),
    };
    assert_eq!(file.metadata().expect("it is open").len(), after);
    assert!(after == before || after == size);
    let _ = Superblock::read(&file);
});

/// The checksum of ext4, written once more.
struct Sum(u32);

impl Sum {
    fn start(uuid: &[u8]) -> Sum {
        Sum(!0).with(uuid)
    }

    fn with(self, bytes: &[u8]) -> Sum {
        Sum(!crc32c::crc32c_append(!self.0, bytes))
    }
}
