//! A real S3 server: SeaweedFS on loopback ports of its own, killed and restarted as a test wants.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Limits, Objects, S3Credentials, S3Settings};

/// A key that no error may show.
pub(super) const SECRET: &str = "canary-weed-secret";

/// A running server with the bucket `bucket`. It ends when this is dropped, or with the test.
pub(super) struct Weed {
    program: PathBuf,
    dir: TempDir,
    ports: [u16; 9],
    child: Child,
}

/// The server's program; `None` when only quick tests are wanted.
fn program() -> Option<PathBuf> {
    if std::env::var_os("NULLSPACE_TEST_COMPLETE").is_none() {
        println!("skipped: the tests on a real S3 server run when NULLSPACE_TEST_COMPLETE is set");
        return None;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/seaweedfs.sh");
    let output = Command::new(script).stderr(Stdio::inherit()).output().expect("run scripts/seaweedfs.sh");
    assert!(output.status.success(), "scripts/seaweedfs.sh failed");
    Some(String::from_utf8(output.stdout).unwrap().trim().into())
}

/// Ports that nobody uses now, below those of outgoing connections: they stay free while the server is away.
fn free_ports() -> [u16; 9] {
    let mut ports = [0; 9];
    for port in &mut ports {
        *port = loop {
            let random = u16::from_be_bytes([uuid::Uuid::new_v4().as_bytes()[0], uuid::Uuid::new_v4().as_bytes()[0]]);
            let port = 12_000 + random % 20_000;
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                break port;
            }
        };
    }
    ports
}

impl Weed {
    /// Starts a server; `None` when tests with servers are not wanted.
    pub(super) async fn start() -> Option<Weed> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (program, mut dir) = (program()?, tempfile::tempdir().unwrap());
        fs::create_dir(dir.path().join("data")).unwrap();
        certificates(dir.path());
        let identity = |id: &str, actions: &str| {
            let credentials = format!("[{{\"accessKey\":\"{id}\",\"secretKey\":\"{SECRET}\"}}]");
            format!("{{\"name\":\"{id}\",\"credentials\":{credentials},\"actions\":[{actions}]}}")
        };
        // An administrator's put would make a missing bucket.
        let all = identity("id", r#""Read","Write","List""#);
        let reader = identity("reader", r#""Read","List""#);
        let identities = format!("{{\"identities\":[{all},{reader}]}}");
        fs::write(dir.path().join("s3.json"), identities).unwrap();
        // Another process may take a port before the server does.
        for _ in 0..3 {
            let ports = free_ports();
            let child = spawn(&program, &dir, ports);
            let mut weed = Weed { program: program.clone(), dir, ports, child };
            if weed.wait().await {
                weed.make_bucket().await;
                return Some(weed);
            }
            weed.kill();
            dir = std::mem::replace(&mut weed.dir, tempfile::tempdir().unwrap());
        }
        panic!("weed does not start: {}", fs::read_to_string(dir.path().join("log")).unwrap_or_default());
    }

    /// Ends the server as `kill -9` does.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same data and ports.
    pub(super) async fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.program, &self.dir, self.ports);
        assert!(
            self.wait().await,
            "weed does not start again: {}",
            fs::read_to_string(self.dir.path().join("log")).unwrap()
        );
    }

    /// Waits until it answers: false when it ended.
    async fn wait(&mut self) -> bool {
        let began = Instant::now();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().unwrap();
        let url = format!("http://127.0.0.1:{}/healthz", self.ports[7]);
        while began.elapsed() < Duration::from_secs(90) {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        false
    }

    /// A bucket is a folder of the filer, which may start after the S3 server in front of it.
    async fn make_bucket(&self) {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
        let url = format!("http://127.0.0.1:{}/buckets/bucket/", self.ports[4]);
        let began = Instant::now();
        loop {
            match http.post(&url).send().await {
                Ok(answer) if answer.status().is_success() => return,
                outcome => assert!(began.elapsed() < Duration::from_secs(60), "no bucket can be made: {outcome:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Settings of the bucket.
    pub(super) fn settings(&self, prefix: &str) -> S3Settings {
        let credentials = S3Credentials::Keys {
            access_key_id: "id".to_owned(),
            secret_access_key: SECRET.into(),
            session_token: None,
        };
        S3Settings {
            endpoint: Some(format!("http://127.0.0.1:{}", self.ports[7])),
            prefix: prefix.to_owned(),
            ..S3Settings::new("bucket", credentials)
        }
    }

    /// Settings of the bucket by way of TLS, with a certificate that only the test's own CA vouches for.
    pub(super) fn tls_settings(&self) -> (S3Settings, Vec<u8>) {
        let endpoint = Some(format!("https://127.0.0.1:{}", self.ports[8]));
        (S3Settings { endpoint, ..self.settings("tls") }, fs::read(self.dir.path().join("ca.pem")).unwrap())
    }

    /// Uploads in parts that neither ended nor were discarded: folders of the filer.
    pub(super) async fn unfinished_uploads(&self) -> usize {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
        let url = format!("http://127.0.0.1:{}/buckets/bucket/.uploads/", self.ports[4]);
        let answer = http.get(url).header("Accept", "application/json").send().await.unwrap();
        if answer.status() == reqwest::StatusCode::NOT_FOUND {
            return 0;
        }
        assert!(answer.status().is_success(), "{answer:?}");
        answer.text().await.unwrap().matches("\"FullPath\"").count()
    }

    /// A store in the bucket.
    pub(super) fn store(&self, prefix: &str) -> Objects {
        Objects::s3(self.settings(prefix)).unwrap()
    }

    /// A store that waits long enough for a restart.
    pub(super) fn patient(&self, prefix: &str) -> Objects {
        let limits = Limits {
            request: Duration::from_secs(20),
            idle: Duration::from_secs(10),
            attempts: 12,
            backoff: Duration::from_millis(300),
            longest_backoff: Duration::from_secs(3),
            ..Limits::default()
        };
        self.store(prefix).with_limits(limits)
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        self.kill();
        // Sockets of a killed server, named by its ports.
        for entry in fs::read_dir("/tmp").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let own = |port: &u16| name.starts_with("seaweedfs-") && name.ends_with(&format!("-{port}.sock"));
            if self.ports.iter().any(own) {
                let _ = fs::remove_file(entry.path());
            }
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            println!("the server's log ends with:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

/// A CA, and a certificate of the server from it.
fn certificates(dir: &Path) {
    fs::write(dir.join("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for step in [
        format!("req -x509 -days 2 -subj /CN=CA -keyout ca.key -out ca.pem {key}"),
        format!("req -subj /CN=127.0.0.1 -keyout server.key -out server.csr {key}"),
        "x509 -req -days 2 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile extensions -out server.pem"
            .to_owned(),
    ] {
        let output = Command::new("openssl").args(step.split(' ')).current_dir(dir).output().expect("run openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn spawn(program: &PathBuf, dir: &TempDir, ports: [u16; 9]) -> Child {
    let log = File::options().append(true).create(true).open(dir.path().join("log")).unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    // setpriv: the server ends when the test does, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program).args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
    command.args([
        format!("-dir={}", at("data")),
        format!("-s3.config={}", at("s3.json")),
        format!("-s3.cert.file={}", at("server.pem")),
        format!("-s3.key.file={}", at("server.key")),
    ]);
    let names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"];
    let names = names.into_iter().chain(["s3.port.grpc", "s3.port", "s3.port.https"]);
    command.args(names.zip(ports).map(|(name, port)| format!("-{name}={port}")));
    command.args([
        "-filer",
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false",
        "-volume.max=20",
        "-master.volumeSizeLimitMB=256",
    ]);
    command.args(["-master.telemetry=false", "-volume.minFreeSpacePercent=0"]);
    command.env_clear().env("HOME", dir.path()).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.current_dir(dir.path()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().expect("run setpriv (Debian package util-linux) and weed")
}
