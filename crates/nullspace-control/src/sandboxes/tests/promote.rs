//! Promotions of snapshots to templates.

use std::sync::atomic::Ordering;

use nullspace_api::{ErrorResponseCode as Code, PromoteSnapshotRequest, TemplateInfo};
use nullspace_db::NamespaceKind;
use nullspace_service::{BuildHistory as _, Error, Life as _, Names as _, Sandboxes as _, Templates as _, Warned};
use nullspace_types::Caller;
use serde_json::json;

use super::{House, at, context, usual};
use crate::sandboxes::LifeSettings;

impl House {
    async fn snapshot(&self, id: &str) -> String {
        let kept = self.control.create_snapshot(&self.caller, id, Default::default(), &context(None)).await;
        kept.unwrap().id
    }

    async fn promote_as(
        &self,
        caller: &Caller,
        id: &str,
        name: &str,
        tag: Option<&str>,
        key: Option<&str>,
    ) -> Result<Warned<TemplateInfo>, Error> {
        let request = PromoteSnapshotRequest { name: name.to_owned(), tag: tag.map(str::to_owned) };
        self.control.promote_snapshot(caller, id, request, &context(key)).await
    }

    async fn promote(&self, id: &str, name: &str) -> Result<TemplateInfo, Error> {
        self.promote_as(&self.caller, id, name, None, None).await.map(|made| made.value)
    }

    /// The folder that a sandbox of a template was resumed from.
    async fn started_from(&self, template: &str) -> String {
        let request = serde_json::from_value(json!({"template": template})).unwrap();
        let made = self.control.create_sandbox(&self.caller, request, &context(None)).await.unwrap();
        let machine = self.host.machine(&made.id);
        assert!(machine.envs.is_empty(), "the variables of the promoted sandbox are its own");
        machine.folder
    }
}

#[tokio::test]
async fn sandboxes_start_from_it_and_it_outlives_the_snapshot_and_the_first_template() {
    let house = House::new(usual()).await;
    let id = house.create(json!({"envs": {"TOKEN": "secret-value"}, "cwd": "/srv"})).await;
    let snapshot = house.snapshot(&id).await;
    let made = house.promote_as(&house.caller, &snapshot, "warm", None, None).await.unwrap();
    assert_eq!((made.value.canonical_ref.as_str(), made.value.tags), ("acme/warm", vec!["default".to_owned()]));
    assert!(
        made.warnings.iter().any(|warning| warning.contains("memory") && warning.is_ascii()),
        "{:?}",
        made.warnings
    );
    assert_eq!(house.host.state.trials.load(Ordering::SeqCst), 1);
    let defaults = made.value.runtime_defaults.unwrap();
    assert!(defaults.default_env_keys.is_empty(), "{defaults:?}");

    house.control.delete_snapshot(&house.caller, &snapshot).await.unwrap();
    house.control.destroy_sandbox(&house.caller, &id).await.unwrap();
    house.control.delete_template(&house.caller, "web").await.unwrap();
    let folder = house.started_from("warm").await;
    let known = house.control.inner.db.known_files().await.unwrap();
    assert!(known.artifacts[&folder].is_some());
    assert!(!house.host.state.removed.lock().unwrap().contains(&folder));
    // Its own log and history.
    let builds = house.control.template_builds(&house.caller, "warm", Default::default()).await.unwrap();
    assert_eq!(builds.builds.len(), 1);
    house.control.stop().await;
}

#[tokio::test]
async fn a_paused_sandboxs_snapshot_can_be_promoted_too_and_the_sandbox_still_resumed() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let snapshot = house.pause(&id).await.unwrap();
    house.promote(&snapshot, "warm").await.unwrap();
    house.resume(&id).await.unwrap();
    house.started_from("warm").await;
    house.control.stop().await;
}

#[tokio::test]
async fn nothing_is_left_of_a_promotion_that_is_refused() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let snapshot = house.snapshot(&id).await;
    for name in ["nullspace/base", "other/warm", "warm:v1", "", "a b"] {
        assert_eq!(house.promote(&snapshot, name).await.unwrap_err().code, Code::InvalidRequest, "{name}");
    }
    let wrong = house.promote_as(&house.caller, &snapshot, "warm", Some("a b"), None).await;
    assert_eq!(wrong.unwrap_err().code, Code::InvalidRequest);
    let db = &house.control.inner.db;
    let other = db.ensure_tenant("other", NamespaceKind::User, at(0)).await.unwrap().caller();
    let foreign = house.promote_as(&other, &snapshot, "warm", None, None).await;
    assert_eq!(foreign.unwrap_err().code, Code::SnapshotNotFound);
    house.host.state.failing_starts.store(1, Ordering::SeqCst);
    assert!(house.promote(&snapshot, "warm").await.is_err(), "its trial has failed");
    house.control.rename_template(&house.caller, "web", "site").await.unwrap();
    assert_eq!(house.promote(&snapshot, "web").await.unwrap_err().code, Code::TransitionConflict);
    let claim = house.control.reserve_name(&house.caller, "mine").await;
    assert!(claim.is_ok());
    assert_eq!(house.promote(&snapshot, "mine").await.unwrap_err().code, Code::TransitionConflict);
    let templates = house.control.list_templates(&house.caller).await.unwrap();
    assert_eq!(templates.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["site"]);
    assert_eq!(house.host.machines().len(), 1, "no trial is left");
    house.control.stop().await;
}

#[tokio::test]
async fn a_repetition_is_answered_by_the_first_one_also_when_the_snapshot_is_deleted() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let snapshot = house.snapshot(&id).await;
    let first = house.promote_as(&house.caller, &snapshot, "warm", None, Some("k")).await.unwrap();
    house.control.delete_snapshot(&house.caller, &snapshot).await.unwrap();
    let again = house.promote_as(&house.caller, &snapshot, "warm", None, Some("k")).await.unwrap();
    assert_eq!((again.value.id, again.warnings.len()), (first.value.id, first.warnings.len()));
    assert_eq!(house.host.state.trials.load(Ordering::SeqCst), 1);
    let other = house.promote_as(&house.caller, &snapshot, "cold", None, Some("k")).await.unwrap_err();
    assert_eq!(other.code, Code::TransitionConflict, "another request under the key");
    assert_eq!(house.promote(&snapshot, "warm").await.unwrap_err().code, Code::SnapshotNotFound);
    house.control.stop().await;
}

#[tokio::test]
async fn a_tenants_promotions_are_limited() {
    let house = House::new(LifeSettings { snapshots_per_tenant: 2, ..usual() }).await;
    let id = house.create(json!({})).await;
    for name in ["a", "b"] {
        // The limit of snapshots alone would let any number through.
        let snapshot = house.snapshot(&id).await;
        house.promote(&snapshot, name).await.unwrap();
        house.control.delete_snapshot(&house.caller, &snapshot).await.unwrap();
    }
    let snapshot = house.snapshot(&id).await;
    let refused = house.promote(&snapshot, "c").await.unwrap_err();
    assert!(refused.code == Code::QuotaExceeded && refused.message.contains("2 versions"), "{refused}");
    assert_eq!(house.host.state.trials.load(Ordering::SeqCst), 2, "it is refused before its trial");
    house.control.delete_template(&house.caller, "a").await.unwrap();
    house.promote(&snapshot, "c").await.unwrap();
    house.control.stop().await;
}

#[tokio::test]
async fn nothing_is_built_on_it_and_a_public_one_warns() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let snapshot = house.snapshot(&id).await;
    let first = house.promote_as(&house.caller, &snapshot, "warm", None, Some("k")).await.unwrap();
    let again = house.promote_as(&house.caller, &snapshot, "warm", None, Some("k")).await.unwrap();
    assert_eq!(first.value.id, again.value.id);
    let refused = house.control.inner.template_source(&house.caller, "warm").await.unwrap_err();
    assert!(refused.code == Code::InvalidRequest && refused.message.contains("promoted"), "{refused}");
    assert!(house.control.inner.template_source(&house.caller, "web").await.is_ok());
    let public = house.control.set_visibility(&house.caller, "warm", nullspace_api::TemplateVisibility::Public).await;
    let warnings = public.unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("sandbox that was promoted")), "{warnings:?}");
    house.control.stop().await;
}
