//! Uploads of the real agent, asked for by the real client, on this host's files in a folder of the test.

// clippy.toml lets tests unwrap, and does not count their helpers.
#![allow(clippy::unwrap_used, dead_code)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use common::Guest;
use nullspace_guest::host::{Agent, AgentError, Uploaded};
use nullspace_guest::message::{Failure, FailureKind};
use nullspace_guest::upload::{
    MAX_UPLOADS, PART_BYTES, UploadConflict, UploadOp, UploadReason, UploadSpec, UploadState, UploadStatus,
};
use sha2::{Digest, Sha256};

struct Desk {
    agent: Agent,
    folder: tempfile::TempDir,
    next: std::cell::Cell<u32>,
}

impl Desk {
    async fn new() -> Desk {
        let folder = tempfile::tempdir().unwrap();
        let agent = Guest::with_uploads_in(folder.path().join("agent/uploads")).connect().await;
        Desk { agent, folder, next: std::cell::Cell::new(0) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn spec(&self, target: &str, bytes: usize) -> UploadSpec {
        UploadSpec {
            archive: false,
            target: target.into(),
            cwd: Some(self.folder.path().to_str().unwrap().to_owned()),
            user: Some(format!("{}:{}", nix::unistd::geteuid(), nix::unistd::getegid())),
            keep_owner: true,
            bytes: bytes as u64,
            conflict: UploadConflict::Merge,
            sha256: None,
            key: None,
            note: "the host's".into(),
        }
    }

    async fn begin(&self, spec: UploadSpec) -> Result<UploadState, UploadReason> {
        let number = self.next.replace(self.next.get() + 1);
        self.ask(&format!("up_{number:032x}"), UploadOp::Create(spec)).await
    }

    async fn ask(&self, id: &str, op: UploadOp) -> Result<UploadState, UploadReason> {
        self.agent.upload(id, op).await.unwrap().map_err(|refusal| refusal.reason)
    }

    async fn part(&self, id: &str, number: u32, bytes: &[u8]) -> Uploaded {
        let mut writer = self.agent.upload_part(id, number).await.unwrap();
        for piece in bytes.chunks(100_000) {
            writer.write(piece).await.unwrap();
        }
        writer.finish().await.unwrap()
    }

    async fn complete(&self, id: &str, sha256: Option<String>) -> Result<UploadState, UploadReason> {
        self.ask(id, UploadOp::Complete { sha256 }).await
    }

    /// Uploads it whole.
    async fn upload(&self, spec: UploadSpec, bytes: &[u8]) -> Result<UploadState, UploadReason> {
        let state = self.begin(UploadSpec { bytes: bytes.len() as u64, ..spec }).await?;
        for (number, part) in (0..).zip(bytes.chunks(PART_BYTES as usize)) {
            self.part(&state.id, number, part).await.unwrap();
        }
        self.complete(&state.id, Some(sha256(bytes))).await
    }

    async fn archive(
        &self,
        target: &str,
        conflict: UploadConflict,
        entries: &[Vec<u8>],
    ) -> Result<UploadState, UploadReason> {
        let spec = UploadSpec { archive: true, conflict, ..self.spec(target, 0) };
        self.upload(spec, &[entries.concat(), vec![0; 1024]].concat()).await
    }

    /// What is below a directory, with the files' contents.
    fn tree(&self, name: &str) -> Vec<String> {
        let (mut below, mut found) = (vec![self.path(name)], Vec::new());
        while let Some(folder) = below.pop() {
            for entry in fs::read_dir(&folder).unwrap().flatten() {
                let shown = entry.path().strip_prefix(self.path(name)).unwrap().display().to_string();
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    found.push(format!("{shown}/"));
                    below.push(entry.path());
                } else if kind.is_symlink() {
                    found.push(format!("{shown} -> {}", fs::read_link(entry.path()).unwrap().display()));
                } else {
                    found.push(format!("{shown} = {}", fs::read_to_string(entry.path()).unwrap()));
                }
            }
        }
        found.sort();
        found
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn entry(kind: u8, path: &str, target: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut block = [0u8; 512];
    block[..path.len()].copy_from_slice(path.as_bytes());
    block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
    block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    block[156] = kind;
    block[157..157 + target.len()].copy_from_slice(target.as_bytes());
    block[257..263].copy_from_slice(b"ustar\0");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    [&block[..], content, &vec![0; (512 - content.len() % 512) % 512]].concat()
}

fn file(path: &str, content: &str) -> Vec<u8> {
    entry(b'0', path, "", 0o644, content.as_bytes())
}

fn content() -> Vec<u8> {
    (0..2 * PART_BYTES + 1_000_003).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[tokio::test]
async fn parts_come_in_any_order_and_again_and_the_whole_is_published() {
    let desk = Desk::new().await;
    let content = content();
    let parts: Vec<&[u8]> = content.chunks(PART_BYTES as usize).collect();
    let state = desk.begin(desk.spec("new/file", content.len())).await.unwrap();
    assert_eq!((state.status, state.next_part, state.accepted_bytes), (UploadStatus::Created, Some(0), 0));
    assert_eq!(
        (state.spec.target.as_str(), state.spec.note.as_str()),
        (desk.path("new/file").to_str().unwrap(), "the host's")
    );
    let id = &state.id;
    let state = desk.part(id, 2, parts[2]).await.unwrap();
    assert_eq!((state.status, state.next_part, state.accepted_bytes), (UploadStatus::Uploading, Some(0), 1_000_003));
    let (first, second) = tokio::join!(desk.part(id, 0, parts[1]), desk.part(id, 1, parts[1]));
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(desk.ask(id, UploadOp::Look).await.unwrap().status, UploadStatus::Staged);
    assert_eq!(desk.complete(id, Some(sha256(&content))).await, Err(UploadReason::Checksum), "part 0 is another");
    desk.part(id, 0, parts[0]).await.unwrap();
    for _ in 0..2 {
        let state = desk.complete(id, Some(sha256(&content))).await.unwrap();
        assert_eq!((state.status, state.published_bytes), (UploadStatus::Completed, content.len() as u64));
        assert_eq!((state.published_files, state.next_part), (1, None));
    }
    assert!(fs::read(desk.path("new/file")).unwrap() == content);
    assert_eq!(fs::metadata(desk.path("new/file")).unwrap().mode() & 0o7777, 0o644);
    assert_eq!(fs::read_dir(desk.path("new")).unwrap().count(), 1, "nothing is left beside it");
    assert!(!desk.path("agent/uploads").join(id).join("data").exists());
    assert_eq!(desk.part(id, 0, parts[0]).await.unwrap_err().reason, UploadReason::Completed);
    assert_eq!(desk.ask(id, UploadOp::Abort).await, Err(UploadReason::Completed));
    // Another agent finds them: what there is of an upload is in its files.
    let other = Guest::with_uploads_in(desk.path("agent/uploads")).connect().await;
    assert_eq!(other.upload(id, UploadOp::Look).await.unwrap().unwrap().status, UploadStatus::Completed);
}

#[tokio::test]
async fn a_part_that_breaks_off_or_has_another_length_is_missing() {
    let desk = Desk::new().await;
    let state = desk.begin(desk.spec("file", 10)).await.unwrap();
    let id = &state.id;
    for (bytes, reason) in [(&b"short"[..], UploadReason::PartSize), (b"longer than it", UploadReason::PartSize)] {
        assert_eq!(desk.part(id, 0, bytes).await.unwrap_err().reason, reason);
    }
    assert_eq!(desk.part(id, 1, b"x").await.unwrap_err().reason, UploadReason::NoSuchPart);
    desk.part(id, 0, b"0123456789").await.unwrap();
    let mut writer = desk.agent.upload_part(id, 0).await.unwrap();
    writer.write(b"abc").await.unwrap();
    drop(writer);
    // Waits for the end of the broken one.
    assert_eq!(desk.complete(id, None).await, Err(UploadReason::MissingParts));
    desk.part(id, 0, b"0123456789").await.unwrap();
    desk.complete(id, None).await.unwrap();
    assert_eq!(fs::read(desk.path("file")).unwrap(), b"0123456789");
    let empty = desk.upload(desk.spec("empty", 0), b"").await.unwrap();
    assert_eq!((empty.published_bytes, fs::metadata(desk.path("empty")).unwrap().len()), (0, 0));
}

#[tokio::test]
async fn an_overwritten_file_keeps_mode_and_owner_but_no_rights_of_others() {
    let desk = Desk::new().await;
    fs::write(desk.path("kept"), "before").unwrap();
    fs::set_permissions(desk.path("kept"), fs::Permissions::from_mode(0o4750)).unwrap();
    symlink("kept", desk.path("link")).unwrap();
    desk.upload(desk.spec("link", 0), b"after").await.unwrap();
    assert!(fs::symlink_metadata(desk.path("link")).unwrap().is_symlink());
    assert_eq!(fs::read(desk.path("kept")).unwrap(), b"after");
    assert_eq!(fs::metadata(desk.path("kept")).unwrap().mode() & 0o7777, 0o750);
    desk.upload(UploadSpec { keep_owner: false, ..desk.spec("kept", 0) }, b"again").await.unwrap();
    assert_eq!(fs::metadata(desk.path("kept")).unwrap().mode() & 0o7777, 0o644);
    let spec = UploadSpec { conflict: UploadConflict::Error, ..desk.spec("kept", 0) };
    assert_eq!(desk.upload(spec, b"x").await, Err(UploadReason::Conflict));
    assert_eq!(desk.upload(desk.spec(".", 0), b"x").await, Err(UploadReason::Conflict));
    // A target that appears after the beginning.
    let spec = UploadSpec { conflict: UploadConflict::Error, ..desk.spec("late", 1) };
    let state = desk.begin(spec).await.unwrap();
    desk.part(&state.id, 0, b"x").await.unwrap();
    fs::write(desk.path("late"), "there").unwrap();
    assert_eq!(desk.complete(&state.id, None).await, Err(UploadReason::Conflict));
    fs::remove_file(desk.path("late")).unwrap();
    desk.complete(&state.id, None).await.unwrap();
}

#[tokio::test]
async fn a_user_may_only_do_what_the_kernel_lets_it() {
    let desk = Desk::new().await;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    fs::set_permissions(desk.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(desk.path("roots"), "root's").unwrap();
    let spec = |target: &str| UploadSpec { user: Some("4321:4321".into()), ..desk.spec(target, 0) };
    desk.upload(spec("own"), b"mine").await.unwrap();
    let meta = fs::metadata(desk.path("own")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (4321, 4321, 0o644));
    // It could replace the entry, and so put its own program in the place of root's.
    let state = desk.begin(UploadSpec { bytes: 1, ..spec("roots") }).await.unwrap();
    desk.part(&state.id, 0, b"x").await.unwrap();
    let refused = desk.agent.upload(&state.id, UploadOp::Complete { sha256: None }).await;
    assert!(
        matches!(&refused, Err(AgentError::Failed(Failure { kind: FailureKind::PermissionDenied, .. }))),
        "{refused:?}"
    );
    assert_eq!(fs::read(desk.path("roots")).unwrap(), b"root's");
}

/// A user of the guest who owns the target's directory, and puts other things in the place of what appears there.
#[tokio::test]
async fn names_that_a_user_swaps_lead_root_nowhere() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let desk = Desk::new().await;
    fs::set_permissions(desk.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(desk.path("secret"), "root's").unwrap();
    fs::set_permissions(desk.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(desk.path("d")).unwrap();
    std::os::unix::fs::chown(desk.path("d"), Some(4321), Some(4321)).unwrap();
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let quiet = std::sync::Arc::new(tokio::sync::Mutex::new(()));
    let swapping = {
        let (over, quiet, folder, secret) = (over.clone(), quiet.clone(), desk.path("d"), desk.path("secret"));
        std::thread::spawn(move || {
            let mut swaps = 0;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let _turn = quiet.blocking_lock();
                for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                    if entry.file_name().as_encoded_bytes().starts_with(b".target.") {
                        // The rename to the target fails, and what is taken back is the link.
                        let _ = fs::create_dir(folder.join("target"));
                        let _ = symlink(&secret, folder.join("link"));
                        // What has gone meanwhile is not brought back.
                        if fs::rename(folder.join("link"), entry.path()).is_ok() {
                            swaps += 1;
                        }
                    }
                }
            }
            swaps
        })
    };
    let mut failed = 0;
    for _ in 0..300 {
        let turn = quiet.lock().await;
        for left in fs::read_dir(desk.path("d")).unwrap().flatten() {
            let _ = fs::remove_file(left.path()).or_else(|_| fs::remove_dir(left.path()));
        }
        let spec = UploadSpec { user: Some("4321:4321".into()), bytes: 4, ..desk.spec("d/target", 0) };
        let state = desk.begin(spec).await.unwrap();
        desk.part(&state.id, 0, b"data").await.unwrap();
        drop(turn);
        for _ in 0..2 {
            let done = desk.agent.upload(&state.id, UploadOp::Complete { sha256: None }).await;
            if matches!(done, Ok(Ok(_))) {
                break;
            }
            failed += 1;
            let staged = fs::symlink_metadata(desk.path("agent/uploads").join(&state.id).join("data")).unwrap();
            assert!(
                staged.is_file() && (staged.uid(), staged.mode() & 0o7777, staged.len()) == (0, 0o600, 4),
                "{staged:?}"
            );
        }
        let _ = desk.agent.upload(&state.id, UploadOp::Abort).await;
        let secret = fs::metadata(desk.path("secret")).unwrap();
        assert_eq!((secret.uid(), secret.mode() & 0o7777, secret.nlink(), secret.len()), (0, 0o600, 1, 6));
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    let swaps = swapping.join().unwrap();
    eprintln!("{swaps} swaps, {failed} publications failed");
    assert!(swaps > 50 && failed > 5, "{swaps} swaps, {failed} failed");
}

#[tokio::test]
async fn a_publication_that_fails_leaves_the_data_as_they_were_and_nothing_beside_the_target() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let desk = Desk::new().await;
    fs::set_permissions(desk.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(desk.path("sticky")).unwrap();
    fs::set_permissions(desk.path("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    // The user may write the file, and not replace it.
    fs::write(desk.path("sticky/file"), "root's").unwrap();
    fs::set_permissions(desk.path("sticky/file"), fs::Permissions::from_mode(0o666)).unwrap();
    let spec = UploadSpec { user: Some("4321:4321".into()), bytes: 4, ..desk.spec("sticky/file", 0) };
    let state = desk.begin(spec).await.unwrap();
    desk.part(&state.id, 0, b"data").await.unwrap();
    for _ in 0..2 {
        let refused = desk.agent.upload(&state.id, UploadOp::Complete { sha256: None }).await;
        assert!(
            matches!(&refused, Err(AgentError::Failed(Failure { kind: FailureKind::PermissionDenied, .. }))),
            "{refused:?}"
        );
        let staged = fs::symlink_metadata(desk.path("agent/uploads").join(&state.id).join("data")).unwrap();
        assert_eq!((staged.uid(), staged.mode() & 0o7777, staged.nlink()), (0, 0o600, 1));
        assert_eq!(fs::read_dir(desk.path("sticky")).unwrap().count(), 1);
    }
    fs::set_permissions(desk.path("sticky"), fs::Permissions::from_mode(0o777)).unwrap();
    desk.complete(&state.id, None).await.unwrap();
    let meta = fs::metadata(desk.path("sticky/file")).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777, meta.nlink()), (0, 0o666, 1), "owner and mode are kept");
    assert_eq!(fs::read(desk.path("sticky/file")).unwrap(), b"data");
    assert_eq!(fs::read_dir(desk.path("sticky")).unwrap().count(), 1);
}

#[tokio::test]
async fn links_of_others_in_a_shared_directory_are_not_followed() {
    let protected = fs::read_to_string("/proc/sys/fs/protected_symlinks").is_ok_and(|text| text.trim() == "1");
    if !nix::unistd::geteuid().is_root() || !protected {
        eprintln!("skipped: needs root and fs.protected_symlinks");
        return;
    }
    let desk = Desk::new().await;
    fs::create_dir(desk.path("shared")).unwrap();
    fs::set_permissions(desk.path("shared"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(desk.path("outside"), "safe").unwrap();
    symlink("../outside", desk.path("shared/link")).unwrap();
    std::os::unix::fs::lchown(desk.path("shared/link"), Some(4321), Some(4321)).unwrap();
    let refused = desk.agent.upload(&format!("up_{:032x}", 1), UploadOp::Create(desk.spec("shared/link", 1))).await;
    assert!(
        matches!(&refused, Err(AgentError::Failed(Failure { kind: FailureKind::PermissionDenied, .. }))),
        "{refused:?}"
    );
    assert_eq!(fs::read(desk.path("outside")).unwrap(), b"safe");
}

#[tokio::test]
async fn what_another_user_could_have_put_into_the_staging_is_not_believed() {
    let desk = Desk::new().await;
    let folder = desk.path("agent/uploads");
    let state = desk.begin(desk.spec("file", 4)).await.unwrap();
    desk.part(&state.id, 0, b"data").await.unwrap();
    let look = || desk.agent.upload(&state.id, UploadOp::Look);
    let refused = |result: Result<_, AgentError>| match result {
        Err(AgentError::Failed(Failure { kind: FailureKind::PermissionDenied, message })) => message,
        other => panic!("{other:?}"),
    };
    for (path, mode, sound) in [(desk.path("agent"), 0o777, 0o755), (folder.clone(), 0o710, 0o700)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert!(refused(look().await.map(drop)).contains("must be a directory that belongs to uid"));
        let new = desk.agent.upload(&format!("up_{:032x}", 9), UploadOp::Create(desk.spec("other", 1))).await;
        refused(new.map(drop));
        fs::set_permissions(&path, fs::Permissions::from_mode(sound)).unwrap();
        look().await.unwrap().unwrap();
    }
    fs::rename(&folder, desk.path("moved")).unwrap();
    symlink(desk.path("moved"), &folder).unwrap();
    refused(look().await.map(drop));
    fs::remove_file(&folder).unwrap();
    fs::rename(desk.path("moved"), &folder).unwrap();
    // Nor is a link in the place of one of its files.
    fs::write(desk.path("outside"), "safe").unwrap();
    for name in ["data", "parts", "upload.json"] {
        let path = folder.join(&state.id).join(name);
        fs::rename(&path, desk.path("kept")).unwrap();
        symlink(desk.path("outside"), &path).unwrap();
        let done = desk.agent.upload(&state.id, UploadOp::Complete { sha256: None }).await;
        assert!(matches!(&done, Err(AgentError::Failed(_))), "{name}: {done:?}");
        fs::remove_file(&path).unwrap();
        fs::rename(desk.path("kept"), &path).unwrap();
    }
    assert_eq!(fs::read(desk.path("outside")).unwrap(), b"safe");
    desk.complete(&state.id, None).await.unwrap();
    assert_eq!(fs::read(desk.path("file")).unwrap(), b"data");
}

#[tokio::test]
async fn what_a_cut_off_extraction_has_left_goes_with_its_upload() {
    let desk = Desk::new().await;
    let whole = [file("a", "1"), vec![0; 1024]].concat();
    let spec = UploadSpec { archive: true, bytes: whole.len() as u64, ..desk.spec("d", 0) };
    let leave = |id: &str| {
        let left = desk.path(&format!(".d.{id}"));
        fs::create_dir_all(left.join("closed/below")).unwrap();
        fs::write(left.join("closed/below/half"), "x").unwrap();
        // Without permissions not even its owner removes what is in it.
        for name in ["closed/below", "closed"] {
            fs::set_permissions(left.join(name), fs::Permissions::from_mode(0o000)).unwrap();
        }
        left
    };
    let user =
        || Some(if nix::unistd::geteuid().is_root() { "4321:4321".into() } else { nix::unistd::geteuid().to_string() });
    fs::set_permissions(desk.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(desk.path("own")).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(desk.path("own"), Some(4321), Some(4321)).unwrap();
    }
    let spec = UploadSpec { user: user(), target: "own/d".into(), ..spec };
    for completes in [false, true] {
        let state = desk.begin(spec.clone()).await.unwrap();
        desk.part(&state.id, 0, &whole).await.unwrap();
        let left = leave(&state.id);
        let beside = desk.path(&format!("own/.d.{}", state.id));
        fs::rename(&left, &beside).unwrap();
        if nix::unistd::geteuid().is_root() {
            for name in ["", "closed", "closed/below", "closed/below/half"] {
                std::os::unix::fs::chown(beside.join(name), Some(4321), Some(4321)).unwrap();
            }
        }
        let op = if completes { UploadOp::Complete { sha256: None } } else { UploadOp::Abort };
        desk.ask(&state.id, op).await.unwrap();
        assert!(!beside.exists(), "complete: {completes}");
    }
    assert_eq!(desk.tree("own"), ["d/", "d/a = 1"]);
}

#[tokio::test]
async fn archives_are_extracted_as_the_conflict_says() {
    let desk = Desk::new().await;
    let first = [
        entry(b'5', "empty", "", 0o750, b""),
        file("a", "1"),
        file("sub/deep/b", "2"),
        entry(b'2', "sub/link", "../a", 0o777, b""),
        entry(b'1', "hard", "a", 0o644, b""),
        entry(b'0', "program", "", 0o4755, b"#!"),
    ];
    let state = desk.archive("d", UploadConflict::Error, &first).await.unwrap();
    assert_eq!((state.published_bytes, state.published_files), (4, 3));
    let expected =
        ["a = 1", "empty/", "hard = 1", "program = #!", "sub/", "sub/deep/", "sub/deep/b = 2", "sub/link -> ../a"];
    assert_eq!(desk.tree("d"), expected);
    assert_eq!(fs::metadata(desk.path("d/empty")).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(fs::metadata(desk.path("d/program")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(desk.path("d")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(desk.archive("d", UploadConflict::Error, &first).await, Err(UploadReason::Conflict));

    fs::set_permissions(desk.path("d/a"), fs::Permissions::from_mode(0o600)).unwrap();
    desk.archive("d", UploadConflict::Merge, &[file("a", "new"), file("c", "3")]).await.unwrap();
    assert!(desk.tree("d").contains(&"a = new".to_owned()) && desk.tree("d").contains(&"c = 3".to_owned()));
    assert_eq!(fs::metadata(desk.path("d/a")).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(desk.archive("d", UploadConflict::Merge, &[file("sub", "x")]).await, Err(UploadReason::Conflict));
    assert_eq!(desk.archive("d", UploadConflict::Merge, &[file("a/x", "x")]).await, Err(UploadReason::Conflict));

    fs::set_permissions(desk.path("d"), fs::Permissions::from_mode(0o711)).unwrap();
    desk.archive("d", UploadConflict::Replace, &[file("only", "4")]).await.unwrap();
    assert_eq!(desk.tree("d"), ["only = 4"]);
    assert_eq!(fs::metadata(desk.path("d")).unwrap().mode() & 0o7777, 0o711);
    fs::write(desk.path("file"), "").unwrap();
    assert_eq!(desk.archive("file", UploadConflict::Replace, &[]).await, Err(UploadReason::Conflict));
    assert!(
        fs::read_dir(desk.folder.path())
            .unwrap()
            .flatten()
            .all(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
    );
}

#[tokio::test]
async fn hostile_archives_make_nothing() {
    let desk = Desk::new().await;
    fs::write(desk.path("outside"), "safe").unwrap();
    let path = UploadReason::InvalidPath;
    let link = UploadReason::InvalidLink;
    let kind = UploadReason::UnsupportedEntry;
    for (what, reason, entries) in [
        ("absolute", path, vec![file("/etc/x", "")]),
        ("above", path, vec![file("a/../../x", "")]),
        ("link out", link, vec![entry(b'2', "l", "../outside", 0, b"")]),
        ("link out by links", link, vec![entry(b'2', "s", ".", 0, b""), entry(b'2', "l", "s/s/../../outside", 0, b"")]),
        ("absolute link", link, vec![entry(b'2', "l", "/etc", 0, b"")]),
        ("through a link", path, vec![entry(b'2', "l", "d", 0, b""), file("l/x", "")]),
        ("below a file", path, vec![file("f", ""), file("f/x", "")]),
        ("hard link out", path, vec![entry(b'1', "h", "../outside", 0, b"")]),
        ("hard link to nothing", link, vec![entry(b'1', "h", "f", 0, b"")]),
        ("hard link to a link", link, vec![entry(b'2', "l", "f", 0, b""), entry(b'1', "h", "l", 0, b"")]),
        ("device", kind, vec![entry(b'3', "d", "", 0, b"")]),
        ("fifo", kind, vec![entry(b'6', "p", "", 0, b"")]),
        ("itself", path, vec![file("./", "")]),
        ("no archive", kind, vec![vec![b'x'; 512]]),
    ] {
        let entries = [&[file("good", "")], &entries[..]].concat();
        for conflict in [UploadConflict::Error, UploadConflict::Merge] {
            assert_eq!(desk.archive("target", conflict, &entries).await, Err(reason), "{what}");
            assert!(!desk.path("target").exists(), "{what}");
        }
        // The disk of the test is the guest's: uploads that are not ended are counted.
        for number in [desk.next.get() - 2, desk.next.get() - 1] {
            desk.ask(&format!("up_{number:032x}"), UploadOp::Abort).await.unwrap();
        }
    }
    // What is there may be hostile, too.
    fs::create_dir_all(desk.path("there")).unwrap();
    symlink("..", desk.path("there/up")).unwrap();
    symlink("../outside", desk.path("there/file")).unwrap();
    assert_eq!(
        desk.archive("there", UploadConflict::Merge, &[file("up/outside", "x")]).await,
        Err(UploadReason::Conflict)
    );
    desk.archive("there", UploadConflict::Merge, &[file("file", "new")]).await.unwrap();
    assert_eq!(fs::read(desk.path("outside")).unwrap(), b"safe");
    assert_eq!(fs::read(desk.path("there/file")).unwrap(), b"new");
}

#[tokio::test]
async fn uploads_are_limited_and_a_key_begins_one() {
    let desk = Desk::new().await;
    assert_eq!(desk.begin(UploadSpec { bytes: 1 << 40, ..desk.spec("a", 0) }).await, Err(UploadReason::TooLarge));
    let keyed = || UploadSpec { key: Some("k".into()), ..desk.spec("a", 5) };
    let (first, again) = (desk.begin(keyed()).await.unwrap(), desk.begin(keyed()).await.unwrap());
    assert_eq!(first.id, again.id);
    for _ in 1..MAX_UPLOADS {
        desk.begin(desk.spec("b", 5)).await.unwrap();
    }
    let full = desk.agent.upload(&format!("up_{:032x}", 99), UploadOp::Create(desk.spec("c", 5))).await;
    assert!(matches!(&full, Err(AgentError::Failed(Failure { kind: FailureKind::Limit, .. }))), "{full:?}");
    for _ in 0..2 {
        assert_eq!(desk.ask(&first.id, UploadOp::Abort).await.unwrap().status, UploadStatus::Aborted);
    }
    desk.begin(desk.spec("c", 5)).await.unwrap();
    assert_eq!(desk.part(&first.id, 0, b"x").await.unwrap_err().reason, UploadReason::Aborted);
    for id in ["up_1", "../x", "up_/../../../../../../../../../../../../x", "up_ABCDEFABCDEFABCDEFABCDEFABCDEFAB"] {
        let unknown = desk.agent.upload(id, UploadOp::Look).await;
        assert!(
            matches!(&unknown, Err(AgentError::Failed(Failure { kind: FailureKind::NotFound, .. }))),
            "{id}: {unknown:?}"
        );
    }
}
