//! What a running machine has written, taken while it runs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use nullspace_guest::host::Agent;
use nullspace_vmm::{Disk, DiskChanges, Network, Vm, VmmError};

use crate::stage::{DISK_BYTES, Template, exec, greet, shell, with_driver};

#[test]
fn what_a_running_machine_has_written_is_taken_while_it_runs() {
    with_driver(|stage| async move {
        let machine = stage.boot("captured", Network::Isolated).await;
        let agent = greet(&*machine).await;
        let layer = stage.dir.path().join("layer");
        fs::copy(&stage.base, &layer).unwrap();
        File::options().write(true).open(&layer).unwrap().set_len(DISK_BYTES).unwrap();

        shell(&agent, "dd if=/dev/urandom of=/root/one bs=1k count=700 2>/dev/null; echo other >/root/two").await;
        let sum = shell(&agent, "sha256sum </root/one").await;
        apply(&capture(&*machine, &agent).await, &layer);
        assert_sound(&layer);
        assert_eq!(read(&layer, "/root/two"), b"other\n");
        assert_eq!(read(&layer, "/root/one").len(), 700 << 10);
        fs::write(stage.dir.path().join("one"), read(&layer, "/root/one")).unwrap();
        let found =
            Command::new("sha256sum").stdin(File::open(stage.dir.path().join("one")).unwrap()).output().unwrap();
        assert_eq!(String::from_utf8(found.stdout).unwrap().trim_end(), sum);

        // The machine goes on. The next capture has what came since, and little else.
        shell(&agent, "rm /root/one; dd if=/dev/urandom of=/root/three bs=1k count=300 2>/dev/null").await;
        let changes = capture(&*machine, &agent).await;
        let taken: u64 = changes.extents().iter().filter(|extent| !extent.zero).map(|extent| extent.len).sum();
        assert!((300 << 10..1500 << 10).contains(&taken), "{taken} bytes");
        apply(&changes, &layer);
        assert_sound(&layer);
        assert_eq!(read(&layer, "/root/one"), b"");
        assert_eq!(read(&layer, "/root/three").len(), 300 << 10);

        // A snapshot then lies over what was captured.
        let service =
            "n=0; while true; do n=$((n+1)); echo $n >/root/ticks.new; mv /root/ticks.new /root/ticks; sleep 0.2; done";
        let service = agent.start_service(exec(service)).await.unwrap();
        shell(&agent, "echo built >/root/mark; while [ ! -e /root/ticks ]; do sleep 0.1; done").await;
        let (dir, summary) = stage.snapshot(&*machine, agent, "template").await;
        machine.kill().await.unwrap();
        drop(machine);
        let template = Template { dir, summary, base: layer.clone(), service, ticks: 0 };
        let (machine, agent) = stage.restore(&template, "resumed").await;
        let seen =
            "echo 3 >/proc/sys/vm/drop_caches; cat /root/mark /root/two; wc -c </root/three; ls /root/one 2>&1 | wc -l";
        assert_eq!(shell(&agent, seen).await, "built\nother\n307200\n1");
        let found = agent.processes().await.unwrap().into_iter().any(|process| process.pid == template.service);
        assert!(found, "the service");
        let error = machine.capture().await.unwrap_err();
        assert!(matches!(error, VmmError::Refused { .. }), "{error}");
        machine.kill().await.unwrap();
        drop((machine, agent));
        stage.nothing_is_left();
    });
}

#[test]
fn nothing_written_is_nothing_captured_and_a_direct_disk_has_no_captures() {
    with_driver(|stage| async move {
        let machine = stage.boot("idle", Network::Isolated).await;
        let agent = greet(&*machine).await;
        capture(&*machine, &agent).await;
        let changes = capture(&*machine, &agent).await;
        let taken: u64 = changes.extents().iter().map(|extent| extent.len).sum();
        // The superblock says when it was written.
        assert!(taken <= 64 << 10, "{taken} bytes");
        machine.kill().await.unwrap();
        drop((machine, agent));

        let own = stage.dir.path().join("own");
        fs::copy(&stage.base, &own).unwrap();
        let machine = stage.boot_on("direct", Network::Isolated, Disk::Direct { path: own }).await;
        let agent = greet(&*machine).await;
        agent.freeze().await.unwrap();
        assert!(matches!(machine.capture().await, Err(VmmError::Refused { .. })));
        machine.kill().await.unwrap();
        drop((machine, agent));
        stage.nothing_is_left();
    });
}

async fn capture(machine: &dyn Vm, agent: &Agent) -> DiskChanges {
    agent.freeze().await.unwrap();
    let changes = machine.capture().await.unwrap();
    agent.thaw().await.unwrap();
    assert_eq!(changes.disk_bytes(), DISK_BYTES);
    changes
}

fn apply(changes: &DiskChanges, layer: &Path) {
    let layer = File::options().write(true).open(layer).unwrap();
    for extent in changes.extents() {
        let mut bytes = vec![1; extent.len as usize];
        changes.read_at(extent.offset, &mut bytes).unwrap();
        layer.write_all_at(&bytes, extent.offset).unwrap();
    }
}

/// A frozen filesystem needs no recovery.
fn assert_sound(layer: &Path) {
    let checked = Command::new("/sbin/e2fsck").arg("-fn").arg(layer).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// A file of the filesystem in an image; nothing when it is not there.
fn read(layer: &Path, path: &str) -> Vec<u8> {
    let output = Command::new("/sbin/debugfs").arg("-R").arg(format!("cat {path}")).arg(layer).output().unwrap();
    assert!(output.status.success());
    output.stdout
}
