//! The real thing: nullspace-init as PID 1 of a guest under QEMU's software emulation, driven by the real client.
//!
//! Needs `qemu-system-x86_64`, `mke2fs`, a static busybox, and the guest image in `target/guest` (or `NULLSPACE_GUEST_DIR`),
//! which `make guest` prepares.

#![allow(unsafe_code, reason = "the test reads the processor's clock")]
// clippy.toml lets tests unwrap, and does not count their helpers.
#![allow(clippy::unwrap_used)]

mod machine;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use machine::{Machine, SOON, busybox, disk, exec, now_ns, restored, run, sh, shell};
use nullspace_guest::host::{Agent, AgentError};
use nullspace_guest::message::{
    Configure, Exec, Exit, Failure, FailureKind, GuestNetwork, Probe, ProbeCheck, Restored,
};

#[tokio::test]
async fn a_running_service_survives_snapshot_and_restore() {
    let folder = tempfile::tempdir().unwrap();
    disk(folder.path(), 64, |tree| {
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::copy(busybox(), tree.join("bin/busybox")).unwrap();
        for applet in
            ["sh", "cat", "id", "nc", "sleep", "httpd", "ls", "stat", "date", "hostname", "ip", "df", "mount", "ps"]
        {
            std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
        }
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n").unwrap();
        fs::write(tree.join("etc/group"), "root:x:0:\napp:x:1001:\nextra:x:2000:app\n").unwrap();
        // As systemd images have it: a link into a folder that is not there.
        std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", tree.join("etc/resolv.conf")).unwrap();
        // And one that would leave the image were it followed from outside.
        std::os::unix::fs::symlink("/../../../../escape", tree.join("tmp")).unwrap();
        fs::create_dir(tree.join("escape")).unwrap();
        fs::write(tree.join("index.html"), "hello").unwrap();
    });
    // The device is larger than the filesystem, as for a template with a larger disk.
    fs::File::options().write(true).open(folder.path().join("disk")).unwrap().set_len(96 << 20).unwrap();

    let memory = folder.path().join("memory");
    let began = Instant::now();
    let mut machine = Machine::start(folder.path(), &memory, false);
    let (agent, info) = machine.connect().await;
    println!("boot to agent: {} ms", began.elapsed().as_millis());
    assert_eq!((info.root_ready, info.root_error), (true, None));
    assert!(info.kernel.starts_with("6."), "{}", info.kernel);

    let network =
        GuestNetwork { address: "10.0.2.15/24".into(), gateway: Some("10.0.2.2".into()), dns: vec!["10.0.2.3".into()] };
    let configure = Configure {
        hostname: "build-1".into(),
        network: Some(network),
        unix_time_ns: 1_700_000_000_000_000_000,
        ..Configure::default()
    };
    agent.configure(configure).await.unwrap();
    assert_eq!(
        shell(&agent, "hostname; cat /etc/hostname; cat /etc/resolv.conf").await,
        "build-1\nbuild-1\nnameserver 10.0.2.3"
    );
    assert_eq!(shell(&agent, "cat /etc/machine-id").await, info.boot_id.replace('-', ""));
    assert!(shell(&agent, "cat /etc/hosts").await.ends_with("127.0.1.1\tbuild-1"));
    let routes = shell(&agent, "ip -4 addr show eth0; ip route; ip -4 addr show lo").await;
    for part in ["inet 10.0.2.15/24", "default via 10.0.2.2 dev eth0", "inet 127.0.0.1/8"] {
        assert!(routes.contains(part), "{part}: {routes}");
    }
    assert!((1_700_000_000..1_700_000_060).contains(&shell(&agent, "date +%s").await.parse::<u64>().unwrap()));

    // The root holds what processes expect.
    assert_eq!(
        shell(&agent, "stat -c %a:%F /dev/null /dev/pts/ptmx /dev/shm /run /workspace").await,
        "666:character special file\n666:character special file\n1777:directory\n755:directory\n755:directory"
    );
    assert!(shell(&agent, "ls /sys/fs/cgroup").await.contains("cgroup.procs"));
    assert_eq!(
        shell(&agent, "cat /proc/mounts | while read a b c d; do [ $b = / ] && echo $a $c; done; true").await,
        "/dev/root ext4".replace("/dev/root", "/dev/vda")
    );
    assert_eq!(
        shell(&agent, "ls -d /modules /newroot 2>&1 | while read l; do echo x; done").await,
        "x\nx",
        "initramfs is out of sight"
    );
    let who =
        run(&agent, Exec { user: Some("app".into()), cwd: Some("/workspace".into()), ..sh("id; pwd; echo $HOME") })
            .await;
    assert_eq!(
        String::from_utf8_lossy(&who.stdout),
        "uid=1000(app) gid=1001(app) groups=2000(extra)\n/workspace\n/home/app\n"
    );

    let grown = agent.grow_root().await.unwrap();
    assert_eq!(grown, 96 << 20);
    assert_eq!(agent.grow_root().await.unwrap(), grown);

    // Readiness of a service, and who it is.
    let ready = async |check| agent.probe(Probe { check, timeout_ms: 2000 }).await.unwrap().0;
    assert!(!ready(ProbeCheck::Tcp { port: 80 }).await);
    let service = Exec { user: Some("app".into()), ..sh("echo started; exec httpd -f -p 80 -h /") };
    let pid = agent.start_service(service).await.unwrap();
    let until = Instant::now() + SOON;
    while !ready(ProbeCheck::Tcp { port: 80 }).await {
        assert!(Instant::now() < until, "the service is not ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(ready(ProbeCheck::Http { port: 80, path: "/index.html".into() }).await);
    assert!(!ready(ProbeCheck::Http { port: 80, path: "/none".into() }).await);
    assert!(ready(ProbeCheck::Command(sh("exit 0"))).await);

    // Orphans of PID 1 are reaped.
    shell(&agent, "(sh -c 'sleep 0.1' &) ; sleep 0.5").await;
    let until = Instant::now() + SOON;
    loop {
        let processes = agent.processes().await.unwrap();
        let shown: Vec<_> = processes.iter().map(|p| (p.pid, p.command.as_str(), p.running, p.starts)).collect();
        if shown == [(pid, "httpd -f -p 80 -h /", true, Some(1))] {
            break;
        }
        assert!(Instant::now() < until, "{shown:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // Writers wait while it is frozen, the agent does not.
    agent.freeze().await.unwrap();
    agent.freeze().await.unwrap();
    let writer = agent.exec(sh("echo written >/late; cat /late")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(agent.processes().await.unwrap().len(), 2);
    agent.thaw().await.unwrap();
    agent.thaw().await.unwrap();
    assert_eq!(writer.collect(100).await.unwrap().stdout, b"written\n");

    // Left running over the snapshot, with output under way: the next session is not disturbed by it.
    let noise = agent.exec(sh("while :; do echo noise; done")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    agent.freeze().await.unwrap();
    agent.disconnect().await;
    drop(noise);
    let began = Instant::now();
    machine.ask("stop", serde_json::json!({}));
    let state = folder.path().join("state");
    machine.migrate("migrate", &format!("exec:cat > {}", state.display()));
    println!("snapshot: {} ms, state {} bytes", began.elapsed().as_millis(), fs::metadata(&state).unwrap().len());
    drop(machine);
    let clean = Command::new("/sbin/e2fsck").arg("-fn").arg(folder.path().join("disk")).output().unwrap();
    assert!(clean.status.success(), "{}", String::from_utf8_lossy(&clean.stdout));

    let mut seen = Vec::new();
    for seed in [1, 2] {
        let clone = folder.path().join(format!("clone-{seed}"));
        fs::create_dir(&clone).unwrap();
        fs::copy(folder.path().join("disk"), clone.join("disk")).unwrap();
        let began = Instant::now();
        let mut machine = Machine::start(&clone, &memory, true);
        machine.migrate("migrate-incoming", &format!("exec:cat {}", state.display()));
        machine.ask("cont", serde_json::json!({}));
        let bare = began.elapsed();
        let name = format!("sb-{seed}");
        let mut streams = vec![machine.stream().await];
        let open = || std::future::ready(streams.pop().ok_or(AgentError::Closed));
        let (agent, _) = Agent::connect_restored(open, || restored(&name, seed), SOON).await.unwrap();
        let greeted = began.elapsed();
        let out = run(&agent, exec(&["hostname"])).await;
        println!("restore: QEMU {bare:?}, restored {greeted:?}, first exec {:?}", began.elapsed());
        assert_eq!(out.stdout, format!("{name}\n").as_bytes());

        let listed = agent.processes().await.unwrap().into_iter().find(|process| process.pid == pid).unwrap();
        assert_eq!((listed.command.as_str(), listed.running, listed.starts), ("httpd -f -p 80 -h /", true, Some(1)));
        let (ready, detail) = agent
            .probe(Probe { check: ProbeCheck::Http { port: 80, path: "/index.html".into() }, timeout_ms: 2000 })
            .await
            .unwrap();
        assert!(ready, "{detail}");
        assert_eq!(shell(&agent, "cat /etc/machine-id").await, format!("{seed:02x}").repeat(16));
        let skew = shell(&agent, "date +%s").await.parse::<u64>().unwrap().abs_diff(now_ns() / 1_000_000_000);
        assert!(skew < 5, "the clock is {skew} s off");
        assert_eq!(shell(&agent, "echo ok >/proof; cat /proof").await, "ok");
        // What the last session ran is gone, its noise with it.
        let until = Instant::now() + SOON;
        while agent.processes().await.unwrap().len() > 1 {
            assert!(Instant::now() < until, "{:?}", agent.processes().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        seen.push(
            shell(&agent, "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1 2>/dev/null").await,
        );
        // Attach works from the beginning, in a later session and in every clone.
        let mut follow = agent.attach(pid).await.unwrap();
        assert_eq!(follow.next().await.unwrap(), Some(nullspace_guest::host::ExecEvent::Stdout("started\n".into())));

        if seed == 1 {
            let again = Agent::connect(machine.stream().await, Duration::from_millis(1)).await;
            assert!(again.is_err(), "the port has one host at a time");
            agent.shutdown().await.unwrap();
            let until = Instant::now() + SOON;
            while machine.process.try_wait().unwrap().is_none() {
                assert!(Instant::now() < until, "the machine does not go off");
                std::thread::sleep(Duration::from_millis(10));
            }
            let clean = Command::new("/sbin/e2fsck").arg("-fn").arg(clone.join("disk")).output().unwrap();
            assert!(clean.status.success(), "{}", String::from_utf8_lossy(&clean.stdout));
        }
    }
    assert_ne!(seen[0], seen[1], "two clones draw the same random numbers");
}

#[tokio::test]
async fn an_image_of_one_static_binary_boots() {
    let folder = tempfile::tempdir().unwrap();
    disk(folder.path(), 16, |tree| {
        fs::copy(busybox(), tree.join("busybox")).unwrap();
        fs::set_permissions(tree.join("busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    });
    let machine = Machine::start(folder.path(), &folder.path().join("memory"), false);
    let (agent, info) = machine.connect().await;
    assert_eq!((info.root_ready, info.root_error), (true, None));
    agent
        .configure(Configure { hostname: "bare".into(), network: None, unix_time_ns: now_ns(), ..Configure::default() })
        .await
        .unwrap();
    let out = run(&agent, Exec { user: Some("65532:65532".into()), ..exec(&["/busybox", "id"]) }).await;
    assert_eq!(out.stdout, b"uid=65532 gid=65532\n");
    let out = run(&agent, exec(&["/busybox", "cat", "/etc/hosts", "/etc/hostname"])).await;
    assert!(String::from_utf8_lossy(&out.stdout).contains("127.0.0.1\tlocalhost"));
    match agent.exec(Exec { user: Some("app".into()), ..exec(&["/busybox"]) }).await {
        Err(AgentError::Failed(Failure { kind, .. })) => assert_eq!(kind, FailureKind::UnknownUser),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_disk_without_a_filesystem_is_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("disk"), vec![0; 1 << 20]).unwrap();
    let machine = Machine::start(folder.path(), &folder.path().join("memory"), false);
    let (agent, info) = machine.connect().await;
    assert!(!info.root_ready);
    let why = info.root_error.unwrap();
    assert!(why.contains("/dev/vda"), "{why}");
    match agent.exec(exec(&["/bin/sh"])).await {
        Err(AgentError::Failed(failure)) => assert!(failure.message.contains(&why), "{failure}"),
        other => panic!("{other:?}"),
    }
    agent.shutdown().await.unwrap();
}

/// As images made for containers have it: the command is PID 1 of a namespace that everything else joins; what is asked of
/// the kernel brings modules; what says which machine this is, is renewed.
#[tokio::test]
async fn a_first_process_has_a_namespace_and_a_machine_its_modules() {
    let folder = tempfile::tempdir().unwrap();
    disk(folder.path(), 64, |tree| {
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::create_dir_all(tree.join("etc/nullspace/resume.d")).unwrap();
        fs::create_dir_all(tree.join("sbin")).unwrap();
        fs::copy(busybox(), tree.join("bin/busybox")).unwrap();
        for applet in
            ["sh", "cat", "sleep", "ls", "ps", "ip", "losetup", "mount", "head", "hostname", "id", "kill", "awk"]
        {
            std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
        }
        // An image that has the program finds the files.
        std::os::unix::fs::symlink("../bin/busybox", tree.join("sbin/modprobe")).unwrap();
        let hook = tree.join("etc/nullspace/resume.d/hook");
        fs::write(&hook, "#!/bin/sh\necho $(id -u) $(hostname) $NULLSPACE_GENERATION >> /hooked\n").unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    });
    let machine = Machine::start(folder.path(), &folder.path().join("memory"), false);
    let (agent, info) = machine.connect().await;
    assert_eq!((info.root_ready, info.root_error), (true, None));
    let configure = Configure { hostname: "build-1".into(), unix_time_ns: now_ns(), ..Configure::default() };
    agent.configure(configure).await.unwrap();

    let script = "[ $$ = 1 ] || exit 100; sleep 1000 & echo $! > /child; mount -t tmpfs none /mnt && echo x > /mnt/seen; \
                  while :; do wait; sleep 1; done";
    shell(&agent, "busybox mkdir -p /mnt").await;
    let pid = agent.start_service(Exec { first: true, ..sh(script) }).await.unwrap();
    assert_eq!(pid, 1, "the pid that it has itself");
    let until = Instant::now() + SOON;
    let child: u32 = loop {
        let text = shell(&agent, "cat /child /mnt/seen 2>/dev/null; true").await;
        if let Some((child, "x")) = text.split_once('\n') {
            break child.parse().unwrap();
        }
        assert!(Instant::now() < until, "the first process does not come up: {text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // Joined: the same processes, by the same numbers, here and there.
    let seen = shell(&agent, "ps -o pid,args | awk '$2 == \"sleep\" {print $1}'").await;
    assert_eq!(seen, child.to_string());
    let listed = agent.processes().await.unwrap();
    let of =
        |pid| listed.iter().find(|process| process.pid == pid).map(|process| (process.command.clone(), process.ppid));
    assert_eq!(of(child), Some(("sleep 1000".to_owned(), 1)));
    assert!(of(1).is_some_and(|(command, ppid)| command.starts_with("sh -c") && ppid == 0), "{listed:?}");
    // Mounts are seen on both sides, so that files of the API are those of the command.
    let mut file = agent.read_file(None, "/", "/mnt/seen").await.unwrap();
    assert_eq!(file.next().await.unwrap().as_deref(), Some(&b"x\n"[..]));

    // Modules.
    let ask = "head -c 1 /dev/net/tun; head -c 1 /dev/fuse; losetup -f >/dev/null; ip link add name b0 type bridge; \
               ip link add name d0 type dummy; ls /lib/modules/*/modules.dep; cat /proc/modules";
    let loaded = shell(&agent, &format!("({ask}) 2>/dev/null; true")).await;
    for module in ["tun", "fuse", "loop", "bridge", "dummy"] {
        assert!(loaded.lines().any(|line| line.starts_with(&format!("{module} "))), "{module}: {loaded}");
    }
    assert!(loaded.contains("/modules.dep"), "modprobe finds them: {loaded}");

    // A new identity: once for one restore, with its hook and command, in the namespace; once more for another.
    let ids = "cat /proc/sys/kernel/random/boot_id /run/nullspace/generation";
    let before = shell(&agent, ids).await;
    let command = Exec { cwd: Some("/".into()), ..sh("echo $NULLSPACE_GENERATION >> /commanded") };
    let restored_as = |name: &str, seed| Restored { resume: Some(command.clone()), ..restored(name, seed) };
    agent.restored(restored_as("sb-1", 1)).await.unwrap();
    let asked_twice = restored_as("sb-2", 2);
    agent.restored(asked_twice.clone()).await.unwrap();
    let after = shell(&agent, ids).await;
    agent.restored(asked_twice).await.unwrap();
    assert_eq!(shell(&agent, ids).await, after, "asked for twice, done once");
    for (old, new) in before.lines().zip(after.lines()) {
        assert_ne!(old, new);
        assert_eq!(new.len(), 36);
    }
    let generation = after.lines().nth(1).unwrap();
    let hooked = shell(&agent, "cat /hooked").await;
    let runs: Vec<&str> = hooked.lines().collect();
    assert_eq!((runs.len(), runs[1]), (2, format!("0 sb-2 {generation}").as_str()), "{hooked}");
    assert!(shell(&agent, "cat /commanded").await.ends_with(generation));
    assert!(shell(&agent, "cat /etc/hosts").await.ends_with("127.0.1.1\tsb-2 build-1"));
    let failing = Restored { resume: Some(sh("echo no luck; exit 7")), ..restored("sb-3", 3) };
    match agent.restored(failing).await {
        Err(AgentError::Failed(failure)) => {
            assert_eq!(failure.kind, FailureKind::Resume);
            assert!(failure.message.contains("exit code 7") && failure.message.contains("no luck"), "{failure}");
        }
        other => panic!("{other:?}"),
    }

    // A trial: a new identity, and neither hooks nor command.
    let ran = "cat /hooked /commanded";
    let (ran_before, ids_before) = (shell(&agent, ran).await, shell(&agent, ids).await);
    agent.restored(Restored { trial: true, ..restored_as("sb-4", 4) }).await.unwrap();
    assert_eq!(shell(&agent, "hostname").await, "sb-4");
    assert_eq!(shell(&agent, ran).await, ran_before, "neither hook nor command ran");
    assert_ne!(shell(&agent, ids).await, ids_before);

    // Killed by the number that it is known by; with it ends what it left, and the machine goes on.
    agent.kill(child, 9).await.unwrap();
    let killed = run(&agent, sh("kill -9 $$")).await.exit;
    assert_eq!(killed, Exit { code: 137, signal: Some(9), ..Exit::default() }, "the first process lives");
    let mut beside = agent.exec(sh("echo $$; sleep 1000")).await.unwrap();
    let begun = beside.next().await.unwrap();
    assert!(matches!(begun, Some(nullspace_guest::host::ExecEvent::Stdout(_))), "{begun:?}");
    agent.kill(1, 9).await.unwrap();
    let exit = beside.collect(1000).await.unwrap().exit;
    assert_eq!(exit, Exit { code: 137, signal: Some(9), first_ended: true, ..Exit::default() });
    let until = Instant::now() + SOON;
    while !agent.processes().await.unwrap().is_empty() {
        assert!(Instant::now() < until, "{:?}", agent.processes().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_ne!(shell(&agent, "echo $$").await, "1");

    // Whether there is something to do.
    let idle = || agent.probe(Probe { check: ProbeCheck::Idle, timeout_ms: 500 });
    let burn = agent.start_service(sh("while :; do :; done")).await.unwrap();
    let (busy, told) = idle().await.unwrap();
    assert!(!busy && told.contains("% of 500 ms"), "{told}");
    agent.kill(burn, 9).await.unwrap();
    let until = Instant::now() + SOON;
    while !idle().await.unwrap().0 {
        assert!(Instant::now() < until, "the machine does not come to rest");
    }

    // Memory that runs out is told.
    let out = run(&agent, sh("head -c 1000000000 /dev/zero | busybox tail -n 1")).await;
    assert!(out.exit.code != 0 && out.exit.out_of_memory, "{:?}", out.exit);
    // The kernel's log and the clock agree to half a second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!run(&agent, sh("exit 3")).await.exit.out_of_memory);
}
