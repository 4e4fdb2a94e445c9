//! What references mean, and to whom.

use nullspace_db::{BuildStatus, DbError, NamespaceKind};
use nullspace_types::{Caller, TemplateRef};

use crate::fixture::{Fixture, TTL, at, is_conflict, is_lease_lost, is_not_found, new_sandbox};

async fn built(f: &Fixture, caller: &Caller, reference: &str) -> Option<nullspace_types::BuildId> {
    match f.resolve(caller, reference).await {
        Ok(found) => Some(found.artifact.build),
        Err(DbError::NotFound) => None,
        Err(error) => panic!("{reference}: {error}"),
    }
}

#[tokio::test]
async fn a_bare_name_is_the_callers_own_before_it_is_the_built_in() {
    let f = Fixture::new().await;
    let (system, caller) = (f.system().await, f.tenant("acme").await);
    let base = f.ready(&system, "base", &["default"], at(1)).await;
    assert_eq!(built(&f, &caller, "base").await, Some(base.id));
    let own = f.ready(&caller, "base", &["default"], at(2)).await;
    assert_eq!(built(&f, &caller, "base").await, Some(own.id));
    assert_eq!(built(&f, &caller, "nullspace/base").await, Some(base.id));
    assert_eq!(built(&f, &caller, "acme/base").await, Some(own.id));
}

#[tokio::test]
async fn the_system_namespace_falls_back_to_the_callers_own_and_latest_to_default() {
    let f = Fixture::new().await;
    let (system, caller) = (f.system().await, f.tenant("acme").await);
    let base = f.ready(&system, "base", &["default"], at(1)).await;
    let own = f.ready(&caller, "x", &["default", "v1"], at(2)).await;
    assert_eq!(built(&f, &caller, "nullspace/base:latest").await, Some(base.id));
    assert_eq!(built(&f, &caller, "nullspace/x:latest").await, Some(own.id));
    assert_eq!(built(&f, &caller, "nullspace/x:v1").await, Some(own.id));
    assert_eq!(built(&f, &caller, "nullspace/x:v2").await, None);
    // Outside of it `latest` is a tag like any other.
    assert_eq!(built(&f, &caller, "x:latest").await, None);
    let latest = f.ready(&caller, "x", &["latest"], at(3)).await;
    assert_eq!(built(&f, &caller, "nullspace/x:latest").await, Some(latest.id));
    assert_eq!(built(&f, &caller, "x").await, Some(own.id));
    // A tag that only the caller's own has is found behind a built-in of the same name.
    let shadowed = f.ready(&caller, "base", &["mine"], at(4)).await;
    assert_eq!(built(&f, &caller, "nullspace/base:mine").await, Some(shadowed.id));
}

#[tokio::test]
async fn without_a_default_tag_the_bare_name_does_not_resolve() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["v1"], at(1)).await;
    assert_eq!(built(&f, &caller, "web").await, None);
    assert_eq!(built(&f, &caller, "web:v1").await, Some(build.id));
    // It is listed all the same, with what it has.
    let listed = f.store.list_templates(&caller).await.unwrap();
    assert_eq!(listed.iter().map(|one| one.artifact.build).collect::<Vec<_>>(), [build.id]);
}

#[tokio::test]
async fn a_tenants_uuid_names_its_default_namespace() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["v1"], at(1)).await;
    let reference = format!("{}/web:v1", caller.tenant.uuid());
    assert_eq!(built(&f, &caller, &reference).await, Some(build.id));
    assert_eq!(built(&f, &caller, &reference.to_uppercase().replace("/WEB:V1", "/web:v1")).await, Some(build.id));
    assert_eq!(built(&f, &f.tenant("other").await, &reference).await, None);
}

#[tokio::test]
async fn a_build_of_another_template_is_not_reached_through_this_name() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let web = f.ready(&caller, "web", &["default"], at(1)).await;
    let api = f.ready(&caller, "api", &["default"], at(1)).await;
    assert_eq!(built(&f, &caller, &format!("web:{}", web.id)).await, Some(web.id));
    assert_eq!(built(&f, &caller, &format!("web:{}", api.id)).await, None);
}

#[tokio::test]
async fn another_tenants_private_template_is_not_found_in_any_form() {
    let f = Fixture::new().await;
    let (owner, other) = (f.tenant("owner").await, f.tenant("other").await);
    let build = f.ready(&owner, "web", &["default"], at(1)).await;
    for reference in [
        "web".to_owned(),
        "owner/web".to_owned(),
        "nullspace/web".to_owned(),
        format!("owner/web:{}", build.id),
        format!("web:{}", build.id),
        build.artifact_id.to_string(),
    ] {
        assert_eq!(built(&f, &other, &reference).await, None, "{reference}");
        assert!(is_not_found(&f.delete(&other, &reference, at(2)).await), "{reference}");
    }
    assert!(is_not_found(&f.store.insert_sandbox(&other, new_sandbox(build.artifact_id), at(2)).await));
    assert!(is_not_found(&f.store.get_namespace(&other, "owner").await));
    assert!(f.store.list_templates(&other).await.unwrap().is_empty());
    assert_eq!(built(&f, &owner, "web").await, Some(build.id));
}

#[tokio::test]
async fn a_build_cannot_start_from_what_its_tenant_cannot_see() {
    let f = Fixture::new().await;
    let (owner, other) = (f.tenant("owner").await, f.tenant("other").await);
    let base = f.ready(&owner, "base", &["default"], at(1)).await;
    f.accept(&other, "child").await;
    let (lease, _) = f.run("w", at(2)).await;
    assert!(is_not_found(&f.store.hold_artifact(&lease, base.artifact_id).await));
    let system = f.system().await;
    f.store.finish_error(&lease, crate::fixture::failure(), at(2)).await.unwrap();
    assert!(is_lease_lost(&f.store.hold_artifact(&lease, base.artifact_id).await));
    let builtin = f.ready(&system, "base", &["default"], at(3)).await;
    f.accept(&other, "child").await;
    let (lease, _) = f.run("w", at(4)).await;
    assert_eq!(f.store.hold_artifact(&lease, builtin.artifact_id).await.unwrap().build, builtin.id);
}

#[tokio::test]
async fn the_list_has_the_callers_own_and_the_built_ins_and_nobody_elses() {
    let f = Fixture::new().await;
    let (system, caller, other) = (f.system().await, f.tenant("acme").await, f.tenant("other").await);
    f.ready(&system, "base", &["default"], at(1)).await;
    let old = f.ready(&caller, "web", &["default", "v1"], at(2)).await;
    let new = f.ready(&caller, "web", &["v2"], at(3)).await;
    f.ready(&other, "secret", &["default"], at(3)).await;
    // Only waiting: nothing to use yet.
    f.accept(&caller, "later").await;
    let listed = f.store.list_templates(&caller).await.unwrap();
    let names: Vec<_> = listed.iter().map(|one| one.template.canonical_ref()).collect();
    assert_eq!(names, ["acme/web", "nullspace/base"]);
    // `default` stands for the template although another build is newer.
    assert_eq!(listed[0].artifact.build, old.id);
    let tags: Vec<_> = listed[0].tags.iter().map(|tag| (tag.tag.as_str(), tag.build)).collect();
    assert_eq!(tags, [("default", old.id), ("v1", old.id), ("v2", new.id)]);
    assert!(listed[1].template.is_builtin() && !listed[0].template.is_builtin());
    for one in listed {
        assert_eq!(f.resolve(&caller, &one.template.canonical_ref()).await.unwrap(), one);
    }
}

#[tokio::test]
async fn built_ins_cannot_be_deleted() {
    let f = Fixture::new().await;
    let (system, caller) = (f.system().await, f.tenant("acme").await);
    let base = f.ready(&system, "base", &["default"], at(1)).await;
    for reference in ["base".to_owned(), "nullspace/base:latest".to_owned(), base.artifact_id.to_string()] {
        assert!(is_conflict(&f.delete(&caller, &reference, at(2)).await));
        assert!(is_conflict(&f.delete(&system, &reference, at(2)).await));
    }
    assert_eq!(built(&f, &caller, "base").await, Some(base.id));
}

#[tokio::test]
async fn a_deleted_template_is_gone_in_every_form_and_its_builds_can_be_read() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["default", "v1"], at(1)).await;
    f.delete(&caller, "web", at(2)).await.unwrap();
    for reference in ["web".to_owned(), "web:v1".to_owned(), format!("web:{}", build.id), build.artifact_id.to_string()]
    {
        assert_eq!(built(&f, &caller, &reference).await, None, "{reference}");
        assert!(is_not_found(&f.delete(&caller, &reference, at(3)).await), "{reference}");
    }
    let read = f.store.get_build(&caller, build.id).await.unwrap();
    assert_eq!(read.status, BuildStatus::Ready);
    assert_eq!(read.artifact.unwrap().deleted_at, Some(at(2)));
    assert_eq!(f.messages(&caller, build.id).await, ["start", "end"]);
    // The name is free: what is built now is a new template.
    let again = f.ready(&caller, "web", &["default"], at(4)).await;
    assert_ne!(again.template, build.template);
    assert_eq!(built(&f, &caller, "web").await, Some(again.id));
    assert_eq!(built(&f, &caller, &format!("web:{}", build.id)).await, None);
}

#[tokio::test]
async fn deleting_a_template_cancels_its_unfinished_builds() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let ready = f.ready(&caller, "web", &["v1"], at(1)).await;
    let running = f.accept(&caller, "web").await;
    let (lease, _) = f.run("w", at(2)).await;
    let waiting = f.accept(&caller, "web").await;
    let unrelated = f.accept(&caller, "api").await;
    // Its `default` leads nowhere; the name is the template all the same.
    f.delete(&caller, "web", at(3)).await.unwrap();
    assert_eq!(f.store.get_build(&caller, ready.id).await.unwrap().status, BuildStatus::Ready);
    assert_eq!(f.messages(&caller, waiting.id).await, ["start", "cancelled"]);
    assert!(f.store.heartbeat(&lease, TTL, at(4)).await.unwrap().cancel_requested);
    assert_eq!(f.store.get_build(&caller, running.id).await.unwrap().status, BuildStatus::Building);
    assert_eq!(f.store.get_build(&caller, unrelated.id).await.unwrap().status, BuildStatus::Waiting);
}

#[tokio::test]
async fn equal_tenant_names_share_nothing_and_slugs_never_clash() {
    let f = Fixture::new().await;
    let a = f.tenant("Acme Inc.").await;
    let b = f.tenant("acme-inc").await;
    assert_eq!((a.namespace.as_str(), b.namespace.as_str()), ("acme-inc", "acme-inc-2"));
    let build = f.ready(&a, "web", &["default"], at(1)).await;
    let other = f.ready(&b, "web", &["default"], at(1)).await;
    assert_ne!(build.template, other.template);
    assert_eq!(built(&f, &b, "web").await, Some(other.id));
    for (name, slug) in [("nullspace!", "nullspace-2"), ("日本", "tenant"), ("--x--", "x")] {
        assert_eq!(f.tenant(name).await.namespace, slug);
    }
    let uuid = uuid::Uuid::now_v7().to_string();
    assert_eq!(f.tenant(&uuid).await.namespace, format!("{uuid}-2"));
    let parsed: TemplateRef = format!("{}/web", b.namespace).parse().unwrap();
    assert_eq!(f.store.resolve(&b, &parsed).await.unwrap().artifact.build, other.id);
    assert!(is_conflict(&f.store.ensure_tenant("acme-inc", NamespaceKind::System, at(1)).await));
}
