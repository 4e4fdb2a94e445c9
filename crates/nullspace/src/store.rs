//! The stored data, in the data folder and its object store, for the operator.
//!
//! `repair` is how an operator gives up what is missing. `stats` and `verify` change nothing and work beside a running service,
//! which collects nothing meanwhile. `gc`, `repair` and `fetch` need the data folder for themselves: a running service collects
//! on its own.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jiff::Timestamp;
use nullspace_data::{
    ArtifactStore, ChunkStore, DataError, Inventory, LogSegments, ManifestId, ObjectSettings, RemoteStats, Share,
    attached_store, look_at_chunks,
};
use nullspace_db::SnapshotKind;
use nullspace_host::{BuilderDisks, builder_disks};
use nullspace_types::{KnownFiles, Streams};

use crate::config::Config;
use crate::database;
use crate::growth;
use crate::identity;
use crate::objects::{self, Use};
use crate::sealing;
use crate::segments;
use crate::serve;
use crate::survey::{Survey, survey};

const MIB: f64 = 1_048_576.0;
/// Snapshots of which the costs are listed, the most expensive ones.
const COSTS: usize = 100;

pub(crate) async fn stats(config: &Config) -> anyhow::Result<ExitCode> {
    let opened = database::open_existing(config).await?;
    let metadata = opened.as_ref();
    let known = metadata.known_files().await.context("list what is known")?;
    let (store, objects) = look(config).await?;
    let stats = store.stats();
    let disk = store.disk_bytes().context("measure the chunk store")?;
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / MIB);
    let without = known.rootfs.values().filter(|manifest| manifest.is_none()).count();
    println!("root images       {} ({without} as files only)", known.rootfs.len());
    let without = known.artifacts.values().filter(|streams| streams.is_none()).count();
    println!("snapshots         {} ({without} as files only)", known.artifacts.len());
    println!("manifests         {}", stats.manifests);
    println!(
        "chunks            {} of {} plain, {} stored",
        stats.chunks,
        mib(stats.plain_bytes),
        mib(stats.stored_bytes)
    );
    println!("packs             {} of {}, {} unreadable", stats.packs, mib(stats.pack_bytes), stats.unreadable_packs);
    println!("on the disk       {}", mib(disk));
    let BuilderDisks { number, bytes } = builder_disks(&config.data_dir);
    println!("builder disks     {number} of {}", mib(bytes));
    if let (Some(settings), Some(there)) = (&objects, store.remote_stats()) {
        let RemoteStats { packs, pack_bytes, manifests, cached_packs, cached_bytes, missing_packs, missing_bytes } =
            there;
        println!("object store      {}", settings.objects.location());
        println!("  there           {packs} packs of {}, {manifests} manifests", mib(pack_bytes));
        println!("  cached here     {cached_packs} packs of {}", mib(cached_bytes));
        println!("  only here yet   {missing_packs} packs of {}", mib(missing_bytes));
    }
    let costing = tokio::task::spawn_blocking(move || costs(&store, &known));
    costing.await.context("join the comparison of templates")??;
    growth::print(metadata, config).await?;
    metadata.close().await;
    Ok(ExitCode::SUCCESS)
}

/// Opens the chunks beside a running service, with the object store of the settings.
async fn look(config: &Config) -> anyhow::Result<(ChunkStore, Option<ObjectSettings>)> {
    let settings = objects::settings(config)?;
    match &settings {
        Some(settings) => objects::reach(&settings.objects, Use::Read).await?,
        None => {
            if let Some(location) = attached_store(&config.data_dir).context("look at the data folder")? {
                eprintln!(
                    "nullspace: warning: this data folder's data is kept in an object store ({location}), and s3_bucket is not \
                     set: only what the folder has is seen"
                );
            }
        }
    }
    let (data_dir, with) = (config.data_dir.clone(), settings.clone());
    let looking = tokio::task::spawn_blocking(move || look_at_chunks(&data_dir, with.as_ref()));
    let store = looking.await.context("join the opening of the chunk store")?.context("open the chunk store")?;
    Ok((store, settings))
}

/// Says what each template's snapshot costs alone, the most expensive first, and what they have in common. Root images are
/// one more owner: their chunks are not a snapshot's own.
fn costs(store: &ChunkStore, known: &KnownFiles) -> anyhow::Result<()> {
    let parsed = |ids: Vec<&String>| ids.into_iter().filter_map(|id| id.parse().ok()).collect::<Vec<ManifestId>>();
    let mut owners = vec![parsed(known.rootfs.values().flatten().collect())];
    let mut names = vec!["root images"];
    // Artifacts with one snapshot are one owner: it goes with the last of them.
    let mut artifacts: BTreeMap<&Streams, Vec<&str>> = BTreeMap::new();
    for (folder, streams) in &known.artifacts {
        if let Some(streams) = streams {
            artifacts.entry(streams).or_default().push(folder.split('.').next().unwrap_or(folder));
        }
    }
    for (streams, artifacts) in &artifacts {
        owners.push(parsed(streams.0.values().collect()));
        names.push(artifacts.first().unwrap_or(&"?"));
    }
    let shares = store.shares(&owners).context("compare what templates hold")?;
    let mut lines: Vec<(Share, &str, usize)> = Vec::new();
    for (index, (share, name)) in shares.into_iter().zip(names).enumerate() {
        let count = index.checked_sub(1).and_then(|index| artifacts.values().nth(index)).map_or(1, Vec::len);
        lines.push((share, name, count));
    }
    lines.sort_by_key(|(share, ..)| std::cmp::Reverse(share.alone));
    let left = lines.len().saturating_sub(COSTS);
    for (share, name, count) in lines.into_iter().take(COSTS) {
        let others = if count > 1 { format!(", the same in {} others", count - 1) } else { String::new() };
        let mib = |bytes: u64| bytes as f64 / MIB;
        println!("{name:<40} {:>8.1} MiB alone, {:>8.1} MiB shared{others}", mib(share.alone), mib(share.shared));
    }
    if left > 0 {
        println!("and {left} more that cost less");
    }
    Ok(())
}

pub(crate) async fn gc(config: &Config) -> anyhow::Result<ExitCode> {
    let opened = database::open_existing(config).await?;
    let metadata = opened.as_ref();
    // Nobody reads in the object store what is removed here: this process has the data folder for itself.
    let objects = objects::settings(config)?.map(|settings| ObjectSettings { grace: Duration::ZERO, ..settings });
    let files = match serve::open_files_with(config, objects).await {
        Err(error) if matches!(error.downcast_ref(), Some(DataError::DataDirInUse { .. })) => {
            bail!("a service uses {}: it collects by itself; stop it to collect now", config.data_dir.display())
        }
        opened => opened?,
    };
    let began = Instant::now();
    let found = survey(&files, metadata).await.context("compare database and folders")?;
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
    let shrunk = growth::shrink(metadata).await?;
    metadata.close().await;
    println!("the database is {:.1} MiB smaller", shrunk as f64 / MIB);
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
pub(crate) async fn repair(config: &Config, yes: bool) -> anyhow::Result<ExitCode> {
    let opened = database::open_existing(config).await?;
    let metadata = opened.as_ref();
    let files = open_files(config, objects::settings(config)?).await?;
    let found = survey(&files, metadata).await.context("compare database and folders")?;
    let Survey { lost, lost_blobs, lost_segments, sealing, foreign, .. } = &found;
    let faults: Vec<String> = found.identity.fault().into_iter().chain(found.objects.fault()).collect();
    for fault in &faults {
        println!("differ   {fault}");
    }
    for folder in lost.artifacts.keys() {
        match metadata.snapshot_in_folder(folder).await.context("look for a lost snapshot")? {
            None => println!("lost     the snapshot {folder}: its template can no longer be used"),
            Some(of) if of.kind == SnapshotKind::Pause => {
                println!(
                    "lost     the snapshot {}: the sandbox {}, which is paused in it, cannot be resumed",
                    of.id, of.sandbox
                );
            }
            Some(of) => {
                println!("lost     the snapshot {} of the sandbox {}: it can no longer be used", of.id, of.sandbox)
            }
        }
    }
    for file in lost.rootfs.keys() {
        println!(
            "lost     the root image {file}: templates and snapshots of sandboxes based on it can no longer be used"
        );
    }
    for blob in lost_blobs {
        println!("lost     the uploaded file blobs/{}/{}", blob.tenant, blob.id.sha256());
    }
    for name in lost_segments {
        println!("lost     the part {name} of a build's log: the log goes on without its lines");
    }
    if sealing.fault().is_some() {
        println!(
            "lost     seal.key, which decrypts {}. Without it, those sandboxes and snapshots cannot be resumed, port tokens \
             and signed URLs that were given out are refused, and those webhooks need a new signing_secret",
            sealing.cost()
        );
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
        let kept: Vec<Vec<u8>> = lost_segments.iter().map(|name| segments::kept(*name)).collect();
        metadata.forget_segments(&kept).await.context("forget lost parts of logs")?;
        files.remove_foreign(foreign).await.context("remove what another database named")?;
        sealing::give_up(&files, sealing)?;
        // Last: after a crash before it, the two are still told apart.
        identity::unite(&files, metadata, &found.identity, &found.objects, now).await?;
        println!("given up");
    } else {
        println!(
            "Nothing was changed. With --yes, lost files are given up, foreign files are removed, and a lost seal.key is replaced by a new one."
        );
        if !faults.is_empty() {
            println!("Store ids that differ are made one: the database's, or the folder's when the database has none.");
        }
        if found.objects.fault().is_some() {
            println!(
                "The object store gets that id, too. Another service's data in it is then removed as unused: look first."
            );
        }
    }
    metadata.close().await;
    Ok(if found.is_clean() || yes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Brings everything that only the object store has into the data folder, so that the service can do without it.
pub(crate) async fn fetch(config: &Config) -> anyhow::Result<ExitCode> {
    let opened = database::open_existing(config).await?;
    let metadata = opened.as_ref();
    let Some(settings) = objects::settings(config)? else {
        bail!("s3_bucket is not set: there is no object store to fetch from");
    };
    let location = settings.objects.location().to_owned();
    let files = open_files(config, Some(ObjectSettings { cache_bytes: u64::MAX, ..settings })).await?;
    let found = survey(&files, metadata).await.context("compare database and folders")?;
    metadata.close().await;
    if let Some(refusal) = found.refusal() {
        bail!("{refusal}");
    }
    let began = Instant::now();
    let fetched =
        files.fetch_all().await.context("fetch what only the object store has; run the command again to go on")?;
    println!(
        "{} packs are in {}, and {} uploaded files and parts of logs of {:.1} MiB were downloaded, in {} ms",
        fetched.packs,
        config.data_dir.display(),
        fetched.files,
        fetched.file_bytes as f64 / MIB,
        began.elapsed().as_millis(),
    );
    if fetched.missing_packs > 0 {
        bail!("{} packs could not be fetched: `nullspace store verify` says what is lost", fetched.missing_packs);
    }
    println!(
        "To go on without the object store, take the s3_… settings out before the next start. Nothing was changed in {location}"
    );
    Ok(ExitCode::SUCCESS)
}

/// The data folder's files, which no service may have.
async fn open_files(config: &Config, objects: Option<ObjectSettings>) -> anyhow::Result<ArtifactStore> {
    match serve::open_files_with(config, objects).await {
        Err(error) if matches!(error.downcast_ref(), Some(DataError::DataDirInUse { .. })) => {
            bail!("a service uses {}: stop it first", config.data_dir.display())
        }
        opened => opened,
    }
}

pub(crate) async fn verify(config: &Config) -> anyhow::Result<ExitCode> {
    let opened = database::open_existing(config).await?;
    let metadata = opened.as_ref();
    let began = Instant::now();
    let before = metadata.known_files().await.context("list what is known")?;
    let (store, objects) = look(config).await?;
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
    for (folder, streams) in &known.artifacts {
        for (name, manifest) in streams.iter().flat_map(|streams| &streams.0) {
            match manifest.parse::<ManifestId>() {
                // Nor what a capture has become since.
                Ok(id) if before.artifacts.get(folder).is_some_and(Option::is_some) => wanted.push(id),
                Err(error) => drop(faults.insert(format!("snapshot {folder}: manifest of {name}: {error}"))),
                _ => {}
            }
        }
    }
    let folders = known.artifacts.iter().filter(|(_, streams)| streams.is_none());
    // Of an older version, or of a paused sandbox that is not stored as chunks yet.
    let parent = |folder: &String| match config.data_dir.join(Inventory::CAPTURES).join(folder).exists() {
        true => Inventory::CAPTURES,
        false => Inventory::ARTIFACTS,
    };
    let folders = folders.map(|(folder, _)| (parent(folder), folder));
    let missing = raw.chain(folders).filter(|(parent, name)| !config.data_dir.join(parent).join(name).exists());
    let missing: Vec<(&str, &String)> = missing.collect();
    if !missing.is_empty() {
        // A service beside us may have removed them, or stored them as chunks, and said so first.
        let still = metadata.known_files().await.context("list what is known")?;
        let still = missing.iter().filter(|(_, name)| {
            still.artifacts.get(*name).is_some_and(Option::is_none) || still.rootfs.contains_key(*name)
        });
        faults.extend(still.map(|(parent, name)| format!("{parent}/{name} is missing")));
    }
    let logs = LogSegments::look_at(&config.data_dir, objects.map(|settings| settings.objects));
    let lost = segments::missing(&logs, metadata).await?;
    faults.extend(lost.iter().map(|name| format!("part {name} of a build's log is missing")));
    metadata.close().await;
    let verified = tokio::task::spawn_blocking(move || store.verify(wanted, &Default::default()));
    let verified = verified.await.context("join the check")?.context("check the chunk store")?;
    faults.extend(verified.faults.iter().map(ToString::to_string));
    for fault in &faults {
        println!("{fault}");
    }
    println!(
        "{} images, {} chunks, {:.1} MiB read in {} ms: {}",
        verified.manifests,
        verified.chunks,
        verified.bytes as f64 / MIB,
        began.elapsed().as_millis(),
        if faults.is_empty() { "nothing is missing or damaged".to_owned() } else { format!("{} faults", faults.len()) },
    );
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
