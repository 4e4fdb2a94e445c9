//! Another tenant's things are not found, whatever is asked of them.

use std::time::Duration;

use nullspace_api::{LifecycleWebhookInfo, SnapshotInfo, TemplateInfo, TemplateWarmPool};
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixture::{Api, Image, Registry, Service};

#[tokio::test]
async fn what_another_tenant_has_is_not_found_on_any_route() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let (owner, other) = (service.api(), service.api_of("second"));
    let built = owner
        .ready(json!({"name": "mine", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}}))
        .await;
    let sandbox = owner.sandbox("mine").await;
    let (build, template) = (&built.build.build_id, built.template());
    let snapshot: SnapshotInfo =
        owner.post(&format!("/v1/sandboxes/{}/snapshots", sandbox.id), json!({})).await.ok(201);
    let webhook = json!({"url": "https://example.org/", "operations": ["create"], "signing_secret": "s"});
    let webhook: LifecycleWebhookInfo = owner.post("/v1/lifecycle/webhooks", webhook).await.ok(201);
    let pool = json!({"name": "p", "template_ref": "mine", "min_ready": 0, "max_ready": 1, "resources": {"vcpus": 1, "memory_mb": 192}});
    let pool: TemplateWarmPool = owner.post("/v1/template-warm-pools", pool).await.ok(201);
    let keys: Vec<Value> = owner.get("/v1/keys").await.ok(200);
    let key = keys[0]["id"].as_str().expect("the key's id").to_owned();
    let by_namespace = format!("{}/mine", built.build.namespace_slug);

    for (method, path, body, code) in [
        (Method::GET, format!("/v1/templates/builds/{build}"), None, "template_build_not_found"),
        (Method::GET, format!("/v1/templates/builds/{build}/logs"), None, "template_build_not_found"),
        (Method::POST, format!("/v1/templates/builds/{build}/cancel"), Some(json!({})), "template_build_not_found"),
        (Method::GET, format!("/v1/templates/{template}"), None, "template_not_found"),
        (Method::GET, "/v1/templates/mine".to_owned(), None, "template_not_found"),
        (Method::GET, format!("/v1/templates/mine:{build}"), None, "template_not_found"),
        (Method::DELETE, format!("/v1/templates/{template}"), None, "template_not_found"),
        (Method::POST, "/v1/templates/builds".to_owned(), Some(json!({"base_image": template})), "template_not_found"),
        (Method::POST, "/v1/sandboxes".to_owned(), Some(json!({"template": template})), "template_not_found"),
        (Method::POST, "/v1/sandboxes".to_owned(), Some(json!({"template": by_namespace})), "template_not_found"),
        (Method::POST, "/v1/sandboxes".to_owned(), Some(json!({"warm_pool": {"id": pool.id}})), "not_found"),
        (Method::GET, format!("/v1/sandboxes/{}", sandbox.id), None, "sandbox_not_found"),
        (Method::DELETE, format!("/v1/sandboxes/{}", sandbox.id), None, "sandbox_not_found"),
        (Method::GET, format!("/v1/sandboxes/{}/processes", sandbox.id), None, "sandbox_not_found"),
        (
            Method::POST,
            format!("/v1/sandboxes/{}/exec", sandbox.id),
            Some(json!({"command": "id"})),
            "sandbox_not_found",
        ),
    ] {
        let mut request = other.request(method, &path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let refused = other.send(request).await.refused(404, code);
        // Nor does the answer give away that it exists.
        assert!(!refused.error.contains("mine") || path.contains("mine") || path.contains("sandboxes"), "{refused:?}");
    }
    let theirs = Theirs {
        build,
        templates: &[template, "mine", &by_namespace],
        sandbox: &sandbox.id,
        snapshot: &snapshot.id,
        webhook: &webhook.id,
        warm_pool: &pool.id,
        key: &key,
    };
    every_operation_with_an_id_is_not_found(&other, theirs).await;
    let templates: Vec<TemplateInfo> = other.get("/v1/templates").await.ok(200);
    assert!(templates.iter().all(|template| template.name != "mine"), "{templates:?}");
    let sandboxes: Vec<Value> = other.get("/v1/sandboxes").await.ok(200);
    assert!(sandboxes.is_empty(), "{sandboxes:?}");

    // The same name is free for both, and means each one's own.
    let theirs = other
        .ready(json!({
            "name": "mine", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192},
            "start_cmd": "echo theirs > whose",
        }))
        .await;
    let sandbox_of_other = other.sandbox("mine").await;
    assert_eq!(sandbox_of_other.sh("cat whose").await, "theirs");
    assert_eq!(other.delete("/v1/templates/mine").await.status, 204);
    owner.get(&format!("/v1/templates/{}", theirs.template())).await.refused(404, "template_not_found");
    assert_eq!(sandbox.sh("ls").await, "");
    let info: TemplateInfo = owner.get("/v1/templates/mine").await.ok(200);
    assert_eq!(info.id, built.template());

    // A key that was revoked opens nothing from then on.
    let listed = service.command(&["keys", "list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let id = listed.lines().find(|line| line.contains("second")).and_then(|line| line.split_whitespace().next());
    let revoked = service.command(&["keys", "revoke", id.expect("the key's id")]).output().unwrap();
    assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    other.get("/v1/templates").await.refused(401, "unauthorized");
    service.stop().await;
}

/// Our OpenAPI document.
fn document() -> Value {
    serde_json::from_str(include_str!("../../../../contract/nullspace-openapi.json")).expect("the document")
}

/// What the owner has.
struct Theirs<'a> {
    build: &'a str,
    templates: &'a [&'a str],
    sandbox: &'a str,
    snapshot: &'a str,
    webhook: &'a str,
    warm_pool: &'a str,
    key: &'a str,
}

/// Parameters of paths that name something within a thing of the owner.
const WITHIN: [(&str, &str); 9] = [
    ("{tag}", "default"),
    ("{alias}", "old"),
    ("{pid}", "1"),
    ("{sid}", "1"),
    ("{port}", "80"),
    ("{part_number}", "1"),
    ("{delivery_id}", "01a208f9-ec37-7462-a296-20144e0dfdc8"),
    ("{grant_id}", "01a208f9-ec37-7462-a296-20144e0dfdc8"),
    ("{upload_id}", "01a208f9-ec37-7462-a296-20144e0dfdc8"),
];

/// The least value of this schema that is looked at at all: an object with what it requires. `name` is the field it is for.
fn least(document: &Value, schema: &Value, name: &str) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        return least(
            document,
            &document["components"]["schemas"][reference.rsplit('/').next().expect("a name")],
            name,
        );
    }
    if let Some(first) = schema["enum"].as_array().and_then(|values| values.first()) {
        return first.clone();
    }
    if let Some(first) = schema["oneOf"].as_array().and_then(|schemas| schemas.first()) {
        return least(document, first, name);
    }
    if let Some(constant) = schema.get("const") {
        return constant.clone();
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
    match (kind, name) {
        (Some("integer"), _) => json!(schema["minimum"].as_u64().unwrap_or(0).max(80)),
        (Some("boolean"), _) => json!(false),
        (Some("array"), _) => json!([least(document, &schema["items"], name)]),
        (Some("object"), _) => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            required.map(|field| (field.to_owned(), least(document, &schema["properties"][field], field))).collect()
        }
        (_, "permissions") => json!("644"),
        (_, "url") => json!("https://example.org/x"),
        (_, "path" | "target_path" | "old_path" | "new_path" | "files") => json!("/x"),
        _ => json!("x"),
    }
}

/// Every operation of our OpenAPI document whose path holds an id, so that a new one cannot be forgotten.
async fn every_operation_with_an_id_is_not_found(other: &Api, theirs: Theirs<'_>) {
    let document = document();
    let (mut asked, mut found) = (0, Vec::new());
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let name = operation["operationId"].as_str().expect("an operation id");
            // Not about a thing of a tenant: an upload is each tenant's own, a namespace may be seen.
            if !path.contains('{') || ["upload_template_blob", "get_template_namespace"].contains(&name) {
                continue;
            }
            let ids: &[&str] = match () {
                // A resume takes a snapshot's id, too.
                () if path.ends_with("/resume") => &[theirs.sandbox, theirs.snapshot],
                () if path.starts_with("/v1/sandboxes/") => &[theirs.sandbox],
                () if path.starts_with("/v1/snapshots/") => &[theirs.snapshot],
                () if path.starts_with("/v1/lifecycle/webhooks/") => &[theirs.webhook, "no-webhook"],
                () if path.starts_with("/v1/template-warm-pools/") => &[theirs.warm_pool],
                () if path.starts_with("/v1/keys/") => &[theirs.key],
                () if path.contains("{build_id}") => &[theirs.build],
                () if path.contains("{claim_token}") => &["claim_of_the_owner"],
                () => theirs.templates,
            };
            for id in ids {
                let encoded = id.replace('/', "%2F");
                let mut path = path.clone();
                for parameter in ["{id}", "{ref}", "{build_id}", "{claim_token}", "{warm_pool_id}"] {
                    path = path.replace(parameter, &encoded);
                }
                for (parameter, value) in WITHIN {
                    path = path.replace(parameter, value);
                }
                assert!(!path.contains('{'), "{name} {path}: a parameter that this test does not know");
                let needed = |parameter: &&Value| parameter["in"] == "query" && parameter["required"] == true;
                if operation["parameters"].as_array().is_some_and(|all| all.iter().any(|one| needed(&one))) {
                    path.push_str("?path=/x");
                }
                let method: Method = method.to_uppercase().parse().expect("a method");
                let mut request = other.request(method, &path);
                match &operation["requestBody"]["content"] {
                    Value::Null => {}
                    content if content.get("application/json").is_some() => {
                        // The document requires neither of a tag and tags.
                        let body = match name {
                            "promote_template_build" => json!({"tag": "x"}),
                            _ => least(&document, &content["application/json"]["schema"], ""),
                        };
                        request = request.json(&body);
                    }
                    // Raw bytes, or a form of one file.
                    _ if name == "upload_file_multipart" => {
                        let form = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\nx\r\n--b--\r\n";
                        request = request.header("content-type", "multipart/form-data; boundary=b").body(form);
                    }
                    _ => request = request.header("content-type", "application/octet-stream").body("x"),
                }
                let answer = other.send(request).await;
                if answer.status != 404 {
                    found.push(format!("{name} {path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body)));
                }
                asked += 1;
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
    assert!(asked > 50, "only {asked} requests: the document is not what it was");
}

#[tokio::test]
async fn the_operators_listener_answers_operators_and_serves_no_tenant() {
    let settings =
        [("NULLSPACE_ADMIN_LISTEN", "127.0.0.1:0".to_owned()), ("NULLSPACE_METRICS_TOKEN", "open-sesame".to_owned())];
    let mut service = Service::with(settings).await;
    let api = service.api();
    let told = service.log().wait_for(0, "operators' routes also on ", Duration::from_secs(60), || false);
    let url = told.expect("the second address is in the log");
    assert_ne!(url, service.url());

    let (operator, tenant) = (Api::new(&url, "open-sesame"), Api::new(&url, api.key()));
    for path in ["/healthz", "/readyz"] {
        let answer = tenant.send(tenant.anonymous(Method::GET, path)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    for (path, line) in [("/metrics", "nullspace_machine_driver{"), ("/readyz?verbose", "machines: ")] {
        let answer = operator.get(path).await;
        assert!(answer.status == 200 && answer.text().contains(line), "{path}: {}", answer.text());
        assert_eq!(tenant.get(path).await.status, 401, "{path} with a tenant's key");
    }

    // Whatever else the API has is not there, with the key of a tenant or of operators.
    let document = document();
    let mut asked = 0;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        if ["/healthz", "/readyz", "/metrics"].contains(&path.as_str()) {
            continue;
        }
        for method in ["get", "put", "post", "patch", "delete"].iter().filter(|name| operations.get(**name).is_some()) {
            let method: Method = method.to_uppercase().parse().expect("a method");
            for api in [&tenant, &operator] {
                let answer = api.send(api.request(method.clone(), path).json(&json!({}))).await;
                assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text());
                asked += 1;
            }
        }
    }
    assert!(asked >= 60, "{asked} requests");
    let _: Vec<TemplateInfo> = api.get("/v1/templates").await.ok(200);
    service.stop().await;
}
