//! Dockerfiles without a BuildKit on the host: each tenant's builder machine builds them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nullspace_api::TemplateBuildStatus as Status;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::image::{busybox, digest};
use crate::fixture::{Api, Image, Registry, Service, debian, host, is_long, until};

/// An address of this host that guests may be allowed to reach.
fn address() -> IpAddr {
    let probe = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    // Nothing is sent: only a route is looked up.
    probe.connect("192.0.2.99:9").expect("this host has a route");
    match probe.local_addr().expect("an address").ip() {
        IpAddr::V4(address) if !address.is_loopback() => address.into(),
        other => panic!("this host has no address beside {other}"),
    }
}

/// A server on `on` that accepts and says nothing, or passes connections on to `target`.
async fn listen(on: IpAddr, target: Option<String>) -> SocketAddr {
    let listener = TcpListener::bind((on, 0)).await.expect("listen");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let target = target.clone();
            tokio::spawn(async move {
                if let Some(target) = target
                    && let Ok(mut other) = TcpStream::connect(target).await
                {
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut other).await;
                }
            });
        }
    });
    address
}

/// A service with builder machines, whose machines reach these addresses of this host.
async fn service(open: &[SocketAddr], idle_secs: u32) -> Service {
    service_with(open, idle_secs, 4096).await
}

/// The same, with builders' disks of this size.
async fn service_with(open: &[SocketAddr], idle_secs: u32, disk_mib: u32) -> Service {
    let listed: Vec<String> = open.iter().map(SocketAddr::to_string).collect();
    let (listed, private) = (listed.join(","), format!("127.0.0.1,{}", address()));
    Service::with([
        ("NULLSPACE_BUILDKIT", "machine".to_owned()),
        ("NULLSPACE_BUILDER_TAR", debian::builder_tar().display().to_string()),
        ("NULLSPACE_BUILDER_MEMORY_MIB", "1024".to_owned()),
        ("NULLSPACE_BUILDER_DISK_MIB", disk_mib.to_string()),
        ("NULLSPACE_BUILDER_IDLE_SECS", idle_secs.to_string()),
        ("NULLSPACE_NETWORK_ALLOW", listed.clone()),
        ("NULLSPACE_PLAIN_HTTP_REGISTRIES", listed),
        ("NULLSPACE_PRIVATE_REGISTRIES", private),
    ])
    .await
}

/// A request for a Dockerfile whose context has `busybox`.
async fn request(api: &Api, dockerfile: &str) -> Value {
    let blob = api.upload(&busybox()).await;
    let file = json!({"path": "busybox", "entry_type": "file", "blob_id": blob, "mode": "0755"});
    json!({"dockerfile": dockerfile, "build_config": {"memory_mib": 192}, "build_context": {"files": [file]}})
}

/// Two stages from nothing but the context; `steps` run in the first, `last` in the second.
fn dockerfile(steps: &str, last: &str) -> String {
    format!(
        "FROM scratch AS build\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n{steps}\n\
         FROM scratch\nCOPY --from=build / /\nENV GREETING=hello\nRUN {last}\n"
    )
}

/// The builder machine among the service's processes, while no other machine runs.
fn builder(service: &Service) -> Option<host::Process> {
    let machines = service.machines();
    assert!(machines.len() <= 1, "{machines:?}");
    machines.into_iter().next()
}

#[tokio::test]
async fn a_dockerfile_is_built_behind_the_walls_of_a_machine_and_from_its_cache() {
    if !is_long() {
        eprintln!("skipped: minutes under emulation; make test-long runs it");
        return;
    }
    let (open, closed) = (listen(address(), None).await, listen(address(), None).await);
    let mut service = service(&[open], 600).await;
    let api = service.api();
    let doctor = service.command(&["doctor"]).output().unwrap();
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("builder machines, one for each tenant"), "{doctor:?}");

    // What a step reaches: the address that is allowed, and no other; no socket of the engine, by path or by name.
    let places = [open.to_string(), closed.to_string(), "169.254.169.254:80".to_owned(), "10.0.0.1:80".to_owned()];
    let steps = format!(
        "RUN for to in {}; do nc -w 5 ${{to%:*}} ${{to#*:}} </dev/null >/dev/null 2>&1 && echo $to; done >/walls; \
         find / -xdev -type s >>/walls; ls -d /run/builder /var/lib/docker 2>/dev/null >>/walls; \
         awk '$4 == \"00010000\" && $8 ~ \"^@\"' /proc/net/unix >>/walls; true\nRUN head -c 16 /dev/urandom | sha256sum >/made",
        places.join(" ")
    );
    let wanted = request(&api, &dockerfile(&steps, "echo first >/last")).await;
    let began = Instant::now();
    let built = api.ready(wanted).await;
    println!("a cold builder: {:.1} s to ready", began.elapsed().as_secs_f32());
    assert!(built.says("Builder machine ready"), "{built:?}");
    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.sh("echo $GREETING; cat /last").await, "hello\nfirst");
    if rustix::process::geteuid().is_root() {
        assert_eq!(sandbox.sh("cat /walls").await, open.to_string());
    }
    let made = sandbox.sh("cat /made").await;
    sandbox.delete().await;

    // Another last line: the rest is the cache's.
    let wanted = request(&api, &dockerfile(&steps, "echo second >/last")).await;
    let began = Instant::now();
    let again = api.ready(wanted).await;
    println!("a running builder: {:.1} s to ready", began.elapsed().as_secs_f32());
    let summary = again.build.cache_summary.as_ref().unwrap();
    assert!(summary.layer_hits >= 4, "{summary:?} {again:?}");
    let sandbox = api.sandbox(again.template()).await;
    assert_eq!(sandbox.sh("cat /made /last").await, format!("{made}\nsecond"));
    sandbox.delete().await;
    service.stop().await;
}

#[tokio::test]
async fn a_builder_that_is_killed_is_made_anew_and_one_that_ends_keeps_its_cache() {
    if !is_long() {
        eprintln!("skipped: minutes under emulation; make test-long runs it");
        return;
    }
    let closed = listen(address(), None).await;
    let mut service = service(&[], 600).await;
    let api = service.api();
    let text = dockerfile("RUN echo here I 'am'; sleep 10; head -c 16 /dev/urandom | sha256sum >/made", "true");
    let build = api.start(request(&api, &text).await).await;
    api.until_said(&build.build_id, "here I am").await;
    let killed = builder(&service).expect("the builder machine");
    kill_process(Pid::from_raw(killed.pid.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
    let built = api.finished(&build.build_id).await.expect_status(Status::Ready);
    assert!(built.says("The builder machine is made anew"), "{built:?}");
    let sandbox = api.sandbox(built.template()).await;
    let made = sandbox.sh("cat /made").await;
    sandbox.delete().await;

    // A cancelled step ends, and its builder goes on.
    let sleeping = dockerfile("RUN echo there I 'am'; sleep 1000", "true");
    let build = api.start(request(&api, &sleeping).await).await;
    api.until_said(&build.build_id, "there I am").await;
    let before = builder(&service).expect("the builder machine");
    api.cancel(&build.build_id, "changed my mind").await;
    api.finished(&build.build_id).await.expect_status(Status::Cancelled);
    assert_eq!(builder(&service).expect("the builder machine"), before);

    // Without a network a step reaches nobody, not even what the machine itself may.
    let mut alone = request(&api, &dockerfile("RUN ip -o link | grep -v ': lo:' >/links; true", "cat /links")).await;
    alone["build_config"]["internet_access"] = json!(false);
    let built = api.ready(alone).await;
    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.sh("cat /links").await, "");
    sandbox.delete().await;
    let refused = dockerfile(&format!("RUN nc -w 5 {} {} </dev/null", closed.ip(), closed.port()), "true");
    api.failed(request(&api, &refused).await, "build_step_nonzero_exit").await;

    // The service ends in order, and so do its builders: what they know is there for the next.
    service.stop().await;
    service.set("NULLSPACE_BUILDER_IDLE_SECS", "0");
    service.restart().await;
    let api = service.api();
    let changed = text.replace("RUN true", "RUN echo changed >/changed");
    let again = api.ready(request(&api, &changed).await).await;
    let sandbox = api.sandbox(again.template()).await;
    assert_eq!(sandbox.sh("cat /made /changed").await, format!("{made}\nchanged"));
    sandbox.delete().await;
    // Idle builders end by themselves.
    service.settles().await;

    // Killed with the service: the cache may be damaged, and is not used.
    service.set("NULLSPACE_BUILDER_IDLE_SECS", "600");
    service.stop().await;
    service.restart().await;
    let api = service.api();
    api.ready(request(&api, &text).await).await;
    service.kill().await;
    service.restart().await;
    let folder = service.data().join("builders");
    let left = || std::fs::read_dir(&folder).map_or(0, Iterator::count);
    until("the disk is removed", Duration::from_secs(60), async || left() == 0).await;
    service.stop().await;
}

#[tokio::test]
async fn no_tenant_finds_an_image_that_another_has_pulled() {
    if !is_long() || !rustix::process::geteuid().is_root() {
        eprintln!("skipped: minutes under emulation, and machines' networks need root; make test-long runs it");
        return;
    }
    let registry = Registry::start();
    let image = Image::busybox_variant("private");
    registry.push("box", "1", &image).await;
    let relay = listen(address(), Some(registry.address().to_owned())).await;
    let mut service = service(&[relay], 600).await;
    let text = |last: &str| format!("FROM {relay}/box:1\nRUN cat /variant >/seen\nRUN {last}\n");
    let wanted = |last: &str| json!({"dockerfile": text(last), "build_config": {"memory_mib": 192}});
    let api = service.api();
    api.ready(wanted("true")).await;
    // From now on the registry claims to have the image, and has none of its files: whoever builds has them already.
    for layer in &image.layers {
        registry.lose(&digest(&layer.bytes));
    }
    let again = api.ready(wanted("echo again >/again")).await;
    let sandbox = api.sandbox(again.template()).await;
    assert_eq!(sandbox.sh("cat /seen").await, "private");
    sandbox.delete().await;
    let other = service.api_of("other").build(wanted("true")).await.expect_status(Status::Error);
    assert!(!other.says("private"), "{other:?}");
    service.stop().await;
}

#[tokio::test]
async fn a_builder_that_runs_full_is_made_anew_and_one_that_is_too_small_is_told_of() {
    if !is_long() {
        eprintln!("skipped: minutes under emulation; make test-long runs it");
        return;
    }
    // The engine takes some 500 MiB of it.
    let mut service = service_with(&[], 600, 2048).await;
    let api = service.api();
    // A stage whose files nobody copies: they fill the builder, and not the image.
    let filled = |file: &str, size: &str| {
        format!(
            "FROM scratch AS waste\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"fallocate\", \"-l\", \"{size}\", \"/{file}\"]\n\
             FROM scratch\nCOPY --from=waste /bin /bin\n"
        )
    };
    let first = api.ready(request(&api, &filled("first", "900m")).await).await;
    assert!(!first.says("made anew"), "{first:?}");
    let shown = service.command(&["store", "stats"]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("builder disks     1 of "), "{shown}");
    let page = api.get("/metrics").await.text();
    for line in ["nullspace_builder_machines 1", "nullspace_builder_disks 1"] {
        assert!(page.contains(line), "{page}");
    }

    // Beside the first one's it does not fit; on a new disk it does.
    let second = api.ready(request(&api, &filled("second", "900m")).await).await;
    assert!(second.says("The disk of the builder machine is full") && second.says("made anew"), "{second:?}");

    // No new disk would help.
    let third = api.failed(request(&api, &filled("third", "3g")).await, "disk_full").await;
    assert!(third.message.contains("2048 MiB") && third.suggested_action.contains("builder_disk_mib"), "{third:?}");
    assert_eq!((third.retryable, third.attempt), (false, Some(1)), "{third:?}");
    let folder = service.data().join("builders");
    assert_eq!(std::fs::read_dir(&folder).map_or(0, Iterator::count), 0, "the full disk stays");
    service.settles().await;
    // The next build has a new one.
    api.ready(request(&api, &filled("fourth", "1m")).await).await;
    service.stop().await;
}
