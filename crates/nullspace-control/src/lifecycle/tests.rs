//! Recording, listing and following over a real database.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use nullspace_api::{LifecycleOperation, LifecycleStatus};
use nullspace_db::{Database, EventFilter, NamespaceKind, SqliteStore};
use nullspace_service::{Error, EventStream};
use nullspace_types::{Caller, SandboxId, SnapshotId, TenantId};

use super::follow::follow;
use super::record::{Event, State};

/// A database in a folder of its own, with one tenant.
pub(super) struct Store {
    pub(super) db: Arc<dyn Database>,
    pub(super) caller: Caller,
    _dir: tempfile::TempDir,
}

pub(super) async fn store() -> Store {
    let dir = tempfile::TempDir::new().unwrap();
    let db = SqliteStore::open(&dir.path().join("nullspace.db")).await.unwrap();
    let db: Arc<dyn Database> = Arc::new(db);
    let caller = db.ensure_tenant("acme", NamespaceKind::User, Timestamp::now()).await.unwrap().caller();
    Store { db, caller, _dir: dir }
}

fn all() -> EventFilter {
    EventFilter { ascending: true, limit: 1000, ..EventFilter::default() }
}

/// Records creations of sandboxes, written to the database.
async fn create(store: &Store, state: &State, number: usize) -> Vec<String> {
    let mut made = Vec::new();
    for _ in 0..number {
        let sandbox = SandboxId::new();
        state.record(Event::succeeded(store.caller.tenant, LifecycleOperation::Create).sandbox(sandbox));
        made.push(sandbox.to_string());
    }
    state.flush(&*store.db).await.unwrap();
    made
}

async fn take(stream: &mut EventStream, number: usize) -> Vec<String> {
    let events = stream.take(number).map(|event| event.unwrap().sandbox_id.unwrap()).collect();
    tokio::time::timeout(Duration::from_secs(20), events).await.expect("as many events")
}

async fn followed(store: &Store, state: &State, filter: EventFilter, after: Option<&str>, replay: u32) -> EventStream {
    let after = after.map(|id| id.parse().unwrap());
    follow(store.db.clone(), &state.followers, &store.caller, filter, after, replay).await.unwrap()
}

#[tokio::test]
async fn events_are_stored_in_their_order_and_one_that_is_refused_loses_no_other() {
    let (store, state) = (store().await, State::default());
    let (snapshot, source) = (SnapshotId::new(), SandboxId::new());
    let event = Event::requested(store.caller.tenant, LifecycleOperation::Hibernate).sandbox(source).snapshot(snapshot);
    let event = event.reason("timeout").detail("timeout_action", "hibernate");
    state.record(event.clone());
    // Nobody's: the database refuses it for good.
    state.record(Event::requested(TenantId::new(), LifecycleOperation::Create));
    state.record(event.clone().now_failed(&Error::sandbox_not_found("sb_1")));
    state.record(event.now_succeeded());
    state.flush(&*store.db).await.unwrap();
    assert_eq!((state.waiting(), state.counts().lost_so_far()), (0, 1));
    let stored = store.db.list_events(&store.caller, all()).await.unwrap();
    let statuses: Vec<&str> = stored.iter().map(|event| event.status.as_str()).collect();
    assert_eq!(statuses, ["requested", "failed", "succeeded"]);
    let failed = super::wire::event(stored[1].clone()).unwrap();
    assert_eq!((failed.operation, failed.status), (LifecycleOperation::Hibernate, LifecycleStatus::Failed));
    assert_eq!((failed.sandbox_id, failed.snapshot_id), (Some(source.to_string()), Some(snapshot.to_string())));
    assert_eq!((failed.reason.as_deref(), failed.error_code.as_deref()), (Some("timeout"), Some("sandbox_not_found")));
    assert_eq!(failed.metadata["timeout_action"], "hibernate");
    assert_eq!(failed.user_id, Some(store.caller.tenant.uuid().to_string()));
}

#[tokio::test]
async fn a_database_that_is_away_keeps_events_in_the_queue() {
    let (store, state) = (store().await, State::default());
    create(&store, &state, 1).await;
    store.db.close().await;
    state.record(Event::requested(store.caller.tenant, LifecycleOperation::Create));
    assert!(state.flush(&*store.db).await.unwrap_err().is_retryable());
    assert_eq!((state.waiting(), state.counts().lost_so_far()), (1, 0));
}

#[tokio::test]
async fn a_follower_gets_the_past_and_the_present_without_gap_or_double() {
    let (store, state) = (Arc::new(store().await), Arc::new(State::default()));
    let mut made = create(&store, &state, 250).await;
    let first = store.db.list_events(&store.caller, EventFilter { limit: 1, ..all() }).await.unwrap()[0].id.to_string();
    // Events are written all the time while followers join.
    let writer = tokio::spawn({
        let (store, state) = (Arc::clone(&store), Arc::clone(&state));
        async move {
            let mut made = Vec::new();
            for _ in 0..60 {
                made.extend(create(&store, &state, 3).await);
                tokio::task::yield_now().await;
            }
            made
        }
    });
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut stream = followed(&store, &state, all(), Some(&first), 0).await;
        readers.spawn(async move { take(&mut stream, 249 + 180).await });
        tokio::task::yield_now().await;
    }
    made.extend(writer.await.unwrap());
    while let Some(read) = readers.join_next().await {
        assert_eq!(read.unwrap(), made[1..]);
    }
}

#[tokio::test]
async fn the_newest_few_come_first_then_what_matches() {
    let (store, state) = (store().await, State::default());
    let made = create(&store, &state, 5).await;
    let mut live = followed(&store, &state, all(), None, 0).await;
    let mut replayed = followed(&store, &state, all(), None, 2).await;
    let only = EventFilter { about: Some(made[1].parse().unwrap()), ..all() };
    let mut one = followed(&store, &state, only, None, 100).await;
    let more = create(&store, &state, 2).await;
    assert_eq!(take(&mut live, 2).await, more);
    assert_eq!(take(&mut replayed, 4).await, [&made[3..], &more].concat());
    assert_eq!(take(&mut one, 1).await, made[1..2]);
    let other = store.db.ensure_tenant("other", NamespaceKind::User, Timestamp::now()).await.unwrap().caller();
    state.record(Event::succeeded(other.tenant, LifecycleOperation::Create).sandbox(made[1].parse().unwrap()));
    state.record(Event::succeeded(store.caller.tenant, LifecycleOperation::Fork).source(made[1].parse().unwrap()));
    state.flush(&*store.db).await.unwrap();
    let forked = one.next().await.unwrap().unwrap();
    assert_eq!((forked.operation, forked.sandbox_id), (LifecycleOperation::Fork, None), "not the other tenant's");
}

#[tokio::test]
async fn a_slow_follower_is_ended_with_an_error_and_leaves() {
    let (store, state) = (store().await, State::default());
    let mut slow = followed(&store, &state, all(), None, 0).await;
    let mut gone = followed(&store, &state, all(), None, 0).await;
    let made = create(&store, &state, 256).await;
    assert_eq!(take(&mut gone, 1).await, made[..1]);
    drop(gone);
    assert_eq!(state.followers.number(), 1);
    create(&store, &state, 1).await;
    assert_eq!(state.followers.number(), 0);
    assert_eq!(take(&mut slow, 256).await, made);
    let error = slow.next().await.unwrap().unwrap_err();
    assert!(error.message.contains("too slowly"), "{error}");
    assert!(slow.next().await.is_none());
}

#[tokio::test]
async fn followers_have_a_limit_and_end_with_the_service() {
    let (store, state) = (store().await, State::default());
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(followed(&store, &state, all(), None, 0).await);
    }
    let join = || follow(store.db.clone(), &state.followers, &store.caller, all(), None, 0);
    let Err(refused) = join().await else { panic!("one follower too many") };
    assert!(refused.retry_after.is_some() && refused.message.contains("Too many"), "{refused}");
    streams.pop();
    streams.push(join().await.unwrap());
    state.followers.close();
    for mut stream in streams {
        assert!(stream.next().await.is_none());
    }
    assert!(join().await.is_err());
}

#[tokio::test]
async fn followers_and_lists_agree_on_what_a_filter_means() {
    let (store, state) = (store().await, State::default());
    let sandboxes = [SandboxId::new(), SandboxId::new()];
    let snapshot = SnapshotId::new();
    let operations = [LifecycleOperation::Fork, LifecycleOperation::SnapshotCreated];
    for number in 0..64_usize {
        let event = Event::requested(store.caller.tenant, operations[number % 2]);
        let event = if number & 2 == 0 { event } else { event.now_succeeded() };
        let event = if number & 4 == 0 { event } else { event.sandbox(sandboxes[0]) };
        let event = if number & 8 == 0 { event } else { event.source(sandboxes[number & 1]) };
        let event = if number & 16 == 0 { event } else { event.target(sandboxes[1]) };
        state.record(if number & 32 == 0 { event } else { event.snapshot(snapshot) });
    }
    state.flush(&*store.db).await.unwrap();
    let stored = store.db.list_events(&store.caller, all()).await.unwrap();
    let middle = &stored[31];
    for filter in [
        all(),
        EventFilter { about: Some(sandboxes[0]), ..all() },
        EventFilter { about: Some(sandboxes[1]), status: Some("succeeded".to_owned()), ..all() },
        EventFilter { sandbox: Some(sandboxes[0]), ..all() },
        EventFilter { source: Some(sandboxes[0]), operation: Some("fork".to_owned()), ..all() },
        EventFilter { target: Some(sandboxes[1]), ..all() },
        EventFilter { snapshot: Some(snapshot), ..all() },
        EventFilter { from: Some(middle.occurred_at), ..all() },
        EventFilter { to: Some(middle.occurred_at), ..all() },
        EventFilter { after: Some(middle.id), ..all() },
    ] {
        let listed = store.db.list_events(&store.caller, filter.clone()).await.unwrap();
        let matching: Vec<_> = stored.iter().filter(|event| super::follow::matches(&filter, event)).cloned().collect();
        assert!(!listed.is_empty(), "{filter:?}");
        assert_eq!(listed, matching, "{filter:?}");
    }
}
