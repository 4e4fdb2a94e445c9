//! A template's life after its build: tags, names, histories, claims, retries, and requests looked at without building.

use nullspace_api::{
    TemplateAliasInfo, TemplateBuild, TemplateBuildListResponse, TemplateBuildPlanResponse,
    TemplateBuildValidationResponse, TemplateFailureDetailCode as FailureCode, TemplateFailurePhase as Phase,
    TemplateInfo, TemplateNameClaim, TemplateNamespaceInfo, TemplateTagInfo, TemplateVisibility,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixture::api::{Answer, events};
use crate::fixture::{Api, Image, Registry, Service};

async fn put(api: &Api, path: &str, bytes: &'static [u8]) -> Answer {
    api.send(api.request(Method::PUT, path).header("content-type", "application/octet-stream").body(bytes)).await
}

#[tokio::test]
async fn tags_names_and_histories_of_a_template() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let (api, other) = (service.api(), service.api_of("second"));
    let request = |tags: Value| {
        let reference = registry.reference("box:1");
        json!({"name": "app", "tags": tags, "base_image": reference, "build_config": {"memory_mib": 192}})
    };
    let first = api.ready(request(json!(["default", "stable"]))).await;
    // The same through the streaming call that `Template.build()` of the published client makes.
    let answer = api.post("/v1/templates/build", request(json!(["candidate"]))).await;
    assert_eq!((answer.status, answer.headers["content-type"].to_str().unwrap()), (200, "text/event-stream"));
    let log = events(&answer.body);
    let second = api.finished(&log[0].build_id).await;
    assert_eq!(second.log, log, "the stream is the log");
    assert_eq!(log.last().unwrap().result.as_ref().unwrap().tags, ["candidate"]);
    let namespace = &first.build.namespace_slug;
    let canonical = format!("{namespace}/app");

    // As the published client's older tests send it: a file that nobody uploaded ends the build, not the request.
    for blob in ["blob_missing", "sha256-ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad-3"] {
        let detail = api
            .failed(
                json!({
                    "name": "never", "base_image": registry.reference("box:1"),
                    "steps": [{"action": "copy", "src": "step-0/missing.txt", "dst": "/workspace/missing.txt"}],
                    "build_context": {"files": [
                        {"path": "step-0/missing.txt", "entry_type": "file", "blob_id": blob, "mode": "0644"},
                        {"path": "here.txt", "entry_type": "file", "content_base64": "eA=="},
                    ]},
                }),
                "unknown_blob",
            )
            .await;
        assert_eq!((detail.code, detail.phase), (FailureCode::FileUploadError, Phase::Preflight), "{detail:?}");
        assert!(!detail.retryable && detail.message.contains("step-0/missing.txt") && !detail.message.contains("here"));
    }

    // Tags of a template, and of what a reference leads to.
    let promoted: TemplateInfo = api
        .post(&format!("/v1/templates/refs/{}/tags", second.template()), json!({"tags": ["production", "default"]}))
        .await
        .ok(200);
    assert_eq!(
        (promoted.id.as_str(), promoted.tags.join(" ")),
        (second.template(), "candidate default production".into())
    );
    let stable: TemplateInfo = api.get("/v1/templates/refs/app:stable").await.ok(200);
    assert_eq!((stable.id.as_str(), stable.tags.as_slice()), (first.template(), ["stable".to_owned()].as_slice()));
    let tags: Vec<TemplateTagInfo> = api.get(&format!("/v1/templates/refs/{canonical}/tags")).await.ok(200);
    assert_eq!(
        tags.iter().map(|tag| tag.tag.as_str()).collect::<Vec<_>>(),
        ["candidate", "default", "production", "stable"]
    );
    let back: TemplateInfo = api
        .post(&format!("/v1/templates/builds/{}/promote", first.build.build_id), json!({"tag": "default"}))
        .await
        .ok(200);
    assert_eq!(back.id, first.template());
    assert_eq!(api.delete("/v1/templates/app/tags/production").await.status, 204);
    api.get("/v1/templates/app:production").await.refused(404, "template_not_found");
    api.delete("/v1/templates/app/tags/production").await.refused(404, "template_not_found");
    api.post("/v1/templates/app/tags", json!({"tags": []})).await.refused(400, "invalid_request");

    // History: newest first, page by page, filtered.
    let waiting = api.start(request(json!(["never"]))).await;
    api.cancel(&waiting.build_id, "not wanted").await;
    let page: TemplateBuildListResponse = api.get("/v1/templates/app/builds?limit=2").await.ok(200);
    let ids: Vec<&str> = page.builds.iter().map(|build| build.build_id.as_str()).collect();
    assert_eq!(ids, [waiting.build_id.as_str(), &second.build.build_id]);
    let cursor = page.next_cursor.unwrap();
    let rest: TemplateBuildListResponse =
        api.get(&format!("/v1/templates/refs/{namespace}%2Fapp/builds?limit=2&cursor={cursor}")).await.ok(200);
    assert_eq!((rest.builds.len(), rest.next_cursor), (1, None));
    let ready: TemplateBuildListResponse = api.get("/v1/templates/app/builds?status=ready").await.ok(200);
    assert_eq!(ready.builds.len(), 2);
    for query in ["limit=0", "limit=101", "cursor=x", "status=done"] {
        api.get(&format!("/v1/templates/app/builds?{query}")).await.refused(400, "invalid_request");
    }

    // A cancelled build is retried as a new one, with the chain shown; others are not.
    let cancelled = api.finished(&waiting.build_id).await.build;
    let again: TemplateBuild = api
        .post(&format!("/v1/templates/builds/{}/retry", cancelled.build_id), json!({"tags": ["late"]}))
        .await
        .ok(202);
    assert_eq!(again.retry_of_build_id.as_ref(), Some(&cancelled.build_id));
    assert_eq!(again.original_build_id.as_ref(), Some(&cancelled.build_id));
    api.post(&format!("/v1/templates/builds/{}/promote", again.build_id), json!({"tag": "x"}))
        .await
        .refused(409, "transition_conflict");
    assert_eq!(api.finished(&again.build_id).await.build.tags, ["late"]);
    api.post(&format!("/v1/templates/builds/{}/retry", first.build.build_id), json!({}))
        .await
        .refused(409, "transition_conflict");

    // Another name; the old one stays, read-only.
    let renamed: TemplateInfo = api.post("/v1/templates/app/rename", json!({"new_name": "web"})).await.ok(200);
    assert_eq!(renamed.canonical_ref, format!("{namespace}/web"));
    let by_alias: TemplateInfo = api.get("/v1/templates/app").await.ok(200);
    assert_eq!((by_alias.id, by_alias.name.as_str()), (back.id, "web"));
    let aliases: Vec<TemplateAliasInfo> = api.get("/v1/templates/web/aliases").await.ok(200);
    assert_eq!(aliases[0].alias_ref, canonical);
    api.post("/v1/templates/builds", request(json!(["x"]))).await.refused(409, "transition_conflict");

    // Public: resolved and used by others through its canonical name, changed by its owner only.
    let by_name = format!("/v1/templates/refs/{namespace}%2Fweb");
    other.get(&by_name).await.refused(404, "template_not_found");
    let path = format!("{by_name}/visibility");
    let visibility = api.request(Method::PATCH, &path).json(&json!({"visibility": "public"}));
    let public: TemplateInfo = api.send(visibility).await.ok(200);
    assert_eq!(public.visibility, TemplateVisibility::Public);
    let seen: TemplateInfo = other.get(&by_name).await.ok(200);
    assert_eq!(seen.id, public.id);
    let sandbox = other.sandbox(&format!("{namespace}/web")).await;
    assert_eq!(sandbox.sh("echo theirs").await, "theirs");
    sandbox.delete().await;
    other.delete(&by_name).await.refused(404, "template_not_found");
    other.post(&format!("{by_name}/tags"), json!({"tags": ["x"]})).await.refused(404, "template_not_found");
    let theirs: TemplateBuildListResponse = other.get(&format!("{by_name}/builds")).await.ok(200);
    assert_eq!(theirs.builds.len(), 0, "builds are their callers'");
    // What is built for it from now on is public too: answers and log name what it gives away, and no value.
    let warning = |answer: &Answer| {
        let found = answer.headers.get_all("x-nullspace-warning").into_iter();
        found.map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join("\n")
    };
    let mut more = request(json!(["next"]));
    more["name"] = json!("web");
    more["start_cmd"] = json!("exec sleep 1000000");
    more["build_envs"] = json!({"BUILD_TOKEN": "canary-1"});
    more["runtime_config"] = json!({"default_envs": {"RUN_TOKEN": "canary-2"}});
    let accepted = api.post("/v1/templates/builds", more).await;
    let mut said = vec![warning(&accepted)];
    let next: TemplateBuild = accepted.ok(202);
    let next = api.finished(&next.build_id).await;
    let logged = next.log.iter().find(|entry| entry.message.contains("is public")).expect("a warning in the log");
    said.push(logged.message.clone());
    let promote = format!("/v1/templates/builds/{}/promote", next.build.build_id);
    said.push(warning(&api.post(&promote, json!({"tag": "newest"})).await));
    said.push(warning(&api.post(&format!("{by_name}:newest/tags"), json!({"tags": ["tagged"]})).await));
    let again = api.request(Method::PATCH, &path).json(&json!({"visibility": "public"}));
    said.push(warning(&api.send(again).await));
    for said in &said {
        assert!(said.contains("RUN_TOKEN") && said.contains("BUILD_TOKEN") && !said.contains("canary"), "{said:?}");
    }
    let shown: TemplateNamespaceInfo = other.get(&format!("/v1/templates/namespaces/{namespace}")).await.ok(200);
    assert!(!shown.is_default);
    let private = api.request(Method::PATCH, &path).json(&json!({"visibility": "private"}));
    assert_eq!(warning(&api.send(private).await), "");

    assert_eq!(api.delete(&by_name).await.status, 204);
    api.get("/v1/templates/app").await.refused(404, "template_not_found");
    other.get(&format!("/v1/templates/namespaces/{namespace}")).await.refused(404, "not_found");
    service.stop().await;
}

#[tokio::test]
async fn names_are_reserved_requests_are_repeated_and_looked_at_without_building() {
    let mut service = Service::start().await;
    let (api, other) = (service.api(), service.api_of("second"));

    // A reserved name is for whoever shows its token.
    let claim: TemplateNameClaim = api.post("/v1/templates/claims", json!({"template_ref": "app"})).await.ok(201);
    api.post("/v1/templates/claims", json!({"template_ref": "app"})).await.refused(409, "transition_conflict");
    let request = json!({"name": "app", "base_image": "127.0.0.1:1/none:1"});
    api.post("/v1/templates/builds", request.clone()).await.refused(409, "transition_conflict");
    let with_token = json!({"claim_token": claim.claim_token, "base_image": "127.0.0.1:1/none:1"});
    other.post("/v1/templates/builds", with_token.clone()).await.refused(404, "template_name_claim_not_found");
    let started = api.start(with_token).await;
    assert_eq!(started.name, "app");
    api.delete(&format!("/v1/templates/claims/{}", claim.claim_token))
        .await
        .refused(404, "template_name_claim_not_found");
    let second: TemplateNameClaim = api.post("/v1/templates/claims", json!({"template_ref": "later"})).await.ok(201);
    other
        .delete(&format!("/v1/templates/claims/{}", second.claim_token))
        .await
        .refused(404, "template_name_claim_not_found");
    assert_eq!(api.delete(&format!("/v1/templates/claims/{}", second.claim_token)).await.status, 204);
    assert!(!service.log().lines().join("\n").contains(&claim.claim_token), "a token in the log");

    // The same key and request: the same build. Another request: a conflict.
    let send = |api: &Api, body: &Value| {
        let request = api.request(Method::POST, "/v1/templates/builds").header("idempotency-key", "k1").json(body);
        let api = api.clone();
        async move { api.send(request).await }
    };
    let one: TemplateBuild = send(&api, &request).await.ok(202);
    let same: TemplateBuild = send(&api, &request).await.ok(202);
    assert_eq!(one.build_id, same.build_id);
    send(&api, &json!({"base_image": "127.0.0.1:1/other:1"})).await.refused(409, "transition_conflict");

    // Everything that is wrong, at once, as 200.
    let wrong: TemplateBuildValidationResponse = api
        .post(
            "/v1/templates/validate",
            json!({"tags": [], "base_image": "nullspace/none:latest", "claim_token": "x", "build_config": {"vcpus": 0}}),
        )
        .await
        .ok(200);
    let codes: Vec<&str> = wrong.errors.iter().map(|error| error.code.as_str()).collect();
    let expected = ["invalid_tags", "invalid_build_config", "template_not_found", "template_name_claim_not_found"];
    assert!(!wrong.valid && expected.iter().all(|code| codes.contains(code)), "{wrong:?}");
    let steps = json!({"steps": [{"action": "run", "command": "make"}, {"action": "user", "user": "app"}]});
    let valid: TemplateBuildValidationResponse = api.post("/v1/templates/validate", steps.clone()).await.ok(200);
    assert!(valid.valid && valid.warnings.is_empty(), "{valid:?}");
    let plan: TemplateBuildPlanResponse = api.post("/v1/templates/plan", steps.clone()).await.ok(200);
    assert_eq!(
        (plan.build_plan.run_steps.as_slice(), plan.build_plan.default_user.as_deref()),
        (["make".to_owned()].as_slice(), Some("app"))
    );
    // No source means the built-in base, which this service has not.
    api.post("/v1/templates/builds", steps).await.refused(404, "template_not_found");
    let dockerfile = json!({"dockerfile": "FROM scratch\nEXPOSE 80\nCMD [\"/app\"]\n"});
    let plan: TemplateBuildPlanResponse = api.post("/v1/templates/plan", dockerfile.clone()).await.ok(200);
    assert_eq!(plan.build_plan.start_cmd.as_deref(), Some("/app"));
    assert_eq!(plan.build_plan.ignored_instruction_warnings[0].line, 2);
    api.post("/v1/templates/builds", dockerfile).await.refused(503, "feature_unavailable");
    api.post("/v1/templates/plan", json!({"dockerfile": "FROG"})).await.refused(400, "invalid_request");

    // Deprecated: one answer when all is over.
    let failed = api.post("/v1/templates", json!({"base_image": "127.0.0.1:1/none:1", "name": "sync"})).await;
    let failed = failed.refused(400, "build_error");
    assert!(failed.build_id.is_some() && failed.error_detail.is_some(), "{failed:?}");
    api.finished(&started.build_id).await;
    api.finished(&one.build_id).await;
    service.stop().await;
}

#[tokio::test]
async fn files_of_a_build_context_are_checked_kept_apart_and_survive_a_restart() {
    let mut service = Service::with([("NULLSPACE_UPLOAD_MIB_PER_TENANT", "1".into())]).await;
    let (api, other) = (service.api(), service.api_of("second"));
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let files = json!({"files": [
        {"path": "src", "entry_type": "dir", "mode": "0755"},
        {"path": "src/a", "entry_type": "file", "sha256": sha256, "size_bytes": 3},
        {"path": "src/b", "entry_type": "file", "sha256": sha256, "size_bytes": 3, "force_upload": true},
    ]});
    let missing = |answer: &Value| -> Vec<bool> {
        answer["files"].as_array().unwrap().iter().map(|file| file["missing"].as_bool().unwrap()).collect()
    };
    let before: Value = api.post("/v1/templates/blobs/preflight", files.clone()).await.ok(200);
    assert_eq!(missing(&before), [false, true, true]);
    let blob = before["files"][1]["blob_id"].as_str().unwrap().to_owned();
    let path = format!("/v1/templates/blobs/{blob}");

    let request = json!({"steps": [{"action": "copy", "sources": ["src/a"], "dst": "/a"}],
        "build_context": {"files": [{"path": "src/a", "entry_type": "file", "blob_id": blob}]}});
    let refused = api.post("/v1/templates/build", request.clone()).await.refused(400, "file_upload_error");
    assert!(serde_json::to_string(&refused.error_detail).unwrap().contains("unknown_blob"), "{refused:?}");
    for (bytes, reason) in
        [(&b"abd"[..], "blob_digest_mismatch"), (b"ab", "blob_size_mismatch"), (b"abcd", "blob_size_mismatch")]
    {
        let refused = put(&api, &path, bytes).await.refused(400, "file_upload_error");
        assert!(serde_json::to_string(&refused.error_detail).unwrap().contains(reason), "{refused:?}");
    }
    let unknown = put(&api, "/v1/templates/blobs/..%2F..%2Fetc%2Fpasswd", b"x").await.refused(400, "file_upload_error");
    assert!(serde_json::to_string(&unknown.error_detail).unwrap().contains("unknown_blob"));
    for _ in 0..2 {
        assert_eq!(put(&api, &path, b"abc").await.status, 204);
    }
    let after: Value = api.post("/v1/templates/blobs/preflight", files.clone()).await.ok(200);
    assert_eq!(missing(&after), [false, false, true]);
    let of_other: Value = other.post("/v1/templates/blobs/preflight", files.clone()).await.ok(200);
    assert_eq!(missing(&of_other), [false, true, true], "another tenant's upload is not there");
    other.post("/v1/templates/build", request.clone()).await.refused(400, "file_upload_error");
    // Sound now; there is no built-in base here to build from.
    api.post("/v1/templates/builds", request).await.refused(404, "template_not_found");
    let large = json!({"files": [{"path": "a", "entry_type": "file", "sha256": sha256, "size_bytes": 2 << 20}]});
    api.post("/v1/templates/blobs/preflight", large).await.refused(400, "invalid_request");

    service.stop().await;
    let stray = service.data().join("blobs").join("stray");
    std::fs::write(&stray, "left by a crash").unwrap();
    service.restart().await;
    assert!(!stray.exists(), "what no row names is swept");
    let still: Value = service.api_of("first").post("/v1/templates/blobs/preflight", files).await.ok(200);
    assert_eq!(missing(&still), [false, false, true]);
    service.stop().await;
}

#[tokio::test]
async fn what_no_tag_points_to_goes_when_its_time_is_over_but_not_under_a_running_sandbox() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::with([("NULLSPACE_UNTAGGED_RETENTION_SECS", "1".into())]).await;
    let api = service.api();
    let reference = registry.reference("box:1");
    let request = json!({"name": "app", "base_image": reference, "build_config": {"memory_mib": 192}});
    let old = api.ready(request.clone()).await;
    let path = format!("/v1/templates/builds/{}", old.build.build_id);
    assert_eq!(old.build.retention_expires_at, None, "a tag keeps it");
    let sandbox = api.sandbox("app").await;
    let new = api.ready(request).await;
    // Something that is let go makes the collector look.
    let look = async || {
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        let _: TemplateInfo = api.post("/v1/templates/app/tags", json!({"tags": ["x"]})).await.ok(200);
        assert_eq!(api.delete("/v1/templates/app/tags/x").await.status, 204);
    };
    look().await;
    let kept = api.status(&old.build.build_id, 0).await.build;
    assert!(kept.retention_expires_at.is_some() && kept.promotability.unwrap().promotable, "a sandbox uses it");
    assert_eq!(sandbox.sh("echo alive").await, "alive");
    sandbox.delete().await;
    look().await;
    crate::fixture::until("the old artifact goes", std::time::Duration::from_secs(90), async || {
        let build = api.status(&old.build.build_id, 0).await.build;
        build.artifact_availability.is_some_and(|kept| kept.reason.as_deref() == Some("the artifact was deleted"))
    })
    .await;
    api.get(&format!("/v1/templates/{}", old.template())).await.refused(404, "template_not_found");
    api.post(&format!("{path}/promote"), json!({"tag": "x"})).await.refused(409, "transition_conflict");
    let still: TemplateInfo = api.get("/v1/templates/app").await.ok(200);
    assert_eq!(still.id, new.template());
    service.stop().await;
}
