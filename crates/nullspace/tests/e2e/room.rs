//! A disk without room: what is refused, and what goes on.

use serde_json::json;

use crate::fixture::Service;

/// More MiB than any disk has.
const NEVER_FREE: &str = "1000000000";

#[tokio::test]
async fn nothing_new_begins_below_the_reserve_and_the_refusal_names_the_hosts_disk() {
    let mut service = Service::with([("NULLSPACE_DISK_RESERVE_MIB", NEVER_FREE.to_owned())]).await;
    let api = service.api();
    let build = json!({"name": "web", "base_image": "box:1"});
    let refused = api.post("/v1/templates/builds", build).await;
    assert_eq!(refused.headers["retry-after"], "60");
    let refused = refused.refused(503, "capacity_exceeded");
    assert!(refused.error.contains("host's disk"), "{refused:?}");
    let detail = serde_json::to_value(&refused.error_detail).unwrap();
    assert_eq!((&detail["details"]["reason"], &detail["retryable"]), (&json!("host_disk_full"), &json!(true)));
    // So is an upload, before its body is read.
    let (blob, missing) = api.preflight(b"file", false).await;
    assert!(missing);
    let request = api.request(reqwest::Method::PUT, &format!("/v1/templates/blobs/{blob}")).body("file");
    api.send(request).await.refused(503, "capacity_exceeded");
    // The database has what is left, and says that it takes writes.
    assert_eq!(api.get("/readyz").await.status, 200);
    let page = api.get("/metrics").await.text();
    assert!(page.contains("nullspace_disk_reserve_bytes ") && page.contains("nullspace_disk_free_bytes "), "{page}");
    service.stop().await;
}
