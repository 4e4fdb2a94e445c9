//! The tar reader: every format it claims, made by hand or by GNU tar, and every byte string without a panic.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use nullspace_oci::tar::{Chunk, Entry, EntryKind, TarError, TarLimits, TarReader, Timestamp};
use proptest::prelude::*;

use crate::support::tar::{Item, append, archive, block, data, pax_record, seal};

/// Header, content with holes filled, bytes that were holes.
type Read = (Entry, Vec<u8>, u64);

fn read_with(bytes: &[u8], limits: TarLimits) -> Result<Vec<Read>, TarError> {
    let mut tar = TarReader::new(bytes, limits);
    let mut out = Vec::new();
    while let Some(entry) = tar.next_entry()? {
        let (mut content, mut holes) = (Vec::new(), 0);
        tar.read_data(|chunk| -> Result<(), TarError> {
            match chunk {
                Chunk::Data(bytes) => content.extend_from_slice(bytes),
                Chunk::Hole(len) => {
                    holes += len;
                    // Hostile sizes are only counted.
                    if len < 1 << 24 {
                        content.resize(content.len() + usize::try_from(len).unwrap(), 0);
                    }
                }
            }
            Ok(())
        })?;
        out.push((entry, content, holes));
    }
    tar.drain()?;
    Ok(out)
}

fn read(bytes: &[u8]) -> Result<Vec<Read>, TarError> {
    read_with(bytes, TarLimits::default())
}

fn only(bytes: &[u8]) -> Read {
    let mut entries = read(bytes).unwrap();
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

fn end(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// A header block to be changed and sealed.
fn header(flag: u8, path: &[u8], size: u64) -> [u8; 512] {
    let mut out = Vec::new();
    block(&mut out, flag, path, b"", 0o644, 0, 0, 0, size);
    out.try_into().unwrap()
}

fn sealed(mut header: [u8; 512], change: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
    change(&mut header);
    seal(&mut header);
    header.to_vec()
}

#[test]
fn v7_header_has_no_magic_and_directories_end_in_a_slash() {
    let old = |path: &[u8]| sealed(header(0, path, 0), |block| block[257..].fill(0));
    let archive = end([old(b"dir/"), old(b"file")].concat());
    let kinds: Vec<EntryKind> = read(&archive).unwrap().iter().map(|(entry, ..)| entry.kind).collect();
    assert_eq!(kinds, [EntryKind::Directory, EntryKind::File]);
}

#[test]
fn ustar_prefix_and_star_prefix_join_the_name() {
    let ustar = sealed(header(b'0', b"name", 0), |block| block[345..348].copy_from_slice(b"a/b"));
    assert_eq!(only(&end(ustar)).0.path, b"a/b/name");
    let star = sealed(header(b'0', b"name", 0), |block| {
        block[345..348].copy_from_slice(b"a/b");
        block[476..488].copy_from_slice(b"00000000001\0");
        block[508..512].copy_from_slice(b"tar\0");
    });
    assert_eq!(only(&end(star)).0.path, b"a/b/name");
}

#[test]
fn gnu_header_has_times_where_ustar_has_its_prefix() {
    let gnu = |at_345: &[u8]| {
        let at_345 = at_345.to_vec();
        sealed(header(b'0', b"name", 0), move |block| {
            block[257..265].copy_from_slice(b"ustar  \0");
            block[345..345 + at_345.len()].copy_from_slice(&at_345);
        })
    };
    assert_eq!(only(&end(gnu(b"14321412414\0"))).0.path, b"name");
    // What Go before 1.8 wrote.
    assert_eq!(only(&end(gnu(b"old/prefix"))).0.path, b"old/prefix/name");
}

#[test]
fn gnu_long_names_and_links() {
    let (path, link) = ("p/".repeat(150) + "x", "l/".repeat(200) + "y");
    let mut out = Vec::new();
    for (flag, text) in [(b'K', &link), (b'L', &path)] {
        let text = [text.as_bytes(), b"\0"].concat();
        block(&mut out, flag, b"././@LongLink", b"", 0, 0, 0, 0, text.len() as u64);
        data(&mut out, &text);
    }
    append(&mut out, &Item::symlink("cut", "short"));
    let (entry, ..) = only(&end(out));
    assert_eq!((entry.path, entry.link), (path.into_bytes(), link.into_bytes()));
}

#[test]
fn pax_overrides_every_field() {
    let long = "d/".repeat(600) + "f";
    let records = [
        pax_record("path", long.as_bytes()),
        pax_record("size", b"5"),
        pax_record("uid", b"4294967294"),
        pax_record("gid", b"3000000000"),
        pax_record("mtime", b"1700000000.123456789"),
        pax_record("SCHILY.xattr.user.x", b"a=b\n\0\xff"),
        pax_record("SCHILY.xattr.security.capability", &[1, 0, 0, 2]),
        pax_record("comment", b"ignored"),
        pax_record("LIBARCHIVE.xattr.user.x", b"ignored"),
        pax_record("uname", b"somebody"),
    ]
    .concat();
    let mut out = Vec::new();
    block(&mut out, b'x', b"x", b"", 0, 0, 0, 0, records.len() as u64);
    data(&mut out, &records);
    block(&mut out, b'0', b"cut", b"", 0o4755, 1, 2, 3, 0);
    data(&mut out, b"hello");
    let (entry, content, _) = only(&end(out));
    assert_eq!(entry.path, long.as_bytes());
    assert_eq!((entry.size, entry.uid, entry.gid, entry.mode), (5, 4_294_967_294, 3_000_000_000, 0o4755));
    assert_eq!(entry.mtime, Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 });
    let names: Vec<&[u8]> = entry.xattrs.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(names, [&b"security.capability"[..], b"user.x"]);
    assert_eq!(entry.xattrs[1].1, b"a=b\n\0\xff");
    assert_eq!(content, b"hello");
}

#[test]
fn pax_applies_to_the_next_entry_only_and_global_headers_to_none() {
    let mut out = Vec::new();
    for (flag, name) in [(b'g', "global"), (b'x', "local")] {
        let records = pax_record("path", name.as_bytes());
        block(&mut out, flag, b"x", b"", 0, 0, 0, 0, records.len() as u64);
        data(&mut out, &records);
    }
    append(&mut out, &Item::file("one", ""));
    append(&mut out, &Item::file("two", ""));
    let paths: Vec<Vec<u8>> = read(&end(out)).unwrap().into_iter().map(|(entry, ..)| entry.path).collect();
    assert_eq!(paths, [b"local".to_vec(), b"two".to_vec()]);
}

#[test]
fn numbers_in_base_256() {
    let out = sealed(header(b'0', b"big", 0), |block| {
        block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]);
        block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        block[136..148].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xf6]);
    });
    let (entry, content, _) = only(&end([out, [b"abc".to_vec(), vec![0; 509]].concat()].concat()));
    assert_eq!((entry.uid, entry.size, entry.mtime.seconds), (u32::MAX - 1, 3, -10));
    assert_eq!(content, b"abc");
}

#[test]
fn checksum_may_be_of_signed_bytes() {
    let out = sealed(header(b'0', b"\xfc\xfc", 0), |_| {});
    let mut signed: [u8; 512] = out.try_into().unwrap();
    signed[148..156].fill(b' ');
    let sum: i64 = signed.iter().map(|&b| i64::from(b.cast_signed())).sum();
    signed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(only(&end(signed.to_vec())).0.path, b"\xfc\xfc");
}

#[test]
fn links_and_directories_have_no_data_whatever_their_size_says() {
    let mut out = Vec::new();
    for flag in [b'1', b'2', b'5'] {
        block(&mut out, flag, b"x", b"t", 0, 0, 0, 0, 12345);
    }
    append(&mut out, &Item::file("f", "data"));
    let sizes: Vec<u64> = read(&end(out)).unwrap().iter().map(|(entry, ..)| entry.size).collect();
    assert_eq!(sizes, [0, 0, 0, 4]);
}

#[test]
fn special_types_are_told_apart_and_odd_ones_refused() {
    let kinds = [
        (b'3', EntryKind::CharDevice),
        (b'4', EntryKind::BlockDevice),
        (b'6', EntryKind::Fifo),
        (b's', EntryKind::Socket),
        (b'7', EntryKind::File),
    ];
    for (flag, kind) in kinds {
        assert_eq!(only(&archive(&[Item::new(flag, "x")])).0.kind, kind);
    }
    for flag in [b'D', b'M', b'N', b'A', b'?', 0xff] {
        let error = read(&archive(&[Item::new(flag, "x")])).unwrap_err();
        assert!(matches!(error, TarError::UnsupportedType { .. }), "{error:?}");
    }
    assert_eq!(read(&archive(&[Item::new(b'V', "label"), Item::file("f", "")])).unwrap().len(), 1);
}

#[test]
fn archives_end_in_several_ways() {
    let item = Item::file("f", "12345");
    let whole = archive(std::slice::from_ref(&item));
    let unpadded = whole.len() - 1024 - 507;
    for (length, good) in [
        (whole.len(), true),
        (whole.len() - 512, true),
        (whole.len() - 1024, true),
        (whole.len() - 1, false),
        (unpadded, true),
        (unpadded + 1, false),
        (unpadded - 1, false),
        (511, false),
        (0, true),
    ] {
        let outcome = read(&whole[..length]);
        assert_eq!(outcome.is_ok(), good, "{length}: {outcome:?}");
    }
    let trailing = [whole.clone(), vec![7; 3000]].concat();
    assert_eq!(read(&trailing).unwrap().len(), 1);
    let single_zero = [whole[..1024].to_vec(), vec![0; 512], whole[..1024].to_vec()].concat();
    assert!(matches!(read(&single_zero), Err(TarError::Header { offset: 1536, .. })));
}

#[test]
fn old_gnu_sparse_map_with_extension_blocks() {
    // 30 segments of one byte, every 1000 bytes.
    let pair = |n: u64| [format!("{:011o}\0", n * 1000).into_bytes(), b"00000000001\0".to_vec()].concat();
    let mut first = header(b'S', b"sparse", 30);
    first[257..265].copy_from_slice(b"ustar  \0");
    first[386..482].copy_from_slice(&(0..4).flat_map(pair).collect::<Vec<u8>>());
    first[482] = 1;
    first[483..495].copy_from_slice(format!("{:011o}\0", 30_500).as_bytes());
    let mut more = [0_u8; 1024];
    more[..504].copy_from_slice(&(4..25).flat_map(pair).collect::<Vec<u8>>());
    more[504] = 1;
    more[512..512 + 120].copy_from_slice(&(25..30).flat_map(pair).collect::<Vec<u8>>());
    let mut out = [sealed(first, |_| {}), more.to_vec()].concat();
    data(&mut out, &[b'x'; 30]);
    append(&mut out, &Item::file("next", "n"));
    let entries = read(&end(out)).unwrap();
    let (entry, content, holes) = &entries[0];
    assert_eq!((entry.size, content.len(), *holes), (30_500, 30_500, 30_470));
    assert!(content.iter().enumerate().all(|(at, &byte)| byte == if at % 1000 == 0 && at < 30_000 { b'x' } else { 0 }));
    assert_eq!(entries[1].1, b"n");
}

#[test]
fn pax_sparse_maps_of_all_versions() {
    let map_0_0 = [
        ("GNU.sparse.offset", "2"),
        ("GNU.sparse.numbytes", "3"),
        ("GNU.sparse.offset", "8"),
        ("GNU.sparse.numbytes", "1"),
    ];
    let common = |records: Vec<Vec<u8>>, stored: &[u8]| {
        let records = records.concat();
        let mut out = Vec::new();
        block(&mut out, b'x', b"x", b"", 0, 0, 0, 0, records.len() as u64);
        data(&mut out, &records);
        block(&mut out, b'0', b"GNUSparseFile.0/x", b"", 0o644, 0, 0, 0, stored.len() as u64);
        data(&mut out, stored);
        only(&end(out))
    };
    let record = |key: &str, value: &str| pax_record(key, value.as_bytes());
    let v0_0 = common(
        [
            vec![record("GNU.sparse.size", "10"), record("GNU.sparse.numblocks", "2")],
            map_0_0.iter().map(|(key, value)| record(key, value)).collect(),
        ]
        .concat(),
        b"abcd",
    );
    let v0_1 = common(
        vec![
            record("GNU.sparse.major", "0"),
            record("GNU.sparse.minor", "1"),
            record("GNU.sparse.size", "10"),
            record("GNU.sparse.name", "real"),
            record("GNU.sparse.map", "2,3,8,1"),
        ],
        b"abcd",
    );
    let mut stored = b"2\n2\n3\n8\n1\n".to_vec();
    stored.resize(512, 0);
    stored.extend_from_slice(b"abcd");
    let v1_0 = common(
        vec![
            record("GNU.sparse.major", "1"),
            record("GNU.sparse.minor", "0"),
            record("GNU.sparse.name", "real"),
            record("GNU.sparse.realsize", "10"),
        ],
        &stored,
    );
    for (entry, content, holes) in [&v0_0, &v0_1, &v1_0] {
        assert_eq!((entry.size, *holes), (10, 6));
        assert_eq!(content, b"\0\0abc\0\0\0d\0");
    }
    assert_eq!(v0_1.0.path, b"real");
    assert_eq!(v1_0.0.path, b"real");
}

#[test]
fn hostile_sparse_maps_and_sizes_are_refused() {
    let with = |records: &[(&str, &str)], stored: &[u8]| {
        let records: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value.as_bytes())).collect();
        let mut out = Vec::new();
        block(&mut out, b'x', b"x", b"", 0, 0, 0, 0, records.len() as u64);
        data(&mut out, &records);
        block(&mut out, b'0', b"f", b"", 0o644, 0, 0, 0, stored.len() as u64);
        data(&mut out, stored);
        read(&end(out)).expect_err("must be refused")
    };
    let size = ("GNU.sparse.size", "10");
    let sparse = |error: TarError| assert!(matches!(error, TarError::Sparse { .. }), "{error:?}");
    sparse(with(&[size, ("GNU.sparse.map", "8,3")], b"abc"));
    sparse(with(&[size, ("GNU.sparse.map", "5,1,2,1")], b"ab"));
    sparse(with(&[size, ("GNU.sparse.map", "0,2")], b"abc"));
    sparse(with(&[size, ("GNU.sparse.map", "18446744073709551615,2")], b"ab"));
    sparse(with(&[size, ("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")], b""));
    sparse(with(&[size, ("GNU.sparse.major", "0"), ("GNU.sparse.minor", "1")], b""));
    let v1 = [("GNU.sparse.realsize", "10"), ("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")];
    sparse(with(&v1, b""));
    sparse(with(&v1, &[b'9'; 512]));
    sparse(with(&v1, &{
        let mut map = b"99999999\n".to_vec();
        map.resize(512, 0);
        map
    }));
    let huge = with(&[("GNU.sparse.size", "9223372036854775807"), ("GNU.sparse.map", "")], b"");
    assert!(matches!(huge, TarError::TooLarge { what: "a file", .. }), "{huge:?}");
    let huge = with(&[("size", "18446744073709551615")], b"");
    assert!(matches!(huge, TarError::TooLarge { what: "a file", .. }), "{huge:?}");
}

#[test]
fn extended_headers_are_bounded() {
    for flag in [b'x', b'g', b'L', b'K'] {
        let mut out = Vec::new();
        block(&mut out, flag, b"x", b"", 0, 0, 0, 0, (1 << 20) + 1);
        let error = read(&out).unwrap_err();
        assert!(matches!(error, TarError::TooLarge { limit: 1_048_576, .. }), "{error:?}");
    }
    let value = vec![b'x'; 70_000];
    let item = Item { xattrs: vec![("user.x".to_owned(), value)], ..Item::file("f", "") };
    assert!(matches!(read(&archive(&[item])), Err(TarError::Pax { .. })));
    let mut dangling = Vec::new();
    let records = pax_record("path", b"x");
    block(&mut dangling, b'x', b"x", b"", 0, 0, 0, 0, records.len() as u64);
    data(&mut dangling, &records);
    assert!(matches!(read(&end(dangling)), Err(TarError::Truncated { .. })));
}

/// What GNU tar writes of a folder is read back as the folder is.
#[test]
fn gnu_tar_archives_read_back_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    let deep = root.join("d".repeat(90)).join("e".repeat(90));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f".repeat(200)), "long").unwrap();
    fs::write(root.join("exec"), [7_u8; 100_000]).unwrap();
    fs::set_permissions(root.join("exec"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::hard_link(root.join("exec"), root.join("hard")).unwrap();
    symlink("t".repeat(300), root.join("long link")).unwrap();
    let mut sparse = fs::File::create(root.join("sparse")).unwrap();
    for n in 0..40_u64 {
        sparse.seek(SeekFrom::Start(n * 100_000)).unwrap();
        sparse.write_all(&[b'a' + u8::try_from(n % 26).unwrap(); 5000]).unwrap();
    }
    sparse.set_len(5_000_000).unwrap();
    drop(sparse);
    let sparse_content = fs::read(root.join("sparse")).unwrap();
    for format in [&["gnu"][..], &["pax"], &["pax", "--sparse-version=0.0"], &["pax", "--sparse-version=0.1"]] {
        let output = Command::new("tar")
            .arg("-C")
            .arg(&root)
            .args(["--sparse", "--hole-detection=raw", "-cf", "-"])
            .arg(format!("--format={}", format[0]))
            .args(&format[1..])
            .arg(".")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let entries = read(&output.stdout).unwrap();
        assert!(entries.len() >= 8, "{}", entries.len());
        let mut hard_links = 0;
        for (entry, content, holes) in &entries {
            let name = std::str::from_utf8(&entry.path).unwrap();
            let path = root.join(name.trim_start_matches("./"));
            let metadata = path.symlink_metadata().unwrap();
            if entry.kind == EntryKind::HardLink {
                hard_links += 1;
                continue;
            }
            assert_eq!(u32::from(entry.mode), metadata.mode() & 0o7777, "{name}");
            assert_eq!(entry.mtime.seconds, metadata.mtime(), "{name}");
            if format[0] == "pax" {
                assert_eq!(i64::from(entry.mtime.nanos), metadata.mtime_nsec(), "{name}");
            }
            match entry.kind {
                EntryKind::File => assert!(*content == fs::read(&path).unwrap(), "{name}"),
                EntryKind::Symlink => {
                    assert_eq!(Path::new(std::str::from_utf8(&entry.link).unwrap()), fs::read_link(&path).unwrap())
                }
                EntryKind::Directory => assert!(metadata.is_dir()),
                other => panic!("{other:?}"),
            }
            if name.ends_with("sparse") {
                assert!(*content == sparse_content);
                assert!(*holes > 4_500_000, "{format:?} stores holes: {holes}");
            }
        }
        assert_eq!(hard_links, 1);
    }
}

fn sample() -> Vec<u8> {
    let mut out = archive(&[
        Item::dir("d"),
        Item { xattrs: vec![("user.x".to_owned(), b"v".to_vec())], ..Item::file("d/f", vec![9; 700]) },
        Item::symlink("s".repeat(150), "t".repeat(150)),
        Item::hard_link("h", "d/f"),
    ]);
    let mut map = b"1\n0\n3\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"abc");
    let records: Vec<u8> = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9")]
        .iter()
        .flat_map(|(key, value)| pax_record(key, value.as_bytes()))
        .collect();
    let mut sparse = Vec::new();
    block(&mut sparse, b'x', b"x", b"", 0, 0, 0, 0, records.len() as u64);
    data(&mut sparse, &records);
    block(&mut sparse, b'0', b"sp", b"", 0o644, 0, 0, 0, map.len() as u64);
    data(&mut sparse, &map);
    sparse.extend_from_slice(&out);
    std::mem::swap(&mut out, &mut sparse);
    out
}

#[test]
fn every_truncation_is_an_error_or_a_clean_prefix() {
    let whole = sample();
    let all = read(&whole).unwrap();
    assert_eq!(all.len(), 5);
    for length in 0..whole.len() {
        match read(&whole[..length]) {
            Ok(entries) => assert_eq!(entries, all[..entries.len()], "{length}"),
            Err(TarError::Truncated { offset }) => assert!(offset <= length as u64),
            Err(other) => panic!("{length}: {other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read(&bytes);
    }

    #[test]
    fn arbitrary_headers_with_right_checksums_never_panic(
        blocks in prop::collection::vec((prop::collection::vec(any::<u8>(), 512), any::<bool>(), 0_u8..128), 1..6),
    ) {
        let flags = b"01234567xgLKSXV\0";
        let bytes: Vec<u8> = blocks.into_iter().flat_map(|(bytes, zero, flag)| {
            let mut block: [u8; 512] = bytes.try_into().unwrap();
            // Numbers that parse, mostly; or the whole of it random.
            if zero {
                block[100..148].copy_from_slice(b"0000644\x000000000\x000000000\x0000000000100\x0000000000000\0");
            }
            block[156] = flags[usize::from(flag) % flags.len()];
            block[257..265].copy_from_slice(if flag < 64 { b"ustar\x0000" } else { b"ustar  \0" });
            seal(&mut block);
            block
        }).collect();
        let _ = read(&bytes);
    }

    #[test]
    fn mutated_archives_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), reseal: bool) {
        let mut bytes = sample();
        for (at, value) in changes {
            let length = bytes.len();
            bytes[at.index(length)] = value;
        }
        if reseal {
            for block in bytes.chunks_exact_mut(512) {
                if block[257..262] == *b"ustar" {
                    let block: &mut [u8; 512] = block.try_into().unwrap();
                    seal(block);
                }
            }
        }
        let limits = TarLimits { extended_header: 4096, sparse_segments: 100, ..TarLimits::default() };
        let _ = read_with(&bytes, limits);
        // The merge must take anything the reader lets through, and whatever it refuses.
        let _ = crate::merge_cases::merge(&[bytes]);
    }
}
