//! Lifecycle events: recorded once, each tenant's own, found by what they name, and forgotten after their time.

use jiff::Timestamp;
use nullspace_db::{EventFilter, NewEvent};
use nullspace_types::{Caller, SandboxId, SnapshotId};
use serde_json::json;
use uuid::Uuid;

use crate::fixture::{Fixture, at};

/// An event of a sandbox.
pub(crate) fn event(caller: &Caller, operation: &str, now: Timestamp) -> NewEvent {
    NewEvent {
        id: Uuid::now_v7(),
        tenant: caller.tenant,
        occurred_at: now,
        operation: operation.to_owned(),
        status: "succeeded".to_owned(),
        actor: "user".to_owned(),
        sandbox: Some(SandboxId::new()),
        snapshot: None,
        source: None,
        target: None,
        reason: None,
        error: None,
        metadata: json!({}),
    }
}

fn page(limit: u32) -> EventFilter {
    EventFilter { limit, ..EventFilter::default() }
}

async fn listed(f: &Fixture, caller: &Caller, filter: EventFilter) -> Vec<Uuid> {
    f.store.list_events(caller, filter).await.unwrap().into_iter().map(|event| event.id).collect()
}

#[tokio::test]
async fn an_event_is_read_as_it_was_recorded_and_recorded_once() {
    let f = Fixture::new().await;
    let (caller, other) = (f.tenant("acme").await, f.tenant("other").await);
    let full = NewEvent {
        status: "failed".to_owned(),
        snapshot: Some(SnapshotId::new()),
        source: Some(SandboxId::new()),
        target: Some(SandboxId::new()),
        reason: Some("timeout".to_owned()),
        error: Some(("capacity_exceeded".to_owned(), "the host is full".to_owned())),
        metadata: json!({ "timeout_action": "hibernate" }),
        ..event(&caller, "fork", at(5))
    };
    let plain = NewEvent { sandbox: None, ..event(&caller, "create", at(6)) };
    let theirs = event(&other, "create", at(6));
    f.store.record_events(vec![full.clone(), plain.clone(), theirs.clone()], at(6)).await.unwrap();
    // As after an answer that was lost.
    let changed = NewEvent { reason: None, ..full.clone() };
    f.store.record_events(vec![changed, plain.clone()], at(7)).await.unwrap();
    f.store.record_events(Vec::new(), at(7)).await.unwrap();
    assert_eq!(f.store.list_events(&caller, page(10)).await.unwrap(), [plain, full.clone()]);
    assert_eq!(f.store.list_events(&other, page(10)).await.unwrap(), [theirs]);
    for filter in [
        EventFilter { sandbox: full.sandbox, ..page(10) },
        EventFilter { about: full.source, ..page(10) },
        EventFilter { snapshot: full.snapshot, ..page(10) },
    ] {
        assert_eq!(listed(&f, &caller, filter.clone()).await, [full.id]);
        assert!(f.store.list_events(&other, filter).await.unwrap().is_empty(), "another tenant's");
    }
}

#[tokio::test]
async fn events_are_found_by_everything_they_name() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let (one, two, snapshot) = (SandboxId::new(), SandboxId::new(), SnapshotId::new());
    let events = vec![
        NewEvent { sandbox: Some(one), ..event(&caller, "create", at(1)) },
        NewEvent { sandbox: Some(one), snapshot: Some(snapshot), ..event(&caller, "hibernate", at(2)) },
        NewEvent {
            sandbox: Some(two),
            snapshot: Some(snapshot),
            source: Some(one),
            target: Some(two),
            status: "requested".to_owned(),
            ..event(&caller, "resume_from_snapshot", at(3))
        },
        NewEvent {
            sandbox: Some(two),
            snapshot: Some(snapshot),
            source: Some(one),
            target: Some(two),
            ..event(&caller, "resume_from_snapshot", at(4))
        },
        NewEvent { sandbox: Some(two), ..event(&caller, "destroy", at(5)) },
    ];
    let ids: Vec<Uuid> = events.iter().map(|event| event.id).collect();
    f.store.record_events(events, at(5)).await.unwrap();
    let ascending = |filter: EventFilter| EventFilter { ascending: true, ..filter };
    let word = |word: &str| Some(word.to_owned());
    for (filter, expected) in [
        (page(10), vec![0, 1, 2, 3, 4]),
        (EventFilter { about: Some(one), ..page(10) }, vec![0, 1, 2, 3]),
        (EventFilter { about: Some(two), ..page(10) }, vec![2, 3, 4]),
        (EventFilter { sandbox: Some(one), ..page(10) }, vec![0, 1]),
        (EventFilter { source: Some(one), ..page(10) }, vec![2, 3]),
        (EventFilter { target: Some(two), ..page(10) }, vec![2, 3]),
        (EventFilter { snapshot: Some(snapshot), ..page(10) }, vec![1, 2, 3]),
        (EventFilter { about: Some(one), snapshot: Some(snapshot), target: Some(two), ..page(10) }, vec![2, 3]),
        (EventFilter { operation: word("resume_from_snapshot"), status: word("requested"), ..page(10) }, vec![2]),
        (EventFilter { operation: word("fork"), ..page(10) }, vec![]),
        (EventFilter { from: Some(at(2)), to: Some(at(4)), ..page(10) }, vec![1, 2, 3]),
        (EventFilter { after: Some(ids[2]), ..page(10) }, vec![3, 4]),
        (EventFilter { about: Some(one), after: Some(ids[0]), ..page(2) }, vec![1, 2]),
        (EventFilter { offset: 1, ..page(2) }, vec![1, 2]),
        (EventFilter { offset: u64::MAX, ..page(2) }, vec![]),
    ] {
        let expected: Vec<Uuid> = expected.into_iter().map(|index: usize| ids[index]).collect();
        assert_eq!(listed(&f, &caller, ascending(filter.clone())).await, expected, "{filter:?}");
        if filter.offset == 0 && filter.limit == 10 {
            let reversed: Vec<Uuid> = expected.into_iter().rev().collect();
            assert_eq!(listed(&f, &caller, filter.clone()).await, reversed, "{filter:?}");
        }
    }
    assert_eq!(listed(&f, &caller, page(2)).await, [ids[4], ids[3]]);
}

#[tokio::test]
async fn pages_of_events_have_no_gap_and_nothing_twice() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let events: Vec<NewEvent> = (0..25).map(|n| event(&caller, "create", at(n))).collect();
    let ids: Vec<Uuid> = events.iter().map(|event| event.id).collect();
    f.store.record_events(events, at(25)).await.unwrap();
    let mut read = Vec::new();
    let mut after = None;
    loop {
        let next = listed(&f, &caller, EventFilter { after, ascending: true, ..page(4) }).await;
        let Some(last) = next.last() else { break };
        after = Some(*last);
        read.extend(next);
    }
    assert_eq!(read, ids);
}

#[tokio::test]
async fn events_are_forgotten_in_batches() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let events: Vec<NewEvent> = (0..10).map(|n| event(&caller, "create", at(n))).collect();
    let ids: Vec<Uuid> = events.iter().map(|event| event.id).collect();
    f.store.record_events(events, at(10)).await.unwrap();
    assert_eq!(f.store.forget_events(at(0), 3).await.unwrap(), 0);
    assert_eq!(f.store.forget_events(at(7), 3).await.unwrap(), 3);
    assert_eq!(listed(&f, &caller, EventFilter { ascending: true, ..page(10) }).await, ids[3..]);
    assert_eq!(f.store.forget_events(at(7), 3).await.unwrap(), 3);
    assert_eq!(f.store.forget_events(at(7), 3).await.unwrap(), 1);
    assert_eq!(f.store.forget_events(at(7), 3).await.unwrap(), 0);
    assert_eq!(listed(&f, &caller, EventFilter { ascending: true, ..page(10) }).await, ids[7..]);
}
