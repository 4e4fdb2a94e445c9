//! A service that has one sandbox, whose ports all lead to one server of the test.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nullspace_api::ErrorResponseCode;
use nullspace_service::{Error, Knock, PortCount, PortStream, Result};
use nullspace_types::{SandboxId, TenantId};
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::body::{EdgeBody, full};
use crate::gate::{Admitted, Dial, Gate};
use crate::{Edge, EdgeLimits, EdgeSettings, Screened, Visit};

pub(crate) const DOMAIN: &str = "ports.example.com";

/// Bound of every wait of these tests.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What the gate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Open,
    /// Open with this token alone.
    Token(&'static str),
    Waking,
    Paused,
}

pub(crate) struct Doors {
    pub(crate) sandbox: SandboxId,
    /// A second sandbox of the same tenant, and one of another's.
    pub(crate) second: SandboxId,
    pub(crate) others: SandboxId,
    tenants: [TenantId; 2],
    pub(crate) mood: Mutex<Mood>,
    pub(crate) host: Mutex<Option<String>>,
    pub(crate) over: Mutex<CancellationToken>,
    /// Whether the sandbox has ended, and how often that was asked.
    pub(crate) ended: AtomicBool,
    pub(crate) looks: AtomicUsize,
    pub(crate) counts: Arc<Counts>,
    server: Option<SocketAddr>,
    dials: Arc<AtomicUsize>,
}

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) from_client: AtomicU64,
    pub(crate) to_client: AtomicU64,
    pub(crate) failed: Mutex<Vec<&'static str>>,
}

impl PortCount for Counts {
    fn bytes(&self, from_client: u64, to_client: u64) {
        self.from_client.fetch_add(from_client, Ordering::Relaxed);
        self.to_client.fetch_add(to_client, Ordering::Relaxed);
    }

    fn failed(&self, code: &'static str) {
        self.failed.lock().unwrap().push(code);
    }
}

struct Ports {
    server: Option<SocketAddr>,
    dials: Arc<AtomicUsize>,
}

#[async_trait]
impl Dial for Ports {
    async fn dial(&self, _port: u16) -> Result<PortStream> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let refused = |_| Error::new(ErrorResponseCode::NotFound, "nothing listens on the port");
        let server = self.server.ok_or(()).map_err(refused)?;
        Ok(Box::new(TcpStream::connect(server).await.map_err(|_| refused(()))?))
    }
}

#[async_trait]
impl Gate for Doors {
    async fn enter(&self, knock: Knock) -> Result<Admitted> {
        let mood = *self.mood.lock().unwrap();
        let all = [(self.sandbox, 0), (self.second, 0), (self.others, 1)];
        let known = all.iter().find(|(sandbox, _)| knock.sandbox == sandbox.to_string());
        let tenant = known.map(|(_, tenant)| self.tenants[*tenant]);
        let tenant = tenant.ok_or_else(|| Error::sandbox_not_found(&knock.sandbox))?;
        let shown = knock.token.as_ref().map(|token| token.expose_secret());
        let good = match mood {
            Mood::Token(token) => shown == Some(token),
            Mood::Open => shown.is_none_or(|token| token == "good"),
            Mood::Waking | Mood::Paused => {
                let retry_after = (mood == Mood::Waking).then_some(Duration::from_secs(5));
                let error = Error::new(ErrorResponseCode::SandboxNotReady, "not running");
                return Err(Error { retry_after, ..error });
            }
        };
        if !good {
            return Err(Error::sandbox_not_found(&knock.sandbox));
        }
        Ok(Admitted {
            sandbox: Arc::new(Ports { server: self.server, dials: Arc::clone(&self.dials) }),
            tenant,
            host: self.host.lock().unwrap().clone(),
            token_secs: shown.map(|_| 60),
            over: self.over.lock().unwrap().clone(),
            count: Arc::clone(&self.counts) as Arc<dyn PortCount>,
        })
    }

    async fn has_ended(&self, sandbox: &str) -> Result<bool> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        Ok(sandbox != self.sandbox.to_string() || self.ended.load(Ordering::SeqCst))
    }
}

/// What clients speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http1,
    Http2,
}

/// Serves a connection as the service does.
async fn serve(stream: TcpStream, peer: SocketAddr, edge: Arc<Edge>, stopping: CancellationToken, speaks: Speaks) {
    let cut = CancellationToken::new();
    let screened = Screened::after(Vec::new(), stream, speaks == Speaks::Http1);
    let opener = screened.opener();
    let cutting = (speaks == Speaks::Http1).then(|| cut.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (edge, opener) = (Arc::clone(&edge), opener.clone());
        let (stopping, cut) = (stopping.clone(), cutting.clone());
        let visit = Visit { peer: peer.ip(), hold: Box::new(|| Some(Box::new(()))), stopping, cut };
        async move {
            if edge.claims(&request) {
                let response = edge.answer(request, visit).await;
                if response.status() == hyper::StatusCode::SWITCHING_PROTOCOLS {
                    opener.open();
                }
                return Ok::<_, Infallible>(response);
            }
            let mut response = Response::new(full("the API"));
            *response.status_mut() = hyper::StatusCode::IM_A_TEAPOT;
            Ok(response)
        }
    });
    if speaks == Speaks::Http2 {
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(screened), service)
            .await;
        return;
    }
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).max_headers(129);
    let connection = builder.serve_connection(TokioIo::new(screened), service).with_upgrades();
    tokio::select! {
        _ = connection => {}
        () = cut.cancelled() => {}
    }
}

/// An edge on a listener.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) doors: Arc<Doors>,
    pub(crate) edge: Arc<Edge>,
    pub(crate) stopping: CancellationToken,
}

impl World {
    /// With a server in the sandbox, and limits.
    pub(crate) async fn new(server: Option<SocketAddr>, limits: EdgeLimits) -> World {
        Self::speaking(Speaks::Http1, server, limits).await
    }

    /// As [`new`](Self::new), for clients of this protocol.
    pub(crate) async fn speaking(speaks: Speaks, server: Option<SocketAddr>, limits: EdgeLimits) -> World {
        let doors = Arc::new(Doors {
            sandbox: SandboxId::new(),
            second: SandboxId::new(),
            others: SandboxId::new(),
            tenants: [TenantId::new(), TenantId::new()],
            mood: Mutex::new(Mood::Open),
            host: Mutex::default(),
            over: Mutex::default(),
            ended: AtomicBool::default(),
            looks: AtomicUsize::default(),
            counts: Arc::default(),
            server,
            dials: Arc::default(),
        });
        let proxies = vec!["127.0.0.2/32".parse().unwrap()];
        let settings = EdgeSettings { domain: Some(DOMAIN.to_owned()), paths: true, proxies, limits };
        let edge = Edge::behind(Arc::clone(&doors) as Arc<dyn Gate>, settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stopping = CancellationToken::new();
        let (serving, stop) = (Arc::clone(&edge), stopping.clone());
        tokio::spawn(async move {
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, peer, Arc::clone(&serving), stop.clone(), speaks));
            }
        });
        World { address, doors, edge, stopping }
    }

    /// With a server that answers as `echo` does.
    pub(crate) async fn echoing() -> World {
        World::new(Some(echo().await), EdgeLimits::default()).await
    }

    pub(crate) fn dials(&self) -> usize {
        self.doors.dials.load(Ordering::SeqCst)
    }

    pub(crate) fn failed(&self) -> Vec<&'static str> {
        self.doors.counts.failed.lock().unwrap().clone()
    }

    /// The path of a port.
    pub(crate) fn prefix(&self) -> String {
        format!("/p/{}/8000", self.doors.sandbox)
    }

    /// Sends a GET on a connection of its own, and returns the whole answer.
    pub(crate) async fn get(&self, path: &str, headers: &str) -> String {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: api\r\n{headers}Connection: close\r\n\r\n")).await
    }

    /// Sends a request, and returns what comes until the connection ends.
    pub(crate) async fn send(&self, request: &str) -> String {
        send(self.address, request.as_bytes()).await
    }
}

/// Sends bytes, and returns what comes until the connection ends.
pub(crate) async fn send(address: SocketAddr, request: &[u8]) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::time::timeout(SOON, exchange).await.expect("an answer in time")
}

pub(crate) fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

/// The value of a header of an answer.
pub(crate) fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(given, _)| given.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

/// A server with this handler for each connection.
pub(crate) async fn server<F>(handler: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(handler(stream));
        }
    });
    address
}

/// A server that answers with the request as it saw it: its line, its headers in order, and its body.
pub(crate) async fn echo() -> SocketAddr {
    server(|stream| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            let (parts, body) = request.into_parts();
            let mut seen = format!("{} {}\n", parts.method, parts.uri);
            let mut names: Vec<_> =
                parts.headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect();
            names.sort();
            seen.extend(names);
            let body = body.collect().await.unwrap().to_bytes();
            seen.push_str(&format!("\n{}", String::from_utf8_lossy(&body)));
            Ok::<Response<EdgeBody>, Infallible>(Response::new(full(seen)))
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .max_headers(256)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    })
    .await
}

/// Reads a request's head from a connection.
pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}
