//! How builds end: all of it or nothing.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use nullspace_db::{BuildStatus, DbError, Finished};
use serde_json::json;

use crate::fixture::{Fixture, at, entry, failure, is_not_found, new_build, result, rootfs};

#[tokio::test]
async fn a_ready_build_has_its_artifact_tags_and_last_entry() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let mut asked = new_build("web", &["v1", "default"]);
    asked.description = Some("A web server".to_owned());
    f.accept_with(&caller, asked.clone()).await;
    let (lease, _) = f.run("w", at(1)).await;
    f.rootfs(&lease).await;
    let done = result();
    let Finished::Ready(build) = f.store.finish_ready(&lease, done.clone(), at(9)).await.unwrap() else { panic!() };
    assert_eq!((build.status, build.finished_at, build.updated_at), (BuildStatus::Ready, Some(at(9)), at(9)));
    assert_eq!(build.runtime_defaults, Some(json!({ "default_env_keys": ["TOKEN"] })));
    assert_eq!(build.cache_summary, Some(json!({ "hits": 1 })));
    let state = build.artifact.unwrap();
    assert_eq!((state.retention_expires_at, state.deleted_at), (None, None), "a tag keeps it");
    assert_eq!(f.messages(&caller, build.id).await, ["start", "end"]);

    let found = f.resolve(&caller, "web").await.unwrap();
    assert_eq!(found.template.description, "A web server");
    assert_eq!(found.tags.iter().map(|tag| tag.tag.as_str()).collect::<Vec<_>>(), ["default", "v1"]);
    assert!(found.tags.iter().all(|tag| tag.build == build.id && tag.moved_at == at(9)));
    let artifact = found.artifact;
    assert_eq!((artifact.id, artifact.build, artifact.tenant), (asked.artifact_id, build.id, caller.tenant));
    assert_eq!((&artifact.folder, &artifact.rootfs), (&done.folder, &rootfs("a")));
    assert_eq!((artifact.disk_bytes, artifact.stored_bytes), (1 << 30, 1 << 20));
    assert_eq!(artifact.runtime, result().runtime);
    assert_eq!(artifact.compatibility, json!({ "vmm": "qemu" }));
    assert_eq!(f.store.get_artifact(asked.artifact_id).await.unwrap(), artifact);
}

#[tokio::test]
async fn values_of_environment_variables_are_not_in_debug_output() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    let resolved = f.resolve(&caller, "web").await.unwrap();
    let shown = format!("{resolved:?} {build:?} {:?}", result());
    assert!(!shown.contains("value-of-token"), "{shown}");
    assert_eq!(resolved.artifact.runtime.0["envs"]["TOKEN"], "value-of-token");
}

#[tokio::test]
async fn a_failed_build_keeps_what_is_known_of_its_failure() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    f.accept(&caller, "web").await;
    let (lease, _) = f.run("w", at(1)).await;
    let build = f.store.finish_error(&lease, failure(), at(9)).await.unwrap();
    assert_eq!((build.status, build.finished_at), (BuildStatus::Error, Some(at(9))));
    assert_eq!(build.failure_phase.as_deref(), Some("readiness"));
    assert_eq!(build.error.as_deref(), Some("port 80 never opened"));
    assert_eq!(build.error_detail, Some(json!({ "code": "build_error" })));
    assert_eq!(build.artifact, None);
    assert_eq!(f.messages(&caller, build.id).await, ["start", "error"]);
    assert!(is_not_found(&f.resolve(&caller, "web").await));
    assert!(is_not_found(&f.store.get_artifact(build.artifact_id).await));
}

#[tokio::test]
async fn tags_move_together_and_the_build_they_left_stays_reachable() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let first = f.ready(&caller, "web", &["default", "v1"], at(1)).await;
    let second = f.ready(&caller, "web", &["default", "v2"], at(2)).await;
    assert_eq!(first.template, second.template);
    for (reference, build) in [
        ("web".to_owned(), &second),
        ("web:default".to_owned(), &second),
        ("web:v2".to_owned(), &second),
        ("web:v1".to_owned(), &first),
        (format!("web:{}", first.id), &first),
        (first.artifact_id.to_string(), &first),
    ] {
        assert_eq!(f.resolve(&caller, &reference).await.unwrap().artifact.build, build.id, "{reference}");
    }
}

#[tokio::test]
async fn a_finish_that_fails_at_its_last_statement_leaves_nothing() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let first = f.ready(&caller, "web", &["default"], at(1)).await;
    let second = f.accept(&caller, "web").await;
    let (lease, _) = f.run("w", at(2)).await;
    f.rootfs(&lease).await;
    f.make_ready_builds_fail().await;
    let failed = f.store.finish_ready(&lease, result(), at(3)).await;
    assert!(matches!(failed, Err(DbError::Database(_))), "{failed:?}");
    assert_eq!(f.resolve(&caller, "web").await.unwrap().artifact.build, first.id);
    assert!(is_not_found(&f.store.get_artifact(second.artifact_id).await));
    assert_eq!(f.messages(&caller, second.id).await, ["start"]);
    assert_eq!(f.store.get_build(&caller, second.id).await.unwrap().status, BuildStatus::Building);
    // The lease survived, so the worker can still say what happened.
    f.store.finish_error(&lease, failure(), at(4)).await.unwrap();
}

#[tokio::test]
async fn a_root_image_that_was_never_recorded_cannot_be_named() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    f.accept(&caller, "web").await;
    let (lease, _) = f.run("w", at(2)).await;
    assert!(f.store.finish_ready(&lease, result(), at(3)).await.is_err());
    assert!(is_not_found(&f.resolve(&caller, "web").await));
}

/// Polls a future at most `polls` times, then drops it.
async fn give_up_after<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

#[tokio::test]
async fn a_finish_whose_caller_went_away_happened_wholly_or_not_at_all() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let (mut whole, mut nothing) = (0, 0);
    for polls in 0..60 {
        let build = f.accept(&caller, "web").await;
        let (lease, _) = f.run("w", at(2)).await;
        f.rootfs(&lease).await;
        let answer = give_up_after(polls, f.store.finish_ready(&lease, result(), at(3))).await;
        // A later write of the same connection comes after whatever the dropped call still did.
        f.store.put_setting("barrier", &json!(polls), at(3)).await.unwrap();
        let read = f.store.get_build(&caller, build.id).await.unwrap();
        let log = f.messages(&caller, build.id).await;
        let artifact = f.store.get_artifact(build.artifact_id).await;
        let tagged = f.resolve(&caller, "web").await.is_ok_and(|found| found.artifact.build == build.id);
        if read.status == BuildStatus::Ready {
            whole += 1;
            assert_eq!(log, ["start", "end"]);
            assert!(artifact.is_ok() && tagged);
        } else {
            nothing += 1;
            assert!(answer.is_none(), "answered and not done");
            assert_eq!(log, ["start"]);
            assert!(is_not_found(&artifact) && !tagged);
            f.store.finish_cancelled(&lease, entry("cancelled"), at(4)).await.unwrap();
        }
    }
    assert!(nothing > 0, "no poll count was too small");
    assert!(whole > 0, "no poll count was enough");
}
