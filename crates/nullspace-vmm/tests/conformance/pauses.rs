//! Machines that are paused, snapshotted and restored again and again.

use std::fs;

use nullspace_guest::host::Agent;
use nullspace_vmm::Network;

use crate::stage::{Stage, Template, connected, exec, greet_running, shell, with_driver};

/// Most disk overlays in a snapshot.
const MOST_OVERLAYS: usize = 4;
/// Counts in its own memory, on the disk and in a file in memory: the disk first, and durably. Each round checks what the
/// disk says against what it remembers.
const WRITER: &str = "n=0; while true; do \
    [ $n = 0 ] || [ \"$(cat /root/count)\" = $n ] || echo \"$(cat /root/count) is not $n\" >>/root/torn; \
    n=$((n+1)); echo $n >/root/count.new; fsync /root/count.new; mv /root/count.new /root/count; echo $n >/run/count.new; \
    mv /run/count.new /run/count; done";

#[test]
fn pauses_in_a_row_tear_nothing() {
    with_driver(|stage| async move {
        let template = stage.template(Network::Isolated).await;
        let (machine, agent) = stage.restore(&template, "pause-0").await;
        let writer = agent.start_service(exec(WRITER)).await.unwrap();
        shell(&agent, "while [ ! -e /run/count ]; do sleep 0.1; done").await;
        let (mut machine, mut agent, mut last) = (machine, agent, template);
        let mut counted = 0;
        for pause in 1..=pauses() {
            // Blocks of the disk that this pause alone has written, and pages of memory.
            let own = format!(
                "echo {pause} >/root/pause-{pause}; dd if=/dev/urandom of=/run/noise bs=4k count=64 2>/dev/null"
            );
            shell(&agent, &own).await;
            let (dir, summary) = stage.snapshot(&*machine, agent, &format!("pause-{pause}")).await;
            machine.kill().await.unwrap();
            let overlays = summary.files.iter().filter(|file| file.ends_with(".qcow2")).count();
            assert!(overlays <= MOST_OVERLAYS, "{:?}", summary.files);
            // The snapshot before is not needed any more: it may be gone.
            fs::remove_dir_all(&last.dir).unwrap();
            last = Template { dir, summary, ..last };
            (machine, agent) = stage.restore(&last, &format!("paused-{pause}")).await;
            let now = assert_untorn(&agent, writer).await;
            assert!(now >= counted, "pause {pause}: it counted to {counted}, and now to {now}");
            counted = now;
        }
        let files: Vec<_> = (1..=pauses()).map(|pause| format!("/root/pause-{pause}")).collect();
        let expected: Vec<_> = (1..=pauses()).map(|pause| pause.to_string()).collect();
        assert_eq!(shell(&agent, &format!("cat {}", files.join(" "))).await, expected.join("\n"));
        assert_eq!(shell(&agent, "cat /root/mark").await, "built");
        machine.kill().await.unwrap();
        drop((machine, agent));
        stage.nothing_is_left();
    });
}

#[test]
fn a_machine_goes_on_after_each_of_its_snapshots_and_each_has_its_own_moment() {
    with_driver(|stage| async move {
        let template = stage.template(Network::Isolated).await;
        let (machine, mut agent) = stage.restore(&template, "source").await;
        let writer = agent.start_service(exec(WRITER)).await.unwrap();
        shell(&agent, "while [ ! -e /run/count ]; do sleep 0.1; done").await;
        let mut taken = Vec::new();
        for moment in ["first", "second", "third"] {
            shell(&agent, &format!("echo {moment} >/root/moment; echo {moment} >/run/moment")).await;
            let (dir, summary) = stage.snapshot(&*machine, agent, moment).await;
            machine.resume().await.unwrap();
            agent = greet_running(&*machine).await;
            agent.thaw().await.unwrap();
            assert_untorn(&agent, writer).await;
            taken.push((moment, Template { dir, summary, base: template.base.clone(), ..template }));
        }
        machine.kill().await.unwrap();
        drop((machine, agent));
        for (moment, snapshot) in &taken {
            let (machine, agent) = stage.restore(snapshot, &format!("of-{moment}")).await;
            let seen = "echo 3 >/proc/sys/vm/drop_caches; cat /root/moment /run/moment";
            assert_eq!(shell(&agent, seen).await, format!("{moment}\n{moment}"));
            assert_untorn(&agent, writer).await;
            machine.kill().await.unwrap();
        }
        stage.nothing_is_left();
    });
}

#[test]
fn two_machines_go_on_from_one_snapshot_of_a_restored_machine() {
    with_driver(|stage| async move {
        let template = stage.template(connected()).await;
        let (machine, agent) = stage.restore(&template, "source").await;
        shell(&agent, "echo forked >/root/level; dd if=/dev/urandom of=/run/big bs=64k count=16 2>/dev/null").await;
        let sum = shell(&agent, "sha256sum </run/big").await;
        let fork = fork(&stage, &*machine, agent, &template).await;
        // The source runs beside both.
        machine.resume().await.unwrap();
        let source = greet_running(&*machine).await;
        source.thaw().await.unwrap();
        let before = fork.fingerprint();
        let ((a, one), (b, two)) = tokio::join!(stage.restore(&fork, "fork-a"), stage.restore(&fork, "fork-b"));
        for agent in [&one, &two] {
            let found = agent.processes().await.unwrap().into_iter().any(|process| process.pid == template.service);
            assert!(found, "the service");
            assert_eq!(shell(agent, "cat /root/level /root/mark").await, "forked\nbuilt");
            assert_eq!(shell(agent, "sha256sum </run/big").await, sum);
        }
        shell(&one, "echo a >/root/level; echo a >/run/level; sync").await;
        shell(&source, "echo source >/root/level; sync").await;
        let seen = "echo 3 >/proc/sys/vm/drop_caches; cat /root/level; cat /run/level 2>/dev/null || echo none";
        assert_eq!(shell(&two, seen).await, "forked\nnone");
        assert_eq!(shell(&one, seen).await, "a\na");
        assert_ne!(shell(&one, "cat /etc/machine-id").await, shell(&two, "cat /etc/machine-id").await);
        for machine in [&machine, &a, &b] {
            machine.kill().await.unwrap();
        }
        assert_eq!(fork.fingerprint(), before, "a restored machine changed its snapshot");
        drop((machine, a, b, source, one, two));
        stage.nothing_is_left();
    });
}

async fn fork(stage: &Stage, machine: &dyn nullspace_vmm::Vm, agent: Agent, template: &Template) -> Template {
    let (dir, summary) = stage.snapshot(machine, agent, "fork").await;
    Template { dir, summary, base: template.base.clone(), ..*template }
}

/// Number of pauses in a row.
fn pauses() -> u32 {
    if std::env::var_os("NULLSPACE_TEST_LONG").is_some() {
        return 30;
    }
    std::env::var("NULLSPACE_TEST_CYCLES").map_or(10, |cycles| cycles.parse::<u32>().unwrap().min(10))
}

/// Stops the writer, and compares what is on the disk with what is in memory. The writer writes to the disk first, so the
/// disk may be one ahead. Returns the number that the disk has.
async fn assert_untorn(agent: &Agent, writer: u32) -> u64 {
    let script = format!(
        "kill -STOP -{writer} 2>/dev/null || kill -STOP {writer}; sleep 0.1; sync; echo 3 >/proc/sys/vm/drop_caches; \
         cat /root/count /run/count; cat /root/torn 2>/dev/null; kill -CONT -{writer} 2>/dev/null || kill -CONT {writer}"
    );
    let seen = shell(agent, &script).await;
    let numbers: Vec<u64> = seen.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("torn: {seen}"))).collect();
    let &[disk, memory] = numbers.as_slice() else { panic!("torn: {seen}") };
    assert!(disk == memory || disk == memory + 1, "the disk has {disk}, the memory {memory}");
    disk
}
