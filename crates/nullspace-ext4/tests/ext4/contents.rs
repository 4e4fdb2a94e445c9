//! Contents of files: what was pushed is what is read, holes stay holes, and nothing stays that got no name.

use std::os::unix::fs::MetadataExt;

use nullspace_ext4::{Error, FileData, ImageWriter, Summary, Tree};

use crate::support::{GIB, Image, MIB, bytes_of, data, meta, noise, options, tree};

const BLOCK: usize = 4096;

fn finish(writer: ImageWriter, files: Vec<(&str, FileData)>) -> Summary {
    let mut tree = tree();
    for (name, contents) in files {
        tree.add_file(Tree::ROOT, name.as_bytes(), meta(0o644), contents).unwrap();
    }
    writer.finish(tree).unwrap()
}

#[test]
fn contents_of_all_lengths_around_a_block_come_back() {
    let lengths = [0, 1, 4095, 4096, 4097, 8191, 8192, 1 << 20, (1 << 20) + 1, 3_000_001];
    let (image, mut writer) = Image::writer(options(64 * MIB));
    let names: Vec<String> = lengths.iter().map(|length| format!("f{length}")).collect();
    let contents: Vec<FileData> = lengths.iter().map(|&length| data(&mut writer, &noise(3, length))).collect();
    finish(writer, names.iter().map(String::as_str).zip(contents).collect());
    image.check();
    let found = image.read();
    for (name, &length) in names.iter().zip(&lengths) {
        assert!(found[name.as_bytes()].contents == noise(3, length), "{name}");
    }
}

#[test]
fn how_contents_are_cut_into_pieces_changes_nothing() {
    let mut contents = noise(4, 1_500_000);
    contents[100_000..200_000].fill(0);
    contents[1_400_000..].fill(0);
    let image_of = |piece: usize| {
        let (image, mut writer) = Image::writer(options(16 * MIB));
        let mut file = writer.begin_file();
        for part in contents.chunks(piece) {
            file.push(part).unwrap();
        }
        let contents = file.finish().unwrap();
        finish(writer, vec![("file", contents)]);
        image
    };
    let whole = image_of(usize::MAX);
    whole.check();
    assert!(whole.read()[&b"file"[..]].contents == contents);
    for piece in [511, 4096, 5000, 1 << 20] {
        assert!(bytes_of(&image_of(piece)) == bytes_of(&whole), "pieces of {piece}");
    }
}

#[test]
fn runs_of_zeros_become_holes_and_short_ones_do_not_split_a_file() {
    let (image, mut writer) = Image::writer(options(64 * MIB));
    let mut long = noise(5, 100 * BLOCK);
    long[10 * BLOCK..50 * BLOCK].fill(0);
    let mut short = noise(6, 100 * BLOCK);
    short[10 * BLOCK..13 * BLOCK].fill(0);
    let files = vec![("long", data(&mut writer, &long)), ("short", data(&mut writer, &short))];
    let files: Vec<_> = [files, vec![("zeros", data(&mut writer, &vec![0; 5 << 20]))]].into_iter().flatten().collect();
    let allocated: Vec<u64> = files.iter().map(|(_, contents)| contents.allocated_bytes() / BLOCK as u64).collect();
    assert_eq!(allocated, [60, 100, 0]);
    finish(writer, files);
    image.check();
    let found = image.read();
    assert!(found[&b"long"[..]].contents == long && found[&b"short"[..]].contents == short);
    assert!(found[&b"zeros"[..]].contents == vec![0; 5 << 20]);
    let extents = image.debugfs("ex /short");
    assert!(extents.contains(" 1/  1     0 -    99 "), "one extent: {extents}");
}

#[test]
fn holes_are_pushed_at_any_offset_and_cost_nothing() {
    let (image, mut writer) = Image::writer(options(64 * MIB));
    let mut file = writer.begin_file();
    let mut expected = Vec::new();
    for (number, hole) in [(1, 0u64), (5000, 10), (BLOCK, 100_000), (17, 3 << 20), (4079, 1), (1, 12_288), (0, 77_777)]
    {
        file.push(&noise(7, number)).unwrap();
        file.push_hole(hole).unwrap();
        expected.extend(noise(7, number));
        expected.resize(expected.len() + hole as usize, 0);
    }
    let contents = file.finish().unwrap();
    assert_eq!(contents.size(), expected.len() as u64);
    finish(writer, vec![("file", contents)]);
    image.check();
    assert!(image.read()[&b"file"[..]].contents == expected);
}

#[test]
fn a_sparse_file_may_be_larger_than_the_image() {
    let (image, mut writer) = Image::writer(options(64 * MIB));
    let mut file = writer.begin_file();
    file.push_hole(2 * GIB).unwrap();
    file.push(b"end").unwrap();
    let sparse = file.finish().unwrap();
    let mut largest = writer.begin_file();
    largest.push_hole((u64::from(u32::MAX)) * 4096 - 1).unwrap();
    largest.push(b"x").unwrap();
    assert!(matches!(largest.push(b"x"), Err(Error::FileTooLarge { .. })));
    drop(largest);
    let mut largest = writer.begin_file();
    largest.push_hole((u64::from(u32::MAX)) * 4096 - 1).unwrap();
    largest.push(b"x").unwrap();
    let largest = largest.finish().unwrap();
    finish(writer, vec![("sparse", sparse), ("largest", largest)]);
    image.check();
    let stat = image.debugfs("stat /sparse");
    assert!(stat.contains("Size: 2147483651") && stat.contains("Blockcount: 8"), "{stat}");
    assert!(image.debugfs("stat /largest").contains("Size: 17592186040320"));
    assert!(image.reopen().metadata().unwrap().blocks() * 512 < MIB, "the image itself stays sparse");
}

#[test]
fn a_file_torn_into_thousands_of_pieces_has_a_deep_extent_tree() {
    for pieces in [5, 340, 1360, 1361, 3000] {
        let (image, mut writer) = Image::writer(options(64 * MIB));
        let mut file = writer.begin_file();
        let mut expected = Vec::new();
        for number in 0..pieces {
            let block = noise(number, BLOCK);
            file.push(&block).unwrap();
            file.push_hole(4 * BLOCK as u64).unwrap();
            expected.extend(block);
            expected.resize(expected.len() + 4 * BLOCK, 0);
        }
        let contents = file.finish().unwrap();
        finish(writer, vec![("file", contents)]);
        image.check();
        assert!(image.read()[&b"file"[..]].contents == expected, "{pieces} pieces");
    }
}

#[test]
fn contents_flow_around_the_superblock_copies() {
    let (image, mut writer) = Image::writer(options(256 * MIB));
    let expected = noise(8, 140 << 20);
    let contents = data(&mut writer, &expected);
    let summary = finish(writer, vec![("file", contents)]);
    assert_eq!(summary.content_blocks, 140 << 8);
    image.check();
    assert!(image.read()[&b"file"[..]].contents == expected);
}

#[test]
fn contents_without_a_name_leave_no_trace() {
    let secret = b"nobody may read this, not even in a free block. ".repeat(50_000);
    let (image, mut writer) = Image::writer(options(64 * MIB));
    let mut tree = tree();
    let before = data(&mut writer, &noise(9, 100_000));
    // Begun and not finished, partly written already.
    writer.begin_file().push(&secret).unwrap();
    // Finished and dropped.
    drop(data(&mut writer, &secret));
    // In the tree and removed from it.
    let removed = data(&mut writer, &secret);
    let after = data(&mut writer, &noise(10, 100_000));
    tree.add_file(Tree::ROOT, b"before", meta(0o644), before).unwrap();
    tree.add_file(Tree::ROOT, b"removed", meta(0o644), removed).unwrap();
    tree.add_file(Tree::ROOT, b"after", meta(0o644), after).unwrap();
    tree.remove(Tree::ROOT, b"removed");
    let summary = writer.finish(tree).unwrap();
    image.check();
    assert_eq!(summary.content_blocks, 2 * 25);
    let found = image.read();
    assert!(found[&b"before"[..]].contents == noise(9, 100_000) && found[&b"after"[..]].contents == noise(10, 100_000));
    assert!(!bytes_of(&image).windows(30).any(|window| window == &secret[..30]));
}

#[test]
fn an_unfinished_file_gives_its_blocks_back() {
    let (image, mut writer) = Image::writer(options(16 * MIB));
    let room = writer.room_bytes();
    let first = data(&mut writer, &noise(11, 10_000));
    for _ in 0..20 {
        writer.begin_file().push(&noise(12, 5 << 20)).unwrap();
    }
    let second = data(&mut writer, &noise(13, 10_000));
    assert_eq!(writer.room_bytes(), room - 6 * 4096);
    finish(writer, vec![("first", first), ("second", second)]);
    image.check();
    let found = image.read();
    assert!(found[&b"first"[..]].contents == noise(11, 10_000) && found[&b"second"[..]].contents == noise(13, 10_000));
}

#[test]
fn contents_of_another_image_are_refused() {
    let (_first_image, mut first) = Image::writer(options(64 * MIB));
    let (_image, mut second) = Image::writer(options(64 * MIB));
    let mut tree = tree();
    let foreign = data(&mut first, &noise(14, 100_000));
    let own = data(&mut second, &noise(15, 100_000));
    tree.add_file(Tree::ROOT, b"foreign", meta(0o644), foreign).unwrap();
    tree.add_file(Tree::ROOT, b"own", meta(0o644), own).unwrap();
    assert!(matches!(second.finish(tree), Err(Error::ForeignFileData)));
}

#[test]
fn what_the_file_held_before_is_gone() {
    let (image, writer) = Image::writer(options(16 * MIB));
    writer.finish(tree()).unwrap();
    std::fs::write(image.path(), noise(16, 20 << 20)).unwrap();
    let again = ImageWriter::create(image.reopen(), options(16 * MIB)).unwrap();
    again.finish(tree()).unwrap();
    image.check();
    let (fresh, _) = Image::of_tree(options(16 * MIB), tree());
    assert!(bytes_of(&image) == bytes_of(&fresh));
}
