//! Who is asked for credentials, who gets them, and who never does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nullspace_oci::import::{ImportError, ImportOptions};
use nullspace_oci::registry::{Credentials, RegistryConfig, RegistryError};
use serde_json::json;

use crate::import::{config, pull, repository, three_layers};
use crate::registry::{PASSWORD, basic, failure, is_blob, is_layer, small, success, user};
use crate::support::server::{Answer, Server, ranged};

#[tokio::test(flavor = "multi_thread")]
async fn bearer_token_is_fetched_with_basic_and_used_for_everything() {
    let tokens = Server::start(|request| {
        assert!(request.target.contains("service=registry.test"), "{}", request.target);
        assert!(request.target.contains("scope=repository%3Aapp%3Apull"), "{}", request.target);
        match request.headers.get("authorization") {
            Some(given) if *given == basic(PASSWORD) => {
                Answer::new(200, r#"{"access_token":"t0ken","expires_in":300}"#)
            }
            _ => Answer::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}"#),
        }
    });
    let realm = format!("http://{}/token", tokens.host());
    let server = Server::of_image(three_layers(), move |request| {
        if request.target == "/v2/" || request.headers.get("authorization").is_some_and(|given| given == "Bearer t0ken")
        {
            return None;
        }
        let challenge = format!(r#"Bearer realm="{realm}",service="registry.test",scope="repository:app:pull""#);
        Some(Answer::new(401, "{}").header("WWW-Authenticate", challenge))
    });
    success(&server, config(), user(PASSWORD)).await;
    assert_eq!(tokens.targets().len(), 1, "one token serves the whole pull");
    assert!(
        server
            .requests
            .lock()
            .unwrap()
            .iter()
            .all(|request| { !request.headers.get("authorization").is_some_and(|given| given.starts_with("Basic")) })
    );
    let error = failure(&server, config(), user("wrong")).await;
    let ImportError::Registry(error) = error else { panic!("{error:?}") };
    assert!(error.is_unauthorized() && !error.is_retryable());
    assert!(error.to_string().contains("incorrect username or password"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_token_is_renewed_in_the_middle_of_a_pull() {
    let issued = Arc::new(AtomicUsize::new(0));
    let count = issued.clone();
    let tokens = Server::start(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        Answer::new(200, format!(r#"{{"token":"t{number}"}}"#))
    });
    let realm = format!("http://{}/token", tokens.host());
    // The registry takes the first token for documents only.
    let server = Server::of_image(small(), move |request| {
        let given = request.headers.get("authorization").map(String::as_str);
        let image = small();
        let good = match given {
            Some("Bearer t0") => !is_layer(request, &image),
            Some(_) => true,
            None => request.target == "/v2/",
        };
        let challenge = format!(r#"Bearer realm="{realm}""#);
        (!good).then(|| Answer::new(401, "{}").header("WWW-Authenticate", challenge))
    });
    success(&server, config(), Credentials::Anonymous).await;
    assert_eq!(issued.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_authentication_works_and_a_wrong_password_is_told() {
    let server = Server::of_image(small(), |request| match request.headers.get("authorization") {
        Some(given) if *given == basic(PASSWORD) => None,
        _ => Some(
            Answer::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#)
                .header("WWW-Authenticate", r#"Basic realm="x""#),
        ),
    });
    success(&server, config(), user(PASSWORD)).await;
    for credentials in [user("wrong"), Credentials::Anonymous] {
        match failure(&server, config(), credentials).await {
            ImportError::Registry(RegistryError::Unauthorized { message, .. }) => {
                assert_eq!(message, "authentication required");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forbidden_is_unauthorized() {
    let server = Server::of_image(small(), |request| is_blob(request).then(|| Answer::new(403, "<html>")));
    let ImportError::Registry(error) = failure(&server, config(), user(PASSWORD)).await else { panic!() };
    assert!(error.is_unauthorized() && !error.is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_to_another_host_carries_no_credentials() {
    let image = small();
    let stored = image.clone();
    let storage = Server::start(move |request| {
        assert!(!request.headers.contains_key("authorization"), "credentials went to another host");
        let name = request.target.split('?').next().unwrap().trim_start_matches('/').to_owned();
        let blob = stored.layers.iter().chain([&stored.config]).find(|blob| blob.digest.as_str() == name).unwrap();
        ranged(&blob.bytes, request)
    });
    let target = storage.host();
    let server = Server::of_image(image, move |request| {
        if request.headers.get("authorization").is_none_or(|given| *given != basic(PASSWORD)) {
            return Some(Answer::new(401, "").header("WWW-Authenticate", "Basic realm=x"));
        }
        let name = request.target.rsplit('/').next().unwrap();
        is_blob(request)
            .then(|| Answer::new(307, "").header("Location", format!("http://{target}/{name}?signature=s3cret")))
    });
    success(&server, config(), user(PASSWORD)).await;
    assert_eq!(storage.targets().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_is_asked_first_and_gets_only_its_own_credentials() {
    let image = small();
    let mirror = Server::of_image(image.clone(), |request| {
        let given = request.headers.get("authorization");
        assert!(given.is_none_or(|given| *given == format!("Basic {}", STANDARD.encode("mirror:p@ss"))), "{given:?}");
        assert!(request.target.starts_with("/v2/cache/hub/library/app/"), "{}", request.target);
        given.is_none().then(|| Answer::new(401, "").header("WWW-Authenticate", "Basic realm=x"))
    });
    let mut config = config();
    let url = format!("http://mirror:p%40ss@{}/cache/hub", mirror.host()).parse().unwrap();
    config.mirrors.insert("docker.io".to_owned(), vec![url]);
    assert!(!format!("{config:?}").contains("p%40ss"));
    let repository = repository(config, "app:1", user(PASSWORD));
    let (resolved, _) = pull(&repository, ImportOptions::default()).await.unwrap();
    assert_eq!(resolved.reference.to_string(), "docker.io/library/app:1");
    assert_eq!(resolved.digest, image.manifest.digest);
}

/// A registry that takes one Basic login.
fn guarded(login: &'static str) -> Server {
    Server::of_image(small(), move |request| match request.headers.get("authorization") {
        Some(given) if *given == format!("Basic {}", STANDARD.encode(login)) => None,
        _ if request.target == "/v2/" => None,
        _ => Some(Answer::new(401, "").header("WWW-Authenticate", r#"Basic realm="x""#)),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn aws_identity_is_exchanged_for_an_ecr_login() {
    let api = Server::start(|request| {
        let header = |name: &str| request.headers.get(name).map(String::as_str).unwrap_or_default();
        assert_eq!(header("x-amz-target"), "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken");
        assert!(!format!("{:?}", request.headers).contains(PASSWORD), "the secret key must not be sent");
        let authorization = header("authorization");
        if !authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKID/") {
            return Answer::new(400, r#"{"__type":"UnrecognizedClientException"}"#);
        }
        assert!(authorization.contains("/eu-central-1/ecr/aws4_request"), "{authorization}");
        assert!(authorization.contains("SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target"));
        assert_eq!(header("x-amz-security-token"), "session");
        let token = STANDARD.encode("AWS:ecr-password");
        Answer::new(200, format!(r#"{{"authorizationData":[{{"authorizationToken":"{token}","expiresAt":4e9}}]}}"#))
    });
    let registry = guarded("AWS:ecr-password");
    let credentials = |id: &str| Credentials::AwsEcr {
        access_key_id: id.to_owned(),
        secret_access_key: PASSWORD.into(),
        region: "eu-central-1".to_owned(),
        session_token: Some("session".into()),
    };
    let endpoint = Some(format!("http://{}/", api.host()).parse().unwrap());
    let with_endpoint = RegistryConfig { ecr_endpoint: endpoint, ..config() };
    success(&registry, with_endpoint.clone(), credentials("AKID")).await;
    assert_eq!(api.targets().len(), 1, "one login serves the whole pull");
    let ImportError::Registry(error) = failure(&registry, with_endpoint, credentials("OTHER")).await else { panic!() };
    assert!(error.is_unauthorized(), "{error:?}");
    // Without a private endpoint, only registries of AWS get a login.
    let ImportError::Registry(error) = failure(&registry, config(), credentials("AKID")).await else { panic!() };
    assert!(error.to_string().contains("not one of its registries"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn google_service_account_is_exchanged_for_an_access_token() {
    let output = std::process::Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .output()
        .expect("run openssl");
    let key = String::from_utf8(output.stdout).unwrap();
    let file = json!({"type": "service_account", "client_email": "a@b", "private_key_id": "1", "private_key": key});
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let seen = bodies.clone();
    let tokens = Server::start(move |request| {
        seen.lock().unwrap().push(request.body.clone());
        Answer::new(200, r#"{"access_token":"google-token","expires_in":3599,"token_type":"Bearer"}"#)
    });
    let registry = guarded("oauth2accesstoken:google-token");
    let url = Some(format!("http://{}/token", tokens.host()).parse().unwrap());
    let with_url = RegistryConfig { gcp_token_url: url, ..config() };
    let credentials = |text: String| Credentials::GcpServiceAccount { key_file: text.into() };
    success(&registry, with_url.clone(), credentials(file.to_string())).await;
    let body = String::from_utf8(bodies.lock().unwrap()[0].clone()).unwrap();
    let assertion = body.split_once("&assertion=").unwrap().1;
    let (message, signature) = assertion.rsplit_once('.').unwrap();
    let decode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&decode(message.split_once('.').unwrap().1)).unwrap();
    assert_eq!(claims["iss"], "a@b");
    // openssl agrees that the assertion is signed by the account's key.
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("key"), &key).unwrap();
    std::fs::write(path("signature"), decode(signature)).unwrap();
    std::fs::write(path("message"), message).unwrap();
    let verified = std::process::Command::new("openssl")
        .args(["dgst", "-sha256", "-prverify", "key", "-signature", "signature", "message"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    for (config, file) in [(with_url, format!("{{\"private_key\":\"{PASSWORD}\"}}")), (config(), file.to_string())] {
        let ImportError::Registry(error) = failure(&registry, config, credentials(file)).await else { panic!() };
        assert!(error.is_unauthorized(), "{error:?}");
    }
}
