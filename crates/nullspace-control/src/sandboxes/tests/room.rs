//! Pauses for room on a full host.

use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nullspace_api::{CreateSandboxRequest, ErrorResponseCode as Code, SandboxStatus as Status};
use nullspace_db::NamespaceKind;
use nullspace_service::{Error, Sandboxes as _};
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
async fn the_tenant_that_holds_most_gives_first_unless_it_may_pause_no_more() {
    let house = House::new(LifeSettings { paused_per_tenant: 1, ..wanted() }).await;
    let other = house.other().await;
    let theirs = house.try_create(&other).await.unwrap();
    let mine = [house.create(json!({})).await, house.create(json!({})).await, house.create(json!({})).await];
    house.idles(&theirs, Some(9000));
    for id in &mine {
        house.idles(id, Some(100));
    }
    house.has_places(4);
    house.try_create(&other).await.unwrap();
    let row = house.control.get_sandbox(&other, &theirs).await.unwrap();
    assert_eq!(row.status, Status::Running, "the other tenant holds less");
    let mut paused = 0;
    for id in &mine {
        paused += u32::from(house.status(id).await == Ok(Status::Paused));
    }
    assert_eq!(paused, 1);
    // Two each. The first tenant is at its limit of paused ones.
    let fifth = house.try_create(&house.caller).await;
    assert!(fifth.is_ok(), "{fifth:?}");
    assert_eq!(house.control.get_sandbox(&other, &theirs).await.unwrap().status, Status::Paused);
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
