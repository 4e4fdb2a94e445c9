//! What published clients send is understood, and what is answered is what they read.
#![allow(clippy::unwrap_used, reason = "tests")]

use nullspace_api::*;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

fn contract() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../contract/openapi.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A value of a contract schema with only what is required, optional fields absent or `null`.
fn minimal(contract: &Value, schema: &Value, nulls: bool) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        return minimal(contract, contract.pointer(&reference[1..]).unwrap(), nulls);
    }
    if let Some(first) = schema["enum"].get(0) {
        return first.clone();
    }
    if let Some(one_of) = schema["oneOf"].as_array() {
        return minimal(contract, one_of.iter().find(|item| item["type"] != "null").unwrap(), nulls);
    }
    match (schema["type"].as_str().unwrap(), schema["format"].as_str()) {
        ("string", Some("date-time")) => json!("2025-01-31T10:00:00Z"),
        ("string", _) => json!("text"),
        ("integer", _) => json!(3),
        ("boolean", _) => json!(true),
        ("array", _) => json!([minimal(contract, &schema["items"], nulls)]),
        ("object", _) => {
            let required: Vec<&str> =
                schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let mut object = Map::new();
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                if required.contains(&name.as_str()) {
                    object.insert(name.clone(), minimal(contract, property, nulls));
                } else if nulls {
                    object.insert(name.clone(), Value::Null);
                }
            }
            Value::Object(object)
        }
        other => panic!("no value for {other:?}"),
    }
}

fn accepts<T: DeserializeOwned>(contract: &Value, name: &str) {
    let schema = &contract["components"]["schemas"][name];
    for nulls in [false, true] {
        let mut value = minimal(contract, schema, nulls);
        // Newer clients may send more.
        value["a_field_of_the_future"] = json!({"deep": [1, null]});
        serde_json::from_value::<T>(value.clone()).unwrap_or_else(|error| panic!("{name}: {error} in {value}"));
    }
}

#[test]
fn optional_fields_may_be_absent_or_null_and_unknown_ones_are_ignored() {
    let contract = contract();
    macro_rules! accepts {
        ($($name:ident),* $(,)?) => { $(accepts::<$name>(&contract, stringify!($name));)* };
    }
    accepts!(
        AssignTagsRequest,
        CancelTemplateBuildRequest,
        CreateLifecycleWebhookRequest,
        CreateSandboxRequest,
        CreateTemplateRequest,
        DesktopCreateConfig,
        EgressRateLimit,
        ExecRequest,
        LifecycleConfig,
        NetworkCreateConfig,
        NetworkEgressPolicy,
        PromoteTemplateBuildRequest,
        RenameTemplateRequest,
        ReserveTemplateNameRequest,
        RetryTemplateBuildRequest,
        SetTimeoutRequest,
        TemplateBlobPreflightRequest,
        TemplateBuildConfig,
        TemplateBuildContext,
        TemplateBuildSecret,
        TemplateRegistryAuth,
        TemplateRuntimeConfig,
        UpdateEgressRequest,
        UpdateLifecycleWebhookRequest,
        UpdateTemplateVisibilityRequest,
        VolumeMountRequest,
        WarmPoolCheckoutRequest,
    );
    for step in contract["components"]["schemas"]["CreateTemplateRequest"]["properties"]["steps"]["items"]["oneOf"]
        .as_array()
        .unwrap()
    {
        accepts::<TemplateStep>(&contract, step["$ref"].as_str().unwrap().rsplit('/').next().unwrap());
    }
    for kind in 0..4 {
        accepts::<TemplateReadinessProbe>(&contract, &format!("TemplateReadinessProbeType{kind}"));
    }
    for kind in ["AwsEcr", "Basic", "GcpArtifactRegistry"] {
        accepts::<TemplateBaseImageAuth>(&contract, &format!("TemplateBaseImageAuth{kind}"));
    }
}

#[test]
fn every_code_of_the_contract_is_known_and_keeps_its_spelling() {
    let contract = contract();
    for (schema, parse) in [
        ("ErrorResponseCode", (|v| same::<ErrorResponseCode>(v)) as fn(Value)),
        ("TemplateFailureDetailCode", |v| same::<TemplateFailureDetailCode>(v)),
        ("TemplateFailurePhase", |v| same::<TemplateFailurePhase>(v)),
        ("UploadFailureReason", |v| same::<UploadFailureReason>(v)),
        ("TemplateBuildLogKind", |v| same::<TemplateBuildLogKind>(v)),
    ] {
        for value in contract["components"]["schemas"][schema]["enum"].as_array().unwrap() {
            parse(value.clone());
        }
    }
    fn same<T: DeserializeOwned + serde::Serialize>(value: Value) {
        let parsed: T = serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{value}: {error}"));
        assert_eq!(serde_json::to_value(parsed).unwrap(), value);
    }
}

#[test]
fn a_request_with_secrets_neither_prints_nor_stores_them_but_can_be_sent() {
    let sent = json!({
        "base_image": "registry.example/app:1",
        "build_envs": {"TOKEN": "canary-env"},
        "base_image_auth": {"kind": "basic", "username": "u", "password": "canary-password"},
        "registry_auth": [{"registry": "a.example", "auth": {"kind": "gcp_artifact_registry",
            "service_account_json": {"private_key": "canary-key"}}},
            {"registry": "b.example", "auth": {"kind": "aws_ecr", "access_key_id": "AKIA", "region": "eu-west-1",
            "secret_access_key": "canary-secret-key", "session_token": "canary-session"}}],
        "build_secrets": [{"id": "npm", "value": "canary-build-secret", "source": "env"}],
    });
    let mut request: CreateTemplateRequest = serde_json::from_value(sent.clone()).unwrap();

    assert!(!format!("{request:?}").contains("canary"), "{request:?}");
    assert!(serde_json::to_string(&request).is_err(), "a request with secrets must not be storable");

    let mut wire: Value = serde_json::from_slice(&to_wire_json(&request).unwrap()).unwrap();
    // The key file travels as its text; both forms mean the same.
    let key = wire["registry_auth"][0]["auth"]["service_account_json"].take();
    assert_eq!(serde_json::from_str::<Value>(key.as_str().unwrap()).unwrap(), json!({"private_key": "canary-key"}));
    wire["registry_auth"][0]["auth"]["service_account_json"] = json!({"private_key": "canary-key"});
    assert_eq!(wire, sent);

    let secrets = request.take_secrets();
    assert!(!format!("{secrets:?}").contains("canary"), "{secrets:?}");
    assert_eq!(secrets.build_secrets[0].value.expose(), "canary-build-secret");
    let stored = serde_json::to_value(&request).unwrap();
    assert_eq!(stored, json!({"base_image": "registry.example/app:1", "build_envs": {"TOKEN": "canary-env"}}));
}

#[test]
fn the_secret_of_a_webhook_neither_prints_nor_is_stored_but_can_be_sent() {
    let sent = json!({"url": "https://a.example/", "operations": ["create"], "signing_secret": "canary"});
    let request: CreateLifecycleWebhookRequest = serde_json::from_value(sent.clone()).unwrap();
    assert!(!format!("{request:?}").contains("canary"), "{request:?}");
    assert!(serde_json::to_string(&request).is_err());
    assert_eq!(serde_json::from_slice::<Value>(&to_wire_json(&request).unwrap()).unwrap(), sent);

    let change: UpdateLifecycleWebhookRequest =
        serde_json::from_value(json!({"signing_secret": "canary", "enabled": null})).unwrap();
    assert!(!format!("{change:?}").contains("canary") && serde_json::to_string(&change).is_err());
    assert_eq!(to_wire_json(&change).unwrap(), b"{\"signing_secret\":\"canary\"}");
}

#[test]
fn a_subscription_to_events_is_read_and_confirmed_as_published_clients_write_it() {
    let sent = json!({"type": "subscribe", "snapshot_id": "snap_1", "operation": "create", "status": "succeeded",
        "audience": "customer", "live_only": false, "after_event_id": "e", "replay_limit": 25, "metadata": {"a": [1]}});
    let message: LifecycleClientMessage = serde_json::from_value(sent.clone()).unwrap();
    assert_eq!(serde_json::to_value(&message).unwrap(), sent);
    let bare: LifecycleClientMessage =
        serde_json::from_value(json!({"type": "subscribe", "sandbox_id": null, "of_the_future": {}})).unwrap();
    assert_eq!(bare, LifecycleClientMessage::Subscribe(LifecycleSubscribe::default()));

    let told = json!({"type": "subscribed", "subscription": {"audience": "customer"}, "reconnect_mode": "live_only"});
    let message: LifecycleServerMessage = serde_json::from_value(told.clone()).unwrap();
    assert_eq!(serde_json::to_value(&message).unwrap(), told);
    let error = LifecycleServerMessage::Error { code: ErrorResponseCode::InvalidRequest, message: "m".into() };
    let told = json!({"type": "error", "code": "invalid_request", "message": "m"});
    assert_eq!(serde_json::to_value(&error).unwrap(), told);
}

#[test]
fn an_answer_leaves_out_what_it_does_not_know() {
    let error = ErrorResponse::new(ErrorResponseCode::QuotaExceeded, "too much");
    assert_eq!(serde_json::to_value(&error).unwrap(), json!({"error": "too much", "code": "QUOTA_EXCEEDED"}));

    let mut error = error;
    error.error_detail = Some(
        TemplateFailureDetail::new(
            TemplateFailureDetailCode::BuildError,
            TemplateFailurePhase::BuildStep,
            false,
            "step 2 exited 7",
            "fix the command",
        )
        .with_reason("build_step_nonzero_exit")
        .with("exit_code", 7)
        .into(),
    );
    let value = serde_json::to_value(&error).unwrap();
    assert_eq!(
        value["error_detail"],
        json!({"code": "build_error", "message": "step 2 exited 7", "phase": "build_step", "retryable": false,
            "suggested_action": "fix the command", "details": {"reason": "build_step_nonzero_exit", "exit_code": 7}})
    );
    assert_eq!(serde_json::from_value::<ErrorResponse>(value).unwrap(), error);
}

#[test]
fn a_step_is_told_apart_by_its_action() {
    let steps: Vec<TemplateStep> = serde_json::from_value(json!([
        {"action": "copy", "sources": ["a"], "dst": "/a/", "mode": "0755"},
        {"action": "make_dir", "path": "/d", "mode": 493},
        {"action": "skip_cache"},
    ]))
    .unwrap();
    assert_eq!(
        steps,
        [
            TemplateStep::Copy(TemplateCopyStep {
                sources: vec!["a".into()],
                dst: "/a/".into(),
                user: None,
                mode: Some(TemplateFileMode::Octal("0755".into())),
                force_upload: None,
            }),
            TemplateStep::MakeDir(TemplateMakeDirStep {
                path: "/d".into(),
                mode: Some(TemplateFileMode::Number(0o755))
            }),
            TemplateStep::SkipCache(TemplateSkipCacheStep {}),
        ]
    );
    let error = serde_json::from_value::<TemplateStep>(json!({"action": "dance"})).unwrap_err().to_string();
    assert!(error.starts_with("unknown variant `dance`, expected one of `run`"), "{error}");
}
