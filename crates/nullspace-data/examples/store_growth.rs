//! What templates of one base cost: `store_growth IMAGE FOLDER COUNT`, as root.
//!
//! `IMAGE` is a raw ext4 root image. It is stored, and then so many times: the kernel mounts a copy, adds a file of one
//! megabyte of random bytes, unmounts it, and what differs is stored as a layer. Then every layer is written back from its
//! chunks, its raw file having been removed, and half of the layers are collected. `FOLDER` must not exist. The last
//! lines are `bench: …`. `make bench-store` runs this beside the same through real machines.

#[path = "../../nullspace-chunks/examples/compared/mod.rs"]
mod compared;

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use compared::Compared;
use nullspace_data::{ArtifactStore, Changes, DataError, Extent, OpenSettings};
use nullspace_types::{KnownFiles, Rootfs};
use serde_json::json;

const MIB: f64 = 1_048_576.0;

fn run(program: &str, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let status = Command::new(program).args(arguments).status()?;
    if status.success() { Ok(()) } else { Err(format!("{program}: {status}").into()) }
}

/// A copy with a megabyte more in it.
fn add_megabyte(image: &Path, copy: &Path, mount: &Path) -> Result<(), Box<dyn Error>> {
    let (from, to, at) = (image.to_string_lossy(), copy.to_string_lossy(), mount.to_string_lossy());
    run("cp", &["--sparse=always", &from, &to])?;
    run("mount", &["-o", "loop", &to, &at])?;
    let written = run("dd", &["if=/dev/urandom", &format!("of={at}/added"), "bs=1M", "count=1", "status=none"]);
    run("umount", &[&at])?;
    written
}

fn disk_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += disk_bytes(&path)?;
        }
    }
    Ok(bytes)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, folder, count] = &arguments[..] else { return Err("usage: store_growth IMAGE FOLDER COUNT".into()) };
    let (image, folder, count) = (Path::new(image), Path::new(folder), count.parse::<usize>()?);
    fs::create_dir(folder)?;
    let folder = fs::canonicalize(folder)?;
    let (data, copy, mount) = (folder.join("data"), folder.join("copy.ext4"), folder.join("mount"));
    fs::create_dir(&mount)?;
    let store = ArtifactStore::open_with(&data, OpenSettings { cache_bytes: 0, objects: None })?;
    let chunks = data.join("chunks");
    let key = "0".repeat(32);

    let base = File::open(image)?;
    let scratch = store.scratch()?;
    let own = scratch.path().join("base.ext4");
    run("cp", &["--sparse=always", &image.to_string_lossy(), &own.to_string_lossy()])?;
    let began = Instant::now();
    let parent = store.publish_rootfs(&own, &key).await?.row(&key, json!(null));
    let (first, took) = (disk_bytes(&chunks)?, began.elapsed());
    println!("base: {:.1} MiB of chunks in {} ms", first as f64 / MIB, took.as_millis());

    let (mut layers, mut times, mut blocks): (Vec<Rootfs>, Vec<f64>, Vec<f64>) = Default::default();
    for _ in 0..count {
        add_megabyte(image, &copy, &mount)?;
        let changed = Compared::new(&base, File::open(&copy)?)?;
        blocks.push(changed.extents().iter().map(|extent| extent.len as f64 / compared::BLOCK as f64).sum());
        let began = Instant::now();
        let layer = store.publish_layer(&parent, &key, Arc::new(changed)).await?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        layers.push(layer.row(&key, json!(null)));
        fs::remove_file(&copy)?;
    }
    let grown = (disk_bytes(&chunks)? - first) as f64 / MIB / count as f64;
    println!("{count} layers of {:.0} changed blocks, each stored in {:.0} ms", median(blocks), median(times));

    let mut rates = Vec::new();
    for layer in &layers {
        let began = Instant::now();
        let pin = store.open_rootfs(layer).await?;
        let took = began.elapsed().as_secs_f64();
        rates.push(fs::symlink_metadata(pin.path())?.blocks() as f64 * 512.0 / MIB / took);
        drop(pin);
        store.trim_rootfs().await?;
    }
    let known = |layers: &[Rootfs]| {
        let rootfs = layers.iter().map(|layer| (layer.file.clone(), layer.manifest.clone())).collect();
        KnownFiles { rootfs, ..KnownFiles::default() }
    };
    let half = known(&layers[..count / 2]);
    let began = Instant::now();
    let collected = store.collect_images(async { Ok::<_, DataError>(half.clone()) }).await?;
    let gc_ms = began.elapsed().as_millis();
    println!("collected {} layers: {:.1} MiB", collected.manifests, collected.freed_bytes as f64 / MIB);
    let began = Instant::now();
    let verified = store.verify_images(&half).await?;
    println!("verified {} MiB in {} ms", verified.bytes >> 20, began.elapsed().as_millis());
    if !verified.faults.is_empty() {
        return Err(format!("{:?}", verified.faults).into());
    }
    drop((scratch, store));
    fs::remove_dir_all(&folder)?;
    println!("bench: store_growth_mib_per_template {grown:.3} MiB");
    println!("bench: materialise_mib_per_s {:.0} MiB/s", median(rates));
    println!("bench: gc_ms {gc_ms} ms");
    Ok(())
}
