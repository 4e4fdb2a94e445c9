//! Root images: durable as chunks, there as raw files when wanted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use nullspace_data::{ArtifactStore, Changes, DataError, Extent, OpenSettings, PublishedRootfs};
use nullspace_types::{KnownFiles, Rootfs};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use serde_json::json;
use tempfile::TempDir;

const KEY: &str = "00112233445566778899aabbccddeeff";
const MIB: usize = 1 << 20;

/// Random bytes, different for each `seed`.
fn image(seed: u64, mib: usize) -> Vec<u8> {
    let mut bytes = vec![0; mib * MIB];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

async fn publish(store: &ArtifactStore, bytes: &[u8]) -> (PublishedRootfs, Rootfs) {
    let scratch = store.scratch().unwrap();
    let file = scratch.path().join("image");
    fs::write(&file, bytes).unwrap();
    let published = store.publish_rootfs(&file, KEY).await.unwrap();
    let row = published.row(KEY, json!(null));
    (published, row)
}

/// The second megabyte is other bytes now.
struct Second(Vec<u8>, u64);

impl Changes for Second {
    fn image_bytes(&self) -> u64 {
        self.1
    }

    fn extents(&self) -> Vec<Extent> {
        vec![Extent { at: MIB as u64, len: MIB as u64, zero: false }]
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.copy_from_slice(&self.0[at as usize - MIB..][..buffer.len()]);
        Ok(())
    }
}

fn known(rows: &[&Rootfs]) -> KnownFiles {
    let rootfs = rows.iter().map(|row| (row.file.clone(), row.manifest.clone())).collect();
    KnownFiles { rootfs, ..KnownFiles::default() }
}

/// A limit of the raw files, bytes.
fn cache(bytes: u64) -> OpenSettings {
    OpenSettings { cache_bytes: bytes, ..OpenSettings::default() }
}

fn raw_files(root: &Path) -> usize {
    fs::read_dir(root.join("rootfs")).unwrap().count()
}

#[tokio::test]
async fn a_root_image_is_written_back_when_its_raw_file_has_made_room() {
    let dir = TempDir::new().unwrap();
    // Room for one.
    let store = ArtifactStore::open_with(dir.path(), cache(5 * MIB as u64)).unwrap();
    let (one, two) = (image(1, 3), image(2, 3));
    let (_keep, first) = publish(&store, &one).await;
    assert_eq!(raw_files(dir.path()), 1);
    let pinned = store.open_rootfs(&first).await.unwrap();
    let (_keep, second) = publish(&store, &two).await;
    // The first is in use, so it is the second that goes, although it is newer.
    assert_eq!(fs::read(pinned.path()).unwrap(), one);
    assert!(!store.rootfs_path(&second.file).unwrap().exists());
    assert_eq!(store.cache_usage().evicted, 1);

    // Both in use: more than the limit, and neither goes.
    let other = store.open_rootfs(&second).await.unwrap();
    assert_eq!((fs::read(other.path()).unwrap(), raw_files(dir.path())), (two.clone(), 2));
    drop(pinned);
    store.trim_rootfs().await.unwrap();
    assert_eq!(raw_files(dir.path()), 1);
    assert!(other.path().exists());
    drop(other);
    // And so on, in turn.
    for (row, bytes) in [(&first, &one), (&second, &two), (&first, &one)] {
        assert_eq!(&fs::read(store.open_rootfs(row).await.unwrap().path()).unwrap(), bytes);
    }
    assert!(store.cache_usage().written_back >= 4);
    assert_eq!(fs::read_dir(dir.path().join("work")).unwrap().count(), 0);
}

#[tokio::test]
async fn many_that_open_the_same_root_image_at_once_make_one_file() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open_with(dir.path(), cache(0)).unwrap();
    let bytes = image(3, 4);
    let (_keep, row) = publish(&store, &bytes).await;
    assert_eq!(raw_files(dir.path()), 0);
    let opens = (0..8).map(|_| {
        let (store, row) = (store.clone(), row.clone());
        tokio::spawn(async move { store.open_rootfs(&row).await.unwrap() })
    });
    let opens: Vec<_> = opens.collect();
    let mut pins = Vec::new();
    for open in opens {
        pins.push(open.await.unwrap());
    }
    assert_eq!(store.cache_usage().written_back, 1);
    assert_eq!(fs::read(pins[3].path()).unwrap(), bytes);
    pins.truncate(1);
    store.trim_rootfs().await.unwrap();
    assert_eq!(raw_files(dir.path()), 1, "one pin is left");
    drop(pins);
    store.trim_rootfs().await.unwrap();
    assert_eq!(raw_files(dir.path()), 0);
}

#[tokio::test]
async fn a_layer_costs_what_it_changed_and_outlives_its_parent() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let base = image(4, 8);
    let (keep, parent) = publish(&store, &base).await;
    let changed = image(5, 1);
    let grown = 9 * MIB as u64;
    let layer = store.publish_layer(&parent, KEY, Arc::new(Second(changed.clone(), grown))).await.unwrap();
    assert!((MIB as u64..MIB as u64 * 102 / 100).contains(&layer.stored_bytes), "{}", layer.stored_bytes);
    let row = layer.row(KEY, json!(null));
    assert_eq!((row.bytes, raw_files(dir.path())), (grown, 1), "nobody asked for its file yet");

    let mut expected = base.clone();
    expected[MIB..2 * MIB].copy_from_slice(&changed);
    expected.resize(grown as usize, 0);
    assert_eq!(fs::read(store.open_rootfs(&row).await.unwrap().path()).unwrap(), expected);

    // The parent goes; of its chunks only those that the layer hides are not needed any more.
    store.remove_rootfs(&parent.file).await.unwrap();
    drop((keep, layer));
    let only_layer = known(&[&row]);
    store.collect_images(async { Ok::<_, DataError>(only_layer.clone()) }).await.unwrap();
    assert_eq!(store.verify_images(&only_layer).await.unwrap().faults, []);
    store.remove_rootfs(&row.file).await.unwrap();
    assert_eq!(fs::read(store.open_rootfs(&row).await.unwrap().path()).unwrap(), expected);
    // Nothing wanted: nothing left.
    store.collect_images(async { Ok::<_, DataError>(KnownFiles::default()) }).await.unwrap();
    assert_eq!(store.image_stats(), Default::default());
    store.remove_rootfs(&row.file).await.unwrap();
    assert!(matches!(store.open_rootfs(&row).await, Err(DataError::Damaged { .. })));
}

#[tokio::test]
async fn what_is_published_while_a_collection_asks_what_is_known_stays() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let bytes = image(6, 2);
    let mut row = None;
    let asked = async {
        // Its row comes to be after the question, and its maker is done before the answer.
        let (published, published_row) = publish(&store, &bytes).await;
        drop(published);
        row = Some(published_row);
        Ok::<_, DataError>(KnownFiles::default())
    };
    let collected = store.collect_images(asked).await.unwrap();
    assert_eq!(collected.manifests, 0);
    let row = row.unwrap();
    store.remove_rootfs(&row.file).await.unwrap();
    assert_eq!(fs::read(store.open_rootfs(&row).await.unwrap().path()).unwrap(), bytes);
}

#[tokio::test]
async fn raw_files_are_believed_after_a_restart_and_not_after_the_host_went_down() {
    let dir = TempDir::new().unwrap();
    let bytes = image(7, 2);
    let store = ArtifactStore::open(dir.path()).unwrap();
    store.sweep(KnownFiles::default()).await.unwrap();
    let (_, row) = publish(&store, &bytes).await;
    let all = known(&[&row]);
    drop(store);

    let store = ArtifactStore::open(dir.path()).unwrap();
    let report = store.sweep(all.clone()).await.unwrap();
    assert_eq!((report.removed.len(), report.missing), (0, KnownFiles::default()));
    drop(store.open_rootfs(&row).await.unwrap());
    assert_eq!(store.cache_usage().written_back, 0);
    drop(store);

    // The kernel is another one, and the file has lost what was not flushed.
    fs::write(dir.path().join("boot_id"), "00000000-0000-0000-0000-000000000000\n").unwrap();
    let raw = dir.path().join("rootfs").join(&row.file);
    fs::File::options().write(true).open(&raw).unwrap().write_all_at(&[0; 4096], 4096).unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    assert_eq!(store.sweep(all.clone()).await.unwrap().missing, KnownFiles::default());
    assert_eq!(fs::read(store.open_rootfs(&row).await.unwrap().path()).unwrap(), bytes);
    assert_eq!(store.cache_usage().written_back, 1);
}

#[tokio::test]
async fn a_root_image_of_an_older_version_is_used_kept_and_taken_over() {
    let dir = TempDir::new().unwrap();
    let bytes = image(8, 2);
    let store = ArtifactStore::open_with(dir.path(), cache(0)).unwrap();
    // As that version left it: a file, and a row without a manifest.
    let file = format!("{KEY}.{KEY}.ext4");
    fs::write(dir.path().join("rootfs").join(&file), &bytes).unwrap();
    let old =
        Rootfs { key: KEY.into(), file: file.clone(), bytes: bytes.len() as u64, manifest: None, info: json!(null) };
    assert_eq!(store.sweep(known(&[&old])).await.unwrap(), Default::default());
    drop(store.open_rootfs(&old).await.unwrap());
    store.trim_rootfs().await.unwrap();
    assert_eq!(raw_files(dir.path()), 1, "it is all there is");
    // A layer can be made on it.
    let changes = Arc::new(Second(image(9, 1), bytes.len() as u64));
    let layer = store.publish_layer(&old, KEY, changes).await.unwrap();
    let raw = store.open_rootfs(&layer.row(KEY, json!(null))).await.unwrap();
    assert_eq!(fs::read(raw.path()).unwrap(), [&bytes[..MIB], &image(9, 1)].concat());

    let adopted = store.adopt_rootfs(&file).await.unwrap();
    assert_eq!(adopted.file, file);
    store.trim_rootfs().await.unwrap();
    assert!(!store.rootfs_path(&file).unwrap().exists(), "it can be made again");
    let row = Rootfs { manifest: Some(adopted.manifest.clone()), ..old };
    assert_eq!(fs::read(store.open_rootfs(&row).await.unwrap().path()).unwrap(), bytes);
}

#[tokio::test]
async fn damage_is_said_in_words_that_help() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open_with(dir.path(), cache(0)).unwrap();
    let (_keep, row) = publish(&store, &image(10, 1)).await;
    let packs = dir.path().join("chunks/packs");
    let pack = fs::read_dir(&packs).unwrap().next().unwrap().unwrap().path();
    fs::File::options().write(true).open(&pack).unwrap().write_all_at(&[0; 4096], 4096).unwrap();
    let Err(error) = store.open_rootfs(&row).await else { panic!("it was read") };
    assert!(matches!(error, DataError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("make the image again"), "{error}");
    assert_eq!(store.verify_images(&known(&[&row])).await.unwrap().faults.len(), 1);
    assert_eq!(fs::read_dir(dir.path().join("work")).unwrap().count(), 0, "nothing is left of the try");
    // Which mends it.
    let (_keep, row) = publish(&store, &image(10, 1)).await;
    assert_eq!(fs::read(store.open_rootfs(&row).await.unwrap().path()).unwrap(), image(10, 1));
}
