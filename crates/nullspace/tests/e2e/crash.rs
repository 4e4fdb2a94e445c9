//! The service killed at random moments of running builds, again and again.
//!
//! ```text
//!   accept builds, some with steps ──> pause ──> SIGKILL ──> nothing runs on, nothing stored is missing ──> start on the same data ──> (5 times)
//!        ... then: every accepted build ends, its log is whole, artifacts are whole, nothing is left over
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nullspace_api::{
    TemplateBuildLogEntry, TemplateBuildStatus as Status, TemplateFailurePhase as Phase, TemplateInfo,
};
use nullspace_db::{Collection, Health, SqliteStore};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixture::artifacts::{assert_clean, materialised, root_images, snapshots};
use crate::fixture::dir::TestDir;
use crate::fixture::{Api, Image, Registry, Service, is_long};

/// Kills that hit at least one running build; with `NULLSPACE_TEST_LONG` there are [`LONG_HITS`]. `tests/attack/kills.py`
/// (`make test-long`) kills 200 times.
const HITS: u32 = 5;
const LONG_HITS: u32 = 10;
/// Kills in all, should many of them hit nothing.
const MOST_KILLS: u32 = 20;
/// Builds that are kept unfinished all the time.
const UNFINISHED: usize = 4;

/// What was seen of each accepted build's log: it must never be different later.
type Seen = BTreeMap<String, Vec<TemplateBuildLogEntry>>;

#[tokio::test]
async fn every_accepted_build_ends_however_often_the_service_is_killed() {
    let seed = match std::env::var("NULLSPACE_TEST_SEED") {
        Ok(seed) => seed.parse().expect("NULLSPACE_TEST_SEED is a number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
    };
    println!("NULLSPACE_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);

    let registry = Registry::start();
    for tag in ["0", "1", "2"] {
        registry.push("box", tag, &Image::busybox_variant(tag)).await;
    }
    // No lease runs out while this lasts: a start takes over what the killed service held.
    let settings = [("NULLSPACE_LEASE_SECS", "3600".to_owned()), ("NULLSPACE_BUILD_CONCURRENCY", "2".to_owned())];
    let mut service = Service::with(settings).await;

    let mut seen = Seen::new();
    let (mut kills, mut hits) = (0, 0);
    let wanted = if is_long() { LONG_HITS } else { HITS };
    while hits < wanted {
        let api = service.api();
        let unfinished = observe(&api, &mut seen).await;
        for _ in unfinished..UNFINISHED {
            let accepted = api.start(request(&registry, &mut random)).await;
            seen.insert(accepted.build_id, Vec::new());
        }
        let moment = Duration::from_millis(random.random_range(200..6000));
        // One more is on its way while the service dies: answered with 202 it counts, else it may or may not be.
        let answered = Arc::new(Mutex::new(None));
        let last = tokio::spawn({
            let (api, answered, request) = (api.clone(), Arc::clone(&answered), request(&registry, &mut random));
            let before = Duration::from_micros(random.random_range(0..4000));
            async move {
                tokio::time::sleep(moment.saturating_sub(before)).await;
                let request = api.request(Method::POST, "/v1/templates/builds").json(&request);
                if let Ok(answer) = api.try_send(request).await {
                    let accepted: Value = answer.ok(202);
                    *answered.lock().unwrap() = accepted["build_id"].as_str().map(str::to_owned);
                }
            }
        });
        tokio::time::sleep(moment).await;
        hits += u32::from(is_any_building(&api, &seen).await);
        service.kill().await;
        kills += 1;
        last.await.unwrap();
        if let Some(id) = answered.lock().unwrap().take() {
            seen.insert(id, Vec::new());
        }
        assert!(kills <= MOST_KILLS, "{kills} kills hit a running build only {hits} times");
        service.verify_store();
        if kills % 3 == 0 {
            service.collect_store();
            service.verify_store();
        }
        service.restart().await;
    }

    // From here on in peace.
    let api = service.api();
    observe(&api, &mut seen).await;
    let mut ready = Vec::new();
    let mut interrupted = 0;
    for (id, before) in &seen {
        let finished = api.finished(id).await;
        assert_eq!(finished.log[..before.len()], before[..], "what was seen of the log has changed: {finished:?}");
        match finished.build.status {
            Status::Ready => ready.push(finished),
            _ => {
                let detail = finished.failure("attempts_spent");
                assert_eq!((detail.phase, detail.retryable), (Phase::Interrupted, true));
                interrupted += 1;
            }
        }
    }
    println!(
        "{kills} kills, {hits} of them in running builds: {} builds ready, {interrupted} interrupted",
        ready.len()
    );
    assert!(ready.len() >= 3, "hardly a build became ready");

    // A start sweeps what no row names; after it the disk has what the database has.
    service.settles().await;
    service.stop().await;
    let database = SqliteStore::open(&service.data().join("nullspace.db")).await.unwrap();
    let known = database.known_files().await.unwrap().artifacts;
    database.close().await;
    service.restart().await;
    let api = service.api();
    root_images(&service.data()).iter().for_each(|image| assert_clean(image));
    // Builds of the same key have one snapshot.
    let (found, different) = (snapshots(&service.data()), known.values().collect::<BTreeSet<_>>());
    assert_eq!(found.len(), different.len(), "{found:?}");
    let named: BTreeSet<String> = known.keys().map(|name| template_of(name)).collect();
    assert_eq!(named.len(), known.len(), "more than one snapshot of a template: {known:?}");
    // More than those seen to become ready: a build may be accepted by a service that dies before it says so.
    let templates: Vec<TemplateInfo> = api.get("/v1/templates").await.ok(200);
    assert_eq!(named, templates.into_iter().map(|template| template.id).collect());
    assert!(ready.iter().all(|finished| named.contains(finished.template())), "{named:?}");

    service.verify_store();

    // Of the ready builds some of the first and of the last.
    let sample: Vec<_> = ready.iter().take(2).chain(ready.iter().rev().take(2)).collect();
    let scratch = TestDir::new();
    for finished in sample {
        let sandbox = api.sandbox(finished.template()).await;
        assert_eq!(sandbox.sh("tr '\\0' ' ' < /proc/$(cat pid)/cmdline; cat starts").await, "sleep 1000000 started");
        sandbox.delete().await;
    }
    for snapshot in &found {
        // Whichever it stands on, of an image or of a step: a wrong one would not be clean.
        let images = root_images(&service.data());
        let clean = images.iter().any(|image| is_clean_over(snapshot, image, &scratch));
        assert!(clean, "the disk of {} is damaged", snapshot.display());
    }
    service.settles().await;
    service.stop().await;
}

/// The template that an artifact is of: `tmpl_….<nonce>`.
fn template_of(artifact: &str) -> String {
    artifact.split('.').next().unwrap().to_owned()
}

fn is_clean_over(snapshot: &Path, image: &Path, scratch: &TestDir) -> bool {
    let disk = materialised(snapshot, image, scratch);
    let output = crate::fixture::host::system("e2fsck").arg("-fn").arg(&disk).output().unwrap();
    output.status.success()
}

fn request(registry: &Registry, random: &mut StdRng) -> Value {
    let tag = random.random_range(0..3);
    // Few different steps, so that builds meet each other's layers; two of them are two captures of one machine.
    let steps: Vec<Value> = (0..random.random_range(0..3))
        .map(|number| {
            let kind = random.random_range(0..2);
            json!({"action": "run", "command": format!("head -c 700000 /dev/urandom > /layer{number} # {kind}")})
        })
        .collect();
    json!({
        "steps": steps,
        "base_image": registry.reference(&format!("box:{tag}")),
        "build_config": {"memory_mib": 128, "disk_mb": 512},
        "skip_cache": random.random_bool(0.3),
        "start_cmd": "printf started >> starts; echo $$ > pid; exec sleep 1000000",
        "runtime_config": {"readiness": {"kind": "command", "command": "test -s pid"}},
    })
}

/// Reads every build anew; returns how many are not over.
async fn observe(api: &Api, seen: &mut Seen) -> usize {
    let mut unfinished = 0;
    for (id, before) in seen.iter_mut() {
        if before.last().is_some_and(|entry| entry.kind.is_terminal()) {
            continue;
        }
        let snapshot = api.status(id, 0).await;
        assert_eq!(snapshot.entries[..before.len()], before[..], "what was seen of the log of {id} has changed");
        unfinished += usize::from(!snapshot.build.status.is_terminal());
        *before = snapshot.entries;
    }
    unfinished
}

async fn is_any_building(api: &Api, seen: &Seen) -> bool {
    for (id, log) in seen {
        let over = log.last().is_some_and(|entry| entry.kind.is_terminal());
        if !over && api.status(id, u64::MAX).await.build.status == Status::Building {
            return true;
        }
    }
    false
}
