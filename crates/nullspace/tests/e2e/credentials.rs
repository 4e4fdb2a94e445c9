//! Registries that want a login, and the ways to have one that are not a user and password in the request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nullspace_api::{TemplateFailureDetailCode, TemplateFailurePhase as Phase};
use serde_json::{Value, json};

use crate::fixture::{Docker, Image, Registry, Service};

const PASSWORD: &str = "canary-registry-password";

/// A server of a cloud that gives the same answer to every request which holds `wanted`, and 400 to others.
fn cloud(wanted: &'static str, answer: Value) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test's process: nobody connects once the service has stopped.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|stream| respond(stream, wanted, &answer.to_string()));
        }
    });
    address
}

fn respond(mut stream: TcpStream, wanted: &str, answer: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
        let body = text.split_once("\r\n\r\n").map(|(head, body)| (head.to_owned(), body.len()));
        let whole = body.is_some_and(|(head, length)| {
            let announced = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            length >= announced.unwrap_or(0)
        });
        if whole {
            break;
        }
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            read => request.extend_from_slice(&piece[..read]),
        }
    }
    let request = String::from_utf8_lossy(&request);
    assert!(!request.contains("canary"), "a secret key was sent");
    let (status, body) = if request.contains(wanted) { ("200 OK", answer) } else { ("400 Bad Request", "{}") };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

fn request(reference: &str, auth: Value) -> Value {
    json!({"base_image": reference, "base_image_auth": auth, "build_config": {"memory_mib": 192}})
}

#[tokio::test]
async fn cloud_identities_are_exchanged_for_a_registrys_password() {
    let ecr_answer = json!({"authorizationData": [
        {"authorizationToken": STANDARD.encode(format!("AWS:{PASSWORD}")), "expiresAt": 4e9}
    ]});
    let ecr = cloud("Credential=AKIDGOOD/", ecr_answer);
    let google = cloud("grant_type=", json!({"access_token": PASSWORD, "expires_in": 3599, "token_type": "Bearer"}));
    let amazon_registry = Registry::start_with_password("AWS", PASSWORD);
    let google_registry = Registry::start_with_password("oauth2accesstoken", PASSWORD);
    amazon_registry.push("box", "1", &Image::busybox()).await;
    google_registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::with([
        ("NULLSPACE_ECR_ENDPOINT", format!("http://{ecr}/")),
        ("NULLSPACE_GCP_TOKEN_URL", format!("http://{google}/token")),
    ])
    .await;
    let api = service.api();

    let identity = |id: &str| json!({"kind": "aws_ecr", "access_key_id": id, "secret_access_key": "canary-aws-key", "region": "eu-west-1"});
    let reference = amazon_registry.reference("box:1");
    api.ready(request(&reference, identity("AKIDGOOD"))).await;
    let detail = api.failed(request(&reference, identity("AKIDOTHER")), "registry_unauthorized").await;
    assert_eq!((detail.code, detail.phase), (TemplateFailureDetailCode::Unauthorized, Phase::Auth), "{detail:?}");

    let key =
        Command::new("openssl").args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]).output();
    let key = String::from_utf8(key.expect("run openssl").stdout).unwrap();
    let file = json!({"type": "service_account", "client_email": "a@b", "private_key_id": "1", "private_key": key});
    let account = |file: Value| json!({"kind": "gcp_artifact_registry", "service_account_json": file});
    let reference = google_registry.reference("box:1");
    api.ready(request(&reference, account(file.clone()))).await;
    // As text, as people paste it; and one that is no key.
    api.ready(request(&reference, account(file.to_string().into()))).await;
    let detail =
        api.failed(request(&reference, account(json!({"private_key": "canary-no-key"}))), "registry_unauthorized");
    assert_eq!(detail.await.phase, Phase::Auth);

    assert!(!service.log().lines().join("\n").contains("canary"));
    service.stop().await;
    let grep = Command::new("grep").args(["-rlaF", "-e", "canary-"]).arg(service.data()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "", "files with a credential");
}

#[tokio::test]
async fn the_hosts_docker_config_serves_builds_without_credentials_when_it_is_set() {
    let registry = Registry::start_with_password("host", PASSWORD);
    registry.push("private", "1", &Image::busybox()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let auth = STANDARD.encode(format!("host:{PASSWORD}"));
    let config = json!({"auths": {registry.address(): {"auth": auth}}, "credHelpers": {"aws.example": "ecr-login"}});
    std::fs::write(&path, config.to_string()).unwrap();
    let reference = registry.reference("private:1");

    let docker = Docker::start(&[]);
    let dockerfile = json!({
        "dockerfile": format!("FROM {reference}\nRUN echo made >/made\n"), "build_config": {"memory_mib": 192},
    });
    let settings = [("NULLSPACE_DOCKER_CONFIG", path.display().to_string()), docker.setting()];
    let mut service = Service::with(settings).await;
    let api = service.api();
    api.ready(request(&reference, Value::Null)).await;
    api.ready(dockerfile.clone()).await;
    // Credentials of the request win over the host's, wrong ones too.
    let wrong = json!({"kind": "basic", "username": "host", "password": "canary-wrong"});
    let detail = api.failed(request(&reference, wrong), "registry_unauthorized").await;
    assert_eq!(detail.phase, Phase::Auth, "{detail:?}");
    let log = service.log().lines().join("\n");
    assert!(log.contains("aws.example") && !log.contains("canary"), "{log}");
    service.stop().await;

    // Not set, not used.
    let docker = Docker::start(&[]);
    let mut service = Service::with([docker.setting()]).await;
    for request in [request(&reference, Value::Null), dockerfile] {
        let detail = service.api().failed(request, "registry_unauthorized").await;
        assert_eq!(detail.phase, Phase::Auth, "{detail:?}");
    }
    service.stop().await;
}
