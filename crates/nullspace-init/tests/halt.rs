//! A guest that is halted for a snapshot: its processes stand still from then until the resumed guest has its identity.
//!
//! Needs what `qemu.rs` needs.

#![allow(unsafe_code, reason = "the test reads the processor's clock")]
// clippy.toml lets tests unwrap, and does not count their helpers.
#![allow(clippy::unwrap_used)]

mod machine;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use machine::{Machine, SOON, busybox, disk, now_ns, restored, sh, shell};
use nullspace_guest::host::{Agent, AgentError, ExecEvent, ExecSession};
use nullspace_guest::message::{Configure, Exec, GuestNetwork};

/// The clock of the guest before its snapshot.
const LONG_AGO: u64 = 1_700_000_000;

/// The number of lines of the witness.
async fn lines(agent: &Agent) -> usize {
    shell(agent, "cat /dev/shm/witness").await.lines().count()
}

/// Checks that the witness writes nothing, for half a second.
async fn stands_still(agent: &Agent) -> usize {
    let before = lines(agent).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(lines(agent).await, before, "the guest's processes run");
    before
}

async fn writes_on(agent: &Agent, from: usize) {
    let until = Instant::now() + SOON;
    while lines(agent).await < from + 3 {
        assert!(Instant::now() < until, "the guest's processes stand still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The next output of a followed command.
async fn said(session: &mut ExecSession) -> String {
    match tokio::time::timeout(SOON, session.next()).await.expect("it says nothing").unwrap() {
        Some(ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes)) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn no_process_runs_from_a_halt_until_the_guest_has_its_identity() {
    let folder = tempfile::tempdir().unwrap();
    disk(folder.path(), 64, |tree| {
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::copy(busybox(), tree.join("bin/busybox")).unwrap();
        for applet in ["sh", "cat", "nc", "sleep", "date", "hostname"] {
            std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
        }
    });
    let memory = folder.path().join("memory");
    let mut machine = Machine::start(folder.path(), &memory, false);
    let (agent, _) = machine.connect().await;
    let network = GuestNetwork { address: "10.0.2.15/24".into(), gateway: None, dns: vec!["10.0.2.3".into()] };
    let configure = Configure {
        hostname: "before".into(),
        network: Some(network),
        unix_time_ns: LONG_AGO * 1_000_000_000,
        ..Configure::default()
    };
    agent.configure(configure).await.unwrap();

    // The witness, in a namespace of its own, writes who and when it is. The others have a connection each.
    let witness = "while :; do echo $(date +%s) $(hostname) >> /dev/shm/witness; sleep 0.02; done";
    agent.start_service(Exec { first: true, ..sh(witness) }).await.unwrap();
    let with_stdin = |script: &str| Exec { stdin: true, ..sh(script) };
    let listener = agent.start_service(with_stdin("exec nc -l -p 99")).await.unwrap();
    let local = agent.start_service(with_stdin("until nc 127.0.0.1 99; do sleep 0.1; done")).await.unwrap();
    let remote = agent.start_service(with_stdin("nc 10.0.2.100 7; echo ended")).await.unwrap();
    let mut remote_says = agent.attach(remote).await.unwrap();
    agent.feed_service(remote, b"echo\n", SOON).await.unwrap();
    assert_eq!(said(&mut remote_says).await, "echo\n");
    let mut listener_says = agent.attach(listener).await.unwrap();
    agent.feed_service(local, b"one\n", SOON).await.unwrap();
    assert_eq!(said(&mut listener_says).await, "one\n");
    writes_on(&agent, 0).await;

    // A machine that goes on: the same session, over the same stream and over another.
    for again in [false, true] {
        let began = Instant::now();
        agent.halt().await.unwrap();
        println!("halt: {:?}", began.elapsed());
        if again {
            agent.part().await.unwrap();
            let open = async || Ok::<_, AgentError>(machine.stream().await);
            agent.rejoin(open, SOON).await.unwrap();
        }
        let began = Instant::now();
        agent.thaw().await.unwrap();
        println!("thaw: {:?}", began.elapsed());
        agent.feed_service(remote, b"echo\n", SOON).await.unwrap();
        assert_eq!(said(&mut remote_says).await, "echo\n");
        let from = lines(&agent).await;
        writes_on(&agent, from).await;
    }

    // A second session sees that they stand still, and lets them go on.
    agent.halt().await.unwrap();
    agent.part().await.unwrap();
    drop((remote_says, listener_says, agent));
    let (agent, _) = machine.connect().await;
    let from = stands_still(&agent).await;
    agent.thaw().await.unwrap();
    writes_on(&agent, from).await;

    agent.halt().await.unwrap();
    agent.part().await.unwrap();
    machine.ask("stop", serde_json::json!({}));
    let state = folder.path().join("state");
    machine.migrate("migrate", &format!("exec:cat > {}", state.display()));
    drop((agent, machine));
    let clean = Command::new("/sbin/e2fsck").arg("-fn").arg(folder.path().join("disk")).output().unwrap();
    assert!(clean.status.success(), "{}", String::from_utf8_lossy(&clean.stdout));

    let mut machine = Machine::start(folder.path(), &memory, true);
    machine.migrate("migrate-incoming", &format!("exec:cat {}", state.display()));
    machine.ask("cont", serde_json::json!({}));
    let (agent, _) = machine.connect().await;
    let from = stands_still(&agent).await;
    let began = Instant::now();
    agent.restored(restored("after", 1)).await.unwrap();
    println!("restored: {:?}", began.elapsed());
    let since = now_ns() / 1_000_000_000 - began.elapsed().as_secs() - 1;
    writes_on(&agent, from).await;
    let seen = shell(&agent, "cat /dev/shm/witness").await;
    // The line that was being written may be of both.
    for (number, line) in seen.lines().enumerate().filter(|(number, _)| *number != from) {
        let (time, name) = line.split_once(' ').unwrap();
        let time: u64 = time.parse().unwrap();
        if number < from {
            assert!((LONG_AGO..LONG_AGO + 3600).contains(&time) && name == "before", "{number} of {from}: {line}");
        } else {
            assert!(time >= since && name == "after", "{number} of {from}: {line}");
        }
    }

    // The connection to another machine is over, and its process knows; the one in the guest lives.
    let mut remote_says = agent.attach(remote).await.unwrap();
    let mut all = String::new();
    while !all.ends_with("ended\n") {
        all += &said(&mut remote_says).await;
    }
    agent.feed_service(local, b"two\n", SOON).await.unwrap();
    let mut listener_says = agent.attach(listener).await.unwrap();
    let mut all = String::new();
    while all != "one\ntwo\n" {
        all += &said(&mut listener_says).await;
    }

    // It can be halted again.
    agent.halt().await.unwrap();
    agent.thaw().await.unwrap();
    let from = lines(&agent).await;
    writes_on(&agent, from).await;
    let usage = agent.usage().await.unwrap();
    assert!(usage.received > 0 && usage.sent > 0 && usage.memory_total < 256 << 20, "{usage:?}");
}
