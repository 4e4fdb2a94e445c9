//! API keys.

use std::path::PathBuf;

use jiff::SignedDuration;
use nullspace_db::{DbError, KeyHash, KeyLimits, KeyScope, KeySpec, NamespaceKind, NewKey, Rotation, Tenant};

use crate::fixture::{Fixture, at, is_conflict, is_not_found};

const LIMITS: KeyLimits = KeyLimits { active: 3, over: 2 };

fn named(label: &str) -> KeySpec {
    KeySpec { label: Some(label.to_owned()), ..KeySpec::default() }
}

async fn tenant(f: &Fixture, name: &str) -> Tenant {
    f.store.ensure_tenant(name, NamespaceKind::User, at(0)).await.unwrap()
}

#[tokio::test]
async fn a_key_opens_its_tenant_until_it_is_revoked() {
    let f = Fixture::new().await;
    let tenant = tenant(&f, "acme").await;
    let key = NewKey::generate();
    let kept = f.store.create_key(tenant.id, &key, named("laptop"), None, at(1)).await.unwrap();
    assert_eq!((kept.tenant, kept.label.as_str(), kept.shown.as_str()), (tenant.id, "laptop", key.shown().as_str()));
    let caller = f.store.authenticate(&KeyHash::of(key.expose()), at(5)).await.unwrap();
    assert_eq!((caller.tenant, caller.namespace.as_str(), caller.key), (tenant.id, "acme", Some(kept.id)));
    for wrong in ["", "ns_live_", &key.expose()[..47], &key.expose().to_lowercase(), NewKey::generate().expose()] {
        assert!(is_not_found(&f.store.authenticate(&KeyHash::of(wrong), at(5)).await));
    }
    let other = f.store.create_key(tenant.id, &NewKey::generate(), named("phone"), None, at(1)).await.unwrap();
    let unknown = nullspace_types::KeyId::new();
    let mut in_force = f.store.keys_in_force(&[kept.id, unknown, other.id], at(5)).await.unwrap();
    in_force.sort_by_key(|id| *id != kept.id);
    assert_eq!(in_force, [kept.id, other.id]);
    assert_eq!(f.store.keys_in_force(&[], at(5)).await.unwrap(), []);
    f.store.revoke_key(None, kept.id, at(6)).await.unwrap();
    f.store.revoke_key(None, kept.id, at(7)).await.unwrap();
    assert_eq!(f.store.keys_in_force(&[kept.id, other.id], at(7)).await.unwrap(), [other.id]);
    assert!(is_not_found(&f.store.authenticate(&key.hash(), at(8)).await));
    let keys = f.store.list_keys(tenant.id).await.unwrap();
    assert_eq!((keys[0].revoked_at, keys[0].last_used_at), (Some(at(6)), Some(at(5))));
    assert!(is_not_found(&f.store.revoke_key(None, nullspace_types::KeyId::new(), at(8)).await));
}

#[tokio::test]
async fn the_last_use_of_a_key_is_noted_to_the_minute() {
    let f = Fixture::new().await;
    let tenant = tenant(&f, "acme").await;
    let key = NewKey::generate();
    f.store.create_key(tenant.id, &key, named(""), None, at(0)).await.unwrap();
    let mut noted = Vec::new();
    for second in [10, 40, 69, 70, 100] {
        f.store.authenticate(&key.hash(), at(second)).await.unwrap();
        noted.push(f.store.list_keys(tenant.id).await.unwrap()[0].last_used_at.unwrap());
    }
    assert_eq!(noted, [at(10), at(10), at(10), at(70), at(70)]);
}

#[tokio::test]
async fn a_key_is_stored_as_its_hash_only() {
    let f = Fixture::new().await;
    let tenant = tenant(&f, "acme").await;
    let key = NewKey::generate();
    f.store.create_key(tenant.id, &key, named("label-in-the-file"), None, at(1)).await.unwrap();
    f.store.authenticate(&key.hash(), at(5)).await.unwrap();
    let holds = |files: &[PathBuf], needle: &[u8]| {
        files.iter().any(|file| std::fs::read(file).unwrap().windows(needle.len()).any(|part| part == needle))
    };
    // Before the journal is folded into the file, and after.
    for _ in 0..2 {
        let files = f.files().await;
        assert!(holds(&files, b"label-in-the-file"), "looked in the wrong files");
        assert!(!holds(&files, key.expose().as_bytes()));
        assert!(!holds(&files, &key.expose().as_bytes()[16..]), "the secret part is stored");
        f.store.close().await;
    }
}

#[tokio::test]
async fn a_key_ends_when_its_time_is_over() {
    let f = Fixture::new().await;
    let tenant = tenant(&f, "acme").await;
    let key = NewKey::generate();
    let spec = KeySpec { scope: Some(KeyScope::Read), expires_at: Some(at(100)), ..named("short") };
    let made = f.store.create_key(tenant.id, &key, spec, Some(LIMITS), at(1)).await.unwrap();
    assert_eq!((made.scope, made.expires_at, made.rotated_from), (KeyScope::Read, Some(at(100)), None));
    let caller = f.store.authenticate(&key.hash(), at(99)).await.unwrap();
    assert!(caller.read_only);
    assert_eq!(f.store.caller_of_key(made.id, at(99)).await.unwrap(), caller);
    assert_eq!(f.store.keys_in_force(&[made.id], at(99)).await.unwrap(), [made.id]);
    assert!(is_not_found(&f.store.authenticate(&key.hash(), at(100)).await));
    assert!(is_not_found(&f.store.caller_of_key(made.id, at(100)).await));
    assert_eq!(f.store.keys_in_force(&[made.id], at(100)).await.unwrap(), []);
    let listed = f.store.list_keys(tenant.id).await.unwrap();
    assert!(listed[0].is_active(at(99)) && !listed[0].is_active(at(100)) && listed[0].revoked_at.is_none());
}

#[tokio::test]
async fn a_tenant_has_so_many_keys_and_so_many_that_are_over() {
    let f = Fixture::new().await;
    let (tenant, other) = (tenant(&f, "acme").await, tenant(&f, "other").await);
    for round in 0..5 {
        let key = NewKey::generate();
        let made = f.store.create_key(tenant.id, &key, KeySpec::default(), Some(LIMITS), at(round)).await.unwrap();
        f.store.revoke_key(Some(tenant.id), made.id, at(round)).await.unwrap();
    }
    for second in [10, 11, 12] {
        f.store.create_key(tenant.id, &NewKey::generate(), KeySpec::default(), Some(LIMITS), at(second)).await.unwrap();
    }
    let refused = f.store.create_key(tenant.id, &NewKey::generate(), KeySpec::default(), Some(LIMITS), at(13)).await;
    assert!(matches!(refused, Err(DbError::LimitReached { limit: 3, .. })), "{refused:?}");
    // The newest two of the five that are over.
    let kept = f.store.list_keys(tenant.id).await.unwrap();
    let over: Vec<_> = kept.iter().filter_map(|key| key.revoked_at).collect();
    assert_eq!((kept.len(), over), (5, vec![at(3), at(4)]));
    // The operator's own are made beyond it, and another tenant's are its own.
    f.store.create_key(tenant.id, &NewKey::generate(), KeySpec::default(), None, at(14)).await.unwrap();
    f.store.create_key(other.id, &NewKey::generate(), KeySpec::default(), Some(LIMITS), at(14)).await.unwrap();
}

#[tokio::test]
async fn a_rotation_ends_the_older_key_at_once_or_after_its_grace() {
    let f = Fixture::new().await;
    let tenant = tenant(&f, "acme").await;
    let first = NewKey::generate();
    let spec = KeySpec { scope: Some(KeyScope::Read), ..named("ci") };
    let made = f.store.create_key(tenant.id, &first, spec, Some(LIMITS), at(0)).await.unwrap();

    let second = NewKey::generate();
    let rotation = Rotation { key: made.id, grace: SignedDuration::from_secs(60) };
    let rotated = f.store.rotate_key(tenant.id, rotation, &second, KeySpec::default(), LIMITS, at(10)).await.unwrap();
    assert_eq!((rotated.label.as_str(), rotated.scope, rotated.rotated_from), ("ci", KeyScope::Read, Some(made.id)));
    for key in [&first, &second] {
        f.store.authenticate(&key.hash(), at(69)).await.unwrap();
    }
    assert!(is_not_found(&f.store.authenticate(&first.hash(), at(70)).await));
    f.store.authenticate(&second.hash(), at(70)).await.unwrap();
    // Once, also while the grace lasts, and never a key that is over.
    for second in [20, 80] {
        let key = NewKey::generate();
        let again = f.store.rotate_key(tenant.id, rotation, &key, KeySpec::default(), LIMITS, at(second)).await;
        assert!(is_conflict(&again), "{second}");
    }

    let third = NewKey::generate();
    let rotation = Rotation { key: rotated.id, grace: SignedDuration::ZERO };
    let spec = KeySpec { scope: Some(KeyScope::Full), expires_at: Some(at(500)), ..named("new") };
    let last = f.store.rotate_key(tenant.id, rotation, &third, spec, LIMITS, at(90)).await.unwrap();
    assert_eq!((last.label.as_str(), last.scope, last.expires_at), ("new", KeyScope::Full, Some(at(500))));
    assert!(is_not_found(&f.store.authenticate(&second.hash(), at(90)).await));
    assert!(!f.store.authenticate(&third.hash(), at(90)).await.unwrap().read_only);
    assert_eq!(f.store.list_keys(tenant.id).await.unwrap()[1].revoked_at, Some(at(90)));
}

#[tokio::test]
async fn a_rotation_needs_room_for_the_key_that_still_works() {
    let f = Fixture::new().await;
    let tenant = tenant(&f, "acme").await;
    let mut made = Vec::new();
    for _ in 0..3 {
        let key = f.store.create_key(tenant.id, &NewKey::generate(), KeySpec::default(), Some(LIMITS), at(0)).await;
        made.push(key.unwrap().id);
    }
    let rotate = async |grace| {
        let rotation = Rotation { key: made[0], grace: SignedDuration::from_secs(grace) };
        f.store.rotate_key(tenant.id, rotation, &NewKey::generate(), KeySpec::default(), LIMITS, at(1)).await
    };
    assert!(matches!(rotate(5).await, Err(DbError::LimitReached { .. })));
    // Nothing of the refused one is left.
    assert_eq!(f.store.list_keys(tenant.id).await.unwrap()[0].expires_at, None);
    rotate(0).await.unwrap();
}

#[tokio::test]
async fn keys_of_another_tenant_are_not_found() {
    let f = Fixture::new().await;
    let (tenant, other) = (tenant(&f, "acme").await, tenant(&f, "other").await);
    let key = NewKey::generate();
    let made = f.store.create_key(tenant.id, &key, KeySpec::default(), Some(LIMITS), at(0)).await.unwrap();
    assert!(is_not_found(&f.store.revoke_key(Some(other.id), made.id, at(1)).await));
    let rotation = Rotation { key: made.id, grace: SignedDuration::ZERO };
    let rotated = f.store.rotate_key(other.id, rotation, &NewKey::generate(), KeySpec::default(), LIMITS, at(1)).await;
    assert!(is_not_found(&rotated));
    assert_eq!(f.store.list_keys(other.id).await.unwrap(), []);
    f.store.authenticate(&key.hash(), at(2)).await.unwrap();
}

#[tokio::test]
async fn a_key_ends_no_later_than_its_maker_and_a_rotated_one_when_the_older_would_have() {
    let f = Fixture::new().await;
    let (tenant, other) = (tenant(&f, "acme").await, tenant(&f, "other").await);
    let make = async |maker, end: Option<i64>, now| {
        let spec = KeySpec { maker, expires_at: end.map(at), ..KeySpec::default() };
        f.store.create_key(tenant.id, &NewKey::generate(), spec, None, at(now)).await
    };
    let maker = make(None, Some(100), 0).await.unwrap();
    for (asked, got) in [(None, 100), (Some(50), 50), (Some(150), 100)] {
        assert_eq!(make(Some(maker.id), asked, 1).await.unwrap().expires_at, Some(at(got)));
    }
    assert!(is_conflict(&make(Some(maker.id), None, 100).await), "its maker is over");
    let foreign = KeySpec { maker: Some(maker.id), ..KeySpec::default() };
    assert!(is_conflict(&f.store.create_key(other.id, &NewKey::generate(), foreign, None, at(1)).await));

    let limits = KeyLimits { active: 10, over: 10 };
    let rotate = async |key, grace, maker, end: Option<i64>| {
        let rotation = Rotation { key, grace: SignedDuration::from_secs(grace) };
        let spec = KeySpec { maker, expires_at: end.map(at), ..KeySpec::default() };
        f.store.rotate_key(tenant.id, rotation, &NewKey::generate(), spec, limits, at(10)).await.unwrap()
    };
    // Its own grace does not shorten its successor.
    let second = rotate(maker.id, 5, Some(maker.id), None).await;
    assert_eq!(second.expires_at, Some(at(100)));
    let third = rotate(second.id, 0, None, None).await;
    assert_eq!(third.expires_at, Some(at(100)));
    let free = make(None, None, 10).await.unwrap();
    assert_eq!(rotate(third.id, 0, Some(free.id), Some(900)).await.expires_at, Some(at(900)));
}
