//! Images made larger: clean, as large as asked for, and with all that was in them.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::process::Command;

use nullspace_ext4::{Error, Superblock, Tree, grow};
use proptest::prelude::*;

use crate::reader::Found;
use crate::support::{GIB, Image, MIB, data, meta, noise, options, tree};

const GROUP: u64 = 32768 * 4096;

/// An image with a few files.
fn image(size: u64) -> (Image, BTreeMap<Vec<u8>, Found>) {
    let (image, mut writer) = Image::writer(options(size));
    let mut tree = tree();
    for number in 0..50 {
        let contents = data(&mut writer, &noise(number, 20_000));
        tree.add_file(Tree::ROOT, format!("file{number}").as_bytes(), meta(0o644), contents).unwrap();
    }
    writer.finish(tree).unwrap();
    let found = image.read();
    (image, found)
}

#[test]
fn growing_from_any_size_to_any_other_is_clean_and_keeps_everything() {
    let sizes = [16 * MIB, GROUP - 4096, GROUP, GROUP + 300 * 4096, 3 * GROUP, 5 * GROUP + MIB, 17 * GROUP, 40 * GROUP];
    for (position, from) in sizes.into_iter().enumerate() {
        let further = [90 * GIB, 9 * GIB, 2 * GIB + 17];
        for &to in sizes[position..].iter().chain(&further).filter(|&&to| to >= from) {
            let (image, before) = image(from);
            let superblock = grow(&image.reopen(), to).unwrap();
            image.check();
            assert_eq!(image.reopen().metadata().unwrap().len(), to);
            assert!(to - superblock.size_bytes() < 8 * MIB, "{from} to {to}: {superblock:?}");
            assert!(image.read() == before, "{from} to {to}");
        }
    }
}

#[test]
fn growing_step_by_step_is_as_good() {
    let (image, before) = image(16 * MIB);
    let mut free = 0;
    for size in [17 * MIB, 140 * MIB, 140 * MIB + 1, 300 * MIB, 2 * GIB, 2 * GIB, 9 * GIB, 30 * GIB, 127 * GIB] {
        let superblock = grow(&image.reopen(), size).unwrap();
        image.check();
        assert!(superblock.free_bytes() >= free);
        free = superblock.free_bytes();
        let read = Superblock::read(&image.reopen()).unwrap();
        assert_eq!((read.size_bytes(), read.free_bytes()), (superblock.size_bytes(), free));
    }
    assert!(image.read() == before);
}

#[test]
fn a_grown_image_has_the_reserved_blocks_that_a_kernel_needs_to_go_on() {
    let (image, _) = image(GIB);
    grow(&image.reopen(), 20 * GIB).unwrap();
    let dump = image.dump();
    assert!(dump.contains("Reserved GDT blocks:      125"), "{dump}");
}

#[test]
fn an_image_that_was_used_can_grow() {
    let (image, _) = image(100 * MIB);
    let other = tempfile::NamedTempFile::new().unwrap();
    other.as_file().write_all_at(&noise(99, 60 << 20), 0).unwrap();
    let write = format!("write {} /written", other.path().display());
    let debugfs = Command::new("debugfs").args(["-w", "-R", &write]).arg(image.path()).output().unwrap();
    assert!(debugfs.status.success());
    image.check();
    grow(&image.reopen(), GIB).unwrap();
    image.check();
    assert!(image.read()[&b"written"[..]].contents == noise(99, 60 << 20));
}

#[test]
fn what_was_written_behind_the_filesystem_does_not_become_an_inode() {
    // 40 blocks more than a group: they are left out, and a guest can write to them all the same.
    let (image, _) = image(8 * GROUP + 40 * 4096);
    image.reopen().write_all_at(&noise(1, 40 * 4096), 8 * GROUP).unwrap();
    image.check();
    grow(&image.reopen(), 9 * GROUP).unwrap();
    image.check();
    let mut behind = vec![1; 30 * 4096];
    image.reopen().read_exact_at(&mut behind, 8 * GROUP + 10 * 4096).unwrap();
    assert!(behind.iter().all(|&byte| byte == 0));
}

#[test]
fn what_cannot_grow_says_why() {
    let (image, before) = image(16 * MIB);
    let file = image.reopen();
    assert!(
        matches!(grow(&file, 8 * MIB), Err(Error::CannotShrink { current_bytes, .. }) if current_bytes == 16 * MIB)
    );
    let Err(Error::CannotGrow { limit_bytes, .. }) = grow(&file, 1000 * GIB) else { panic!("it grew") };
    assert_eq!(limit_bytes, 128 * GIB);
    // As a kernel leaves it that did not unmount: the journal needs recovery.
    let debugfs =
        Command::new("debugfs").args(["-w", "-R", "feature needs_recovery"]).arg(image.path()).output().unwrap();
    assert!(debugfs.status.success());
    assert!(matches!(grow(&file, GIB), Err(Error::BadImage { .. })));
    assert_eq!(file.metadata().unwrap().len(), 16 * MIB);
    assert!(image.read() == before);
    let empty = tempfile::tempfile().unwrap();
    assert!(matches!(grow(&empty, GIB), Err(Error::Io { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nonsense in an image is an error or a broken image, and nothing worse.
    #[test]
    fn growing_survives_any_damage(
        damage in proptest::collection::vec((0..8u64 * 4096, any::<u8>()), 1..6),
        fields in proptest::collection::vec((0..0x3fcusize, any::<u8>()), 0..4),
    ) {
        let (image, _) = Image::of_tree(options(300 * MIB), tree());
        let file = image.reopen();
        for (offset, byte) in damage {
            // Superblock, descriptors, reserved blocks.
            file.write_all_at(&[byte], offset).unwrap();
        }
        let mut superblock = [0; 1024];
        file.read_exact_at(&mut superblock, 1024).unwrap();
        for (offset, byte) in fields {
            superblock[offset] = byte;
        }
        let checksum = !crc32c::crc32c(&superblock[..0x3fc]);
        superblock[0x3fc..].copy_from_slice(&checksum.to_le_bytes());
        file.write_all_at(&superblock, 1024).unwrap();
        if grow(&file, 2 * GIB).is_ok() {
            prop_assert_eq!(file.metadata().unwrap().len(), 2 * GIB);
        }
    }
}
