//! A small HTTP server on loopback whose answers a test writes, faults included.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::image::Image;

#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Path and query.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The connection closes after this many bytes of the body.
    pub(crate) cut_after: Option<usize>,
    /// The body comes in pieces of so many bytes, with a pause behind each.
    pub(crate) trickle: Option<(usize, Duration)>,
    /// Wait before the head.
    pub(crate) delay: Duration,
    /// Do not announce a length.
    pub(crate) unknown_length: bool,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status, body: body.into(), ..Answer::default() }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Answer {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let (seen, stopped) = (requests.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (handler, seen) = (handler.clone(), seen.clone());
                std::thread::spawn(move || {
                    let _ = serve(stream.unwrap(), &*handler, &seen);
                });
            }
        });
        Server { port, requests, stop, thread: Some(thread) }
    }

    /// Serves `image` as any repository and tag; `first` may answer instead.
    pub(crate) fn of_image(image: Image, first: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) -> Server {
        Server::start(move |request| first(request).unwrap_or_else(|| answer(&image, request)))
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn targets(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|request| request.target.clone()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// What a registry that works answers.
pub(crate) fn answer(image: &Image, request: &Request) -> Answer {
    let target = request.target.split('?').next().unwrap();
    if target == "/v2/" {
        return Answer::new(200, "{}");
    }
    let name = target.rsplit('/').next().unwrap();
    if target.contains("/manifests/") {
        let manifest = &image.manifest;
        return Answer::new(200, manifest.bytes.clone())
            .header("Content-Type", manifest.media_type)
            .header("Docker-Content-Digest", manifest.digest.as_str());
    }
    let blob = image.layers.iter().chain([&image.config]).find(|blob| blob.digest.as_str() == name);
    match blob {
        Some(blob) => ranged(&blob.bytes, request),
        None => Answer::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#),
    }
}

/// The bytes, or the end of them that `Range` asks for.
pub(crate) fn ranged(bytes: &[u8], request: &Request) -> Answer {
    let start = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
    let start = start.and_then(|range| range.strip_suffix('-')).and_then(|start| start.parse::<usize>().ok());
    match start {
        None => Answer::new(200, bytes),
        Some(start) => Answer::new(206, &bytes[start..])
            .header("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len())),
    }
}

fn serve(stream: TcpStream, handler: &Handler, seen: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    // Anything that is no HTTP (a TLS hello) ends the connection.
    let mut first = [0_u8; 1];
    reader.read_exact(&mut first)?;
    if !matches!(first[0], b'G' | b'P') {
        return Ok(());
    }
    reader.read_line(&mut line)?;
    let target = line.split(' ').nth(1).unwrap_or("").to_owned();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let request = Request { target, headers, body };
    seen.lock().unwrap().push(request.clone());
    let answer = handler(&request);
    std::thread::sleep(answer.delay);
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", answer.status);
    if !answer.unknown_length {
        head.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
    }
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    let body = &answer.body[..answer.cut_after.unwrap_or(answer.body.len()).min(answer.body.len())];
    let (piece, pause) = answer.trickle.unwrap_or((body.len().max(1), Duration::ZERO));
    for piece in body.chunks(piece) {
        stream.write_all(piece)?;
        std::thread::sleep(pause);
    }
    stream.flush()
}
