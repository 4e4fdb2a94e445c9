//! The queue: who gets which build, and who may write.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use nullspace_db::{BuildStatus, DbError, Leased, QueueLimits, Release};

use crate::fixture::{
    Fixture, ROOMY, TTL, at, cancel, entry, failure, is_conflict, is_lease_lost, is_not_found, new_build, result,
};

#[tokio::test]
async fn an_accepted_build_waits_with_its_first_entry_at_offset_zero() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let mut asked = new_build("web", &["v1", "default"]);
    asked.description = Some("A web server".to_owned());
    let build = f.accept_with(&caller, asked.clone()).await;
    assert_eq!(build.status, BuildStatus::Waiting);
    assert_eq!((build.id, build.artifact_id, build.tenant), (asked.id, asked.artifact_id, caller.tenant));
    assert_eq!((build.attempt, build.max_attempts), (0, 3));
    assert_eq!(build.canonical_ref(), "acme/web");
    assert_eq!(build.tags, asked.tags);
    assert_eq!(build.definition, asked.definition);
    assert_eq!((build.created_at, build.queued_at, build.started_at), (at(0), at(0), None));
    assert_eq!(build.artifact, None);
    assert_eq!(f.messages(&caller, build.id).await, ["start"]);
    let (read, next) = f.store.build_and_next_offset(&caller, build.id).await.unwrap();
    assert_eq!((read, next), (build, 1));
    assert!(f.store.log_entries(&caller, asked.id, 1, 100).await.unwrap().is_empty());
    assert!(f.store.log_entries(&caller, asked.id, u64::MAX, 100).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_build_needs_a_tag_and_room_in_the_queue() {
    let f = Fixture::new().await;
    let (one, two) = (f.tenant("one").await, f.tenant("two").await);
    let no_tags = f.store.accept_build(&one, new_build("web", &[]), entry("start"), ROOMY, at(0)).await;
    assert!(is_conflict(&no_tags));
    let limits = QueueLimits { per_tenant: 2, total: 3 };
    let accept = |caller, name| f.store.accept_build(caller, new_build(name, &["default"]), entry("s"), limits, at(0));
    accept(&one, "a").await.unwrap();
    accept(&one, "b").await.unwrap();
    assert!(matches!(accept(&one, "c").await, Err(DbError::LimitReached { limit: 2, .. })));
    accept(&two, "a").await.unwrap();
    let full = accept(&two, "b").await.unwrap_err();
    assert!(matches!(full, DbError::LimitReached { limit: 3, .. }) && full.is_retryable());
    // What was refused left no template behind, and what ends makes room.
    assert!(is_not_found(&f.resolve(&one, "c").await));
    let (lease, _) = f.run("w", at(1)).await;
    f.store.finish_error(&lease, failure(), at(2)).await.unwrap();
    accept(&two, "b").await.unwrap();
}

#[tokio::test]
async fn a_leased_build_is_nobody_elses() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let accepted = f.accept(&caller, "web").await;
    let (lease, build) = f.run("w1", at(5)).await;
    assert_eq!((build.id, build.status, build.attempt), (accepted.id, BuildStatus::Building, 1));
    assert_eq!(build.started_at, Some(at(5)));
    assert_eq!(f.store.lease_build("w2", TTL, u32::MAX, at(5)).await.unwrap(), None);
    assert_eq!(f.store.lease_build("w2", TTL, u32::MAX, at(34)).await.unwrap(), None);
    let beat = f.store.heartbeat(&lease, TTL, at(30)).await.unwrap();
    assert_eq!((beat.cancel_requested, beat.expires_at), (false, at(60)));
    assert_eq!(f.store.lease_build("w2", TTL, u32::MAX, at(59)).await.unwrap(), None);
}

#[tokio::test]
async fn an_expired_lease_is_retaken_as_the_next_attempt() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    f.accept(&caller, "web").await;
    let (old, _) = f.run("w1", at(0)).await;
    let (new, build) = f.run("w2", at(30)).await;
    assert_eq!((build.attempt, build.status), (2, BuildStatus::Building));
    assert_eq!(build.started_at, Some(at(0)));
    assert!(new.epoch > old.epoch);
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_cannot_write_anything() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.accept(&caller, "web").await;
    // The same owner name takes it again: only the epoch tells the two apart.
    let (old, _) = f.run("same-name", at(0)).await;
    let (new, _) = f.run("same-name", at(30)).await;
    assert!(is_lease_lost(&f.store.heartbeat(&old, TTL, at(31)).await));
    assert!(is_lease_lost(&f.store.append_log(&old, vec![entry("stale")]).await));
    assert!(is_lease_lost(&f.store.release_build(&old, Release::HandBack, vec![entry("stale")], at(31)).await));
    assert!(is_lease_lost(&f.store.finish_ready(&old, result(), at(31)).await));
    assert!(is_lease_lost(&f.store.finish_error(&old, failure(), at(31)).await));
    assert!(is_lease_lost(&f.store.finish_cancelled(&old, entry("stale"), at(31)).await));
    assert!(is_lease_lost(&f.store.find_rootfs(&old, "00", at(31)).await));
    assert!(is_lease_lost(&f.store.put_rootfs(&old, crate::fixture::rootfs("a"), at(31)).await));
    let mut forged = new.clone();
    forged.owner = "other".to_owned();
    assert!(is_lease_lost(&f.store.append_log(&forged, vec![entry("stale")]).await));
    assert_eq!(f.store.append_log(&new, vec![entry("fresh")]).await.unwrap(), 1);
    assert_eq!(f.messages(&caller, build.id).await, ["start", "fresh"]);
    // And after the end, the last worker cannot either.
    f.store.finish_error(&new, failure(), at(32)).await.unwrap();
    assert!(is_lease_lost(&f.store.append_log(&new, vec![entry("late")]).await));
    assert!(is_lease_lost(&f.store.finish_cancelled(&new, entry("late"), at(33)).await));
    assert_eq!(f.messages(&caller, build.id).await, ["start", "fresh", "error"]);
}

#[tokio::test]
async fn what_a_worker_held_that_is_gone_is_taken_at_once() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    for name in ["a", "b", "c"] {
        f.accept(&caller, name).await;
    }
    let (old, _) = f.run("host", at(0)).await;
    let (another, _) = f.run("another host", at(0)).await;
    assert_eq!(f.store.take_over("nobody", at(1)).await.unwrap(), []);
    assert_eq!(f.store.take_over("host", at(1)).await.unwrap(), [old.build]);
    // What the dead one left under way is fenced off before anybody has the build again.
    assert!(is_lease_lost(&f.store.heartbeat(&old, TTL, at(1)).await));
    assert!(is_lease_lost(&f.store.append_log(&old, vec![entry("stale")]).await));
    let (new, build) = f.run("host", at(1)).await;
    assert_eq!((new.build, build.attempt), (old.build, 2), "an attempt that died is counted");
    assert!(new.epoch > old.epoch);
    assert_eq!(f.store.append_log(&new, vec![entry("fresh")]).await.unwrap(), 1);
    // Another host's builds, and what waits, are left alone.
    f.store.heartbeat(&another, TTL, at(1)).await.unwrap();
    let (waiting, build) = f.run("host", at(1)).await;
    assert_eq!(build.attempt, 1);
    assert!(waiting.build != another.build);
}

#[tokio::test]
async fn a_tenant_at_its_limit_is_passed_over_until_one_of_its_builds_ends() {
    let f = Fixture::new().await;
    let (one, two) = (f.tenant("one").await, f.tenant("two").await);
    let mut own = Vec::new();
    for name in ["a", "b", "c"] {
        own.push(f.accept(&one, name).await.id);
    }
    let other = f.accept(&two, "d").await.id;
    let next = async |owner: &str, limit, now| match f.store.lease_build(owner, TTL, limit, now).await.unwrap() {
        Some(Leased::Run { lease, .. }) => Some(lease),
        None => None,
        Some(spent) => panic!("{spent:?}"),
    };
    let first = next("w1", 1, at(0)).await.unwrap();
    assert_eq!(first.build, own[0]);
    assert_eq!(next("w2", 1, at(1)).await.map(|lease| lease.build), Some(other));
    // Both have as many as they may; a host with a higher limit sees it otherwise.
    assert_eq!(next("w3", 1, at(2)).await, None);
    let second = next("w3", 2, at(2)).await.unwrap();
    assert_eq!(second.build, own[1]);
    assert_eq!(next("w4", 2, at(3)).await, None);
    f.store.finish_error(&first, failure(), at(4)).await.unwrap();
    assert_eq!(next("w4", 1, at(5)).await, None);
    let third = next("w4", 2, at(5)).await.unwrap();
    assert_eq!(third.build, own[2]);
    // A lost worker's build counts no more, and is itself what comes next.
    assert_eq!(next("w5", 2, at(40)).await.map(|lease| lease.build), Some(other));
    assert_eq!(next("w6", 1, at(41)).await.map(|lease| lease.build), Some(own[1]));
}

#[tokio::test]
async fn a_build_with_spent_attempts_is_ended_whatever_the_limit() {
    let f = Fixture::new().await;
    let one = f.tenant("one").await;
    let spent = f.accept(&one, "a").await.id;
    for attempt in 0..3 {
        f.run("lost", at(attempt * 100)).await;
    }
    f.accept(&one, "b").await;
    let (lease, _) = f.run("w", at(210)).await;
    assert_ne!(lease.build, spent);
    f.store.heartbeat(&lease, Duration::from_secs(1000), at(211)).await.unwrap();
    match f.store.lease_build("w2", TTL, 1, at(300)).await.unwrap() {
        Some(Leased::Spent { build, .. }) => assert_eq!(build.id, spent),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_overdue_lease_that_nobody_took_is_held_again() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    f.accept(&caller, "web").await;
    let (lease, _) = f.run("w1", at(0)).await;
    f.store.heartbeat(&lease, TTL, at(100)).await.unwrap();
    assert_eq!(f.store.lease_build("w2", TTL, u32::MAX, at(129)).await.unwrap(), None);
}

#[tokio::test]
async fn spent_attempts_come_as_spent_and_only_to_be_ended() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let mut asked = new_build("web", &["default"]);
    asked.max_attempts = 2;
    let build = f.accept_with(&caller, asked).await;
    let (first, _) = f.run("w1", at(0)).await;
    let (second, retaken) = f.run("w2", at(30)).await;
    assert_eq!(retaken.attempt, 2);
    let leased = f.store.lease_build("w3", TTL, u32::MAX, at(60)).await.unwrap();
    let Some(Leased::Spent { lease, build: spent }) = leased else { panic!("{leased:?}") };
    assert_eq!((spent.id, spent.attempt, spent.max_attempts), (build.id, 2, 2));
    for stale in [&first, &second] {
        assert!(is_lease_lost(&f.store.append_log(stale, vec![entry("stale")]).await));
    }
    // The one that was to end it dies as well: it comes again, as spent.
    let again = f.store.lease_build("w4", TTL, u32::MAX, at(90)).await.unwrap();
    let Some(Leased::Spent { lease: last, .. }) = again else { panic!("{again:?}") };
    assert!(is_lease_lost(&f.store.finish_error(&lease, failure(), at(91)).await));
    let ended = f.store.finish_error(&last, failure(), at(91)).await.unwrap();
    assert_eq!((ended.status, ended.finished_at), (BuildStatus::Error, Some(at(91))));
    assert_eq!(f.store.lease_build("w5", TTL, u32::MAX, at(1000)).await.unwrap(), None);
}

#[tokio::test]
async fn a_build_handed_back_loses_no_attempt_and_keeps_its_place() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let first = f.accept(&caller, "a").await;
    f.accept(&caller, "b").await;
    let (lease, _) = f.run("w1", at(1)).await;
    f.store.release_build(&lease, Release::HandBack, vec![entry("handed back")], at(2)).await.unwrap();
    let waiting = f.store.get_build(&caller, first.id).await.unwrap();
    assert_eq!((waiting.status, waiting.attempt), (BuildStatus::Waiting, 0));
    let (again, build) = f.run("w2", at(2)).await;
    assert_eq!((build.id, build.attempt), (first.id, 1));
    assert!(again.epoch > lease.epoch);
    assert_eq!(f.messages(&caller, first.id).await, ["start", "handed back"]);
}

#[tokio::test]
async fn a_retry_counts_and_waits_for_its_moment() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let mut asked = new_build("web", &["default"]);
    asked.max_attempts = 2;
    let build = f.accept_with(&caller, asked).await;
    let (lease, _) = f.run("w1", at(0)).await;
    let retry = Release::RetryAfter(Duration::from_secs(10));
    f.store.release_build(&lease, retry, vec![entry("retry")], at(5)).await.unwrap();
    assert_eq!(f.store.get_build(&caller, build.id).await.unwrap().not_before, Some(at(15)));
    assert_eq!(f.store.lease_build("w2", TTL, u32::MAX, at(14)).await.unwrap(), None);
    let (lease, again) = f.run("w2", at(15)).await;
    assert_eq!((again.attempt, again.not_before), (2, None));
    // The last attempt cannot be retried, and the refusal writes nothing.
    assert!(is_conflict(&f.store.release_build(&lease, retry, vec![entry("retry")], at(16)).await));
    assert_eq!(f.messages(&caller, build.id).await, ["start", "retry"]);
    f.store.release_build(&lease, Release::HandBack, vec![], at(16)).await.unwrap();
    assert_eq!(f.run("w3", at(16)).await.1.attempt, 2);
}

#[tokio::test]
async fn one_tenants_hundred_builds_do_not_starve_anothers_one() {
    let f = Fixture::new().await;
    let (big, small) = (f.tenant("big").await, f.tenant("small").await);
    for _ in 0..100 {
        f.accept(&big, "a").await;
    }
    let wanted = f.accept(&small, "b").await;
    // One worker, which never runs two at once: counting running builds alone would serve `big` a hundred times.
    let mut served = Vec::new();
    for turn in 0..4 {
        let (lease, build) = f.run("w", at(turn)).await;
        served.push(build.id);
        f.store.finish_error(&lease, failure(), at(turn)).await.unwrap();
    }
    assert!(served[..2].contains(&wanted.id), "{served:?}");
}

#[tokio::test]
async fn the_tenant_with_fewest_running_builds_is_next() {
    let f = Fixture::new().await;
    let (a, b, c) = (f.tenant("a").await, f.tenant("b").await, f.tenant("c").await);
    for caller in [&a, &a, &a, &a, &b, &b, &c] {
        f.accept(caller, "x").await;
    }
    let mut order = Vec::new();
    for _ in 0..7 {
        order.push(f.run("w", at(0)).await.1.namespace);
    }
    assert_eq!(order, ["a", "b", "c", "a", "b", "a", "a"]);
    // A running build whose lease is over weighs nothing.
    let late = f.accept(&a, "late").await;
    let other = f.accept(&c, "other").await;
    let mut ids = HashSet::new();
    for _ in 0..9 {
        ids.insert(f.run("w", at(100)).await.1.id);
    }
    assert!(ids.contains(&late.id) && ids.contains(&other.id) && ids.len() == 9);
}

#[tokio::test]
async fn a_tenants_own_builds_run_in_the_order_they_came() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let mut accepted = Vec::new();
    for _ in 0..10 {
        accepted.push(f.accept(&caller, "x").await.id);
    }
    for id in accepted {
        assert_eq!(f.run("w", at(1)).await.1.id, id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_services_with_eight_workers_lease_two_hundred_builds_exactly_once() {
    let f = Fixture::new().await;
    let second = f.another().await;
    let mut waiting = HashSet::new();
    for tenant in ["a", "b", "c"] {
        let caller = f.tenant(tenant).await;
        for _ in 0..67 {
            waiting.insert(f.accept(&caller, "x").await.id);
        }
    }
    let workers: Vec<_> = (0..8)
        .map(|worker| {
            let store = if worker % 2 == 0 { f.store.clone() } else { second.clone() };
            tokio::spawn(async move {
                let owner = format!("w{worker}");
                let mut leased = Vec::new();
                while let Some(next) = store.lease_build(&owner, TTL, u32::MAX, at(1)).await.unwrap() {
                    let Leased::Run { lease, build } = next else { panic!("spent too soon") };
                    assert_eq!((build.attempt, build.id), (1, lease.build));
                    store.append_log(&lease, vec![entry("work")]).await.unwrap();
                    leased.push(build.id);
                }
                leased
            })
        })
        .collect();
    let mut times: HashMap<_, u32> = HashMap::new();
    for worker in workers {
        for build in worker.await.unwrap() {
            *times.entry(build).or_default() += 1;
        }
    }
    assert_eq!(times.len(), waiting.len());
    assert!(times.iter().all(|(build, times)| *times == 1 && waiting.contains(build)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn log_offsets_have_no_gaps_under_concurrent_writers_and_readers_see_prefixes() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.accept(&caller, "web").await;
    let (lease, _) = f.run("w", at(0)).await;
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let (store, lease) = (f.store.clone(), lease.clone());
            tokio::spawn(async move {
                for round in 0..20 {
                    let batch: Vec<_> = (0..1 + round % 3).map(|i| entry(&format!("{writer}/{round}/{i}"))).collect();
                    let size = batch.len();
                    let first = store.append_log(&lease, batch).await.unwrap();
                    assert!(first > 0 && size > 0);
                }
            })
        })
        .collect();
    let reader = {
        let (store, caller, id) = (f.store.clone(), caller.clone(), build.id);
        tokio::spawn(async move {
            let mut seen = Vec::new();
            for _ in 0..50 {
                let (_, next) = store.build_and_next_offset(&caller, id).await.unwrap();
                let log = store.log_entries(&caller, id, 0, 1000).await.unwrap();
                assert!(log.len() as u64 >= next, "an offset was shown before its entry");
                assert!(log.iter().zip(0_u64..).all(|(entry, offset)| entry.offset == offset), "gap");
                assert!(log.starts_with(&seen), "history changed");
                seen = log;
            }
        })
    };
    for writer in writers {
        writer.await.unwrap();
    }
    reader.await.unwrap();
    let messages = f.messages(&caller, build.id).await;
    let expected: usize = 6 * (0..20).map(|round| 1 + round % 3).sum::<usize>();
    assert_eq!(messages.len(), 1 + expected);
    assert_eq!(messages.iter().collect::<HashSet<_>>().len(), messages.len(), "an entry was stored twice");
    // Each writer's entries are in its order.
    for writer in 0..6 {
        let own: Vec<_> = messages.iter().filter(|text| text.starts_with(&format!("{writer}/"))).collect();
        let rounds: Vec<u32> = own.iter().map(|text| text.split('/').nth(1).unwrap().parse().unwrap()).collect();
        assert!(rounds.is_sorted());
    }
}

#[tokio::test]
async fn a_builds_pages_tile_its_log() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.accept(&caller, "web").await;
    let (lease, _) = f.run("w", at(0)).await;
    f.store.append_log(&lease, (1..25).map(|i| entry(&i.to_string())).collect()).await.unwrap();
    let whole = f.log(&caller, build.id).await;
    let mut tiled = Vec::new();
    loop {
        let page = f.store.log_entries(&caller, build.id, tiled.len() as u64, 7).await.unwrap();
        if page.is_empty() {
            break;
        }
        tiled.extend(page);
    }
    assert_eq!(tiled, whole);
    assert_eq!(whole.len(), 25);
}

#[tokio::test]
async fn another_tenants_build_is_not_found_whatever_is_asked_of_it() {
    let f = Fixture::new().await;
    let (owner, other) = (f.tenant("owner").await, f.tenant("other").await);
    let build = f.accept(&owner, "web").await;
    assert!(is_not_found(&f.store.get_build(&other, build.id).await));
    assert!(is_not_found(&f.store.build_and_next_offset(&other, build.id).await));
    assert!(is_not_found(&f.store.log_entries(&other, build.id, 0, 10).await));
    assert!(is_not_found(&f.store.request_cancel(&other, build.id, cancel("no"), at(1)).await));
    let mut retry = new_build("web", &["default"]);
    retry.retry_of = Some(build.id);
    assert!(is_not_found(&f.store.accept_build(&other, retry, entry("start"), ROOMY, at(1)).await));
    assert!(f.store.list_builds(&other, Default::default()).await.unwrap().builds.is_empty());
    assert_eq!(f.store.get_build(&owner, build.id).await.unwrap().status, BuildStatus::Waiting);
}

#[tokio::test]
async fn a_reopened_database_has_everything_that_was_committed() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.accept(&caller, "web").await;
    let (lease, _) = f.run("w", at(0)).await;
    f.store.append_log(&lease, vec![entry("one")]).await.unwrap();
    f.store.close().await;
    assert!(matches!(f.store.get_build(&caller, build.id).await, Err(DbError::Unavailable(_))));
    let reopened = f.another().await;
    let read = reopened.get_build(&caller, build.id).await.unwrap();
    assert_eq!((read.status, read.attempt), (BuildStatus::Building, 1));
    assert_eq!(reopened.append_log(&lease, vec![entry("two")]).await.unwrap(), 2);
}

#[tokio::test]
async fn counters_say_how_full_the_queue_is() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    for name in ["a", "b", "c"] {
        f.accept(&caller, name).await;
    }
    let (lease, _) = f.run("w", at(0)).await;
    let counters = f.store.counters().await.unwrap();
    assert_eq!((counters.builds_waiting, counters.builds_building), (2, 1));
    f.store.finish_error(&lease, failure(), at(1)).await.unwrap();
    assert_eq!(f.store.counters().await.unwrap().builds_building, 0);
}

#[tokio::test]
async fn builds_are_listed_newest_first_filtered_and_in_pages() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let mut ids = Vec::new();
    for index in 0..7 {
        ids.push(f.accept(&caller, if index % 2 == 0 { "even" } else { "odd" }).await);
    }
    let (lease, _) = f.run("w", at(0)).await;
    f.store.finish_error(&lease, failure(), at(1)).await.unwrap();
    let filter = |after, limit| nullspace_db::BuildFilter { after, limit, ..Default::default() };
    let mut walked = Vec::new();
    let mut after = None;
    loop {
        let page = f.store.list_builds(&caller, filter(after, 3)).await.unwrap();
        walked.extend(page.builds.iter().map(|build| build.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(walked, ids.iter().rev().map(|build| build.id).collect::<Vec<_>>());
    let failed = nullspace_db::BuildFilter { status: Some(BuildStatus::Error), ..filter(None, 100) };
    assert_eq!(f.store.list_builds(&caller, failed).await.unwrap().builds.len(), 1);
    let even = nullspace_db::BuildFilter { template: Some(ids[0].template), ..filter(None, 100) };
    assert_eq!(f.store.list_builds(&caller, even).await.unwrap().builds.len(), 4);
}
