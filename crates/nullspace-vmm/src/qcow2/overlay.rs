//! An empty qcow2 overlay, written directly: no `qemu-img` to start, no name of a backing file to trust.
//!
//! ```text
//!  cluster 0   header
//!          1   refcount table  -> cluster 2
//!          2   refcount block: 1 for each cluster of this file
//!          3.. L1 table, all zero: nothing is allocated, every read goes to the backing node
//! ```
//!
//! The header names no backing file. QEMU is told the backing node on its command line, so that a machine that gets
//! hold of its overlay cannot make anybody open a path. Extended L2 entries split each 64 KiB cluster into 2 KiB
//! subclusters: a scattered 4 KiB write then copies and allocates 4 KiB and not 64 (measured: a third of the time and a
//! sixteenth of the space). QEMU reads them since 5.2.
//!
//! Format: QEMU's `docs/interop/qcow2.txt`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a cluster.
pub(super) const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// An extended L2 entry takes 16 bytes, so that one L2 table (a cluster) maps this much.
pub(super) const BYTES_PER_L1_ENTRY: u64 = (CLUSTER / 16) * CLUSTER;
/// Incompatible feature bit 4.
const EXTENDED_L2: u64 = 1 << 4;
const HEADER_LENGTH: u32 = 104;
/// 16-bit reference counts.
const REFCOUNT_ORDER: u32 = 4;
/// Clusters before the L1 table.
pub(super) const FIXED_CLUSTERS: u64 = 3;

/// Largest virtual size: 64 TiB. QEMU would take more; nobody has such a disk, and the L1 table stays in one refcount block.
const MAX_SIZE: u64 = 64 << 40;

/// Clusters of the L1 table of a disk of `size` bytes.
pub(super) fn l1_clusters(size: u64) -> u64 {
    (size.div_ceil(BYTES_PER_L1_ENTRY) * 8).div_ceil(CLUSTER)
}

/// Writes an empty overlay of `size` bytes (a multiple of 512) into an empty file. Writes about 300 bytes; the rest is a hole.
pub(crate) fn create(file: &File, size: u64) -> io::Result<()> {
    if size == 0 || size > MAX_SIZE || !size.is_multiple_of(512) {
        let message = format!("a disk of {size} bytes: must be a multiple of 512 between 512 and {MAX_SIZE}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let l1_entries = size.div_ceil(BYTES_PER_L1_ENTRY);
    let clusters = FIXED_CLUSTERS + l1_clusters(size);

    let mut header = Vec::with_capacity(HEADER_LENGTH as usize);
    header.extend(*b"QFI\xfb");
    header.extend(3u32.to_be_bytes()); // version
    header.extend([0; 12]); // backing file: offset, length
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(size.to_be_bytes());
    header.extend(0u32.to_be_bytes()); // encryption
    header.extend((l1_entries as u32).to_be_bytes());
    header.extend((FIXED_CLUSTERS * CLUSTER).to_be_bytes()); // L1 table
    header.extend(CLUSTER.to_be_bytes()); // refcount table
    header.extend(1u32.to_be_bytes()); // its clusters
    header.extend([0; 12]); // internal snapshots: count, offset
    header.extend(EXTENDED_L2.to_be_bytes()); // incompatible features
    header.extend([0; 16]); // compatible, auto-clear features
    header.extend(REFCOUNT_ORDER.to_be_bytes());
    header.extend(HEADER_LENGTH.to_be_bytes());
    debug_assert_eq!(header.len(), HEADER_LENGTH as usize);

    // Length first: what follows the header (an extension of type 0, the end of extensions) and the L1 table are zeros.
    file.set_len(clusters * CLUSTER)?;
    file.write_all_at(&header, 0)?;
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    let refcounts: Vec<u8> = (0..clusters).flat_map(|_| 1u16.to_be_bytes()).collect();
    file.write_all_at(&refcounts, 2 * CLUSTER)
}

/// Checks that QEMU left a file of the shape that [`create`] makes. A guest that took QEMU over could have written a
/// header that names another file to open (backing file, external data file): whoever opens it next would open that too.
pub(crate) fn verify(file: &File, size: u64) -> io::Result<()> {
    let mut header = [0; HEADER_LENGTH as usize];
    file.read_exact_at(&mut header, 0)?;
    let u32_at = |at: usize| header[at..at + 4].iter().fold(0u32, |value, byte| value << 8 | u32::from(*byte));
    let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
    let sound = header[..4] == *b"QFI\xfb"
        && u32_at(4) == 3
        && u64_at(8) == 0 // no backing file
        && u32_at(16) == 0
        && u64_at(24) == size
        && u32_at(32) == 0 // no encryption
        && u32_at(60) == 0 // no internal snapshots
        && u64_at(72) == EXTENDED_L2 // no external data file; neither dirty nor corrupt
        && u64_at(80) == 0
        && u64_at(88) == 0;
    if sound { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "the disk overlay is damaged")) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn qemu_img(args: &[&str]) -> (bool, String) {
        let output = Command::new("qemu-img").args(args).output().expect("qemu-img (package qemu-utils)");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn qemu_finds_nothing_wrong_with_an_overlay_of_any_size(
            sectors in prop_oneof![1..10_000u64, 1..(MAX_SIZE / 512), Just(1), Just(MAX_SIZE / 512), Just(BYTES_PER_L1_ENTRY / 512)]
        ) {
            let file = tempfile::NamedTempFile::new().unwrap();
            create(file.as_file(), sectors * 512).unwrap();
            let path = file.path().to_str().unwrap();
            let (clean, text) = qemu_img(&["check", "-f", "qcow2", path]);
            prop_assert!(clean && text.starts_with("No errors were found on the image."), "{}", text);
            let (_, text) = qemu_img(&["info", "--output=json", "-f", "qcow2", path]);
            let info: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(info["virtual-size"].as_u64(), Some(sectors * 512));
            prop_assert_eq!(info["backing-filename"].as_str(), None);
            prop_assert_eq!(info["format-specific"]["data"]["extended-l2"].as_bool(), Some(true));
            prop_assert_eq!(info["dirty-flag"].as_bool(), Some(false));
        }
    }

    #[test]
    fn an_overlay_takes_writes_and_reads_the_rest_from_its_backing() {
        let folder = tempfile::tempdir().unwrap();
        let (base, top) = (folder.path().join("base.raw"), folder.path().join("top.qcow2"));
        std::fs::write(&base, vec![b'b'; 1 << 20]).unwrap();
        create(&File::create_new(&top).unwrap(), 4 << 20).unwrap();
        let image = format!(
            "json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}},\"backing\":{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}}}",
            top.display(),
            base.display()
        );
        let io = |commands: &[&str]| {
            let args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
            let output = Command::new("qemu-io").args(args).arg(&image).output().expect("qemu-io (package qemu-utils)");
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(output.status.success() && !text.contains("failed"), "{text}");
        };
        // 'b' below the base's end, zeros beyond it, 't' where it was written.
        io(&["write -P 0x74 12288 4096", "write -P 0x74 3M 512"]);
        io(&[
            "read -P 0x62 0 12288",
            "read -P 0x74 12288 4096",
            "read -P 0x62 16384 1032192",
            "read -P 0 1M 2M",
            "read -P 0x74 3M 512",
        ]);
        let (clean, text) = qemu_img(&["check", "-f", "qcow2", top.to_str().unwrap()]);
        assert!(clean, "{text}");
        let written = File::open(&top).unwrap();
        verify(&written, 4 << 20).unwrap();
        assert!(verify(&written, 8 << 20).is_err());
    }

    #[test]
    fn a_header_that_names_other_files_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.qcow2");
        for options in [
            &["-F", "raw", "-b", "/etc/passwd", "-o", "extended_l2=on"][..],
            &["-o", "extended_l2=on,data_file=data.raw"],
            &["-o", "compat=0.10"],
            &[],
        ] {
            let path = path.to_str().unwrap();
            let mut args = vec!["create", "-q", "-f", "qcow2"];
            args.extend(options);
            args.extend([path, "1M"]);
            let output = Command::new("qemu-img").args(args).current_dir(folder.path()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            assert!(verify(&File::open(path).unwrap(), 1 << 20).is_err(), "{options:?}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [0, 513, MAX_SIZE + 512, u64::MAX] {
            let error = create(&tempfile::tempfile().unwrap(), size).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
