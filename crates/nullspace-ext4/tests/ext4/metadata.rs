//! Owners, modes, dates, attributes, names and links, as others read them.

use nullspace_ext4::{Error, Meta, Timestamp, Tree};

use crate::reader::Found;
use crate::support::{Image, MIB, TIME, bytes_of, data, meta, options, tree};

fn found(image: &Image, path: &str) -> Found {
    image.read().remove(path.as_bytes()).unwrap_or_else(|| panic!("no {path}"))
}

#[test]
fn the_root_has_the_metadata_it_was_given() {
    let root = Meta {
        mode: 0o1751,
        uid: 70_000,
        gid: 4_000_000_000,
        mtime: Timestamp { seconds: 5, nanoseconds: 6 },
        xattrs: vec![(b"user.of.root".to_vec(), b"yes".to_vec())],
    };
    let (image, _) = Image::of_tree(options(16 * MIB), Tree::new(root).unwrap());
    image.check();
    let root = found(&image, "");
    assert_eq!((root.mode, root.uid, root.gid), (0o041_751, 70_000, 4_000_000_000));
    assert_eq!((root.seconds, root.nanoseconds, root.links), (5, 6, 3));
    assert_eq!(root.xattrs[&b"user.of.root"[..]], b"yes");
}

#[test]
fn dates_before_1970_and_after_2038_are_kept_and_others_become_the_nearest() {
    let dates = [
        ("epoch", 0, 0),
        ("before", -1, 999_999_999),
        ("first", -(1 << 31), 1),
        ("2038", 1 << 31, 5),
        ("2106", 1 << 32, 7),
        ("last", 3 * (1 << 32) - (1 << 31) - 1, 1),
    ];
    let mut tree = tree();
    for (name, seconds, nanoseconds) in dates {
        let meta = Meta { mtime: Timestamp { seconds, nanoseconds }, ..meta(0o755) };
        tree.add_dir(Tree::ROOT, name.as_bytes(), meta).unwrap();
    }
    for (name, seconds) in [("earliest", i64::MIN), ("latest", i64::MAX)] {
        let mtime = Timestamp { seconds, nanoseconds: 1 };
        tree.add_dir(Tree::ROOT, name.as_bytes(), Meta { mtime, ..meta(0o755) }).unwrap();
    }
    let (image, _) = Image::of_tree(options(16 * MIB), tree);
    image.check();
    for (name, seconds, nanoseconds) in dates {
        let found = found(&image, name);
        assert_eq!((found.seconds, found.nanoseconds), (seconds, nanoseconds), "{name}");
    }
    assert_eq!(found(&image, "earliest").seconds, -(1 << 31));
    assert_eq!(found(&image, "latest").seconds, 3 * (1 << 32) - (1 << 31) - 1);
    assert!(image.debugfs("stat /2106").contains("mtime: 0x00000000:0000001d"), "{}", image.debugfs("stat /2106"));
}

#[test]
fn attributes_live_in_the_inode_a_block_or_both() {
    let capability = vec![1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    type Pair = (&'static [u8], Vec<u8>);
    let sets: [(&str, Vec<Pair>); 5] = [
        ("capability", vec![(b"security.capability", capability.clone())]),
        ("empty", vec![(b"user.empty", vec![]), (b"trusted.overlay.opaque", b"y".to_vec())]),
        ("large", vec![(b"user.large", vec![7; 4036])]),
        ("both", vec![(b"user.large", vec![7; 3500]), (b"security.capability", capability), (b"user.s", vec![1])]),
        ("bytes", vec![(b"user.\xff\xfe name \n", vec![0, 255, 10, 0, 7])]),
    ];
    let (image, mut writer) = Image::writer(options(16 * MIB));
    let mut tree = tree();
    for (name, set) in &sets {
        let xattrs = set.iter().map(|(name, value)| (name.to_vec(), value.clone())).collect();
        let contents = data(&mut writer, b"x");
        tree.add_file(Tree::ROOT, name.as_bytes(), Meta { xattrs, ..meta(0o755) }, contents).unwrap();
    }
    writer.finish(tree).unwrap();
    image.check();
    for (name, set) in &sets {
        let expected = set.iter().map(|(name, value)| (name.to_vec(), value.clone())).collect();
        assert_eq!(found(&image, name).xattrs, expected, "{name}");
    }
    assert!(image.debugfs("ea_list /both").contains("security.capability (20)"), "{}", image.debugfs("ea_list /both"));
}

#[test]
fn attributes_beyond_a_block_have_inodes_of_their_own() {
    let large = |seed: u64, length| crate::support::noise(seed, length);
    type Attributes = Vec<(&'static [u8], Vec<u8>)>;
    let sets: [(&str, Attributes); 4] = [
        ("just", vec![(b"user.a", large(1, 4041))]),
        ("most", vec![(b"user.a", large(2, 64 << 10)), (b"security.capability", vec![1; 20]), (b"user.b", vec![])]),
        ("several", vec![(b"user.a", large(3, 5000)), (b"user.b", large(4, 3000)), (b"trusted.c", large(5, 9000))]),
        ("zeros", vec![(b"user.a", vec![0; 8192])]),
    ];
    let root = vec![(b"user.root".to_vec(), large(6, 6000))];
    let mut tree = Tree::new(Meta { xattrs: root.clone(), ..meta(0o755) }).unwrap();
    let (image, mut writer) = Image::writer(options(16 * MIB));
    for (name, set) in &sets {
        let xattrs = set.iter().map(|(name, value)| (name.to_vec(), value.clone())).collect();
        let contents = data(&mut writer, b"x");
        tree.add_file(Tree::ROOT, name.as_bytes(), Meta { xattrs, ..meta(0o755) }, contents).unwrap();
    }
    let link = vec![(b"trusted.of.link".to_vec(), large(7, 4500))];
    tree.add_symlink(Tree::ROOT, b"link", Meta { xattrs: link.clone(), ..meta(0o777) }, b"x").unwrap();
    let summary = writer.finish(tree).unwrap();
    image.check();
    assert!(image.dump().contains("ea_inode"));
    for (name, set) in &sets {
        let expected = set.iter().map(|(name, value)| (name.to_vec(), value.clone())).collect();
        assert_eq!(found(&image, name).xattrs, expected, "{name}");
    }
    assert_eq!(found(&image, "").xattrs, root.into_iter().collect());
    assert_eq!(found(&image, "link").xattrs, link.into_iter().collect());
    assert!(image.debugfs("ea_get /most user.a").contains("user.a (65536)"));
    assert_eq!(summary.inodes - summary.free_inodes, 10 + 1 + 5 + 7, "reserved, lost+found, nodes, values");

    // Grown, they are still there.
    nullspace_ext4::grow(&image.reopen(), 64 * MIB).unwrap();
    image.check();
    assert_eq!(found(&image, "most").xattrs[&b"user.a"[..]], large(2, 64 << 10));
}

#[test]
fn large_attributes_of_a_whole_image_are_bounded() {
    let mut tree = tree();
    let xattrs = vec![(b"user.a".to_vec(), vec![1; 64 << 10])];
    for number in 0..1024 {
        let meta = Meta { xattrs: xattrs.clone(), ..meta(0o755) };
        tree.add_dir(Tree::ROOT, number.to_string().as_bytes(), meta).unwrap();
    }
    let error = tree.add_dir(Tree::ROOT, b"more", Meta { xattrs, ..meta(0o755) }).unwrap_err();
    assert!(matches!(error, Error::BadXattr { .. }), "{error}");
    assert!(tree.lookup(Tree::ROOT, b"more").is_none());
}

#[test]
fn access_control_lists_are_stored_as_ext4_has_them() {
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let entries = [entry(1, 6, none), entry(2, 7, 1000), entry(4, 5, none), entry(16, 7, none), entry(32, 4, none)];
    let list = [&2u32.to_le_bytes()[..], &entries.concat()].concat();
    let xattrs =
        vec![(b"system.posix_acl_access".to_vec(), list.clone()), (b"system.posix_acl_default".to_vec(), list.clone())];
    let mut tree = tree();
    tree.add_dir(Tree::ROOT, b"shared", Meta { xattrs, ..meta(0o775) }).unwrap();
    let (image, _) = Image::of_tree(options(16 * MIB), tree);
    image.check();
    let found = found(&image, "shared");
    assert_eq!(found.xattrs[&b"system.posix_acl_access"[..]], list);
    assert_eq!(found.xattrs[&b"system.posix_acl_default"[..]], list);
    let shown = image.debugfs("ea_get /shared system.posix_acl_access");
    assert!(shown.contains("system.posix_acl_access (44)"), "{shown}");
}

#[test]
fn names_are_any_bytes() {
    let names: [&[u8]; 6] = [b"\xff\xfe\x80", b" ", b"new\nline", "gr\u{fc}n".as_bytes(), &[b'n'; 255], &[0x80; 255]];
    let mut tree = tree();
    for name in names {
        tree.add_dir(Tree::ROOT, name, meta(0o755)).unwrap();
    }
    let (image, _) = Image::of_tree(options(16 * MIB), tree);
    image.check();
    let found = image.read();
    for name in names {
        assert!(found.contains_key(name));
    }
}

#[test]
fn links_of_both_kinds_come_back() {
    let (image, mut writer) = Image::writer(options(16 * MIB));
    let mut tree = tree();
    let directory = tree.add_dir(Tree::ROOT, b"d", meta(0o755)).unwrap();
    let contents = data(&mut writer, b"shared contents");
    let file = tree.add_file(directory, b"one", meta(0o600), contents).unwrap();
    tree.link(Tree::ROOT, b"two", file).unwrap();
    tree.link(directory, b"three", file).unwrap();
    let lengths = [1, 59, 60, 61, 4095];
    for length in lengths {
        let name = format!("to{length}");
        let link = tree.add_symlink(Tree::ROOT, name.as_bytes(), meta(0o777), &vec![b't'; length]).unwrap();
        tree.link(directory, name.as_bytes(), link).unwrap();
    }
    writer.finish(tree).unwrap();
    image.check();
    for path in ["d/one", "two", "d/three"] {
        let found = found(&image, path);
        assert_eq!((found.links, found.contents), (3, b"shared contents".to_vec()));
    }
    for length in lengths {
        let found = found(&image, &format!("d/to{length}"));
        assert_eq!((found.links, found.mode, found.contents), (2, 0o120_777, vec![b't'; length]));
    }
}

#[test]
fn a_lost_and_found_of_the_tree_is_used_as_it_is() {
    let mut tree = tree();
    let lost = tree.add_dir(Tree::ROOT, b"lost+found", meta(0o711)).unwrap();
    tree.add_symlink(lost, b"#12345", meta(0o777), b"x").unwrap();
    let deeper = tree.add_dir(Tree::ROOT, b"d", meta(0o755)).unwrap();
    tree.add_symlink(deeper, b"lost+found", meta(0o777), b"only the root's is special").unwrap();
    let (image, _) = Image::of_tree(options(16 * MIB), tree);
    image.check();
    assert_eq!(found(&image, "lost+found").mode, 0o040_711);
    assert_eq!(found(&image, "lost+found/#12345").contents, b"x");
    assert!(image.debugfs("stat /lost+found").contains("Inode: 11 "));
}

#[test]
fn the_same_calls_give_the_same_bytes() {
    let build = || {
        let (image, mut writer) = Image::writer(options(64 * MIB));
        let mut tree = tree();
        for number in 0..2000 {
            let name = format!("file{number}");
            let contents = data(&mut writer, name.repeat(number).as_bytes());
            let xattrs = vec![(b"user.number".to_vec(), vec![1; number % 400])];
            tree.add_file(Tree::ROOT, name.as_bytes(), Meta { xattrs, ..meta(0o644) }, contents).unwrap();
        }
        writer.finish(tree).unwrap();
        bytes_of(&image)
    };
    assert!(build() == build());
}

#[test]
fn label_and_times_of_the_filesystem_are_those_of_the_options() {
    let mut options = options(16 * MIB);
    options.label = "sixteen letters!".to_owned();
    options.reserved_percent = 5;
    let (image, _) = Image::of_tree(options, tree());
    image.check();
    let dump = image.dump();
    assert!(dump.contains("Filesystem volume name:   sixteen letters!"), "{dump}");
    assert!(dump.contains("Reserved block count:     204"), "{dump}");
    let stat = image.debugfs("show_super_stats -h");
    assert!(stat.contains("Tue Nov 14") && stat.contains("2023"), "{stat}");
    assert_eq!(nullspace_ext4::Superblock::read(&image.reopen()).unwrap().label(), "sixteen letters!");
    assert!(image.debugfs("stat <11>").contains("crtime: 0x6553f100:1d6f3454"), "{}", image.debugfs("stat <11>"));
    assert_eq!(TIME.seconds, 0x6553_f100);
}

#[test]
fn an_attribute_that_cannot_be_stored_is_named() {
    let mut tree = tree();
    let xattrs = vec![(b"user.huge".to_vec(), vec![0; 70_000])];
    let error = tree.add_dir(Tree::ROOT, b"d", Meta { xattrs, ..meta(0o755) }).unwrap_err();
    assert!(matches!(&error, Error::BadXattr { attribute, .. } if attribute == "user.huge"), "{error}");
    assert!(tree.lookup(Tree::ROOT, b"d").is_none());
}
