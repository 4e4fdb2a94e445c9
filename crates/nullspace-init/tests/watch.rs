//! Watched directories of the real agent, on this host's files in a folder of the test.

// clippy.toml lets tests unwrap, and does not count their helpers.
#![allow(clippy::unwrap_used, dead_code)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use common::{Guest, SOON};
use nullspace_guest::host::{Agent, AgentError, DirWatch};
use nullspace_guest::message::{Failure, FailureKind};
use nullspace_guest::watch::{MAX_WATCHED_DIRECTORIES, WatchCall, WatchEvent};

/// Tests count the agent's watches, which are this process's: one at a time.
static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Desk {
    agent: Agent,
    folder: tempfile::TempDir,
    _one: tokio::sync::MutexGuard<'static, ()>,
}

impl Desk {
    async fn new() -> Desk {
        let _one = ONE.lock().await;
        Desk { agent: Guest::new().connect().await, folder: tempfile::tempdir().unwrap(), _one }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn watch(&self, path: &str, recursive: bool) -> Result<DirWatch, AgentError> {
        let user = Some(format!("{}:{}", nix::unistd::geteuid(), nix::unistd::getegid()));
        let cwd = Some(self.folder.path().to_str().unwrap().to_owned());
        self.agent.watch(WatchCall { path: path.into(), recursive, user, cwd }).await
    }
}

/// The next event as `kind name` or `kind from > name`.
async fn next(watch: &mut DirWatch) -> String {
    let event = tokio::time::timeout(SOON, watch.next()).await.expect("nothing is told").unwrap().unwrap();
    shown(&event)
}

fn shown(WatchEvent { kind, name, from }: &WatchEvent) -> String {
    match from {
        None => format!("{kind:?} {name}"),
        Some(from) => format!("{kind:?} {from} > {name}"),
    }
}

/// All events until one that is told for `path`.
async fn until(watch: &mut DirWatch, last: &str) -> Vec<String> {
    let mut told = Vec::new();
    loop {
        let event = next(watch).await;
        let over = event == last;
        told.push(event);
        if over {
            return told;
        }
    }
}

#[tokio::test]
async fn changes_of_one_directory_are_told() {
    let desk = Desk::new().await;
    fs::create_dir_all(desk.path("d/sub")).unwrap();
    let mut watch = desk.watch("d", false).await.unwrap();
    assert_eq!(watch.path, desk.path("d").to_str().unwrap());
    fs::write(desk.path("d/sub/inner"), "not told").unwrap();
    fs::write(desk.path("d/a"), "x").unwrap();
    assert_eq!(until(&mut watch, "Modify a").await, ["Create a", "Modify a"]);
    fs::set_permissions(desk.path("d/a"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(next(&mut watch).await, "Chmod a");
    fs::rename(desk.path("d/a"), desk.path("d/b")).unwrap();
    assert_eq!(next(&mut watch).await, "Rename a > b");
    fs::rename(desk.path("d/b"), desk.path("outside")).unwrap();
    assert_eq!(next(&mut watch).await, "Remove b");
    fs::rename(desk.path("outside"), desk.path("d/c")).unwrap();
    assert_eq!(next(&mut watch).await, "Create c");
    fs::remove_file(desk.path("d/c")).unwrap();
    assert_eq!(next(&mut watch).await, "Remove c");
    fs::remove_dir_all(desk.path("d")).unwrap();
    assert_eq!(next(&mut watch).await, "Remove sub");
    let gone = tokio::time::timeout(SOON, watch.next()).await.unwrap();
    assert!(matches!(gone, Err(AgentError::Failed(Failure { kind: FailureKind::FileNotFound, .. }))), "{gone:?}");
}

#[tokio::test]
async fn what_happens_before_the_directory_goes_is_told_before_that() {
    let desk = Desk::new().await;
    // Whether the last change and the end are read at once is chance: often enough they are.
    for round in 0..100 {
        let name = format!("d{round}");
        fs::create_dir_all(desk.path(&name)).unwrap();
        let mut watch = desk.watch(&name, false).await.unwrap();
        fs::write(desk.path(&format!("{name}/last")), "").unwrap();
        fs::rename(desk.path(&name), desk.path("gone")).unwrap();
        assert_eq!(next(&mut watch).await, "Create last", "round {round}");
        let gone = tokio::time::timeout(SOON, watch.next()).await.unwrap();
        assert!(matches!(gone, Err(AgentError::Failed(Failure { kind: FailureKind::FileNotFound, .. }))), "{gone:?}");
        fs::remove_dir_all(desk.path("gone")).unwrap();
    }
}

#[tokio::test]
async fn directories_that_appear_are_watched_with_what_is_in_them() {
    let desk = Desk::new().await;
    fs::create_dir_all(desk.path("d/old/deep")).unwrap();
    symlink("/", desk.path("d/link")).unwrap();
    let mut watch = desk.watch("d", true).await.unwrap();
    fs::write(desk.path("d/old/deep/a"), "").unwrap();
    assert_eq!(next(&mut watch).await, "Create old/deep/a");
    // Faster than anybody can begin to watch: each is told once all the same.
    fs::create_dir_all(desk.path("d/new/x/y")).unwrap();
    fs::write(desk.path("d/new/x/y/file"), "").unwrap();
    let mut told = until(&mut watch, "Create new/x/y/file").await;
    told.sort();
    assert_eq!(told, ["Create new", "Create new/x", "Create new/x/y", "Create new/x/y/file"]);
    fs::write(desk.path("d/new/x/later"), "").unwrap();
    assert_eq!(next(&mut watch).await, "Create new/x/later");
    // One that is renamed is watched under its new path, and one that has left is not.
    fs::rename(desk.path("d/new/x"), desk.path("d/moved")).unwrap();
    assert_eq!(next(&mut watch).await, "Rename new/x > moved");
    fs::write(desk.path("d/moved/y/again"), "").unwrap();
    assert_eq!(next(&mut watch).await, "Create moved/y/again");
    fs::rename(desk.path("d/moved"), desk.path("elsewhere")).unwrap();
    assert_eq!(next(&mut watch).await, "Remove moved");
    fs::write(desk.path("elsewhere/y/unseen"), "").unwrap();
    // A whole tree that is moved in is told.
    fs::rename(desk.path("elsewhere"), desk.path("d/back")).unwrap();
    let mut told = until(&mut watch, "Create back").await;
    for _ in 0..5 {
        told.push(next(&mut watch).await);
    }
    told.sort();
    let expected = [
        "Create back",
        "Create back/later",
        "Create back/y",
        "Create back/y/again",
        "Create back/y/file",
        "Create back/y/unseen",
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_reader_that_is_slow_is_told_that_it_lost_events_and_the_watch_goes_on() {
    let desk = Desk::new().await;
    fs::create_dir(desk.path("d")).unwrap();
    let mut watch = desk.watch("d", true).await.unwrap();
    let name = "n".repeat(200);
    // More than credit, buffer and the kernel's queue hold together.
    for round in 0..30_000 {
        let path = desk.path(&format!("d/{name}{round}"));
        fs::write(&path, "").unwrap();
        fs::remove_file(&path).unwrap();
    }
    fs::create_dir(desk.path("d/made-meanwhile")).unwrap();
    until(&mut watch, "Overflow ").await;
    fs::write(desk.path("d/made-meanwhile/last"), "").unwrap();
    until(&mut watch, "Create made-meanwhile/last").await;
}

#[tokio::test]
async fn a_storm_of_renames_ends_with_the_right_paths() {
    let desk = Desk::new().await;
    fs::create_dir_all(desk.path("d/a0/b/c")).unwrap();
    let mut watch = desk.watch("d", true).await.unwrap();
    for round in 0..200 {
        fs::rename(desk.path(&format!("d/a{round}")), desk.path(&format!("d/a{}", round + 1))).unwrap();
    }
    until(&mut watch, "Rename a199 > a200").await;
    fs::write(desk.path("d/a200/b/c/file"), "").unwrap();
    assert_eq!(next(&mut watch).await, "Create a200/b/c/file");
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused_and_places_are_given_back() {
    let desk = Desk::new().await;
    fs::write(desk.path("file"), "").unwrap();
    for (path, kind) in
        [("none", FailureKind::FileNotFound), ("file", FailureKind::Invalid), ("", FailureKind::Invalid)]
    {
        match desk.watch(path, false).await {
            Err(AgentError::Failed(failure)) => assert_eq!(failure.kind, kind, "{path}"),
            other => panic!("{path}: {other:?}"),
        }
    }
    let mut all = Vec::new();
    for _ in 0..16 {
        all.push(desk.watch(".", false).await.unwrap());
    }
    let full = desk.watch(".", false).await;
    assert!(matches!(&full, Err(AgentError::Failed(Failure { kind: FailureKind::Limit, .. }))), "{full:?}");
    all.clear();
    let until = std::time::Instant::now() + SOON;
    while desk.watch(".", false).await.is_err() {
        assert!(std::time::Instant::now() < until, "no place is given back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn too_many_directories_are_refused() {
    let desk = Desk::new().await;
    fs::create_dir(desk.path("many")).unwrap();
    for number in 0..MAX_WATCHED_DIRECTORIES {
        fs::create_dir(desk.path(&format!("many/{number}"))).unwrap();
    }
    let refused = desk.watch("many", true).await;
    assert!(matches!(&refused, Err(AgentError::Failed(Failure { kind: FailureKind::Limit, .. }))), "{refused:?}");
    desk.watch("many", false).await.unwrap();
}

#[tokio::test]
async fn directories_whose_paths_are_too_long_together_are_refused() {
    let desk = Desk::new().await;
    let long = "n".repeat(250);
    let deep: PathBuf = std::iter::repeat_n(long.as_str(), 15).collect();
    let deep = desk.path("deep").join(deep);
    for number in 0..600 {
        fs::create_dir_all(deep.join(number.to_string())).unwrap();
    }
    let refused = desk.watch("deep", true).await;
    assert!(matches!(&refused, Err(AgentError::Failed(Failure { kind: FailureKind::Limit, .. }))), "{refused:?}");
}
