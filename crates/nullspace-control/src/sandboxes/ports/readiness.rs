//! Whether a server answers on a port of a running sandbox.
//!
//! ```text
//!   dial ── refused ──> again, until the time is over ──> not ready
//!     └── connected ──┬── tcp ──> ready
//!                     └── http: GET path ── 200 to 399 ──> ready
//!                                    └── else ──> again
//! ```
//! The server is hostile: little of its answer is read, for a short time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nullspace_api::{
    ErrorResponseCode, PreviewReadinessRequest, PreviewReadinessRequestKind, PreviewReadinessResponse,
    PreviewReadinessResponseKind,
};
use nullspace_service::{LiveSandbox, PortStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::error::{Error, Result};

/// Longest time of one attempt.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read: its status line.
const STATUS_LINE: usize = 256;
/// Most bytes of a path.
const LONGEST_PATH: usize = 2048;
/// Code of a server that does not answer.
const NOT_READY: &str = "preview_service_not_ready";

/// What is asked.
#[derive(Debug)]
pub(super) struct Question {
    port: u16,
    /// Of the request. `None`: a connection is enough.
    path: Option<String>,
    timeout: Duration,
    interval: Duration,
}

/// The result of an attempt.
enum Attempt {
    Ready,
    /// The sandbox was reached, and this is wrong.
    Service(String),
    /// The sandbox was not reached.
    Route(String),
}

fn in_range(field: &str, value: u64, range: std::ops::RangeInclusive<u64>) -> Result<u64> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(Error::invalid(format!("{field} is {value}: it must be {} to {}", range.start(), range.end())))
}

impl Question {
    pub(super) fn of(port: u16, request: PreviewReadinessRequest) -> Result<Question> {
        let timeout = in_range("timeout_secs", request.timeout_secs.unwrap_or(30), 0..=120)?;
        let interval = in_range("interval_ms", request.interval_ms.unwrap_or(500), 50..=10_000)?;
        let path = match request.kind.unwrap_or(PreviewReadinessRequestKind::Tcp) {
            PreviewReadinessRequestKind::Tcp => None,
            PreviewReadinessRequestKind::Http => Some(request.path.unwrap_or_else(|| "/".to_owned())),
        };
        if let Some(path) = &path
            && !(path.starts_with('/')
                && path.len() <= LONGEST_PATH
                && path.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(Error::invalid(
                "path must begin with / and have at most 2048 visible ASCII characters; others are percent-encoded",
            ));
        }
        Ok(Question { port, path, timeout: Duration::from_secs(timeout), interval: Duration::from_millis(interval) })
    }

    /// The kind as the answer names it.
    fn kind(&self) -> PreviewReadinessResponseKind {
        if self.path.is_some() { PreviewReadinessResponseKind::Http } else { PreviewReadinessResponseKind::Tcp }
    }
}

/// Asks until a server answers, or the time is over.
///
/// # Errors
/// When the sandbox ends or is paused meanwhile, or its agent cannot connect.
pub(super) async fn wait(
    sandbox: Arc<dyn LiveSandbox>,
    id: &str,
    question: Question,
) -> Result<PreviewReadinessResponse> {
    let began = Instant::now();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let attempt = attempt(Arc::clone(&sandbox), &question).await?;
        let left = question.timeout.saturating_sub(began.elapsed());
        let is_ready = matches!(attempt, Attempt::Ready);
        if !is_ready && !left.is_zero() {
            tokio::time::sleep(question.interval.min(left)).await;
            continue;
        }
        let (route_ready, error) = match attempt {
            Attempt::Ready => (true, None),
            Attempt::Service(what) => (true, Some(what)),
            Attempt::Route(what) => (false, Some(what)),
        };
        let what_helps = if route_ready {
            "start the server in the sandbox, on this port and on 127.0.0.1 or 0.0.0.0, and look at its output"
        } else {
            "try again; close connections to the sandbox that are not needed"
        };
        return Ok(PreviewReadinessResponse {
            ready: is_ready,
            route_ready,
            service_ready: is_ready,
            sandbox_id: id.to_owned(),
            port: u32::from(question.port),
            kind: question.kind(),
            checked_at: Timestamp::now().into(),
            elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            attempts,
            code: error.is_some().then(|| if route_ready { NOT_READY } else { "preview_route_not_ready" }.to_owned()),
            suggested_action: error.is_some().then(|| what_helps.to_owned()),
            error,
            path: question.path,
        });
    }
}

async fn attempt(sandbox: Arc<dyn LiveSandbox>, question: &Question) -> Result<Attempt> {
    let port = question.port;
    let dialled = match timeout(ATTEMPT, sandbox.dial(port)).await {
        Err(_) => return Ok(Attempt::Service(format!("port {port} did not take a connection within 5 s"))),
        Ok(dialled) => dialled,
    };
    let stream = match dialled {
        Ok(stream) => stream,
        Err(error) => {
            return match error.code {
                ErrorResponseCode::NotFound => Ok(Attempt::Service(format!("nothing listens on port {port}"))),
                ErrorResponseCode::SandboxNotFound
                | ErrorResponseCode::SandboxNotReady
                | ErrorResponseCode::NotImplemented => Err(error),
                _ => Ok(Attempt::Route(error.message)),
            };
        }
    };
    let Some(path) = &question.path else { return Ok(Attempt::Ready) };
    Ok(match timeout(ATTEMPT, status(stream, port, path)).await {
        Err(_) => Attempt::Service(format!("port {port} did not answer a request within 5 s")),
        Ok(None) => Attempt::Service(format!("port {port} did not answer a request as an HTTP server does")),
        Ok(Some(200..=399)) => Attempt::Ready,
        Ok(Some(status)) => Attempt::Service(format!("port {port} answered {status} to GET {path}")),
    })
}

/// The status of the answer to a request. `None` when there is none.
async fn status(mut stream: PortStream, port: u16, path: &str) -> Option<u16> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: nullspace-readiness\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut line = Vec::with_capacity(STATUS_LINE);
    let mut answer = stream.take(STATUS_LINE as u64);
    while !line.contains(&b'\n') {
        if answer.read_buf(&mut line).await.ok()? == 0 {
            break;
        }
    }
    let line = std::str::from_utf8(line.split(|byte| *byte == b'\r' || *byte == b'\n').next()?).ok()?;
    let mut words = line.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|code| code.len() == 3)?.parse().ok()
}
