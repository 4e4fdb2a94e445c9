//! Tenants.

use std::sync::Arc;

use nullspace_db::{DbError, NamespaceKind};
use serde_json::json;

use crate::fixture::{Fixture, Place, at, is_conflict, is_not_found};

#[tokio::test]
async fn a_tenant_is_made_once() {
    let f = Fixture::new().await;
    let first = f.store.ensure_tenant(" acme ", NamespaceKind::User, at(1)).await.unwrap();
    let again = f.store.ensure_tenant("acme", NamespaceKind::User, at(9)).await.unwrap();
    assert_eq!(first, again);
    assert_eq!((first.name.as_str(), first.namespace.slug.as_str(), first.created_at), ("acme", "acme", at(1)));
    assert_eq!(f.store.list_tenants().await.unwrap(), [first]);
    for name in ["", "  ", "a\nb", &"x".repeat(129)] {
        assert!(is_conflict(&f.store.ensure_tenant(name, NamespaceKind::User, at(1)).await), "{name:?}");
    }
}

#[tokio::test]
async fn there_is_one_system_tenant() {
    let f = Fixture::new().await;
    let system = f.system().await;
    assert_eq!(system.namespace, "nullspace");
    assert_eq!(f.system().await, system);
    assert!(is_conflict(&f.store.ensure_tenant("nullspace", NamespaceKind::User, at(1)).await));
    assert!(is_conflict(&f.store.ensure_tenant("second", NamespaceKind::System, at(1)).await));
    assert_eq!(f.store.list_tenants().await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_database_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let f = Fixture::new().await;
    f.tenant("acme").await;
    for file in f.files().await {
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", file.display());
    }
}

#[tokio::test]
async fn namespaces_are_seen_by_those_they_concern() {
    let f = Fixture::new().await;
    f.system().await;
    let (acme, other) = (f.tenant("acme").await, f.tenant("other").await);
    let own = f.store.get_namespace(&acme, "acme").await.unwrap();
    assert_eq!((own.kind, own.owner), (NamespaceKind::User, acme.tenant));
    assert_eq!(f.store.get_namespace(&acme, "nullspace").await.unwrap().kind, NamespaceKind::System);
    assert!(is_not_found(&f.store.get_namespace(&other, "acme").await));
    assert!(is_not_found(&f.store.get_namespace(&other, "nobody").await));
}

#[tokio::test]
async fn settings_are_kept() {
    let f = Fixture::new().await;
    assert_eq!(f.store.get_setting("a").await.unwrap(), None);
    f.store.put_setting("a", &json!({ "n": 1 }), at(1)).await.unwrap();
    f.store.put_setting("a", &json!([2]), at(2)).await.unwrap();
    assert_eq!(f.store.get_setting("a").await.unwrap(), Some(json!([2])));
    f.store.ping(at(0)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn services_that_open_a_new_database_at_once_all_succeed() {
    let place = Arc::new(Place::new().await);
    let open = |place: &Arc<Place>| {
        let place = Arc::clone(place);
        tokio::spawn(async move { place.open(None).await })
    };
    for one in (0..6).map(|_| open(&place)).collect::<Vec<_>>() {
        one.await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_said_to_be_damaged() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("nullspace.db");
    std::fs::write(&path, "this is not a database, it is a text of some length".repeat(100)).unwrap();
    let opened = nullspace_db::SqliteStore::open(&path).await;
    assert!(matches!(opened, Err(DbError::Corrupt { .. })), "{opened:?}");
}
