//! A service killed at any moment: what it was told is done is done, and nothing half-done is ever seen.
//!
//! The test starts itself as a child that builds without pause and prints each id once the call that ended the build has
//! returned; the parent kills it with SIGKILL at a random moment, opens what is left, checks it, and starts the next.

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
use nullspace_data::ArtifactStore;
use nullspace_db::{
    BuildBackend, BuildStatus, Builds, Catalog, Collection, FinishReady, Health, Leased, NamespaceKind, NewBuild,
    NewLogEntry, Queue, QueueLimits, Reuse, SourceType, SqliteStore, Tenants,
};
use nullspace_types::{ArtifactId, BuildId, Rootfs};
use rand::Rng;
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

/// Builds until it is killed.
#[tokio::test]
#[ignore = "the child of a_killed_service_loses_nothing_it_confirmed"]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (artifacts, store) = open(Path::new(&dir)).await;
    let caller = store.ensure_tenant("acme", NamespaceKind::User, Timestamp::now()).await.unwrap().caller();
    let limits = QueueLimits { per_tenant: 1000, total: 1000 };
    loop {
        let build = NewBuild {
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
        };
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
        let result = FinishReady {
            folder: published.folder,
            streams: Some(published.streams),
            rootfs_key: KEY.to_owned(),
            disk_bytes: 1,
            stored_bytes: published.stored_bytes,
            compatibility: json!({}),
            snapshot: json!({}),
            runtime: json!({}).into(),
            runtime_defaults: json!({}),
            oci_metadata: None,
            cache_summary: None,
            retention_expires_at: None,
            final_key: None,
            entry: entry("end"),
        };
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
        let lines = run_and_kill(dir.path(), round % 2 == 0);
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
fn run_and_kill(dir: &Path, at_work: bool) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
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
