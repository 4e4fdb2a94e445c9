//! Promotions of snapshots to templates.

use nullspace_db::{
    Artifact, DbError, FinishReady, Idempotency, NewBuild, NewSnapshot, Promotion, Recorded, SandboxStatus, Snapshot,
    SnapshotKind, SourceType,
};
use nullspace_types::{ArtifactId, Caller, TemplateRef};

use crate::fixture::{
    Fixture, ROOTFS_KEY, at, entry, is_conflict, is_not_found, new_build, new_sandbox, new_snapshot, result, streams,
};

/// A tenant with a snapshot of a sandbox of its template `web`.
async fn one(kind: SnapshotKind) -> (Fixture, Caller, Snapshot) {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    let asked = new_sandbox(build.artifact_id);
    let id = asked.id;
    f.store.insert_sandbox(&caller, asked, at(2)).await.unwrap();
    f.store.set_sandbox_status(id, SandboxStatus::Running, None, at(3)).await.unwrap();
    match f.store.record_snapshot(new_snapshot(id, kind), None, at(10)).await.unwrap() {
        Recorded::New(snapshot) => (f, caller, snapshot),
        Recorded::Repeated(snapshot) => panic!("{snapshot:?} was there before"),
    }
}

fn promotion(snapshot: &Snapshot, name: &str, tags: &[&str]) -> Promotion {
    Promotion {
        snapshot: snapshot.id,
        build: NewBuild { source_type: SourceType::Snapshot, ..new_build(name, tags) },
        first: entry("start"),
        ready: FinishReady { streams: snapshot.streams.clone(), ..result() },
        most: 3,
    }
}

async fn artifact(f: &Fixture, caller: &Caller, reference: &str) -> Artifact {
    f.resolve(caller, reference).await.unwrap().artifact
}

#[tokio::test]
async fn the_template_has_the_snapshots_files_and_keeps_them_when_the_snapshot_is_deleted() {
    for kind in [SnapshotKind::Kept, SnapshotKind::Pause] {
        let (f, caller, snapshot) = one(kind).await;
        let made = f.store.promote_snapshot(&caller, promotion(&snapshot, "warm", &["default", "v1"]), at(20)).await;
        let made = made.unwrap();
        assert_eq!(made.template.canonical_ref(), "acme/warm");
        assert_eq!(made.tags.len(), 2);
        let stored = artifact(&f, &caller, "warm:v1").await;
        assert_eq!(stored, made.artifact);
        assert_eq!((&stored.streams, stored.source_type), (&snapshot.streams, SourceType::Snapshot));
        assert_eq!(stored.rootfs.key, ROOTFS_KEY);
        let build = f.store.get_build(&caller, stored.build).await.unwrap();
        assert_eq!((build.status.as_str(), build.finished_at), ("ready", Some(at(20))));

        // The snapshot goes, and its sandbox.
        f.store.set_sandbox_status(snapshot.sandbox, SandboxStatus::Destroyed, None, at(30)).await.unwrap();
        if kind == SnapshotKind::Kept {
            f.store.delete_snapshot(&caller, snapshot.id, at(30)).await.unwrap();
        }
        f.store.snapshot_removed(snapshot.id).await.unwrap();
        f.delete(&caller, "web", at(31)).await.unwrap();
        let known = f.store.known_files().await.unwrap();
        assert_eq!(known.artifacts.get(&stored.folder), Some(&snapshot.streams));
        assert!(!known.artifacts.contains_key(&snapshot.folder));
        assert!(f.store.collectable_rootfs(at(9000), 10).await.unwrap().is_empty(), "its root image is in use");
        let unused = f.store.collectable_artifacts(at(9000), 10).await.unwrap();
        assert!(unused.iter().all(|unused| unused.id != stored.id), "a tag points to it");
        assert_eq!(artifact(&f, &caller, "warm").await.id, stored.id);
    }
}

#[tokio::test]
async fn a_new_version_of_an_own_template_moves_only_its_tags() {
    let (f, caller, snapshot) = one(SnapshotKind::Kept).await;
    let before = artifact(&f, &caller, "web").await;
    f.store.promote_snapshot(&caller, promotion(&snapshot, "web", &["warm"]), at(20)).await.unwrap();
    assert_eq!(artifact(&f, &caller, "web").await.id, before.id);
    assert_ne!(artifact(&f, &caller, "web:warm").await.id, before.id);
}

#[tokio::test]
async fn names_that_clash_and_snapshots_that_are_over_or_anothers_are_refused_and_leave_nothing() {
    let (f, caller, snapshot) = one(SnapshotKind::Kept).await;
    let rename: TemplateRef = "web".parse().unwrap();
    f.store.rename_template(&caller, &rename, &"site".parse().unwrap(), at(15)).await.unwrap();
    let alias = f.store.promote_snapshot(&caller, promotion(&snapshot, "web", &["default"]), at(20)).await;
    assert!(is_conflict(&alias), "{alias:?}");
    let other = f.tenant("other").await;
    let foreign = f.store.promote_snapshot(&other, promotion(&snapshot, "warm", &["default"]), at(20)).await;
    assert!(is_not_found(&foreign), "{foreign:?}");
    let mut wrong = promotion(&snapshot, "warm", &["default"]);
    wrong.ready.streams = Some(streams("a"));
    assert!(is_conflict(&f.store.promote_snapshot(&caller, wrong, at(20)).await));
    let capture = NewSnapshot { streams: None, ..new_snapshot(snapshot.sandbox, SnapshotKind::Kept) };
    let Recorded::New(capture) = f.store.record_snapshot(capture, None, at(10)).await.unwrap() else { panic!() };
    assert!(is_conflict(&f.store.promote_snapshot(&caller, promotion(&capture, "warm", &["default"]), at(20)).await));
    let untagged = f.store.promote_snapshot(&caller, promotion(&snapshot, "warm", &[]), at(20)).await;
    assert!(is_conflict(&untagged));
    f.store.delete_snapshot(&caller, snapshot.id, at(30)).await.unwrap();
    let over = f.store.promote_snapshot(&caller, promotion(&snapshot, "warm", &["default"]), at(31)).await;
    assert!(is_not_found(&over), "{over:?}");
    assert!(is_not_found(&f.resolve(&caller, "warm").await));
    assert_eq!(f.store.list_templates(&caller).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_repeated_request_is_answered_with_the_first_ones_result() {
    let (f, caller, snapshot) = one(SnapshotKind::Kept).await;
    let asked = |digest: &str| {
        let mut asked = promotion(&snapshot, "warm", &["default"]);
        asked.build.idempotency = Some(Idempotency { key: "k".to_owned(), request_digest: digest.to_owned() });
        asked
    };
    let first = f.store.promote_snapshot(&caller, asked("1"), at(20)).await.unwrap();
    f.store.delete_snapshot(&caller, snapshot.id, at(30)).await.unwrap();
    assert_eq!(f.store.promote_snapshot(&caller, asked("1"), at(31)).await.unwrap(), first);
    assert!(is_conflict(&f.store.promote_snapshot(&caller, asked("2"), at(32)).await));
}

#[tokio::test]
async fn an_earlier_promotion_is_found_by_its_key_and_their_number_is_limited() {
    let (f, caller, snapshot) = one(SnapshotKind::Kept).await;
    let key = |digest: &str| Idempotency { key: "k".to_owned(), request_digest: digest.to_owned() };
    let before = async |repeat: Option<&Idempotency>| f.store.promoted_before(&caller, repeat, 3).await;
    assert_eq!(before(Some(&key("1"))).await.unwrap(), None);
    let mut asked = promotion(&snapshot, "a", &["default"]);
    asked.build.idempotency = Some(key("1"));
    let first = f.store.promote_snapshot(&caller, asked.clone(), at(20)).await.unwrap();
    assert_eq!(before(Some(&key("1"))).await.unwrap(), Some(first.clone()));
    assert!(is_conflict(&before(Some(&key("2"))).await));
    for name in ["b", "c"] {
        assert_eq!(before(None).await.unwrap(), None);
        let mut asked = promotion(&snapshot, name, &["default"]);
        asked.ready.folder = format!("{}.{}", ArtifactId::new(), "e".repeat(32));
        f.store.promote_snapshot(&caller, asked, at(21)).await.unwrap();
    }
    let limited = |result| matches!(result, Err(DbError::LimitReached { limit: 3, .. }));
    assert!(limited(before(None).await.map(drop)));
    assert!(limited(
        f.store.promote_snapshot(&caller, promotion(&snapshot, "d", &["default"]), at(22)).await.map(drop)
    ));
    // A repetition is none more.
    assert_eq!(f.store.promote_snapshot(&caller, asked, at(23)).await.unwrap(), first);
    f.delete(&caller, "b", at(24)).await.unwrap();
    assert_eq!(before(None).await.unwrap(), None, "a deleted one makes place");
}
