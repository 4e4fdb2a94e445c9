//! Many of everything.

use std::collections::BTreeSet;

use nullspace_ext4::{Error, Tree};

use crate::support::{GIB, Image, MIB, data, meta, noise, options, tree};

#[test]
fn a_directory_of_100_000_names_is_indexed_and_complete() {
    let mut tree = tree();
    let directory = tree.add_dir(Tree::ROOT, b"big", meta(0o755)).unwrap();
    for number in 0..100_000 {
        tree.add_symlink(directory, format!("a name of some length {number}").as_bytes(), meta(0o777), b"x").unwrap();
    }
    let (image, _) = Image::of_tree(options(512 * MIB), tree);
    image.check();
    let found = image.read();
    assert_eq!(found.len(), 100_002);
    assert!(found.contains_key(&b"big/a name of some length 99999"[..]));
    // debugfs goes through the index to find a name.
    assert!(image.debugfs("htree_dump /big").contains("Indirect levels: 1"));
    assert!(image.debugfs("stat \"/big/a name of some length 77777\"").contains("Type: symlink"));
}

#[test]
fn an_index_over_names_of_any_bytes_and_lengths_is_right() {
    let mut tree = tree();
    let mut names = BTreeSet::new();
    for number in 0..5000 {
        let mut name = noise(number, 1 + number as usize % 255);
        name.iter_mut().filter(|byte| matches!(**byte, 0 | b'/' | b'.')).for_each(|byte| *byte = 0x80);
        if names.insert(name.clone()) {
            tree.add_symlink(Tree::ROOT, &name, meta(0o777), b"x").unwrap();
        }
    }
    let (image, _) = Image::of_tree(options(64 * MIB), tree);
    image.check();
    assert!(image.read().into_keys().filter(|path| !path.is_empty()).eq(names));
}

#[test]
fn directories_around_the_size_of_one_block_are_clean() {
    for count in [1, 200, 253, 254, 255, 256, 300, 1000] {
        let mut tree = tree();
        for number in 0..count {
            tree.add_symlink(Tree::ROOT, format!("{number:08}").as_bytes(), meta(0o777), b"x").unwrap();
        }
        let (image, _) = Image::of_tree(options(16 * MIB), tree);
        image.check();
        assert_eq!(image.read().len(), count + 1);
    }
}

#[test]
fn three_hundred_thousand_files_fit() {
    let (image, mut writer) = Image::writer(options(4 * GIB));
    let mut tree = tree();
    for number in 0..3000 {
        let directory = tree.add_dir(Tree::ROOT, format!("directory{number}").as_bytes(), meta(0o755)).unwrap();
        for number in 1..=100u32 {
            let contents = data(&mut writer, &number.to_le_bytes());
            tree.add_file(directory, format!("file{number}").as_bytes(), meta(0o644), contents).unwrap();
        }
    }
    let summary = writer.finish(tree).unwrap();
    assert_eq!(summary.content_blocks, 300_000);
    image.check();
}

#[test]
fn a_directory_with_more_subdirectories_than_can_be_counted_says_so() {
    for (count, links) in [(64_998, 65_000), (64_999, 1)] {
        let mut tree = tree();
        let directory = tree.add_dir(Tree::ROOT, b"d", meta(0o755)).unwrap();
        for number in 0..count {
            tree.add_dir(directory, number.to_string().as_bytes(), meta(0o755)).unwrap();
        }
        let (image, _) = Image::of_tree(options(GIB), tree);
        image.check();
        let stat = image.debugfs("stat /d");
        assert!(stat.contains(&format!("Links: {links} ")), "{stat}");
    }
}

#[test]
fn a_file_with_as_many_names_as_can_be_counted_is_clean() {
    let (image, mut writer) = Image::writer(options(64 * MIB));
    let mut tree = tree();
    let contents = data(&mut writer, b"x");
    let file = tree.add_file(Tree::ROOT, b"0", meta(0o644), contents).unwrap();
    for number in 1..65_000 {
        tree.link(Tree::ROOT, number.to_string().as_bytes(), file).unwrap();
    }
    assert!(matches!(tree.link(Tree::ROOT, b"more", file), Err(Error::TooManyLinks { .. })));
    writer.finish(tree).unwrap();
    image.check();
}

#[test]
fn a_tree_deeper_than_any_stack_is_written() {
    let mut tree = tree();
    let mut parent = Tree::ROOT;
    for _ in 0..20_000 {
        parent = tree.add_dir(parent, b"d", meta(0o755)).unwrap();
    }
    let (image, _) = Image::of_tree(options(256 * MIB), tree);
    image.check();
}
