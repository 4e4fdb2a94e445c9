//! Grants: counted, revoked and listed for their owner, bounded in number, and over with their sandbox.

use jiff::SignedDuration;
use nullspace_db::{
    DbError, Grant, GrantKind, GrantUse, KeyLimits, KeySpec, NewGrant, NewKey, OVER_PER_SANDBOX, Rotation,
    SandboxStatus, SnapshotKind,
};
use nullspace_types::{Caller, GrantId, SandboxId};

use crate::fixture::{Fixture, at, is_conflict, is_not_found, new_sandbox, new_snapshot};

/// Most active grants of a sandbox, in these tests.
const MOST: u32 = 3;

fn hash(byte: u8) -> [u8; 32] {
    [byte; 32]
}

fn grant(sandbox: SandboxId, port: u16, byte: u8, expires: i64) -> NewGrant {
    NewGrant {
        id: GrantId::new(),
        sandbox,
        port,
        kind: GrantKind::Signed,
        token_hash: hash(byte),
        expires_at: at(expires),
    }
}

async fn sandbox(f: &Fixture, caller: &Caller, name: &str) -> SandboxId {
    let build = f.ready(caller, name, &["default"], at(1)).await;
    let asked = new_sandbox(build.artifact_id);
    f.store.insert_sandbox(caller, asked.clone(), at(2)).await.unwrap();
    f.store.set_sandbox_status(asked.id, SandboxStatus::Running, None, at(3)).await.unwrap();
    asked.id
}

async fn listed(f: &Fixture, caller: &Caller, sandbox: SandboxId) -> Vec<Grant> {
    f.store.list_grants(caller, sandbox, None).await.unwrap()
}

#[tokio::test]
async fn a_grant_is_its_owners_and_found_by_its_token_alone() {
    let f = Fixture::new().await;
    let (owner, other) = (f.tenant("owner").await, f.tenant("other").await);
    let id = sandbox(&f, &owner, "web").await;
    let asked = grant(id, 8000, 1, 100);
    assert!(is_not_found(&f.store.insert_grant(&other, asked.clone(), MOST, at(10)).await));
    let made = f.store.insert_grant(&owner, asked.clone(), MOST, at(10)).await.unwrap();
    let expected = Grant {
        id: asked.id,
        tenant: owner.tenant,
        sandbox: id,
        port: 8000,
        kind: GrantKind::Signed,
        key: None,
        issued_at: at(10),
        expires_at: at(100),
        revoked_at: None,
        updated_at: at(10),
        http_requests: 0,
        websockets: 0,
        bytes_in: 0,
        bytes_out: 0,
        used: None,
        last_error: None,
    };
    assert_eq!(made, expected);
    let second = f.store.insert_grant(&owner, grant(id, 9000, 2, 100), MOST, at(11)).await.unwrap();
    assert_eq!(listed(&f, &owner, id).await, [second.clone(), made.clone()]);
    assert_eq!(f.store.list_grants(&owner, id, Some(9000)).await.unwrap(), [second]);
    assert!(listed(&f, &other, id).await.is_empty());
    assert_eq!(f.store.grant_of_token(hash(1)).await.unwrap(), made);
    assert!(is_not_found(&f.store.grant_of_token(hash(9)).await));
    assert_eq!(f.store.sandbox_of_anyone(id).await.unwrap().tenant, owner.tenant);
    assert!(is_not_found(&f.store.sandbox_of_anyone(SandboxId::new()).await));

    let revoke = |caller, sandbox, grant, now| f.store.revoke_grant(caller, sandbox, grant, at(now));
    assert!(is_not_found(&revoke(&other, id, made.id, 20).await));
    assert!(is_not_found(&revoke(&owner, SandboxId::new(), made.id, 20).await));
    assert!(is_not_found(&revoke(&owner, id, GrantId::new(), 20).await));
    assert!(f.store.grant_of_token(hash(1)).await.unwrap().is_active(at(99)));
    let revoked = revoke(&owner, id, made.id, 20).await.unwrap();
    assert_eq!((revoked.revoked_at, revoked.updated_at), (Some(at(20)), at(20)));
    assert_eq!(revoke(&owner, id, made.id, 30).await.unwrap(), revoked, "a second time changes nothing");
    assert_eq!(f.store.grant_of_token(hash(1)).await.unwrap(), revoked);
    assert!(!revoked.is_active(at(20)) && !expected.is_active(at(100)));
}

#[tokio::test]
async fn active_grants_are_limited_and_those_that_are_over_do_not_pile_up() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let (id, another) = (sandbox(&f, &caller, "web").await, sandbox(&f, &caller, "api").await);
    let insert =
        |sandbox, byte, expires, now| f.store.insert_grant(&caller, grant(sandbox, 80, byte, expires), MOST, at(now));
    for byte in 0..3 {
        insert(id, byte, 100, 10).await.unwrap();
    }
    let full = insert(id, 3, 100, 10).await;
    assert!(matches!(full, Err(DbError::LimitReached { limit: MOST, .. })), "{full:?}");
    insert(another, 4, 100, 10).await.unwrap();
    // One that is revoked or expired makes room.
    let newest = listed(&f, &caller, id).await[0].id;
    f.store.revoke_grant(&caller, id, newest, at(11)).await.unwrap();
    insert(id, 3, 12, 11).await.unwrap();
    insert(id, 5, 100, 12).await.unwrap();
    assert!(insert(id, 6, 100, 12).await.is_err());

    let mut oldest = listed(&f, &caller, id).await;
    oldest.retain(|grant| grant.is_active(at(12)));
    for grant in &oldest {
        f.store.revoke_grant(&caller, id, grant.id, at(13)).await.unwrap();
    }
    for byte in 10..10 + u8::try_from(OVER_PER_SANDBOX).unwrap() + 5 {
        let made = insert(id, byte, 100, 14).await.unwrap();
        f.store.revoke_grant(&caller, id, made.id, at(14)).await.unwrap();
    }
    let all = listed(&f, &caller, id).await;
    assert_eq!(all.len(), OVER_PER_SANDBOX as usize + 1);
    assert!(all.iter().all(|grant| oldest.iter().all(|old| old.id != grant.id)), "the oldest went");
    // A token is never used twice.
    assert!(insert(another, 4, 100, 15).await.is_err());
}

#[tokio::test]
async fn uses_are_added_up() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let id = sandbox(&f, &caller, "web").await;
    let made = f.store.insert_grant(&caller, grant(id, 80, 1, 100), MOST, at(10)).await.unwrap();
    let used = GrantUse {
        grant: made.id,
        http_requests: 2,
        websockets: 1,
        bytes_in: 30,
        bytes_out: 400,
        used: Some((at(11), at(13))),
        last_error: None,
    };
    let gone = GrantUse { grant: GrantId::new(), ..used.clone() };
    f.store.count_grants(&[gone, used.clone()], at(14)).await.unwrap();
    let failed = GrantUse {
        http_requests: 1,
        websockets: 0,
        bytes_in: 0,
        bytes_out: 1,
        used: Some((at(15), at(15))),
        last_error: Some(("port_not_listening".to_owned(), at(16))),
        ..used.clone()
    };
    f.store.count_grants(&[failed], at(17)).await.unwrap();
    // A transfer that goes on.
    let more = GrantUse { http_requests: 0, websockets: 0, bytes_in: 0, bytes_out: 9, used: None, ..used };
    f.store.count_grants(&[more], at(18)).await.unwrap();
    f.store.count_grants(&[], at(19)).await.unwrap();
    let expected = Grant {
        http_requests: 3,
        websockets: 1,
        bytes_in: 30,
        bytes_out: 410,
        used: Some((at(11), at(15))),
        last_error: Some(("port_not_listening".to_owned(), at(16))),
        updated_at: at(18),
        ..made
    };
    assert_eq!(listed(&f, &caller, id).await, [expected]);
}

#[tokio::test]
async fn grants_end_with_their_sandbox_or_after_their_time() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let ids = [
        sandbox(&f, &caller, "a").await,
        sandbox(&f, &caller, "b").await,
        sandbox(&f, &caller, "c").await,
        sandbox(&f, &caller, "d").await,
    ];
    for (byte, id) in (1..).zip(ids) {
        f.store.insert_grant(&caller, grant(id, 80, byte, 100), MOST, at(10)).await.unwrap();
    }
    // A paused one keeps them, and they end with it.
    let pause = new_snapshot(ids[0], SnapshotKind::Pause);
    f.store.record_snapshot(pause, None, at(11)).await.unwrap();
    assert_eq!(listed(&f, &caller, ids[0]).await.len(), 1);
    f.store.set_sandbox_status(ids[0], SandboxStatus::Destroyed, None, at(12)).await.unwrap();
    assert!(listed(&f, &caller, ids[0]).await.is_empty() && is_not_found(&f.store.grant_of_token(hash(1)).await));
    assert!(is_not_found(&f.store.insert_grant(&caller, grant(ids[0], 80, 9, 100), MOST, at(13)).await));
    f.store.set_sandbox_status(ids[1], SandboxStatus::Error, None, at(12)).await.unwrap();
    assert!(listed(&f, &caller, ids[1]).await.is_empty());

    f.store.insert_grant(&caller, grant(ids[2], 80, 10, 50), MOST, at(13)).await.unwrap();
    assert_eq!(f.store.remove_grants(at(50), 10).await.unwrap(), 0);
    assert_eq!(f.store.remove_grants(at(60), 10).await.unwrap(), 1);
    assert_eq!(f.store.remove_grants(at(101), 1).await.unwrap(), 1);
    assert_eq!(f.store.remove_grants(at(101), 10).await.unwrap(), 1);
    f.store.insert_grant(&caller, grant(ids[3], 80, 11, 200), MOST, at(101)).await.unwrap();
    f.store.end_sandboxes_of_host("host-1", SandboxStatus::Error, "lost", at(102)).await.unwrap();
    assert_eq!(f.query("SELECT id FROM grants").await, Vec::<String>::new());
}

#[tokio::test]
async fn grants_end_with_the_key_that_made_them() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let id = sandbox(&f, &caller, "web").await;
    let key = async |end: Option<i64>| {
        let spec = KeySpec { expires_at: end.map(at), ..KeySpec::default() };
        let made = f.store.create_key(caller.tenant, &NewKey::generate(), spec, None, at(4)).await.unwrap();
        Caller { key: Some(made.id), ..caller.clone() }
    };
    let (revoked, rotated, short) = (key(None).await, key(None).await, key(Some(50)).await);
    let mut made = Vec::new();
    for (byte, caller) in (1..).zip([&revoked, &rotated, &short, &caller]) {
        let grant = f.store.insert_grant(caller, grant(id, 80, byte, 100), 10, at(10)).await.unwrap();
        assert_eq!(grant.key, caller.key);
        made.push(grant.id);
    }
    let in_force = async |now| {
        let good = f.store.grants_in_force(&made, at(now)).await.unwrap();
        let mut good: Vec<_> = good.iter().map(|id| made.iter().position(|made| made == id).unwrap()).collect();
        good.sort_unstable();
        good
    };
    assert_eq!(in_force(10).await, [0, 1, 2, 3]);
    f.store.revoke_key(None, revoked.key.unwrap(), at(20)).await.unwrap();
    f.store.revoke_key(None, revoked.key.unwrap(), at(25)).await.unwrap();
    let rotation = Rotation { key: rotated.key.unwrap(), grace: SignedDuration::from_secs(20) };
    let limits = KeyLimits { active: 10, over: 10 };
    let spec = KeySpec::default();
    f.store.rotate_key(caller.tenant, rotation, &NewKey::generate(), spec, limits, at(20)).await.unwrap();
    assert_eq!((in_force(39).await, in_force(40).await), (vec![1, 2, 3], vec![2, 3]));
    assert_eq!((in_force(50).await, in_force(100).await), (vec![3], vec![]));
    let grant_of = async |byte| f.store.grant_of_token(hash(byte)).await.unwrap();
    assert_eq!((grant_of(1).await.revoked_at, grant_of(2).await.revoked_at), (Some(at(20)), None));
    for (over, now) in [(&revoked, 21), (&short, 50)] {
        let late = f.store.insert_grant(over, grant(id, 80, 9, 100), 10, at(now)).await;
        assert!(is_conflict(&late), "{late:?}");
    }
}
