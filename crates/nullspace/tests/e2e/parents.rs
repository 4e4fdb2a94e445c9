//! Templates from templates.

use nullspace_api::{
    TemplateBuildPlanResponse, TemplateBuildSourceType, TemplateBuildValidationResponse, TemplateInfo,
};
use serde_json::json;

use crate::fixture::{Image, Registry, Service};

#[tokio::test]
async fn a_child_inherits_what_it_does_not_say_and_outlives_its_parent() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let parent = api
        .ready(json!({
            "name": "parent", "base_image": registry.reference("box:1"),
            "build_config": {"memory_mib": 192, "disk_mb": 1024},
            "start_cmd": "echo once >> /home/app/starts; exec httpd -f -p 8080 -h /www",
            "runtime_config": {
                "default_envs": {"PARENT": "1", "BOTH": "parent"}, "default_user": "app", "default_workdir": "/home/app",
                "readiness": {"kind": "tcp", "port": 8080},
            },
        }))
        .await;
    let namespace = parent.build.namespace_slug.clone();

    // Every way to name it.
    let by_client = "nullspace/parent:default";
    let child = api
        .ready(json!({
            "name": "child", "base_image": by_client, "build_config": {"memory_mib": 192, "disk_mb": 512},
            "runtime_config": {"default_envs": {"CHILD": "2", "BOTH": "child"}},
        }))
        .await;
    assert_eq!(child.build.source_type, TemplateBuildSourceType::TemplateBase);
    assert_eq!(child.build.source_digest.as_ref(), Some(&parent.build.build_id));
    // A disk does not shrink: what it has is shown, and why.
    assert_eq!(child.build.build_config.as_ref().and_then(|config| config.disk_mb), Some(1024), "{child:?}");
    assert!(child.log.iter().any(|entry| entry.message.contains("disk_mb is 512") && entry.message.contains("1024")));
    let smaller = json!({"base_image": by_client, "build_config": {"disk_mb": 512}});
    let plan: TemplateBuildPlanResponse = api.post("/v1/templates/plan", smaller.clone()).await.ok(200);
    let checked: TemplateBuildValidationResponse = api.post("/v1/templates/validate", smaller).await.ok(200);
    assert!(plan.warnings.join(" ").contains("1024 MiB") && checked.warnings == plan.warnings, "{plan:?} {checked:?}");
    let defaults = child.build.runtime_defaults.clone().expect("runtime defaults");
    let of_parent = parent.build.runtime_defaults.clone().expect("runtime defaults");
    assert_eq!((defaults.start_cmd, defaults.readiness), (of_parent.start_cmd, of_parent.readiness));
    assert_eq!(defaults.default_env_keys, ["BOTH", "CHILD", "PARENT"]);

    let sandbox = api.sandbox("child").await;
    // As FROM does: from the parent's root as it was before its start command ran, which runs anew.
    assert_eq!(
        sandbox.sh("cat starts; id -un; pwd; echo $PARENT $CHILD $BOTH").await,
        "once\napp\n/home/app\n1 2 child"
    );
    assert_eq!(sandbox.sh("wget -q -O - http://127.0.0.1:8080/").await, "hello from the template");
    assert_eq!(sandbox.created.config.disk_mb, Some(1024), "a child's disk is not smaller than its parent's");
    sandbox.delete().await;

    // A start command of its own replaces the parent's, and the parent's readiness with it. A larger disk is a disk.
    let own = api
        .ready(json!({
            "name": "own", "base_image": format!("{namespace}/parent"),
            "build_config": {"memory_mib": 192, "disk_mb": 1536},
            "start_cmd": "echo own > /home/app/own; exec sleep 1000000",
        }))
        .await;
    let defaults = own.build.runtime_defaults.clone().expect("runtime defaults");
    assert_eq!((defaults.readiness, defaults.default_user.as_deref()), (None, Some("app")));
    let sandbox = api.sandbox("own").await;
    assert_eq!(sandbox.sh("cat own; ls starts 2>/dev/null; ps | grep -c '[h]ttpd'; true").await, "own\n0");
    let megabytes: u32 = sandbox.sh("df -m / | tail -n 1 | awk '{print $2}'").await.parse().unwrap();
    assert!((1306..=1536).contains(&megabytes), "{megabytes} of 1536 MiB");
    sandbox.delete().await;

    // The parent goes; what was made from it stays, and can be built from.
    assert_eq!(api.delete("/v1/templates/parent").await.status, 204);
    let refused = api.post("/v1/templates/builds", json!({"base_image": by_client})).await;
    refused.refused(404, "template_not_found");
    for reference in [child.template().to_owned(), format!("child:{}", child.build.build_id)] {
        let grandchild = api.ready(json!({"base_image": reference, "build_config": {"memory_mib": 192}})).await;
        let sandbox = api.sandbox(grandchild.template()).await;
        assert_eq!(sandbox.sh("cat starts; echo $PARENT $CHILD $BOTH").await, "once\n1 2 child");
        sandbox.delete().await;
    }
    let left: Vec<TemplateInfo> = api.get("/v1/templates").await.ok(200);
    assert!(left.iter().all(|template| template.name != "parent"), "{left:?}");
    service.stop().await;
}
