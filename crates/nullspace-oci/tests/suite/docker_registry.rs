//! Debian's `docker-registry` on loopback: with TLS, with a password, pushed to by plain HTTP requests and pulled from.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nullspace_oci::import::{ImportError, ImportOptions};
use nullspace_oci::platform::Platform;
use nullspace_oci::registry::{Credentials, RegistryConfig, RegistryError, Timeouts};

use crate::import::{config, pull, repository, three_layers};
use crate::support::image::{Blob, Image};
use crate::support::sink::{content, render};

const USER: &str = "user";
const PASSWORD: &str = "hunter2-canary";
/// bcrypt of the password.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuVg6uW7bHRPWZkTPjmKIf1dSrkXmege.\n";

pub(crate) struct DockerRegistry {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody uses, below those of outgoing connections: none of them takes it until the registry does.
fn free_port() -> u16 {
    loop {
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), Instant::now());
        let port = 12_000 + (random % 20_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl DockerRegistry {
    pub(crate) fn start(tls: bool, password: bool) -> DockerRegistry {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let port = free_port();
        let mut yaml = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            at("storage")
        );
        if tls {
            certificates(folder.path());
            yaml.push_str(&format!("  tls: {{certificate: {}, key: {}}}\n", at("server.pem"), at("server.key")));
        }
        if password {
            fs::write(at("htpasswd"), HTPASSWD).unwrap();
            yaml.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", at("htpasswd")));
        }
        fs::write(at("config.yml"), yaml).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", &at("config.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start docker-registry (Debian package docker-registry)");
        let mut registry = DockerRegistry { child, port, folder };
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(registry.child.try_wait().unwrap().is_none(), "docker-registry ended");
            assert!(begun.elapsed() < Duration::from_secs(60), "docker-registry does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        registry
    }

    fn ca(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("ca.pem")).unwrap()
    }

    pub(crate) fn reference(&self) -> String {
        format!("127.0.0.1:{}/team/app:v1", self.port)
    }

    pub(crate) async fn push(&self, image: &Image, tls: bool) {
        let mut client = reqwest::Client::builder().no_proxy();
        if tls {
            client = client.tls_certs_merge([reqwest::Certificate::from_pem(&self.ca()).unwrap()]);
        }
        let client = client.build().unwrap();
        let scheme = if tls { "https" } else { "http" };
        let base = format!("{scheme}://127.0.0.1:{}/v2/team/app", self.port);
        let sent = |request: reqwest::RequestBuilder| async move {
            let response = request.basic_auth(USER, Some(PASSWORD)).send().await.unwrap();
            assert!(response.status().is_success(), "{response:?}");
            response
        };
        let blobs: Vec<&Blob> = image.layers.iter().chain([&image.config]).collect();
        for blob in blobs {
            let begun = sent(client.post(format!("{base}/blobs/uploads/"))).await;
            let location = begun.headers()["location"].to_str().unwrap().to_owned();
            let url = format!("{location}&digest={}", blob.digest);
            sent(client.put(url).body(blob.bytes.clone())).await;
        }
        let request = client.put(format!("{base}/manifests/v1"));
        sent(request.header("Content-Type", image.manifest.media_type).body(image.manifest.bytes.clone())).await;
    }
}

/// A certificate authority and a server certificate of it for 127.0.0.1.
fn certificates(folder: &Path) {
    fs::write(folder.join("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let steps: [&[&str]; 3] = [
        &["req", "-x509", "-days", "2", "-subj", "/CN=Test CA", "-keyout", "ca.key", "-out", "ca.pem"],
        &["req", "-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"],
        &[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            "server.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            "extensions",
            "-out",
            "server.pem",
        ],
    ];
    for step in steps {
        let key = if step[0] == "req" { &key[..] } else { &[] };
        let output = Command::new("openssl").args(step).args(key).current_dir(folder).output().expect("run openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn user(password: &str) -> Credentials {
    Credentials::Basic { username: USER.to_owned(), password: password.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn image_is_pulled_from_docker_registry_over_plain_http() {
    let config = config();
    let registry = DockerRegistry::start(false, false);
    let image = three_layers();
    registry.push(&image, false).await;
    let repository = repository(config, &registry.reference(), Credentials::Anonymous);
    let (resolved, imported) = pull(&repository, ImportOptions::default()).await.unwrap();
    assert_eq!(resolved.digest, image.manifest.digest);
    assert!(render(&imported.tree).contains("link etc/passwd to=etc/copy"));
    // The tail of a blob, by Range.
    let layer = &resolved.layers[0];
    let mut blob = repository.blob(&layer.digest, layer.size, layer.size - 10);
    let mut tail = Vec::new();
    while let Some(bytes) = blob.next().await.unwrap() {
        tail.extend_from_slice(&bytes);
    }
    assert_eq!(tail, image.layers[0].bytes[image.layers[0].bytes.len() - 10..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_registry_with_tls_and_password() {
    let plain = config();
    let registry = DockerRegistry::start(true, true);
    let image = three_layers();
    registry.push(&image, true).await;
    let trusting = RegistryConfig { extra_ca_pem: Some(registry.ca()), ..plain.clone() };
    let resolve = |config: RegistryConfig, credentials: Credentials| {
        let repository = repository(config, &registry.reference(), credentials);
        async move { repository.resolve(Platform::LinuxAmd64).await }
    };
    assert_eq!(resolve(trusting.clone(), user(PASSWORD)).await.unwrap().digest, image.manifest.digest);
    for credentials in [user("wrong"), Credentials::Anonymous] {
        let error = resolve(trusting.clone(), credentials).await.unwrap_err();
        assert!(error.is_unauthorized() && !error.is_retryable(), "{error:?}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    // Without the CA the server is not trusted, and what it is told in plain text is no way around that.
    let error = resolve(RegistryConfig { attempts: 1, ..plain }, user(PASSWORD)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("certificate"), "{error}");
    let missing = repository(trusting, &format!("127.0.0.1:{}/team/app:none", registry.port), user(PASSWORD));
    let error = pull(&missing, ImportOptions::default()).await.unwrap_err();
    let ImportError::Registry(error) = error else { panic!("{error:?}") };
    assert!(error.is_not_found(), "{error:?}");
}

/// How the way to a registry fails.
#[derive(Clone, Copy)]
enum Fault {
    /// The connection closes after this many bytes from the registry.
    Cut(usize),
    /// After this many, nothing comes for a while.
    Stall(usize),
}

/// A bad line to a registry: the first connections that carry much fail, each in its way. Bytes are not looked at, so that
/// TLS and passwords stay between the two ends.
fn bad_line(to: u16, faults: &'static [Fault]) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let failed = Arc::new(AtomicUsize::new(0));
    let count = failed.clone();
    // Ends with the test's process: the threads wait for connections that nobody makes.
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", to))) else { continue };
            let count = count.clone();
            std::thread::spawn(move || relay(&client, &server, faults, &count));
        }
    });
    (port, failed)
}

fn relay(client: &TcpStream, server: &TcpStream, faults: &[Fault], failed: &AtomicUsize) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::copy(&mut &*client, &mut &*server);
            let _ = server.shutdown(std::net::Shutdown::Both);
        });
        let mut piece = [0; 64 << 10];
        let mut sent = 0;
        while let Ok(length @ 1..) = (&mut &*server).read(&mut piece) {
            if (&mut &*client).write_all(&piece[..length]).is_err() {
                break;
            }
            sent += length;
            let fault = faults.get(failed.load(Ordering::SeqCst));
            match fault {
                Some(Fault::Cut(after)) if sent >= *after => {
                    failed.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                Some(Fault::Stall(after)) if sent >= *after => {
                    failed.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_secs(2));
                }
                _ => {}
            }
        }
        let _ = client.shutdown(std::net::Shutdown::Both);
        let _ = server.shutdown(std::net::Shutdown::Both);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_truncated_blobs_of_docker_registry_are_resumed() {
    const FAULTS: &[Fault] = &[Fault::Cut(1_000_000), Fault::Stall(2_000_000), Fault::Cut(3_000_000)];
    let plain = config();
    let registry = DockerRegistry::start(true, true);
    let image = three_layers();
    registry.push(&image, true).await;
    let (port, failed) = bad_line(registry.port, FAULTS);
    let timeouts = Timeouts { idle: Duration::from_millis(500), ..Timeouts::default() };
    let config = RegistryConfig { extra_ca_pem: Some(registry.ca()), timeouts, ..plain };
    let repository = repository(config, &format!("127.0.0.1:{port}/team/app:v1"), user(PASSWORD));
    let (resolved, imported) = pull(&repository, ImportOptions::default()).await.unwrap();
    assert_eq!(resolved.digest, image.manifest.digest);
    assert_eq!(content(&imported.tree, "big").unwrap().len(), 12_000_000);
    assert_eq!(failed.load(Ordering::SeqCst), FAULTS.len());
}
