use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use nullspace_reach::Lookup;

use super::*;
use crate::platform::Platform;
use crate::registry::http::Http;
use crate::registry::repository::Repository;
use crate::registry::{Credentials, Registry};

/// Answers in turn, the last one for ever; counts how often it was asked.
#[derive(Debug)]
struct Answers(Mutex<Vec<Vec<IpAddr>>>, AtomicUsize);

impl Answers {
    fn new(answers: &[&[&str]]) -> Arc<Answers> {
        let parsed = |text: &&str| text.parse().unwrap();
        let answers = answers.iter().map(|answer| answer.iter().map(parsed).collect()).collect();
        Arc::new(Answers(Mutex::new(answers), AtomicUsize::new(0)))
    }
}

impl Lookup for Answers {
    fn lookup(&self, _name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.0.lock().unwrap();
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers.first().cloned().unwrap_or_default() };
        Box::pin(std::future::ready(if answer.is_empty() { Err(io::Error::other("no such name")) } else { Ok(answer) }))
    }
}

fn config(listed: &[&str]) -> RegistryConfig {
    let _ = rustls::crypto::ring::default_provider().install_default();
    RegistryConfig {
        private_registries: listed.iter().map(|text| text.parse().unwrap()).collect(),
        attempts: 2,
        backoff: Duration::from_millis(1),
        ..RegistryConfig::default()
    }
}

/// A port that counts connections and answers each with `answer`.
fn port(answer: String) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            count.fetch_add(1, Ordering::SeqCst);
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (port, connections)
}

fn not_found() -> String {
    "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned()
}

fn repository(config: RegistryConfig, lookup: Arc<Answers>, reference: &str) -> Repository {
    let http = Arc::new(Http::with_lookup(config, lookup).unwrap());
    Registry { http }.repository(&reference.parse().unwrap(), Credentials::Anonymous).unwrap()
}

async fn error(config: RegistryConfig, lookup: Arc<Answers>, reference: &str) -> RegistryError {
    repository(config, lookup, reference).resolve(Platform::LinuxAmd64).await.unwrap_err()
}

#[tokio::test]
async fn closed_addresses_are_refused_alike_whether_or_not_somebody_listens() {
    let (open, connections) = port(not_found());
    let shut = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for host in ["127.0.0.1", "localhost", "a.localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let mut texts = Vec::new();
        for port in [open, shut] {
            let error = error(config(&[]), Answers::new(&[&[]]), &format!("{host}:{port}/app:1")).await;
            assert!(matches!(error, RegistryError::NotAllowed { .. }), "{host}: {error:?}");
            texts.push(error.to_string().replace(&port.to_string(), "PORT"));
        }
        assert_eq!(texts[0], texts[1]);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn names_of_closed_addresses_and_unknown_names_are_refused_alike() {
    let (open, connections) = port(not_found());
    let mut texts = Vec::new();
    for answer in [&["127.0.0.1"][..], &["10.0.0.1", "fd00::1"], &[]] {
        let error = error(config(&[]), Answers::new(&[answer]), &format!("registry.test:{open}/app:1")).await;
        assert!(matches!(error, RegistryError::NotAllowed { by_name: true, .. }), "{error:?}");
        texts.push((error.to_string(), error.is_retryable()));
    }
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_name_that_means_something_else_later_is_judged_by_what_is_dialled() {
    let (open, connections) = port(not_found());
    // Public (and nobody's) when it is looked up first, loopback afterwards: no packet goes to loopback.
    let lookup = Answers::new(&[&["3000::1", "127.0.0.1"], &["127.0.0.1"]]);
    let mut config = config(&[]);
    config.timeouts.connect = Duration::from_millis(100);
    let error = error(config, Arc::clone(&lookup), &format!("rebound.test:{open}/app:1")).await;
    assert!(matches!(error, RegistryError::NotAllowed { .. }), "{error:?}");
    assert!(lookup.1.load(Ordering::SeqCst) >= 2);
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn what_is_listed_is_asked_and_nothing_beside_it() {
    let (open, connections) = port(not_found());
    let reference = format!("registry.test:{open}/app:1");
    let reached = |listed: String, answer: &'static str, reference: String| async move {
        let mut config = config(&[&listed]);
        config.plain_http = [format!("plain.test:{open}")].into();
        let error = error(config, Answers::new(&[&[answer]]), &reference).await;
        !matches!(error, RegistryError::NotAllowed { .. })
    };
    for listed in
        ["127.0.0.1", "127.0.0.0/8", "registry.test", &format!("registry.test:{open}"), &format!("127.0.0.1:{open}")]
    {
        assert!(reached(listed.to_owned(), "127.0.0.1", reference.clone()).await, "{listed}");
    }
    assert!(connections.load(Ordering::SeqCst) > 0);
    let seen = connections.load(Ordering::SeqCst);
    for (listed, answer) in [
        ("127.0.0.1:1".to_owned(), "127.0.0.1"),
        ("127.0.0.2".to_owned(), "127.0.0.1"),
        ("registry.test:1".to_owned(), "127.0.0.1"),
        ("other.test".to_owned(), "127.0.0.1"),
        (format!("10.0.0.0/8:{open}"), "127.0.0.1"),
    ] {
        assert!(!reached(listed.clone(), answer, reference.clone()).await, "{listed}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), seen);
    // Listed as plain HTTP, by name: for its own port only.
    assert!(reached("other.test".to_owned(), "127.0.0.1", format!("plain.test:{open}/app:1")).await);
    assert!(!reached("other.test".to_owned(), "127.0.0.1", "plain.test:1/app:1".to_owned()).await);
}

#[tokio::test]
async fn redirects_and_token_realms_lead_nowhere_closed() {
    let (inside, connections) = port(not_found());
    let (redirecting, _) = port(format!(
        "HTTP/1.1 307 x\r\nLocation: http://10.0.0.1:{inside}/x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ));
    let (asking, _) = port(format!(
        "HTTP/1.1 401 x\r\nWWW-Authenticate: Bearer realm=\"http://127.0.0.1:{inside}/token\"\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    ));
    for outside in [redirecting, asking] {
        let mut config = config(&[]);
        config.plain_http = [format!("outside.test:{outside}")].into();
        let reference = format!("outside.test:{outside}/app:1");
        let error = error(config, Answers::new(&[&["127.0.0.1"]]), &reference).await;
        // What a registry may not do at all, and where it may not lead.
        let refused = matches!(error, RegistryError::NotAllowed { .. } | RegistryError::Protocol { .. });
        assert!(refused, "{error:?}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn others_are_sent_only_where_every_address_of_a_name_is_open() {
    let registry = |answer: &[&str]| {
        let http = Arc::new(Http::with_lookup(config(&["10.0.0.0/8:5000"]), Answers::new(&[answer])).unwrap());
        Registry { http }
    };
    for (answer, name, admitted) in [
        (&["1.1.1.1"][..], "a.test", true),
        (&["1.1.1.1", "127.0.0.1"], "a.test", false),
        (&["10.0.0.1"], "a.test:5000", true),
        (&["10.0.0.1"], "a.test", false),
        (&[], "unknown.test", true),
        (&[], "127.0.0.1:5000", false),
        (&[], "localhost", false),
        (&[], "10.1.1.1:5000", true),
        (&[], "169.254.169.254", false),
        (&[], "2130706433", false),
    ] {
        assert_eq!(registry(answer).admits_registry(name).await.is_ok(), admitted, "{name} {answer:?}");
    }
    assert!(registry(&[]).admits("http://0x7f.1/x").await.is_err());
    assert!(registry(&[]).admits("http://:80/").await.is_err());
}
