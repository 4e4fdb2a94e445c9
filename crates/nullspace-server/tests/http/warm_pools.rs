//! Warm pools of templates.

use serde_json::{Value, json};

use crate::life::{get, send};
use crate::support::Fake;
use crate::support::warm_pools::POOL;

const ALL: &str = "/v1/template-warm-pools";

#[tokio::test]
async fn a_pool_is_made_shown_changed_and_ended() {
    let fake = Fake::new();
    let asked = json!({"name": "web", "template_ref": "acme/web:stable", "min_ready": 1, "max_ready": 2,
        "resources": {"vcpus": 1, "memory_mb": 512}, "labels": {"role": "web"}, "track_tag": null});
    let made = send(&fake, "POST", ALL, asked.clone()).await;
    assert_eq!((made.status, &made.body["id"], &made.body["labels"]), (201, &json!(POOL), &json!({"role": "web"})));
    assert_eq!(made.body["status"]["target"], 1);
    assert!(made.body.get("degraded_reason").is_none(), "what is absent is left out: {}", made.body);
    for field in ["name", "template_ref", "min_ready", "max_ready", "resources"] {
        let mut lacking = asked.clone();
        lacking.as_object_mut().unwrap().remove(field);
        let refused = send(&fake, "POST", ALL, lacking).await;
        assert_eq!((refused.status, &refused.body["code"]), (400, &json!("invalid_request")), "{field}");
    }
    let one = format!("{ALL}/{POOL}");
    assert_eq!(get(&fake, &one).await.body["name"], "web");
    assert_eq!(get(&fake, &format!("{one}/status")).await.body, made.body["status"]);
    assert_eq!(get(&fake, ALL).await.body["items"][0]["id"], POOL);

    assert_eq!(send(&fake, "PATCH", &one, json!({"min_ready": 4})).await.status, 200);
    assert!(fake.last_call().contains("min_ready: Some(4)"), "{}", fake.last_call());
    for (act, told) in [("enable", "Enable"), ("disable", "Disable"), ("drain", "Drain"), ("reconcile", "Reconcile")] {
        let done = send(&fake, "POST", &format!("{one}/{act}"), Value::Null).await;
        assert_eq!(done.status, 200, "{act}");
        assert!(fake.last_call().ends_with(&format!("{POOL} {told}")), "{}", fake.last_call());
    }
    assert_eq!(send(&fake, "DELETE", &one, Value::Null).await.status, 200);
    assert!(fake.last_call().ends_with("Delete"), "{}", fake.last_call());

    for (method, path) in [("GET", ""), ("GET", "/status"), ("POST", "/drain"), ("DELETE", "")] {
        let missing = send(&fake, method, &format!("{ALL}/twp_other{path}"), Value::Null).await;
        assert_eq!((missing.status, &missing.body["code"]), (404, &json!("not_found")), "{method} {path}");
    }
}

#[tokio::test]
async fn lists_take_several_labels_and_refuse_what_they_do_not_know() {
    let fake = Fake::new();
    let path =
        format!("{ALL}?template=acme%2Fweb&state=enabled&status=ready&label=a%3Db%3Dc&label=role%3Dweb&limit=25");
    assert_eq!(get(&fake, &path).await.status, 200);
    for told in [
        r#"template: Some("acme/web")"#,
        "state: Some(Enabled)",
        "status: Some(Ready)",
        r#"labels: [("a", "b=c"), ("role", "web")]"#,
        "limit: Some(25)",
    ] {
        assert!(fake.last_call().contains(told), "{told}: {}", fake.last_call());
    }
    for wrong in ["state=on", "status=fine", "label=role", "limit=0", "limit=-1", "limit=x"] {
        let refused = get(&fake, &format!("{ALL}?{wrong}")).await;
        assert_eq!((refused.status, &refused.body["code"]), (400, &json!("invalid_request")), "{wrong}");
    }
}
