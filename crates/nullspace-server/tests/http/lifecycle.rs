//! Lifecycle events: which are listed, in which order, page by page.

use std::sync::Arc;

use axum::body::Body;
use nullspace_api::LifecycleOperation;
use serde_json::{Value, json};

use crate::life::{answer, get, request, send};
use crate::support::{Fake, OTHER_KEY};

/// A fake with a sandbox that was paused, resumed and ended: its snapshot and the id of the resumed one.
async fn lived(fake: &Arc<Fake>) -> (String, String) {
    let snapshot = send(fake, "POST", "/v1/sandboxes/sb_1/hibernate", Value::Null).await.body["id"].clone();
    let snapshot = snapshot.as_str().unwrap().to_owned();
    let resumed = send(fake, "POST", &format!("/v1/sandboxes/{snapshot}/resume"), Value::Null).await.body["id"].clone();
    let resumed = resumed.as_str().unwrap().to_owned();
    send(fake, "DELETE", &format!("/v1/sandboxes/{resumed}"), Value::Null).await;
    (snapshot, resumed)
}

fn operations(page: &Value) -> Vec<&str> {
    page["events"].as_array().unwrap().iter().map(|event| event["operation"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn events_are_found_by_sandbox_snapshot_source_and_target_also_of_what_is_over() {
    let fake = Fake::new();
    let (snapshot, resumed) = lived(&fake).await;
    let of_snapshot = vec!["hibernate", "snapshot_created", "resume_from_snapshot"];
    for (path, expected) in [
        (
            "/v1/lifecycle/events?order=asc&audience=customer".to_owned(),
            vec!["hibernate", "snapshot_created", "resume_from_snapshot", "destroy"],
        ),
        ("/v1/sandboxes/sb_1/lifecycle?order=asc".to_owned(), of_snapshot.clone()),
        (format!("/v1/sandboxes/{resumed}/lifecycle?order=asc"), vec!["resume_from_snapshot", "destroy"]),
        (format!("/v1/snapshots/{snapshot}/lifecycle?order=asc"), of_snapshot.clone()),
        (format!("/v1/snapshots/{snapshot}/lifecycle?order=asc&operation=hibernate"), vec!["hibernate"]),
        ("/v1/lifecycle/events?order=asc&sandbox_id=sb_1".to_owned(), vec!["hibernate", "snapshot_created"]),
        (format!("/v1/lifecycle/events?order=asc&snapshot_id={snapshot}"), of_snapshot.clone()),
        ("/v1/lifecycle/events?source_sandbox_id=sb_1".to_owned(), vec!["resume_from_snapshot"]),
        (format!("/v1/lifecycle/events?target_sandbox_id={resumed}"), vec!["resume_from_snapshot"]),
        ("/v1/lifecycle/events?operation=destroy".to_owned(), vec!["destroy"]),
        ("/v1/lifecycle/events?status=failed".to_owned(), vec![]),
        // Of what is known, nothing may fit.
        ("/v1/sandboxes/sb_1/lifecycle?status=failed".to_owned(), vec![]),
        (format!("/v1/snapshots/{snapshot}/lifecycle?offset=1000"), vec![]),
    ] {
        let page = get(&fake, &path).await;
        assert_eq!((page.status, operations(&page.body)), (200, expected), "{path}");
    }
    // A sandbox without an event is known by its row.
    let fresh = Fake::new();
    assert_eq!(get(&fresh, "/v1/sandboxes/sb_1/lifecycle").await.body["events"], json!([]));
    for (path, code) in [
        ("/v1/sandboxes/sb_9/lifecycle", "sandbox_not_found"),
        ("/v1/snapshots/snap_9/lifecycle", "snapshot_not_found"),
        ("/v1/snapshots/nothing/lifecycle", "snapshot_not_found"),
    ] {
        let refused = get(&fake, path).await;
        assert_eq!((refused.status, &refused.body["code"]), (404, &json!(code)), "{path}");
    }
    let foreign = request("GET", "/v1/lifecycle/events", OTHER_KEY).body(Body::empty()).unwrap();
    let page = answer(&fake, foreign).await;
    assert_eq!((page.status, &page.body["events"]), (200, &json!([])));
}

#[tokio::test]
async fn an_event_has_the_contracts_fields_and_times_are_rfc_3339() {
    let fake = Fake::new();
    lived(&fake).await;
    let page = get(&fake, "/v1/lifecycle/events?operation=snapshot_created").await.body;
    assert_eq!(
        page,
        json!({"offset": 0, "limit": 50, "has_more": false, "events": [{
            "id": "00000000-0000-7000-8000-000000000001",
            "occurred_at": "2023-11-14T22:13:20.000001Z",
            "audience": "customer",
            "operation": "snapshot_created",
            "status": "succeeded",
            "actor_kind": "user",
            "metadata": {"created_via": "hibernate"},
            "sandbox_id": "sb_1",
            "snapshot_id": "snap_2",
        }]})
    );
    for (query, expected) in [
        ("from=2023-11-14T22:13:20.000001Z&to=2023-11-14T22:13:20.000002Z", 2),
        ("from=2023-11-14T23:13:20.000001%2B01:00", 3),
        ("to=2023-11-14T22:13:19Z", 0),
    ] {
        let page = get(&fake, &format!("/v1/lifecycle/events?{query}")).await;
        assert_eq!((page.status, operations(&page.body).len()), (200, expected), "{query}");
    }
}

#[tokio::test]
async fn pages_follow_one_another_newest_first_and_have_a_bound() {
    let fake = Fake::new();
    for _ in 0..60 {
        fake.events.record(LifecycleOperation::TimeoutUpdated, "sb_1", None, &[]);
    }
    let id = |page: &Value, at: usize| page["events"][at]["id"].as_str().unwrap()[33..].parse::<usize>().unwrap();
    let first = get(&fake, "/v1/sandboxes/sb_1/lifecycle").await.body;
    assert_eq!((operations(&first).len(), id(&first, 0), id(&first, 49)), (50, 59, 10));
    assert_eq!((&first["limit"], &first["has_more"]), (&json!(50), &json!(true)));
    let second = get(&fake, "/v1/sandboxes/sb_1/lifecycle?offset=50&limit=10").await.body;
    assert_eq!((operations(&second).len(), id(&second, 0), id(&second, 9)), (10, 9, 0));
    assert_eq!((&second["offset"], &second["has_more"]), (&json!(50), &json!(false)));
    let asked = get(&fake, "/v1/lifecycle/events?limit=1001").await.body;
    assert_eq!(asked["limit"], 1000);
    assert_eq!(fake.last_call(), "list_events a offset 0 limit Some(1000)");
}
