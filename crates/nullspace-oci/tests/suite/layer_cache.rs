//! Layers that an earlier import downloaded are read from the cache, when they are whole and right.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nullspace_oci::digest::Digest;
use nullspace_oci::import::{CachedLayer, ImportOptions, Imported, LayerCache, NewLayer, Progress};
use nullspace_oci::manifest::Compression;
use nullspace_oci::registry::{Credentials, Repository};

use crate::docker_registry::DockerRegistry;
use crate::import::{config, pull, repository};
use crate::support::image::{Image, image};
use crate::support::server::Server;
use crate::support::sink::{MemorySink, content};
use crate::support::tar::{Item, archive};

/// A cache in a folder: one file a digest.
struct Folder {
    dir: tempfile::TempDir,
    /// Files given out that are still held.
    held: Arc<()>,
    /// Writes fail.
    full: bool,
}

impl Folder {
    fn new(full: bool) -> Arc<Folder> {
        Arc::new(Folder { dir: tempfile::tempdir().unwrap(), held: Arc::default(), full })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join(digest.hex())
    }

    fn count(&self) -> usize {
        fs::read_dir(self.dir.path()).unwrap().count()
    }
}

impl LayerCache for Folder {
    fn find(&self, digest: &Digest, _: u64) -> Option<CachedLayer> {
        Some(CachedLayer { file: File::open(self.path(digest)).ok()?, hold: Box::new(self.held.clone()) })
    }

    fn remove(&self, digest: &Digest) {
        fs::remove_file(self.path(digest)).unwrap();
    }

    fn begin(&self, digest: &Digest, _: u64) -> Option<Box<dyn NewLayer>> {
        let file = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        Some(Box::new(New { file, to: self.path(digest), full: self.full }))
    }
}

struct New {
    file: tempfile::NamedTempFile,
    to: PathBuf,
    full: bool,
}

impl NewLayer for New {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.full { Err(io::ErrorKind::StorageFull.into()) } else { self.file.write_all(bytes) }
    }

    fn store(self: Box<Self>) -> io::Result<()> {
        self.file.persist(self.to)?;
        Ok(())
    }
}

/// Pulls, and says of each layer, lowest first, whether it was in the cache.
async fn pulled(repository: &Repository, cache: &Arc<Folder>) -> (Imported<MemorySink>, Vec<bool>, u64) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = events.clone();
    let options = ImportOptions {
        cache: Some(cache.clone()),
        progress: Arc::new(move |event| seen.lock().unwrap().push(event)),
        ..ImportOptions::default()
    };
    let (resolved, imported) = pull(repository, options).await.unwrap();
    assert_eq!(Arc::strong_count(&cache.held), 1, "every file was given back");
    let events = events.lock().unwrap();
    let of = |layer: &Digest| {
        events.iter().find_map(|event| match event {
            Progress::LayerFetched { digest, cached, .. } if digest == layer => Some(*cached),
            _ => None,
        })
    };
    let cached = resolved.layers.iter().map(|layer| of(&layer.digest).expect("a layer without an event")).collect();
    let bytes = events.iter().filter_map(|event| match event {
        Progress::Downloaded { bytes, total } => Some((*bytes).min(*total)),
        _ => None,
    });
    let bytes = bytes.max().unwrap_or(0);
    (imported, cached, bytes)
}

fn layer(name: &str, byte: u8) -> (Vec<u8>, Compression) {
    let noise: Vec<u8> =
        (0..200_000_u32).flat_map(|n| (n ^ u32::from(byte)).wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    (archive(&[Item::file(name, &noise), Item::file("last", name)]), Compression::Gzip)
}

fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_layers_that_are_not_here_are_downloaded_from_docker_registry() {
    let config = config();
    let registry = DockerRegistry::start(false, false);
    let first = image(&[layer("base", 1), layer("lib", 2), layer("app", 3)]);
    let second = image(&[layer("base", 1), layer("lib", 2), layer("app", 4)]);
    let repository = repository(config, &registry.reference(), Credentials::Anonymous);
    let cache = Folder::new(false);

    registry.push(&first, false).await;
    let (_, cached, bytes) = pulled(&repository, &cache).await;
    assert_eq!(cached, [false; 3]);
    assert_eq!(bytes, first.layers.iter().map(|layer| layer.bytes.len() as u64).sum::<u64>());
    // The tag moves to an image that differs by its last layer.
    registry.push(&second, false).await;
    let (imported, cached, bytes) = pulled(&repository, &cache).await;
    assert_eq!((cached, bytes), (vec![true, true, false], second.layers[2].bytes.len() as u64));
    assert_eq!(content(&imported.tree, "last"), Some(&b"app"[..]));
    assert_eq!(content(&imported.tree, "base").unwrap().len(), 800_000);
    // And back.
    registry.push(&first, false).await;
    let (imported, cached, bytes) = pulled(&repository, &cache).await;
    assert_eq!((cached, bytes), (vec![true; 3], 0));
    assert_eq!(content(&imported.tree, "app").unwrap(), noise_of(&first, 2));
    assert_eq!(cache.count(), 4);

    // A disk that damages a file, and one that loses the end of another.
    let (lowest, middle) = (cache.path(&first.layers[0].digest), cache.path(&first.layers[1].digest));
    damage(&lowest);
    File::options().write(true).open(&middle).unwrap().set_len(1000).unwrap();
    let (imported, cached, _) = pulled(&repository, &cache).await;
    assert_eq!(cached, [false, false, true]);
    assert_eq!(content(&imported.tree, "base").unwrap(), noise_of(&first, 0));
    let (_, cached, bytes) = pulled(&repository, &cache).await;
    assert_eq!((cached, bytes), (vec![true; 3], 0), "mended");
}

/// The first file of an image's layer.
fn noise_of(image: &Image, layer: usize) -> Vec<u8> {
    let mut tar = Vec::new();
    io::copy(&mut flate2::read::GzDecoder::new(&image.layers[layer].bytes[..]), &mut tar).unwrap();
    tar[512..512 + 800_000].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_here_is_not_asked_for_and_a_wrong_one_is_not_kept() {
    let made = image(&[layer("base", 1), layer("app", 2)]);
    let served = made.clone();
    // The upper layer's content is not what its digest says, until the registry is mended.
    let mended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (wrong, flag) = (made.layers[1].digest.to_string(), mended.clone());
    let server = Server::of_image(served.clone(), move |request| {
        let bad = request.target.ends_with(&wrong) && !flag.load(std::sync::atomic::Ordering::SeqCst);
        bad.then(|| crate::support::server::Answer::new(200, vec![0; served.layers[1].bytes.len()]))
    });
    let repository = repository(config(), &format!("{}/app:1", server.host()), Credentials::Anonymous);
    let cache = Folder::new(false);
    let options = ImportOptions { cache: Some(cache.clone()), ..ImportOptions::default() };
    assert!(pull(&repository, options).await.is_err());
    assert!(!cache.path(&made.layers[1].digest).exists());
    assert!(cache.count() <= 1, "nothing half-written is left");

    mended.store(true, std::sync::atomic::Ordering::SeqCst);
    pulled(&repository, &cache).await;
    let before = server.targets().iter().filter(|target| target.contains("/blobs/")).count();
    let (_, cached, _) = pulled(&repository, &cache).await;
    assert_eq!(cached, [true, true]);
    let asked: Vec<String> =
        server.targets().into_iter().filter(|target| target.contains("/blobs/")).skip(before).collect();
    let config = format!("/{}", made.config.digest);
    assert!(asked.len() == 1 && asked[0].ends_with(&config), "the config only: {asked:?}");
    let manifests = server.targets().iter().filter(|target| target.contains("/manifests/")).count();
    assert_eq!(manifests, 3, "the manifest is asked for each time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_cannot_be_written_costs_no_import() {
    let made = image(&[layer("base", 1), layer("app", 2)]);
    let server = Server::of_image(made, |_| None);
    let repository = repository(config(), &format!("{}/app:1", server.host()), Credentials::Anonymous);
    let cache = Folder::new(true);
    for _ in 0..2 {
        let (_, cached, _) = pulled(&repository, &cache).await;
        assert_eq!((cached, cache.count()), (vec![false, false], 0));
    }
}

/// A hard link to content that an upper layer hid makes the import read its layer a second time.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_reading_comes_from_the_cache() {
    let tar = |items: &[Item]| (archive(items), Compression::Gzip);
    let made = image(&[
        tar(&[Item::file("hidden", "content"), Item::hard_link("kept", "hidden")]),
        tar(&[Item::file(".wh.hidden", "")]),
    ]);
    let lowest = made.layers[0].digest.to_string();
    let server = Server::of_image(made, |_| None);
    let repository = repository(config(), &format!("{}/app:1", server.host()), Credentials::Anonymous);
    let cache = Folder::new(false);
    let asked = || server.targets().iter().filter(|target| target.ends_with(&lowest)).count();
    pulled(&repository, &cache).await;
    let before = asked();
    let (imported, cached, bytes) = pulled(&repository, &cache).await;
    assert_eq!((cached, bytes, asked()), (vec![true, true], 0, before));
    assert_eq!(content(&imported.tree, "kept"), Some(&b"content"[..]));
}
