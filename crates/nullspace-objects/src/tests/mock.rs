//! A server on loopback that answers as a test says: HTTP by hand, so that answers can be wrong.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::{Limits, Objects, S3Credentials, S3Settings};

/// The secrets that no error and no log may show.
pub(super) const SECRET: &str = "canary-secret-key";
pub(super) const TOKEN: &str = "canary-session-token";

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// Such as `PUT`.
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    /// The lines of the header, in lower case.
    pub(super) header: String,
    pub(super) body: Vec<u8>,
}

/// An answer: bytes of HTTP, and whether the connection then stays open without a word.
pub(super) struct Answer(pub(super) Vec<u8>, pub(super) bool);

impl Answer {
    /// An answer with a status, header lines and a body.
    pub(super) fn new(status: &str, header: &[&str], body: impl AsRef<[u8]>) -> Answer {
        let body = body.as_ref();
        let mut text = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
        for line in header {
            text.push_str(line);
            text.push_str("\r\n");
        }
        text.push_str("\r\n");
        Answer([text.as_bytes(), body].concat(), false)
    }

    /// An error of S3.
    pub(super) fn error(status: &str, code: &str) -> Answer {
        Answer::new(
            status,
            &[],
            format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{TOKEN}</Message></Error>"),
        )
    }

    /// Only the first bytes of the answer, then the end of the connection.
    pub(super) fn cut(self, bytes: usize) -> Answer {
        Answer(self.0[..bytes.min(self.0.len())].to_vec(), false)
    }
}

/// A running server.
pub(super) struct Mock {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Mock {
    /// Answers each request with what the function returns.
    pub(super) fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Mock {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let Some(request) = receive(&mut stream) else { return };
                    let answer = answer(&request);
                    seen.lock().unwrap().push(request);
                    let _ = stream.write_all(&answer.0);
                    if answer.1 {
                        std::thread::sleep(Duration::from_secs(60));
                    }
                });
            }
        });
        Mock { port, requests }
    }

    /// The requests so far.
    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The settings of a bucket on this server.
    pub(super) fn settings(&self) -> S3Settings {
        let keys = S3Credentials::Keys {
            access_key_id: "id".to_owned(),
            secret_access_key: SECRET.into(),
            session_token: Some(TOKEN.into()),
        };
        S3Settings { endpoint: Some(format!("http://127.0.0.1:{}", self.port)), ..S3Settings::new("bucket", keys) }
    }

    /// A store on this server with few tries, and with time for a busy machine.
    pub(super) fn store(&self) -> Objects {
        self.within(Duration::from_secs(30), Duration::from_secs(15))
    }

    /// The same with these bounds of a request and of a wait for its next bytes, for a server that falls silent.
    pub(super) fn within(&self, request: Duration, idle: Duration) -> Objects {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Objects::s3(self.settings()).unwrap().with_limits(Limits {
            request,
            idle,
            attempts: 3,
            backoff: Duration::from_millis(1),
            longest_backoff: Duration::from_millis(5),
            ..Limits::default()
        })
    }
}

fn receive(stream: &mut TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut words = first.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut header, mut bytes) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        let line = line.to_lowercase();
        if let Some(length) = line.strip_prefix("content-length:") {
            bytes = length.trim().parse().ok()?;
        }
        header.push_str(&line);
    }
    let mut body = vec![0; bytes];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, target, header, body })
}
