//! What the service does, as one trait: [`Service`]. The server's routes call it, the engine implements it, and neither
//! knows the other.
//!
//! ```text
//!   server: route ── dyn Service ──> engine      caller, id or reference, wire type
//!                 <── Ok(wire type) | Err(Error { code, message, … })
//! ```
//!
//! `Service` is the sum of one trait for each topic, so that an operation is declared beside its relatives here and is
//! implemented in the engine in the file that does the work. The operations of one running sandbox are [`LiveSandbox`],
//! which [`Sandboxes::live_sandbox`] looks up once for a caller.
//!
//! Every implementation keeps these rules:
//! - A future may be dropped at any await, when its client goes away. Work that must not stop half-way runs in a task of
//!   its own.
//! - Another tenant's private thing is not found, never forbidden.
//! - Every call is bounded in time. The server only bounds what it reads and writes itself.
//!
//! There is no HTTP here, and no path of a file of this host: contents travel as streams.

mod builds;
mod error;
mod files;
mod live;
mod sandboxes;
mod templates;

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use nullspace_api::ErrorResponseCode;
pub use nullspace_types::{Caller, KeyId, TenantId};
use secrecy::SecretString;

pub use builds::{Blobs, BuildChecks, BuildHistory, BuildQuery, Builds, LogStream};
pub use error::{Error, Result, chain};
pub use files::{Depth, FileAt, FileContent, FileDownload};
pub use live::{CommandEvent, FollowedCommand, LiveSandbox};
pub use sandboxes::{SandboxQuery, Sandboxes};
pub use templates::{Names, Templates};

/// Everything that the server calls. An implementation has a body for each topic, and says
/// `impl Service for … {}` once.
pub trait Service:
    Access + Health + Builds + BuildHistory + BuildChecks + Blobs + Templates + Names + Sandboxes
{
}

/// What of an HTTP request the service keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestContext {
    /// `x-request-id`: at most 128 visible ASCII characters.
    pub request_id: String,
    /// `Idempotency-Key`: the same key and caller mean the same request; at most 255 visible ASCII characters.
    pub idempotency_key: Option<String>,
    /// A build whose context names files that nobody uploaded is refused; else it is accepted, and ends with that error.
    pub refuse_unknown_files: bool,
}

/// An answer, and what its caller should know beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Warned<T> {
    /// The answer.
    pub value: T,
    /// Sentences for people, printable ASCII; each is a header `X-Nullspace-Warning` of the response.
    pub warnings: Vec<String>,
}

impl<T> From<T> for Warned<T> {
    fn from(value: T) -> Self {
        Self { value, warnings: Vec::new() }
    }
}

/// The bytes of a body as they arrive. Nothing follows an error.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// Memory that a call may take for its answer.
pub trait Memory: Send + Sync {
    /// Takes so many bytes more, until the request is over.
    ///
    /// # Errors
    /// [`Exhausted`] when there are not so many; nothing is taken then.
    fn grow(&self, bytes: usize) -> std::result::Result<(), Exhausted>;
}

/// There is no memory for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// The tenant's requests hold as much as they may.
    #[error("this tenant's requests hold as much memory as they may")]
    Tenant,
    /// All requests together do.
    #[error("all requests together hold as much memory as they may")]
    Service,
}

impl From<Exhausted> for Error {
    fn from(exhausted: Exhausted) -> Self {
        let (code, message) = match exhausted {
            Exhausted::Tenant => (
                ErrorResponseCode::RateLimitExceeded,
                "Too many large requests and answers at once: wait for some to end.",
            ),
            Exhausted::Service => (
                ErrorResponseCode::FeatureUnavailable,
                "The service has no memory left for large requests and answers: try again.",
            ),
        };
        Error { retry_after: Some(Duration::from_secs(1)), ..Error::new(code, message) }
    }
}

/// Who may ask.
#[async_trait]
pub trait Access: Send + Sync + 'static {
    /// Whose key it is; `None` when it is nobody's. The caller that is returned names the key.
    async fn authenticate(&self, key: &SecretString) -> Result<Option<Caller>>;

    /// Which of these keys still open something. Asked every few seconds while requests are under way; those of other keys
    /// are ended.
    async fn keys_in_force(&self, keys: &[KeyId]) -> Result<Vec<KeyId>>;
}

/// What operators ask.
#[async_trait]
pub trait Health: Send + Sync + 'static {
    /// Whether requests can be served now.
    async fn ready(&self) -> Result<()>;

    /// What there is on this host: lines of text, each `name: what there is`.
    fn details(&self) -> Vec<String>;

    /// Everything counted, in Prometheus' text form.
    async fn metrics(&self) -> Result<String>;
}
