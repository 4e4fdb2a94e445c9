//! Images pulled from loopback registries that work, more or less.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nullspace_oci::import::{ImportError, ImportOptions, Imported, Progress, import};
use nullspace_oci::manifest::Compression;
use nullspace_oci::platform::Platform;
use nullspace_oci::registry::{Credentials, Registry, RegistryConfig, Repository, ResolvedImage};

use crate::support::image::{Image, image};
use crate::support::server::Server;
use crate::support::sink::{MemorySink, content, render};
use crate::support::tar::{Item, archive};

/// Quick to give up and quick to try again.
pub(crate) fn config() -> RegistryConfig {
    let _ = rustls::crypto::ring::default_provider().install_default();
    RegistryConfig {
        backoff: Duration::from_millis(5),
        max_backoff: Duration::from_secs(2),
        private_registries: vec!["127.0.0.1".parse().unwrap()],
        ..RegistryConfig::default()
    }
}

pub(crate) fn repository(config: RegistryConfig, reference: &str, credentials: Credentials) -> Repository {
    Registry::new(config).unwrap().repository(&reference.parse().unwrap(), credentials).unwrap()
}

pub(crate) async fn pull(
    repository: &Repository,
    options: ImportOptions,
) -> Result<(ResolvedImage, Imported<MemorySink>), ImportError> {
    let resolved = repository.resolve(Platform::LinuxAmd64).await?;
    let imported = import(repository, &resolved, MemorySink::default(), options).await?;
    Ok((resolved, imported))
}

pub(crate) fn three_layers() -> Image {
    let big: Vec<u8> = (0..3_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    image(&[
        (archive(&[Item::dir("etc"), Item::file("etc/hidden", "old"), Item::file("big", &big)]), Compression::Gzip),
        (
            archive(&[Item::file("etc/.wh.hidden", ""), Item::file("etc/passwd", "root:x:0:0::/:/bin/sh\n")]),
            Compression::Zstd,
        ),
        (archive(&[Item::symlink("bin", "usr/bin"), Item::hard_link("etc/copy", "etc/passwd")]), Compression::None),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_all_compressions_is_pulled_and_merged() {
    let image = three_layers();
    let server = Server::of_image(image.clone(), |_| None);
    let spool = tempfile::tempdir().unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = events.clone();
    let options = ImportOptions {
        spool_directory: Some(spool.path().to_owned()),
        progress: Arc::new(move |event| seen.lock().unwrap().push(event)),
        ..ImportOptions::default()
    };
    let repository = repository(config(), &format!("{}/app:1", server.host()), Credentials::Anonymous);
    let (resolved, imported) = pull(&repository, options).await.unwrap();
    assert_eq!(resolved.digest, image.manifest.digest);
    assert_eq!(resolved.manifest_digest, image.manifest.digest);
    assert_eq!(resolved.config_digest, image.config.digest);
    assert_eq!(resolved.config.config.env, ["A=b"]);
    let text = render(&imported.tree);
    let text: Vec<&str> = text.lines().filter(|line| !line.starts_with("file big")).collect();
    assert_eq!(
        text,
        [
            "dir .",
            "symlink bin to=usr/bin",
            "dir etc",
            "file etc/copy data=root:x:0:0::/:/bin/sh\\n",
            "link etc/passwd to=etc/copy"
        ]
    );
    assert_eq!(content(&imported.tree, "big").unwrap().len(), 12_000_000);
    assert_eq!(imported.sink.stored, 12_000_022, "hidden content must not reach the sink");
    let events = events.lock().unwrap();
    let total = resolved.layers_size();
    assert_eq!(events[0], Progress::Started { layers: 3, bytes: total });
    assert!(events.contains(&Progress::Downloaded { bytes: total, total }));
    assert!(matches!(events.last(), Some(Progress::LayerDone { done: 3, layers: 3, .. })));
    assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_layers_are_merged_in_order_with_and_without_a_spool() {
    let layers: Vec<(Vec<u8>, Compression)> = (0..120_u8)
        .map(|n| {
            let compression = if n % 2 == 0 { Compression::None } else { Compression::Zstd };
            (archive(&[Item::file("last", [n]), Item::file(format!("file{n:03}"), vec![n; 300_000])]), compression)
        })
        .collect();
    let server = Server::of_image(image(&layers), |_| None);
    let repository = repository(config(), &format!("{}/app:1", server.host()), Credentials::Anonymous);
    let folder = tempfile::tempdir().unwrap();
    for spool_directory in [None, Some(folder.path().to_owned())] {
        let options = ImportOptions { spool_directory, spool_limit: 5 << 20, ..ImportOptions::default() };
        let (_, imported) = pull(&repository, options).await.unwrap();
        assert_eq!(imported.tree.entries().len(), 122);
        assert_eq!(content(&imported.tree, "last"), Some(&[119][..]));
        assert!((0..120_u8).all(|n| content(&imported.tree, &format!("file{n:03}")) == Some(&vec![n; 300_000][..])));
    }
}
