//! A service killed at any moment: what it was told is done is done, and nothing half-done is ever seen.
//!
//! The test starts itself as a child that builds without pause and prints each id once the call that ended the build has
//! returned; the parent kills it with SIGKILL at a random moment, opens what is left, checks it, and starts the next.
//!
//! ```text
//!   child       accept ─ publish ─ finish ─ say ─┐      ┌─ with an object store, also:
//!      ^─────────────────────────────────────────┘      └─ purge the row ─ remove ─ collect here ─ delete there
//!   parent      kill ─ open ─ sweep ─ read everything that a row names ─ (cache removed, read it from the store)
//! ```

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use jiff::Timestamp;
use nullspace_data::{ArtifactStore, DataError, ObjectSettings, OpenSettings};
use nullspace_db::{
    BuildBackend, BuildStatus, Builds, Catalog, Collection, FinishReady, Finished, Health, Leased, NamespaceKind,
    NewBuild, NewLogEntry, Queue, QueueLimits, Reuse, SourceType, SqliteStore, Tenants,
};
use nullspace_objects::Objects;
use nullspace_types::{ArtifactId, BuildId, Caller, Rootfs, Streams};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use serde_json::json;

const DIR: &str = "NULLSPACE_TEST_CRASH_DIR";
const ROUNDS: u32 = 25;
/// A child on a busy machine does less in a round: there are more of them then, up to this number.
const MOST_ROUNDS: u32 = 100;
/// Builds whose confirmed end must be found again.
const CONFIRMED: usize = 20;
const KEY: &str = "00112233445566778899aabbccddeeff";

fn entry(message: &str) -> NewLogEntry {
    NewLogEntry { at: Timestamp::now(), body: json!({ "message": message }) }
}

async fn open(dir: &Path) -> (ArtifactStore, SqliteStore) {
    let artifacts = ArtifactStore::open(dir).unwrap();
    let store = SqliteStore::open(&dir.join("nullspace.db")).await.unwrap();
    (artifacts, store)
}

/// As [`open`], with an object store beside the data folder, from which what was removed here goes at once.
async fn open_with_objects(dir: &Path) -> (ArtifactStore, SqliteStore) {
    let objects = Objects::folder(&dir.join("objects")).unwrap();
    let objects = ObjectSettings { objects, cache_bytes: u64::MAX, grace: Duration::ZERO };
    let (root, settings) = (dir.join("data"), OpenSettings { objects: Some(objects), ..OpenSettings::default() });
    // The store is asked from a thread that may block.
    let artifacts = tokio::task::spawn_blocking(move || ArtifactStore::open_with(&root, settings)).await.unwrap();
    (artifacts.unwrap(), SqliteStore::open(&dir.join("nullspace.db")).await.unwrap())
}

fn new_build() -> NewBuild {
    NewBuild {
        id: BuildId::new(),
        artifact_id: ArtifactId::new(),
        name: "web".parse().unwrap(),
        description: None,
        tags: vec!["default".parse().unwrap(), "other".parse().unwrap()],
        backend: BuildBackend::Native,
        source_type: SourceType::OciImport,
        definition: json!({}).into(),
        build_config: json!({}),
        source_digest: None,
        context_digest: None,
        dockerfile_digest: None,
        triggered_by: None,
        retry_of: None,
        original: None,
        max_attempts: 3,
        claim: None,
        idempotency: None,
        blobs: Vec::new(),
    }
}

fn ready(folder: String, streams: Streams, stored_bytes: u64, keep_until: Option<Timestamp>) -> FinishReady {
    FinishReady {
        folder,
        streams: Some(streams),
        rootfs_key: KEY.to_owned(),
        disk_bytes: 1,
        stored_bytes,
        compatibility: json!({}),
        snapshot: json!({}),
        runtime: json!({}).into(),
        runtime_defaults: json!({}),
        oci_metadata: None,
        cache_summary: None,
        retention_expires_at: keep_until,
        final_key: None,
        entry: entry("end"),
    }
}

/// Builds until it is killed.
#[tokio::test]
#[ignore = "the child of a_killed_service_loses_nothing_it_confirmed"]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (artifacts, store) = open(Path::new(&dir)).await;
    let caller = store.ensure_tenant("acme", NamespaceKind::User, Timestamp::now()).await.unwrap().caller();
    let limits = QueueLimits { per_tenant: 1000, total: 1000 };
    loop {
        let build = new_build();
        let accepted = store.accept_build(&caller, build, entry("start"), limits, Timestamp::now()).await.unwrap();
        say(&format!("accepted {}", accepted.id));
        let Some(Leased::Run { lease, build }) =
            store.lease_build("child", Duration::from_secs(3600), u32::MAX, Timestamp::now()).await.unwrap()
        else {
            panic!("nothing to run")
        };
        let scratch = artifacts.scratch().unwrap();
        if store.find_rootfs(&lease, KEY, Timestamp::now()).await.unwrap().is_none() {
            let image = scratch.path().join("image");
            fs::write(&image, vec![1; 20_000]).unwrap();
            let published = artifacts.publish_rootfs(&image, KEY).await.unwrap();
            store.put_rootfs(&lease, published.row(KEY, json!(null)), Timestamp::now()).await.unwrap();
        }
        let snapshot = scratch.path().join("snapshot");
        fs::create_dir(&snapshot).unwrap();
        for name in ["memory", "state"] {
            fs::write(snapshot.join(name), vec![2; 30_000]).unwrap();
        }
        let first = store.append_log(&lease, vec![entry("one"), entry("two")]).await.unwrap();
        say(&format!("logged {} {}", build.id, first + 2));
        let published = artifacts.publish_artifact(&snapshot, build.artifact_id, Vec::new()).await.unwrap();
        let result = ready(published.folder, published.streams, published.stored_bytes, None);
        let _ = store.finish_ready(&lease, result, Timestamp::now()).await.unwrap();
        say(&format!("ready {}", build.id));
    }
}

fn say(line: &str) {
    // One write: a killed child leaves whole lines or none.
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

#[tokio::test]
async fn a_killed_service_loses_nothing_it_confirmed() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut confirmed: BTreeSet<BuildId> = BTreeSet::new();
    for round in 0..MOST_ROUNDS {
        if round >= ROUNDS && confirmed.len() > CONFIRMED {
            break;
        }
        let lines = run_and_kill("child", dir.path(), round % 2 == 0);
        let (artifacts, store) = open(dir.path()).await;
        assert!(fs::read_dir(dir.path().join("work")).unwrap().next().is_none(), "work was not swept");
        let caller = store.ensure_tenant("acme", NamespaceKind::User, Timestamp::now()).await.unwrap().caller();
        for line in &lines {
            let mut words = line.split(' ');
            let (what, id): (_, BuildId) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
            let (build, next) = store.build_and_next_offset(&caller, id).await.unwrap();
            match what {
                "accepted" => {}
                "logged" => assert!(next >= words.next().unwrap().parse().unwrap(), "a confirmed entry is lost"),
                "ready" => {
                    assert_eq!(build.status, BuildStatus::Ready, "a confirmed end is lost");
                    confirmed.insert(id);
                }
                other => panic!("{other}"),
            }
        }

        // Everything the database names is on the disk; everything else goes.
        let known = store.known_files().await.unwrap();
        let report = artifacts.sweep(known.clone()).await.unwrap();
        assert_eq!(report.missing, Default::default(), "round {round}");
        assert!(report.removed.len() <= 2, "one build at a time cannot leave {:?}", report.removed);
        for (folder, streams) in &known.artifacts {
            let pin = artifacts.open_snapshot(folder, streams.as_ref()).await.unwrap();
            for name in ["memory", "state"] {
                assert_eq!(fs::read(pin.path().join(name)).unwrap(), vec![2; 30_000]);
            }
        }
        for (file, manifest) in &known.rootfs {
            let (file, manifest) = (file.clone(), manifest.clone());
            let rootfs = Rootfs { key: KEY.to_owned(), file, bytes: 20_000, manifest, info: json!(null) };
            let raw = artifacts.open_rootfs(&rootfs).await.unwrap();
            assert_eq!(fs::read(raw.path()).unwrap(), vec![1; 20_000]);
        }
        assert_eq!(artifacts.verify_images(&known).await.unwrap().faults, []);

        // Both tags point to the same build: they moved together.
        if let Ok(found) = store.resolve(&caller, &"web".parse().unwrap()).await {
            assert_eq!(found.tags.len(), 2);
            assert_eq!(found.tags[0].build, found.tags[1].build);
        }

        // Nothing stays unfinished for ever: what the child left is taken again once its lease is over.
        let later = Timestamp::now() + Duration::from_secs(7200);
        while let Some(leased) = store.lease_build("parent", Duration::from_secs(3600), u32::MAX, later).await.unwrap()
        {
            let (Leased::Run { lease, .. } | Leased::Spent { lease, .. }) = leased;
            let log = store.log_entries(&caller, lease.build, 0, 100).await.unwrap();
            let expected = ["start", "one", "two"].iter().zip(0_u64..);
            for (entry, (message, offset)) in log.iter().zip(expected) {
                assert_eq!((entry.offset, entry.body["message"].as_str()), (offset, Some(*message)));
            }
            assert!(log.len() == 1 || log.len() == 3, "half a batch was stored");
            store.finish_cancelled(&lease, entry("cancelled"), later).await.unwrap();
        }
        assert_eq!(store.counters().await.unwrap().builds_building, 0);
        store.close().await;
    }
    assert!(confirmed.len() > CONFIRMED, "the child was too slow to prove anything: {} builds", confirmed.len());
}

/// The whole lines a child said before it was killed: a moment after its start, or after its first line, when it is at work.
fn run_and_kill(child: &str, dir: &Path, at_work: bool) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([child, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.stdout.take().unwrap();
    let (begun, first) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        let told = lines.filter(|line| ["accepted ", "logged ", "ready "].iter().any(|word| line.starts_with(word)));
        // Only the first is waited for.
        told.inspect(|_| {
            let _ = begun.send(());
        })
        .collect()
    });
    if at_work {
        first.recv_timeout(Duration::from_secs(60)).expect("the child's first line");
    }
    std::thread::sleep(Duration::from_millis(rand::rng().random_range(20..400)));
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

/// Pages of a build's memory: a part of its own, and the same part as its neighbours, so that packs are shared and rewritten.
fn pages(seed: u64) -> Vec<u8> {
    let mut pages = vec![0; 300_000];
    let (shared, own) = pages.split_at_mut(100_000);
    StdRng::seed_from_u64(seed / 3).fill_bytes(shared);
    StdRng::seed_from_u64(u64::MAX - seed).fill_bytes(own);
    pages
}

/// The number that the pages of an artifact begin from.
fn seed_of(artifact: ArtifactId) -> u64 {
    u64::from(u16::from_str_radix(&artifact.to_string()[artifact.to_string().len() - 4..], 16).unwrap())
}

/// Builds with an object store, removes what no tag points to any more, and collects, until it is killed.
#[tokio::test]
#[ignore = "the child of a_killed_service_leaves_its_object_store_whole"]
async fn child_with_objects() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (files, store) = open_with_objects(Path::new(&dir)).await;
    let caller = store.ensure_tenant("acme", NamespaceKind::User, Timestamp::now()).await.unwrap().caller();
    let limits = QueueLimits { per_tenant: 1000, total: 1000 };
    loop {
        store.accept_build(&caller, new_build(), entry("start"), limits, Timestamp::now()).await.unwrap();
        let Some(Leased::Run { lease, build }) =
            store.lease_build("child", Duration::from_secs(3600), u32::MAX, Timestamp::now()).await.unwrap()
        else {
            panic!("nothing to run")
        };
        let scratch = files.scratch().unwrap();
        if store.find_rootfs(&lease, KEY, Timestamp::now()).await.unwrap().is_none() {
            let image = scratch.path().join("image");
            fs::write(&image, vec![1; 20_000]).unwrap();
            let published = files.publish_rootfs(&image, KEY).await.unwrap();
            store.put_rootfs(&lease, published.row(KEY, json!(null)), Timestamp::now()).await.unwrap();
        }
        let snapshot = scratch.path().join("snapshot");
        fs::create_dir(&snapshot).unwrap();
        fs::write(snapshot.join("memory"), pages(seed_of(build.artifact_id))).unwrap();
        let published = files.publish_artifact(&snapshot, build.artifact_id, Vec::new()).await.unwrap();
        let folder = published.folder.clone();
        // Its time is over at once: the next build takes its tags.
        let now = Timestamp::now();
        let result = ready(published.folder, published.streams, published.stored_bytes, Some(now));
        assert!(matches!(store.finish_ready(&lease, result, now).await.unwrap(), Finished::Ready(_)));
        files.artifact_named(&folder);
        say(&format!("ready {}", build.id));
        for unused in store.collectable_artifacts(Timestamp::now(), 100).await.unwrap() {
            if store.purge_artifact(unused.id, Timestamp::now()).await.unwrap() {
                files.remove_artifact(&unused.folder).await.unwrap();
            }
        }
        files.collect_images(async { known_to(&store).await }).await.unwrap();
    }
}

async fn known_to(store: &SqliteStore) -> Result<nullspace_types::KnownFiles, DataError> {
    store.known_files().await.map_err(|error| DataError::Conflict { what: error.to_string() })
}

/// Reads everything that a row names, and compares it with what was put there.
async fn read_all(files: &ArtifactStore, store: &SqliteStore, caller: &Caller) -> usize {
    let known = store.known_files().await.unwrap();
    for (folder, streams) in &known.artifacts {
        let id: ArtifactId = folder.split('.').next().unwrap().parse().unwrap();
        let pin = files.open_snapshot(folder, streams.as_ref()).await.unwrap();
        assert_eq!(fs::read(pin.path().join("memory")).unwrap(), pages(seed_of(id)));
    }
    assert_eq!(files.verify_images(&known).await.unwrap().faults, []);
    if let Ok(found) = store.resolve(caller, &"web".parse().unwrap()).await {
        assert_eq!(found.tags[0].build, found.tags[1].build, "both tags moved together");
        assert!(!known.artifacts.is_empty(), "the tags point to an artifact that was removed");
    }
    known.artifacts.len()
}

/// Over publication, the row's transaction, the removal here, the rewriting of packs, and the deletion in the store.
#[tokio::test]
async fn a_killed_service_leaves_its_object_store_whole() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut confirmed = 0;
    for round in 0..MOST_ROUNDS {
        if round >= ROUNDS && confirmed > CONFIRMED {
            break;
        }
        let lines = run_and_kill("child_with_objects", dir.path(), round % 2 == 0);
        confirmed += lines.len();
        // Every other time, the host's own disk is lost with it: what the store has must be enough.
        if round % 2 == 1 && dir.path().join("data").exists() {
            for cache in ["chunks/packs", "chunks/manifests", "snapshots", "rootfs"] {
                let _ = fs::remove_dir_all(dir.path().join("data").join(cache));
            }
        }
        let (files, store) = open_with_objects(dir.path()).await;
        let caller = store.ensure_tenant("acme", NamespaceKind::User, Timestamp::now()).await.unwrap().caller();
        let report = files.sweep(store.known_files().await.unwrap()).await.unwrap();
        assert_eq!(report.missing, Default::default(), "round {round}");
        let named = read_all(&files, &store, &caller).await;
        if let Some(last) = lines.last() {
            let id: BuildId = last.split(' ').nth(1).unwrap().parse().unwrap();
            assert_eq!(
                store.get_build(&caller, id).await.unwrap().status,
                BuildStatus::Ready,
                "a confirmed end is lost"
            );
            assert!(named > 0);
        }
        // What the child left unfinished, and what it published without a row, goes.
        let later = Timestamp::now() + Duration::from_secs(7200);
        while let Some(leased) = store.lease_build("parent", Duration::from_secs(3600), u32::MAX, later).await.unwrap()
        {
            let (Leased::Run { lease, .. } | Leased::Spent { lease, .. }) = leased;
            store.finish_cancelled(&lease, entry("cancelled"), later).await.unwrap();
        }
        files.collect_images(async { known_to(&store).await }).await.unwrap();
        read_all(&files, &store, &caller).await;
        let known = store.known_files().await.unwrap();
        let streams = known.artifacts.values().flatten().flat_map(|streams| streams.0.values());
        let manifests: BTreeSet<&String> = streams.chain(known.rootfs.values().flatten()).collect();
        let stored = fs::read_dir(dir.path().join("objects/objects/manifests")).map_or(0, Iterator::count);
        assert_eq!(stored, manifests.len(), "round {round}: the store has a manifest for each name, and no other");
        store.close().await;
    }
    assert!(confirmed > CONFIRMED, "the child was too slow to prove anything: {confirmed} builds");
}
