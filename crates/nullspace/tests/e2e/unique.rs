//! Two sandboxes of one template are two machines.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::fixture::{Image, Registry, Service};

#[tokio::test]
async fn two_sandboxes_of_one_template_share_nothing_but_the_past() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built = api
        .ready(json!({
            "name": "twin", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192},
            "start_cmd": "date +%s > built; hostname > name; cat /etc/machine-id > id; \
                          (while :; do head -c 16 /dev/urandom | od -A n -t x1 > next; mv next random; sleep 0.2; done)",
            "runtime_config": {"readiness": {"kind": "command", "command": "test -s random"}},
        }))
        .await;
    // The clock of a guest that slept is wrong unless somebody sets it.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let asked = now();
    let (one, two) = tokio::join!(api.sandbox("twin"), api.sandbox(built.template()));

    // Each clock was set at some moment of this time: quick, but for an emulated host.
    let created_in = now() - asked;

    // The very first commands, side by side.
    let fingerprint = "head -c 32 /dev/urandom | od -A n -t x1; cat /proc/sys/kernel/random/uuid";
    let (random_one, random_two) = tokio::join!(one.sh(fingerprint), two.sh(fingerprint));
    for (left, right) in random_one.lines().zip(random_two.lines()) {
        assert_ne!(left, right, "random numbers are the same in both");
    }
    for sandbox in [&one, &two] {
        let before = now();
        let there: f64 = sandbox.sh("date +%s").await.parse().unwrap();
        // Somewhere between question and answer, which a busy host answers late; whole seconds are rounded down.
        assert!(
            (before - 3.0 - created_in..now() + 3.0).contains(&there),
            "the guest's clock says {there}, asked at {before}"
        );
        let built: f64 = sandbox.sh("cat built").await.parse().unwrap();
        assert!(there - built > 2.0, "the clock stood still since the build");
    }
    for command in ["hostname", "cat /etc/machine-id", "cat /etc/hostname"] {
        let (left, right) = tokio::join!(one.sh(command), two.sh(command));
        assert_ne!(left, right, "{command}");
        assert!(!left.is_empty() && !right.is_empty(), "{command}");
    }
    assert_eq!(one.sh("cat /etc/machine-id | wc -c").await, "33", "32 digits and a line end");
    assert_eq!(one.sh("cat /etc/hostname").await, one.sh("hostname").await);
    assert_eq!(one.sh("ping -c 1 -W 5 $(hostname) > /dev/null && echo itself").await, "itself");
    let (name, id) = (one.sh("cat name").await, one.sh("cat id").await);
    assert!(one.sh("hostname").await != name && one.sh("cat /etc/machine-id").await != id, "as at the build");

    // The process that has run since the build draws other numbers in each. The first number that the command sees may be from
    // before the snapshot. The command waits for the next one, which is drawn after the restore.
    let drawn = "was=$(cat random); while [ \"$(cat random)\" = \"$was\" ]; do sleep 0.1; done; cat random";
    let (left, right) = tokio::join!(one.sh(drawn), two.sh(drawn));
    assert!(!left.is_empty() && !right.is_empty(), "nothing was drawn: {left:?} and {right:?}");
    assert_ne!(left, right, "a process from before the snapshot draws the same numbers in both");

    // What one writes the other does not see, nor does the next one.
    one.sh("echo mine > /workspace/private; echo mine > /run/private; echo mine > /etc/passwd").await;
    assert_eq!(
        two.sh("ls /workspace/private /run/private 2>/dev/null; head -n 1 /etc/passwd").await,
        "root:x:0:0:root:/root:/bin/sh"
    );
    one.delete().await;
    let three = api.sandbox("twin").await;
    assert_eq!(three.sh("ls /workspace/private 2>/dev/null; grep -c root /etc/passwd").await, "1");
    // Its death is not the others'.
    assert_eq!(two.sh("echo alive").await, "alive");
    service.stop().await;
}
