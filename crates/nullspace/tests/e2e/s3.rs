//! The service on an S3 store: what the data folder has is a cache, what the store has is durable, and a store that fails,
//! lies, or is another one leads to a typed answer and to no loss.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nullspace_api::{SandboxInfo, SandboxStatus, SnapshotInfo, TemplateBuildStatus as Status};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::fixture::proxy::Shares;
use crate::fixture::s3::{BUCKET, SECRET};
use crate::fixture::{Api, Image, Proxy, Registry, S3Server, Service, is_long, until};

/// From the start of a service to the end of the upload of what its folder has.
const UPLOADED: Duration = Duration::from_secs(120);
/// The service refuses a store that does not answer within this time.
const REFUSED: Duration = Duration::from_secs(90);
/// How much the service's memory may grow while it uploads and downloads. The store's parts take at most 128 MiB.
const GROWTH_MIB: u64 = 300;
/// Most kills of the server while builds are under way; with `NULLSPACE_TEST_LONG` up to [`LONG_KILLS`].
const MOST_KILLS: u32 = 2;
const LONG_KILLS: u32 = 8;
/// Folders of a data folder that are caches when there is a store.
const CACHES: [&str; 5] = ["chunks/packs", "snapshots", "rootfs", "layers", "uploads"];
/// Rounds of log compression are a minute apart.
const COMPRESSED: Duration = Duration::from_secs(180);

fn request(registry: &Registry, name: &str, tag: &str) -> Value {
    json!({
        "name": name, "base_image": registry.reference(&format!("box:{tag}")),
        "build_config": {"memory_mib": 128, "disk_mb": 512},
        "start_cmd": "echo here > /started; exec sleep 1000000",
    })
}

/// Removes everything that a stopped service's folder only caches.
fn lose_caches(service: &Service) {
    for cache in CACHES {
        for name in names(&service.data().join(cache)) {
            let path = service.data().join(cache).join(name);
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.unwrap_or_else(|error| panic!("remove {}: {error}", path.display()));
        }
    }
}

/// Names in a folder; none where it was not made.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Packs and manifests that the folder has and the store lacks.
async fn not_stored(service: &Service, server: &S3Server, prefix: &str) -> BTreeSet<String> {
    let mut missing = BTreeSet::new();
    for kind in ["packs", "manifests"] {
        // Objects may do without the files' endings.
        let stem = |name: &String| name.split('.').next().unwrap_or_default().to_owned();
        let here: BTreeSet<String> = names(&service.data().join("chunks").join(kind)).iter().map(stem).collect();
        let there = server.objects(&format!("{prefix}/{kind}")).await;
        let there: BTreeSet<String> =
            there.iter().filter(|(_, bytes)| **bytes > 0).map(|(name, _)| stem(name)).collect();
        missing.extend(here.difference(&there).map(|name| format!("{kind}/{name}")));
    }
    missing
}

async fn all_over(api: &Api, builds: &[String]) -> bool {
    for build in builds {
        if !api.status(build, u64::MAX).await.build.status.is_terminal() {
            return false;
        }
    }
    true
}

async fn works(api: &Api, template: &str) {
    let sandbox = api.sandbox(template).await;
    // Memory, the disk's changes and the root image are all read.
    assert_eq!(sandbox.sh("cat /started; sha256sum /bin/busybox | wc -l; pidof sleep | wc -w").await, "here\n1\n1");
    sandbox.delete().await;
}

/// What a start or a command with other settings, or without the empty ones, prints; it must fail.
fn refusal(service: &Service, arguments: &[&str], settings: &[(&str, &str)]) -> String {
    let began = Instant::now();
    let mut command = service.command(arguments);
    for (name, value) in settings {
        if value.is_empty() {
            command.env_remove(name)
        } else {
            command.env(name, value)
        };
    }
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(!output.status.success(), "{arguments:?} {settings:?} is not refused: {text}");
    assert!(began.elapsed() < REFUSED, "{arguments:?} {settings:?} took {:?}: {text}", began.elapsed());
    assert!(!text.contains(SECRET), "{arguments:?} tells the secret: {text}");
    text
}

#[tokio::test]
async fn a_template_is_read_back_from_the_store_when_the_folder_has_lost_its_caches() {
    let (server, registry) = (S3Server::begin(), Registry::start());
    registry.push("box", "1", &Image::busybox()).await;
    server.wait();
    let mut service = Service::on_folder(server.settings("one"));
    service.restart().await;
    let api = service.api();
    let step = json!([{"action": "run", "command": "head -c 700000 /dev/urandom > /added"}]);
    let mut built = request(&registry, "app", "1");
    built["steps"] = step;
    api.ready(built).await;
    works(&api, "app").await;
    let sandbox = api.sandbox("app").await;
    let added = sandbox.sh("sha256sum /added").await;
    sandbox.delete().await;
    service.settles().await;
    service.verify_store();
    service.stop().await;
    // Stored when it was named, not later.
    assert_eq!(not_stored(&service, &server, "one").await, BTreeSet::new());

    lose_caches(&service);
    service.verify_store();
    assert_eq!(names(&service.data().join("chunks/packs")), BTreeSet::new(), "verify keeps nothing");
    service.restart().await;
    let api = service.api();
    works(&api, "app").await;
    let sandbox = api.sandbox("app").await;
    assert_eq!(sandbox.sh("sha256sum /added").await, added);
    sandbox.delete().await;
    assert_ne!(names(&service.data().join("chunks/packs")), BTreeSet::new(), "packs that were read are cached");
    // What comes next stands on what was read back.
    let child = json!({
        "name": "child", "base_image": "nullspace/app", "build_config": {"memory_mib": 128},
        "steps": [{"action": "run", "command": "sha256sum /added > /sum"}],
        "start_cmd": "echo here > /started; exec sleep 1000000",
    });
    api.ready(child).await;
    works(&api, "child").await;
    service.settles().await;
    service.verify_store();
    let told = service.log().lines().into_iter().filter(|line| line.contains(SECRET)).count();
    assert_eq!(told, 0, "the log tells the secret");
    service.stop().await;
}

/// A pause is answered, and can be resumed, before it is stored; what is not stored yet outlives a kill of the service.
#[tokio::test]
async fn a_pause_is_good_while_the_store_is_away_and_is_stored_when_it_is_back() {
    let (server, registry) = (S3Server::begin(), Registry::start());
    registry.push("box", "1", &Image::busybox()).await;
    server.wait();
    let mut service = Service::on_folder(server.settings("one"));
    service.restart().await;
    let api = service.api();
    api.ready(request(&registry, "app", "1")).await;
    let sandbox = api.sandbox("app").await;
    let started = "cat /kept; pidof sleep";
    let before = sandbox.sh(&format!("echo kept > /kept; {started}")).await;
    let captures = service.data().join("captures");
    assert!(names(&captures).is_empty());

    server.kill();
    let pause = async |api: &Api, id: &str| -> SnapshotInfo {
        api.post(&format!("/v1/sandboxes/{id}/hibernate"), json!({})).await.ok(200)
    };
    let resume = async |api: &Api, id: &str| {
        let resumed: Value = api.post(&format!("/v1/sandboxes/{id}/resume"), json!({})).await.ok(200);
        api.attach(resumed["id"].as_str().expect("an id")).await
    };
    let paused = pause(&api, &sandbox.id).await;
    assert!(paused.size_bytes > 0);
    assert_eq!(names(&captures).len(), 1, "it cannot be stored");
    let sandbox = resume(&api, &paused.id).await;
    assert_eq!(sandbox.sh(started).await, before);
    // The end of a paused one is final, whatever is not stored.
    let ended = api.sandbox("app").await;
    pause(&api, &ended.id).await;
    ended.delete().await;
    api.post(&format!("/v1/sandboxes/{}/resume", ended.id), json!({})).await.refused(404, "sandbox_not_found");

    pause(&api, &sandbox.id).await;
    service.kill().await;
    server.restart();
    service.restart().await;
    let api = service.api();
    let info: SandboxInfo = api.get(&format!("/v1/sandboxes/{}", sandbox.id)).await.ok(200);
    assert_eq!(info.status, SandboxStatus::Paused);
    // Of those that are over the raw files stay for a while.
    let stored = "a paused sandbox is stored";
    until("it is stored", Duration::from_secs(120), async || {
        service.log().lines().iter().any(|line| line.contains(stored) && line.contains(&sandbox.id))
    })
    .await;
    service.verify_store();
    let sandbox = resume(&api, &sandbox.id).await;
    assert_eq!(sandbox.sh(started).await, before);
    sandbox.delete().await;
    service.settles().await;
    service.stop().await;
}

#[tokio::test]
async fn builds_end_and_artifacts_are_whole_however_the_store_fails() {
    let seed = match std::env::var("NULLSPACE_TEST_SEED") {
        Ok(seed) => seed.parse().expect("NULLSPACE_TEST_SEED is a number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
    };
    println!("NULLSPACE_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (server, registry) = (S3Server::begin(), Registry::start());
    for tag in ["0", "1"] {
        registry.push("box", tag, &Image::busybox_variant(tag)).await;
    }
    server.wait();
    let proxy = Proxy::start(&server.address(), seed);
    let mut service = Service::on_folder(server.settings_by_way_of(&proxy.address(), "one"));
    service.set("NULLSPACE_BUILD_CONCURRENCY", "2");
    service.restart().await;
    let api = service.api();
    let (before, _) = service.memory_mib();

    // A busy and faulty network, and a server that is killed again and again while builds are under way.
    proxy.set(Shares { unavailable: 10, lost: 4, cut: 8 });
    // The operator learns each time that an attempt of a build failed for the store.
    service.log().expect_fault("the object store failed a build");
    let mut builds = Vec::new();
    for number in 0..4 {
        let mut wanted = request(&registry, &format!("app{number}"), &(number % 2).to_string());
        wanted["steps"] =
            json!([{"action": "run", "command": format!("head -c 3000000 /dev/urandom > /added # {number}")}]);
        builds.push(api.start(wanted).await.build_id);
    }
    let mut kills = 0;
    let most = if is_long() { LONG_KILLS } else { MOST_KILLS };
    while kills < most && !all_over(&api, &builds).await {
        tokio::time::sleep(Duration::from_millis(random.random_range(2000..9000))).await;
        server.kill();
        kills += 1;
        tokio::time::sleep(Duration::from_millis(random.random_range(200..3000))).await;
        server.restart();
    }
    let mut ready = Vec::new();
    for build in &builds {
        let finished = api.finished(build).await;
        if finished.build.status == Status::Ready {
            ready.push(finished.template().to_owned());
            continue;
        }
        // The store's fault is nobody's definition.
        println!("{finished:?}");
        let detail = finished.expect_status(Status::Error).build.error_detail.expect("a detail");
        assert!(detail.retryable, "{detail:?}");
    }
    let (_, most) = service.memory_mib();
    let counts = proxy.counts();
    println!("{} of {} builds ready after {kills} kills; {counts:?}", ready.len(), builds.len());
    println!("memory of the service: {before} MiB before, {most} MiB at most");
    // About a fifth of some ninety requests; which kind each is, is chance.
    assert!(counts.unavailable + counts.cut + counts.lost >= 5, "{counts:?}");
    assert!(most - before < GROWTH_MIB, "the service grew from {before} to {most} MiB");

    // What is named is whole, by way of the same network, and without what the folder has.
    service.verify_store();
    service.settles().await;
    service.stop().await;
    // An attempt that failed may leave a manifest or a pack that no row names, here and not there.
    service.collect_store();
    assert_eq!(not_stored(&service, &server, "one").await, BTreeSet::new());
    lose_caches(&service);
    service.restart().await;
    let api = service.api();
    for template in &ready {
        works(&api, template).await;
    }

    // Away for good: a build ends in bounded time, and says that it is worth another try.
    server.kill();
    let mut wanted = request(&registry, "late", "0");
    wanted["steps"] = json!([{"action": "run", "command": "head -c 1000000 /dev/urandom > /added # late"}]);
    let late = api.build(wanted).await;
    let build = late.build.build_id.clone();
    println!("{late:?}");
    let detail = late.expect_status(Status::Error).build.error_detail.expect("a detail");
    assert!(detail.retryable, "{detail:?}");
    let text = format!("{detail:?}");
    assert!(
        !text.contains(SECRET) && !text.contains(&proxy.address()),
        "the owner is told about the operator's store: {text}"
    );
    // What is cached goes on.
    if let Some(template) = ready.first() {
        works(&api, template).await;
    }
    server.restart();
    let again: Value = api.post(&format!("/v1/templates/builds/{build}/retry"), json!({})).await.ok(202);
    proxy.set(Shares::default());
    let again = api.finished(again["build_id"].as_str().unwrap()).await.expect_status(Status::Ready);
    works(&api, again.template()).await;
    service.settles().await;
    service.verify_store();
    service.stop().await;
}

#[tokio::test]
async fn a_store_that_is_away_empty_or_another_one_is_refused_and_nothing_is_changed() {
    let (server, registry) = (S3Server::begin(), Registry::start());
    registry.push("box", "1", &Image::busybox()).await;
    server.wait();
    let mut service = Service::on_folder(server.settings("one"));
    service.restart().await;
    service.api().ready(request(&registry, "app", "1")).await;
    service.settles().await;
    service.stop().await;
    // Another service's store, in the same bucket.
    let mut other = Service::on_folder(server.settings("other"));
    other.restart().await;
    other.stop().await;
    let id = |service: &Service| std::fs::read_to_string(service.data().join("store")).unwrap().trim().to_owned();
    let (own, of_other) = (id(&service), id(&other));
    assert_ne!(own, of_other);

    lose_caches(&service);
    let before = (server.objects("one").await, server.objects("other").await);
    assert!(before.0.keys().any(|name| name.starts_with("packs/")), "{before:?}");
    let serve = &["serve", "--listen", "127.0.0.1:0"][..];
    let forgotten = ["NULLSPACE_S3_BUCKET", "NULLSPACE_S3_ENDPOINT", "NULLSPACE_S3_PREFIX"].map(|name| (name, ""));
    for command in [serve, &["store", "gc"]] {
        let said = refusal(&service, command, &[("NULLSPACE_S3_PREFIX", "two")]);
        assert!(said.contains(BUCKET) && said.contains("two"), "an empty prefix: {said}");
        let said = refusal(&service, command, &[("NULLSPACE_S3_PREFIX", "other")]);
        assert!(said.contains(&own) && said.contains(&of_other), "another service's store: {said}");
        let said = refusal(&service, command, &forgotten);
        assert!(said.contains("and none of them is in"), "the settings are forgotten: {said}");
    }
    let said = refusal(&service, serve, &[("NULLSPACE_S3_BUCKET", "missing-bucket")]);
    assert!(said.contains("missing-bucket"), "{said}");
    let said = refusal(&service, serve, &[("AWS_SECRET_ACCESS_KEY", "canary-of-another-key")]);
    assert!(said.contains("credentials") && !said.contains("canary-of-another-key"), "{said}");
    let after = (server.objects("one").await, server.objects("other").await);
    assert_eq!(after, before);
    assert_eq!(server.objects("two").await.keys().collect::<Vec<_>>(), Vec::<&String>::new(), "an id was written");

    server.kill();
    let said = refusal(&service, serve, &[]);
    assert!(said.contains(BUCKET) && said.contains(&server.address()), "a server that is down: {said}");
    server.restart();
    service.verify_store();
    service.restart().await;
    works(&service.api(), "app").await;
    service.stop().await;
}

#[tokio::test]
async fn a_store_that_is_added_to_a_folder_gets_everything_that_the_folder_has() {
    let (server, registry) = (S3Server::begin(), Registry::start());
    for tag in ["1", "2"] {
        registry.push("box", tag, &Image::busybox_variant(tag)).await;
    }
    let mut service = Service::on_folder([]);
    service.restart().await;
    service.api().ready(request(&registry, "app", "1")).await;
    service.settles().await;
    service.stop().await;

    // By way of a network that loses a part of it: the upload is repeated until all is there.
    server.wait();
    let proxy = Proxy::start(&server.address(), 14);
    for (name, value) in server.settings_by_way_of(&proxy.address(), "one") {
        service.set(name, value);
    }
    service.restart().await;
    proxy.set(Shares { unavailable: 20, lost: 5, cut: 5 });
    let api = service.api();
    // Meanwhile it works.
    works(&api, "app").await;
    api.ready(request(&registry, "second", "2")).await;
    let stored = async || not_stored(&service, &server, "one").await.is_empty();
    until("everything is in the store", UPLOADED, stored).await;
    proxy.set(Shares::default());
    service.settles().await;
    service.stop().await;

    lose_caches(&service);
    service.restart().await;
    let api = service.api();
    for template in ["app", "second"] {
        works(&api, template).await;
    }
    service.settles().await;
    service.verify_store();
    service.stop().await;
}

#[tokio::test]
async fn a_finished_builds_log_and_an_uploaded_file_are_read_back_from_the_store() {
    let (server, registry) = (S3Server::begin(), Registry::start());
    registry.push("box", "1", &Image::busybox()).await;
    server.wait();
    let mut service = Service::on_folder(server.settings("one"));
    service.set("NULLSPACE_BUILD_LOG_COMPRESSION_SECS", "0");
    service.restart().await;
    let api = service.api();
    let content: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let blob = api.upload(&content).await;
    let copies = |name: &str, to: &str| {
        let mut request = request(&registry, name, "1");
        request["start_cmd"] = json!("for i in $(seq 1 300); do echo line $i; done; exec sleep 1000000");
        request["steps"] = json!([{"action": "copy", "sources": ["file"], "dst": to}]);
        request["build_context"] = json!({"files": [{"path": "file", "entry_type": "file", "blob_id": blob}]});
        request
    };
    let build = api.ready(copies("app", "/one/")).await.build.build_id;
    let log = api.stream(&build, "").await;
    let uploads = server.objects("one/blobs").await;
    assert_eq!(uploads.values().collect::<Vec<_>>(), [&300_000], "{uploads:?}");
    let stored = async || !server.objects("one/logs").await.is_empty();
    until("the log is in the store", COMPRESSED, stored).await;
    assert_eq!(api.stream(&build, "").await, log);
    service.settles().await;
    service.stop().await;

    // Neither is in the folder.
    lose_caches(&service);
    let folder = service.data();
    let left: Vec<_> = ["blobs", "logs"].iter().map(|name| (name, files_below(&folder.join(name)))).collect();
    assert!(left.iter().all(|(_, files)| *files == 0), "{left:?}");
    service.restart().await;
    let api = service.api();
    assert_eq!(api.stream(&build, "").await, log);
    assert_eq!(api.preflight(&content, false).await, (blob.clone(), false), "it need not be sent again");
    // Another target: the step is no cache hit.
    let built = api.ready(copies("again", "/other/")).await;
    let sandbox = api.sandbox(built.template()).await;
    let sum = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&content));
    assert_eq!(sandbox.sh("sha256sum /other/file").await.split(' ').next(), Some(sum.as_str()));
    sandbox.delete().await;
    service.settles().await;
    service.verify_store();
    service.stop().await;
}

fn files_below(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}
