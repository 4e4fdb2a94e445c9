//! Images as e2fsprogs sees them.

#![expect(clippy::unwrap_used, reason = "a failing setup is a failing test")]

mod support;

use nullspace_ext4::{Meta, Tree};
use support::{Image, MIB, data, meta, options, tree};

#[test]
fn an_empty_tree_gives_a_clean_filesystem_of_any_size() {
    for size in [8 * MIB, 16 * MIB, 100 * MIB + 4096 * 3 + 17, 129 * MIB, 1024 * MIB, 5000 * MIB, 65536 * MIB] {
        let (image, summary) = Image::of_tree(options(size), tree());
        image.check();
        assert_eq!(image.reopen().metadata().unwrap().len(), size);
        assert_eq!(summary.size_bytes, size);
    }
}

#[test]
fn a_small_tree_comes_back_as_it_was() {
    let (image, mut writer) = Image::writer(options(64 * MIB));
    let mut tree = tree();
    let hello = data(&mut writer, b"hello\n");
    let etc = tree.add_dir(Tree::ROOT, b"etc", meta(0o755)).unwrap();
    let file = tree.add_file(etc, b"hello", meta(0o4755), hello).unwrap();
    tree.link(Tree::ROOT, b"other", file).unwrap();
    tree.add_symlink(Tree::ROOT, b"short", meta(0o777), b"etc/hello").unwrap();
    tree.add_symlink(Tree::ROOT, b"long", meta(0o777), &[b'x'; 300]).unwrap();
    let xattrs = vec![(b"security.capability".to_vec(), vec![1; 20]), (b"user.big".to_vec(), vec![7; 3000])];
    tree.add_dir(Tree::ROOT, b"attributes", Meta { xattrs, ..meta(0o700) }).unwrap();
    writer.finish(tree).unwrap();
    image.check();
    assert_eq!(image.cat("/other"), b"hello\n");
    let stat = image.debugfs("stat /etc/hello");
    assert!(stat.contains("Links: 2") && stat.contains("Mode:  04755"), "{stat}");
}
