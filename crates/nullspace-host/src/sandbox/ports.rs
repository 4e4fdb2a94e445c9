//! Connections to the ports of a running sandbox.
//!
//! ```text
//!   dial ── gate ──> agent ──> 127.0.0.1:port        a connection is no operation: neither a pause nor a snapshot waits for it
//!     └─> Connection ── the sandbox ends, or a pause begins ──> closed, with an error at both directions
//!                    ── a snapshot or a fork ──> it stands still meanwhile, and goes on
//! ```
//! Over a snapshot it goes on with the session of the agent. Where that cannot be continued, the connection is closed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use nullspace_api::ErrorResponseCode;
use nullspace_guest::host::{AgentError, Dialled};
use nullspace_guest::message::FailureKind;
use nullspace_service::{Error, LivePorts, PortStream, Result, chain};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::activity::Active;
use super::live::Live;

/// An open connection. It counts as use of the sandbox.
struct Connection {
    /// `None` once it was closed from this side.
    open: Option<(Dialled, Active)>,
    // One for each direction: they may be polled by different tasks, and each is woken.
    reads_end: End,
    writes_end: End,
}

/// The two reasons to close a connection.
struct End {
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    pausing: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl End {
    fn of(ended: &CancellationToken, pausing: &CancellationToken) -> End {
        let wait = |token: &CancellationToken| Box::pin(token.clone().cancelled_owned());
        End { ended: wait(ended), pausing: wait(pausing) }
    }

    fn has_come(&mut self, cx: &mut Context<'_>) -> bool {
        self.ended.as_mut().poll(cx).is_ready() || self.pausing.as_mut().poll(cx).is_ready()
    }
}

impl Connection {
    fn new(dialled: Dialled, active: Active, ended: &CancellationToken, pausing: &CancellationToken) -> Connection {
        let (reads_end, writes_end) = (End::of(ended, pausing), End::of(ended, pausing));
        Connection { open: Some((dialled, active)), reads_end, writes_end }
    }

    /// The connection, unless it was closed.
    fn open(&mut self) -> io::Result<Pin<&mut Dialled>> {
        match &mut self.open {
            Some((dialled, _)) => Ok(Pin::new(dialled)),
            None => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the sandbox has ended, or was paused")),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.open.is_some() && self.reads_end.has_come(cx) {
            self.open = None;
        }
        match self.open() {
            Ok(dialled) => dialled.poll_read(cx, buffer),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.open.is_some() && self.writes_end.has_come(cx) {
            self.open = None;
        }
        match self.open() {
            Ok(dialled) => dialled.poll_write(cx, bytes),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.open() {
            Ok(dialled) => dialled.poll_flush(cx),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.open() {
            Ok(dialled) => dialled.poll_shutdown(cx),
            // What is closed is shut down.
            Err(_) => Poll::Ready(Ok(())),
        }
    }
}

#[async_trait]
impl LivePorts for Live {
    async fn dial(self: Arc<Self>, port: u16) -> Result<PortStream> {
        if port == 0 {
            return Err(Error::invalid("port is 0: it must be 1 to 65535"));
        }
        let live = &self;
        let opened = live.using(|operation| async move {
            let dialled = operation.dial(port).await.map_err(|error| failed(error, port))?;
            Ok(Connection::new(dialled, live.activity.begin(), &live.ended, operation.pausing()))
        });
        Ok(Box::new(opened.await?))
    }
}

fn failed(error: AgentError, port: u16) -> Error {
    match error {
        AgentError::Failed(failure) => match failure.kind {
            FailureKind::ConnectionRefused => Error::new(
                ErrorResponseCode::NotFound,
                format!("nothing listens on port {port} of the sandbox: start a server there, then try again"),
            ),
            FailureKind::ConnectionTimedOut => Error::new(
                ErrorResponseCode::ExecTimeout,
                format!(
                    "the server on port {port} of the sandbox accepts no connection: it is too busy, or hangs; try again"
                ),
            ),
            FailureKind::Limit => Error::new(
                ErrorResponseCode::RateLimitExceeded,
                format!(
                    "the sandbox has too many open connections to its ports: close some, then try again ({failure})"
                ),
            ),
            _ => Error::new(ErrorResponseCode::ExecFailed, failure.message),
        },
        AgentError::Lacking { .. } => Error::not_implemented(error.to_string()),
        AgentError::Timeout { .. } => Error::new(
            ErrorResponseCode::ExecTimeout,
            format!("the sandbox did not answer in time when port {port} was connected to; try again"),
        ),
        other => {
            tracing::warn!(error = %chain(&other), port, "a connection to a port failed");
            Error::new(ErrorResponseCode::ExecFailed, "the sandbox stopped answering; create a new one")
        }
    }
}

#[cfg(test)]
mod tests {
    use nullspace_guest::capability::Capability;
    use nullspace_guest::message::Failure;

    use super::*;

    #[test]
    fn each_failure_says_what_helps() {
        let of = |kind| failed(AgentError::Failed(Failure { kind, message: "words of the guest".to_owned() }), 80);
        let refused = of(FailureKind::ConnectionRefused);
        assert_eq!(refused.code, ErrorResponseCode::NotFound);
        assert_eq!(refused.message, "nothing listens on port 80 of the sandbox: start a server there, then try again");
        assert_eq!(of(FailureKind::ConnectionTimedOut).code, ErrorResponseCode::ExecTimeout);
        assert_eq!(of(FailureKind::Limit).code, ErrorResponseCode::RateLimitExceeded);
        assert_eq!(of(FailureKind::Unknown).code, ErrorResponseCode::ExecFailed);
        let lacking = failed(AgentError::Lacking { capability: Capability::Dial, version: 7 }, 80);
        assert_eq!(lacking.code, ErrorResponseCode::NotImplemented);
        assert!(lacking.message.contains("cannot open connections to its ports"), "{}", lacking.message);
    }
}
