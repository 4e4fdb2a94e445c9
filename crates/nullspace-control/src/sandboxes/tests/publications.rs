//! Captures of paused sandboxes that are stored behind the pause's answer.

use nullspace_db::Snapshot;
use nullspace_host_interface::CaptureLeft;
use tokio::sync::SemaphorePermit;

use super::*;
use crate::sandboxes::fake::streams;

impl House {
    /// Keeps publications from ending, while the value lives.
    async fn no_publications(&self) -> SemaphorePermit<'_> {
        let permits = self.host.publications.available_permits();
        self.host.publications.acquire_many(u32::try_from(permits).unwrap()).await.unwrap()
    }

    async fn until(&self, what: &str, is: impl AsyncFn() -> bool) {
        for _ in 0..1500 {
            if is().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never {what}: {:?}", self.published());
    }

    /// What became of captures since the last question.
    async fn until_published(&self, wanted: &[&str]) {
        self.until("published", async || self.published() == wanted).await;
    }

    fn published(&self) -> Vec<&'static str> {
        self.host.state.published.lock().unwrap().clone()
    }

    async fn row_of(&self, id: &str) -> Snapshot {
        self.control.inner.db.get_snapshot(&self.caller, id.parse().unwrap()).await.unwrap()
    }

    async fn until_stored(&self, id: &str) {
        self.until("stored", async || self.row_of(id).await.streams.is_some()).await;
        assert_eq!(self.row_of(id).await.streams, Some(streams()));
        assert_eq!(self.row_of(id).await.stored_bytes, 1 << 16);
        self.until_none_waits().await;
    }

    async fn until_none_waits(&self) {
        self.until("none waits", async || self.control.inner.sandboxes.publications.number() == 0).await;
    }

    /// A kill of the service: its tasks are gone, and it has flushed nothing.
    async fn kill(&self) {
        let inner = &self.control.inner;
        self.host.lose_all();
        for id in inner.db.captures("host-1").await.unwrap() {
            inner.sandboxes.publications.over(id.sandbox);
        }
        self.until_none_waits().await;
        inner.shutdown.cancel();
        inner.db.close().await;
        self.host.state.published.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn a_pause_answers_before_it_is_stored_and_can_be_resumed_at_once() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let none = house.no_publications().await;
    let snapshot = house.pause(&id).await.unwrap();
    assert!(house.host.machines().is_empty(), "its capacity is free");
    assert_eq!(house.status(&id).await, Ok(Status::Paused));
    assert_eq!(house.pause(&id).await.unwrap(), snapshot, "a repetition");
    let row = house.row_of(&snapshot).await;
    assert_eq!((&row.streams, row.stored_bytes, row.size_bytes), (&None, 0, 1 << 20));
    house.until_published(&["publish"]).await;
    let resumed = house.resume(&id).await.unwrap();
    assert_eq!(house.host.machine(&resumed).folder, row.folder);
    // Nobody wants it any more.
    house.until_published(&["publish", "stopped"]).await;
    house.until_none_waits().await;

    // Without a resume it is stored, and its raw files go.
    let snapshot = house.pause(&resumed).await.unwrap();
    drop(none);
    house.until_stored(&snapshot).await;
    assert_eq!(house.published(), ["publish", "stopped", "publish", "stored", "drop"]);
    let folder = house.row_of(&snapshot).await.folder;
    assert_eq!(house.host.state.named.lock().unwrap().iter().filter(|named| **named == folder).count(), 2);
    house.resume(&snapshot).await.unwrap();
    house.control.stop().await;
}

#[tokio::test]
async fn a_resume_does_not_share_the_processors_with_a_publication_which_goes_on_when_it_fails() {
    let house = Arc::new(House::new(usual()).await);
    let id = house.create(json!({})).await;
    let none = house.no_publications().await;
    let snapshot = house.pause(&id).await.unwrap();
    house.until_published(&["publish"]).await;
    house.host.state.failing_starts.store(1, Ordering::SeqCst);
    let permits = house.host.starting.available_permits();
    let held = house.host.starting.acquire_many(u32::try_from(permits).unwrap()).await.unwrap();
    let resume = tokio::spawn({
        let (house, id) = (Arc::clone(&house), id.clone());
        async move { house.resume(&id).await }
    });
    house.until_published(&["publish", "stopped"]).await;
    drop(none);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(house.published().len(), 2, "it waits");
    drop(held);
    resume.await.unwrap().unwrap_err();
    house.until_stored(&snapshot).await;
    assert_eq!(house.published(), ["publish", "stopped", "publish", "stored", "drop"]);
    assert_eq!(house.status(&id).await, Ok(Status::Paused));
    house.control.stop().await;
}

#[tokio::test]
async fn a_publication_that_fails_is_tried_again_and_the_sandbox_can_be_resumed_meanwhile() {
    let house = House::new(usual()).await;
    house.host.state.failing_publications.store(1, Ordering::SeqCst);
    let id = house.create(json!({})).await;
    let snapshot = house.pause(&id).await.unwrap();
    house.until_stored(&snapshot).await;
    // It outlives a crash of the host while it waits.
    assert_eq!(house.published(), ["publish", "failed", "flush", "publish", "stored", "drop"]);

    house.host.state.failing_publications.store(1000, Ordering::SeqCst);
    house.host.state.published.lock().unwrap().clear();
    let id = house.create(json!({"auto_resume": true})).await;
    house.pause(&id).await.unwrap();
    house.until_published(&["publish", "failed", "flush"]).await;
    assert_eq!(house.status(&id).await, Ok(Status::Paused));
    house.control.live_sandbox(&house.caller, &id).await.unwrap();
    house.until_none_waits().await;
    assert_eq!(house.status(&id).await, Ok(Status::Running));
    house.control.stop().await;
}

#[tokio::test]
async fn the_end_of_a_paused_sandbox_ends_its_publication() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let _none = house.no_publications().await;
    let folder = {
        let snapshot = house.pause(&id).await.unwrap();
        house.row_of(&snapshot).await.folder
    };
    house.until_published(&["publish"]).await;
    house.control.destroy_sandbox(&house.caller, &id).await.unwrap();
    house.until_none_waits().await;
    assert_eq!(house.published(), ["publish", "stopped"]);
    assert_eq!(house.status(&id).await, Err(Code::SandboxNotFound));
    // Its raw files go with its row.
    let inner = &house.control.inner;
    assert!(inner.db.known_files().await.unwrap().artifacts.contains_key(&folder));
    assert!(inner.collect_snapshots(Timestamp::now() + SignedDuration::from_mins(11), 10).await.unwrap());
    assert_eq!(*house.host.state.removed.lock().unwrap(), [folder]);
    house.control.stop().await;
}

#[tokio::test]
async fn beyond_what_may_wait_a_pause_is_stored_before_its_answer() {
    let house = House::new(usual()).await;
    house.host.state.capture_bytes.store(9 << 30, Ordering::SeqCst);
    house.host.state.failing_publications.store(1, Ordering::SeqCst);
    let id = house.create(json!({})).await;
    let refused = house.pause(&id).await.unwrap_err();
    assert!(refused.code == Code::CapacityExceeded && refused.retry_after.is_some(), "{refused:?}");
    assert_eq!(house.status(&id).await, Ok(Status::Running));
    assert_eq!(house.host.state.removed.lock().unwrap().len(), 1, "its files");
    let snapshot = house.pause(&id).await.unwrap();
    assert_eq!(house.row_of(&snapshot).await.streams, Some(streams()));
    assert_eq!(house.published(), ["publish", "failed", "publish", "stored", "drop"]);

    // Small ones may wait, but not any number of them.
    house.host.state.capture_bytes.store(0, Ordering::SeqCst);
    let none = house.no_publications().await;
    let mut snapshots = Vec::new();
    for _ in 0..32 {
        let id = house.create(json!({})).await;
        snapshots.push(house.pause(&id).await.unwrap());
    }
    let one_more = house.create(json!({})).await;
    let publications = &house.control.inner.sandboxes.publications;
    assert!(publications.admit(one_more.parse().unwrap(), 1).is_none());
    assert_eq!(publications.number(), 32);
    drop(none);
    let last = house.pause(&one_more).await.unwrap();
    for snapshot in snapshots.iter().chain([&last]) {
        house.until_stored(snapshot).await;
    }
    house.control.stop().await;
}

#[tokio::test]
async fn a_killed_service_publishes_after_its_next_start() {
    let mut house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let none = house.no_publications().await;
    let snapshot = house.pause(&id).await.unwrap();
    house.kill().await;
    drop(none);
    house.restart(KEY).await;
    house.until_stored(&snapshot).await;
    assert_eq!(house.published(), ["publish", "stored", "drop"]);
    assert_eq!(house.status(&id).await, Ok(Status::Paused));
    house.resume(&id).await.unwrap();
    house.control.stop().await;
}

#[tokio::test]
async fn a_capture_that_a_crash_of_the_host_has_torn_is_lost_and_one_that_is_not_seen_is_kept() {
    let mut house = House::new(usual()).await;
    let (torn, missing) = (house.create(json!({})).await, house.create(json!({})).await);
    let none = house.no_publications().await;
    for (id, left) in [(&torn, CaptureLeft::Torn), (&missing, CaptureLeft::Missing)] {
        let snapshot = house.pause(id).await.unwrap();
        let folder = house.row_of(&snapshot).await.folder;
        house.host.state.left.lock().unwrap().insert(folder, left);
    }
    house.kill().await;
    drop(none);
    house.restart(KEY).await;
    assert_eq!(house.status(&torn).await, Ok(Status::Error));
    let reason = "reconcile succeeded lost: the host crashed before the paused sandbox was stored";
    assert_eq!(house.told(&torn).await.last().unwrap(), reason);
    assert_eq!(house.resume(&torn).await.unwrap_err().code, Code::SandboxNotFound);
    assert_eq!(house.status(&missing).await, Ok(Status::Paused));
    house.until_none_waits().await;
    assert!(house.published().is_empty());
    assert!(house.host.state.removed.lock().unwrap().is_empty());
    house.control.stop().await;
}

#[tokio::test]
async fn a_stop_waits_for_publications_within_its_bound_and_flushes_the_rest() {
    let mut house = House::new(LifeSettings { stop_pause: Duration::from_secs(1), ..usual() }).await;
    let id = house.create(json!({})).await;
    let none = house.no_publications().await;
    house.control.stop().await;
    assert_eq!(house.published(), ["publish", "stopped", "flush"]);
    drop(none);
    house.restart(KEY).await;
    house.until_status(&id, Ok(Status::Running)).await;
    house.host.state.published.lock().unwrap().clear();
    // The usual bound is long enough.
    house.control.stop().await;
    assert_eq!(house.published(), ["publish", "stored", "drop"]);
    // One that fails is not waited for.
    house.restart(KEY).await;
    house.until_status(&id, Ok(Status::Running)).await;
    house.host.state.published.lock().unwrap().clear();
    house.host.state.failing_publications.store(1000, Ordering::SeqCst);
    tokio::time::timeout(Duration::from_secs(15), house.control.stop()).await.unwrap();
    assert_eq!(house.published(), ["publish", "failed", "flush"]);
}

#[tokio::test]
async fn a_promotion_waits_until_its_snapshot_is_stored() {
    let house = Arc::new(House::new(usual()).await);
    let id = house.create(json!({})).await;
    let none = house.no_publications().await;
    let snapshot = house.pause(&id).await.unwrap();
    let promote = tokio::spawn({
        let (house, snapshot) = (Arc::clone(&house), snapshot.clone());
        async move {
            let request = serde_json::from_value(json!({"name": "warm"})).unwrap();
            house.control.promote_snapshot(&house.caller, &snapshot, request, &context(None)).await
        }
    });
    house.until("tried out", async || house.host.state.trials.load(Ordering::SeqCst) == 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!promote.is_finished());
    drop(none);
    promote.await.unwrap().unwrap();
    assert!(house.row_of(&snapshot).await.streams.is_some());
    house.control.stop().await;
}
