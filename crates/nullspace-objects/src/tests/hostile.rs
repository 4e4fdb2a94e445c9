//! S3 stores that answer wrongly, too much, or nothing; and what errors say.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;

use super::mock::{Answer, Mock, Request, SECRET, TOKEN};
use super::{content, file, name};
use crate::{Error, Objects, PART_BYTES, S3Credentials, S3Settings, Stop};

/// The start of every answer with an object.
const ETAG: &str = "ETag: \"1\"";
const DATE: &str = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT";

fn ok(body: &[u8]) -> Answer {
    Answer::new("200 OK", &[ETAG, DATE], body)
}

/// Neither the error, its cause nor the store shows a secret.
fn clean(error: &Error, store: &Objects) {
    let shown = format!("{error} {error:?} {store:?} {}", store.location());
    assert!(!shown.contains(SECRET) && !shown.contains(TOKEN), "{shown}");
}

#[tokio::test]
async fn refusals_name_the_setting_and_no_secret() {
    for (status, code, says) in [
        ("403 Forbidden", "SignatureDoesNotMatch", "credentials"),
        ("403 Forbidden", "AccessDenied", "may do"),
        ("404 Not Found", "NoSuchBucket", "bucket"),
        ("301 Moved Permanently", "PermanentRedirect", "region"),
        ("400 Bad Request", "AuthorizationHeaderMalformed", "region"),
    ] {
        let mock = Mock::start(move |_| Answer::error(status, code));
        let store = mock.store();
        let a = name("a");
        let outcomes = [
            store.put(&a, Bytes::from_static(b"x")).await.unwrap_err(),
            store.put_file(&a, file(&content(1, PART_BYTES + 1)), &Stop::new()).await.unwrap_err(),
            store.get(&a, 10).await.unwrap_err(),
            store.delete(&a).await.unwrap_err(),
            store.size(&a).await.unwrap_err(),
            store.list("").next().await.unwrap().unwrap_err(),
            store.check().await.unwrap_err(),
        ];
        for error in outcomes {
            assert!(matches!(&error, Error::Denied { setting, .. } if setting.contains(says)), "{error:?}");
            clean(&error, &store);
        }
    }
}

/// A bucket that is gone is an error for every question, never "no object".
#[tokio::test]
async fn a_missing_bucket_is_not_a_missing_object() {
    let mock = Mock::start(|_| Answer::error("404 Not Found", "NoSuchBucket"));
    assert!(matches!(mock.store().size(&name("a")).await, Err(Error::Denied { .. })));
    let mock = Mock::start(|_| Answer::error("404 Not Found", "NoSuchKey"));
    assert_eq!(mock.store().size(&name("a")).await.unwrap(), None);
    assert_eq!(mock.requests().iter().map(|request| request.method.as_str()).collect::<Vec<_>>(), ["HEAD", "GET"]);
}

#[tokio::test]
async fn overload_is_repeated_and_then_unavailable() {
    let mock = Mock::start(|_| Answer::error("503 Service Unavailable", "SlowDown"));
    let store = mock.store();
    let error = store.get(&name("a"), 10).await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable { .. }) && error.is_retryable(), "{error:?}");
    assert!(error.to_string().contains("SlowDown"), "{error}");
    clean(&error, &store);
    assert_eq!(mock.requests().len(), 3, "as many as attempts");

    let count = Arc::new(AtomicUsize::new(0));
    let mock = Mock::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::error("500 Internal Server Error", "InternalError"),
        1 => Answer::new("200 OK", &[], "").cut(0),
        _ => ok(b"content"),
    });
    assert_eq!(mock.store().get(&name("a"), 10).await.unwrap(), "content");
}

#[tokio::test]
async fn a_refused_connection_is_unavailable_and_bounded() {
    // Bound and not listened on: nobody else takes it.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let mock = Mock::start(|_| ok(b""));
    let settings = S3Settings { endpoint: Some(format!("http://127.0.0.1:{port}")), ..mock.settings() };
    let limits = mock.store().inner.limits;
    let store = Objects::s3(settings).unwrap().with_limits(limits);
    let began = Instant::now();
    let error = store.check().await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable { what, .. } if what.contains("connect")), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_silent_store_is_unavailable_after_the_time_of_a_request() {
    let mock = Mock::start(|_| Answer(Vec::new(), true));
    let began = Instant::now();
    let hasty = |mock: &Mock| mock.within(Duration::from_secs(2), Duration::from_secs(1));
    let error = hasty(&mock).size(&name("a")).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(mock.requests().len(), 3);

    // One that falls silent within the body.
    let mock = Mock::start(|_| Answer(ok(&[1; 1000]).0[..600].to_vec(), true));
    let error = hasty(&mock).get(&name("a"), 2000).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(mock.requests().len() > 1, "it was asked again");
}

#[tokio::test]
async fn an_error_document_without_end_is_not_read_whole() {
    let mock = Mock::start(|_| {
        let text = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n";
        Answer([text.as_bytes(), &vec![b'x'; 32 << 20]].concat(), false)
    });
    let error = mock.store().get(&name("a"), 10).await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable { what, .. } if what.len() < 300), "{error:?}");
    // Nor a listing.
    let mock = Mock::start(|_| Answer::new("200 OK", &[], vec![b' '; 8 << 20]));
    let error = mock.store().list("").next().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn lengths_are_not_believed() {
    // More than the caller takes.
    let mock = Mock::start(|_| ok(&[1; 1000]));
    assert!(matches!(mock.store().get(&name("a"), 999).await, Err(Error::TooLong { bytes: 1000, .. })));
    // Less than announced, always.
    let mock = Mock::start(|request| range_of(request, &content(1, 1000), 1000, 2));
    let error = mock.store().download(&name("a"), &file(b""), 1000).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    // Another length than expected.
    let mock = Mock::start(|_| ok(&[1; 1000]));
    assert!(matches!(mock.store().download(&name("a"), &file(b""), 1001).await, Err(Error::Damaged { .. })));
    // A store that ignores the range.
    let mock = Mock::start(|_| ok(&[1; 1000]));
    let error = mock.store().get_range(&name("a"), 10..20).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    // One that sends another range.
    let mock =
        Mock::start(|_| Answer::new("206 Partial Content", &[ETAG, DATE, "Content-Range: bytes 0-9/1000"], [1; 10]));
    let error = mock.store().get_range(&name("a"), 10..20).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    // One whose object becomes another within a read.
    let count = AtomicUsize::new(0);
    let mock = Mock::start(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        0 => ok(&[1; 1000]).cut(600),
        _ => {
            let mut answer = range_of(request, &[2; 1000], 1000, 1);
            answer.0 = String::from_utf8_lossy(&answer.0).replace("\"1\"", "\"2\"").into_bytes();
            answer
        }
    });
    assert!(matches!(mock.store().get(&name("a"), 1000).await, Err(Error::Damaged { .. })));
}

/// The range that a request asks for, of which only `1/of` arrives.
fn range_of(request: &Request, data: &[u8], total: usize, of: usize) -> Answer {
    let asked = request.header.lines().find_map(|line| line.strip_prefix("range: bytes=")).unwrap_or("0-999");
    let (from, to) = asked.trim().split_once('-').unwrap();
    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
    let body = &data[from..=to];
    let status = if request.header.contains("range: bytes=") { "206 Partial Content" } else { "200 OK" };
    let answer = Answer::new(status, &[ETAG, DATE, &format!("Content-Range: bytes {from}-{to}/{total}")], body);
    let header = answer.0.len() - body.len();
    let length = header + body.len() / of;
    answer.cut(length)
}

#[tokio::test]
async fn a_read_continues_by_range() {
    let data = content(3, 1000);
    let sent = data.clone();
    let count = AtomicUsize::new(0);
    let mock = Mock::start(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        0 => {
            let answer = ok(&sent);
            let length = answer.0.len() - 400;
            answer.cut(length)
        }
        _ => range_of(request, &sent, 1000, 1),
    });
    assert!(mock.store().get(&name("a"), 1000).await.unwrap() == data);
    let requests = mock.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests[1].header.contains("range: bytes=600-999"), "{}", requests[1].header);
}

#[tokio::test]
async fn a_listing_that_goes_in_circles_ends() {
    let page = "<ListBucketResult><NextContinuationToken>t</NextContinuationToken><Contents><Key>a</Key><Size>1</Size>\
                <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>";
    let mock = Mock::start(move |_| Answer::new("200 OK", &[], page));
    let entries: Vec<_> = mock.store().list("").collect().await;
    assert_eq!(entries.iter().filter(|entry| entry.is_ok()).count(), 1);
    assert!(matches!(entries.last(), Some(Err(Error::Unavailable { .. }))), "{entries:?}");

    for wrong in ["<html>a proxy</html>", "", "<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>"]
    {
        let mock = Mock::start(move |_| Answer::new("200 OK", &[], wrong));
        let entries: Vec<_> = mock.store().list("").collect().await;
        assert!(!entries.iter().any(|entry| matches!(entry, Ok(entry) if entry.name == name("a"))), "{entries:?}");
    }
}

/// S3 begins its answer to the end of an upload before it knows how it ends.
#[tokio::test]
async fn a_success_whose_document_is_an_error_is_an_error() {
    let count = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&count);
    let mock = Mock::start(move |request| match (request.method.as_str(), request.target.split_once('?')) {
        ("POST", Some((_, query))) if query.starts_with("uploads") => Answer::new(
            "200 OK",
            &[],
            "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
        ),
        ("PUT", _) => Answer::new("200 OK", &["ETag: \"p\""], ""),
        ("POST", _) => {
            Answer::new("200 OK", &[], format!("<Error><Code>InternalError</Code><Message>{TOKEN}</Message></Error>"))
        }
        ("DELETE", _) => {
            *seen.lock().unwrap() += 1;
            Answer::new("204 No Content", &[], "")
        }
        _ => Answer::error("404 Not Found", "NoSuchKey"),
    });
    let store = mock.store();
    let error = store.put_file(&name("a"), file(&content(1, PART_BYTES + 1)), &Stop::new()).await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable { what, .. } if what.contains("InternalError")), "{error:?}");
    clean(&error, &store);
    assert_eq!(*count.lock().unwrap(), 1, "the upload was aborted");
    let parts: usize =
        mock.requests().iter().filter(|request| request.method == "PUT").map(|request| request.body.len()).sum();
    assert_eq!(parts, PART_BYTES + 1);
}

/// Stores without conditional put, and those that ignore the condition, are asked before each put.
#[tokio::test]
async fn conditional_put_is_not_needed() {
    for ignores in [true, false] {
        let mock = Mock::start(move |request| match request.method.as_str() {
            "PUT" if request.header.contains("if-none-match") && !ignores => {
                Answer::error("501 Not Implemented", "NotImplemented")
            }
            "PUT" => Answer::new("200 OK", &[ETAG], ""),
            "DELETE" => Answer::new("204 No Content", &[], ""),
            _ if request.target.ends_with("/there") => {
                let body: &[u8] = if request.method == "HEAD" { b"" } else { b"12345" };
                let answer = Answer::new("200 OK", &[ETAG, DATE], body);
                if request.method == "HEAD" {
                    Answer(
                        String::from_utf8(answer.0)
                            .unwrap()
                            .replace("Content-Length: 0", "Content-Length: 5")
                            .into_bytes(),
                        false,
                    )
                } else {
                    answer
                }
            }
            _ => Answer::error("404 Not Found", "NoSuchKey"),
        });
        let store = mock.store();
        store.put(&name("new"), Bytes::from_static(b"x")).await.unwrap();
        store.put(&name("there"), Bytes::from_static(b"54321")).await.unwrap();
        let outcome = store.put(&name("there"), Bytes::from_static(b"longer")).await;
        assert!(matches!(outcome, Err(Error::Exists { stored: 5, offered: 6, .. })), "{outcome:?}");
        let requests = mock.requests();
        let puts: Vec<_> = requests.iter().filter(|request| request.method == "PUT").collect();
        let replaced = puts.iter().filter(|request| request.target.ends_with("/there")).count();
        assert_eq!(replaced, 0, "an object that is there is not replaced");
        let probes = puts.iter().filter(|request| request.target.contains("/check/")).count();
        assert_eq!(probes, if ignores { 2 } else { 1 }, "found out once");
        assert_eq!(requests.iter().filter(|request| request.method == "DELETE").count(), 1, "the probe is removed");
    }
}

#[test]
fn settings_are_checked() {
    let keys = || S3Credentials::Keys {
        access_key_id: "id".to_owned(),
        secret_access_key: SECRET.into(),
        session_token: None,
    };
    let plain = || S3Settings::new("bucket", keys());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let at = |endpoint: &str| S3Settings { endpoint: Some(endpoint.to_owned()), ..plain() };
    for good in [
        plain(),
        at("https://s3.example.com"),
        at("https://s3.example.com:9000/"),
        at("http://localhost:9000"),
        at("http://127.0.0.1:9000"),
        at("http://[::1]:9000"),
        S3Settings { allow_http: true, ..at("http://minio.internal:9000") },
        S3Settings { path_style: Some(false), ..at("https://s3.example.com") },
        S3Settings { prefix: "a/b".to_owned(), ..plain() },
    ] {
        let shown = format!("{good:?}");
        assert!(!shown.contains(SECRET), "{shown}");
        let location = Objects::s3(good).unwrap().location().to_owned();
        assert!(location.contains("bucket"), "{location}");
    }
    for (wrong, says) in [
        (at("http://minio.internal:9000"), "allow_http"),
        (at("http://10.0.0.1:9000"), "allow_http"),
        (at("https://user:canary-secret-key@s3.example.com"), "password"),
        (at("https://s3.example.com/bucket"), "after host and port"),
        (at("https://s3.example.com/?a"), "after host and port"),
        (at("ftp://s3.example.com"), "https://"),
        (at("s3.example.com"), "URL"),
        (S3Settings { path_style: Some(false), ..at("https://10.0.0.1") }, "path_style"),
        (S3Settings { bucket: "B".to_owned(), ..plain() }, "bucket"),
        (S3Settings { bucket: "a/b".to_owned(), ..plain() }, "bucket"),
        (S3Settings { prefix: "../x".to_owned(), ..plain() }, "prefix"),
        (S3Settings { prefix: "/x".to_owned(), ..plain() }, "prefix"),
        (S3Settings { region: "a b".to_owned(), ..plain() }, "region"),
        (S3Settings { extra_ca_pem: Some(b"nothing".to_vec()), ..plain() }, "certificate"),
    ] {
        let error = Objects::s3(wrong).unwrap_err();
        assert!(
            matches!(&error, Error::Invalid(what) if what.contains(says) && !what.contains("canary")),
            "{says}: {error:?}"
        );
    }
}
