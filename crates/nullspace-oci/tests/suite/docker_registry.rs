//! Debian's `docker-registry` on loopback: with TLS, with a password, pushed to by plain HTTP requests and pulled from.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nullspace_oci::import::{ImportError, ImportOptions};
use nullspace_oci::platform::Platform;
use nullspace_oci::registry::{Credentials, RegistryConfig, RegistryError};

use crate::import::{config, pull, repository, three_layers};
use crate::support::image::{Blob, Image};
use crate::support::sink::render;

const USER: &str = "user";
const PASSWORD: &str = "hunter2-canary";
/// bcrypt of the password.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuVg6uW7bHRPWZkTPjmKIf1dSrkXmege.\n";

struct DockerRegistry {
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

impl DockerRegistry {
    fn start(tls: bool, password: bool) -> DockerRegistry {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
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
        let registry = DockerRegistry { child, port, folder };
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "docker-registry does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        registry
    }

    fn ca(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("ca.pem")).unwrap()
    }

    fn reference(&self) -> String {
        format!("127.0.0.1:{}/team/app:v1", self.port)
    }

    async fn push(&self, image: &Image, tls: bool) {
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
