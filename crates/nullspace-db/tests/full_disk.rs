//! A database on a disk that is really full: a small file system of memory. Mounting it needs root; as another user the test says
//! so and passes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{File, remove_file};
use std::path::Path;
use std::process::Command;

use jiff::Timestamp;
use nullspace_db::{Health, NamespaceKind, SqliteStore, Tenants};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use serde_json::json;
use tempfile::TempDir;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// A mounted file system. Dropped, it is unmounted.
struct Small(TempDir);

impl Small {
    fn mount() -> Small {
        let dir = TempDir::new().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "small"]).arg(dir.path()).status();
        assert!(mounted.unwrap().success());
        Small(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all that is free.
    fn fill(&self) {
        let stat = statvfs(self.path()).unwrap();
        let ballast = File::create(self.path().join("ballast")).unwrap();
        fallocate(&ballast, FallocateFlags::empty(), 0, stat.f_bavail * stat.f_frsize).unwrap();
    }

    fn make_space(&self) {
        remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_as_such_and_writes_work_once_it_has_space() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: to mount a small disk needs root");
        return;
    }
    let disk = Small::mount();
    let store = SqliteStore::open(&disk.path().join("nullspace.db")).await.unwrap();
    // Each round stopped all writes for good in about every second try, once.
    for round in 0..11 {
        store.ping(NOW).await.unwrap();
        disk.fill();
        let long = json!(format!("{round} {}", "x".repeat(1 << 20)));
        let write = store.put_setting("long", &long, NOW).await.unwrap_err();
        assert!(write.is_storage_full() && write.is_retryable(), "round {round}: {write:?}");
        // What the readiness probe asks. So small a write may work: the log's file is written over again and again.
        for _ in 0..5 {
            if let Err(probe) = store.ping(NOW).await {
                assert!(probe.is_storage_full() && probe.is_retryable(), "round {round}: {probe:?}");
            }
        }
        assert_eq!(store.get_setting("kept").await.unwrap(), (round > 0).then(|| json!(round - 1)), "reading goes on");
        disk.make_space();
        store.ping(NOW).await.unwrap();
        store.ensure_tenant(&format!("tenant {round}"), NamespaceKind::User, NOW).await.unwrap();
        store.put_setting("kept", &json!(round), NOW).await.unwrap();
    }
    assert_eq!(store.list_tenants().await.unwrap().iter().filter(|t| t.name.starts_with("tenant ")).count(), 11);
    assert_eq!(store.get_setting("long").await.unwrap(), None, "half of a write is there");
    store.close().await;
}
