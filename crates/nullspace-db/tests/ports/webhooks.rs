//! Webhooks and deliveries: queued with their event, sent by one worker at a time, and ended by a success or by giving up.

use std::collections::BTreeMap;

use nullspace_db::{
    Attempt, DbError, Delivery, EventFilter, NewEvent, NewSandbox, SandboxStatus, SealedRows, SnapshotKind,
    TakenDelivery, Webhook, WebhookChange,
};
use nullspace_types::Caller;
use uuid::Uuid;

use crate::events::event;
use crate::fixture::{Fixture, at, is_conflict, is_not_found, new_sandbox, new_snapshot};

fn webhook(caller: &Caller, operations: &[&str]) -> Webhook {
    Webhook {
        id: Uuid::now_v7(),
        tenant: caller.tenant,
        url: "https://example.com/hook".to_owned(),
        operations: operations.iter().map(|word| (*word).to_owned()).collect(),
        sealed_secret: b"sealed secret".to_vec(),
        enabled: true,
        created_at: at(1),
        updated_at: at(1),
        last: None,
    }
}

async fn hooked(f: &Fixture, caller: &Caller, operations: &[&str]) -> Webhook {
    f.store.insert_webhook(webhook(caller, operations), 20).await.unwrap()
}

async fn recorded(f: &Fixture, caller: &Caller, operation: &str, now: i64) -> NewEvent {
    let event = event(caller, operation, at(now));
    f.store.record_events(vec![event.clone()], at(now)).await.unwrap();
    event
}

/// Takes everything that is due, under a lease of 30 s.
async fn take(f: &Fixture, now: i64) -> Vec<TakenDelivery> {
    f.store.take_deliveries("host", at(now), at(now + 30), 100, 100).await.unwrap()
}

fn success(number: u32, now: i64) -> Attempt {
    Attempt { id: Uuid::now_v7(), number, at: at(now), duration_ms: 12, response_status: Some(204), error: None }
}

fn failure(number: u32, now: i64) -> Attempt {
    let error = Some(("http_status".to_owned(), "the receiver answered 500".to_owned()));
    Attempt { response_status: Some(500), error, ..success(number, now) }
}

async fn deliveries(f: &Fixture, caller: &Caller, webhook: Uuid) -> Vec<Delivery> {
    f.store.list_deliveries(caller, webhook, 0, 100).await.unwrap()
}

#[tokio::test]
async fn webhooks_are_their_tenants_and_limited() {
    let f = Fixture::new().await;
    let (caller, other) = (f.tenant("acme").await, f.tenant("other").await);
    let asked = webhook(&caller, &["create", "destroy"]);
    let first = f.store.insert_webhook(asked.clone(), 2).await.unwrap();
    assert_eq!(first, asked);
    let second = f.store.insert_webhook(webhook(&caller, &["fork"]), 2).await.unwrap();
    assert!(is_conflict(&f.store.insert_webhook(webhook(&caller, &["fork"]), 2).await));
    assert!(f.store.insert_webhook(webhook(&other, &["fork"]), 2).await.is_ok());
    assert_eq!(f.store.list_webhooks(&caller).await.unwrap(), [first.clone(), second.clone()]);
    assert_eq!(f.store.get_webhook(&caller, first.id).await.unwrap(), first);
    assert!(is_not_found(&f.store.get_webhook(&other, first.id).await));
    assert!(is_not_found(&f.store.update_webhook(&other, first.id, WebhookChange::default(), at(2)).await));
    assert!(is_not_found(&f.store.delete_webhook(&other, first.id).await));
    assert!(is_not_found(&f.store.list_deliveries(&other, first.id, 0, 10).await));

    let change = WebhookChange {
        url: Some("https://example.com/other".to_owned()),
        sealed_secret: Some(b"another".to_vec()),
        ..WebhookChange::default()
    };
    let changed = f.store.update_webhook(&caller, first.id, change, at(5)).await.unwrap();
    let expected = Webhook {
        url: "https://example.com/other".to_owned(),
        sealed_secret: b"another".to_vec(),
        updated_at: at(5),
        ..first.clone()
    };
    assert_eq!(changed, expected);
    assert_eq!(f.store.get_webhook(&caller, first.id).await.unwrap(), expected);
    f.store.delete_webhook(&caller, first.id).await.unwrap();
    assert!(is_not_found(&f.store.delete_webhook(&caller, first.id).await));
    assert!(is_not_found(&f.store.get_webhook(&caller, first.id).await));
    assert!(is_not_found(&f.store.update_webhook(&caller, first.id, WebhookChange::default(), at(6)).await));
    assert_eq!(f.store.list_webhooks(&caller).await.unwrap(), [second]);
    assert!(f.store.insert_webhook(webhook(&caller, &["fork"]), 2).await.is_ok(), "its place is free");
}

#[tokio::test]
async fn an_event_is_queued_for_the_webhooks_that_want_it() {
    let f = Fixture::new().await;
    let (caller, other) = (f.tenant("acme").await, f.tenant("other").await);
    let wants = hooked(&f, &caller, &["create", "destroy"]).await;
    let off = f.store.insert_webhook(Webhook { enabled: false, ..webhook(&caller, &["create"]) }, 20).await.unwrap();
    let else_ = hooked(&f, &caller, &["fork"]).await;
    let theirs = hooked(&f, &other, &["create"]).await;
    assert_eq!(f.store.next_delivery().await.unwrap(), None);
    let event = recorded(&f, &caller, "create", 10).await;
    f.store.record_events(vec![event.clone()], at(11)).await.unwrap();
    assert_eq!(f.store.next_delivery().await.unwrap(), Some(at(10)));
    let queued = deliveries(&f, &caller, wants.id).await;
    assert_eq!(queued.len(), 1, "an event that is recorded again is not sent again");
    let expected = Delivery {
        id: queued[0].id,
        webhook: wants.id,
        event: event.id,
        operation: "create".to_owned(),
        status: "succeeded".to_owned(),
        delivery_status: "queued".to_owned(),
        attempts: 0,
        created_at: at(10),
        next_attempt_at: Some(at(10)),
        last_attempt_at: None,
        last_response_status: None,
        last_error: None,
    };
    assert_eq!(queued[0], expected);
    for id in [off.id, else_.id] {
        assert!(deliveries(&f, &caller, id).await.is_empty());
    }
    assert!(deliveries(&f, &other, theirs.id).await.is_empty());
    let (found, of, attempts) = f.store.get_delivery(&caller, wants.id, queued[0].id).await.unwrap();
    assert_eq!((found, of, attempts), (expected, event, vec![]));
    assert!(is_not_found(&f.store.get_delivery(&caller, else_.id, queued[0].id).await), "another webhook's");
    assert!(is_not_found(&f.store.get_delivery(&other, wants.id, queued[0].id).await));
}

#[tokio::test]
async fn a_delivery_is_tried_until_it_succeeds() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let hook = hooked(&f, &caller, &["create"]).await;
    let event = recorded(&f, &caller, "create", 10).await;
    assert!(take(&f, 9).await.is_empty());
    let taken = take(&f, 10).await;
    let [one] = &taken[..] else { panic!("{taken:?}") };
    assert_eq!((&one.webhook, &one.event), (&hook, &event));
    assert_eq!((one.delivery.delivery_status.as_str(), one.delivery.attempts), ("in_progress", 0));
    assert_eq!((one.delivery.next_attempt_at, f.store.next_delivery().await.unwrap()), (None, Some(at(40))));
    assert!(take(&f, 39).await.is_empty(), "it has its worker");
    let id = one.delivery.id;
    f.store.delivery_done(id, failure(1, 11), Some(at(20))).await.unwrap();
    let listed = &deliveries(&f, &caller, hook.id).await[0];
    assert_eq!((listed.delivery_status.as_str(), listed.next_attempt_at), ("queued", Some(at(20))));
    assert_eq!((listed.attempts, listed.last_attempt_at, listed.last_response_status), (1, Some(at(11)), Some(500)));
    assert_eq!(listed.last_error.as_deref(), Some("the receiver answered 500"));
    let last = f.store.get_webhook(&caller, hook.id).await.unwrap().last;
    assert_eq!(last, Some((at(11), "queued".to_owned(), Some("the receiver answered 500".to_owned()))));

    assert!(take(&f, 19).await.is_empty());
    assert_eq!(take(&f, 20).await[0].delivery.attempts, 1);
    f.store.delivery_done(id, success(2, 21), None).await.unwrap();
    let (done, _, attempts) = f.store.get_delivery(&caller, hook.id, id).await.unwrap();
    assert_eq!((done.delivery_status.as_str(), done.attempts, done.next_attempt_at), ("succeeded", 2, None));
    assert_eq!((done.last_response_status, done.last_error), (Some(204), None));
    assert_eq!(
        attempts.iter().map(|attempt| (attempt.number, attempt.at)).collect::<Vec<_>>(),
        [(1, at(11)), (2, at(21))]
    );
    assert_eq!(attempts[0].error, failure(1, 11).error);
    assert_eq!((attempts[1].error.clone(), attempts[1].duration_ms), (None, 12));
    let last = f.store.get_webhook(&caller, hook.id).await.unwrap().last;
    assert_eq!(last, Some((at(21), "succeeded".to_owned(), None)));
    assert_eq!(f.store.next_delivery().await.unwrap(), None);
    assert!(take(&f, 10_000).await.is_empty());

    // One that is given up.
    recorded(&f, &caller, "create", 30).await;
    let id = take(&f, 30).await[0].delivery.id;
    f.store.delivery_done(id, failure(1, 31), None).await.unwrap();
    assert_eq!(deliveries(&f, &caller, hook.id).await[0].delivery_status, "dead_letter");
    assert!(take(&f, 10_000).await.is_empty());
}

#[tokio::test]
async fn a_worker_that_is_gone_loses_its_delivery_and_one_that_comes_back_changes_nothing() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let hook = hooked(&f, &caller, &["create"]).await;
    recorded(&f, &caller, "create", 10).await;
    let first = take(&f, 10).await;
    let id = first[0].delivery.id;
    assert!(take(&f, 39).await.is_empty());
    assert_eq!(take(&f, 40).await[0].delivery.id, id, "its lease is over");
    f.store.delivery_done(id, failure(1, 41), Some(at(50))).await.unwrap();
    // The first worker's report of the same attempt.
    assert!(is_conflict(&f.store.delivery_done(id, success(1, 42), None).await));
    take(&f, 50).await;
    assert!(is_conflict(&f.store.delivery_done(id, success(1, 51), None).await), "an attempt of before");
    f.store.delivery_done(id, success(2, 52), None).await.unwrap();
    assert!(is_conflict(&f.store.delivery_done(id, failure(3, 53), Some(at(60))).await), "it is over");
    assert_eq!(deliveries(&f, &caller, hook.id).await[0].delivery_status, "succeeded");
    assert!(is_not_found(&f.store.delivery_done(Uuid::now_v7(), success(1, 53), None).await));
}

#[tokio::test]
async fn two_workers_never_take_the_same_delivery() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    hooked(&f, &caller, &["create"]).await;
    for _ in 0..20 {
        recorded(&f, &caller, "create", 10).await;
    }
    let other = f.another().await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let (a, b) = tokio::join!(
            f.store.take_deliveries("host", at(11), at(40), 2, 100),
            other.take_deliveries("host", at(11), at(40), 2, 100)
        );
        for taken in a.unwrap().into_iter().chain(b.unwrap()) {
            assert!(seen.insert(taken.delivery.id), "taken twice");
        }
    }
    assert_eq!(seen.len(), 20);
}

#[tokio::test]
async fn webhooks_take_turns_and_one_has_so_many_in_progress_at_most() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let busy = hooked(&f, &caller, &["create"]).await;
    for _ in 0..10 {
        recorded(&f, &caller, "create", 10).await;
    }
    let quiet = hooked(&f, &caller, &["destroy"]).await;
    for _ in 0..3 {
        recorded(&f, &caller, "destroy", 20).await;
    }
    let hooks = |taken: &[TakenDelivery]| {
        let of = |id| taken.iter().filter(|one| one.webhook.id == id).count();
        (of(busy.id), of(quiet.id))
    };
    let take = |limit, each| f.store.take_deliveries("host", at(20), at(50), limit, each);
    let first = take(3, 4).await.unwrap();
    assert_eq!(hooks(&first), (2, 1), "the quiet one does not wait for the busy one");
    let oldest = deliveries(&f, &caller, busy.id).await.into_iter().map(|delivery| delivery.id).min();
    assert_eq!(first[0].delivery.id, oldest.unwrap(), "the oldest of each comes first");
    let second = take(16, 4).await.unwrap();
    assert_eq!(hooks(&second), (2, 2));
    assert!(take(16, 4).await.unwrap().is_empty(), "four of one are in progress, and none of the other is left");
    f.store.delivery_done(first[0].delivery.id, success(1, 21), None).await.unwrap();
    assert_eq!(hooks(&take(16, 4).await.unwrap()), (1, 0));
    assert!(take(0, 4).await.unwrap().is_empty() && take(16, 0).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_webhook_that_is_deleted_while_its_delivery_is_taken_is_gone() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let hook = hooked(&f, &caller, &["create"]).await;
    for _ in 0..5 {
        recorded(&f, &caller, "create", 10).await;
    }
    let taken = f.store.take_deliveries("host", at(10), at(40), 2, 2).await.unwrap();
    f.store.delete_webhook(&caller, hook.id).await.unwrap();
    for one in &taken {
        assert!(is_not_found(&f.store.delivery_done(one.delivery.id, success(1, 11), None).await));
    }
    assert!(is_not_found(&f.store.list_deliveries(&caller, hook.id, 0, 10).await));
    assert!(is_not_found(&f.store.get_delivery(&caller, hook.id, taken[0].delivery.id).await));
    assert_eq!(f.store.next_delivery().await.unwrap(), None);
    assert!(take(&f, 10_000).await.is_empty());
    recorded(&f, &caller, "create", 12).await;
    assert!(take(&f, 10_000).await.is_empty());
    // What is left of it goes in batches. The events stay.
    assert!(f.query("SELECT hex(sealed_secret) FROM webhooks").await.iter().all(String::is_empty));
    assert_eq!(f.store.forget_events(at(0), 3).await.unwrap(), 3);
    assert_eq!(f.store.forget_events(at(0), 3).await.unwrap(), 3, "two deliveries and the webhook");
    assert_eq!(f.store.forget_events(at(0), 3).await.unwrap(), 0);
    assert!(f.query("SELECT id FROM webhooks").await.is_empty());
    assert!(f.query("SELECT id FROM deliveries").await.is_empty());
    let filter = EventFilter { limit: 10, ..EventFilter::default() };
    assert_eq!(f.store.list_events(&caller, filter).await.unwrap().len(), 6);
}

#[tokio::test]
async fn a_disabled_webhook_has_nothing_queued_and_gets_no_further_attempt() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let hook = hooked(&f, &caller, &["create"]).await;
    for _ in 0..4 {
        recorded(&f, &caller, "create", 10).await;
    }
    let taken = f.store.take_deliveries("host", at(10), at(40), 3, 3).await.unwrap();
    f.store.delivery_done(taken[0].delivery.id, failure(1, 11), Some(at(12))).await.unwrap();
    let enable = |enabled| WebhookChange { enabled: Some(enabled), ..WebhookChange::default() };
    let off = f.store.update_webhook(&caller, hook.id, enable(false), at(13)).await.unwrap();
    assert!(!off.enabled);
    let left: Vec<Uuid> = deliveries(&f, &caller, hook.id).await.into_iter().map(|delivery| delivery.id).collect();
    assert_eq!(left, [taken[2].delivery.id, taken[1].delivery.id], "those that are being sent");
    recorded(&f, &caller, "create", 14).await;
    // One fails, the worker of the other is gone.
    f.store.delivery_done(taken[1].delivery.id, failure(1, 15), Some(at(16))).await.unwrap();
    assert!(take(&f, 1000).await.is_empty());
    let ends: Vec<_> = deliveries(&f, &caller, hook.id).await;
    assert!(ends.len() == 2 && ends.iter().all(|end| end.delivery_status == "dead_letter"), "{ends:?}");
    assert_eq!(ends[0].last_error.as_deref(), Some("the webhook was disabled"));
    f.store.update_webhook(&caller, hook.id, enable(true), at(1001)).await.unwrap();
    recorded(&f, &caller, "create", 1001).await;
    assert_eq!(take(&f, 1001).await.len(), 1);
}

#[tokio::test]
async fn an_event_stays_until_its_deliveries_are_over() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let hook = hooked(&f, &caller, &["create"]).await;
    let (first, second) = (recorded(&f, &caller, "create", 10).await, recorded(&f, &caller, "create", 11).await);
    let taken = take(&f, 11).await;
    assert_eq!(f.store.forget_events(at(100), 10).await.unwrap(), 0);
    f.store.delivery_done(taken[0].delivery.id, failure(1, 12), Some(at(90))).await.unwrap();
    f.store.delivery_done(taken[1].delivery.id, success(1, 12), None).await.unwrap();
    assert_eq!(f.store.forget_events(at(100), 10).await.unwrap(), 1, "the other one is tried again");
    let left = f.store.list_events(&caller, EventFilter { limit: 10, ..EventFilter::default() }).await.unwrap();
    let kept = if taken[0].event.id == first.id { first } else { second };
    assert_eq!(left, [kept]);
    assert_eq!(deliveries(&f, &caller, hook.id).await.len(), 1);
    take(&f, 90).await;
    f.store.delivery_done(taken[0].delivery.id, failure(2, 91), None).await.unwrap();
    assert_eq!(f.store.forget_events(at(100), 10).await.unwrap(), 1);
    for table in ["SELECT id FROM events", "SELECT id FROM deliveries", "SELECT id FROM attempts"] {
        assert!(f.query(table).await.is_empty(), "{table}");
    }
}

/// The receiver never answers, and events come for ever.
#[tokio::test]
async fn the_queue_of_a_webhook_has_an_end() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let (full, other) = (hooked(&f, &caller, &["create"]).await, hooked(&f, &caller, &["create", "fork"]).await);
    let many: Vec<NewEvent> = (0..2_000).map(|_| event(&caller, "create", at(10))).collect();
    f.store.record_events(many, at(10)).await.unwrap();
    f.sabotage("UPDATE deliveries SET delivery_status = 'succeeded', due_at = NULL WHERE webhook_id = (SELECT max(id) FROM webhooks)")
        .await;
    recorded(&f, &caller, "create", 11).await;
    let newest = &deliveries(&f, &caller, full.id).await[0];
    assert_eq!((newest.delivery_status.as_str(), newest.created_at), ("dead_letter", at(11)));
    assert!(newest.last_error.as_ref().unwrap().contains("2000"), "{newest:?}");
    assert_eq!(deliveries(&f, &caller, other.id).await[0].delivery_status, "queued", "the others get theirs");
    let began = std::time::Instant::now();
    let taken = f.store.take_deliveries("host", at(11), at(40), 16, 4).await.unwrap();
    assert_eq!(taken.len(), 5);
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());
    // One of the queue is over: there is a place.
    let of_full = taken.iter().find(|one| one.webhook.id == full.id).unwrap();
    f.store.delivery_done(of_full.delivery.id, success(1, 12), None).await.unwrap();
    recorded(&f, &caller, "create", 13).await;
    assert_eq!(deliveries(&f, &caller, full.id).await[0].delivery_status, "queued");
}

#[tokio::test]
async fn deliveries_are_listed_newest_first_in_pages() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let hook = hooked(&f, &caller, &["create"]).await;
    let mut events = Vec::new();
    for now in 10..17 {
        events.push(recorded(&f, &caller, "create", now).await.id);
    }
    let listed = async |offset, limit| -> Vec<Uuid> {
        let found: Result<Vec<Delivery>, DbError> = f.store.list_deliveries(&caller, hook.id, offset, limit).await;
        found.unwrap().into_iter().map(|delivery| delivery.event).collect()
    };
    events.reverse();
    assert_eq!(listed(0, 3).await, events[..3]);
    assert_eq!(listed(3, 3).await, events[3..6]);
    assert_eq!(listed(6, 3).await, events[6..]);
    assert!(listed(7, 3).await.is_empty() && listed(u64::MAX, 3).await.is_empty());
    assert_eq!(f.store.next_delivery().await.unwrap(), Some(at(10)));
}

#[tokio::test]
async fn what_a_killed_service_was_sending_is_due_at_its_hosts_next_start_and_others_go_on() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    hooked(&f, &caller, &["fork"]).await;
    recorded(&f, &caller, "fork", 1).await;
    recorded(&f, &caller, "fork", 2).await;
    let ours = f.store.take_deliveries("ours", at(10), at(70), 1, 4).await.unwrap();
    let theirs = f.store.take_deliveries("theirs", at(10), at(70), 1, 4).await.unwrap();
    assert_eq!((ours.len(), theirs.len()), (1, 1));
    assert_eq!(f.store.take_over_deliveries("ours", at(11)).await.unwrap(), 1);
    let again = f.store.take_deliveries("ours", at(11), at(71), 4, 4).await.unwrap();
    assert_eq!(again.iter().map(|taken| taken.delivery.id).collect::<Vec<_>>(), [ours[0].delivery.id]);
    assert_eq!(f.store.take_over_deliveries("nobody", at(12)).await.unwrap(), 0);
}

#[tokio::test]
async fn what_secrets_were_sealed_with_is_counted_while_their_rows_are_not_over() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    assert_eq!(f.store.sealed().await.unwrap(), BTreeMap::new());
    let artifact = f.ready(&caller, "web", &["default"], at(1)).await.artifact_id;
    let mut sandboxes = Vec::new();
    for (envs, token) in [(None, None), (Some(1), None), (None, Some(1)), (Some(1), Some(1)), (Some(1), Some(2))] {
        let sealed = |key: Option<u8>| key.map(|key| vec![key, 9, 9]);
        let asked =
            NewSandbox { sealed_envs: sealed(envs), sealed_traffic_token: sealed(token), ..new_sandbox(artifact) };
        sandboxes.push(asked.id);
        f.store.insert_sandbox(&caller, asked, at(2)).await.unwrap();
    }
    f.store.set_sandbox_status(sandboxes[4], SandboxStatus::Running, None, at(3)).await.unwrap();
    f.store.record_snapshot(new_snapshot(sandboxes[4], SnapshotKind::Kept), None, at(4)).await.unwrap();
    let new = Webhook { sealed_secret: vec![7, 1], ..webhook(&caller, &[]) };
    let hook = f.store.insert_webhook(new, 20).await.unwrap();
    let rows = |sandboxes, snapshots, webhooks| SealedRows { sandboxes, snapshots, webhooks };
    let all = BTreeMap::from([(1, rows(4, 1, 0)), (2, rows(1, 0, 0)), (7, rows(0, 0, 1))]);
    assert_eq!(f.store.sealed().await.unwrap(), all);

    f.store.delete_webhook(&caller, hook.id).await.unwrap();
    for sandbox in sandboxes {
        f.store.set_sandbox_status(sandbox, SandboxStatus::Destroyed, None, at(5)).await.unwrap();
    }
    assert_eq!(f.store.sealed().await.unwrap(), BTreeMap::from([(1, rows(0, 1, 0))]));
}
