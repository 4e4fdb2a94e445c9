//! Dockerfiles in folders of their own (`tests/dockerfiles`), and lists of steps (`tests/steps`) with the Dockerfiles that
//! the service's plan renders them as: what the service makes of each is what `docker build` makes.
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
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nullspace_api::{TemplateBuildPlanResponse, TemplateBuildStatus as Status};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use crate::fixture::{Docker, Image, Registry, Service, debian, is_long, until};

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

/// What the guest makes where the image has none, and the identity that it draws.
const GUEST: [&str; 6] = ["etc/machine-id", "run", "run/nullspace", "tmp", "var", "var/tmp"];

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

/// Permission bits, user and group of a file in an ext4 image, as `debugfs` tells them: rdump leaves out setuid, setgid and
/// sticky bits, and links' owners.
fn inode(image: &Path, path: &str) -> (u32, u32, u32) {
    let shown = run(Command::new("/sbin/debugfs").args(["-R", &format!("stat \"/{path}\"")]).arg(image));
    let shown = String::from_utf8_lossy(&shown).into_owned();
    let number = |name: &str, radix| {
        let (_, behind) = shown.split_once(name).unwrap_or_else(|| panic!("{path}: {shown}"));
        u32::from_str_radix(behind.split_whitespace().next().unwrap_or_default(), radix).expect("digits")
    };
    (number("Mode:", 8), number("User:", 10), number("Group:", 10))
}

/// Of so many Dockerfiles one has a machine that boots from its image; in `make test-long` each has. The files are compared of all.
const BOOTED: usize = 4;

/// Of so many Dockerfiles one is built; in `make test-long` all are.
const SAMPLED: usize = 3;

/// Comparisons with one engine. Each runs in a thread of its own, one at a time, beside the build of the next case: the
/// service's machines and the engine keep a processor busy each.
struct Comparisons {
    docker: Arc<Docker>,
    running: Option<JoinHandle<Vec<String>>>,
    differ: Vec<String>,
}

/// A root image and what it must be equal to.
struct Case {
    name: String,
    image: PathBuf,
    /// The build context with its Dockerfile.
    folder: PathBuf,
    /// Not compared, with all below.
    left_out: Vec<String>,
}

impl Comparisons {
    fn new(docker: &Arc<Docker>) -> Comparisons {
        Comparisons { docker: Arc::clone(docker), running: None, differ: Vec::new() }
    }

    /// Waits for the comparison before this one, and starts this one.
    async fn start(&mut self, case: Case) {
        self.wait().await;
        let docker = Arc::clone(&self.docker);
        self.running = Some(tokio::task::spawn_blocking(move || case.differences(&docker)));
    }

    async fn wait(&mut self) {
        if let Some(running) = self.running.take() {
            self.differ.extend(running.await.expect("a comparison"));
        }
    }

    /// All that differs.
    async fn end(mut self) -> Vec<String> {
        self.wait().await;
        self.differ
    }
}

fn images(service: &Service) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(service.data().join("rootfs")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The one root image that is there and was not before, when there is one.
async fn new_image(service: &Service, before: &BTreeSet<PathBuf>) -> PathBuf {
    until("a root image", Duration::from_secs(120), async || !images(service).is_subset(before)).await;
    let made: Vec<PathBuf> = images(service).difference(before).cloned().collect();
    let [image] = made.as_slice() else { panic!("{made:?}") };
    image.clone()
}

impl Case {
    /// How the files of the root image differ from those of a `docker build` of the folder.
    fn differences(self, docker: &Docker) -> Vec<String> {
        let Case { name, image, folder, left_out } = &self;
        let scratch = docker.data().parent().unwrap().join("trees");
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
        for (path, what) in mine.iter_mut().filter(|(path, what)| docks.get(*path).is_some_and(|there| there != *what))
        {
            let (mode, uid, gid) = inode(image, path);
            let (_, rest) =
                what.split_once(' ').and_then(|(_, rest)| rest.split_once(' ')).expect("mode, owner, content");
            let mode = if rest.starts_with("link") { 0 } else { mode };
            *what = format!("{mode:o} {uid}:{gid} {rest}");
        }
        let is_left_out = |path: &String| {
            let guests = GUEST.contains(&path.as_str()) && !docks.contains_key(path);
            guests || left_out.iter().any(|left| Path::new(path).starts_with(left))
        };
        let names: BTreeSet<&String> = mine.keys().chain(docks.keys()).collect();
        let differ = names.into_iter().filter(|path| mine.get(*path) != docks.get(*path) && !is_left_out(path));
        let said = |path: &String| format!("{name}: /{path}: here {:?}, docker {:?}", mine.get(path), docks.get(path));
        let differ = differ.map(said).collect();
        fs::remove_dir_all(&scratch).unwrap();
        differ
    }
}

/// The files or folders of a folder of cases, in order.
fn cases(folder: &str) -> Vec<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut cases: Vec<PathBuf> = fs::read_dir(top).unwrap().flatten().map(|entry| entry.path()).collect();
    cases.sort();
    cases
}

#[tokio::test]
async fn dockerfiles_make_the_files_that_docker_makes() {
    let registry = Registry::start();
    registry.push("library/box", "1", &Image::busybox()).await;
    let docker = Arc::new(Docker::start(&registry.as_hub()));
    let mut service = Service::with([docker.setting()]).await;
    let folders = cases("dockerfiles");
    assert!(folders.len() >= 40, "{}", folders.len());
    let folders: Vec<PathBuf> = if is_long() { folders } else { folders.into_iter().step_by(SAMPLED).collect() };
    let (mut comparisons, mut machine) = (Comparisons::new(&docker), None::<JoinHandle<()>>);
    let kept = service.data().join("../images");
    fs::create_dir(&kept).unwrap();
    for (number, folder) in folders.iter().enumerate() {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(folder.join("Dockerfile")).unwrap();
        let request = json!({
            "dockerfile": text, "build_context": {"files": context(folder)},
            "build_config": {"memory_mib": 192, "disk_mb": 512}, "skip_cache": true,
        });
        // The image is laid out before its machine starts: while that boots, the next image is made.
        let (api, before) = (service.api(), images(&service));
        let build_id = api.start(request).await.build_id;
        let made = new_image(&service, &before).await;
        // No template needs the image of a build that is cancelled: it may be collected before it is compared.
        let image = kept.join(&name);
        fs::hard_link(made, &image).unwrap();
        let boots = number % BOOTED == 0 || is_long();
        let ended = tokio::spawn(async move {
            if !boots {
                api.cancel(&build_id, "its files are enough").await;
            }
            let finished = api.finished(&build_id).await;
            let is_early = !boots && finished.build.status == Status::Cancelled;
            assert!(is_early || finished.build.status == Status::Ready, "{finished:?}");
        });
        if let Some(earlier) = machine.replace(ended) {
            earlier.await.expect("the build's end");
        }
        comparisons.start(Case { name, image, folder: folder.clone(), left_out: Vec::new() }).await;
    }
    machine.expect("a build").await.expect("the build's end");
    let differ = comparisons.end().await;
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    println!("{} Dockerfiles", folders.len());
    service.stop().await;
}

/// The folder that a request's build context describes.
fn lay_out(files: &[Value], folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let set_mode = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for file in files {
        let path = folder.join(file["path"].as_str().unwrap());
        let mode = u32::from_str_radix(file["mode"].as_str().unwrap(), 8).unwrap();
        if file["entry_type"] == "dir" {
            fs::create_dir_all(&path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, STANDARD.decode(file["content_base64"].as_str().unwrap()).unwrap()).unwrap();
        }
        set_mode(&path, mode);
    }
}

#[tokio::test]
async fn every_step_makes_the_files_that_its_dockerfile_makes() {
    let registry = Registry::start();
    registry.push("library/box", "1", &Image::busybox()).await;
    registry.push("library/debian", "1", &debian::image()).await;
    let docker = Arc::new(Docker::start(&registry.as_hub()));
    let mut service = Service::with([docker.setting(), registry.as_mirror_of("docker.io")]).await;
    let api = service.api();
    // Both bases are there before the first image is looked for.
    for base in ["box:1", "debian:1"] {
        api.ready(json!({"base_image": base, "build_config": {"memory_mib": 192, "disk_mb": 1024}})).await;
    }
    let files = cases("steps");
    let (mut comparisons, mut actions) = (Comparisons::new(&docker), BTreeSet::new());
    for case in &files {
        let name = case.file_stem().unwrap().to_str().unwrap().to_owned();
        let case: Value = serde_json::from_str(&fs::read_to_string(case).unwrap()).unwrap();
        let base = case["base"].as_str().unwrap_or("box:1");
        let context = case["files"].as_array().cloned().unwrap_or_default();
        let request = json!({
            "base_image": base, "steps": case["steps"], "build_context": {"files": context},
            "build_config": {"memory_mib": 192, "disk_mb": 1024},
        });
        actions
            .extend(case["steps"].as_array().unwrap().iter().map(|step| step["action"].as_str().unwrap().to_owned()));
        let plan: TemplateBuildPlanResponse = api.post("/v1/templates/plan", request.clone()).await.ok(200);
        let mut text = format!("FROM {base}\nWORKDIR /workspace\n");
        for line in &plan.build_plan.build_steps {
            text += &format!("{} {}\n", line["instruction"].as_str().unwrap(), line["arguments"].as_str().unwrap());
        }
        let folder = service.data().join("../context").join(&name);
        lay_out(&context, &folder);
        // Beside the context, so that `COPY .` does not take it along.
        fs::write(folder.join("Dockerfile"), text).unwrap();
        fs::write(folder.join(".dockerignore"), "Dockerfile\n.dockerignore\n").unwrap();
        let left_out: Vec<String> = serde_json::from_value(case["leave_out"].clone()).unwrap_or_default();
        // The image of steps is laid out behind the build's end.
        let before = images(&service);
        api.ready(request).await;
        let image = new_image(&service, &before).await;
        comparisons.start(Case { name, image, folder, left_out }).await;
    }
    let differ = comparisons.end().await;
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    println!("{} lists of steps with {actions:?}", files.len());
    service.stop().await;
}
