//! What many services do at once, each on connections of its own: names are given once, limits hold, nothing that is in use is
//! removed, and no tag points to what is gone.

use std::collections::BTreeSet;
use std::sync::Arc;

use nullspace_db::{
    BuildStatus, Database, DbError, Idempotency, KeyLimits, KeySpec, NewClaim, NewKey, NewSshAccess, QueueLimits,
    SandboxStatus, WantedBlob, Webhook,
};
use nullspace_db::{ClaimToken, Expiring};
use nullspace_types::{Blob, BlobId, Caller, SshAccessId, TemplateRef};
use uuid::Uuid;

use crate::fixture::{
    Fixture, ROOMY, ROOTFS_KEY, at, cancel, entry, failure, is_conflict, is_not_found, new_build, new_sandbox, result,
};

const SERVICES: usize = 4;

/// A database and several services on it.
async fn services(f: &Fixture) -> Vec<Arc<dyn Database>> {
    let mut services = vec![f.store.clone()];
    while services.len() < SERVICES {
        services.push(f.another().await);
    }
    services
}

/// Runs `one` so many times at once, by turns on each service.
async fn at_once<T, F>(
    services: &[Arc<dyn Database>],
    times: usize,
    one: impl Fn(usize, Arc<dyn Database>) -> F,
) -> Vec<Result<T, DbError>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, DbError>> + Send + 'static,
{
    let running: Vec<_> =
        (0..times).map(|number| tokio::spawn(one(number, services[number % services.len()].clone()))).collect();
    let mut results = Vec::new();
    for one in running {
        results.push(one.await.unwrap());
    }
    results
}

/// Checks that so many succeeded, and that all others met the limit.
fn within<T: std::fmt::Debug>(results: &[Result<T, DbError>], most: usize) {
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), most, "{results:?}");
    let refused = |error: &DbError| matches!(error, DbError::LimitReached { .. } | DbError::Conflict { .. });
    assert!(results.iter().filter_map(|result| result.as_ref().err()).all(refused), "{results:?}");
}

async fn running(f: &Fixture, caller: &Caller) -> nullspace_types::SandboxId {
    let build = f.ready(caller, "web", &["default"], at(1)).await;
    let asked = new_sandbox(build.artifact_id);
    f.store.insert_sandbox(caller, asked.clone(), at(2)).await.unwrap();
    f.store.set_sandbox_status(asked.id, SandboxStatus::Running, None, at(3)).await.unwrap();
    asked.id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_name_belongs_to_one_template_whoever_asks_at_once() {
    let f = Fixture::new().await;
    let services = services(&f).await;
    let tenants = at_once(&services, 12, |_, store| async move {
        store.ensure_tenant("acme", nullspace_db::NamespaceKind::User, at(1)).await
    });
    let tenants: BTreeSet<_> = tenants.await.into_iter().map(|tenant| tenant.unwrap().id).collect();
    assert_eq!(tenants.len(), 1);
    let caller = f.tenant("acme").await;
    let accepted = at_once(&services, 16, |_, store| {
        let caller = caller.clone();
        async move { store.accept_build(&caller, new_build("web", &["default"]), entry("s"), ROOMY, at(1)).await }
    });
    let templates: BTreeSet<_> = accepted.await.into_iter().map(|build| build.unwrap().template).collect();
    assert_eq!(templates.len(), 1);
    // A reservation, a rename and builds want another name.
    let reserved = at_once(&services, 16, |number, store| {
        let caller = caller.clone();
        async move {
            match number % 3 {
                0 => {
                    let token = ClaimToken::generate();
                    let name = "api".parse().unwrap();
                    let claim = NewClaim { name, token: token.hash(), expires_at: at(100) };
                    store.reserve_name(&caller, claim, at(2)).await
                }
                1 => {
                    let from: TemplateRef = "web".parse().unwrap();
                    store.rename_template(&caller, &from, &"api".parse().unwrap(), at(2)).await.map(|_| ())
                }
                _ => {
                    let build = new_build("api", &["default"]);
                    store.accept_build(&caller, build, entry("s"), ROOMY, at(2)).await.map(|_| ())
                }
            }
        }
    })
    .await;
    for one in &reserved {
        assert!(one.is_ok() || is_conflict(one) || is_not_found(one), "{reserved:?}");
    }
    let holders = f.query("SELECT name FROM templates WHERE name = 'api' UNION ALL SELECT name FROM name_claims").await;
    assert_eq!(holders, ["api"], "{reserved:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn limits_hold_whoever_asks_at_once() {
    let f = Fixture::new().await;
    let services = services(&f).await;
    let caller = f.tenant("acme").await;
    let sandbox = running(&f, &caller).await;
    let limits = QueueLimits { per_tenant: 5, total: 100 };
    let builds = at_once(&services, 20, |number, store| {
        let caller = caller.clone();
        let build = new_build(&format!("x{number}"), &["default"]);
        async move { store.accept_build(&caller, build, entry("s"), limits, at(2)).await }
    });
    within(&builds.await, 5);
    let keys = at_once(&services, 12, |_, store| {
        let tenant = caller.tenant;
        let limits = Some(KeyLimits { active: 3, over: 2 });
        async move { store.create_key(tenant, &NewKey::generate(), KeySpec::default(), limits, at(2)).await }
    });
    within(&keys.await, 3);
    let webhooks = at_once(&services, 12, |_, store| {
        let webhook = Webhook {
            id: Uuid::now_v7(),
            tenant: caller.tenant,
            url: "https://example.com".to_owned(),
            operations: vec!["create".to_owned()],
            sealed_secret: vec![1],
            enabled: true,
            created_at: at(2),
            updated_at: at(2),
            last: None,
        };
        async move { store.insert_webhook(webhook, 4).await }
    });
    within(&webhooks.await, 4);
    let key = f.store.list_keys(caller.tenant).await.unwrap()[0].id;
    let with_key = Caller { key: Some(key), ..caller.clone() };
    let accesses = at_once(&services, 12, |_, store| {
        let caller = with_key.clone();
        let access = NewSshAccess { id: SshAccessId::new(), sandbox, user: None, expires_at: at(100) };
        async move { store.insert_ssh_access(&caller, access, 4, at(3)).await }
    });
    within(&accesses.await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_request_that_is_repeated_at_once_is_done_once() {
    let f = Fixture::new().await;
    let services = services(&f).await;
    let caller = f.tenant("acme").await;
    let artifact = f.ready(&caller, "web", &["default"], at(1)).await.artifact_id;
    let idempotency = || Some(Idempotency { key: "k".into(), request_digest: "d".into() });
    let builds = at_once(&services, 16, |_, store| {
        let caller = caller.clone();
        let mut build = new_build("web", &["default"]);
        build.idempotency = idempotency();
        async move { store.accept_build(&caller, build, entry("s"), ROOMY, at(2)).await }
    });
    let builds: BTreeSet<_> = builds.await.into_iter().map(|build| build.unwrap().id).collect();
    assert_eq!(builds.len(), 1);
    let sandboxes = at_once(&services, 16, |_, store| {
        let caller = caller.clone();
        let mut sandbox = new_sandbox(artifact);
        sandbox.idempotency = idempotency();
        async move { store.insert_sandbox(&caller, sandbox, at(2)).await }
    });
    assert!(sandboxes.await.iter().all(Result::is_ok));
    assert_eq!(f.query("SELECT id FROM sandboxes").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_taken_into_use_is_not_removed() {
    let f = Fixture::new().await;
    let services = services(&f).await;
    let caller = f.tenant("acme").await;
    let (mut kept, mut gone) = (0, 0);
    for round in 0..12_u64 {
        // A file of a build context.
        let id = BlobId::new(&format!("{round:064x}"), 7).unwrap();
        f.store.put_blob(&caller, &id, 1_000, at(1)).await.unwrap();
        let used = at_once(&services, 4, |number, store| {
            let (caller, id) = (caller.clone(), id.clone());
            let mut build = new_build("web", &["default"]);
            async move {
                // Whoever comes first changes with the round.
                if (number as u64 + round).is_multiple_of(2) {
                    let blob = Blob { tenant: caller.tenant, id };
                    store.purge_blob(&blob, at(100)).await.map(|purged| (purged, false))
                } else {
                    build.blobs = vec![WantedBlob { id, force: false }];
                    match store.accept_build(&caller, build, entry("s"), ROOMY, at(1)).await {
                        Ok(_) => Ok((false, true)),
                        Err(DbError::Conflict { .. }) => Ok((false, false)),
                        Err(error) => Err(error),
                    }
                }
            }
        });
        let used: Vec<(bool, bool)> = used.await.into_iter().map(Result::unwrap).collect();
        let (purged, held) = (used.iter().any(|one| one.0), used.iter().any(|one| one.1));
        assert!(purged != held, "round {round}: purged and in use, or neither: {used:?}");
        (kept, gone) = (kept + u32::from(held), gone + u32::from(purged));
    }
    eprintln!("of 12 files, {kept} were taken into use and {gone} removed");
    while let Ok(Some(leased)) = f.store.lease_build("w", crate::fixture::TTL, u32::MAX, at(1)).await {
        let (nullspace_db::Leased::Run { lease, .. } | nullspace_db::Leased::Spent { lease, .. }) = leased;
        f.store.finish_error(&lease, failure(), at(1)).await.unwrap();
    }
    // A deleted template's artifact, and a sandbox of it that starts.
    for round in 0..8 {
        let build = f.ready(&caller, "app", &["default"], at(10)).await;
        let used = at_once(&services, 4, |number, store| {
            let caller = caller.clone();
            let sandbox = new_sandbox(build.artifact_id);
            async move {
                if (number + round) % 2 == 0 {
                    let _ = store.delete_template(&caller, &"app".parse().unwrap(), cancel("deleted"), at(11)).await;
                    store.purge_artifact(sandbox.artifact, at(12)).await.map(|purged| (purged, false))
                } else {
                    match store.insert_sandbox(&caller, sandbox, at(11)).await {
                        Ok(_) => Ok((false, true)),
                        Err(DbError::NotFound) => Ok((false, false)),
                        Err(error) => Err(error),
                    }
                }
            }
        });
        let used: Vec<(bool, bool)> = used.await.into_iter().map(Result::unwrap).collect();
        let (purged, started) = (used.iter().any(|one| one.0), used.iter().any(|one| one.1));
        assert!(purged != started, "round {round}: {used:?}");
        assert_eq!(f.store.get_artifact(build.artifact_id).await.is_ok(), started);
    }
}

/// A root image that one build looks for while collection removes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_root_image_that_a_build_found_is_there() {
    let f = Fixture::new().await;
    let services = services(&f).await;
    let caller = f.tenant("acme").await;
    for round in 0..8_usize {
        f.accept(&caller, "web").await;
        let (lease, _) = f.run("w", at(1)).await;
        f.rootfs(&lease).await;
        f.store.finish_error(&lease, failure(), at(2)).await.unwrap();
        f.accept(&caller, "web").await;
        let (lease, _) = f.run("w", at(3)).await;
        let done = at_once(&services, 4, |number, store| {
            let lease = lease.clone();
            async move {
                if (number + round) % 2 == 0 {
                    store.purge_rootfs(ROOTFS_KEY, at(100)).await.map(|purged| (purged, false))
                } else {
                    store.find_rootfs(&lease, ROOTFS_KEY, at(3)).await.map(|found| (false, found.is_some()))
                }
            }
        });
        let done: Vec<(bool, bool)> = done.await.into_iter().map(Result::unwrap).collect();
        let (purged, found) = (done.iter().any(|one| one.0), done.iter().any(|one| one.1));
        assert!(purged != found, "round {round}: {done:?}");
        assert_eq!(f.store.finish_ready(&lease, result(), at(4)).await.is_ok(), found, "round {round}");
        if !found {
            f.store.finish_error(&lease, failure(), at(4)).await.unwrap();
        }
        // The next round begins without it.
        let _ = f.store.delete_template(&caller, &"web".parse().unwrap(), cancel("deleted"), at(5)).await;
        for artifact in f.store.collectable_artifacts(at(6), 10).await.unwrap() {
            assert!(f.store.purge_artifact(artifact.id, at(6)).await.unwrap());
        }
        f.store.purge_rootfs(ROOTFS_KEY, at(100)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_tag_never_points_to_what_was_deleted() {
    let f = Fixture::new().await;
    let services = services(&f).await;
    let caller = f.tenant("acme").await;
    for round in 0..8 {
        let first = f.ready(&caller, "web", &["default"], at(1)).await;
        let second = f.ready(&caller, "web", &["next"], at(2)).await;
        let moved = at_once(&services, 12, |number, store| {
            let caller = caller.clone();
            let build = if number % 2 == 0 { first.id } else { second.id };
            let template: TemplateRef = "web".parse().unwrap();
            async move {
                let tags = ["default".parse().unwrap(), "stable".parse().unwrap()];
                match number {
                    0..8 => store.promote_build(&caller, build, &tags, at(3)).await.map(|_| ()),
                    8 | 9 => store.remove_tag(&caller, &template, &tags[1]).await,
                    10 => store.delete_template(&caller, &template, cancel("deleted"), at(4)).await,
                    _ => store.assign_tags(&caller, &template, &tags[1..], at(3)).await.map(|_| ()),
                }
            }
        })
        .await;
        for one in &moved {
            assert!(one.is_ok() || is_conflict(one) || is_not_found(one), "round {round}: {moved:?}");
        }
        assert!(moved[10].is_ok(), "{moved:?}");
        assert!(f.query("SELECT tag FROM template_tags").await.is_empty(), "round {round}: {moved:?}");
        for build in [first.id, second.id] {
            assert_eq!(f.store.get_build(&caller, build).await.unwrap().status, BuildStatus::Ready);
        }
    }
}

/// Workers of several builds write their logs at once; each log has its own entries in order, and none after its build's end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn logs_that_are_written_at_once_have_no_gaps() {
    let f = Fixture::new().await;
    let services = services(&f).await;
    let caller = f.tenant("acme").await;
    let mut leases = Vec::new();
    for _ in 0..3 {
        f.accept(&caller, "web").await;
        leases.push(f.run("w", at(1)).await.0);
    }
    let written = at_once(&services, 48, |number, store| {
        let lease = leases[number % leases.len()].clone();
        async move {
            match number {
                // One of them ends in the middle of it.
                24 => store.finish_error(&lease, failure(), at(2)).await.map(|_| ()),
                _ if number % 8 == 0 => store.heartbeat(&lease, crate::fixture::TTL, at(2)).await.map(|_| ()),
                _ => store.append_log(&lease, vec![entry("one"), entry("two")]).await.map(|_| ()),
            }
        }
    })
    .await;
    for one in &written {
        assert!(matches!(one, Ok(()) | Err(DbError::LeaseLost)), "{written:?}");
    }
    assert!(written[24].is_ok());
    for (index, lease) in leases.iter().enumerate() {
        let messages = f.messages(&caller, lease.build).await;
        let (head, rest) = messages.split_first().unwrap();
        assert_eq!(head, "start");
        let rest = if index == 0 { rest.strip_suffix(&["error".to_owned()]).expect("the last entry") } else { rest };
        let ours = (0..48).filter(|number| number % 3 == index && number % 8 != 0 && *number != 24);
        let appended = ours.filter(|number| written[*number].is_ok()).count();
        assert_eq!(rest.len(), 2 * appended);
        assert!(rest.chunks(2).all(|two| two == ["one", "two"]), "{rest:?}");
    }
}

/// Two services remove what is over, and a third one deletes and builds meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn retention_beside_new_builds_removes_only_what_is_over() {
    let f = Fixture::new().await;
    let services = services(&f).await;
    let caller = f.tenant("acme").await;
    for _ in 0..6 {
        f.accept(&caller, "web").await;
        let (lease, _) = f.run("w", at(1)).await;
        f.store.finish_error(&lease, failure(), at(2)).await.unwrap();
    }
    while f.store.compact_log(at(100)).await.unwrap().is_some() {}
    let done = at_once(&services, 12, |number, store| {
        let caller = caller.clone();
        async move {
            if number % 3 == 0 {
                store.remove_expired(Expiring::Builds, at(100), 2).await.map(|_| None)
            } else {
                let build = new_build("web", &["default"]);
                store.accept_build(&caller, build, entry("s"), ROOMY, at(3)).await.map(|build| Some(build.id))
            }
        }
    })
    .await;
    for accepted in done.into_iter().filter_map(Result::unwrap) {
        assert_eq!(f.messages(&caller, accepted).await, ["s"]);
    }
    assert_eq!(f.query("SELECT name FROM templates WHERE deleted_at IS NULL").await, ["web"]);
    assert!(f.broken_references().await.is_empty());
}
