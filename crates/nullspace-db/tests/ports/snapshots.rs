//! Snapshots of sandboxes: pauses and resumes that lose nothing, and snapshots that are kept for others.

use nullspace_db::{
    Database, DbError, Idempotency, Inserted, NewSandbox, NewSnapshot, Recorded, Sandbox, SandboxStatus, Snapshot,
    SnapshotCounts, SnapshotFilter, SnapshotKind,
};
use nullspace_types::{ArtifactId, Caller, SandboxId, SnapshotId};
use serde_json::json;

use crate::fixture::{Fixture, at, is_conflict, is_not_found, new_sandbox, new_snapshot, streams};

/// A sandbox that runs, with variables.
async fn running(f: &Fixture, caller: &Caller, artifact: ArtifactId) -> Sandbox {
    let asked = NewSandbox {
        sealed_envs: Some(b"sealed".to_vec()),
        metadata: json!({ "label": "a" }),
        ..new_sandbox(artifact)
    };
    let id = asked.id;
    f.store.insert_sandbox(caller, asked, at(2)).await.unwrap();
    f.store.set_sandbox_status(id, SandboxStatus::Running, None, at(3)).await.unwrap()
}

async fn recorded(f: &Fixture, sandbox: SandboxId, kind: SnapshotKind) -> Snapshot {
    match f.store.record_snapshot(new_snapshot(sandbox, kind), None, at(10)).await.unwrap() {
        Recorded::New(snapshot) => snapshot,
        Recorded::Repeated(snapshot) => panic!("{snapshot:?} was there before"),
    }
}

/// The row of a sandbox that starts from a snapshot.
async fn starting(f: &Fixture, caller: &Caller, snapshot: &Snapshot) -> SandboxId {
    let asked = NewSandbox { from_snapshot: Some(snapshot.id), ..new_sandbox(snapshot.artifact) };
    let id = asked.id;
    f.store.insert_sandbox(caller, asked, at(11)).await.unwrap();
    id
}

async fn status(f: &Fixture, caller: &Caller, sandbox: SandboxId) -> SandboxStatus {
    f.store.get_sandbox(caller, sandbox).await.unwrap().status
}

/// A tenant with a running sandbox.
async fn one() -> (Fixture, Caller, Sandbox) {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    let sandbox = running(&f, &caller, build.artifact_id).await;
    (f, caller, sandbox)
}

#[tokio::test]
async fn a_paused_sandbox_is_stored_and_another_one_runs_in_its_place() {
    let (f, caller, sandbox) = one().await;
    let new = new_snapshot(sandbox.id, SnapshotKind::Pause);
    let Recorded::New(stored) = f.store.record_snapshot(new.clone(), Some(at(5000)), at(10)).await.unwrap() else {
        panic!("it is new")
    };
    let expected = Snapshot {
        evicted: false,
        id: new.id,
        tenant: caller.tenant,
        kind: SnapshotKind::Pause,
        sandbox: sandbox.id,
        artifact: sandbox.artifact,
        folder: new.folder,
        streams: new.streams,
        summary: new.summary,
        size_bytes: new.size_bytes,
        stored_bytes: new.stored_bytes,
        metadata: new.metadata,
        template_ref: sandbox.template_ref.clone(),
        config: sandbox.config.clone(),
        sandbox_metadata: json!({ "label": "a" }),
        sealed_envs: Some(b"sealed".to_vec()),
        created_at: at(10),
    };
    assert_eq!(stored, expected);
    assert_eq!(f.store.get_snapshot(&caller, stored.id).await.unwrap(), expected);
    let paused = f.store.get_sandbox(&caller, sandbox.id).await.unwrap();
    assert_eq!((paused.status, paused.snapshot), (SandboxStatus::Paused, Some(stored.id)));
    // Its own timeout is no time to end it.
    assert_eq!((paused.timeout_at, paused.ended_at), (Some(at(5000)), None));

    let resumed = starting(&f, &caller, &stored).await;
    let running = f.store.resume_paused(stored.id, resumed, Some(at(700)), at(12)).await.unwrap();
    assert_eq!((running.id, running.status), (resumed, SandboxStatus::Running));
    assert_eq!((running.started_at, running.timeout_at), (Some(at(12)), Some(at(700))));
    assert_eq!(running.snapshot, Some(stored.id), "what it was made from");
    let old = f.store.get_sandbox(&caller, sandbox.id).await.unwrap();
    assert_eq!((old.status, old.ended_at), (SandboxStatus::Destroyed, Some(at(12))));
    assert_eq!(old.reason, Some(format!("resumed as {resumed}")));
    assert_eq!(old.sealed_envs, None, "variables stay with nobody who has ended");
    assert!(is_not_found(&f.store.get_snapshot(&caller, stored.id).await));
    assert_eq!(f.store.count_snapshots(&caller).await.unwrap(), SnapshotCounts::default());

    // And again: it was no one-way street.
    let second = recorded(&f, resumed, SnapshotKind::Pause).await;
    let third = starting(&f, &caller, &second).await;
    f.store.resume_paused(second.id, third, None, at(20)).await.unwrap();
    assert_eq!(status(&f, &caller, third).await, SandboxStatus::Running);
}

#[tokio::test]
async fn a_capture_has_no_files_until_it_is_stored_or_over() {
    let (f, caller, sandbox) = one().await;
    let capture =
        |sandbox| NewSnapshot { streams: None, stored_bytes: 0, ..new_snapshot(sandbox, SnapshotKind::Pause) };
    let Recorded::New(first) = f.store.record_snapshot(capture(sandbox.id), None, at(10)).await.unwrap() else {
        panic!("it is new")
    };
    let second = running(&f, &caller, sandbox.artifact).await;
    let Recorded::New(second) = f.store.record_snapshot(capture(second.id), None, at(11)).await.unwrap() else {
        panic!("it is new")
    };
    let third = running(&f, &caller, sandbox.artifact).await;
    recorded(&f, third.id, SnapshotKind::Pause).await;
    assert_eq!((&first.streams, first.stored_bytes), (&None, 0));
    assert_eq!(f.store.captures("host-1").await.unwrap(), [first.clone(), second.clone()]);
    assert!(f.store.captures("host-2").await.unwrap().is_empty());
    let known = || async { f.store.known_files().await.unwrap().artifacts };
    assert_eq!(known().await.get(&first.folder), Some(&None), "the folder must be there");

    assert!(f.store.set_streams(first.id, &streams("9"), 77).await.unwrap());
    assert!(!f.store.set_streams(first.id, &streams("8"), 78).await.unwrap(), "it has them");
    let stored = f.store.get_snapshot(&caller, first.id).await.unwrap();
    assert_eq!((&stored.streams, stored.stored_bytes), (&Some(streams("9")), 77));
    assert_eq!(known().await.get(&first.folder), Some(&Some(streams("9"))));
    assert_eq!(f.store.captures("host-1").await.unwrap(), std::slice::from_ref(&second));
    // Its sandbox ends meanwhile.
    f.store.set_sandbox_status(second.sandbox, SandboxStatus::Destroyed, None, at(12)).await.unwrap();
    assert!(!f.store.set_streams(second.id, &streams("7"), 1).await.unwrap());
    assert!(!f.store.set_streams(SnapshotId::new(), &streams("7"), 1).await.unwrap());
    assert!(f.store.captures("host-1").await.unwrap().is_empty());
    assert_eq!(known().await.get(&second.folder), Some(&None), "its files are there until they are removed");
}

#[tokio::test]
async fn of_two_resumes_one_wins() {
    for round in 0..10 {
        let (f, caller, sandbox) = one().await;
        let stored = recorded(&f, sandbox.id, SnapshotKind::Pause).await;
        let (a, b) = (starting(&f, &caller, &stored).await, starting(&f, &caller, &stored).await);
        let other = f.another().await;
        let (first, second) = tokio::join!(
            f.store.resume_paused(stored.id, a, None, at(12)),
            other.resume_paused(stored.id, b, None, at(12)),
        );
        assert!(first.is_ok() != second.is_ok(), "round {round}: {first:?} {second:?}");
        let (won, lost) = if first.is_ok() { (a, b) } else { (b, a) };
        assert!(is_conflict(&first) || is_conflict(&second));
        assert_eq!(status(&f, &caller, won).await, SandboxStatus::Running);
        assert_eq!(status(&f, &caller, lost).await, SandboxStatus::Creating, "its maker ends it");
    }
}

#[tokio::test]
async fn a_paused_sandbox_is_either_ended_or_resumed() {
    for round in 0..10 {
        let (f, caller, sandbox) = one().await;
        let stored = recorded(&f, sandbox.id, SnapshotKind::Pause).await;
        let resumed = starting(&f, &caller, &stored).await;
        let other = f.another().await;
        let (ended, resume) = tokio::join!(
            f.store.set_sandbox_status(sandbox.id, SandboxStatus::Destroyed, Some("asked"), at(12)),
            other.resume_paused(stored.id, resumed, None, at(12)),
        );
        assert!(ended.is_ok() != resume.is_ok(), "round {round}: {ended:?} {resume:?}");
        assert!(is_conflict(&ended) || is_conflict(&resume));
        assert!(is_not_found(&f.store.get_snapshot(&caller, stored.id).await), "over in either case");
        let expected = if resume.is_ok() { SandboxStatus::Running } else { SandboxStatus::Creating };
        assert_eq!(status(&f, &caller, resumed).await, expected);
    }
}

#[tokio::test]
async fn the_end_of_a_paused_sandbox_is_final_and_ends_its_snapshot() {
    let (f, caller, sandbox) = one().await;
    let stored = recorded(&f, sandbox.id, SnapshotKind::Pause).await;
    assert!(is_conflict(&f.store.set_sandbox_status(sandbox.id, SandboxStatus::Running, None, at(11)).await));
    assert!(is_conflict(&f.store.delete_snapshot(&caller, stored.id, at(11)).await), "the sandbox is in it");
    let over = f.store.set_sandbox_status(sandbox.id, SandboxStatus::Destroyed, None, at(11)).await.unwrap();
    assert_eq!((over.status, over.ended_at), (SandboxStatus::Destroyed, Some(at(11))));
    assert!(is_not_found(&f.store.get_snapshot(&caller, stored.id).await));
    assert!(is_not_found(&f.store.delete_snapshot(&caller, stored.id, at(12)).await));
    let late = NewSandbox { from_snapshot: Some(stored.id), ..new_sandbox(stored.artifact) };
    assert!(is_not_found(&f.store.insert_sandbox(&caller, late, at(12)).await));
    assert!(is_conflict(&f.store.continue_paused(sandbox.id, None, at(12)).await));
    assert!(is_conflict(&f.store.mark_to_continue(sandbox.id, None).await));
}

#[tokio::test]
async fn a_pause_needs_a_sandbox_that_runs() {
    let (f, caller, sandbox) = one().await;
    let record = |kind, id| f.store.record_snapshot(new_snapshot(id, kind), None, at(10));
    assert!(is_not_found(&record(SnapshotKind::Kept, SandboxId::new()).await));
    let creating = new_sandbox(sandbox.artifact);
    f.store.insert_sandbox(&caller, creating.clone(), at(2)).await.unwrap();
    for kind in [SnapshotKind::Kept, SnapshotKind::Pause] {
        assert!(is_conflict(&record(kind, creating.id).await));
    }
    record(SnapshotKind::Pause, sandbox.id).await.unwrap();
    for kind in [SnapshotKind::Kept, SnapshotKind::Pause] {
        assert!(is_conflict(&record(kind, sandbox.id).await), "it is paused");
    }
    f.store.set_sandbox_status(sandbox.id, SandboxStatus::Error, Some("x"), at(11)).await.unwrap();
    assert!(is_conflict(&record(SnapshotKind::Kept, sandbox.id).await), "it is over");
}

/// A pause and a fault of the machine at the same moment: the sandbox is paused, or it is over and nothing names the snapshot.
#[tokio::test]
async fn of_a_pause_and_an_end_both_or_one_happen_in_turn() {
    for _ in 0..10 {
        let (f, caller, sandbox) = one().await;
        let other = f.another().await;
        let new = new_snapshot(sandbox.id, SnapshotKind::Pause);
        let snapshot = new.id;
        let (paused, ended) = tokio::join!(
            f.store.record_snapshot(new, None, at(10)),
            other.set_sandbox_status(sandbox.id, SandboxStatus::Error, Some("fault"), at(10)),
        );
        ended.unwrap();
        assert!(paused.is_ok() || is_conflict(&paused), "{paused:?}");
        assert_eq!(status(&f, &caller, sandbox.id).await, SandboxStatus::Error);
        assert!(is_not_found(&f.store.get_snapshot(&caller, snapshot).await));
        assert_eq!(f.store.known_files().await.unwrap().artifacts.len(), if paused.is_ok() { 2 } else { 1 });
    }
}

#[tokio::test]
async fn a_repeated_request_records_one_snapshot() {
    let (f, caller, sandbox) = one().await;
    let asked = |key: &str, digest: &str, kind| NewSnapshot {
        idempotency: Some(Idempotency { key: key.to_owned(), request_digest: digest.to_owned() }),
        ..new_snapshot(sandbox.id, kind)
    };
    let record = |new| f.store.record_snapshot(new, None, at(10));
    let other = f.another().await;
    let (a, b) = tokio::join!(
        record(asked("k", "one", SnapshotKind::Kept)),
        other.record_snapshot(asked("k", "one", SnapshotKind::Kept), None, at(10))
    );
    let (made, repeated) = match (a.unwrap(), b.unwrap()) {
        (Recorded::New(made), Recorded::Repeated(repeated)) | (Recorded::Repeated(repeated), Recorded::New(made)) => {
            (made, repeated)
        }
        both => panic!("{both:?}"),
    };
    assert_eq!(made, repeated);
    assert!(is_conflict(&record(asked("k", "two", SnapshotKind::Kept)).await));
    // A pause is repeated although the sandbox does not run any more.
    let Recorded::New(paused) = record(asked("p", "one", SnapshotKind::Pause)).await.unwrap() else { panic!() };
    let again = record(asked("p", "one", SnapshotKind::Pause)).await.unwrap();
    assert_eq!(again, Recorded::Repeated(paused.clone()));
    assert_eq!(status(&f, &caller, sandbox.id).await, SandboxStatus::Paused);
    // The key is free after its time.
    assert_eq!(f.store.remove_expired(nullspace_db::Expiring::IdempotencyKeys, at(10), 10).await.unwrap(), 2);
    assert!(is_conflict(&record(asked("p", "one", SnapshotKind::Pause)).await));
    assert!(f.store.get_snapshot(&caller, paused.id).await.is_ok(), "the row stays");
}

#[tokio::test]
async fn many_sandboxes_start_from_a_kept_snapshot_until_it_is_deleted() {
    let (f, caller, sandbox) = one().await;
    let kept = recorded(&f, sandbox.id, SnapshotKind::Kept).await;
    assert_eq!(status(&f, &caller, sandbox.id).await, SandboxStatus::Running, "it goes on");
    let (a, b) = (starting(&f, &caller, &kept).await, starting(&f, &caller, &kept).await);
    for one in [a, b] {
        assert!(is_conflict(&f.store.resume_paused(kept.id, one, None, at(12)).await), "nobody is paused in it");
    }
    f.store.set_sandbox_status(a, SandboxStatus::Running, None, at(12)).await.unwrap();
    f.store.delete_snapshot(&caller, kept.id, at(13)).await.unwrap();
    assert!(is_not_found(&f.store.get_snapshot(&caller, kept.id).await));
    assert!(is_conflict(&f.store.snapshot_removed(recorded(&f, a, SnapshotKind::Kept).await.id).await));
    // One starts from it at this moment.
    assert!(f.store.snapshots_to_remove(at(1000), 10).await.unwrap().is_empty());
    f.store.set_sandbox_status(b, SandboxStatus::Running, None, at(14)).await.unwrap();
    assert!(f.store.snapshots_to_remove(at(13), 10).await.unwrap().is_empty(), "over for too short a time");
    assert_eq!(f.store.snapshots_to_remove(at(14), 10).await.unwrap(), [(kept.id, kept.folder.clone())]);
    assert!(f.store.known_files().await.unwrap().artifacts.contains_key(&kept.folder), "its files are there");
    f.store.snapshot_removed(kept.id).await.unwrap();
    f.store.snapshot_removed(kept.id).await.unwrap();
    assert!(!f.store.known_files().await.unwrap().artifacts.contains_key(&kept.folder));
    assert!(f.store.snapshots_to_remove(at(1000), 10).await.unwrap().is_empty());
    assert_eq!(f.store.get_sandbox(&caller, b).await.unwrap().snapshot, Some(kept.id), "what it was made from");
}

#[tokio::test]
async fn a_resume_is_only_for_a_sandbox_that_starts_from_the_snapshot() {
    let (f, caller, sandbox) = one().await;
    let stored = recorded(&f, sandbox.id, SnapshotKind::Pause).await;
    let resume = |snapshot, resumed| f.store.resume_paused(snapshot, resumed, None, at(12));
    assert!(is_not_found(&resume(SnapshotId::new(), sandbox.id).await));
    assert!(is_not_found(&resume(stored.id, SandboxId::new()).await));
    let plain = new_sandbox(sandbox.artifact);
    f.store.insert_sandbox(&caller, plain.clone(), at(11)).await.unwrap();
    assert!(is_conflict(&resume(stored.id, plain.id).await));
    assert!(is_conflict(&resume(stored.id, sandbox.id).await), "not itself");
    let given_up = starting(&f, &caller, &stored).await;
    f.store.set_sandbox_status(given_up, SandboxStatus::Error, Some("no machine"), at(12)).await.unwrap();
    assert!(is_conflict(&resume(stored.id, given_up).await));
    assert_eq!(status(&f, &caller, sandbox.id).await, SandboxStatus::Paused, "a resume that failed takes nothing");
    let next = starting(&f, &caller, &stored).await;
    resume(stored.id, next).await.unwrap();
}

#[tokio::test]
async fn snapshots_are_their_tenants() {
    let (f, owner, sandbox) = one().await;
    let other = f.tenant("other").await;
    let kept = recorded(&f, sandbox.id, SnapshotKind::Kept).await;
    assert!(is_not_found(&f.store.get_snapshot(&other, kept.id).await));
    assert!(is_not_found(&f.store.delete_snapshot(&other, kept.id, at(11)).await));
    for sandbox in [None, Some(sandbox.id)] {
        let filter = SnapshotFilter { sandbox, limit: 10, ..SnapshotFilter::default() };
        assert!(f.store.list_snapshots(&other, filter.clone()).await.unwrap().is_empty());
        let own = f.store.list_snapshots(&owner, filter).await.unwrap();
        assert_eq!(own, std::slice::from_ref(&kept));
    }
    let theft = NewSandbox { from_snapshot: Some(kept.id), ..new_sandbox(kept.artifact) };
    assert!(is_not_found(&f.store.insert_sandbox(&other, theft, at(11)).await));
    let theft = NewSandbox { forked_from: Some(sandbox.id), ..new_sandbox(kept.artifact) };
    assert!(is_not_found(&f.store.insert_sandbox(&other, theft, at(11)).await));
    // The same key of another tenant is another key.
    let key = || Some(Idempotency { key: "k".to_owned(), request_digest: "d".to_owned() });
    let theirs = f.ready(&other, "web", &["default"], at(1)).await;
    let theirs = running(&f, &other, theirs.artifact_id).await;
    for id in [sandbox.id, theirs.id] {
        let new = NewSnapshot { idempotency: key(), ..new_snapshot(id, SnapshotKind::Kept) };
        assert!(matches!(f.store.record_snapshot(new, None, at(12)).await, Ok(Recorded::New(_))));
    }
    assert_eq!(f.store.count_snapshots(&other).await.unwrap(), SnapshotCounts { paused: 0, evicted: 0, kept: 1 });
    assert_eq!(f.store.count_snapshots(&owner).await.unwrap(), SnapshotCounts { paused: 0, evicted: 0, kept: 2 });
}

#[tokio::test]
async fn snapshots_are_listed_newest_first_in_pages() {
    let (f, caller, sandbox) = one().await;
    let second = running(&f, &caller, sandbox.artifact).await;
    let mut ids = Vec::new();
    for number in 0..6 {
        let of = if number % 2 == 0 { sandbox.id } else { second.id };
        ids.push(recorded(&f, of, SnapshotKind::Kept).await.id);
    }
    let listed = |filter| async {
        let found = f.store.list_snapshots(&caller, filter).await.unwrap();
        found.into_iter().map(|snapshot| snapshot.id).collect::<Vec<_>>()
    };
    let page = |limit| SnapshotFilter { limit, ..SnapshotFilter::default() };
    assert_eq!(listed(page(4)).await, [ids[5], ids[4], ids[3], ids[2]]);
    assert_eq!(listed(SnapshotFilter { after: Some(ids[2]), ..page(4) }).await, [ids[1], ids[0]]);
    let of_one = SnapshotFilter { sandbox: Some(sandbox.id), ..page(2) };
    assert_eq!(listed(of_one.clone()).await, [ids[4], ids[2]]);
    assert_eq!(listed(SnapshotFilter { after: Some(ids[2]), ..of_one }).await, [ids[0]]);
    // Its end ends none of them.
    f.store.set_sandbox_status(sandbox.id, SandboxStatus::Destroyed, None, at(20)).await.unwrap();
    assert_eq!(listed(page(10)).await.len(), 6);
}

#[tokio::test]
async fn what_a_snapshot_was_made_of_is_kept_with_it() {
    let (f, caller, sandbox) = one().await;
    let kept = recorded(&f, sandbox.id, SnapshotKind::Kept).await;
    f.delete(&caller, "web", at(11)).await.unwrap();
    f.store.set_sandbox_status(sandbox.id, SandboxStatus::Destroyed, None, at(12)).await.unwrap();
    assert!(f.store.collectable_artifacts(at(1000), 10).await.unwrap().is_empty());
    assert!(!f.store.purge_artifact(sandbox.artifact, at(1000)).await.unwrap());
    assert_eq!(f.store.get_artifact(sandbox.artifact).await.unwrap().id, sandbox.artifact);
    // The template is gone, what is made from the snapshot works; a clone of that, too.
    let made = starting(&f, &caller, &kept).await;
    f.store.set_sandbox_status(made, SandboxStatus::Running, None, at(13)).await.unwrap();
    let clone = NewSandbox { forked_from: Some(made), ..new_sandbox(sandbox.artifact) };
    assert!(matches!(f.store.insert_sandbox(&caller, clone.clone(), at(13)).await, Ok(Inserted::New(_))));
    assert!(is_not_found(&f.store.insert_sandbox(&caller, new_sandbox(sandbox.artifact), at(13)).await));
    let wrong = f.ready(&caller, "other", &["default"], at(13)).await;
    let wrong = NewSandbox { from_snapshot: Some(kept.id), ..new_sandbox(wrong.artifact_id) };
    assert!(is_conflict(&f.store.insert_sandbox(&caller, wrong, at(13)).await));

    f.store.delete_snapshot(&caller, kept.id, at(14)).await.unwrap();
    for id in [made, clone.id] {
        f.store.set_sandbox_status(id, SandboxStatus::Destroyed, None, at(14)).await.unwrap();
    }
    // The rows of ended sandboxes and of the build go in their order.
    assert_eq!(f.store.remove_expired(nullspace_db::Expiring::Sandboxes, at(1000), 10).await.unwrap(), 3);
    assert!(f.store.collectable_artifacts(at(1000), 10).await.unwrap().is_empty(), "files are on top of it");
    f.store.snapshot_removed(kept.id).await.unwrap();
    let unused: Vec<_> =
        f.store.collectable_artifacts(at(1000), 10).await.unwrap().into_iter().map(|one| one.id).collect();
    assert_eq!(unused, [sandbox.artifact]);
    assert!(f.store.purge_artifact(sandbox.artifact, at(1000)).await.unwrap());
    assert!(is_not_found(&f.store.get_artifact(sandbox.artifact).await));
}

#[tokio::test]
async fn sandboxes_that_were_paused_by_a_stop_continue_under_their_ids() {
    let (f, caller, first) = one().await;
    let mut sandboxes = vec![first.id];
    for _ in 0..3 {
        sandboxes.push(running(&f, &caller, first.artifact).await.id);
    }
    let mut stored = Vec::new();
    for id in &sandboxes {
        stored.push(recorded(&f, *id, SnapshotKind::Pause).await);
    }
    f.store.mark_to_continue(sandboxes[2], None).await.unwrap();
    f.store.mark_to_continue(sandboxes[0], Some(4200)).await.unwrap();
    f.store.mark_to_continue(sandboxes[1], Some(1)).await.unwrap();
    assert!(is_not_found(&f.store.mark_to_continue(SandboxId::new(), None).await));
    // A start ends what has no machine; these need none.
    let ended = f.store.end_sandboxes_of_host("host-1", SandboxStatus::Error, "lost", at(20)).await.unwrap();
    assert!(ended.is_empty());
    assert!(f.store.to_continue("host-2").await.unwrap().is_empty());
    let found = f.store.to_continue("host-1").await.unwrap();
    let listed: Vec<_> = found.iter().map(|(sandbox, snapshot)| (sandbox.id, snapshot.clone())).collect();
    assert_eq!(listed, (0..3).map(|n| (sandboxes[n], stored[n].clone())).collect::<Vec<_>>());
    let left: Vec<_> = found.iter().map(|(sandbox, _)| sandbox.continue_ms).collect();
    assert_eq!(left, [Some(4200), Some(1), None]);

    let again = f.store.continue_paused(sandboxes[0], Some(at(30)), at(21)).await.unwrap();
    assert_eq!((again.id, again.status, again.timeout_at), (sandboxes[0], SandboxStatus::Running, Some(at(30))));
    assert_eq!((again.started_at, again.continue_ms), (Some(at(3)), None));
    assert_eq!(again.sealed_envs.as_deref(), Some(&b"sealed"[..]), "it is the same sandbox");
    assert!(is_not_found(&f.store.get_snapshot(&caller, stored[0].id).await));
    assert!(is_conflict(&f.store.continue_paused(sandboxes[0], None, at(21)).await));
    f.store.give_up_continuing(sandboxes[1]).await.unwrap();
    assert_eq!(status(&f, &caller, sandboxes[1]).await, SandboxStatus::Paused);
    assert!(f.store.get_snapshot(&caller, stored[1].id).await.is_ok());
    f.store.set_sandbox_status(sandboxes[2], SandboxStatus::Destroyed, None, at(22)).await.unwrap();
    assert!(f.store.to_continue("host-1").await.unwrap().is_empty());
    // A later pause is one of its own.
    let second = recorded(&f, sandboxes[0], SnapshotKind::Pause).await;
    assert!(f.store.to_continue("host-1").await.unwrap().is_empty());
    f.store.continue_paused(sandboxes[0], None, at(23)).await.unwrap();
    assert!(is_not_found(&f.store.get_snapshot(&caller, second.id).await));
}

#[tokio::test]
async fn paused_sandboxes_are_due_when_their_time_is_over() {
    let (f, caller, first) = one().await;
    let pause = async |delete_at: Option<i64>| {
        let sandbox = running(&f, &caller, first.artifact).await.id;
        let new = new_snapshot(sandbox, SnapshotKind::Pause);
        f.store.record_snapshot(new, delete_at.map(at), at(10)).await.unwrap();
        sandbox
    };
    let (late, soon, never, continues) =
        (pause(Some(90)).await, pause(Some(50)).await, pause(None).await, pause(Some(40)).await);
    f.store.mark_to_continue(continues, Some(5)).await.unwrap();
    let due = async |host: &str, now, limit| {
        let found = f.store.due_sandboxes(host, at(now), limit).await.unwrap();
        found.into_iter().map(|sandbox| sandbox.id).collect::<Vec<_>>()
    };
    assert!(due("host-1", 49, 10).await.is_empty());
    assert_eq!(due("host-1", 50, 10).await, [soon]);
    assert_eq!(due("host-1", 1000, 10).await, [soon, late], "running ones are the host's to watch");
    assert_eq!(due("host-1", 1000, 1).await, [soon]);
    assert!(due("host-2", 1000, 10).await.is_empty());
    // The time of a paused one can be moved, too.
    f.store.set_sandbox_timeout(&caller, soon, &json!({}), None).await.unwrap();
    f.store.set_sandbox_timeout(&caller, never, &json!({}), Some(at(60))).await.unwrap();
    f.store.give_up_continuing(continues).await.unwrap();
    assert_eq!(due("host-1", 1000, 10).await, [continues, never, late]);

    // Each ends once, and only while it is due.
    let end = |id, now| f.store.end_due_sandbox(id, "paused for too long", at(now));
    assert!(is_not_found(&end(SandboxId::new(), 1000).await));
    assert!(is_conflict(&end(late, 89).await) && is_conflict(&end(soon, 1000).await), "their time is not over");
    assert!(is_conflict(&end(first.id, 1000).await), "it runs");
    f.store.mark_to_continue(never, None).await.unwrap();
    assert!(is_conflict(&end(never, 1000).await), "it is to run again");
    f.store.continue_paused(continues, None, at(70)).await.unwrap();
    assert!(is_conflict(&end(continues, 1000).await), "it was resumed after it had been listed");
    let over = end(late, 90).await.unwrap();
    assert_eq!((over.status, over.reason.as_deref()), (SandboxStatus::Destroyed, Some("paused for too long")));
    assert!(is_not_found(&f.store.get_snapshot(&caller, over.snapshot.unwrap()).await));
    assert!(is_conflict(&end(late, 91).await));
}

#[tokio::test]
async fn a_lost_snapshot_ends_the_sandbox_in_it_and_nothing_else() {
    let (f, caller, first) = one().await;
    let second = running(&f, &caller, first.artifact).await;
    let (gone, stays) =
        (recorded(&f, first.id, SnapshotKind::Pause).await, recorded(&f, second.id, SnapshotKind::Pause).await);
    let kept = {
        let third = running(&f, &caller, first.artifact).await;
        recorded(&f, third.id, SnapshotKind::Kept).await
    };
    let named = f.store.snapshot_in_folder(&gone.folder).await.unwrap();
    assert_eq!(named, Some(gone.clone()));
    assert_eq!(f.store.snapshot_in_folder("no such folder").await.unwrap(), None);
    let mut lost = f.store.known_files().await.unwrap();
    assert_eq!(lost.artifacts.len(), 4);
    let all = lost.clone();
    lost.rootfs.clear();
    lost.artifacts.retain(|folder, _| [&gone.folder, &kept.folder].contains(&folder));
    f.store.forget_lost(&lost, at(20)).await.unwrap();
    let over = f.store.get_sandbox(&caller, first.id).await.unwrap();
    assert_eq!((over.status, over.ended_at), (SandboxStatus::Error, Some(at(20))));
    assert!(over.reason.unwrap().contains("lost"));
    for id in [gone.id, kept.id] {
        assert!(is_not_found(&f.store.get_snapshot(&caller, id).await));
    }
    assert!(f.store.snapshots_to_remove(at(1000), 10).await.unwrap().is_empty(), "nothing of them is to be removed");
    assert_eq!(status(&f, &caller, second.id).await, SandboxStatus::Paused);
    assert!(f.resolve(&caller, "web").await.is_ok());

    // The template's own files are lost. Its root image is still under the paused sandbox.
    let own = f.store.get_artifact(first.artifact).await.unwrap().folder;
    let only = |folder: &String| {
        let mut lost = all.clone();
        lost.rootfs.clear();
        lost.artifacts.retain(|name, _| name == folder);
        lost
    };
    f.store.forget_lost(&only(&own), at(21)).await.unwrap();
    assert!(is_not_found(&f.resolve(&caller, "web").await));
    let known = f.store.known_files().await.unwrap();
    assert_eq!(known.artifacts.keys().collect::<Vec<_>>(), [&stays.folder], "lost once, it is not lost again");
    assert!(f.store.collectable_artifacts(at(1000), 10).await.unwrap().is_empty());
    assert_eq!(known.rootfs, all.rootfs);
    let resumed = starting(&f, &caller, &stays).await;
    f.store.resume_paused(stays.id, resumed, None, at(22)).await.unwrap();

    // The root image is lost: nothing on it can be started.
    let second = recorded(&f, resumed, SnapshotKind::Pause).await;
    f.store
        .forget_lost(&nullspace_types::KnownFiles { rootfs: all.rootfs, ..Default::default() }, at(23))
        .await
        .unwrap();
    assert_eq!(status(&f, &caller, resumed).await, SandboxStatus::Error);
    let late = NewSandbox { from_snapshot: Some(second.id), ..new_sandbox(first.artifact) };
    assert!(is_not_found(&f.store.insert_sandbox(&caller, late, at(24)).await));
    // Also of the one that was over, and whose files were not removed yet.
    assert_eq!(f.store.known_files().await.unwrap(), nullspace_types::KnownFiles::default());
}

/// A failure in the middle of each transition: the sandbox and its snapshot are as before.
#[tokio::test]
async fn a_transition_that_fails_changes_nothing() {
    let (f, caller, sandbox) = one().await;
    let stored = recorded(&f, sandbox.id, SnapshotKind::Pause).await;
    let resumed = starting(&f, &caller, &stored).await;
    let other = running(&f, &caller, sandbox.artifact).await;
    f.sabotage(
        "CREATE TRIGGER sabotage BEFORE UPDATE ON sandboxes WHEN new.status IN ('running', 'paused')
         BEGIN SELECT raise(ABORT, 'sabotaged'); END",
    )
    .await;
    let refused = |result: Result<Sandbox, DbError>| assert!(matches!(result, Err(DbError::Database(_))), "{result:?}");
    refused(f.store.resume_paused(stored.id, resumed, None, at(12)).await);
    refused(f.store.continue_paused(sandbox.id, None, at(12)).await);
    let pause = f.store.record_snapshot(new_snapshot(other.id, SnapshotKind::Pause), None, at(12)).await;
    assert!(matches!(pause, Err(DbError::Database(_))), "{pause:?}");
    let f: &dyn Database = &*f.store;
    let paused = f.get_sandbox(&caller, sandbox.id).await.unwrap();
    assert_eq!((paused.status, paused.snapshot), (SandboxStatus::Paused, Some(stored.id)));
    assert_eq!(f.get_snapshot(&caller, stored.id).await.unwrap(), stored);
    assert_eq!(f.get_sandbox(&caller, resumed).await.unwrap().status, SandboxStatus::Creating);
    assert_eq!(f.get_sandbox(&caller, other.id).await.unwrap().status, SandboxStatus::Running);
    assert_eq!(f.count_snapshots(&caller).await.unwrap(), SnapshotCounts { paused: 1, evicted: 0, kept: 0 });
}

#[tokio::test]
async fn an_artifact_that_lost_its_files_is_collected_when_the_last_snapshot_on_it_is_over() {
    let (f, caller, sandbox) = one().await;
    let kept = recorded(&f, sandbox.id, SnapshotKind::Kept).await;
    let mut lost = f.store.known_files().await.unwrap();
    lost.rootfs.clear();
    lost.artifacts.remove(&kept.folder);
    f.store.forget_lost(&lost, at(11)).await.unwrap();
    // Twice is no harm.
    f.store.forget_lost(&lost, at(12)).await.unwrap();
    f.store.set_sandbox_status(sandbox.id, SandboxStatus::Destroyed, None, at(13)).await.unwrap();
    f.store.delete_snapshot(&caller, kept.id, at(13)).await.unwrap();
    assert!(f.store.collectable_artifacts(at(1000), 10).await.unwrap().is_empty());
    f.store.snapshot_removed(kept.id).await.unwrap();
    let unused = f.store.collectable_artifacts(at(1000), 10).await.unwrap();
    assert_eq!(unused.iter().map(|one| one.id).collect::<Vec<_>>(), [sandbox.artifact]);
    assert!(f.store.purge_artifact(sandbox.artifact, at(1000)).await.unwrap());
    assert_eq!(f.query("SELECT runtime FROM artifacts").await, ["null"], "it keeps no values");
}

#[tokio::test]
async fn an_evicted_sandbox_keeps_its_timeout_until_its_owner_wants_the_pause() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    let asked = new_sandbox(build.artifact_id);
    f.store.insert_sandbox(&caller, asked.clone(), at(2)).await.unwrap();
    f.store.set_sandbox_status(asked.id, SandboxStatus::Running, None, at(3)).await.unwrap();
    let new = NewSnapshot { evicted: true, ..new_snapshot(asked.id, SnapshotKind::Pause) };
    let id = new.id;
    f.store.record_snapshot(new, Some(at(50)), at(10)).await.unwrap();
    let sandbox = async || f.store.get_sandbox(&caller, asked.id).await.unwrap();
    assert_eq!((sandbox().await.status, sandbox().await.timeout_at), (SandboxStatus::Paused, asked.timeout_at));
    let counts = async || f.store.count_snapshots(&caller).await.unwrap();
    assert_eq!(counts().await, SnapshotCounts { paused: 0, evicted: 1, kept: 0 });
    assert!(f.store.get_snapshot(&caller, id).await.unwrap().evicted);
    let settled = f.store.settle_eviction(id, Some(at(900))).await.unwrap();
    assert!(!settled.evicted);
    assert_eq!(sandbox().await.timeout_at, Some(at(900)));
    assert_eq!(counts().await, SnapshotCounts { paused: 1, evicted: 0, kept: 0 });
    assert!(is_conflict(&f.store.settle_eviction(id, None).await), "it is settled");
    // One that runs again is not evicted any more.
    f.store.continue_paused(asked.id, Some(at(300)), at(20)).await.unwrap();
    let new = NewSnapshot { evicted: true, ..new_snapshot(asked.id, SnapshotKind::Pause) };
    let id = new.id;
    f.store.record_snapshot(new, None, at(21)).await.unwrap();
    f.store.continue_paused(asked.id, Some(at(300)), at(22)).await.unwrap();
    assert!(is_conflict(&f.store.settle_eviction(id, None).await));
    assert_eq!((sandbox().await.status, sandbox().await.timeout_at), (SandboxStatus::Running, Some(at(300))));
}
