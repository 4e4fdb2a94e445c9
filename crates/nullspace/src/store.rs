//! Root images in the data folder, for the operator.
//!
//! `accept-loss` is how an operator gives up what is missing. `stats` and `verify` change nothing and work beside a running service, which collects nothing meanwhile. `gc` and `accept-loss` need the
//! data folder for themselves: a running service collects on its own.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use jiff::Timestamp;
use nullspace_data::{ArtifactStore, DataError, ManifestId, look_at_chunks};
use nullspace_db::{Blobs, Collection, Health};

use crate::config::Config;
use crate::serve;
use crate::survey::{Survey, survey};

const MIB: f64 = 1_048_576.0;

pub(crate) async fn stats(config: &Config) -> anyhow::Result<ExitCode> {
    let metadata = serve::open_existing_database(config).await?;
    let known = metadata.known_files().await.context("list what is known")?;
    metadata.close().await;
    let store = look_at_chunks(&config.data_dir).context("open the chunk store")?;
    let stats = store.stats();
    let disk = store.disk_bytes().context("measure the chunk store")?;
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / MIB);
    let without = known.rootfs.values().filter(|manifest| manifest.is_none()).count();
    println!("root images       {} ({without} as files only), {} manifests", known.rootfs.len(), stats.manifests);
    println!(
        "chunks            {} of {} plain, {} stored",
        stats.chunks,
        mib(stats.plain_bytes),
        mib(stats.stored_bytes)
    );
    println!("packs             {} of {}, {} unreadable", stats.packs, mib(stats.pack_bytes), stats.unreadable_packs);
    println!("on the disk       {}", mib(disk));
    println!("snapshots         {}", known.artifacts.len());
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn gc(config: &Config) -> anyhow::Result<ExitCode> {
    let metadata = serve::open_existing_database(config).await?;
    let files = match serve::open_files(config) {
        Err(error) if matches!(error.downcast_ref(), Some(DataError::DataDirInUse { .. })) => {
            bail!("a service uses {}: it collects by itself; stop it to collect now", config.data_dir.display())
        }
        opened => opened?,
    };
    let began = Instant::now();
    let found = survey(&files, &metadata).await.context("compare database and folders")?;
    if let Some(refusal) = found.refusal() {
        bail!("{refusal}");
    }
    let swept = files.sweep(metadata.known_files().await.context("list what is known")?).await.context("sweep")?;
    for name in &swept.removed {
        println!("removed {name}, which nothing refers to");
    }
    files.trim_rootfs().await.context("remove raw files that there is no room for")?;
    let known = async {
        let known = metadata.known_files().await;
        known.map_err(|error| DataError::Conflict { what: error.to_string() })
    };
    let collected = files.collect_images(known).await.context("collect chunks")?;
    metadata.close().await;
    println!(
        "removed {} root images, {} chunks, {} packs ({} rewritten): {:.1} MiB in {} ms",
        collected.manifests,
        collected.chunks,
        collected.packs,
        collected.rewritten,
        collected.freed_bytes as f64 / MIB,
        began.elapsed().as_millis(),
    );
    let missing = !swept.missing.artifacts.is_empty() || !swept.missing.rootfs.is_empty();
    if missing || !collected.lost.is_empty() {
        bail!("something that is known is missing: `nullspace store verify` says what");
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives up what will not come back: the only way in which anything is forgotten because it cannot be seen.
pub(crate) async fn accept_loss(config: &Config, yes: bool) -> anyhow::Result<ExitCode> {
    let metadata = serve::open_existing_database(config).await?;
    let files = open_files(config)?;
    let found = survey(&files, &metadata).await.context("compare database and folders")?;
    let Survey { lost, lost_blobs, foreign, .. } = &found;
    for folder in &lost.artifacts {
        println!("lost     the snapshot artifacts/{folder}: its template can no longer be used");
    }
    for file in lost.rootfs.keys() {
        println!("lost     the root image {file}: templates based on it can no longer be used");
    }
    for blob in lost_blobs {
        println!("lost     the uploaded file blobs/{}/{}", blob.tenant, blob.id.sha256());
    }
    for name in foreign {
        println!("foreign  {name}: no build or tenant of this database made it");
    }
    if found.is_clean() {
        println!("nothing is lost");
    } else if yes {
        let now = Timestamp::now();
        metadata.forget_lost(lost, now).await.context("forget what is lost")?;
        for blob in lost_blobs {
            metadata.purge_blob(blob, Timestamp::MAX).await.context("forget a lost file")?;
        }
        files.remove_foreign(foreign).await.context("remove what another database named")?;
        println!("given up");
    } else {
        println!("Nothing was changed. With --yes, lost files are given up and foreign files are removed.");
    }
    metadata.close().await;
    Ok(if found.is_clean() || yes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The data folder's files, which no service may have.
fn open_files(config: &Config) -> anyhow::Result<ArtifactStore> {
    match serve::open_files(config) {
        Err(error) if matches!(error.downcast_ref(), Some(DataError::DataDirInUse { .. })) => {
            bail!("a service uses {}: stop it first", config.data_dir.display())
        }
        opened => opened,
    }
}

pub(crate) async fn verify(config: &Config) -> anyhow::Result<ExitCode> {
    let metadata = serve::open_existing_database(config).await?;
    let began = Instant::now();
    let before = metadata.known_files().await.context("list what is known")?;
    let store = look_at_chunks(&config.data_dir).context("open the chunk store")?;
    let known = metadata.known_files().await.context("list what is known")?;
    let mut faults: BTreeSet<String> = BTreeSet::new();
    let mut wanted = Vec::new();
    for (file, manifest) in &known.rootfs {
        match manifest.as_deref().map(str::parse::<ManifestId>) {
            // What came while we opened the chunks may not be among them for us.
            Some(Ok(id)) if before.rootfs.contains_key(file) => wanted.push(id),
            Some(Err(error)) => drop(faults.insert(format!("root image {file}: its manifest: {error}"))),
            _ => {}
        }
    }
    let raw = known.rootfs.iter().filter(|(_, manifest)| manifest.is_none()).map(|(file, _)| ("rootfs", file));
    let folders = known.artifacts.iter().map(|folder| ("artifacts", folder));
    let missing = raw.chain(folders).filter(|(parent, name)| !config.data_dir.join(parent).join(name).exists());
    let missing: Vec<(&str, &String)> = missing.collect();
    if !missing.is_empty() {
        // A service beside us may have removed them, and said so first.
        let still = metadata.known_files().await.context("list what is known")?;
        let still =
            missing.iter().filter(|(_, name)| still.artifacts.contains(*name) || still.rootfs.contains_key(*name));
        faults.extend(still.map(|(parent, name)| format!("{parent}/{name} is missing")));
    }
    metadata.close().await;
    let verified = tokio::task::spawn_blocking(move || store.verify(wanted, &Default::default()));
    let verified = verified.await.context("join the check")?.context("check the chunk store")?;
    faults.extend(verified.faults.iter().map(ToString::to_string));
    for fault in &faults {
        println!("{fault}");
    }
    println!(
        "{} root images, {} chunks, {:.1} MiB read in {} ms: {}",
        verified.manifests,
        verified.chunks,
        verified.bytes as f64 / MIB,
        began.elapsed().as_millis(),
        if faults.is_empty() { "nothing is missing or damaged".to_owned() } else { format!("{} faults", faults.len()) },
    );
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
