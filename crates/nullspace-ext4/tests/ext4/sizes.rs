//! Sizes of images: any is clean, is what was asked for, and costs nothing; too small a one says what it takes.

use std::os::unix::fs::MetadataExt;

use nullspace_ext4::{BLOCK_SIZE, Error, ImageWriter, Meta, Options, Superblock, Tree};

use crate::support::{GIB, Image, MIB, data, meta, noise, options, tree};

#[test]
fn an_empty_tree_gives_a_clean_filesystem_of_exactly_the_size_asked_for() {
    for size in [8 * MIB, 16 * MIB, 100 * MIB + 3 * 4096 + 17, 129 * MIB, GIB, 5001 * MIB, 64 * GIB] {
        let (image, summary) = Image::of_tree(options(size), tree());
        image.check();
        assert_eq!((image.reopen().metadata().unwrap().len(), summary.size_bytes), (size, size));
        let superblock = Superblock::read(&image.reopen()).unwrap();
        assert_eq!(superblock.size_bytes(), summary.blocks * 4096);
        assert_eq!(superblock.free_bytes(), summary.free_blocks * 4096);
        assert_eq!((superblock.inodes(), superblock.free_inodes()), (summary.inodes, summary.free_inodes));
        assert_eq!(superblock.uuid(), options(size).uuid);
        assert!(superblock.is_clean());
    }
}

#[test]
fn a_large_image_takes_little_room_and_little_time_to_check() {
    let (image, _) = Image::of_tree(options(256 * GIB), tree());
    image.check();
    assert!(image.reopen().metadata().unwrap().blocks() * 512 < 20 * MIB);
}

#[test]
fn sizes_around_the_borders_of_groups_are_clean() {
    let group = 32768 * 4096;
    for groups in [1, 2, 3, 16, 17, 48] {
        for blocks in [-4096i64, -1, 0, 1, 63, 64, 65, 600, 8300] {
            let size = u64::try_from(i64::from(groups) * group + blocks * 4096).unwrap();
            let (image, summary) = Image::of_tree(options(size), tree());
            image.check();
            let unused = size / 4096 - summary.blocks;
            assert!(unused < 64 + 129, "{size}: {unused} blocks are left over");
        }
    }
}

#[test]
fn features_and_layout_are_those_of_mke2fs() {
    let (image, _) = Image::of_tree(options(GIB), tree());
    let dump = image.dump();
    let line = |name: &str| {
        let found = dump.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {dump}"));
        found[name.len()..].trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(
        line("Filesystem features"),
        "has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg sparse_super large_file huge_file \
         dir_nlink extra_isize metadata_csum"
    );
    assert_eq!(line("Total journal size"), "32M");
    assert_eq!(line("Inode count"), "65536");
    assert_eq!(line("Reserved GDT blocks"), "127");
    assert_eq!(line("Overhead clusters"), "12949");
    assert_eq!(line("Default directory hash"), "half_md4");
    assert_eq!(line("Filesystem state"), "clean");
    assert_eq!(line("Checksum type"), "crc32c");
    assert!(dump.contains("[INODE_UNINIT, BLOCK_UNINIT, ITABLE_ZEROED]"), "{dump}");
}

#[test]
fn contents_that_do_not_fit_are_told_a_size_that_suffices() {
    let bytes = noise(1, 40 * MIB as usize);
    let fill = |size: u64| -> Result<(), Error> {
        let (image, mut writer) = Image::writer(options(size));
        let mut tree = tree();
        let mut file = writer.begin_file();
        file.push(&bytes)?;
        let contents = file.finish()?;
        tree.add_file(Tree::ROOT, b"file", meta(0o644), contents)?;
        writer.finish(tree)?;
        image.check();
        Ok(())
    };
    let Err(Error::TooSmall { size_bytes, needed_bytes }) = fill(32 * MIB) else { panic!("it fits") };
    assert_eq!(size_bytes, 32 * MIB);
    fill(needed_bytes).unwrap();
}

/// An importer that reads on knows all that is needed: one error, and its size holds the contents and what is to be spare.
#[test]
fn contents_that_are_counted_need_one_error_only() {
    let spare = 8 * MIB;
    let fill = |size: u64, files: u64| -> Result<u64, Error> {
        let (image, mut writer) = Image::writer(Options { spare_bytes: spare, ..options(size) });
        writer.count_what_does_not_fit();
        let mut tree = tree();
        for number in 0..files {
            let mut file = writer.begin_file();
            file.push(&noise(number, 10 * MIB as usize))?;
            let contents = file.finish()?;
            tree.add_file(Tree::ROOT, format!("file{number}").as_bytes(), meta(0o644), contents)?;
        }
        let summary = writer.finish(tree)?;
        image.check();
        Ok(summary.free_blocks * BLOCK_SIZE)
    };
    for files in [4, 11, 30] {
        let Err(Error::TooSmall { needed_bytes, .. }) = fill(32 * MIB, files) else { panic!("{files} fit") };
        assert!(needed_bytes >= files * 10 * MIB + spare, "{needed_bytes} for {files}");
        assert!(needed_bytes < (files * 10 + 60) * MIB, "{needed_bytes} for {files}");
        assert!(fill(needed_bytes, files).unwrap() >= spare, "{files}");
    }
}

#[test]
fn many_entries_that_do_not_fit_are_told_a_size_that_suffices() {
    let fill = |size: u64| -> Result<(), Error> {
        let (image, writer) = Image::writer(options(size));
        let mut tree = tree();
        for number in 0..40_000 {
            let xattrs = vec![(b"user.large".to_vec(), vec![7; 200])];
            let meta = Meta { xattrs, ..meta(0o777) };
            tree.add_symlink(Tree::ROOT, format!("link{number}").as_bytes(), meta, &[b'x'; 70])?;
        }
        writer.finish(tree)?;
        image.check();
        Ok(())
    };
    let Err(Error::TooSmall { needed_bytes, .. }) = fill(64 * MIB) else { panic!("it fits") };
    assert!(needed_bytes < 512 * MIB);
    fill(needed_bytes).unwrap();
}

#[test]
fn an_image_can_be_filled_to_the_last_block() {
    let (image, mut writer) = Image::writer(options(16 * MIB));
    let mut tree = tree();
    let room = writer.room_bytes() as usize;
    let contents = data(&mut writer, &noise(2, room));
    tree.add_file(Tree::ROOT, b"full", meta(0o644), contents).unwrap();
    assert_eq!(writer.room_bytes(), 0);
    assert!(matches!(writer.begin_file().push(&[1; 4096]), Err(Error::TooSmall { .. })));
    let summary = writer.finish(tree).unwrap();
    image.check();
    assert_eq!(summary.free_blocks, 0);
}

#[test]
fn more_inodes_are_made_when_the_tree_needs_them() {
    let (image, writer) = Image::writer(options(256 * MIB));
    let mut tree = tree();
    for number in 0..50_000 {
        tree.add_symlink(Tree::ROOT, format!("{number}").as_bytes(), meta(0o777), b"x").unwrap();
    }
    let summary = writer.finish(tree).unwrap();
    image.check();
    // 16384 is what the size alone gives; half of that stays free.
    assert!(summary.inodes >= 50_000 + 11 + 8192 && summary.free_inodes >= 8192, "{summary:?}");
}

#[test]
fn bad_options_are_refused() {
    let create = |options| ImageWriter::create(tempfile::tempfile().unwrap(), options).map(drop).unwrap_err();
    let mut labelled = options(16 * MIB);
    labelled.label = "seventeen letters".to_owned();
    assert!(matches!(create(labelled), Error::BadLabel));
    assert!(matches!(create(options(MIB)), Error::TooSmall { needed_bytes: 8_388_608, .. }));
    assert!(matches!(create(options(u64::MAX)), Error::TooLarge { .. }));
}

#[test]
fn a_file_that_is_no_image_is_told_apart() {
    let (image, _) = Image::of_tree(options(16 * MIB), tree());
    let file = image.reopen();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 1024 + 0x20).unwrap();
    assert!(matches!(Superblock::read(&file), Err(Error::BadImage { .. })));
    let empty = tempfile::tempfile().unwrap();
    assert!(matches!(Superblock::read(&empty), Err(Error::Io { .. })));
    empty.set_len(MIB).unwrap();
    assert!(matches!(Superblock::read(&empty), Err(Error::BadImage { .. })));
}

#[test]
fn copies_of_superblock_and_descriptors_say_what_the_first_ones_say() {
    let (image, writer) = Image::writer(options(10 * GIB));
    writer.finish(tree()).unwrap();
    nullspace_ext4::grow(&image.reopen(), 40 * GIB).unwrap();
    let file = image.reopen();
    let read = |offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, offset).unwrap();
        bytes
    };
    let (first, descriptors) = (read(1024, 1024), read(4096, 5 * 4096));
    for group in [1u64, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243] {
        let start = group * 32768 * 4096;
        let copy = read(start, 1024);
        assert_eq!(copy[0x5a..0x5c], (group as u16).to_le_bytes());
        assert!(copy[..0x5a] == first[..0x5a] && copy[0x5c..0x3fc] == first[0x5c..0x3fc], "group {group}");
        assert!(read(start + 4096, 5 * 4096) == descriptors, "group {group}");
        let checksum = !crc32c::crc32c(&copy[..0x3fc]);
        assert_eq!(copy[0x3fc..], checksum.to_le_bytes());
    }
}
