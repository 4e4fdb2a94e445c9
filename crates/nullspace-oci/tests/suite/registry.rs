//! The registry client against servers on loopback that misbehave in one way each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nullspace_oci::digest::Digest;
use nullspace_oci::import::{ImportError, ImportOptions, Progress};
use nullspace_oci::manifest::{Compression, FormatError};
use nullspace_oci::merge::LayerError;
use nullspace_oci::platform::Platform;
use nullspace_oci::registry::{Credentials, RegistryConfig, RegistryError, Timeouts};
use nullspace_oci::stream::StreamError;
use nullspace_oci::tar::TarError;
use serde_json::json;

use crate::import::{config, pull, repository, three_layers};
use crate::support::image::{Blob, INDEX, Image, MANIFEST, compress, image, image_for};
use crate::support::server::{Answer, Request, Server, answer, ranged};
use crate::support::sink::{content, render};
use crate::support::tar::{Item, archive};

pub(crate) const PASSWORD: &str = "hunter2-canary";

pub(crate) fn small() -> Image {
    image(&[(archive(&[Item::file("a", "hello")]), Compression::Gzip)])
}

pub(crate) fn user(password: &str) -> Credentials {
    Credentials::Basic { username: "user".to_owned(), password: password.into() }
}

pub(crate) fn basic(password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("user:{password}")))
}

pub(crate) fn is_blob(request: &Request) -> bool {
    request.target.contains("/blobs/")
}

pub(crate) fn is_layer(request: &Request, image: &Image) -> bool {
    image.layers.iter().any(|layer| request.target.ends_with(layer.digest.as_str()))
}

/// Pulls `app:1` from a server and returns the error it must end in.
pub(crate) async fn failure(server: &Server, config: RegistryConfig, credentials: Credentials) -> ImportError {
    let repository = repository(config, &format!("{}/app:1", server.host()), credentials);
    let error = pull(&repository, ImportOptions::default()).await.expect_err("the pull must fail");
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains(PASSWORD) && !shown.contains(&STANDARD.encode(PASSWORD)), "{shown}");
    }
    error
}

pub(crate) async fn success(server: &Server, config: RegistryConfig, credentials: Credentials) {
    let repository = repository(config, &format!("{}/app:1", server.host()), credentials);
    let (_, imported) = pull(&repository, ImportOptions::default()).await.unwrap();
    assert!(imported.tree.entries().len() > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_blob_is_resumed_by_range() {
    let image = three_layers();
    let big = image.layers[0].clone();
    let cuts = AtomicUsize::new(0);
    let server = Server::of_image(image, move |request| {
        if !request.target.ends_with(big.digest.as_str()) || cuts.fetch_add(1, Ordering::SeqCst) >= 3 {
            return None;
        }
        Some(Answer { cut_after: Some(1_000_000), ..ranged(&big.bytes, request) })
    });
    success(&server, config(), Credentials::Anonymous).await;
    let ranges: Vec<String> =
        server.requests.lock().unwrap().iter().filter_map(|request| request.headers.get("range").cloned()).collect();
    assert_eq!(ranges, ["bytes=1000000-", "bytes=2000000-", "bytes=3000000-"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_blob_is_completed_from_a_server_without_ranges() {
    let image = three_layers();
    let big = image.layers[0].clone();
    let cuts = AtomicUsize::new(0);
    let server = Server::of_image(image, move |request| {
        if !request.target.ends_with(big.digest.as_str()) {
            return None;
        }
        let cut = (cuts.fetch_add(1, Ordering::SeqCst) < 2).then_some(1_500_000);
        Some(Answer { cut_after: cut, unknown_length: false, ..Answer::new(200, big.bytes.clone()) })
    });
    success(&server, config(), Credentials::Anonymous).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_that_never_arrives_whole_is_given_up() {
    let image = small();
    let layer = image.layers[0].clone();
    let server = Server::of_image(image, move |request| {
        let wanted = request.target.ends_with(layer.digest.as_str());
        wanted.then(|| Answer { cut_after: Some(10), ..Answer::new(200, layer.bytes.clone()) })
    });
    let error = failure(&server, config(), Credentials::Anonymous).await;
    assert!(matches!(error, ImportError::Registry(RegistryError::Interrupted { received: 10, .. })), "{error:?}");
    assert!(error.is_retryable());
    assert_eq!(server.targets().iter().filter(|target| target.contains("/blobs/")).count(), 6, "config and 5 attempts");
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_that_stalls_or_crawls_is_resumed() {
    // Nothing for longer than the idle time; and always something, but too little.
    let idle = Timeouts { idle: Duration::from_secs(1), ..Timeouts::default() };
    let rate = Timeouts { rate_window: Duration::from_secs(1), min_rate: 200_000, ..Timeouts::default() };
    for (timeouts, trickle) in
        [(idle, (1_000_000, Duration::from_secs(60))), (rate, (1_000, Duration::from_millis(20)))]
    {
        let image = three_layers();
        let big = image.layers[0].clone();
        let slow = AtomicUsize::new(0);
        let server = Server::of_image(image, move |request| {
            if !request.target.ends_with(big.digest.as_str()) || slow.fetch_add(1, Ordering::SeqCst) >= 1 {
                return None;
            }
            Some(Answer { trickle: Some(trickle), ..ranged(&big.bytes, request) })
        });
        success(&server, RegistryConfig { timeouts, ..config() }, Credentials::Anonymous).await;
        let ranges =
            server.requests.lock().unwrap().iter().filter(|request| request.headers.contains_key("range")).count();
        assert!(ranges >= 1, "{timeouts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_server_is_given_up() {
    let server = Server::of_image(small(), |request| {
        (request.target != "/v2/").then(|| Answer { delay: Duration::from_secs(120), ..Answer::new(200, "") })
    });
    let timeouts = Timeouts { response: Duration::from_millis(100), ..Timeouts::default() };
    let config = RegistryConfig { timeouts, attempts: 2, ..config() };
    let begun = Instant::now();
    let error = failure(&server, config, Credentials::Anonymous).await;
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(matches!(error, ImportError::Registry(RegistryError::Unreachable { .. })), "{error:?}");
    assert!(error.is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_blob_is_a_digest_mismatch_whatever_it_looks_like() {
    let image = small();
    let right = &image.layers[0].bytes;
    // Another valid layer of the same length cannot be made easily; other bytes of that length can, in three shapes.
    let mut flipped_end = right.clone();
    *flipped_end.last_mut().unwrap() ^= 1;
    let mut flipped_magic = right.clone();
    flipped_magic[0] ^= 1;
    for wrong in [flipped_end, flipped_magic, vec![0; right.len()]] {
        let image = image.clone();
        let inner = image.clone();
        let server =
            Server::of_image(image, move |request| is_layer(request, &inner).then(|| Answer::new(200, wrong.clone())));
        let error = failure(&server, config(), Credentials::Anonymous).await;
        let ImportError::Registry(RegistryError::DigestMismatch { expected, actual, .. }) = &error else {
            panic!("{error:?}")
        };
        assert_ne!(expected, actual);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_manifest_or_config_is_a_digest_mismatch() {
    let config_of = |request: &Request| request.target.contains("/blobs/");
    let server = Server::of_image(small(), move |request| {
        config_of(request).then(|| Answer::new(200, " ".repeat(small().config.bytes.len())))
    });
    let error = failure(&server, config(), Credentials::Anonymous).await;
    assert!(matches!(error, ImportError::Registry(RegistryError::DigestMismatch { .. })), "{error:?}");
    // A pinned manifest is checked against the pin, a tagged one against the registry's own digest.
    let other = Digest::sha256(b"other");
    for reference in [format!("@{other}"), ":1".to_owned()] {
        let header = Digest::sha256(b"mangled").to_string();
        let server = Server::of_image(small(), move |request| {
            let manifest = Answer::new(200, small().manifest.bytes).header("Content-Type", MANIFEST);
            request.target.contains("/manifests/").then(|| manifest.header("Docker-Content-Digest", header.clone()))
        });
        let repository = repository(config(), &format!("{}/app{reference}", server.host()), Credentials::Anonymous);
        let error = repository.resolve(Platform::LinuxAmd64).await.unwrap_err();
        assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_sizes_are_told() {
    for (difference, fits) in [(-1_i64, false), (1, false), (0, true)] {
        let mut image = small();
        let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest.bytes).unwrap();
        let size = manifest["layers"][0]["size"].as_i64().unwrap();
        manifest["layers"][0]["size"] = json!(size + difference);
        image.manifest = Blob::new(manifest.to_string().into_bytes(), MANIFEST);
        for unknown_length in [false, true] {
            let inner = image.clone();
            let server = Server::of_image(image.clone(), move |request| {
                is_layer(request, &inner).then(|| Answer { unknown_length, ..answer(&inner, request) })
            });
            if fits {
                success(&server, config(), Credentials::Anonymous).await;
                continue;
            }
            let error = failure(&server, config(), Credentials::Anonymous).await;
            match error {
                ImportError::Registry(RegistryError::SizeMismatch { .. }) => {}
                // Without a length, a body that is too short looks like one that broke off.
                ImportError::Registry(
                    RegistryError::Interrupted { .. } | RegistryError::Status { status: 416, .. },
                ) if difference > 0 && unknown_length => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_waited_for() {
    let asked = AtomicUsize::new(0);
    let server = Server::of_image(small(), move |request| {
        let first = request.target.contains("/manifests/") && asked.fetch_add(1, Ordering::SeqCst) == 0;
        first.then(|| Answer::new(429, "").header("Retry-After", "1"))
    });
    let begun = Instant::now();
    success(&server, config(), Credentials::Anonymous).await;
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_beyond_the_bound_fails_at_once() {
    let server = Server::of_image(small(), |request| {
        request.target.contains("/manifests/").then(|| Answer::new(429, "").header("Retry-After", "3600"))
    });
    let begun = Instant::now();
    let error = failure(&server, config(), Credentials::Anonymous).await;
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let ImportError::Registry(RegistryError::RateLimited { retry_after, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(*retry_after, Some(Duration::from_secs(3600)));
    assert!(error.is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn server_errors_are_retried_and_then_told() {
    let asked = AtomicUsize::new(0);
    let server = Server::of_image(small(), move |request| {
        let turn = is_blob(request) && asked.fetch_add(1, Ordering::SeqCst) % 3 != 2;
        turn.then(|| Answer::new(503, ""))
    });
    success(&server, config(), Credentials::Anonymous).await;
    let broken = Server::of_image(small(), |request| {
        let body = r#"{"errors":[{"code":"UNKNOWN","message":"database\u0007 is down"}]}"#;
        request.target.contains("/manifests/").then(|| Answer::new(500, body))
    });
    let error = failure(&broken, config(), Credentials::Anonymous).await;
    let ImportError::Registry(RegistryError::Status { status: 500, message, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(message, "database  is down");
    assert!(error.is_retryable());
    assert_eq!(broken.targets().iter().filter(|target| target.contains("manifests")).count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_tag_is_not_found() {
    let server = Server::of_image(small(), |request| {
        let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        request.target.contains("/manifests/").then(|| Answer::new(404, body))
    });
    let ImportError::Registry(error) = failure(&server, config(), Credentials::Anonymous).await else { panic!() };
    assert!(error.is_not_found() && !error.is_retryable());
    assert_eq!(error.to_string(), format!("there is no manifest 1 of app at {}: manifest unknown", server.host()));
    assert_eq!(server.targets().iter().filter(|target| target.contains("manifests")).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listening_is_unreachable() {
    let port = {
        let server = Server::start(|_| Answer::new(200, ""));
        server.port
    };
    let repository = repository(config(), &format!("127.0.0.1:{port}/app:1"), Credentials::Anonymous);
    let error = repository.resolve(Platform::LinuxAmd64).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { .. }) && error.is_retryable(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_that_lead_astray_are_refused() {
    for location in ["ftp://127.0.0.1/x", "file:///etc/passwd", "/v2/app/manifests/1"] {
        let server = Server::of_image(small(), move |request| {
            request.target.contains("/manifests/").then(|| Answer::new(302, "").header("Location", location))
        });
        let error = failure(&server, config(), user(PASSWORD)).await;
        assert!(matches!(error, ImportError::Registry(RegistryError::Redirect { .. })), "{error:?}");
    }
    let nowhere = Server::of_image(small(), |request| is_blob(request).then(|| Answer::new(302, "")));
    let error = failure(&nowhere, config(), Credentials::Anonymous).await;
    assert!(matches!(error, ImportError::Registry(RegistryError::Protocol { .. })), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_errors_show_no_signature() {
    let storage = Server::start(|_| Answer::new(500, ""));
    let target = storage.host();
    let server = Server::of_image(small(), move |request| {
        is_blob(request).then(|| Answer::new(307, "").header("Location", format!("http://{target}/x?signature=s3cret")))
    });
    let error = failure(&server, RegistryConfig { attempts: 1, ..config() }, Credentials::Anonymous).await;
    assert!(!format!("{error:?} {error}").contains("s3cret"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_answers_for_what_its_mirror_lacks() {
    let empty = Server::start(|_| Answer::new(404, ""));
    let registry = Server::of_image(small(), |_| None);
    let with_mirror = |mirror: &Server| {
        let mut config = RegistryConfig { attempts: 1, ..config() };
        config.mirrors.insert(registry.host(), vec![format!("http://{}", mirror.host()).parse().unwrap()]);
        config
    };
    success(&registry, with_mirror(&empty), Credentials::Anonymous).await;
    // From then on the mirror is asked last.
    assert_eq!(empty.targets().len(), 1);
    // With both failing, both are named, and the registry's answer decides.
    let denied = Server::of_image(small(), |request| {
        (request.target != "/v2/").then(|| Answer::new(401, "").header("WWW-Authenticate", "Basic realm=x"))
    });
    let mut config = RegistryConfig { attempts: 1, ..config() };
    config.mirrors.insert(denied.host(), vec![format!("http://{}", empty.host()).parse().unwrap()]);
    let ImportError::Registry(error) = failure(&denied, config, Credentials::Anonymous).await else { panic!() };
    assert!(error.is_unauthorized() && !error.is_not_found(), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&empty.host()) && text.contains(&denied.host()), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn image_is_chosen_from_an_index() {
    let amd64 = small();
    let entry = |blob: &Blob, os: &str, architecture: &str, variant: &str| {
        let mut entry = blob.descriptor();
        entry["platform"] = json!({"os": os, "architecture": architecture, "variant": variant});
        entry
    };
    let other = Blob::new(b"not fetched".to_vec(), MANIFEST);
    let index = |entries: Vec<serde_json::Value>| {
        Blob::new(json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string().into_bytes(), INDEX)
    };
    let serve = |index: &Blob| {
        let (index, image) = (index.clone(), amd64.clone());
        Server::of_image(amd64.clone(), move |request| {
            let by_digest = request.target.ends_with(image.manifest.digest.as_str());
            (request.target.contains("/manifests/") && !by_digest)
                .then(|| Answer::new(200, index.bytes.clone()).header("Content-Type", INDEX))
        })
    };
    let several = index(vec![
        entry(&other, "linux", "arm64", "v8"),
        entry(&amd64.manifest, "linux", "amd64", ""),
        entry(&other, "unknown", "unknown", ""),
    ]);
    let server = serve(&several);
    let repository = repository(config(), &format!("{}/app:1", server.host()), Credentials::Anonymous);
    let resolved = repository.resolve(Platform::LinuxAmd64).await.unwrap();
    assert_eq!(resolved.digest, several.digest);
    assert_eq!(resolved.manifest_digest, amd64.manifest.digest);
    let none = index(vec![
        entry(&other, "linux", "arm64", "v8"),
        entry(&other, "windows", "amd64", ""),
        entry(&other, "unknown", "unknown", ""),
    ]);
    let error = failure(&serve(&none), config(), Credentials::Anonymous).await;
    let ImportError::Registry(RegistryError::UnsupportedPlatform { wanted, available }) = error else { panic!() };
    assert_eq!(wanted, "linux/amd64");
    assert_eq!(available, ["linux/arm64/v8", "windows/amd64"]);
    let circle = index(vec![entry(&several, "linux", "amd64", "")]);
    let error = failure(&serve(&circle), config(), Credentials::Anonymous).await;
    assert!(
        matches!(
            error,
            ImportError::Registry(RegistryError::DigestMismatch { .. } | RegistryError::SizeMismatch { .. })
        ),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn index_entries_without_a_platform_are_what_their_configs_say() {
    let ours = small();
    let theirs = image_for(&[(archive(&[]), Compression::None)], "linux", "s390x");
    let chart = Blob::new(
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
            "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": ours.config.digest.as_str(), "size": 1}})
        .to_string()
        .into_bytes(),
        MANIFEST,
    );
    let arm = Blob::new(b"not fetched".to_vec(), MANIFEST);
    let mut for_arm = arm.descriptor();
    for_arm["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let index = |entries: Vec<serde_json::Value>| {
        Blob::new(json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string().into_bytes(), INDEX)
    };
    let nested = index(vec![ours.manifest.descriptor()]);
    let serve = |entries: Vec<serde_json::Value>| {
        let top = index(entries);
        let documents = [top, nested.clone(), ours.manifest.clone(), theirs.manifest.clone(), chart.clone()];
        let blobs = [ours.config.clone(), ours.layers[0].clone(), theirs.config.clone()];
        Server::start(move |request| {
            let is = |blob: &&Blob| request.target.ends_with(blob.digest.as_str());
            if request.target == "/v2/" {
                return Answer::new(200, "{}");
            }
            match documents.iter().chain(&blobs).find(is).or(documents.first()) {
                Some(found) => Answer::new(200, found.bytes.clone()).header("Content-Type", found.media_type),
                None => Answer::new(404, ""),
            }
        })
    };
    let unnamed = ours.manifest.descriptor();
    for entries in [
        vec![unnamed.clone()],
        vec![for_arm.clone(), unnamed.clone()],
        vec![chart.descriptor(), theirs.manifest.descriptor(), unnamed.clone()],
        vec![for_arm.clone(), nested.descriptor()],
    ] {
        let server = serve(entries);
        let repository = repository(config(), &format!("{}/app:1", server.host()), Credentials::Anonymous);
        let (resolved, _) = pull(&repository, ImportOptions::default()).await.unwrap();
        assert_eq!(resolved.manifest_digest, ours.manifest.digest);
    }
    let server = serve(vec![for_arm, theirs.manifest.descriptor()]);
    let error = failure(&server, config(), Credentials::Anonymous).await;
    let ImportError::Registry(RegistryError::UnsupportedPlatform { available, .. }) = error else {
        panic!("{error:?}")
    };
    assert_eq!(available, ["linux/arm64", "linux/s390x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn single_image_for_another_platform_is_refused_by_its_config() {
    for (os, architecture) in [("linux", "arm64"), ("windows", "amd64"), ("", "")] {
        let layers = [(archive(&[]), Compression::None)];
        let server = Server::of_image(image_for(&layers, os, architecture), |_| None);
        let error = failure(&server, config(), Credentials::Anonymous).await;
        assert!(matches!(error, ImportError::Registry(RegistryError::UnsupportedPlatform { .. })), "{error:?}");
        assert!(!error.is_retryable());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_documents_are_refused() {
    for announced in [true, false] {
        let server = Server::of_image(small(), move |request| {
            let answer = Answer { unknown_length: !announced, ..Answer::new(200, vec![b' '; (4 << 20) + 1]) };
            request.target.contains("/manifests/").then_some(answer)
        });
        let error = failure(&server, config(), Credentials::Anonymous).await;
        let ImportError::Registry(RegistryError::Format { source, .. }) = &error else { panic!("{error:?}") };
        assert!(matches!(source, FormatError::TooLarge { .. }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_and_config_that_disagree_are_refused() {
    let mut image = small();
    let config_json = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}});
    image.config = Blob::new(config_json.to_string().into_bytes(), image.config.media_type);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest.bytes).unwrap();
    manifest["config"] = image.config.descriptor();
    image.manifest = Blob::new(manifest.to_string().into_bytes(), MANIFEST);
    let error = failure(&Server::of_image(image.clone(), |_| None), config(), Credentials::Anonymous).await;
    let ImportError::Registry(RegistryError::Format { source, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(*source, FormatError::LayerCount { layers: 1, diff_ids: 0 });
    let few = RegistryConfig { max_layers: 0, ..config() };
    let error = failure(&Server::of_image(small(), |_| None), few, Credentials::Anonymous).await;
    assert!(error.to_string().contains("the limit is 0"), "{error}");
}

/// An image whose layer blob is as given, whatever its config says about it.
fn with_layer(blob: Blob, diff_id: &Digest) -> Image {
    let mut image = small();
    let config_json = json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [diff_id.as_str()]},
    });
    image.config = Blob::new(config_json.to_string().into_bytes(), image.config.media_type);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": image.config.descriptor(), "layers": [blob.descriptor()],
    });
    image.manifest = Blob::new(manifest.to_string().into_bytes(), MANIFEST);
    image.layers = vec![blob];
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_not_what_they_claim_are_refused() {
    let tar = archive(&[Item::file("a", "hello")]);
    let diff_id = Digest::sha256(&tar);
    let gzip = compress(&tar, Compression::Gzip);
    let pulled = |image: Image| async move {
        let server = Server::of_image(image, |_| None);
        let error = failure(&server, config(), Credentials::Anonymous).await;
        assert!(!error.is_retryable());
        error
    };
    let stream = |error: ImportError| match error {
        ImportError::Stream { source, .. } => source,
        other => panic!("{other:?}"),
    };
    let other = pulled(with_layer(gzip.clone(), &Digest::sha256(b"other"))).await;
    assert!(matches!(stream(other), StreamError::DiffIdMismatch { .. }));
    let zstd_type = compress(&tar, Compression::Zstd).media_type;
    let mislabelled = Blob::new(gzip.bytes.clone(), zstd_type);
    let error = stream(pulled(with_layer(mislabelled, &diff_id)).await);
    assert!(matches!(error, StreamError::WrongCompression { declared: Compression::Zstd, found: "gzip" }), "{error:?}");
    let cut = Blob::new(gzip.bytes[..gzip.bytes.len() - 4].to_vec(), gzip.media_type);
    let error = stream(pulled(with_layer(cut, &diff_id)).await);
    assert!(matches!(error, StreamError::Truncated { compression: Compression::Gzip }), "{error:?}");
    let short = tar[..600].to_vec();
    let error = pulled(with_layer(compress(&short, Compression::Gzip), &Digest::sha256(&short))).await;
    assert!(
        matches!(error, ImportError::Layer { source: LayerError::Tar(TarError::Truncated { .. }), .. }),
        "{error:?}"
    );
    let fifo = archive(&[Item::new(b'6', "run/fifo")]);
    let error = pulled(with_layer(compress(&fifo, Compression::Zstd), &Digest::sha256(&fifo))).await;
    let ImportError::Layer { source: LayerError::UnsupportedSpecialFile { path, entry_type }, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!((path.as_str(), entry_type), ("run/fifo", "fifo"));
}

#[tokio::test(flavor = "multi_thread")]
async fn layer_is_read_again_for_the_target_of_a_visible_link() {
    let lower = archive(&[Item::file("a", "content"), Item::hard_link("b", "a")]);
    let image = image(&[(lower, Compression::Gzip), (archive(&[Item::file(".wh.a", "")]), Compression::Gzip)]);
    let lowest = image.layers[0].digest.to_string();
    let server = Server::of_image(image, |_| None);
    let repository = repository(config(), &format!("{}/app:1", server.host()), Credentials::Anonymous);
    let (_, imported) = pull(&repository, ImportOptions::default()).await.unwrap();
    assert_eq!(render(&imported.tree), "dir .\nfile b data=content\n");
    assert_eq!(content(&imported.tree, "b"), Some(&b"content"[..]));
    assert_eq!(server.targets().iter().filter(|target| target.ends_with(&lowest)).count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_import_ends_at_once() {
    let image = three_layers();
    let big = image.layers[0].clone();
    // The largest blob stays unfinished for ever.
    let server = Server::of_image(image, move |request| {
        let wanted = request.target.ends_with(big.digest.as_str());
        wanted.then(|| Answer { delay: Duration::from_secs(600), ..answer(&three_layers(), request) })
    });
    let repository = repository(config(), &format!("{}/app:1", server.host()), Credentials::Anonymous);
    for drop_future in [false, true] {
        let merged = Arc::new(Mutex::new(0));
        let seen = merged.clone();
        let options = ImportOptions {
            progress: Arc::new(move |event| {
                if let Progress::LayerDone { done, .. } = event {
                    *seen.lock().unwrap() = done;
                }
            }),
            ..ImportOptions::default()
        };
        let cancel = options.cancel.clone();
        let mut running = Box::pin(pull(&repository, options));
        let others = async {
            while *merged.lock().unwrap() < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            ended = &mut running => panic!("the import cannot have ended: {:?}", ended.map(drop)),
            merged = tokio::time::timeout(Duration::from_secs(60), others) => merged.expect("the other layers are merged"),
        }
        let begun = Instant::now();
        if drop_future {
            drop(running);
        } else {
            cancel.cancel();
            assert!(matches!(running.await, Err(ImportError::Cancelled)));
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    }
}
