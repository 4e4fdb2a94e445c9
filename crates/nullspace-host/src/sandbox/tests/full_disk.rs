//! Pauses, snapshots and forks on a disk that is really full: a small file system of memory. Mounting it needs root; as another
//! user the test says so and passes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nullspace_api::ErrorResponseCode;
use nullspace_data::ChunkStop;
use nullspace_host_interface::{FrozenSandbox as _, Snapshot};
use nullspace_service::{Error, LiveCommands};

use super::fake::fill;
use super::{Host, SECOND, capture};

/// A mounted file system. Dropped, it is unmounted.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Small {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "small"]).arg(dir.path()).status();
        assert!(mounted.unwrap().success());
        Small(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn assert_full(error: &Error) {
    assert_eq!(error.code, ErrorResponseCode::CapacityExceeded, "{error:?}");
    assert!(error.retry_after.is_some() && error.message.contains("disk"), "{error:?}");
}

/// How the sandbox is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Pause,
    Snapshot,
    Fork,
}

async fn stored(host: &Host, how: How) -> Result<(), Error> {
    match how {
        How::Pause => capture::freeze(&host.actors, host.id, None).await.map(drop),
        How::Snapshot => capture::snapshot(&host.actors, host.id, Vec::new()).await.map(drop),
        How::Fork => capture::fork(&host.actors, host.id).await.map(drop),
    }
}

/// The sandbox answers, and all room is given back, once `ballast` is gone.
async fn goes_on(host: &Host, ballast: &Path, free: u64) {
    assert!(host.live().list_processes().await.is_ok());
    assert!(host.reports.ends.lock().unwrap().is_empty());
    std::fs::remove_file(ballast).unwrap();
    let given_back = async {
        while host.actors.files.space().unwrap().free < free || host.memory_in_use() != 64 {
            tokio::time::sleep(SECOND / 50).await;
        }
    };
    tokio::time::timeout(20 * SECOND, given_back).await.expect("something is left on the disk");
}

#[tokio::test]
async fn a_full_disk_refuses_to_store_a_sandbox_which_goes_on_and_leaves_nothing() {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("skipped: to mount a small disk needs root");
        return;
    }
    for halts in [true, false] {
        let small = Small::mount();
        let host = Host::start_in(small.path(), halts).await;
        let free = host.actors.files.space().unwrap().free;
        let on = if halts { "thaw with a time" } else { "thaw" };
        for how in [How::Pause, How::Snapshot, How::Fork] {
            // Full before: nothing stands still for it.
            fill(&small.ballast());
            host.script.asked();
            assert_full(&stored(&host, how).await.unwrap_err());
            assert!(host.script.asked().is_empty(), "{how:?}");
            goes_on(&host, &small.ballast(), free).await;

            // Full while the machine's files are written.
            *host.script.fills.lock().unwrap() = Some((small.ballast(), true));
            assert_full(&stored(&host, how).await.unwrap_err());
            assert!(host.script.asked().ends_with(&["resume", on]), "{how:?}");
            goes_on(&host, &small.ballast(), free).await;

            // Full while they become chunks, which those of a fork do not.
            *host.script.fills.lock().unwrap() = Some((small.ballast(), false));
            if how == How::Fork {
                stored(&host, how).await.unwrap();
            } else {
                assert_full(&stored(&host, how).await.unwrap_err());
            }
            assert_eq!(host.script.asked().iter().filter(|asked| **asked == "resume").count(), 1, "{how:?}");
            goes_on(&host, &small.ballast(), free).await;
            *host.script.fills.lock().unwrap() = None;
        }
        capture::snapshot(&host.actors, host.id, Vec::new()).await.unwrap();
    }
}

#[tokio::test]
async fn a_capture_stays_when_the_disk_is_full_while_it_becomes_chunks() {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("skipped: to mount a small disk needs root");
        return;
    }
    let small = Small::mount();
    let host = Host::start_in(small.path(), true).await;
    let frozen = capture::freeze(&host.actors, host.id, None).await.unwrap();
    let captured = frozen.captured().clone();
    Box::new(frozen).end().await;
    let (files, folder) = (&host.actors.files, captured.folder.as_str());
    fill(&small.ballast());
    let full = files.publish_capture(folder, Vec::new(), ChunkStop::default()).await.unwrap_err();
    assert!(full.is_storage_full(), "{full:?}");
    // It can be resumed meanwhile.
    let pin = files.open_snapshot(folder, None).await.unwrap();
    assert!(pin.path().join("memory").is_file());
    drop(pin);
    std::fs::remove_file(small.ballast()).unwrap();
    let published = files.publish_capture(folder, Vec::new(), ChunkStop::default()).await.unwrap();
    files.drop_capture(folder).await.unwrap();
    let snapshot = Snapshot {
        folder: captured.folder.clone(),
        streams: Some(published.streams),
        summary: captured.summary,
        ..host.template.clone()
    };
    host.resume(host.id, snapshot).await;
    assert!(host.live().list_processes().await.is_ok());
}
