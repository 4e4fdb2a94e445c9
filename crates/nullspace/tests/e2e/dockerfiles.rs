//! Dockerfiles, built by the BuildKit of a real Docker Engine.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::fixture::{Docker, Image, Registry, host, until};

#[tokio::test]
async fn the_tests_own_docker_engine_builds_with_a_network_and_leaves_nothing() {
    let registry = Registry::start();
    registry.push("library/box", "1", &Image::busybox()).await;
    let docker = Docker::start(&registry.as_hub());
    let data = docker.data();
    let context = data.parent().unwrap().join("context");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("Dockerfile"), "FROM box:1\nRUN ip -4 -o address show dev eth0 >/address\n").unwrap();
    docker.output(&["build", "-t", "built", context.to_str().unwrap()]);
    let address = docker.output(&["run", "--rm", "--network=none", "built", "cat", "/address"]);
    assert!(String::from_utf8_lossy(&address).contains("inet 10.213."), "{address:?}");
    // A step that runs when the engine ends goes with it.
    std::fs::write(context.join("Dockerfile"), "FROM box:1\nRUN sleep 1000\n").unwrap();
    let mut building = docker.command(&["build", context.to_str().unwrap()]).spawn().unwrap();
    until("the step runs", Duration::from_secs(30), async || !docker.steps().is_empty()).await;
    let name = docker.name();
    drop(docker);
    assert!(!building.wait().unwrap().success());
    assert_eq!(host::users_of(&data), BTreeSet::new());
    assert_eq!(host::interfaces(&name), Vec::<String>::new());
    assert_eq!(host::control_groups_named(&name), Vec::<PathBuf>::new());
}
