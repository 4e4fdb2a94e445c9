//! Registries that refuse, are not there, or hold what cannot be used.

use nullspace_api::{
    TemplateBuildLogKind, TemplateBuildStatus, TemplateFailureDetailCode, TemplateFailurePhase as Phase,
};
use serde_json::{Value, json};

use crate::fixture::{Compression, Gate, Image, Registry, Service, Tar, image};

fn request(reference: &str) -> Value {
    json!({"base_image": reference, "build_config": {"memory_mib": 192}})
}

#[tokio::test]
async fn a_registry_that_refuses_ends_the_build_as_unauthorized_and_the_right_password_opens_it() {
    const PASSWORD: &str = "canary-registry-password";
    let registry = Registry::start_with_password("puller", PASSWORD);
    registry.push("private", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let with = |auth: Value| {
        let mut request = request(&registry.reference("private:1"));
        request["base_image_auth"] = auth;
        request
    };
    for auth in [
        Value::Null,
        json!({"kind": "basic", "username": "puller", "password": "canary-wrong-password"}),
        json!({"kind": "basic", "username": "nobody", "password": PASSWORD}),
    ] {
        let detail = api.failed(with(auth), "registry_unauthorized").await;
        assert_eq!((detail.code, detail.phase), (TemplateFailureDetailCode::Unauthorized, Phase::Auth), "{detail:?}");
        assert!(!detail.retryable && detail.message.contains(registry.address()), "{detail:?}");
    }
    let built = api.ready(with(json!({"kind": "basic", "username": "puller", "password": PASSWORD}))).await;
    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.sh("echo pulled").await, "pulled");

    // Credentials are in no answer, no log and no file.
    let status = api.get(&format!("/v1/templates/builds/{}", built.build.build_id)).await;
    assert!(!String::from_utf8_lossy(&status.body).contains("canary"));
    assert!(!service.log().lines().join("\n").contains("canary"));
    service.stop().await;
    let grep =
        std::process::Command::new("grep").args(["-rlaF", "-e", "canary-"]).arg(service.data()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "", "files with a credential");
}

#[tokio::test]
async fn what_a_registry_does_not_have_or_cannot_give_is_told_apart() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();

    for missing in ["box:2", "nothing:1", &format!("box@{}", image::digest(b"never pushed"))] {
        let detail = api.failed(request(&registry.reference(missing)), "image_not_found").await;
        assert_eq!((detail.phase, detail.retryable), (Phase::Prepare, false), "{detail:?}");
    }

    // Nobody listens there: worth another try, and tried again before the build gives up.
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let failed = api.build(request(&format!("{closed}/box:1"))).await;
    let retries = failed.log.iter().filter(|entry| entry.kind == TemplateBuildLogKind::Retry).count();
    let detail = failed.clone().failure("registry_unavailable");
    assert!(detail.retryable && detail.phase == Phase::Prepare, "{detail:?}");
    assert_eq!((detail.attempt, detail.max_attempts), (Some(3), Some(3)), "{failed:?}");
    assert_eq!(retries, 2, "{failed:?}");
    service.stop().await;
}

#[tokio::test]
async fn a_digest_that_is_claimed_gives_nobody_another_tenants_image() {
    const PASSWORD: &str = "canary-registry-password";
    let private = Registry::start_with_password("puller", PASSWORD);
    let claimed = Registry::start();
    let image = Image::busybox();
    for registry in [&private, &claimed] {
        registry.push("box", "1", &image).await;
    }
    let layer = image::digest(&image.layers[0].bytes);
    // An image of the attacker's, on top of the private one's layer.
    let mixed = image.clone().with_layer(Tar::new().file("reader", 0o755, b"#!/bin/sh\n"), Compression::Gzip);
    claimed.push("mixed", "1", &mixed).await;
    claimed.lose(&layer);
    // A registry of its own: variants of an image share layers.
    let public = Registry::start();
    let open = Image::busybox_variant("for everybody");
    public.push("open", "1", &open).await;
    let mut service = Service::start().await;
    let (owner, other) = (service.api(), service.api_of("second"));
    let mut with_password = request(&private.reference("box:1"));
    with_password["base_image_auth"] = json!({"kind": "basic", "username": "puller", "password": PASSWORD});
    owner.ready(with_password.clone()).await;

    // Manifest and config are there, and the layer is not: the owner's import of the very same digest must not stand in.
    other.failed(request(&claimed.reference("box:1")), "image_not_found").await;
    other.failed(request(&private.reference("box:1")), "registry_unauthorized").await;
    // Nor the layer that the owner downloaded: not for the attacker, and not for the owner who tries the attacker's image.
    for tenant in [&other, &owner] {
        let detail = tenant.failed(request(&claimed.reference("mixed:1")), "image_not_found").await;
        assert!(detail.message.contains(&layer), "{detail:?}");
    }
    // Who has had the layers needs them of nobody any more: the tenant that did, and no other.
    let own = owner.ready(request(&claimed.reference("box:1"))).await;
    assert!(own.says("imported before"), "{own:?}");
    let honest = other.ready(with_password).await;
    assert!(honest.says("Imported") && !honest.says("imported before"), "{honest:?}");

    // What a repository gives to everybody is fetched once.
    owner.ready(request(&public.reference("open:1"))).await;
    public.lose(&image::digest(&open.layers[0].bytes));
    let shared = other.ready(request(&public.reference("open:1"))).await;
    assert!(shared.says("imported before"), "{shared:?}");
    service.stop().await;
}

#[tokio::test]
async fn registries_that_nobody_has_listed_are_not_asked() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let port = registry.address().rsplit_once(':').unwrap().1;
    let mut service = Service::with([("NULLSPACE_PRIVATE_REGISTRIES", "192.168.7.7,registry.test".to_owned())]).await;
    let api = service.api();
    let mut said = std::collections::BTreeSet::new();
    for reference in [registry.reference("box:1"), format!("{closed}/box:1"), format!("localhost:{port}/box:1")] {
        let detail = api.failed(request(&reference), "address_not_allowed").await;
        assert_eq!((detail.phase, detail.retryable), (Phase::Prepare, false), "{detail:?}");
        let host = reference.split('/').next().unwrap();
        said.insert(detail.message.replace(host, "HOST"));
    }
    assert_eq!(said.len(), 1, "what listens and what does not is told alike: {said:?}");
    service.stop().await;

    // A mirror counts as listed.
    let mut service = Service::with([
        ("NULLSPACE_PRIVATE_REGISTRIES", "192.168.7.7".to_owned()),
        ("NULLSPACE_REGISTRY_MIRRORS", format!("r.test=http://{}", registry.address())),
    ])
    .await;
    service.api().ready(request("r.test/box:1")).await;
    service.stop().await;
}

#[tokio::test]
async fn a_slow_registry_is_waited_for() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let gate = Gate::closed(registry.address()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let build = api.start(request(&gate.reference("box:1"))).await;
    gate.reached().await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(!api.status(&build.build_id, 0).await.build.status.is_terminal());
    gate.open();
    let built = api.finished(&build.build_id).await.expect_status(TemplateBuildStatus::Ready);
    assert!(built.says("Resolving") && built.says("Imported"), "{built:?}");
    service.stop().await;
}

#[tokio::test]
async fn images_that_cannot_run_here_are_refused_with_their_reason() {
    let registry = Registry::start();
    let mut service = Service::start().await;
    let api = service.api();

    // For another platform: alone, and in an index.
    let foreign = Image::busybox().for_architecture("s390x");
    registry.push("foreign", "1", &foreign).await;
    let platforms = [
        (json!({"os": "linux", "architecture": "s390x"}), &foreign),
        (json!({"os": "windows", "architecture": "amd64", "os.version": "10.0"}), &foreign),
    ];
    registry.push_index("foreign", "index", &platforms).await;
    for tag in ["foreign:1", "foreign:index"] {
        let detail = api.failed(request(&registry.reference(tag)), "oci_unsupported_platform").await;
        assert_eq!((detail.phase, detail.retryable), (Phase::Prepare, false), "{detail:?}");
        let details = detail.details.as_ref().unwrap();
        assert_eq!(details["wanted"], "linux/amd64");
        assert!(details["available"].to_string().contains("s390x"), "{detail:?}");
    }
    // The right one is found among others.
    let ours = Image::busybox();
    let index = [
        (json!({"os": "linux", "architecture": "s390x"}), &foreign),
        (json!({"os": "linux", "architecture": "amd64"}), &ours),
    ];
    let index = registry.push_index("many", "1", &index).await;
    let built = api.ready(request(&registry.reference("many:1"))).await;
    assert_eq!(built.build.source_digest.as_deref(), Some(&*index));

    // A FIFO, with its path.
    let fifo = Image::busybox().with_layer(Tar::new().dir("run", 0o755).fifo("run/fifo"), Compression::Gzip);
    registry.push("fifo", "1", &fifo).await;
    let detail = api.failed(request(&registry.reference("fifo:1")), "oci_unsupported_special_file").await;
    assert_eq!((detail.phase, detail.retryable), (Phase::Prepare, false), "{detail:?}");
    let details = detail.details.as_ref().unwrap();
    assert_eq!((&details["path"], &details["entry_type"]), (&json!("run/fifo"), &json!("fifo")), "{detail:?}");

    // Bytes that are not what their digest says: a layer, and a configuration.
    let damaged = Image::busybox_variant("damaged layer");
    registry.push("damaged", "layer", &damaged).await;
    registry.corrupt(&image::digest(&damaged.layers[0].bytes));
    let detail = api.failed(request(&registry.reference("damaged:layer")), "invalid_image").await;
    assert_eq!(detail.phase, Phase::Prepare, "{detail:?}");
    assert!(detail.message.contains("digest"), "{detail:?}");
    let damaged = Image::busybox_variant("damaged configuration").with_config(json!({"Env": ["A=b"]}));
    registry.push("damaged", "config", &damaged).await;
    registry.corrupt(&image::digest(&damaged.configuration()));
    let detail = api.failed(request(&registry.reference("damaged:config")), "invalid_image").await;
    assert!(detail.message.contains("digest"), "{detail:?}");

    service.settles().await;
    // Nothing of a failed import is kept.
    let images = crate::fixture::artifacts::root_images(&service.data());
    assert_eq!(images.len(), 1, "{images:?}");
    service.stop().await;
}
