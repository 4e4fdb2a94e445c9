//! What every driver promises, with real guests: the same tests for each, through the trait alone.
//!
//! `NULLSPACE_VMM=qemu` (the default) or `firecracker` chooses the driver. Firecracker needs a KVM that runs guests and
//! root; `tests/nested/run.sh` provides both on any machine. Where the files are:
//!
//! | variable | what | default |
//! |---|---|---|
//! | `NULLSPACE_TEST_GUEST` | folder made by `scripts/guest-image.sh` | `target/guest` |
//! | `NULLSPACE_TEST_FIRECRACKER` | folder made by `scripts/fetch-firecracker.sh` | `target/firecracker` |
//! | `NULLSPACE_TEST_BUSYBOX` | a static busybox for the guest | `/bin/busybox` |
//! | `NULLSPACE_TEST_COPY_UP_TO` | `FirecrackerConfig::copy_up_to` | its default |
//! | `NULLSPACE_TEST_PLAIN` | set: Firecracker without jailer and network, as without root | |
//! | `NULLSPACE_TEST_CYCLES` | machines that the leak test restores and ends (`make test-long`: 50) | 6 |
//! | `NULLSPACE_TEST_LONG` | set: thirty pauses in a row, else ten, or as many as cycles | |
//! | `NULLSPACE_TEST_COMPLETE` | set: a file that is missing is a failure, not a reason to skip | |
//!
//! Machines are made in `TMPDIR`. Without the guest's files the tests say so and pass.

// The stage is test code too, which clippy's exception for tests does not see.
#![allow(clippy::unwrap_used)]

mod capture;
mod pauses;
mod stage;

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use nullspace_guest::host::Agent;
use nullspace_vmm::{Network, VmmError};

use stage::*;

#[test]
fn a_booted_guest_sees_its_disk_and_its_commands_run() {
    with_driver(|stage| async move {
        let machine = stage.boot("booted", Network::Isolated).await;
        assert_eq!(machine.id(), "booted");
        assert_eq!(machine.guest_network(), None);
        let agent = greet(&*machine).await;
        // The disk is larger than its image; the filesystem grows when asked.
        assert_eq!(shell(&agent, "cat /sys/class/block/vda/size").await, (DISK_BYTES / 512).to_string());
        let grown = agent.grow_root().await.unwrap();
        assert!(grown > BASE_BYTES && grown <= DISK_BYTES, "{grown}");
        assert_eq!(shell(&agent, "echo hello; id -u; nproc").await, "hello\n0\n1");
        let memory: u64 = shell(&agent, "awk '/MemTotal/ {print $2}' /proc/meminfo").await.parse().unwrap();
        assert!((80 * 1024..=u64::from(MEMORY_MIB) * 1024).contains(&memory), "{memory} KiB");
        let failed = agent.exec_collect(exec("exit 41"), 100).await.unwrap();
        assert_eq!(failed.exit.code, 41);

        // A second stream takes over from the first.
        let second = greet(&*machine).await;
        assert_eq!(shell(&second, "echo again").await, "again");
        assert!(tokio::time::timeout(BOOT, agent.closed()).await.is_ok());

        // Pausing stops the guest, resuming lets it go on; both may be repeated.
        machine.pause().await.unwrap();
        machine.pause().await.unwrap();
        let stopped = tokio::time::timeout(Duration::from_millis(700), shell(&second, "echo paused")).await;
        assert!(stopped.is_err(), "a paused guest answered");
        machine.resume().await.unwrap();
        machine.resume().await.unwrap();
        assert_eq!(shell(&second, "echo resumed").await, "resumed");

        // The guest ends by itself.
        second.shutdown().await.unwrap();
        tokio::time::timeout(RESTORE, machine.exited()).await.expect("the machine's end");
        assert!(machine.pause().await.is_err());
        machine.kill().await.unwrap();
        drop(machine);
        stage.nothing_is_left();
    });
}

#[test]
fn two_machines_go_on_from_one_snapshot_each_on_its_own() {
    with_driver(|stage| async move {
        let template = stage.template(connected()).await;
        let before = template.fingerprint();
        let restoring = Instant::now();
        let (a, b) = tokio::join!(stage.restore(&template, "twin-a"), stage.restore(&template, "twin-b"));
        // The guests' clocks are set when a restore begins, and tell whole seconds.
        let late = restoring.elapsed().as_secs() + 2;
        let ((a, agent_a), (b, agent_b)) = (a, b);

        // The very process that ran before the snapshot still runs, in both.
        for agent in [&agent_a, &agent_b] {
            let processes = agent.processes().await.unwrap();
            let service = processes.iter().find(|process| process.pid == template.service).expect("the service");
            assert!(service.running);
            assert_eq!(service.starts, Some(1));
            assert_eq!(shell(agent, "cat /root/mark; cat /run/starts").await, "built\nstart");
        }
        let ticks = |agent: Agent| async move { shell(&agent, "cat /run/ticks").await.parse::<u64>().unwrap() };
        let earlier = (ticks(agent_a.clone()).await, ticks(agent_b.clone()).await);
        assert!(earlier.0 >= template.ticks && earlier.1 >= template.ticks);
        for (agent, earlier) in [(&agent_a, earlier.0), (&agent_b, earlier.1)] {
            let deadline = Instant::now() + RESTORE;
            while ticks(agent.clone()).await <= earlier {
                assert!(Instant::now() < deadline, "the service stands still");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }

        // They are two: names, ids, random numbers; the time is now.
        let identity = "hostname; cat /etc/machine-id; cat /proc/sys/kernel/random/uuid; date +%s";
        let (one, two) = (shell(&agent_a, identity).await, shell(&agent_b, identity).await);
        let (one, two): (Vec<_>, Vec<_>) = (one.lines().collect(), two.lines().collect());
        for (what, (x, y)) in ["hostname", "machine-id", "random"].iter().zip(one.iter().zip(&two)) {
            assert_ne!(x, y, "{what}");
        }
        for lines in [&one, &two] {
            let guest: u64 = lines[3].parse().unwrap();
            let host = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            assert!(
                (host.saturating_sub(late)..=host + 1).contains(&guest),
                "guest {guest}, host {host}, {late} s late at most"
            );
        }

        // What one writes the other does not see, nor does the template.
        shell(&agent_a, "echo a >/root/own; sync").await;
        assert_eq!(shell(&agent_b, "cat /root/own 2>/dev/null || echo none").await, "none");
        shell(&agent_b, "dd if=/dev/urandom of=/root/big bs=1M count=8 2>/dev/null; sync").await;
        assert_eq!(shell(&agent_a, "ls /root/big 2>/dev/null || echo none").await, "none");

        // Both have the address that the snapshot holds, and each its own gateway.
        if let Some(network) = a.guest_network() {
            let gateway = network.gateway.unwrap();
            let ping = format!("ping -c 1 -W 5 {gateway} >/dev/null && echo reached");
            let (one, two) = tokio::join!(shell(&agent_a, &ping), shell(&agent_b, &ping));
            assert_eq!((one.as_str(), two.as_str()), ("reached", "reached"));
        }

        // The host counts what each has used.
        let used = a.usage().await.expect("the usage of a machine that runs");
        assert!(used.cpu_ns > 1_000_000, "{used:?}");
        assert!((1 << 20..u64::from(MEMORY_MIB + 400) << 20).contains(&used.private_bytes), "{used:?}");
        if a.guest_network().is_some() {
            let network = used.network.expect("the traffic of a card with a network");
            // The packets of one ping.
            assert!(network.received_bytes >= 84 && network.sent_bytes >= 84, "{used:?}");
        }
        a.kill().await.unwrap();
        assert_eq!(a.usage().await, None);
        assert_eq!(shell(&agent_b, "echo alive").await, "alive");
        b.kill().await.unwrap();
        assert_eq!(template.fingerprint(), before, "a restored machine changed its template");
        drop((a, b, agent_a, agent_b));
        stage.nothing_is_left();
    });
}

#[test]
fn a_restored_machine_can_be_snapshotted_and_lives_on() {
    with_driver(|stage| async move {
        let template = stage.template(Network::Isolated).await;
        let (machine, agent) = stage.restore(&template, "first").await;
        shell(&agent, "echo second >/root/level").await;
        let (dir, summary) = stage.snapshot(&*machine, agent, "second").await;
        machine.resume().await.unwrap();
        let agent = greet_running(&*machine).await;
        agent.thaw().await.unwrap();
        assert_eq!(shell(&agent, "echo third >/root/level; cat /root/level").await, "third");
        machine.kill().await.unwrap();

        let second = Template { dir, summary, ..template };
        let (machine, agent) = stage.restore(&second, "of-second").await;
        assert_eq!(shell(&agent, "cat /root/level /root/mark").await, "second\nbuilt");
        machine.kill().await.unwrap();
    });
}

#[test]
fn a_snapshot_resumes_without_the_kernel_and_initramfs_that_it_was_booted_from() {
    with_driver(|stage| async move {
        let template = stage.template(Network::Isolated).await;
        let first = stage.vmm.compatibility().clone();
        let stage = Stage { vmm: stage.driver_with_another_guest_image().await, ..stage };
        let second = stage.vmm.compatibility().clone();
        assert_ne!(first.guest, second.guest);
        let (machine, agent) = stage.restore(&template, "elsewhere").await;
        assert_eq!(shell(&agent, "cat /root/mark /run/starts").await, "built\nstart");

        // A snapshot of it is still of the first kernel.
        shell(&agent, "echo elsewhere >/root/mark").await;
        let (dir, summary) = stage.snapshot(&*machine, agent, "second").await;
        assert_eq!(summary.compatibility, nullspace_vmm::Compatibility { guest: first.guest, ..second });
        machine.kill().await.unwrap();
        let (machine, agent) = stage.restore(&Template { dir, summary, ..template }, "again").await;
        assert_eq!(shell(&agent, "cat /root/mark /run/starts").await, "elsewhere\nstart");
        machine.kill().await.unwrap();
        drop((machine, agent));
        stage.nothing_is_left();
    });
}

#[test]
fn a_snapshot_from_another_host_is_refused_and_a_running_machine_gives_none() {
    with_driver(|stage| async move {
        let template = stage.template(Network::Isolated).await;
        let mut spec = stage.restore_spec(&template, "refused");
        spec.summary.compatibility.accelerator = "another".into();
        match stage.vmm.restore(spec).await.map(drop) {
            Err(VmmError::Incompatible(text)) => assert!(text.contains("accelerator is another"), "{text}"),
            other => panic!("{other:?}"),
        }
        let (machine, _agent) = stage.restore(&template, "running").await;
        let dir = stage.dir.path().join("none");
        fs::create_dir(&dir).unwrap();
        assert!(matches!(machine.snapshot(&dir).await, Err(VmmError::Refused { .. })));
        drop(machine);
        stage.nothing_is_left();
    });
}

#[test]
fn machines_come_and_go_and_nothing_is_left() {
    with_driver(|stage| async move {
        let template = stage.template(connected()).await;
        let cycles: u32 = std::env::var("NULLSPACE_TEST_CYCLES").map_or(6, |n| n.parse().unwrap());
        // The first machine brings pools to their size.
        let (machine, _agent) = stage.restore(&template, "warm").await;
        machine.kill().await.unwrap();
        drop(machine);
        stage.nothing_is_left();
        let before = stage.traces();
        let mut times = Vec::new();
        for n in 0..cycles {
            let started = Instant::now();
            let (machine, agent) = stage.restore(&template, &format!("cycle-{n}")).await;
            assert_eq!(shell(&agent, "echo ok").await, "ok");
            times.push(started.elapsed());
            // By turns: ended, dropped, lost.
            match n % 3 {
                0 => machine.kill().await.unwrap(),
                1 => drop(machine),
                _ => drop((machine, agent)),
            }
        }
        stage.nothing_is_left();
        assert_eq!(stage.traces(), before);
        times.sort_unstable();
        if let Some(median) = times.get(times.len() / 2) {
            eprintln!("restore to first exec: median {} ms of {cycles}", median.as_millis());
        }
    });
}
