//! Many files at once, and large ones: searches, replacements, batches, owners, and parts of files.

use futures::stream;
use nullspace_api::{BatchWriteEntry, BatchWriteResponse, FileInfo, ReplaceResult, SearchMatch};
use reqwest::{Body, Method};
use serde_json::{Value, json};

use crate::fixture::{Image, Registry, Service, is_long};

/// A form as the published client makes it.
fn form(manifest: &Value, contents: &[&str]) -> String {
    let part = |name: &str, content: &str| {
        format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"x\"\r\n\r\n{content}\r\n")
    };
    let mut form = part("manifest", &manifest.to_string());
    for (index, content) in contents.iter().enumerate() {
        form.push_str(&part(&format!("file{index}"), content));
    }
    form + "--XX--\r\n"
}

#[tokio::test]
async fn files_are_searched_replaced_and_written_as_their_users() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built = api
        .ready(json!({"base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192, "disk_mb": 512}}))
        .await;
    let sandbox = api.sandbox(built.template()).await;
    let own = api.sandbox_with(json!({"template": built.template(), "cwd": "/tmp/own"})).await;
    let route = |tail: &str| format!("/v1/sandboxes/{}{tail}", sandbox.id);
    let post = async |tail: &str, body: Value| api.post(&route(tail), body).await;
    sandbox.sh("mkdir -p /home/app /tmp && chown app /home/app && chmod 1777 /tmp").await;
    own.sh("chmod 1777 /tmp /tmp/own").await;

    // A batch, item for item.
    let manifest = json!({"user": "app", "files": [
        {"path": "a.txt", "field": "file0"}, {"path": "/proc/no", "field": "file1"},
        {"path": "/tmp/b.txt", "field": "file2"},
    ]});
    let contents = ["hello world\nfoo bar\nhello again", "x", "hello"];
    let request = api.request(Method::POST, &route("/files/batch-write"));
    let request = request.header("content-type", "multipart/form-data; boundary=XX").body(form(&manifest, &contents));
    let batch: BatchWriteResponse = api.send(request).await.ok(200);
    let [BatchWriteEntry::Success(first), BatchWriteEntry::Error(failed), BatchWriteEntry::Success(last)] =
        batch.results.as_slice()
    else {
        panic!("{batch:?}");
    };
    assert_eq!((first.info.path.as_str(), first.info.owner.as_deref()), ("/home/app/a.txt", Some("app")));
    assert!(failed.path == "/proc/no" && failed.error.contains("/proc/no"), "{failed:?}");
    assert_eq!((last.info.path.as_str(), last.info.size), ("/tmp/b.txt", 5));

    // A directory that the create named wins over the user's home.
    let written = json!({"path": "r.txt", "content": "", "user": "app"});
    let written: FileInfo = api.post(&format!("/v1/sandboxes/{}/files/write", own.id), written).await.ok(200);
    assert_eq!((written.path.as_str(), written.owner.as_deref()), ("/tmp/own/r.txt", Some("app")));

    // A file belongs to the user who writes it over, and stays another's without one.
    sandbox.sh("echo root > /tmp/owned; chmod 640 /home/app/a.txt").await;
    let over = json!({"path": "/tmp/owned", "content": "app's", "user": "app"});
    let over: FileInfo = post("/files/write", over).await.ok(200);
    assert_eq!((over.owner.as_deref(), over.size), (Some("app"), 5));
    sandbox.sh("ln -s /etc/passwd /tmp/link; echo keep > /etc/kept; ln /etc/kept /tmp/kept").await;
    for path in ["/tmp/link", "/tmp/kept"] {
        post("/files/write", json!({"path": path, "content": "", "user": "app"})).await.refused(403, "file_error");
    }
    assert_eq!(sandbox.sh("stat -c %U /etc/passwd; cat /etc/kept").await, "root\nkeep");

    // Lines, names, replacements.
    let found: Vec<SearchMatch> = post("/files/find", json!({"path": "/home", "pattern": "^hel+o"})).await.ok(200);
    let shown: Vec<_> = found.iter().map(|line| (line.file.as_str(), line.line, line.content.as_str())).collect();
    assert_eq!(shown, [("/home/app/a.txt", 1, "hello world"), ("/home/app/a.txt", 3, "hello again")]);
    let names: Vec<String> =
        post("/files/search", json!({"path": ".", "pattern": "*.txt", "user": "app"})).await.ok(200);
    assert_eq!(names, ["/home/app/a.txt"]);
    let request = json!({"files": ["/home/app/a.txt", "/none"], "pattern": "hello", "replacement": "$1 bye"});
    let replaced: ReplaceResult = post("/files/replace", request).await.ok(200);
    assert_eq!((replaced.replacements, replaced.files_modified, replaced.files_skipped), (2, 1, 1));
    assert_eq!(sandbox.sh("stat -c '%U %a' /home/app/a.txt; head -1 /home/app/a.txt").await, "app 640\n$1 bye world");
    // The whole machine, with its processes' files: it ends, and says what it did not see.
    let everything = post("/files/find", json!({"path": "/", "pattern": "no such text anywhere"})).await;
    assert!(everything.headers.contains_key("x-nullspace-warning"), "binary files are there");
    assert_eq!(everything.ok::<Vec<SearchMatch>>(200), []);

    for (tail, body, status, code) in [
        ("/files/find", json!({"path": "/home", "pattern": "("}), 400, "invalid_request"),
        ("/files/find", json!({"path": "/none", "pattern": "x"}), 404, "not_found"),
        ("/files/search", json!({"path": "/root", "pattern": "*", "user": "nobody-here"}), 400, "invalid_request"),
        ("/files/write", json!({"path": "/workspace/.nullspace/x", "content": ""}), 400, "invalid_request"),
        ("/files/remove", json!({"path": "/workspace/a/../.nullspace"}), 400, "invalid_request"),
    ] {
        post(tail, body).await.refused(status, code);
    }
    service.stop().await;
}

#[tokio::test]
async fn a_large_file_passes_through_little_memory_and_comes_in_parts() {
    const PIECE: usize = 64 << 10;
    let bytes: u64 = if is_long() { 2 << 30 } else { 128 << 20 };
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let disk_mb = bytes / (1 << 20) + 512;
    let built = api
        .ready(json!({
            "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192, "disk_mb": disk_mb},
        }))
        .await;
    let sandbox = api.sandbox(built.template()).await;
    let path = format!("/v1/sandboxes/{}/file?path=/large", sandbox.id);
    let piece = |n: u64| -> Vec<u8> { (0..PIECE as u64).map(|at| ((n * 31 + at) % 251) as u8).collect() };
    let (_, before) = service.memory_mib();

    let pieces = stream::iter((0..bytes / PIECE as u64).map(move |n| Ok::<_, std::io::Error>(piece(n))));
    let sent = api.send(api.request(Method::PUT, &path).body(Body::wrap_stream(pieces))).await;
    assert_eq!(sent.status, 204, "{}", sent.text());
    let mut answer = api.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let (mut got, mut expected) = (0_u64, piece(0));
    while let Some(chunk) = answer.chunk().await.unwrap() {
        for byte in &chunk {
            let at = usize::try_from(got % PIECE as u64).unwrap();
            if at == 0 {
                expected = piece(got / PIECE as u64);
            }
            assert_eq!(*byte, expected[at], "byte {got}");
            got += 1;
        }
    }
    assert_eq!(got, bytes);
    let (_, after) = service.memory_mib();
    println!("{} MiB in and out: the service's memory was {before} MiB at most before, {after} MiB after", bytes >> 20);
    // Pieces in the socket, the channel's credit and the machine's socket, whatever the size of the file.
    assert!(after < before + 64, "{before} MiB, then {after} MiB");

    for (range, expected) in [
        (format!("bytes={}-{}", PIECE, PIECE + 9), piece(1)[..10].to_vec()),
        ("bytes=-3".to_owned(), piece(bytes / PIECE as u64 - 1)[PIECE - 3..].to_vec()),
    ] {
        let part = api.send(api.request(Method::GET, &path).header("range", &range)).await;
        assert_eq!((part.status, &part.body), (206, &expected), "{range}");
    }
    let outside = api.send(api.request(Method::GET, &path).header("range", format!("bytes={bytes}-"))).await;
    assert_eq!(outside.headers["content-range"], format!("bytes */{bytes}").as_str());
    outside.refused(416, "invalid_request");
    service.stop().await;
}
