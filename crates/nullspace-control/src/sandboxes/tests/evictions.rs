//! Evictions on a full host.

use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nullspace_api::{CreateSandboxRequest, ErrorResponseCode as Code, PromoteSnapshotRequest, SandboxStatus as Status};
use nullspace_db::NamespaceKind;
use nullspace_service::{Error, Life as _, Sandboxes as _};
use nullspace_types::Caller;
use serde_json::json;

use super::{House, at, context, template, usual};
use crate::sandboxes::LifeSettings;

fn wanted() -> LifeSettings {
    LifeSettings { pause_when_full: Some(Duration::from_secs(60)), ..usual() }
}

impl House {
    /// A host with so many places.
    fn has_places(&self, most: usize) {
        self.host.state.most.store(most, Ordering::SeqCst);
    }

    /// A sandbox idles for so many seconds by now; `None`: it is in use.
    fn idles(&self, id: &str, secs: Option<i64>) {
        let since = secs.map(|secs| Timestamp::now() - SignedDuration::from_secs(secs));
        self.host.machines().get_mut(&id.parse().unwrap()).unwrap().idle_since = since;
    }

    async fn try_create(&self, caller: &Caller) -> Result<String, Error> {
        let request = CreateSandboxRequest { template: Some("web".to_owned()), ..CreateSandboxRequest::default() };
        self.control.create_sandbox(caller, request, &context(None)).await.map(|made| made.id)
    }

    async fn other(&self) -> Caller {
        let db = &self.control.inner.db;
        let other = db.ensure_tenant("other", NamespaceKind::User, at(0)).await.unwrap().caller();
        template(&**db, &other).await;
        other
    }
}

#[tokio::test]
async fn a_full_host_refuses_unless_the_operator_wants_otherwise() {
    let house = House::new(usual()).await;
    let one = house.create(json!({})).await;
    house.idles(&one, Some(4000));
    house.has_places(1);
    assert_eq!(house.try_create(&house.caller).await.unwrap_err().code, Code::CapacityExceeded);
    assert_eq!(house.status(&one).await, Ok(Status::Running));
    house.control.stop().await;
}

#[tokio::test]
async fn what_idles_longest_is_paused_and_its_owner_is_told() {
    let house = House::new(wanted()).await;
    let (short, long, busy) =
        (house.create(json!({})).await, house.create(json!({})).await, house.create(json!({})).await);
    house.idles(&short, Some(100));
    house.idles(&long, Some(200));
    house.idles(&busy, None);
    house.has_places(3);
    house.try_create(&house.caller).await.unwrap();
    assert_eq!(house.status(&long).await, Ok(Status::Paused));
    assert_eq!(house.status(&short).await, Ok(Status::Running));
    let told = house.told(&long).await;
    assert!(told.contains(&"hibernate succeeded host_full".to_owned()), "{told:?}");
    // The next one takes the other place, and then nobody idles for long enough.
    house.try_create(&house.caller).await.unwrap();
    assert_eq!(house.status(&short).await, Ok(Status::Paused));
    assert_eq!(house.try_create(&house.caller).await.unwrap_err().code, Code::CapacityExceeded);
    assert_eq!(house.status(&busy).await, Ok(Status::Running));
    // A resume makes room in the same way.
    house.idles(&busy, Some(300));
    house.resume(&long).await.unwrap();
    assert_eq!(house.status(&busy).await, Ok(Status::Paused));
    house.control.stop().await;
}

#[tokio::test]
async fn ephemeral_ones_stay_and_a_pause_that_fails_is_no_end() {
    let house = House::new(wanted()).await;
    let (ephemeral, one, two) =
        (house.create(json!({"ephemeral": true})).await, house.create(json!({})).await, house.create(json!({})).await);
    for (id, secs) in [(&ephemeral, 900), (&one, 300), (&two, 200)] {
        house.idles(id, Some(secs));
    }
    house.has_places(3);
    house.host.state.failing_captures.store(1, Ordering::SeqCst);
    house.try_create(&house.caller).await.unwrap();
    assert_eq!(house.status(&ephemeral).await, Ok(Status::Running));
    assert_eq!(house.status(&one).await, Ok(Status::Running), "its capture has failed");
    assert_eq!(house.status(&two).await, Ok(Status::Paused));
    house.control.stop().await;
}

#[tokio::test]
async fn a_tenant_gives_its_own_first_and_never_evicts_one_that_holds_no_more() {
    let house = House::new(LifeSettings { paused_per_tenant: 2, ..wanted() }).await;
    let other = house.other().await;
    let theirs = house.try_create(&other).await.unwrap();
    let mut mine = Vec::new();
    for _ in 0..3 {
        mine.push(house.create(json!({})).await);
        house.idles(mine.last().unwrap(), Some(100));
    }
    house.has_places(4);
    let their_status = async || house.control.get_sandbox(&other, &theirs).await.unwrap().status;
    let running = async |ids: &[String]| {
        let mut running = 0;
        for id in ids {
            running += u32::from(house.status(id).await == Ok(Status::Running));
        }
        running
    };
    // Theirs is in use, and they hold less than the first tenant.
    house.idles(&theirs, None);
    let second = house.try_create(&other).await.unwrap();
    assert_eq!(running(&mine).await, 2);
    // Two each: what the other tenant has idles longer, but it holds no more than the first.
    for id in &mine {
        if house.status(id).await == Ok(Status::Running) {
            house.idles(id, None);
        }
    }
    house.idles(&theirs, Some(9000));
    assert_eq!(house.try_create(&house.caller).await.unwrap_err().code, Code::CapacityExceeded);
    assert_eq!(their_status().await, Status::Running);
    // Their own start takes it.
    house.try_create(&other).await.unwrap();
    assert_eq!(their_status().await, Status::Paused);
    // One of the other tenant's is evicted, which is half of what it may have paused: no second one is.
    house.idles(&second, Some(9000));
    assert_eq!(house.try_create(&other).await.unwrap_err().code, Code::CapacityExceeded);
    house.control.stop().await;
}

#[tokio::test]
async fn ones_that_cannot_be_paused_keep_no_other_from_being_evicted() {
    let house = House::new(wanted()).await;
    let mut idle = Vec::new();
    for secs in [900, 800, 700, 600, 500, 400] {
        idle.push(house.create(json!({})).await);
        house.idles(idle.last().unwrap(), Some(secs));
    }
    house.has_places(6);
    house.host.state.failing_captures.store(5, Ordering::SeqCst);
    house.try_create(&house.caller).await.unwrap();
    assert_eq!(house.status(&idle[5]).await, Ok(Status::Paused));
    // They are left alone for a while: the next start tries none of them again.
    let before = house.host.state.capturing.load(Ordering::SeqCst);
    assert_eq!(house.try_create(&house.caller).await.unwrap_err().code, Code::CapacityExceeded);
    assert_eq!(house.host.state.capturing.load(Ordering::SeqCst), before);
    house.control.stop().await;
}

#[tokio::test]
async fn one_that_is_used_again_before_it_is_frozen_runs_on() {
    let house = House::new(wanted()).await;
    let id = house.create(json!({})).await;
    house.idles(&id, Some(100));
    house.has_places(1);
    let look = house.host.looks.acquire_many(1000).await.unwrap();
    let using = async {
        while house.host.looks.available_permits() == 0 && house.told(&id).await.len() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        house.idles(&id, None);
        drop(look);
    };
    let (refused, ()) = tokio::join!(house.try_create(&house.caller), using);
    assert_eq!(refused.unwrap_err().code, Code::CapacityExceeded);
    assert_eq!(house.status(&id).await, Ok(Status::Running));
    assert_eq!(house.host.state.capturing.load(Ordering::SeqCst), 0);
    house.control.stop().await;
}

#[tokio::test]
async fn an_evicted_one_ends_or_stays_as_its_timeout_says_and_does_not_count_as_paused() {
    let house = House::new(LifeSettings { paused_per_tenant: 4, ..wanted() }).await;
    let ends = house.create(json!({"timeout_ms": 3_600_000, "auto_delete_after_ms": 1000})).await;
    let stays = house.create(json!({"timeout_ms": 3_600_000, "timeout_action": "hibernate"})).await;
    let at = async |id: &str| house.control.get_sandbox(&house.caller, id).await.unwrap().expires_at;
    let before = [at(&ends).await, at(&stays).await];
    assert!(before[0].is_some() && before[1].is_some());
    house.has_places(2);
    for id in [&ends, &stays] {
        house.idles(id, Some(100));
        house.try_create(&house.caller).await.unwrap();
        assert_eq!(house.status(id).await, Ok(Status::Paused));
    }
    assert_eq!([at(&ends).await, at(&stays).await], before, "its own end, not that of auto_delete_after_ms");
    // The limit of four paused ones is its owner's alone.
    house.has_places(0);
    for _ in 0..4 {
        let id = house.create(json!({})).await;
        house.pause(&id).await.unwrap();
    }
    let fifth = house.create(json!({})).await;
    assert_eq!(house.pause(&fifth).await.unwrap_err().code, Code::QuotaExceeded);

    let inner = &house.control.inner;
    let now = Timestamp::now();
    inner.end_due(now + SignedDuration::from_secs(3599), 100).await.unwrap();
    assert_eq!([house.status(&ends).await, house.status(&stays).await], [Ok(Status::Paused); 2], "not yet");
    inner.end_due(now + SignedDuration::from_secs(3601), 100).await.unwrap();
    assert_eq!(house.status(&ends).await, Err(Code::SandboxNotFound));
    assert_eq!((house.status(&stays).await, at(&stays).await), (Ok(Status::Paused), None));
    for (id, action) in [(&ends, "destroy succeeded timeout"), (&stays, "timeout_expired succeeded timeout")] {
        let told = house.told(id).await;
        assert!(told.contains(&action.to_owned()), "{told:?}");
    }
    house.control.stop().await;
}

#[tokio::test]
async fn an_evicted_one_keeps_its_timeout_when_it_is_used_and_its_owner_can_pause_it() {
    let house = House::new(wanted()).await;
    let woken = house.create(json!({"timeout_ms": 3_600_000, "auto_resume": true})).await;
    let kept = house.create(json!({"timeout_ms": 3_600_000})).await;
    let at = async |id: &str| house.control.get_sandbox(&house.caller, id).await.unwrap().expires_at;
    let before = at(&woken).await;
    house.has_places(2);
    for id in [&woken, &kept] {
        house.idles(id, Some(100));
        house.try_create(&house.caller).await.unwrap();
    }
    house.has_places(0);
    tokio::time::sleep(Duration::from_millis(5)).await;
    house.control.live_sandbox(&house.caller, &woken).await.unwrap();
    assert_eq!((house.status(&woken).await, at(&woken).await), (Ok(Status::Running), before));
    // Its owner's pause is without end.
    house.pause(&kept).await.unwrap();
    assert_eq!((house.status(&kept).await, at(&kept).await), (Ok(Status::Paused), None));
    let counts = house.control.inner.db.count_snapshots(&house.caller).await.unwrap();
    assert_eq!((counts.paused, counts.evicted), (1, 0));
    house.control.stop().await;
}

#[tokio::test]
async fn a_fork_and_a_trial_evict_nobody() {
    let house = House::new(wanted()).await;
    let id = house.create(json!({})).await;
    let snapshot =
        house.control.create_snapshot(&house.caller, &id, Default::default(), &context(None)).await.unwrap().id;
    house.idles(&id, Some(9000));
    // The place for the fork is the last one.
    house.has_places(2);
    let fork = house.control.fork_sandbox(&house.caller, &id, &context(None)).await.unwrap().id;
    assert_eq!([house.status(&id).await, house.status(&fork).await], [Ok(Status::Running); 2]);
    house.idles(&fork, Some(9000));
    let refused = house.control.fork_sandbox(&house.caller, &id, &context(None)).await.unwrap_err();
    assert_eq!(refused.code, Code::CapacityExceeded);
    let request = PromoteSnapshotRequest { name: "warm".to_owned(), tag: None };
    let refused = house.control.promote_snapshot(&house.caller, &snapshot, request, &context(None)).await;
    assert_eq!(refused.unwrap_err().code, Code::CapacityExceeded);
    assert_eq!([house.status(&id).await, house.status(&fork).await], [Ok(Status::Running); 2]);
    house.control.stop().await;
}

#[tokio::test]
async fn starts_at_once_pause_no_more_than_they_need() {
    let house = House::new(wanted()).await;
    let mut idle = Vec::new();
    for _ in 0..6 {
        let id = house.create(json!({})).await;
        house.idles(&id, Some(100));
        idle.push(id);
    }
    house.has_places(6);
    let starts = (0..3).map(|_| house.try_create(&house.caller));
    let made = futures::future::join_all(starts).await;
    let made = made.iter().filter(|made| made.is_ok()).count();
    let mut paused = 0;
    for id in &idle {
        paused += usize::from(house.status(id).await == Ok(Status::Paused));
    }
    assert!(made >= 1 && paused <= 3 && made == paused, "{made} made, {paused} paused");
    house.control.stop().await;
}
