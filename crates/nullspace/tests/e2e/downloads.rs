//! Layers of images that are here already, and are not downloaded again.

use std::fs;

use serde_json::{Value, json};

use crate::fixture::{Compression, Image, Registry, Service, Tar, image};

fn request(reference: &str) -> Value {
    // Bypasses the caches of root images and artifacts, so that each build imports its image.
    json!({"base_image": reference, "build_config": {"memory_mib": 128, "disk_mb": 512}, "skip_cache": true})
}

fn app(mark: &str) -> Image {
    Image::busybox().with_layer(Tar::new().file("app", 0o644, mark.repeat(40_000).as_bytes()), Compression::Gzip)
}

fn here(layer: &image::Layer) -> String {
    format!("Image layer {}: already here", image::digest(&layer.bytes))
}

fn downloaded(layer: &image::Layer) -> String {
    format!("Image layer {}: downloaded {} bytes", image::digest(&layer.bytes), layer.bytes.len())
}

#[tokio::test]
async fn a_moved_tag_downloads_what_is_not_here_and_nothing_when_it_moves_back() {
    let registry = Registry::start();
    let (first, second) = (app("one"), app("two"));
    let (base, top, other) = (&first.layers[0], &first.layers[1], &second.layers[1]);
    let mut service = Service::start().await;
    let reference = registry.reference("app:1");

    registry.push("app", "1", &first).await;
    let built = service.api().ready(request(&reference)).await;
    assert!(built.says(&downloaded(base)) && built.says(&downloaded(top)), "{built:?}");
    registry.push("app", "1", &second).await;
    let built = service.api().ready(request(&reference)).await;
    assert!(built.says(&here(base)) && built.says(&downloaded(other)), "{built:?}");

    // The tag moves back, to a registry that has lost the layers, and to a service that has been restarted.
    registry.push("app", "1", &first).await;
    for layer in [base, top] {
        registry.lose(&image::digest(&layer.bytes));
    }
    service.stop().await;
    service.restart().await;
    let api = service.api();
    let built = api.ready(request(&reference)).await;
    assert!(built.says(&here(base)) && built.says(&here(top)), "{built:?}");
    assert!(!built.says("downloaded"), "{built:?}");
    let page = api.get("/metrics").await.text();
    let value = |name: &str| {
        let value = page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {page}"));
        value.trim().parse::<u64>().unwrap()
    };
    assert_eq!((value("nullspace_image_layer_cache_files "), value("nullspace_image_layer_cache_hits ")), (3, 2));

    // Files that a disk has damaged are noticed: what they had is downloaded again, or missed.
    registry.push("app", "1", &second).await;
    for entry in fs::read_dir(service.data().join("layers")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(&path, bytes).unwrap();
    }
    let built = api.ready(request(&reference)).await;
    assert!(built.says(&downloaded(base)) && built.says(&downloaded(other)), "{built:?}");
    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.sh("head -c 3 /app").await, "two");
    sandbox.delete().await;
    service.stop().await;
}
