//! Searches, replacements, parts of files and files that are handed over: the real agent, asked for by the real client, on
//! this host's files in a folder of the test.

// clippy.toml lets tests unwrap, and does not count their helpers.
#![allow(clippy::unwrap_used, dead_code)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use common::Guest;
use nullspace_guest::file::{FileOp, HOME};
use nullspace_guest::host::{Agent, AgentError};
use nullspace_guest::message::{Failure, FailureKind};
use nullspace_guest::search::{Cut, MAX_CONTENT, MAX_LINES, MAX_REPLACED, Part, Replace, Searched};

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

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    /// The matches as `path:line:content`, paths below the folder.
    async fn find(&self, path: &str, pattern: &str) -> Result<(Vec<String>, Searched), AgentError> {
        let found = self.agent.find_lines(self.user(), self.cwd(), path.into(), pattern.into(), |_| true).await?;
        let shown = |file: &str| file.strip_prefix(self.cwd()).unwrap()[1..].to_owned();
        let lines = found.0.iter().map(|line| format!("{}:{}:{}", shown(&line.file), line.line, line.content));
        Ok((lines.collect(), found.1))
    }

    async fn names(&self, pattern: &str) -> Result<Vec<String>, AgentError> {
        let found = self.agent.find_names(self.user(), self.cwd(), ".".into(), pattern.into(), |_| true).await?;
        Ok(found.0.iter().map(|file| file.strip_prefix(self.cwd()).unwrap()[1..].to_owned()).collect())
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T, AgentError>) -> FailureKind {
    match result {
        Err(AgentError::Failed(Failure { kind, .. })) => kind,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn lines_are_found_wherever_they_are_and_nothing_else() {
    let desk = Desk::new().await;
    desk.put("a.txt", "hello world\nfoo bar\r\nhello again");
    desk.put("d/deep/b.rs", "fn hello() {}\n");
    desk.put("d/binary", b"hello\0world\n");
    desk.put("empty", "");
    desk.put("z.latin", b"gr\xfc\xdf hello\n");
    symlink("a.txt", desk.path("link")).unwrap();
    symlink("..", desk.path("d/up")).unwrap();
    nix::unistd::mkfifo(&desk.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();

    let (found, searched) = desk.find(".", "hello").await.unwrap();
    let all = [
        "a.txt:1:hello world",
        "a.txt:3:hello again",
        "d/deep/b.rs:1:fn hello() {}",
        "z.latin:1:gr\u{fffd}\u{fffd} hello",
    ];
    assert_eq!(found, all);
    assert_eq!(searched, Searched { cut: None, files: 4, binary: 1, unreadable: 0 });
    assert_eq!(desk.find(".", r"^foo\s\w+$").await.unwrap().0, ["a.txt:2:foo bar"]);
    assert_eq!(desk.find("d/deep/b.rs", r"\(\)").await.unwrap().0, ["d/deep/b.rs:1:fn hello() {}"]);
    assert_eq!(desk.find("link", "again").await.unwrap().0, ["link:3:hello again"]);
    assert_eq!(desk.find(".", "nowhere").await.unwrap().0, Vec::<String>::new());

    for (path, pattern, expected) in [
        ("none", "x", FailureKind::FileNotFound),
        ("fifo", "x", FailureKind::Invalid),
        (".", "(", FailureKind::Invalid),
        (".", "", FailureKind::Invalid),
    ] {
        assert_eq!(kind(desk.find(path, pattern).await), expected, "{path} {pattern}");
    }
}

#[tokio::test]
async fn long_lines_and_many_matches_are_cut_and_say_so() {
    let desk = Desk::new().await;
    let long = format!("{}needle{}\nneedle at last", "x".repeat(900_000), "y".repeat(3_000_000));
    desk.put("long", &long);
    let (found, searched) = desk.find("long", "needle").await.unwrap();
    assert_eq!(found.len(), 2);
    assert!(found[0].starts_with("long:1:xxx") && found[0].contains("xneedley"), "{:?}", &found[0][..40]);
    assert_eq!(found[0].len(), "long:1:".len() + MAX_CONTENT);
    assert_eq!(found[1], "long:2:needle at last");
    assert_eq!(searched.cut, None);

    desk.put("many", "needle\n".repeat(MAX_LINES + 5));
    let (found, searched) = desk.find("many", "needle").await.unwrap();
    assert_eq!((found.len(), searched.cut), (MAX_LINES, Some(Cut::Matches)));
    assert_eq!(found.last().unwrap(), &format!("many:{MAX_LINES}:needle"));
    // Exactly as many as there may be are not too many.
    desk.put("many", "needle\n".repeat(MAX_LINES));
    assert_eq!(desk.find("many", "needle").await.unwrap().1.cut, None);
    // A pattern that other engines take for ever for.
    desk.put("many", "a".repeat(100_000));
    assert_eq!(desk.find("many", "(a*)*b").await.unwrap().0, Vec::<String>::new());
}

#[tokio::test]
async fn names_match_a_glob() {
    let desk = Desk::new().await;
    for name in ["a.txt", "b.log", "d/c.txt", "d/e/f.txt"] {
        desk.put(name, "");
    }
    symlink("/", desk.path("d/root")).unwrap();
    assert_eq!(desk.names("*.txt").await.unwrap(), ["a.txt", "d/c.txt", "d/e/f.txt"]);
    assert_eq!(desk.names("d/*.txt").await.unwrap(), ["d/c.txt"]);
    assert_eq!(desk.names("**/*.txt").await.unwrap(), ["a.txt", "d/c.txt", "d/e/f.txt"]);
    assert_eq!(desk.names("?").await.unwrap(), ["d", "d/e"]);
    assert_eq!(desk.names("root").await.unwrap(), ["d/root"]);
    assert_eq!(kind(desk.names("[").await), FailureKind::Invalid);
    let at_a_file = desk.agent.find_names(desk.user(), desk.cwd(), "a.txt".into(), "*".into(), |_| true).await;
    assert_eq!(kind(at_a_file), FailureKind::Invalid);
}

#[tokio::test]
async fn a_replacement_changes_what_it_can_and_names_the_rest() {
    let desk = Desk::new().await;
    desk.put("a", "one two one");
    desk.put("b", "nothing");
    desk.put("binary", b"one\0one");
    fs::File::create(desk.path("large")).unwrap().set_len(MAX_REPLACED as u64 + 1).unwrap();
    fs::set_permissions(desk.path("a"), fs::Permissions::from_mode(0o640)).unwrap();
    let files = ["a", "b", "binary", "large", "none", ""].map(str::to_owned).to_vec();
    let request = Replace { files, pattern: "one".into(), replacement: "$0".into(), dry_run: true };
    for (dry_run, text) in [(true, "one two one"), (false, "$0 two $0")] {
        let request = Replace { dry_run, ..request.clone() };
        let (skipped, replaced) = desk.agent.replace(desk.user(), desk.cwd(), request, |_| true).await.unwrap();
        assert_eq!((replaced.replacements, replaced.modified, replaced.skipped, replaced.binary), (2, 1, 3, 1));
        assert_eq!(skipped.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["large", "none", ""]);
        assert_eq!(fs::read_to_string(desk.path("a")).unwrap(), text);
    }
    assert_eq!(fs::metadata(desk.path("a")).unwrap().mode() & 0o7777, 0o640);
    // What is kept of the answer is charged, and refused without memory.
    let mut charged = 0;
    let keep = |more| {
        charged += more;
        true
    };
    let (skipped, _) = desk.agent.replace(desk.user(), desk.cwd(), request.clone(), keep).await.unwrap();
    assert!(charged >= skipped.iter().map(|file| file.path.len() + file.error.len()).sum(), "{charged}");
    assert_eq!(kind(desk.agent.replace(desk.user(), desk.cwd(), request, |_| false).await), FailureKind::Limit);
}

#[tokio::test]
async fn a_part_of_a_file_is_read_alone() {
    let desk = Desk::new().await;
    let content: Vec<u8> = (0..1_000_003u32).map(|n| (n % 251) as u8).collect();
    desk.put("file", &content);
    let from = |start, length| Part::From { start, length };
    for (part, expected) in [
        (from(0, None), &content[..]),
        (from(1_000_000, None), &content[1_000_000..]),
        (from(7, Some(300_000)), &content[7..300_007]),
        (from(1_000_003, Some(1)), &[]),
        (Part::Last { length: 2 }, &content[1_000_001..]),
    ] {
        let read = desk.agent.read_file_part(desk.user(), desk.cwd(), "file", part).await.unwrap();
        let mut reader = read.expect("this agent reads parts");
        assert_eq!(reader.entry.size, content.len() as u64);
        let mut got = Vec::new();
        while let Some(piece) = reader.next().await.unwrap() {
            got.extend_from_slice(&piece);
        }
        assert!(got == expected, "{part:?}");
    }
}

/// Whatever another process of the guest puts in the place of a folder, a user reads and writes only what is theirs to.
#[tokio::test]
async fn a_link_that_is_swapped_in_leads_nowhere_that_the_user_may_not_go() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let desk = Desk::new().await;
    let user = Some("4321:8765".to_owned());
    fs::set_permissions(desk.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    desk.put("secret/file", "root's needle");
    fs::set_permissions(desk.path("secret"), fs::Permissions::from_mode(0o700)).unwrap();
    desk.put("real/file", "user's needle");
    for name in ["real", "real/file"] {
        std::os::unix::fs::chown(desk.path(name), Some(4321), Some(8765)).unwrap();
    }
    // `spot` is by turns the user's folder and a link to root's.
    let (real, secret, spot) = (desk.path("real"), desk.path("secret"), desk.path("spot"));
    // From the beginning: a write makes directories that are missing.
    symlink(&real, &spot).unwrap();
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let swapping = {
        let (over, folder) = (over.clone(), desk.folder.path().to_owned());
        std::thread::spawn(move || {
            let mut swaps = 0;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                for target in [&secret, &real] {
                    let new = folder.join("new");
                    symlink(target, &new).unwrap();
                    fs::rename(&new, &spot).unwrap();
                    swaps += 1;
                }
            }
            swaps
        })
    };
    for _ in 0..300 {
        if let Ok(mut writer) = desk.agent.write_own_file("4321:8765".to_owned(), desk.cwd(), "spot/file").await {
            writer.write(b"user's needle").await.unwrap();
            // Its path may lead elsewhere by now.
            let _ = writer.finish().await;
        }
        if let Ok(mut reader) = desk.agent.read_file(user.clone(), desk.cwd(), "spot/file").await {
            while let Some(piece) = reader.next().await.unwrap() {
                assert!(!piece.starts_with(b"root"));
            }
        }
        if let Ok((found, _)) =
            desk.agent.find_lines(user.clone(), desk.cwd(), "spot/".into(), "needle".into(), |_| true).await
        {
            assert!(found.iter().all(|line| line.content != "root's needle"), "{found:?}");
        }
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(swapping.join().unwrap() > 300);
    assert_eq!(fs::read_to_string(desk.path("secret/file")).unwrap(), "root's needle");
    assert_eq!(fs::metadata(desk.path("secret/file")).unwrap().uid(), 0);
}

#[tokio::test]
async fn a_file_is_handed_over_and_paths_start_at_a_home() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let desk = Desk::new().await;
    fs::set_permissions(desk.folder.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    desk.put("file", "root's, and longer");
    let mut writer = desk.agent.write_own_file("4321:8765".to_owned(), desk.cwd(), "file").await.unwrap();
    writer.write(b"theirs").await.unwrap();
    let entry = writer.finish().await.unwrap();
    assert_eq!((entry.owner.as_str(), entry.group.as_str(), entry.size), ("4321", "8765", 6));
    // A new one is theirs from the beginning.
    let writer = desk.agent.write_own_file("4321:8765".to_owned(), desk.cwd(), "new").await.unwrap();
    assert_eq!(writer.finish().await.unwrap().owner, "4321");

    let home = desk.agent.file_entry(Some("root".into()), HOME, FileOp::Info { path: ".".into() }).await.unwrap();
    assert_eq!(home.path, "/root");
    // A user without an account has `/` for a home.
    let none = desk.agent.file_entry(Some("4321".into()), HOME, FileOp::Info { path: "etc".into() }).await.unwrap();
    assert_eq!(none.path, "/etc");
}
