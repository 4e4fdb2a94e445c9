//! Templates outlive upgrades: of the agent, of the guest's kernel and initramfs, of QEMU's package. What cannot be resumed,
//! and what an older agent cannot do, is a typed answer.

use serde_json::{Value, json};
use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::fixture::dir::TestDir;
use crate::fixture::older::{
    host_qemu, initramfs, initramfs_with_agent, qemu_of_another_minor_version, qemu_of_another_package,
};
use crate::fixture::{Api, Image, Registry, Service};

fn request(registry: &Registry, name: &str) -> Value {
    json!({
        "name": name, "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192, "vcpus": 1},
        "start_cmd": "cat /proc/sys/kernel/random/uuid >> /started; exec sleep 100000",
    })
}

/// The class that is stored for a template's artifact.
async fn stored_class(service: &Service, artifact: &str) -> Value {
    let mut database = database(service).await;
    let id = artifact.to_owned();
    let text: String = sqlx::query_scalar("SELECT snapshot FROM artifacts WHERE id = ? OR build_id = ?")
        .bind(&id)
        .bind(&id)
        .fetch_one(&mut database)
        .await
        .expect("the artifact's row");
    serde_json::from_str::<Value>(&text).expect("JSON")["compatibility"].clone()
}

/// Changes one property of the class of every artifact, as if another host or service had made them.
async fn store_class(service: &Service, property: &str, value: Value) {
    let mut database = database(service).await;
    let changed = sqlx::query("UPDATE artifacts SET snapshot = json_set(snapshot, ?, json(?))")
        .bind(format!("$.compatibility.{property}"))
        .bind(value.to_string())
        .execute(&mut database)
        .await
        .expect("change the class");
    assert!(changed.rows_affected() > 0);
}

async fn database(service: &Service) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(service.data().join("nullspace.db"));
    options.connect().await.expect("open the database")
}

/// Creates a sandbox, and uses it in every way that a user has: a command, its stdin, a process, files.
async fn use_all(api: &Api, template: &str, started: &str) {
    let sandbox = api.sandbox(template).await;
    assert_eq!(sandbox.sh("cat /started").await, started, "the start command ran once, at the build");
    let files = format!("/v1/sandboxes/{}/files", sandbox.id);
    let written = api.post(&format!("{files}/write"), json!({"path": "/tmp/x", "content": "kept"})).await;
    assert_eq!(written.status / 100, 2, "{}", written.text());
    assert_eq!(sandbox.sh("cat /tmp/x").await, "kept");
    let processes: Value = api.get(&format!("/v1/sandboxes/{}/processes", sandbox.id)).await.ok(200);
    assert!(processes.to_string().contains("sleep 100000"), "{processes}");
    sandbox.delete().await;
}

fn machines_run_under(service: &Service) -> String {
    let lines = service.log().lines();
    lines.iter().rfind(|line| line.contains("machines run under")).expect("the driver is in the log").clone()
}

#[tokio::test]
async fn a_template_outlives_an_upgrade_of_agent_initramfs_and_qemus_package() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let folder = TestDir::new();
    let mut service = Service::stopped();

    // Before: an agent of interface version 6.
    service.set_initramfs(&initramfs_with_agent(folder.path(), "older", "6"));
    service.restart().await;
    let api = service.api();
    let built = api.ready(request(&registry, "app")).await;
    assert!(built.says("Snapshot restored in trial in"), "{built:?}");
    let class = stored_class(&service, built.template()).await;
    assert_eq!(class["agent_abi"], 6, "{class}");
    let sandbox = api.sandbox("app").await;
    let started = sandbox.sh("cat /started").await;
    sandbox.delete().await;
    use_all(&api, "app", &started).await;
    let before = machines_run_under(&service);
    service.stop().await;

    // After: this build's agent, a file more in the initramfs, and a QEMU from another package of the same release.
    service.set_initramfs(&initramfs(folder.path(), "newer", &[("harmless", 0o644, b"a file more")]));
    let qemu = before.contains("vmm=Qemu").then(|| qemu_of_another_package(&folder.path().join("qemu")));
    if let Some((program, _)) = &qemu {
        service.set("NULLSPACE_QEMU", program);
    }
    service.restart().await;
    let api = service.api();
    if let Some((_, version)) = &qemu {
        let after = machines_run_under(&service);
        assert!(after.contains(version.as_str()) && !before.contains(version.as_str()), "{before}\n{after}");
    }
    use_all(&api, "app", &started).await;

    // What is built now has the new agent, initramfs and QEMU in its class.
    let again = api.ready(request(&registry, "again")).await;
    let newer = stored_class(&service, again.template()).await;
    assert_ne!((&newer["agent_abi"], &newer["guest"]), (&class["agent_abi"], &class["guest"]));
    assert_eq!(newer["vmm_version"] != class["vmm_version"], qemu.is_some());

    // And back: what the newer package wrote, the older one reads.
    service.stop().await;
    service.unset("NULLSPACE_QEMU");
    service.restart().await;
    let api = service.api();
    api.sandbox("again").await.delete().await;
    use_all(&api, "app", &started).await;
    service.settles().await;
    service.stop().await;
}

#[tokio::test]
async fn what_an_older_agent_cannot_do_is_said_at_once_and_the_rest_goes_on() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let folder = TestDir::new();
    let mut service = Service::stopped();
    service.set_initramfs(&initramfs_with_agent(folder.path(), "lacking", "7 files kill"));
    service.restart().await;
    let api = service.api();
    api.ready(request(&registry, "app")).await;

    let sandbox = api.sandbox("app").await;
    let url = format!("/v1/sandboxes/{}", sandbox.id);
    let refused = api.post(&format!("{url}/files/write"), json!({"path": "/x", "content": ""})).await;
    let refused = refused.refused(409, "rebuild_required");
    let text =
        "this template's agent is older (interface version 7) and cannot work on files: build the template again";
    assert_eq!(refused.error, text);
    let refused = api.post(&format!("{url}/processes/1/kill"), json!({})).await.refused(409, "rebuild_required");
    assert!(refused.error.contains("cannot signal processes"), "{refused:?}");
    // The sandbox and its connection are as before.
    assert_eq!(sandbox.sh("echo fine").await, "fine");
    sandbox.delete().await;
    service.settles().await;
    service.stop().await;
}

#[tokio::test]
async fn what_cannot_be_resumed_is_refused_by_its_property_before_a_machine_is_started() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built = api.ready(request(&registry, "app")).await;
    let class = stored_class(&service, built.template()).await;
    api.sandbox("app").await.delete().await;
    service.settles().await;

    for (property, value, words) in [
        ("agent_abi", json!(5), "agent has interface version 5, this host speaks 6 to 7"),
        ("agent_abi", json!(8), "agent has interface version 8, this host speaks 6 to 7"),
        ("vmm_version", json!("0.9.1 (Debian)"), "VMM version is 0.9.1 (Debian), this host's is "),
        ("accelerator", json!("xen"), "accelerator is xen, this host's is "),
        ("format", json!(0), "format is 0, this host's is "),
    ] {
        store_class(&service, property, value).await;
        if property == "vmm_version" {
            // As a class of a version that did not record it; else it decides.
            store_class(&service, "vmm_format", Value::Null).await;
        }
        let refused = api.post("/v1/sandboxes", json!({"template": "app"})).await.refused(409, "rebuild_required");
        assert!(refused.error.contains(words) && refused.error.contains("build it again"), "{refused:?}");
        assert!(service.machines().is_empty(), "{property}: a machine was started");
        store_class(&service, property, class[property].clone()).await;
    }
    api.sandbox("app").await.delete().await;
    service.settles().await;
    service.stop().await;
}

#[tokio::test]
async fn an_older_qemu_beside_the_new_one_resumes_what_the_new_one_cannot_read() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let folder = TestDir::new();
    let mut service = Service::start().await;
    if !machines_run_under(&service).contains("vmm=Qemu") {
        eprintln!("skipped: machines run under Firecracker here, and there is one Firecracker");
        return;
    }
    let api = service.api();
    api.ready(request(&registry, "app")).await;
    let sandbox = api.sandbox("app").await;
    let started = sandbox.sh("cat /started").await;
    sandbox.delete().await;
    service.settles().await;
    service.stop().await;

    // Another minor version alone: nobody has tried the two.
    let (program, version) = qemu_of_another_minor_version(&folder.path().join("qemu"));
    service.set("NULLSPACE_QEMU", &program);
    service.restart().await;
    let api = service.api();
    let refused = api.post("/v1/sandboxes", json!({"template": "app"})).await.refused(409, "rebuild_required");
    assert!(refused.error.contains(&format!("this host's is {version}")), "{refused:?}");
    assert!(service.machines().is_empty(), "a machine was started");
    service.stop().await;

    // With the old one beside it, the old template resumes under the old one, and new ones are the new one's.
    service.set("NULLSPACE_OLDER_QEMU", host_qemu());
    service.restart().await;
    let api = service.api();
    let sandbox = api.sandbox("app").await;
    assert_eq!(sandbox.sh("cat /started").await, started);
    let programs = |service: &Service| -> Vec<std::path::PathBuf> {
        let machines = service.machines();
        machines.iter().map(|machine| std::fs::read_link(format!("/proc/{}/exe", machine.pid)).unwrap()).collect()
    };
    assert_eq!(programs(&service), [host_qemu().canonicalize().unwrap()]);
    sandbox.delete().await;
    use_all(&api, "app", &started).await;
    let built = api.ready(request(&registry, "new")).await;
    assert_eq!(stored_class(&service, built.template()).await["vmm_version"], version.as_str());
    let sandbox = api.sandbox("new").await;
    assert_eq!(programs(&service), [program.canonicalize().unwrap()]);
    sandbox.delete().await;
    service.settles().await;
    service.stop().await;
}
