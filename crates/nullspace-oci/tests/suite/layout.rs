//! Images in layouts on disk.

use std::fs;
use std::path::Path;

use nullspace_oci::import::{ImportError, ImportOptions, import_local, import_tar};
use nullspace_oci::layout::{Layout, LayoutError};
use nullspace_oci::manifest::Compression;
use nullspace_oci::merge::LayerError;
use nullspace_oci::platform::Platform;
use nullspace_oci::stream::StreamError;
use nullspace_oci::tar::TarError;
use serde_json::{Value, json};

use crate::import::three_layers;
use crate::support::image::{Image, compress, image, image_for};
use crate::support::sink::{MemorySink, render};
use crate::support::tar::{Item, archive};

const AMD64: Platform = Platform::LinuxAmd64;

fn name_of(blob: &crate::support::image::Blob) -> String {
    format!("blobs/sha256/{}", blob.digest.hex())
}

/// The files of a layout with these images, each with a name and a platform or none.
pub(crate) fn files(images: &[(&Image, Option<&str>, Option<Value>)]) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut entries = Vec::new();
    for (image, name, platform) in images {
        let mut entry = image.manifest.descriptor();
        if let Some(name) = name {
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        if let Some(platform) = platform {
            entry["platform"] = platform.clone();
        }
        entries.push(entry);
        for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
            files.push((name_of(blob), blob.bytes.clone()));
        }
    }
    files.push(("index.json".to_owned(), json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes()));
    files
}

pub(crate) fn folder(files: &[(String, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

fn imported(path: &Path, name: Option<&str>) -> String {
    let image = Layout::open(path).unwrap().resolve(AMD64, name).unwrap();
    render(&import_local(&image, MemorySink::default(), &ImportOptions::default()).unwrap().tree)
}

#[test]
fn layout_is_imported_from_a_folder_and_from_a_tar() {
    let image = three_layers();
    let files = files(&[(&image, None, None)]);
    let folder = folder(&files);
    let from_folder = imported(folder.path(), None);
    assert!(from_folder.contains("link etc/passwd to=etc/copy"));
    let items: Vec<Item> = files.iter().map(|(name, bytes)| Item::file(format!("./{name}"), bytes)).collect();
    let tar = folder.path().join("image.tar");
    fs::write(&tar, archive(&items)).unwrap();
    assert_eq!(imported(&tar, None), from_folder);
}

#[test]
fn image_is_chosen_by_name_or_platform() {
    let layer = |data: &str| [(archive(&[Item::file("which", data)]), Compression::Gzip)];
    let (one, two, arm) = (image(&layer("one")), image(&layer("two")), image_for(&layer("arm"), "linux", "arm64"));
    let platform = |architecture: &str| Some(json!({"os": "linux", "architecture": architecture}));
    let named = folder(&files(&[(&one, Some("one"), None), (&two, Some("two"), None)]));
    assert!(imported(named.path(), Some("two")).contains("data=two"));
    let layout = Layout::open(named.path()).unwrap();
    assert!(matches!(layout.resolve(AMD64, Some("three")), Err(LayoutError::NoSuchName(_))));
    assert!(matches!(layout.resolve(AMD64, None), Err(LayoutError::UnsupportedPlatform(_))));
    let platforms = folder(&files(&[(&arm, None, platform("arm64")), (&one, None, platform("amd64"))]));
    assert!(imported(platforms.path(), None).contains("data=one"));
    let only_arm = folder(&files(&[(&arm, None, None)]));
    let error = Layout::open(only_arm.path()).unwrap().resolve(AMD64, None).unwrap_err();
    let LayoutError::UnsupportedPlatform(error) = error else { panic!("{error:?}") };
    assert_eq!(error.available, ["linux/arm64"]);
}

/// What `docker save` of Docker 20.10 writes: every layer but a repeated one, which is a symlink.
fn saved(image: &Image, change: &dyn Fn(&mut Vec<Item>)) -> (tempfile::TempDir, std::path::PathBuf) {
    let config = format!("{}.json", image.config.digest.hex());
    let mut items = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for (index, layer) in image.layers.iter().enumerate() {
        let name = format!("{index}/layer.tar");
        let first = image.layers.iter().position(|other| other.digest == layer.digest).unwrap();
        items.push(match first == index {
            true => Item::file(&name, &layer.bytes),
            false => Item::symlink(&name, format!("../{first}/layer.tar")),
        });
        names.push(name);
    }
    items.push(Item::file(&config, &image.config.bytes));
    let manifest = json!([{"Config": config, "RepoTags": ["box:1"], "Layers": names}]);
    items.push(Item::file("manifest.json", manifest.to_string()));
    change(&mut items);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.tar");
    fs::write(&path, archive(&items)).unwrap();
    (folder, path)
}

#[test]
fn what_older_docker_saves_write_is_imported_and_checked() {
    let layer = |data: &str| (archive(&[Item::file(data, data)]), Compression::None);
    let image = image(&[layer("one"), layer("two"), layer("one")]);
    let (_folder, path) = saved(&image, &|_| {});
    let tree = imported(&path, None);
    assert!(tree.contains("file one data=one") && tree.contains("file two data=two"), "{tree}");
    assert_eq!(imported(&path, Some("box:1")), tree);
    let layout = Layout::open(&path).unwrap();
    assert!(matches!(layout.resolve(AMD64, Some("box:2")), Err(LayoutError::NoSuchName(_))));
    assert_eq!(layout.resolve(AMD64, None).unwrap().config_digest, image.config.digest);

    let refused = |change: &dyn Fn(&mut Vec<Item>)| {
        let (_folder, path) = saved(&image, change);
        Layout::open(&path).unwrap().resolve(AMD64, None).unwrap_err()
    };
    assert!(matches!(refused(&|items| drop(items.remove(1))), LayoutError::Missing(_)));
    let other = |items: &mut Vec<Item>| items[3] = Item::file(format!("{}.json", image.config.digest.hex()), "{}");
    assert!(matches!(refused(&other), LayoutError::DigestMismatch { .. }));
    for manifest in ["[]", "{}", r#"[{"Config": "x", "Layers": []}]"#] {
        let change = |items: &mut Vec<Item>| items[4] = Item::file("manifest.json", manifest);
        let error = refused(&change);
        assert!(
            matches!(error, LayoutError::NotALayout(_) | LayoutError::Format { .. } | LayoutError::Io { .. }),
            "{error:?}"
        );
    }
    let changed = |items: &mut Vec<Item>| items[0] = Item::file("0/layer.tar", &image.layers[1].bytes);
    let (_folder, path) = saved(&image, &changed);
    let image = Layout::open(&path).unwrap().resolve(AMD64, None).unwrap();
    assert!(import_local(&image, MemorySink::default(), &ImportOptions::default()).is_err());
}

#[test]
fn broken_layouts_are_refused() {
    let image = three_layers();
    let empty = tempfile::tempdir().unwrap();
    let resolve = |path: &Path| Layout::open(path).unwrap().resolve(AMD64, None).unwrap_err();
    assert!(matches!(resolve(empty.path()), LayoutError::NotALayout(_)));
    let with = |change: &dyn Fn(&Path)| {
        let folder = folder(&files(&[(&image, None, None)]));
        change(folder.path());
        folder
    };
    let config = name_of(&image.config);
    let missing = with(&|path| fs::remove_file(path.join(&config)).unwrap());
    assert!(matches!(resolve(missing.path()), LayoutError::Missing(_)));
    let spaces = " ".repeat(image.config.bytes.len());
    let changed = with(&|path| fs::write(path.join(&config), &spaces).unwrap());
    assert!(matches!(resolve(changed.path()), LayoutError::DigestMismatch { .. }));
    let longer = with(&|path| fs::write(path.join(name_of(&image.layers[1])), "x").unwrap());
    assert!(matches!(resolve(longer.path()), LayoutError::SizeMismatch { .. }));
    let linked = with(&|path| {
        fs::remove_file(path.join(&config)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path.join(&config)).unwrap();
    });
    assert!(matches!(resolve(linked.path()), LayoutError::Io { .. }));
}

#[test]
fn layer_that_is_not_its_digest_is_refused_at_its_end() {
    let tar = archive(&[Item::file("a", "hello")]);
    let image = image(&[(tar.clone(), Compression::None)]);
    let folder = folder(&files(&[(&image, None, None)]));
    let mut other = compress(&tar, Compression::None).bytes;
    *other.last_mut().unwrap() = 1;
    fs::write(folder.path().join(name_of(&image.layers[0])), other).unwrap();
    let image = Layout::open(folder.path()).unwrap().resolve(AMD64, None).unwrap();
    let error = import_local(&image, MemorySink::default(), &ImportOptions::default()).unwrap_err();
    assert!(matches!(error, ImportError::Stream { source: StreamError::BlobMismatch { .. }, .. }), "{error:?}");
}

#[test]
fn plain_tar_is_imported_whatever_its_compression() {
    let tar =
        archive(&[Item::dir("./"), Item::file("./etc/hostname", "base\n"), Item::hard_link("b", "./etc/hostname")]);
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let blob = compress(&tar, compression).bytes;
        let imported = import_tar(&blob[..], MemorySink::default(), &ImportOptions::default()).unwrap();
        assert_eq!(render(&imported.tree), "dir .\nfile b data=base\\n\ndir etc\nlink etc/hostname to=b\n");
        assert_eq!(imported.uncompressed, tar.len() as u64);
    }
    let options = ImportOptions::default();
    options.cancel.cancel();
    let error = import_tar(&tar[..], MemorySink::default(), &options).unwrap_err();
    assert!(matches!(error, LayerError::Tar(TarError::Read(_))), "{error:?}");
}

#[test]
fn limits_are_kept_with_typed_errors() {
    let tar = archive(&[
        Item::file("a/b", vec![0; 100_000]),
        Item { xattrs: vec![("user.x".to_owned(), vec![b'x'; 3000])], ..Item::file("c", "") },
    ]);
    let image = image(&[(tar.clone(), Compression::Gzip)]);
    let folder = folder(&files(&[(&image, None, None)]));
    let image = Layout::open(folder.path()).unwrap().resolve(AMD64, None).unwrap();
    let limited = |change: &dyn Fn(&mut ImportOptions)| {
        let mut options = ImportOptions::default();
        change(&mut options);
        import_local(&image, MemorySink::default(), &options).unwrap_err()
    };
    let limit = |error: ImportError| match error {
        ImportError::Layer { source: LayerError::Limit { what, limit, .. }, .. } => (what, limit),
        other => panic!("{other:?}"),
    };
    let stream = |error: ImportError| match error {
        ImportError::Stream { source, .. } => source,
        other => panic!("{other:?}"),
    };
    assert_eq!(limit(limited(&|options| options.merge.entries = 2)), ("the number of entries", 2));
    let metadata = limited(&|options| options.merge.metadata = 2000);
    assert_eq!(limit(metadata), ("the length of all names and attributes", 2000));
    assert_eq!(limit(limited(&|options| options.merge.path = 2)), ("the length of a path", 2));
    // More than the blob's length, less than the tar's; then less than the blob's.
    for bytes in [50_000, 10] {
        let error = stream(limited(&|options| options.stream.uncompressed = bytes));
        assert!(matches!(error, StreamError::TooLarge { limit } if limit == bytes), "{error:?}");
    }
    let error = stream(limited(&|options| (options.stream.ratio, options.stream.ratio_from) = (10, 0)));
    assert!(matches!(error, StreamError::Ratio { limit: 10 }), "{error:?}");
    assert!(import_local(&image, MemorySink::default(), &ImportOptions::default()).is_ok());
}
