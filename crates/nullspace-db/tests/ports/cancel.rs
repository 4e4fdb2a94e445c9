//! Cancelling: at once when a build waits, by request when a worker has it, never twice.

use nullspace_db::{BuildStatus, Finished, Release};

use crate::fixture::{Fixture, TTL, at, cancel, entry, failure, result};

#[tokio::test]
async fn a_waiting_build_is_cancelled_at_once_with_its_entry() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.accept(&caller, "web").await;
    let outcome = f.store.request_cancel(&caller, build.id, cancel("changed my mind"), at(3)).await.unwrap();
    assert!(outcome.ended_now);
    let cancelled = outcome.build;
    assert_eq!((cancelled.status, cancelled.finished_at), (BuildStatus::Cancelled, Some(at(3))));
    assert_eq!(cancelled.cancel_requested_at, Some(at(3)));
    assert_eq!(cancelled.cancel_requested_by.as_deref(), Some("somebody"));
    assert_eq!(cancelled.cancel_reason.as_deref(), Some("changed my mind"));
    assert_eq!(f.messages(&caller, build.id).await, ["start", "cancelled"]);
    assert_eq!(f.store.lease_build("w", TTL, u32::MAX, at(4)).await.unwrap(), None);
}

#[tokio::test]
async fn cancelling_again_changes_nothing() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.accept(&caller, "web").await;
    let first = f.store.request_cancel(&caller, build.id, cancel("one"), at(3)).await.unwrap();
    let second = f.store.request_cancel(&caller, build.id, cancel("two"), at(4)).await.unwrap();
    assert!(!second.ended_now);
    assert_eq!(second.build, first.build);
    assert_eq!(f.messages(&caller, build.id).await, ["start", "cancelled"]);
}

#[tokio::test]
async fn a_running_build_hears_of_it_through_its_heartbeat_and_ends_itself() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.accept(&caller, "web").await;
    let (lease, _) = f.run("w", at(0)).await;
    let outcome = f.store.request_cancel(&caller, build.id, cancel("one"), at(3)).await.unwrap();
    assert!(!outcome.ended_now);
    assert_eq!((outcome.build.status, outcome.build.cancel_requested_at), (BuildStatus::Building, Some(at(3))));
    let again = f.store.request_cancel(&caller, build.id, cancel("two"), at(4)).await.unwrap();
    assert_eq!(again.build, outcome.build);
    assert_eq!(f.messages(&caller, build.id).await, ["start"]);
    assert!(f.store.heartbeat(&lease, TTL, at(5)).await.unwrap().cancel_requested);
    let ended = f.store.finish_cancelled(&lease, entry("cancelled"), at(6)).await.unwrap();
    assert_eq!((ended.status, ended.finished_at), (BuildStatus::Cancelled, Some(at(6))));
    assert_eq!(ended.cancel_reason.as_deref(), Some("one"));
    assert_eq!(f.messages(&caller, build.id).await, ["start", "cancelled"]);
}

#[tokio::test]
async fn a_cancel_that_was_answered_wins_over_a_build_that_was_almost_done() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.accept(&caller, "web").await;
    let (lease, _) = f.run("w", at(0)).await;
    f.rootfs(&lease).await;
    f.store.request_cancel(&caller, build.id, cancel("one"), at(3)).await.unwrap();
    assert_eq!(f.store.finish_ready(&lease, result(), at(4)).await.unwrap(), Finished::CancelRequested);
    assert!(crate::fixture::is_not_found(&f.resolve(&caller, "web").await));
    assert_eq!(f.messages(&caller, build.id).await, ["start"]);
    f.store.finish_cancelled(&lease, entry("cancelled"), at(5)).await.unwrap();
}

#[tokio::test]
async fn a_final_build_cannot_be_cancelled() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let ready = f.ready(&caller, "web", &["default"], at(1)).await;
    let outcome = f.store.request_cancel(&caller, ready.id, cancel("late"), at(9)).await.unwrap();
    assert!(!outcome.ended_now);
    assert_eq!(outcome.build, ready);
    let failed = f.accept(&caller, "web").await;
    let (lease, _) = f.run("w", at(0)).await;
    let failed_build = f.store.finish_error(&lease, failure(), at(2)).await.unwrap();
    let outcome = f.store.request_cancel(&caller, failed.id, cancel("late"), at(9)).await.unwrap();
    assert_eq!(outcome.build, failed_build);
}

#[tokio::test]
async fn a_request_outlives_the_worker_it_was_made_to() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.accept(&caller, "web").await;
    let (lease, _) = f.run("w1", at(0)).await;
    f.store.request_cancel(&caller, build.id, cancel("one"), at(3)).await.unwrap();
    f.store.release_build(&lease, Release::HandBack, vec![], at(4)).await.unwrap();
    let (_, leased) = f.run("w2", at(5)).await;
    assert_eq!(leased.cancel_requested_at, Some(at(3)));
}

#[tokio::test]
async fn a_build_given_back_after_a_request_is_cancelled_by_asking_again() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.accept(&caller, "web").await;
    let (lease, _) = f.run("w1", at(0)).await;
    f.store.request_cancel(&caller, build.id, cancel("one"), at(3)).await.unwrap();
    f.store.release_build(&lease, Release::HandBack, vec![], at(4)).await.unwrap();
    let outcome = f.store.request_cancel(&caller, build.id, cancel("two"), at(5)).await.unwrap();
    assert!(outcome.ended_now);
    assert_eq!(outcome.build.status, BuildStatus::Cancelled);
    assert_eq!(outcome.build.cancel_reason.as_deref(), Some("one"));
}
