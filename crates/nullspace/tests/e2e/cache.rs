//! What is imported once is not imported again; what changed is.

use nullspace_api::{
    TemplateBuildLogEntryCacheKind as Of, TemplateBuildLogEntryCacheReason as Reason,
    TemplateBuildLogEntryCacheStatus as Cache,
};
use serde_json::{Value, json};

use crate::fixture::{Finished, Image, Registry, Service, artifacts};

fn cache_entries(build: &Finished) -> Vec<(Cache, Option<Reason>)> {
    let layers = build.log.iter().filter(|entry| entry.cache_kind == Some(Of::Layer));
    layers.filter_map(|entry| Some((entry.cache_status?, entry.cache_reason))).collect()
}

#[tokio::test]
async fn the_same_image_is_imported_once_and_a_moved_tag_is_a_miss() {
    let registry = Registry::start();
    let first_digest = registry.push("app", "1", &Image::busybox_variant("first")).await;
    let mut service = Service::start().await;
    let api = service.api();
    let request = |name: &str, skip_cache: bool| -> Value {
        json!({
            "name": name, "base_image": registry.reference("app:1"), "skip_cache": skip_cache,
            "build_config": {"memory_mib": 192},
        })
    };
    let missed = vec![(Cache::Miss, Some(Reason::MissingOrIncompatible)), (Cache::Stored, None)];

    let first = api.ready(request("app", false)).await;
    assert_eq!(first.build.source_digest.as_ref(), Some(&first_digest));
    assert_eq!(cache_entries(&first), missed);
    let again = api.ready(request("app", false)).await;
    assert_eq!(cache_entries(&again), [(Cache::Hit, None)]);
    let summary = again.build.cache_summary.expect("a summary");
    assert_eq!((summary.layer_hits, summary.layer_misses, summary.layer_stores), (1, 0, 0));
    assert_eq!(artifacts::root_images(&service.data()).len(), 1);

    // Two builds of one image at the same moment import it once, too.
    let second_digest = registry.push("app", "1", &Image::busybox_variant("second")).await;
    assert_ne!(first_digest, second_digest);
    let (one, two) = tokio::join!(api.ready(request("app", false)), api.ready(request("other", false)));
    let mut seen = [cache_entries(&one), cache_entries(&two)];
    seen.sort_by_key(Vec::len);
    assert_eq!(seen, [vec![(Cache::Hit, None)], missed]);
    assert_eq!(artifacts::root_images(&service.data()).len(), 2);

    // Not asked means not asked; the bytes are the same all the same, so nothing is kept twice.
    let bypassed = api.ready(request("app", true)).await;
    assert_eq!(cache_entries(&bypassed)[0], (Cache::Bypass, Some(Reason::WholeBuildSkipCache)));
    assert_eq!(artifacts::root_images(&service.data()).len(), 2);

    // Tags move with each build, exact references stay where they are.
    for (reference, variant) in [
        ("app", "second"),
        (&format!("app:{}", first.build.build_id), "first"),
        (first.template(), "first"),
        (again.template(), "first"),
    ] {
        let sandbox = api.sandbox(reference).await;
        assert_eq!(sandbox.sh("cat /variant").await, variant, "{reference}");
        sandbox.delete().await;
    }
    service.stop().await;
}
