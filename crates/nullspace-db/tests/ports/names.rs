//! Tags, aliases, new names, claims and uploaded files: what they mean, and to whom.

use nullspace_db::{ClaimHash, ClaimToken, DbError, Idempotency, NewClaim, Visibility};
use nullspace_types::{BlobId, Caller, Tag, TemplateRef};

use crate::fixture::ROOMY;
use crate::fixture::{Fixture, at, entry, failure, is_conflict, is_not_found, new_build};

fn reference(text: &str) -> TemplateRef {
    text.parse().unwrap()
}

fn tags(words: &[&str]) -> Vec<Tag> {
    words.iter().map(|word| word.parse().unwrap()).collect()
}

async fn tag_names(f: &Fixture, caller: &Caller, name: &str) -> Vec<(String, nullspace_types::BuildId)> {
    let standing = f.store.standing(caller, &reference(name)).await.unwrap();
    standing.tags.into_iter().map(|target| (target.tag.to_string(), target.build)).collect()
}

#[tokio::test]
async fn tags_move_between_builds_and_go_one_by_one() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let first = f.ready(&caller, "web", &["default", "stable"], at(1)).await;
    let second = f.ready(&caller, "web", &["candidate"], at(2)).await;
    let by_id = reference(&second.artifact_id.to_string());
    let moved = f.store.assign_tags(&caller, &by_id, &tags(&["default", "production"]), at(3)).await.unwrap();
    assert_eq!(moved.artifact.id, second.artifact_id);
    let expected = [("candidate", second.id), ("default", second.id), ("production", second.id), ("stable", first.id)];
    let expected = expected.map(|(tag, build)| (tag.to_owned(), build));
    assert_eq!(tag_names(&f, &caller, "web").await, expected);
    // Pointing where it points already is no move.
    let again = f.store.assign_tags(&caller, &by_id, &tags(&["default"]), at(9)).await.unwrap();
    assert_eq!(again.tags.iter().find(|target| target.tag.as_str() == "default").unwrap().moved_at, at(3));

    for tag in ["candidate", "default", "production", "stable"] {
        f.store.remove_tag(&caller, &by_id, &tag.parse().unwrap()).await.unwrap();
        assert!(is_not_found(&f.store.remove_tag(&caller, &by_id, &tag.parse().unwrap()).await));
    }
    assert!(is_not_found(&f.resolve(&caller, "web").await));
    // Nothing keeps it any more but its time.
    let kept = f.store.get_build(&caller, second.id).await.unwrap().artifact.unwrap();
    assert_eq!(kept.retention_expires_at, Some(at(1000)));
    assert_eq!(f.resolve(&caller, &second.artifact_id.to_string()).await.unwrap().artifact.build, second.id);
}

#[tokio::test]
async fn only_a_ready_build_that_is_still_there_is_promoted() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let old = f.ready(&caller, "web", &["default"], at(1)).await;
    f.ready(&caller, "web", &["default"], at(2)).await;
    let promoted = f.store.promote_build(&caller, old.id, &tags(&["default"]), at(3)).await.unwrap();
    assert_eq!((promoted.artifact.build, promoted.tags[0].build), (old.id, old.id));
    let waiting = f.accept(&caller, "web").await;
    assert!(is_conflict(&f.store.promote_build(&caller, waiting.id, &tags(&["x"]), at(4)).await));
    assert!(is_not_found(&f.store.promote_build(&f.tenant("other").await, old.id, &tags(&["x"]), at(4)).await));
    f.delete(&caller, "web", at(5)).await.unwrap();
    assert!(is_conflict(&f.store.promote_build(&caller, old.id, &tags(&["x"]), at(6)).await));
}

#[tokio::test]
async fn a_renamed_template_is_found_by_both_names_and_takes_builds_under_the_new_one() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "old", &["default"], at(1)).await;
    let taken = f.ready(&caller, "taken", &["default"], at(1)).await;
    let rename = |from: &str, to: &str| {
        let (store, caller, from, to) = (f.store.clone(), caller.clone(), reference(from), to.parse().unwrap());
        async move { store.rename_template(&caller, &from, &to, at(2)).await }
    };
    assert!(is_conflict(&rename("old", "taken").await));
    let renamed = rename("old", "new").await.unwrap();
    assert_eq!(renamed.template.canonical_ref(), "acme/new");
    for name in ["old", "new", "acme/old:default", &format!("old:{}", build.id)] {
        assert_eq!(f.resolve(&caller, name).await.unwrap().artifact.build, build.id, "{name}");
    }
    let aliases = f.store.list_aliases(&caller, &reference("new")).await.unwrap();
    assert_eq!(aliases.iter().map(|alias| alias.name.as_str()).collect::<Vec<_>>(), ["old"]);
    // The alias is read-only and nobody else's.
    let to_alias = f.store.accept_build(&caller, new_build("old", &["x"]), entry("s"), ROOMY, at(3)).await;
    assert!(is_conflict(&to_alias), "{to_alias:?}");
    assert!(is_conflict(&rename("taken", "old").await));
    // Back again: the names change places.
    assert_eq!(rename("old", "old").await.unwrap().template.name.as_str(), "old");
    assert_eq!(f.resolve(&caller, "new").await.unwrap().artifact.build, build.id);
    f.store.remove_alias(&caller, &reference("old"), &"new".parse().unwrap()).await.unwrap();
    assert!(is_not_found(&f.resolve(&caller, "new").await));
    assert_eq!(rename("taken", "new").await.unwrap().artifact.unwrap().build, taken.id);
    // A deleted template gives its aliases back.
    f.delete(&caller, "new", at(4)).await.unwrap();
    f.ready(&caller, "taken", &["default"], at(5)).await;
}

#[tokio::test]
async fn a_public_template_is_seen_by_all_and_changed_by_its_owner_only() {
    let f = Fixture::new().await;
    let (owner, other, system) = (f.tenant("owner").await, f.tenant("other").await, f.system().await);
    let build = f.ready(&owner, "web", &["default"], at(1)).await;
    f.ready(&system, "base", &["default"], at(1)).await;
    let public = f.store.set_visibility(&owner, &reference("web"), Visibility::Public).await.unwrap();
    assert_eq!(public.template.visibility, Visibility::Public);
    let name = reference("owner/web");
    assert_eq!(f.store.standing(&other, &name).await.unwrap().artifact.unwrap().build, build.id);
    let tag = tags(&["x"]);
    assert!(is_not_found(&f.store.assign_tags(&other, &name, &tag, at(2)).await));
    assert!(is_not_found(&f.store.remove_tag(&other, &name, &Tag::default_tag()).await));
    assert!(is_not_found(&f.store.set_visibility(&other, &name, Visibility::Private).await));
    assert!(is_not_found(&f.store.rename_template(&other, &name, &"x".parse().unwrap(), at(2)).await));
    assert!(is_not_found(&f.store.remove_alias(&other, &name, &"x".parse().unwrap()).await));
    let built_in = reference("nullspace/base");
    assert!(is_conflict(&f.store.assign_tags(&owner, &built_in, &tag, at(2)).await));
    assert!(is_conflict(&f.store.rename_template(&owner, &built_in, &"x".parse().unwrap(), at(2)).await));
    f.store.set_visibility(&owner, &reference("web"), Visibility::Private).await.unwrap();
    assert!(is_not_found(&f.store.standing(&other, &name).await));
}

#[tokio::test]
async fn a_template_that_made_nothing_yet_is_known_to_its_owner_by_name_and_id() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.accept(&caller, "web").await;
    let (lease, _) = f.run("worker", at(1)).await;
    f.store.finish_error(&lease, failure(), at(2)).await.unwrap();
    for name in ["web".to_owned(), build.artifact_id.to_string()] {
        let standing = f.store.standing(&caller, &reference(&name)).await.unwrap();
        assert_eq!((standing.artifact, standing.newest), (None, Some((build.id, build.artifact_id))), "{name}");
        assert!(is_not_found(&f.store.standing(&f.tenant("other").await, &reference(&name)).await));
    }
    let page = f.store.list_builds(&caller, nullspace_db::BuildFilter { limit: 10, ..Default::default() }).await;
    assert_eq!(page.unwrap().builds[0].id, build.id);
}

#[tokio::test]
async fn a_reserved_name_is_for_its_token_until_it_lapses() {
    let f = Fixture::new().await;
    let (caller, other) = (f.tenant("acme").await, f.tenant("other").await);
    let token = ClaimToken::generate();
    let claim =
        |name: &str, token: ClaimHash, until| NewClaim { name: name.parse().unwrap(), token, expires_at: at(until) };
    f.ready(&caller, "taken", &["default"], at(1)).await;
    assert!(is_conflict(&f.store.reserve_name(&caller, claim("taken", token.hash(), 100), at(1)).await));
    f.store.reserve_name(&caller, claim("web", token.hash(), 100), at(1)).await.unwrap();
    let second = ClaimToken::generate();
    assert!(is_conflict(&f.store.reserve_name(&caller, claim("web", second.hash(), 100), at(2)).await));
    // Another tenant's namespace is another one.
    f.store.reserve_name(&other, claim("web", second.hash(), 100), at(2)).await.unwrap();

    let accept = |name: &str, claim: Option<ClaimHash>, now| {
        let mut build = new_build(name, &["default"]);
        build.claim = claim;
        let (store, caller) = (f.store.clone(), caller.clone());
        async move { store.accept_build(&caller, build, entry("s"), ROOMY, at(now)).await }
    };
    assert!(is_conflict(&accept("web", None, 3).await));
    assert!(is_conflict(&accept("web", Some(second.hash()), 3).await));
    assert!(is_conflict(&accept("api", Some(token.hash()), 3).await));
    assert_eq!(f.store.claimed_name(&caller, token.hash(), at(3)).await.unwrap().as_str(), "web");
    assert!(is_not_found(&f.store.claimed_name(&other, token.hash(), at(3)).await));
    assert!(is_not_found(&f.store.release_name(&other, token.hash(), at(3)).await));
    accept("web", Some(token.hash()), 3).await.unwrap();
    // Spent with that build.
    assert!(is_not_found(&f.store.claimed_name(&caller, token.hash(), at(4)).await));
    accept("web", None, 4).await.unwrap();

    // Given back, or lapsed, the name is free.
    let third = ClaimToken::generate();
    f.store.reserve_name(&caller, claim("api", third.hash(), 100), at(5)).await.unwrap();
    f.store.release_name(&caller, third.hash(), at(6)).await.unwrap();
    f.store.reserve_name(&caller, claim("api", third.hash(), 10), at(6)).await.unwrap();
    assert!(is_conflict(&accept("api", None, 9).await));
    accept("api", None, 10).await.unwrap();
    assert!(!f.files().await.iter().any(|file| {
        let bytes = std::fs::read(file).unwrap();
        bytes.windows(token.expose().len()).any(|window| window == token.expose().as_bytes())
    }));
}

#[tokio::test]
async fn a_repeated_request_is_answered_with_its_build() {
    let f = Fixture::new().await;
    let (caller, other) = (f.tenant("acme").await, f.tenant("other").await);
    let repeat = |caller: &Caller, digest: &str| {
        let mut build = new_build("web", &["default"]);
        build.idempotency = Some(Idempotency { key: "k".into(), request_digest: digest.into() });
        let (store, caller) = (f.store.clone(), caller.clone());
        async move { store.accept_build(&caller, build, entry("s"), ROOMY, at(1)).await }
    };
    let first = repeat(&caller, "1").await.unwrap();
    assert_eq!(repeat(&caller, "1").await.unwrap().id, first.id);
    assert!(is_conflict(&repeat(&caller, "2").await));
    assert_ne!(repeat(&other, "2").await.unwrap().id, first.id);
    assert_eq!(f.messages(&caller, first.id).await, ["s"]);
}

#[tokio::test]
async fn uploaded_files_are_each_tenants_own_bounded_and_collected_when_unused() {
    let f = Fixture::new().await;
    let (caller, other) = (f.tenant("acme").await, f.tenant("other").await);
    let blob = |digit: &str, bytes| BlobId::new(&digit.repeat(64), bytes).unwrap();
    let (one, two) = (blob("1", 60), blob("2", 60));
    f.store.put_blob(&caller, &one, 100, at(1)).await.unwrap();
    f.store.put_blob(&caller, &one, 100, at(2)).await.unwrap();
    let over = f.store.put_blob(&caller, &two, 100, at(2)).await;
    assert!(matches!(over, Err(DbError::LimitReached { .. })), "{over:?}");
    f.store.put_blob(&other, &two, 100, at(2)).await.unwrap();
    let all = [one.clone(), two.clone(), blob("1", 61)];
    let found = f.store.find_blobs(&caller, &all, at(3)).await.unwrap();
    assert!(found.len() == 1 && found.contains(&one), "{found:?}");
    assert_eq!(f.store.known_blobs().await.unwrap().len(), 2);
    // Asked for at 3: not collected as unused since 3.
    let unused = f.store.collectable_blobs(at(3), 10).await.unwrap();
    assert_eq!(unused.iter().map(|blob| &blob.id).collect::<Vec<_>>(), [&two]);
    assert!(f.store.purge_blob(&unused[0], at(3)).await.unwrap());
    assert!(!f.store.purge_blob(&unused[0], at(3)).await.unwrap());
    let mine = nullspace_types::Blob { tenant: caller.tenant, id: one };
    assert!(!f.store.purge_blob(&mine, at(3)).await.unwrap());
}
