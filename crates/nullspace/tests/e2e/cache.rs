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

/// How often each layer, finished artifact and file was asked for and found.
fn counts(build: &Finished) -> [u64; 8] {
    let summary = build.build.cache_summary.as_ref().expect("a summary");
    [
        summary.layer_hits,
        summary.layer_misses,
        summary.layer_bypasses,
        summary.final_artifact_hits,
        summary.final_artifact_misses,
        summary.final_artifact_bypasses,
        summary.file_blob_hits,
        summary.file_blob_bypasses,
    ]
}

#[tokio::test]
async fn steps_come_from_the_cache_up_to_what_changed_or_is_to_be_made_anew() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let (blob, missing) = api.preflight(b"a file", false).await;
    assert!(missing);
    assert_eq!(api.upload(b"a file").await, blob);
    assert_eq!(api.preflight(b"a file", false).await, (blob.clone(), false));
    assert_eq!(api.preflight(b"a file", true).await, (blob.clone(), true), "asked to be sent again");

    let random =
        |file: &str| json!({"action": "run", "command": format!("cat /proc/sys/kernel/random/uuid > /{file}")});
    let copy = |force: bool| json!({"action": "copy", "sources": ["file"], "dst": "/", "force_upload": force});
    let boundary = json!({"action": "skip_cache"});
    let build = async |steps: Value, skip_cache: bool| {
        let request = json!({
            "base_image": registry.reference("box:1"), "steps": steps, "skip_cache": skip_cache,
            "build_context": {"files": [{"path": "file", "entry_type": "file", "blob_id": blob}]},
            "build_config": {"memory_mib": 192, "disk_mb": 512},
        });
        let built = api.ready(request).await;
        let sandbox = api.sandbox(built.template()).await;
        let drawn = sandbox.sh("cat /first /second; cat /file").await;
        sandbox.delete().await;
        let drawn: Vec<String> = drawn.lines().map(str::to_owned).collect();
        let [first, second, _] = drawn.as_slice() else { panic!("{drawn:?}: {built:?}") };
        (counts(&built), first.clone(), second.clone())
    };

    let all = json!([random("first"), copy(false), random("second")]);
    let (counted, first, second) = build(all.clone(), false).await;
    // The image and three steps.
    assert_eq!(counted, [0, 4, 0, 0, 1, 0, 1, 0]);
    // Nothing changed: the finished artifact.
    assert_eq!(build(all.clone(), false).await, ([4, 0, 0, 1, 0, 0, 1, 0], first.clone(), second.clone()));

    // From a boundary on, all is made anew, each time; up to it, nothing is.
    let behind = json!([random("first"), copy(false), boundary, random("second")]);
    let (counted, kept, new) = build(behind.clone(), false).await;
    assert_eq!((counted, &kept), ([3, 0, 1, 0, 0, 1, 1, 0], &first));
    let (counted, kept, newer) = build(behind, false).await;
    assert_eq!((counted, &kept), ([3, 0, 1, 0, 0, 1, 1, 0], &first));
    assert!(new != second && newer != second && newer != new);

    // Files that are sent again are new ones to the cache, and so is what comes after them.
    let forced = json!([random("first"), copy(true), random("second")]);
    let (counted, kept, newest) = build(forced, false).await;
    assert_eq!((counted, kept), ([2, 2, 0, 0, 1, 0, 0, 1], first.clone()));
    assert!(![second, new, newer].contains(&newest));

    // The whole build anew.
    let (counted, other, _) = build(all, true).await;
    assert_eq!((counted[0], counted[3], counted[5]), (0, 0, 1));
    assert_ne!(other, first);
    service.stop().await;
}
