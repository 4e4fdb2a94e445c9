//! What builds leave on the disk on purpose.

use serde_json::json;

use crate::fixture::artifacts::{assert_clean, materialised, root_images, snapshots};
use crate::fixture::dir::TestDir;
use crate::fixture::{Image, Registry, Service};

#[tokio::test]
async fn root_images_and_snapshot_disks_are_whole_filesystems_and_stay_as_they_are() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    // Busy writing when the machine is frozen.
    let built = api
        .ready(json!({
            "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192, "disk_mb": 512},
            "start_cmd": "i=0; while :; do i=$((i+1)); mkdir -p d$((i%7)); \
                          head -c $((i*1000%300000)) /dev/urandom > d$((i%7))/f$((i%31)); rm -rf d$(((i+3)%7)); done",
            "runtime_config": {"readiness": {"kind": "timeout", "timeout_ms": 3000}},
        }))
        .await;
    let sandbox = api.sandbox(built.template()).await;
    // The service in it writes all the time, so that a sync takes its time.
    let patient = || json!({"timeout_secs": 120});
    sandbox.sh_with("head -c 10000000 /dev/zero > /workspace/mine; rm -rf /www; sync", patient()).await;

    let images = root_images(&service.data());
    let [root_image] = &images[..] else { panic!("{images:?}") };
    let found = snapshots(&service.data());
    let [snapshot] = &found[..] else { panic!("{found:?}") };
    assert_clean(root_image);
    let scratch = TestDir::new();
    let disk = materialised(snapshot, root_image, &scratch);
    assert_clean(&disk);
    // What a sandbox writes reaches neither.
    let before = crate::fixture::image::digest(&std::fs::read(&disk).unwrap());
    sandbox.sh_with("head -c 10000000 /dev/zero > /workspace/more; sync", patient()).await;
    sandbox.delete().await;
    let again = TestDir::new();
    let disk = materialised(snapshot, root_image, &again);
    assert!(crate::fixture::image::digest(&std::fs::read(&disk).unwrap()) == before, "a sandbox wrote to its template");

    // Tenants' memory is in there: nobody else on the host may look.
    use std::os::unix::fs::PermissionsExt;
    for (name, expected) in
        [("snapshots", 0o700), ("chunks", 0o700), ("rootfs", 0o700), ("work", 0o700), ("nullspace.db", 0o600)]
    {
        let mode = std::fs::metadata(service.data().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, expected, "{name}: {mode:o}");
    }
    service.stop().await;
    assert_clean(root_image);
}
