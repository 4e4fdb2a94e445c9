//! Dockerfiles in folders of their own (`tests/dockerfiles`): what the service makes of each is what `docker build` makes.
//!
//! ```text
//!   folder ── docker build, create, export ──> tar ──────> files ─┐
//!          └─ the service ── root image ── debugfs rdump ─> files ─┴─ equal: names, kinds, modes, owners, contents, links
//! ```
//! What a container gets when it is created is left out: `/.dockerenv`, `/dev`, `/proc`, `/sys` and three files of `/etc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fixture::{Docker, Image, Registry, Service};

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("run a program");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The folder as a build context.
fn context(folder: &Path) -> Vec<Value> {
    let mut files = Vec::new();
    let mut next = vec![folder.to_owned()];
    while let Some(dir) = next.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let (path, metadata) = (entry.path(), entry.metadata().unwrap());
            let mode = format!("{:o}", metadata.permissions().mode() & 0o7777);
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            if metadata.is_dir() {
                files.push(json!({"path": name, "entry_type": "dir", "mode": mode}));
                next.push(path);
            } else {
                let content = STANDARD.encode(fs::read(&path).unwrap());
                files.push(json!({"path": name, "entry_type": "file", "mode": mode, "content_base64": content}));
            }
        }
    }
    files
}

/// Every name below `dir` with all that is to be equal.
fn tree(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut next = vec![dir.to_owned()];
    while let Some(at) = next.pop() {
        for entry in fs::read_dir(&at).unwrap().flatten() {
            let path = entry.path();
            let name = String::from_utf8_lossy(path.strip_prefix(dir).unwrap().as_os_str().as_bytes()).into_owned();
            let left_out =
                [".dockerenv", "dev", "proc", "sys", "lost+found", "etc/hosts", "etc/hostname", "etc/resolv.conf"];
            if left_out.contains(&name.as_str()) || name == "etc/mtab" {
                continue;
            }
            let metadata = fs::symlink_metadata(&path).unwrap();
            let what = if metadata.is_dir() {
                next.push(path);
                "dir".to_owned()
            } else if metadata.is_symlink() {
                format!("link to {}", fs::read_link(&path).unwrap().display())
            } else {
                format!("file {} {}", metadata.len(), hex::encode(Sha256::digest(fs::read(&path).unwrap())))
            };
            let mode = if metadata.is_symlink() { 0 } else { metadata.mode() & 0o7777 };
            found.insert(name, format!("{mode:o} {}:{} {what}", metadata.uid(), metadata.gid()));
        }
    }
    // An image without /etc has one as a container.
    if !found.keys().any(|name| name.starts_with("etc/")) {
        found.remove("etc");
    }
    found
}

/// Permission bits of a file in an ext4 image, as `debugfs` reads them: `Mode:  04755`.
fn special_mode(image: &Path, path: &str) -> u32 {
    let shown = run(Command::new("/sbin/debugfs").args(["-R", &format!("stat \"/{path}\"")]).arg(image));
    let shown = String::from_utf8_lossy(&shown).into_owned();
    let (_, behind) = shown.split_once("Mode:").unwrap_or_else(|| panic!("{path}: {shown}"));
    u32::from_str_radix(behind.split_whitespace().next().unwrap_or_default(), 8).expect("octal digits")
}

#[tokio::test]
async fn every_dockerfile_makes_the_files_that_docker_makes() {
    let registry = Registry::start();
    registry.push("library/box", "1", &Image::busybox()).await;
    let docker = Docker::start(&registry.as_hub());
    let mut service = Service::with([docker.setting()]).await;
    let api = service.api();
    let scratch = docker.data().parent().unwrap().join("trees");
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dockerfiles");
    let mut folders: Vec<PathBuf> = fs::read_dir(top).unwrap().flatten().map(|entry| entry.path()).collect();
    folders.sort();
    assert!(folders.len() >= 40, "{}", folders.len());
    let images = || -> BTreeSet<PathBuf> {
        let entries = fs::read_dir(service.data().join("rootfs")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let mut differ = Vec::new();
    for folder in &folders {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let before = images();
        let text = fs::read_to_string(folder.join("Dockerfile")).unwrap();
        let request = json!({
            "dockerfile": text, "build_context": {"files": context(folder)},
            "build_config": {"memory_mib": 192, "disk_mb": 512}, "skip_cache": true,
        });
        let built = api.build(request).await;
        let made: Vec<PathBuf> = images().difference(&before).cloned().collect();
        let [image] = made.as_slice() else { panic!("{name}: {made:?} {built:?}") };
        let (ours, theirs) = (scratch.join("ours"), scratch.join("theirs"));
        for dir in [&ours, &theirs] {
            fs::create_dir_all(dir).unwrap();
        }
        let dump = format!("rdump / {}", ours.display());
        run(Command::new("/sbin/debugfs").args(["-R", &dump]).arg(image));

        docker.output(&["build", "-t", "theirs", folder.to_str().unwrap()]);
        let container = docker.output(&["create", "--network=none", "theirs", "true"]);
        let container = String::from_utf8(container).unwrap();
        let tar = scratch.join("theirs.tar");
        docker.output(&["export", "-o", tar.to_str().unwrap(), container.trim()]);
        docker.output(&["rm", "-v", container.trim()]);
        run(Command::new("tar").args(["--numeric-owner", "-xpf"]).arg(&tar).arg("-C").arg(&theirs));
        let (mut mine, docks) = (tree(&ours), tree(&theirs));
        // rdump leaves out setuid, setgid and sticky bits.
        for (path, what) in docks.iter().filter(|(_, what)| what.split(' ').next().is_some_and(|mode| mode.len() > 3)) {
            let mode = special_mode(image, path);
            if let Some((_, rest)) = mine.get(path).and_then(|found| found.split_once(' ')) {
                let found = format!("{mode:o} {rest}");
                assert_eq!(&found, what, "{name}: /{path}");
                mine.insert(path.clone(), found);
            }
        }
        let names: BTreeSet<&String> = mine.keys().chain(docks.keys()).collect();
        for path in names.into_iter().filter(|path| mine.get(*path) != docks.get(*path)) {
            differ.push(format!("{name}: /{path}: here {:?}, docker {:?}", mine.get(path), docks.get(path)));
        }
        fs::remove_dir_all(&scratch).unwrap();
        fs::create_dir_all(&scratch).unwrap();
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    println!("{} Dockerfiles", folders.len());
    service.stop().await;
}
