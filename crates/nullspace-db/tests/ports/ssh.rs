//! SSH accesses: their owner's, bounded in number, and over with their time, their sandbox and the key that made them.

use nullspace_db::{DbError, KeySpec, NewKey, NewSshAccess, SandboxStatus};
use nullspace_types::{Caller, KeyId, SandboxId, SshAccessId};

use crate::fixture::{Fixture, at, is_not_found, new_sandbox};

/// Most accesses of a sandbox, in these tests.
const MOST: u32 = 2;

async fn sandbox(f: &Fixture, caller: &Caller, name: &str) -> SandboxId {
    let build = f.ready(caller, name, &["default"], at(1)).await;
    let asked = new_sandbox(build.artifact_id);
    f.store.insert_sandbox(caller, asked.clone(), at(2)).await.unwrap();
    f.store.set_sandbox_status(asked.id, SandboxStatus::Running, None, at(3)).await.unwrap();
    asked.id
}

/// The caller with a new key.
async fn with_key(f: &Fixture, caller: Caller, spec: KeySpec) -> Caller {
    let key = f.store.create_key(caller.tenant, &NewKey::generate(), spec, None, at(1)).await.unwrap();
    Caller { key: Some(key.id), ..caller }
}

fn access(sandbox: SandboxId, expires: i64) -> NewSshAccess {
    NewSshAccess { id: SshAccessId::new(), sandbox, user: Some("me".into()), expires_at: at(expires) }
}

#[tokio::test]
async fn an_access_is_made_by_the_sandboxs_owner_with_a_key_and_ends_with_its_time() {
    let f = Fixture::new().await;
    let owner = f.tenant("owner").await;
    let id = sandbox(&f, &owner, "web").await;
    let other = with_key(&f, f.tenant("other").await, KeySpec::default()).await;
    let asked = access(id, 100);
    let insert = |caller: Caller, access: NewSshAccess, now| {
        let f = &f;
        async move { f.store.insert_ssh_access(&caller, access, MOST, at(now)).await }
    };
    assert!(is_not_found(&insert(Caller { key: None, ..owner.clone() }, asked.clone(), 10).await));
    assert!(is_not_found(&insert(other, asked.clone(), 10).await));
    let owner = with_key(&f, owner, KeySpec::default()).await;
    insert(owner.clone(), asked.clone(), 10).await.unwrap();
    let found = f.store.ssh_access(asked.id, at(99)).await.unwrap();
    assert_eq!((found.caller, found.sandbox, found.user), (owner.clone(), id, Some("me".into())));
    assert_eq!(found.expires_at, at(100));
    let unknown = SshAccessId::new();
    assert_eq!(f.store.ssh_accesses_in_force(&[asked.id, unknown], at(99)).await.unwrap(), [asked.id]);
    assert!(is_not_found(&f.store.ssh_access(asked.id, at(100)).await));
    assert!(f.store.ssh_accesses_in_force(&[asked.id], at(100)).await.unwrap().is_empty());

    insert(owner.clone(), access(id, 200), 20).await.unwrap();
    let refused = insert(owner.clone(), access(id, 200), 21).await.unwrap_err();
    assert!(matches!(refused, DbError::LimitReached { limit: MOST, .. }), "{refused:?}");
    insert(owner.clone(), access(id, 200), 100).await.expect("the first one's time is over");

    f.store.set_sandbox_status(id, SandboxStatus::Destroyed, None, at(110)).await.unwrap();
    assert!(is_not_found(&insert(owner, access(id, 200), 111).await));
}

#[tokio::test]
async fn an_access_is_over_with_its_sandbox_and_with_the_key_that_made_it() {
    let f = Fixture::new().await;
    let owner = f.tenant("owner").await;
    let (first, second) = (sandbox(&f, &owner, "one").await, sandbox(&f, &owner, "two").await);
    let lasting = with_key(&f, owner.clone(), KeySpec::default()).await;
    let short = with_key(&f, owner.clone(), KeySpec { expires_at: Some(at(50)), ..KeySpec::default() }).await;
    let gone = Caller { key: Some(KeyId::new()), ..owner };
    let make = async |caller: &Caller, sandbox| {
        let asked = access(sandbox, 1000);
        f.store.insert_ssh_access(caller, asked.clone(), 10, at(10)).await.unwrap();
        asked.id
    };
    let (a, b, c) = (make(&lasting, first).await, make(&lasting, second).await, make(&short, second).await);
    let d = make(&gone, second).await;
    let in_force = async |now| {
        let mut found = f.store.ssh_accesses_in_force(&[a, b, c, d], at(now)).await.unwrap();
        found.sort();
        for access in [a, b, c, d] {
            assert_eq!(f.store.ssh_access(access, at(now)).await.is_ok(), found.contains(&access), "at {now}");
        }
        found
    };
    assert_eq!(in_force(20).await, [a, b, c], "the key of the last one has no row");
    assert_eq!(in_force(50).await, [a, b], "the short key has expired");
    f.store.set_sandbox_status(first, SandboxStatus::Destroyed, None, at(60)).await.unwrap();
    assert_eq!(in_force(60).await, [b]);
    f.store.revoke_key(Some(lasting.tenant), lasting.key.unwrap(), at(70)).await.unwrap();
    assert!(in_force(71).await.is_empty());
}
