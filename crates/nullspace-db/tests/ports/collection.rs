//! What is kept and what can go: by reference, never by age alone.

use nullspace_db::{BuildStatus, FinishReady, SandboxStatus};
use nullspace_types::{Caller, KnownFiles, Rootfs};

use crate::fixture::{
    Fixture, ROOTFS_KEY, at, cancel, entry, failure, is_not_found, new_sandbox, result, rootfs, streams,
};

async fn collectable(f: &Fixture, now: i64) -> Vec<nullspace_types::ArtifactId> {
    let unused = f.store.collectable_artifacts(at(now), 100).await.unwrap();
    for one in &unused {
        assert!(f.store.known_files().await.unwrap().artifacts.contains_key(&one.folder));
    }
    unused.into_iter().map(|one| one.id).collect()
}

async fn folder(f: &Fixture, artifact: nullspace_types::ArtifactId) -> String {
    f.store.get_artifact(artifact).await.unwrap().folder
}

async fn collectable_rootfs(f: &Fixture, unused_since: i64) -> Vec<Rootfs> {
    f.store.collectable_rootfs(at(unused_since), 100).await.unwrap()
}

async fn sandbox(f: &Fixture, caller: &Caller, artifact: nullspace_types::ArtifactId) -> nullspace_types::SandboxId {
    let asked = new_sandbox(artifact);
    let id = asked.id;
    f.store.insert_sandbox(caller, asked, at(2)).await.unwrap();
    id
}

#[tokio::test]
async fn a_tagged_artifact_is_kept_for_ever() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    assert!(collectable(&f, 1_000_000).await.is_empty());
    assert!(!f.store.purge_artifact(build.artifact_id, at(1_000_000)).await.unwrap());
    assert!(f.resolve(&caller, "web").await.is_ok());
}

#[tokio::test]
async fn an_artifact_that_lost_its_tags_is_kept_until_its_retention_is_over() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let old = f.ready(&caller, "web", &["default"], at(1)).await;
    f.ready(&caller, "web", &["default"], at(2)).await;
    assert!(collectable(&f, 999).await.is_empty());
    assert!(!f.store.purge_artifact(old.artifact_id, at(999)).await.unwrap());
    assert_eq!(collectable(&f, 1000).await, [old.artifact_id]);
    assert!(f.store.purge_artifact(old.artifact_id, at(1000)).await.unwrap());
    assert!(!f.store.purge_artifact(old.artifact_id, at(1000)).await.unwrap());
    assert!(is_not_found(&f.resolve(&caller, &old.artifact_id.to_string()).await));
    assert!(is_not_found(&f.store.get_artifact(old.artifact_id).await));
    let build = f.store.get_build(&caller, old.id).await.unwrap();
    assert_eq!((build.status, build.artifact.unwrap().deleted_at), (BuildStatus::Ready, Some(at(1000))));
}

#[tokio::test]
async fn a_deleted_templates_artifact_is_freed_when_no_sandbox_uses_it() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    let running = sandbox(&f, &caller, build.artifact_id).await;
    let kept = folder(&f, build.artifact_id).await;
    f.delete(&caller, "web", at(3)).await.unwrap();
    assert!(collectable(&f, 4).await.is_empty());
    assert!(!f.store.purge_artifact(build.artifact_id, at(4)).await.unwrap());
    assert!(f.store.known_files().await.unwrap().artifacts.contains_key(&kept));
    f.store.set_sandbox_status(running, SandboxStatus::Destroyed, None, at(5)).await.unwrap();
    assert_eq!(collectable(&f, 5).await, [build.artifact_id]);
    assert!(f.store.purge_artifact(build.artifact_id, at(5)).await.unwrap());
    assert!(f.store.known_files().await.unwrap().artifacts.is_empty());
}

#[tokio::test]
async fn a_purged_artifact_keeps_no_values() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    f.delete(&caller, "web", at(3)).await.unwrap();
    assert!(f.store.purge_artifact(build.artifact_id, at(5)).await.unwrap());
    let values = f.query("SELECT runtime FROM artifacts").await;
    assert_eq!(values, ["null"]);
}

#[tokio::test]
async fn a_parent_is_kept_while_a_child_is_built_from_it() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let parent = f.ready(&caller, "base", &["default"], at(1)).await;
    f.accept(&caller, "child").await;
    let (lease, _) = f.run("w", at(2)).await;
    f.store.hold_artifact(&lease, parent.artifact_id).await.unwrap();
    f.store.hold_artifact(&lease, parent.artifact_id).await.unwrap();
    f.delete(&caller, "base", at(3)).await.unwrap();
    assert!(collectable(&f, 4).await.is_empty());
    // Whoever takes the build next still relies on it.
    let (next, _) = f.run("w2", at(100)).await;
    assert!(collectable(&f, 100).await.is_empty());
    f.store.finish_error(&next, failure(), at(101)).await.unwrap();
    assert_eq!(collectable(&f, 101).await, [parent.artifact_id]);
}

#[tokio::test]
async fn a_root_image_is_kept_for_the_build_that_found_it_and_the_artifacts_on_it() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    f.accept(&caller, "web").await;
    let (lease, _) = f.run("w", at(1)).await;
    assert_eq!(f.store.find_rootfs(&lease, ROOTFS_KEY, at(1)).await.unwrap(), None);
    assert_eq!(f.store.put_rootfs(&lease, rootfs("a"), at(1)).await.unwrap(), rootfs("a"));
    assert!(collectable_rootfs(&f, 100).await.is_empty());
    f.store.request_cancel(&caller, lease.build, cancel("x"), at(2)).await.unwrap();
    f.store.finish_cancelled(&lease, entry("cancelled"), at(2)).await.unwrap();
    // Unused now, and kept as a cache until it was unused for long.
    assert!(collectable_rootfs(&f, 1).await.is_empty());
    assert_eq!(collectable_rootfs(&f, 2).await, [rootfs("a")]);
    assert!(!f.store.purge_rootfs(ROOTFS_KEY, at(1)).await.unwrap());
    // The next build finds it, which is a use.
    f.accept(&caller, "web").await;
    let (lease, _) = f.run("w", at(50)).await;
    assert_eq!(f.store.find_rootfs(&lease, ROOTFS_KEY, at(50)).await.unwrap(), Some(rootfs("a")));
    assert!(!f.store.purge_rootfs(ROOTFS_KEY, at(100)).await.unwrap());
    let finished = f.store.finish_ready(&lease, crate::fixture::result(), at(60)).await.unwrap();
    assert!(matches!(finished, nullspace_db::Finished::Ready(_)));
    assert!(!f.store.purge_rootfs(ROOTFS_KEY, at(100)).await.unwrap());
    f.delete(&caller, "web", at(70)).await.unwrap();
    assert!(!f.store.purge_rootfs(ROOTFS_KEY, at(100)).await.unwrap());
    assert!(f.store.purge_artifact(lease_artifact(&f, &caller, lease.build).await, at(71)).await.unwrap());
    assert!(f.store.known_files().await.unwrap().rootfs.contains_key(&rootfs("a").file));
    assert!(f.store.purge_rootfs(ROOTFS_KEY, at(100)).await.unwrap());
    assert_eq!(f.store.known_files().await.unwrap(), KnownFiles::default());
}

async fn lease_artifact(f: &Fixture, caller: &Caller, build: nullspace_types::BuildId) -> nullspace_types::ArtifactId {
    f.store.get_build(caller, build).await.unwrap().artifact_id
}

#[tokio::test]
async fn of_two_builds_that_make_the_same_root_image_one_file_wins() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    f.accept(&caller, "a").await;
    f.accept(&caller, "b").await;
    let (first, _) = f.run("w1", at(1)).await;
    let (second, _) = f.run("w2", at(1)).await;
    assert_eq!(f.store.put_rootfs(&first, rootfs("a"), at(1)).await.unwrap(), rootfs("a"));
    assert_eq!(f.store.put_rootfs(&second, rootfs("b"), at(1)).await.unwrap(), rootfs("a"));
    assert_eq!(f.store.known_files().await.unwrap().rootfs, [(rootfs("a").file, rootfs("a").manifest)].into());
    // Both rely on the one that won.
    f.store.finish_error(&first, failure(), at(2)).await.unwrap();
    assert!(!f.store.purge_rootfs(ROOTFS_KEY, at(100)).await.unwrap());
    f.store.finish_error(&second, failure(), at(2)).await.unwrap();
    assert!(f.store.purge_rootfs(ROOTFS_KEY, at(100)).await.unwrap());
}

#[tokio::test]
async fn what_is_lost_from_the_disk_is_not_offered_any_more_and_can_be_made_anew() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let one = f.ready(&caller, "one", &["default"], at(1)).await;
    let two = f.ready(&caller, "two", &["default"], at(1)).await;
    let kept = folder(&f, two.artifact_id).await;
    let lost = KnownFiles {
        artifacts: [(folder(&f, one.artifact_id).await, Some(streams("e")))].into(),
        ..KnownFiles::default()
    };
    f.store.forget_lost(&lost, at(5)).await.unwrap();
    assert!(is_not_found(&f.resolve(&caller, "one").await));
    assert!(f.resolve(&caller, "two").await.is_ok());
    assert_eq!(f.store.known_files().await.unwrap().artifacts, [(kept, Some(streams("e")))].into());
    let lost = KnownFiles { artifacts: Default::default(), rootfs: [(rootfs("a").file, None)].into() };
    f.store.forget_lost(&lost, at(6)).await.unwrap();
    assert!(is_not_found(&f.resolve(&caller, "two").await));
    assert_eq!(f.store.known_files().await.unwrap(), KnownFiles::default());
    f.accept(&caller, "two").await;
    let (lease, _) = f.run("w", at(7)).await;
    assert_eq!(f.store.find_rootfs(&lease, ROOTFS_KEY, at(7)).await.unwrap(), None);
    assert_eq!(f.store.put_rootfs(&lease, rootfs("b"), at(7)).await.unwrap(), rootfs("b"));
}

#[tokio::test]
async fn a_snapshot_of_an_older_version_gets_its_streams_once() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let old = f.ready_with(&caller, "old", FinishReady { streams: None, ..result() }, at(1)).await;
    let folder = folder(&f, old.artifact_id).await;
    assert_eq!(f.store.get_artifact(old.artifact_id).await.unwrap().streams, None);
    assert_eq!(f.store.known_files().await.unwrap().artifacts, [(folder.clone(), None)].into());
    assert!(f.store.set_artifact_streams(&folder, &streams("a")).await.unwrap());
    assert!(!f.store.set_artifact_streams(&folder, &streams("b")).await.unwrap());
    assert!(!f.store.set_artifact_streams("no such", &streams("b")).await.unwrap());
    assert_eq!(f.store.get_artifact(old.artifact_id).await.unwrap().streams, Some(streams("a")));
    // A purged one has none, and gets none.
    f.delete(&caller, "old", at(2)).await.unwrap();
    assert!(f.store.purge_artifact(old.artifact_id, at(3)).await.unwrap());
    assert!(!f.store.set_artifact_streams(&folder, &streams("b")).await.unwrap());
}

#[tokio::test]
async fn similar_snapshots_are_ones_own_and_the_systems() {
    let f = Fixture::new().await;
    let (own, other, system) = (f.tenant("acme").await, f.tenant("other").await, f.system().await);
    for (caller, name, nonce) in [(&own, "web", "a"), (&own, "web", "b"), (&own, "api", "c"), (&other, "x", "d")] {
        f.ready_with(caller, name, FinishReady { streams: Some(streams(nonce)), ..result() }, at(1)).await;
    }
    f.ready_with(&system, "base", FinishReady { streams: Some(streams("f")), ..result() }, at(1)).await;
    f.accept(&own, "web").await;
    let (lease, _) = f.run("w", at(9)).await;
    let found = f.store.similar_snapshots(lease.build).await.unwrap();
    assert!(found.contains(&streams("f")), "{found:?}");
    assert!(!found.contains(&streams("d")), "another tenant's");
    assert!((2..=3).contains(&found.len()), "{found:?}");
}

#[tokio::test]
async fn a_root_image_of_an_older_version_gets_its_manifest_once() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    f.accept(&caller, "web").await;
    let (lease, _) = f.run("worker", at(1)).await;
    let old = Rootfs { manifest: None, ..rootfs("a") };
    assert_eq!(f.store.put_rootfs(&lease, old.clone(), at(1)).await.unwrap(), old);
    assert!(f.store.set_rootfs_manifest(&old.file, "one").await.unwrap());
    assert!(!f.store.set_rootfs_manifest(&old.file, "two").await.unwrap());
    assert!(!f.store.set_rootfs_manifest("another", "two").await.unwrap());
    let found = f.store.find_rootfs(&lease, ROOTFS_KEY, at(2)).await.unwrap().unwrap();
    assert_eq!(found.manifest.as_deref(), Some("one"));
    assert_eq!(f.store.known_files().await.unwrap().rootfs, [(old.file, found.manifest)].into());
}

#[tokio::test]
async fn an_artifact_is_allotted_from_the_moment_on_at_which_its_build_is_accepted() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let ready = f.ready(&caller, "web", &["default"], at(1)).await;
    let waiting = f.accept(&caller, "web").await;
    let foreign = nullspace_types::ArtifactId::new();
    let asked = [ready.artifact_id, waiting.artifact_id, foreign].into();
    assert_eq!(f.store.allotted(&asked).await.unwrap(), [ready.artifact_id, waiting.artifact_id].into());
}
