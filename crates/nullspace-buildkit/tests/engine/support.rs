//! Jobs to be built, and archives to be looked into.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use nullspace_buildkit::{Archive, BuildKit, Endpoint, Error, Event, Job, Output, Source, Tree};
use tokio_util::sync::CancellationToken;

use crate::dir::TestDir;
use crate::docker::Docker;

pub(crate) fn kit(docker: &Docker) -> BuildKit {
    BuildKit::new(Endpoint::Docker(docker.socket()), None)
}

/// A job and the folder that its archive goes to.
pub(crate) struct Fixture {
    dir: TestDir,
    tree: Tree,
    pub(crate) job: Job,
}

pub(crate) fn with(dockerfile: &str, change: impl FnOnce(&mut Job)) -> Fixture {
    let mut fixture = Fixture::new(dockerfile);
    change(&mut fixture.job);
    fixture
}

impl Fixture {
    /// A build of this Dockerfile; its context has `busybox`.
    pub(crate) fn new(text: &str) -> Fixture {
        let dir = TestDir::new();
        let (mut tree, mut dockerfile) = (Tree::default(), Tree::default());
        let busybox = PathBuf::from("/bin/busybox");
        let bytes = busybox.metadata().expect("busybox-static").len();
        tree.file("busybox", Some(0o755), Source::File { path: busybox, bytes }).unwrap();
        dockerfile.file("Dockerfile", None, Source::Memory(Bytes::copy_from_slice(text.as_bytes()))).unwrap();
        let job = Job {
            id: uuid::Uuid::new_v4().simple().to_string(),
            context_key: uuid::Uuid::new_v4().to_string(),
            context: Arc::default(),
            dockerfile: Arc::new(dockerfile),
            filename: "Dockerfile".to_owned(),
            args: Default::default(),
            target: None,
            platform: "linux/amd64".to_owned(),
            no_cache: false,
            network: true,
            cache_namespace: "tests".to_owned(),
            secrets: Default::default(),
            logins: Default::default(),
            output: Output::Image,
            archive: dir.path().join("archive.tar"),
            archive_limit: 4 << 30,
            repository: "nullspace-test".to_owned(),
        };
        Fixture { dir, tree, job }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn tree(&mut self) -> &mut Tree {
        &mut self.tree
    }

    pub(crate) fn file(&mut self, name: &str, content: &str) {
        self.tree.file(name, None, Source::Memory(Bytes::copy_from_slice(content.as_bytes()))).unwrap();
    }

    /// The same job under another name.
    pub(crate) fn again(&mut self) -> &mut Fixture {
        self.job.id = uuid::Uuid::new_v4().simple().to_string();
        std::fs::remove_file(&self.job.archive).unwrap();
        self
    }

    pub(crate) fn job_ref(&self) -> Arc<Job> {
        Arc::new(Job { context: Arc::new(self.tree.clone()), ..self.job.clone() })
    }

    pub(crate) async fn build(&mut self, kit: &BuildKit) -> (Result<Archive, Error>, Vec<Event>) {
        let (sender, mut events) = tokio::sync::mpsc::channel(16);
        let cancel = CancellationToken::new();
        let building = kit.build(self.job_ref(), sender, &cancel);
        let mut seen = Vec::new();
        let watching = async {
            while let Some(event) = events.recv().await {
                seen.push(event);
            }
        };
        let (built, ()) = tokio::join!(building, watching);
        (built, seen)
    }

    fn manifest(&self) -> serde_json::Value {
        serde_json::from_slice(&tar(&self.job.archive, &["-xOf", "manifest.json"])).unwrap()
    }

    /// The image's configuration, of an archive as `docker save` writes it.
    pub(crate) fn config(&self) -> serde_json::Value {
        let name = self.manifest()[0]["Config"].as_str().unwrap().to_owned();
        serde_json::from_slice(&tar(&self.job.archive, &["-xOf", &name])).unwrap()
    }

    fn layers(&self) -> Vec<String> {
        let layers = self.manifest()[0]["Layers"].clone();
        layers.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    fn layer(&self, name: &str) -> PathBuf {
        let path = self.dir().join("layer.tar");
        std::fs::write(&path, tar(&self.job.archive, &["-xOf", name])).unwrap();
        path
    }

    /// Names in all layers.
    pub(crate) fn layer_names(&self) -> Vec<String> {
        let names = self.layers().into_iter().map(|name| String::from_utf8(tar(&self.layer(&name), &["-tf"])).unwrap());
        names.flat_map(|names| names.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// A file of the last layer.
    pub(crate) fn file_in_layers(&self, name: &str) -> Vec<u8> {
        tar(&self.layer(self.layers().last().unwrap()), &["-xOf", name])
    }
}

/// What `tar` prints: an option, and names in the archive.
pub(crate) fn tar(archive: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg(arguments[0]).arg(archive).args(&arguments[1..]).output().expect("run tar");
    assert!(output.status.success(), "tar {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The most memory that this process ever had, bytes.
pub(crate) fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
