//! SSH into a sandbox with OpenSSH's client: commands, a terminal, a forwarded port, the end of an access.

use std::fs;
use std::process::{Output, Stdio};
use std::time::Duration;

use nullspace_api::{CreateApiKeyResponse, SshAccessResponse};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::fixture::dir::TestDir;
use crate::fixture::{Api, Image, Registry, Service};

/// What a loaded machine under software emulation may take for one session.
const PATIENCE: Duration = Duration::from_secs(120);

/// A client with a key, as the published client keeps it.
struct Client {
    folder: TestDir,
    access: SshAccessResponse,
}

impl Client {
    async fn new(api: &Api, sandbox: &str, request: Value) -> Client {
        let folder = TestDir::new();
        let key = folder.path().join("key");
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().await;
        assert!(made.expect("ssh-keygen of the package openssh-client").success());
        let mut request = request;
        request["public_key"] = fs::read_to_string(folder.path().join("key.pub")).unwrap().into();
        let access: SshAccessResponse = api.post(&format!("/v1/sandboxes/{sandbox}/ssh-access"), request).await.ok(200);
        fs::write(folder.path().join("key-cert.pub"), &access.certificate).unwrap();
        let host_key = access.host_key.as_ref().expect("a host key");
        let known = format!("[{}]:{} {host_key}\n", access.host, access.port);
        fs::write(folder.path().join("known_hosts"), known).unwrap();
        Client { folder, access }
    }

    /// `ssh`, as the published client calls it.
    fn ssh(&self, options: &[&str], words: &[&str]) -> Command {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let mut client = Command::new("ssh");
        client
            .args(["-F", "/dev/null", "-o", "BatchMode=yes", "-i", &at("key")])
            .args(["-o", &format!("CertificateFile={}", at("key-cert.pub")), "-o", "StrictHostKeyChecking=yes"])
            .args(["-o", &format!("UserKnownHostsFile={}", at("known_hosts"))])
            .args(["-p", &self.access.port.to_string()])
            .args(options)
            .arg(format!("{}@{}", self.access.user, self.access.host))
            .args(words)
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        client
    }

    /// Runs `ssh` to its end with this input.
    async fn run(&self, options: &[&str], words: &[&str], input: &[u8]) -> Output {
        let mut child = self.ssh(options, words).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input).await.unwrap();
        drop(stdin);
        tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("ssh hangs").unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn ssh_runs_commands_opens_terminals_and_forwards_ports_until_its_access_is_over() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::with([("NULLSPACE_SSH_LISTEN", "127.0.0.1:0".to_owned())]).await;
    let api = service.api();
    api.ready(json!({"name": "box", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}}))
        .await;
    let sandbox = api.sandbox("box").await;
    let path = format!("/v1/sandboxes/{}/ssh-access", sandbox.id);
    api.post(&path, json!({"public_key": "ssh-ed25519 AAAA"})).await.refused(400, "invalid_request");
    service.api_of("second").post(&path, json!({"public_key": "x"})).await.refused(404, "sandbox_not_found");

    let made: CreateApiKeyResponse = api.post("/v1/keys", json!({"name": "ssh"})).await.ok(201);
    let maker = Api::new(api.base(), made.key.expose());
    let client = Client::new(&maker, &sandbox.id, json!({"user": "app", "expires_in_minutes": 10})).await;
    assert_eq!((&client.access.user, client.access.host.as_str()), (&sandbox.id, "127.0.0.1"));

    // Commands: streams, user, exit status; more input than any buffer on the way.
    let ran = client.run(&[], &["id -u; wc -c; echo to stderr >&2; exit 42"], &vec![b'x'; 3 << 20]).await;
    assert_eq!(ran.status.code(), Some(42), "{}", text(&ran.stderr));
    assert_eq!(text(&ran.stdout), format!("1000\n{}\n", 3 << 20));
    assert_eq!(text(&ran.stderr), "to stderr\n");

    // A terminal.
    let ran = client.run(&["-tt"], &[], b"tty; stty size; exit 3\n").await;
    assert_eq!(ran.status.code(), Some(3), "{}", text(&ran.stderr));
    assert!(text(&ran.stdout).contains("/dev/pts/"), "{}", text(&ran.stdout));

    // There is no sftp server in this image.
    let ran = client.run(&["-s"], &["sftp"], b"").await;
    assert!(text(&ran.stderr).contains("the sandbox has no sftp server"), "{}", text(&ran.stderr));

    // A forwarded port.
    sandbox.sh("mkdir /srv && echo a page > /srv/index.html && busybox httpd -p 127.0.0.1:8000 -h /srv").await;
    let mut forwarded = client.ssh(&["-W", "localhost:8000"], &[]).spawn().unwrap();
    let mut stdin = forwarded.stdin.take().unwrap();
    stdin.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let reading = forwarded.stdout.as_mut().unwrap().read_to_string(&mut answer);
    tokio::time::timeout(PATIENCE, reading).await.expect("an answer in time").unwrap();
    assert!(answer.starts_with("HTTP/1.") && answer.contains("a page"), "{answer}");

    // The access ends with the key that made it, and its connections do.
    let mut running = client.ssh(&[], &["echo on; exec sleep 600"]).spawn().unwrap();
    let first = tokio::time::timeout(PATIENCE, running.stdout.as_mut().unwrap().read_u8()).await;
    assert_eq!(first.expect("the command starts in time").unwrap(), b'o');
    let _: Value = api.delete(&format!("/v1/keys/{}", made.id)).await.ok(200);
    let ended = tokio::time::timeout(Duration::from_secs(20), running.wait()).await;
    assert_eq!(ended.expect("the connection ends with its key").unwrap().code(), Some(255));
    let ran = client.run(&[], &["true"], b"").await;
    assert!(text(&ran.stderr).contains("Permission denied (publickey)"), "{}", text(&ran.stderr));

    // The server is known by the same key after a restart. An access ends with its sandbox, and its connections do.
    drop(forwarded);
    service.stop().await;
    service.restart().await;
    let api = service.api();
    let sandbox = api.sandbox("box").await;
    let again = Client::new(&api, &sandbox.id, json!({})).await;
    assert_eq!(again.access.host_key, client.access.host_key);
    let mut running = again.ssh(&[], &["id -u; exec sleep 600"]).spawn().unwrap();
    let first = tokio::time::timeout(PATIENCE, running.stdout.as_mut().unwrap().read_u8()).await;
    assert_eq!(first.expect("the command starts in time").unwrap(), b'0');
    let _: Value = api.delete(&format!("/v1/sandboxes/{}", sandbox.id)).await.ok(200);
    let ended = tokio::time::timeout(Duration::from_secs(20), running.wait()).await;
    assert_eq!(ended.expect("the connection ends with its sandbox").unwrap().code(), Some(255));
    let log = service.log().lines().join("\n");
    assert!(!log.contains(again.access.certificate.split_whitespace().nth(1).expect("the certificate")));
    service.stop().await;
}
