//! Forks that are asked for at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nullspace_api::ErrorResponseCode as Code;
use nullspace_service::Life as _;
use nullspace_types::SandboxId;
use serde_json::json;

use super::{House, context, usual};

/// Asks for forks of a sandbox; each in a task of its own.
fn ask(house: &Arc<House>, id: &str, count: usize) -> Vec<tokio::task::JoinHandle<Result<String, Code>>> {
    let one = |_| {
        let (house, id) = (Arc::clone(house), id.to_owned());
        tokio::spawn(async move {
            let forked = house.control.fork_sandbox(&house.caller, &id, &context(None)).await;
            forked.map(|fork| fork.id).map_err(|error| error.code)
        })
    };
    (0..count).map(one).collect()
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("not seen: {what}"));
}

/// One fork that is in its capture, and three that wait for the next one. `fails`: how many captures fail.
async fn four(fails: u32) -> (Arc<House>, String, Vec<Result<String, Code>>) {
    let house = Arc::new(House::new(usual()).await);
    let id = house.create(json!({"envs": {"A": "1"}})).await;
    let source: SandboxId = id.parse().unwrap();
    let permits = house.host.captures.available_permits();
    let held = house.host.captures.acquire_many(u32::try_from(permits).unwrap()).await.unwrap();
    let mut forks = ask(&house, &id, 1);
    until("a capture", || house.host.state.capturing.load(Ordering::SeqCst) == 1).await;
    forks.extend(ask(&house, &id, 3));
    until("three that wait", || house.control.inner.sandboxes.captures.waiting(source) == 3).await;
    house.host.state.failing_captures.store(fails, Ordering::SeqCst);
    drop(held);
    let mut ended = Vec::new();
    for fork in forks {
        ended.push(fork.await.unwrap());
    }
    assert_eq!(house.host.state.capturing.load(Ordering::SeqCst), 2, "the three share the second one");
    assert_eq!(house.control.inner.sandboxes.captures.waiting(source), 0);
    (house, id, ended)
}

#[tokio::test]
async fn forks_that_wait_share_a_capture_that_begins_after_they_were_asked_for() {
    let (house, id, ended) = four(0).await;
    let mut ids: Vec<String> = ended.into_iter().map(Result::unwrap).collect();
    for fork in &ids {
        assert_eq!(house.host.machine(fork).envs["A"], "1");
    }
    ids.push(id.clone());
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 5, "each is a sandbox of its own");
    // The next one makes a capture of its own.
    ask(&house, &id, 1).remove(0).await.unwrap().unwrap();
    assert_eq!(house.host.state.capturing.load(Ordering::SeqCst), 3);
    house.control.stop().await;
}

#[tokio::test]
async fn a_capture_that_fails_is_told_to_all_that_wait_for_it_and_the_source_runs_on() {
    let (house, id, ended) = four(2).await;
    assert!(ended.iter().all(|fork| *fork == Err(Code::CapacityExceeded)), "{ended:?}");
    let failed = house.told(&id).await.into_iter().filter(|event| event == "fork failed api").count();
    assert_eq!(failed, 4);
    ask(&house, &id, 1).remove(0).await.unwrap().unwrap();
    house.control.stop().await;
}
