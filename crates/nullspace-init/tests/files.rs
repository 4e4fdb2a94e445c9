//! File operations of the real agent, asked for by the real client, on this host's files in a folder of the test.

// clippy.toml lets tests unwrap, and does not count their helpers.
#![allow(clippy::unwrap_used, dead_code)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use common::{Guest, SOON};
use nullspace_guest::file::{FileEntry, FileKind, FileOp};
use nullspace_guest::host::{Agent, AgentError};
use nullspace_guest::message::{Failure, FailureKind};

/// An agent, a folder, and who works in it.
struct Desk {
    agent: Agent,
    folder: tempfile::TempDir,
    user: String,
}

impl Desk {
    async fn new() -> Desk {
        let user = format!("{}:{}", nix::unistd::geteuid(), nix::unistd::getegid());
        Desk { agent: Guest::new().connect().await, folder: tempfile::tempdir().unwrap(), user }
    }

    fn user(&self) -> Option<String> {
        Some(self.user.clone())
    }

    fn cwd(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    async fn write(&self, path: &str, content: &[u8]) -> Result<FileEntry, AgentError> {
        let mut writer = self.agent.write_file(self.user(), self.cwd(), path).await?;
        writer.write(content).await?;
        writer.finish().await
    }

    async fn read(&self, path: &str) -> Result<Vec<u8>, AgentError> {
        let mut reader = self.agent.read_file(self.user(), self.cwd(), path).await?;
        let mut content = Vec::new();
        while let Some(piece) = reader.next().await? {
            content.extend_from_slice(&piece);
        }
        Ok(content)
    }

    async fn entry(&self, op: FileOp) -> Result<FileEntry, AgentError> {
        self.agent.file_entry(self.user(), self.cwd(), op).await
    }

    async fn done(&self, op: FileOp) -> Result<(), AgentError> {
        self.agent.file_done(self.user(), self.cwd(), op).await
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T, AgentError>) -> FailureKind {
    match result {
        Err(AgentError::Failed(Failure { kind, .. })) => kind,
        other => panic!("{other:?}"),
    }
}

fn info(path: &str) -> FileOp {
    FileOp::Info { path: path.into() }
}

#[tokio::test]
async fn bytes_go_in_and_come_out_as_they_are() {
    let desk = Desk::new().await;
    // More than the credit of a channel, and a length that divides nothing.
    let content: Vec<u8> = (0..5_000_003u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for content in [&[][..], b"text\n", b"\0\xff\xfe", &content] {
        let entry = desk.write("new/folders/file", content).await.unwrap();
        assert_eq!((entry.kind, entry.size, entry.mode), (FileKind::File, content.len() as u64, 0o644));
        assert_eq!(entry.path, desk.path("new/folders/file").to_str().unwrap());
        assert!(desk.read("new/folders/file").await.unwrap() == content);
        assert!(fs::read(desk.path("new/folders/file")).unwrap() == content);
    }
    assert_eq!(fs::metadata(desk.path("new")).unwrap().mode() & 0o7777, 0o755);
}

#[tokio::test]
async fn a_file_written_again_keeps_what_it_is() {
    let desk = Desk::new().await;
    fs::write(desk.path("a"), "longer than before").unwrap();
    fs::set_permissions(desk.path("a"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(desk.path("a"), desk.path("b")).unwrap();
    symlink("a", desk.path("link")).unwrap();
    desk.write("link", b"short").await.unwrap();
    assert_eq!(fs::read(desk.path("b")).unwrap(), b"short");
    assert_eq!(fs::metadata(desk.path("a")).unwrap().mode() & 0o7777, 0o640);
    assert!(fs::symlink_metadata(desk.path("link")).unwrap().is_symlink());
    assert_eq!(desk.agent.read_file(desk.user(), desk.cwd(), "link").await.unwrap().entry.kind, FileKind::File);
}

#[tokio::test]
async fn entries_are_looked_at_made_renamed_and_removed() {
    let desk = Desk::new().await;
    desk.write("d/file", b"1").await.unwrap();
    symlink("d", desk.path("link")).unwrap();
    let entry = desk.entry(info("link")).await.unwrap();
    assert_eq!((entry.kind, entry.target.as_deref()), (FileKind::Symlink, Some("d")));
    let made = desk.entry(FileOp::MakeDir { path: "x/y/z".into() }).await.unwrap();
    assert_eq!(made.kind, FileKind::Dir);
    desk.entry(FileOp::MakeDir { path: "x/y/z".into() }).await.expect("one that exists is fine");
    assert_eq!(kind(desk.entry(FileOp::MakeDir { path: "d/file".into() }).await), FailureKind::FileExists);

    let to = FileOp::Rename { from: "d/file".into(), to: "x/other/name".into() };
    assert_eq!(desk.entry(to).await.unwrap().path, desk.path("x/other/name").to_str().unwrap());
    assert!(!desk.path("d/file").exists());
    let missing = FileOp::Rename { from: "d/file".into(), to: "never/made".into() };
    assert_eq!(kind(desk.entry(missing).await), FailureKind::FileNotFound);
    assert!(!desk.path("never").exists());
    let onto = FileOp::Rename { from: "d".into(), to: "x".into() };
    assert_eq!(kind(desk.entry(onto).await), FailureKind::FileExists);

    desk.done(FileOp::SetMode { path: "x/other/name".into(), mode: 0o4751 }).await.unwrap();
    assert_eq!(desk.entry(info("x/other/name")).await.unwrap().mode, 0o4751);
    assert_eq!(kind(desk.done(FileOp::SetMode { path: "x".into(), mode: 0o100_644 }).await), FailureKind::Invalid);
    // The link goes, not what it leads to.
    desk.done(FileOp::Remove { path: "link".into() }).await.unwrap();
    assert!(desk.path("d").is_dir());
    desk.done(FileOp::Remove { path: "x".into() }).await.unwrap();
    assert!(!desk.path("x").exists());
    assert_eq!(kind(desk.done(FileOp::Remove { path: "x".into() }).await), FailureKind::FileNotFound);
    assert_eq!(kind(desk.done(FileOp::Remove { path: "/".into() }).await), FailureKind::Invalid);
}

#[tokio::test]
async fn a_listing_is_in_order_as_deep_as_asked_and_of_any_length() {
    let desk = Desk::new().await;
    for name in ["b/2/deep", "b/1", "a", "c"] {
        fs::create_dir_all(desk.path(name).parent().unwrap()).unwrap();
        fs::write(desk.path(name), name).unwrap();
    }
    symlink("b", desk.path("link")).unwrap();
    let list = async |path: &str, depth| {
        let found = desk.agent.list_files(desk.user(), desk.cwd(), path, depth).await?;
        let below = |entry: &FileEntry| Path::new(&entry.path).strip_prefix(desk.cwd()).unwrap().display().to_string();
        Ok::<_, AgentError>(found.iter().map(below).collect::<Vec<_>>())
    };
    assert_eq!(list(".", 1).await.unwrap(), ["a", "b", "c", "link"]);
    assert_eq!(list(".", 2).await.unwrap(), ["a", "b", "b/1", "b/2", "c", "link"]);
    assert_eq!(list(".", u32::MAX).await.unwrap(), ["a", "b", "b/1", "b/2", "b/2/deep", "c", "link"]);
    assert_eq!(list("b", 0).await.unwrap(), ["b/1", "b/2"]);
    assert_eq!(kind(list("nowhere", 1).await), FailureKind::FileNotFound);
    assert_eq!(kind(list("a", 1).await), FailureKind::Invalid);
    for n in 0..3000 {
        fs::write(desk.path(&format!("b/{n:0100}")), "").unwrap();
    }
    assert_eq!(list("b", 1).await.unwrap().len(), 3002);
}

#[tokio::test]
async fn what_is_no_file_is_refused_and_holds_nothing_up() {
    let desk = Desk::new().await;
    nix::unistd::mkfifo(&desk.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("loop", desk.path("loop")).unwrap();
    for (path, expected) in [
        ("fifo", FailureKind::Invalid),
        (".", FailureKind::Invalid),
        ("/dev/null", FailureKind::Invalid),
        ("loop", FailureKind::Invalid),
        ("missing", FailureKind::FileNotFound),
        ("", FailureKind::Invalid),
        ("a\0b", FailureKind::Invalid),
    ] {
        let read = tokio::time::timeout(SOON, desk.read(path)).await.expect(path);
        assert_eq!(kind(read), expected, "{path}");
    }
    for (path, expected) in
        [(".", FailureKind::Invalid), ("/dev/null", FailureKind::Invalid), ("", FailureKind::Invalid)]
    {
        let written = tokio::time::timeout(SOON, desk.write(path, b"x")).await.expect(path);
        assert_eq!(kind(written), expected, "{path}");
    }
    // A FIFO that nobody reads has no writer either.
    tokio::time::timeout(SOON, desk.write("fifo", b"x")).await.expect("no wait").unwrap_err();
    fs::write(desk.path("file"), "").unwrap();
    assert_eq!(kind(desk.write("file/below", b"x").await), FailureKind::FileExists);
    let nobody = desk.agent.read_file(Some("no-such-user".into()), "/", "/etc/passwd").await;
    assert_eq!(kind(nobody.map(drop)), FailureKind::UnknownUser);
}

#[tokio::test]
async fn each_user_may_do_what_the_kernel_lets_him() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let desk = Desk::new().await;
    fs::set_permissions(desk.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(desk.path("secret"), "x").unwrap();
    fs::set_permissions(desk.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let other =
        Desk { agent: desk.agent.clone(), folder: tempfile::tempdir_in(desk.cwd()).unwrap(), user: "4321:8765".into() };
    fs::set_permissions(other.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(kind(other.read("../secret").await), FailureKind::PermissionDenied);
    assert_eq!(kind(other.write("../secret", b"y").await), FailureKind::PermissionDenied);
    assert_eq!(
        kind(other.done(FileOp::SetMode { path: "../secret".into(), mode: 0o666 }).await),
        FailureKind::PermissionDenied
    );
    let entry = other.write("own", b"z").await.unwrap();
    assert_eq!((entry.owner.as_str(), entry.group.as_str()), ("4321", "8765"));
    assert_eq!(fs::read(desk.path("secret")).unwrap(), b"x");
    // The next operation of the same agent is root's again.
    assert_eq!(desk.read("secret").await.unwrap(), b"x");
}

#[tokio::test]
async fn who_goes_away_in_the_middle_leaves_the_agent_free() {
    let desk = Desk::new().await;
    fs::write(desk.path("large"), vec![7; 8 << 20]).unwrap();
    for _ in 0..300 {
        let mut reader = desk.agent.read_file(desk.user(), desk.cwd(), "large").await.unwrap();
        reader.next().await.unwrap().unwrap();
        let mut writer = desk.agent.write_file(desk.user(), desk.cwd(), "half").await.unwrap();
        writer.write(b"some").await.unwrap();
        drop((reader, writer));
    }
    // More channels were opened than there are: all were given back.
    tokio::time::timeout(Duration::from_secs(30), desk.read("large")).await.expect("an answer").unwrap();
}
