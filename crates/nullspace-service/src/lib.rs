//! The operations of the service, as one trait: [`Service`]. The server's routes call it, control implements it, and neither
//! knows the other.
//!
//! ```text
//!   server: route ── dyn Service ──> control     caller, id or reference, wire type
//!                 <── Ok(wire type) | Err(Error { code, message, … })
//! ```
//!
//! `Service` is the sum of one trait for each topic. An operation is declared beside its relatives here, and implemented in
//! control in the file that does the work. The operations of one running sandbox are [`LiveSandbox`], which
//! [`Sandboxes::live_sandbox`] looks up once for a caller.
//!
//! Rules for every implementation:
//! - A future may be dropped at any await, when its client disconnects. Work that must be completed runs in a task of its own.
//! - A private object of another tenant is "not found", never "forbidden".
//! - Every call has a time limit. The server only limits its own reads and writes.
//!
//! The service has no HTTP, and no path of a file of this host. Contents travel as streams.

mod builds;
mod error;
mod files;
mod keys;
mod life;
mod live;
mod ports;
mod sandboxes;
mod signed;
mod ssh;
mod templates;
mod warm_pools;

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use nullspace_api::ErrorResponseCode;
pub use nullspace_types::{Caller, KeyId, SshAccessId, TenantId};
use secrecy::SecretString;

pub use builds::{Blobs, BuildChecks, BuildHistory, BuildQuery, Builds, LogStream};
pub use error::{Error, Result, chain};
pub use files::{Depth, Extent, FileAt, FileContent, FileDownload, FilePart, PartDownload};
pub use keys::Keys;
pub use life::{EventQuery, EventStream, Events, Life, SnapshotQuery, Webhooks};
pub use live::{
    CommandEvent, FileChange, FollowedCommand, FollowedTerminal, LiveCommands, LiveFiles, LiveGit, LivePorts,
    LiveSandbox, LiveSearch, LiveTerminals, LiveUploads, LiveWatches, PortIo, PortStream, TerminalAt, TerminalEvent,
    UploadPart, WatchedDir,
};
pub use ports::{Entered, Knock, LocalPorts, PortCount, Ports, Previews};
pub use sandboxes::{SandboxQuery, Sandboxes};
pub use signed::{SignedFile, SignedFiles, Transfer};
pub use ssh::{SshAccesses, SshCertificate, SshCertificates, SshEntered, SshLogin, SshWanted};
pub use templates::{Names, Templates};
pub use warm_pools::{WarmPoolAct, WarmPoolQuery, WarmPools};

/// All operations that the server calls. An implementation has a body for each topic, and says `impl Service for … {}` once.
pub trait Service:
    Access
    + Health
    + Builds
    + BuildHistory
    + BuildChecks
    + Blobs
    + Templates
    + Names
    + Sandboxes
    + Life
    + Events
    + Webhooks
    + Keys
    + SignedFiles
    + Ports
    + Previews
    + SshAccesses
    + WarmPools
{
}

/// The parts of an HTTP request that the service uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestContext {
    /// `x-request-id`: at most 128 visible ASCII characters.
    pub request_id: String,
    /// `Idempotency-Key`: the same key and caller mean the same request. At most 255 visible ASCII characters.
    pub idempotency_key: Option<String>,
    /// True: a build whose context names files that were not uploaded is refused. False: it is accepted, and ends with that
    /// error.
    pub refuse_unknown_files: bool,
}

/// An answer with warnings for its caller.
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

/// The bytes of a body while they arrive. Nothing follows an error.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// The memory of a request, for its answer.
pub trait Memory: Send + Sync {
    /// Reserves so many more bytes until the request is over.
    ///
    /// # Errors
    /// [`Exhausted`] when there is not enough. Nothing is reserved then.
    fn grow(&self, bytes: usize) -> std::result::Result<(), Exhausted>;
}

/// The memory limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// The memory limit of the tenant's requests is reached.
    #[error("the memory limit of this tenant's requests is reached")]
    Tenant,
    /// The memory limit of all requests is reached.
    #[error("the memory limit of all requests is reached")]
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

/// Authentication.
#[async_trait]
pub trait Access: Send + Sync + 'static {
    /// Returns the key's tenant as the caller, with the key's id; `None` for an unknown key.
    async fn authenticate(&self, key: &SecretString) -> Result<Option<Caller>>;

    /// Returns the valid ones of these keys. The server asks every few seconds while requests are under way, and ends the
    /// requests of other keys.
    async fn keys_in_force(&self, keys: &[KeyId]) -> Result<Vec<KeyId>>;
}

/// Questions of operators.
#[async_trait]
pub trait Health: Send + Sync + 'static {
    /// Whether requests can be served now.
    async fn ready(&self) -> Result<()>;

    /// Returns information about this host: lines of text, each `name: value`.
    async fn details(&self) -> Vec<String>;

    /// Returns all metrics in Prometheus' text form.
    async fn metrics(&self) -> Result<String>;
}
