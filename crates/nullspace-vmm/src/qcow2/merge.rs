//! Several overlays as one: what a guest sees of them, over the same base.
//!
//! ```text
//!   upper    |  bb    00  |
//!   lower    |aaaa  aaaa  |        . the base's    0 reads as zeros, whatever the base has
//!   merged   |abba..aa00..|
//! ```
//! One L2 table's range of the disk (256 MiB) is merged at a time, so that memory does not grow with the disk. The new file
//! has data clusters and L2 tables in the order of the disk:
//!
//! ```text
//!   header, refcount table, refcount block, L1 │ clusters, L2 table │ clusters, L2 table │ … │ more refcount blocks
//! ```
//! QEMU could do it itself by `block-stream`, but aborts on subclusters up to version 8.0.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::overlay::{CLUSTER, FIXED_CLUSTERS, create, l1_clusters};
use super::tables::{ENTRIES, ENTRY, Entry, SUBCLUSTER, Tables, damaged};

/// Flag of an L1 or L2 entry: nothing else refers to the cluster, which may be written in place.
const ONLY_REFERENCE: u64 = 1 << 63;
/// Clusters that one refcount block counts.
const COUNTED: u64 = CLUSTER / 2;
/// Refcount blocks that the one cluster of the refcount table refers to.
const BLOCKS: u64 = CLUSTER / 8;
/// Where the refcount table and its first block lie.
const REFCOUNT_TABLE: u64 = CLUSTER;
const FIRST_BLOCK: u64 = 2 * CLUSTER;
/// Clusters written at once.
const BATCH: usize = 16;

/// Writes into the empty file `to` an overlay of `size` bytes with what `layers`, overlays of that size from the base up,
/// show together. QEMU must not write to them meanwhile; whatever they hold, `to` is sound. Blocks.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when a layer is damaged.
pub(crate) fn merge(layers: &[&File], size: u64, to: &File) -> io::Result<()> {
    create(to, size)?;
    let layers = layers.iter().map(|file| Tables::read(file, size)).collect::<io::Result<Vec<_>>>()?;
    let mut writer = Writer::new(to, size);
    let mut tables = vec![vec![0; CLUSTER as usize]; layers.len()];
    let mut table = vec![0; CLUSTER as usize];
    for index in 0..layers.iter().map(Tables::count).max().unwrap_or(0) {
        let loaded = layers.iter().zip(&mut tables).map(|(layer, table)| layer.load(index, table));
        let loaded = loaded.collect::<io::Result<Vec<bool>>>()?;
        if !loaded.contains(&true) {
            continue;
        }
        table.fill(0);
        let mut is_empty = true;
        for cluster in 0..ENTRIES {
            let shown = layers.iter().zip(&tables).zip(&loaded).rev().filter(|(_, loaded)| **loaded);
            let mut seen = Seen::default();
            for ((layer, table), _) in shown {
                if let Some(entry) = layer.entry(index, table, cluster)? {
                    seen.add(layer, entry, &mut writer)?;
                }
            }
            if seen.allocated | seen.zeros == 0 {
                continue;
            }
            is_empty = false;
            let place = if seen.allocated == 0 { 0 } else { writer.finish_cluster()? | ONLY_REFERENCE };
            let bitmap = u64::from(seen.zeros) << 32 | u64::from(seen.allocated);
            let entry = table.get_mut(cluster * ENTRY..(cluster + 1) * ENTRY).ok_or_else(damaged)?;
            entry[..8].copy_from_slice(&place.to_be_bytes());
            entry[8..].copy_from_slice(&bitmap.to_be_bytes());
        }
        if !is_empty {
            writer.finish_table(index, &table)?;
        }
    }
    writer.finish()
}

/// The subclusters of one cluster that layers from the top down have shown so far.
#[derive(Debug, Default)]
struct Seen {
    allocated: u32,
    zeros: u32,
}

impl Seen {
    /// Adds those of the next layer below that no upper one hides.
    fn add(&mut self, layer: &Tables<'_>, entry: Entry, writer: &mut Writer<'_>) -> io::Result<()> {
        let open = !(self.allocated | self.zeros);
        let data = entry.allocated & open;
        self.zeros |= entry.zeros & open;
        self.allocated |= data;
        let mut at = 0;
        while at < 32 {
            let run = (data >> at).trailing_ones().min(32 - at);
            if run > 0 {
                let (from, len) = (u64::from(at) * SUBCLUSTER, u64::from(run) * SUBCLUSTER);
                let part = from as usize..(from + len) as usize;
                read_padded(layer, &mut writer.cluster()[part], entry.place + from)?;
            }
            at += run.max(1);
        }
        Ok(())
    }
}

/// Reads bytes of a cluster. What lies behind the end of the file is zeros.
fn read_padded(layer: &Tables<'_>, mut part: &mut [u8], mut at: u64) -> io::Result<()> {
    while !part.is_empty() {
        let read = layer.file.read_at(part, at)?;
        if read == 0 {
            part.fill(0);
            return Ok(());
        }
        part = part.get_mut(read..).unwrap_or_default();
        at += read as u64;
    }
    Ok(())
}

/// The merged overlay, which grows.
struct Writer<'a> {
    to: &'a File,
    /// Clusters in the file so far, those of the batch included.
    clusters: u64,
    /// Finished data clusters that are not written yet, and room for the one in work.
    batch: Vec<u8>,
    waiting: usize,
}

impl<'a> Writer<'a> {
    fn new(to: &'a File, size: u64) -> Self {
        let batch = vec![0; BATCH * CLUSTER as usize];
        Self { to, clusters: FIXED_CLUSTERS + l1_clusters(size), batch, waiting: 0 }
    }

    /// The data cluster in work, zeros at first.
    fn cluster(&mut self) -> &mut [u8] {
        let start = self.waiting * CLUSTER as usize;
        &mut self.batch[start..start + CLUSTER as usize]
    }

    /// Ends the data cluster in work, and returns its offset in the file.
    fn finish_cluster(&mut self) -> io::Result<u64> {
        let place = self.clusters * CLUSTER;
        self.clusters += 1;
        self.waiting += 1;
        if self.waiting == BATCH {
            self.write_batch()?;
        }
        Ok(place)
    }

    fn write_batch(&mut self) -> io::Result<()> {
        let bytes = &mut self.batch[..self.waiting * CLUSTER as usize];
        self.to.write_all_at(bytes, (self.clusters - self.waiting as u64) * CLUSTER)?;
        bytes.fill(0);
        self.waiting = 0;
        Ok(())
    }

    fn finish_table(&mut self, index: usize, table: &[u8]) -> io::Result<()> {
        self.write_batch()?;
        let place = self.clusters * CLUSTER;
        self.clusters += 1;
        self.to.write_all_at(table, place)?;
        let entry = FIXED_CLUSTERS * CLUSTER + index as u64 * 8;
        self.to.write_all_at(&(place | ONLY_REFERENCE).to_be_bytes(), entry)
    }

    /// Counts every cluster of the file as used once.
    fn finish(mut self) -> io::Result<()> {
        self.write_batch()?;
        // The first block is there; each further one counts itself too.
        let mut blocks = 1;
        while blocks * COUNTED < self.clusters + blocks - 1 {
            blocks += 1;
        }
        if blocks > BLOCKS {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a merged disk overlay would be too large"));
        }
        let mut left = self.clusters + blocks - 1;
        self.to.set_len(left * CLUSTER)?;
        for block in 0..blocks {
            let place = if block == 0 { FIRST_BLOCK } else { (self.clusters + block - 1) * CLUSTER };
            let counted = left.min(COUNTED);
            self.to.write_all_at(&1u16.to_be_bytes().repeat(counted as usize), place)?;
            self.to.write_all_at(&place.to_be_bytes(), REFCOUNT_TABLE + block * 8)?;
            left -= counted;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::changes::DiskChanges;
    use crate::qcow2::allocated;

    const SIZE: u64 = (520 << 20) + 1536;

    #[derive(Debug, Clone)]
    enum Write {
        Data { at: u64, len: u64, byte: u8 },
        Zeros { at: u64, len: u64, unmap: bool },
    }

    /// Writes near the borders of clusters, of L2 tables (256 MiB) and of the disk, so that layers meet.
    fn write() -> impl Strategy<Value = Write> {
        let place = prop_oneof![
            (0..4u64, -9i64..9).prop_map(|(table, off)| (table * (256 << 20) / 512).saturating_add_signed(off)),
            (0..4u64, -9i64..9).prop_map(|(cluster, off)| (cluster * 128).saturating_add_signed(off)),
            Just(SIZE / 512 - 5),
        ];
        (place, 1..400u64, any::<Option<u8>>(), any::<bool>()).prop_map(|(at, len, byte, unmap)| {
            let at = (at * 512).min(SIZE - 512);
            let len = (len * 512).min(SIZE - at);
            match byte {
                Some(byte) => Write::Data { at, len, byte: byte.max(1) },
                None => Write::Zeros { at, len, unmap },
            }
        })
    }

    /// The name of layers over each other, for QEMU's tools.
    fn image(base: &Path, layers: &[PathBuf]) -> String {
        let file = |path: &Path| format!("{{\"driver\":\"file\",\"filename\":\"{}\"}}", path.display());
        let mut image = format!("{{\"driver\":\"raw\",\"file\":{}}}", file(base));
        for layer in layers {
            let top = file(layer);
            image = format!("{{\"driver\":\"qcow2\",\"discard\":\"unmap\",\"file\":{top},\"backing\":{image}}}");
        }
        format!("json:{image}")
    }

    fn apply(image: &str, writes: &[Write]) {
        let mut command = Command::new("qemu-io");
        for write in writes {
            let line = match write {
                Write::Data { at, len, byte } => format!("write -P {byte} {at} {len}"),
                Write::Zeros { at, len, unmap: true } => format!("write -z -u {at} {len}"),
                Write::Zeros { at, len, unmap: false } => format!("write -z {at} {len}"),
            };
            command.args(["-c", &line]);
        }
        let output = command.arg(image).output().expect("qemu-io (package qemu-utils)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn qemu_img(args: &[&str]) -> String {
        let output = Command::new("qemu-img").args(args).output().expect("qemu-img (package qemu-utils)");
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{args:?}: {text}");
        text
    }

    /// A base of which every sector tells its number, sparsely.
    fn base(path: &Path) {
        let file = File::create_new(path).unwrap();
        file.set_len(SIZE - 4096).unwrap();
        for start in [0, (256 << 20) - (1 << 20), (512 << 20) - (1 << 20)] {
            file.write_all_at(&vec![0xBA; 2 << 20], start).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
        #[test]
        fn merged_layers_show_what_they_showed_apart(
            writes in proptest::collection::vec(proptest::collection::vec(write(), 0..8), 1..5),
            from in 0..4usize,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            base(&path("base"));
            let mut layers: Vec<PathBuf> = Vec::new();
            for (index, writes) in writes.iter().enumerate() {
                layers.push(path(&format!("layer{index}")));
                create(&File::create_new(&layers[index]).unwrap(), SIZE).unwrap();
                apply(&image(&path("base"), &layers), writes);
            }
            // Some at the top are merged, those below stay.
            let from = from.min(layers.len() - 1);
            let files: Vec<File> = layers[from..].iter().map(|path| File::open(path).unwrap()).collect();
            let merged = File::create_new(path("merged")).unwrap();
            merge(&files.iter().collect::<Vec<_>>(), SIZE, &merged).unwrap();

            let mut fewer = layers[..from].to_vec();
            fewer.push(path("merged"));
            let (before, after) = (image(&path("base"), &layers), image(&path("base"), &fewer));
            let compared = qemu_img(&["compare", &before, &after]);
            prop_assert!(compared.contains("Images are identical."), "{}", compared);
            let checked = qemu_img(&["check", "-f", "qcow2", path("merged").to_str().unwrap()]);
            prop_assert!(checked.contains("No errors were found on the image."), "{}", checked);
            // Our own reader understands it, and a merge of it alone changes nothing.
            let parts = allocated(&File::open(path("merged")).unwrap(), SIZE).unwrap();
            let again = tempfile::tempfile().unwrap();
            merge(&[&File::open(path("merged")).unwrap()], SIZE, &again).unwrap();
            let twice = DiskChanges::new(SIZE, allocated(&again, SIZE).unwrap(), again);
            let once = DiskChanges::new(SIZE, parts, File::open(path("merged")).unwrap());
            let span = |changes: &DiskChanges| changes.extents().to_vec();
            prop_assert_eq!(span(&once), span(&twice));
            // QEMU writes to it as to one of its own.
            apply(&after, &[Write::Data { at: 512, len: 200 << 10, byte: 7 }]);
            let checked = qemu_img(&["check", "-f", "qcow2", path("merged").to_str().unwrap()]);
            prop_assert!(checked.contains("No errors were found on the image."), "{}", checked);
        }

        #[test]
        fn damaged_layers_are_refused_or_make_a_sound_overlay(
            words in proptest::collection::vec((3 * CLUSTER / 8..5 * CLUSTER / 8, any::<u64>(), 0..3u8), 0..60)
        ) {
            const SMALL: u64 = 64 << 20;
            let folder = tempfile::tempdir().unwrap();
            let layer = tempfile::tempfile().unwrap();
            create(&layer, SMALL).unwrap();
            layer.set_len(6 * CLUSTER).unwrap();
            for (at, word, kind) in words {
                let word = match kind {
                    0 => word,
                    1 => word % 8 * CLUSTER,
                    _ => 1 << (word % 64),
                };
                layer.write_all_at(&word.to_be_bytes(), at * 8).unwrap();
                layer.write_all_at(&(4 * CLUSTER).to_be_bytes(), 3 * CLUSTER).unwrap();
            }
            let below = tempfile::tempfile().unwrap();
            create(&below, SMALL).unwrap();
            let path = folder.path().join("merged");
            if merge(&[&below, &layer], SMALL, &File::create_new(&path).unwrap()).is_ok() {
                let checked = qemu_img(&["check", "-f", "qcow2", path.to_str().unwrap()]);
                prop_assert!(checked.contains("No errors were found on the image."), "{}", checked);
            }
        }
    }

    #[test]
    fn clusters_beyond_the_first_refcount_block_are_counted() {
        // A subcluster in each of 40,000 clusters: more than the 32,768 that one block counts.
        const LARGE: u64 = 40_000 * CLUSTER;
        let folder = tempfile::tempdir().unwrap();
        let (layer, path) = (tempfile::tempfile().unwrap(), folder.path().join("merged"));
        create(&layer, LARGE).unwrap();
        let mut at = FIXED_CLUSTERS + l1_clusters(LARGE);
        for index in 0..40_000_usize.div_ceil(ENTRIES) {
            let mut table = Vec::new();
            for cluster in 0..ENTRIES as u64 {
                let used = (index * ENTRIES) as u64 + cluster < 40_000;
                // All in one cluster of the file: not how QEMU writes, but readable.
                let (place, bitmap) = if used { ((at + 1) * CLUSTER, 1_u64 << (cluster % 32)) } else { (0, 0) };
                table.extend(place.to_be_bytes());
                table.extend(bitmap.to_be_bytes());
            }
            layer.write_all_at(&table, at * CLUSTER).unwrap();
            layer.write_all_at(&[9; CLUSTER as usize], (at + 1) * CLUSTER).unwrap();
            layer.write_all_at(&(at * CLUSTER).to_be_bytes(), FIXED_CLUSTERS * CLUSTER + index as u64 * 8).unwrap();
            at += 2;
        }
        merge(&[&layer], LARGE, &File::create_new(&path).unwrap()).unwrap();
        let checked = qemu_img(&["check", "-f", "qcow2", path.to_str().unwrap()]);
        assert!(checked.contains("No errors were found on the image."), "{checked}");
        assert!(checked.contains("40000/40000"), "{checked}");
    }
}
