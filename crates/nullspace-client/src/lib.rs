//! Typed client of the HTTP API, for the command line and the tests.
//!
//! ```text
//!   Client::start_build ──> TemplateBuild
//!   Client::follow_build ─> stream of log entries, without a gap: a lost connection is taken up where it broke
//!   Client::create_sandbox, exec, hibernate, resume, fork, …
//! ```
//!
//! Every call has a timeout and every answer a largest size. An answer that is no success is an [`Error::Answer`] with
//! the service's own words. 429, and a transition of a sandbox that waits for another one, are tried again as often as the published
//! client does.

#![warn(clippy::cast_possible_truncation)]

mod blobs;
mod error;
mod follow;
mod life;
mod sse;
mod terminal;

use std::net::IpAddr;
use std::time::Duration;

use bytes::BytesMut;
use nullspace_api::{
    CancelTemplateBuildRequest, CreateSandboxRequest, CreateSandboxResponse, CreateTemplateRequest,
    DestroySandboxResponse, ErrorResponse, ErrorResponseCode, ExecRequest, ExecResponse, ProcessInfo, SandboxInfo,
    TemplateBuild, TemplateBuildStatusSnapshot, TemplateInfo, to_wire_json,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

pub use error::{Error, Result};
pub use follow::BuildLog;
pub use terminal::{TerminalEvent, TerminalInput, TerminalOutput};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For calls that do not wait for anything.
const TIMEOUT: Duration = Duration::from_secs(60);
/// For calls that wait for a machine.
const MACHINE_TIMEOUT: Duration = Duration::from_secs(120);
/// What a call may take longer than the command that it waits for.
const EXEC_MARGIN: Duration = Duration::from_secs(30);
/// Largest answer in bytes; a command's output is the largest thing there is.
const MAX_ANSWER: usize = 256 << 20;
/// How often 429 and `transition_in_progress` are tried again, and for how long at most each time is waited.
const RETRIES: u32 = 3;
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// A client for one service and one key. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    key: SecretString,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Client").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the service at `base_url` (`http://127.0.0.1:3000`, or with a path in front of `/v1`).
    ///
    /// # Errors
    /// When the URL is not an absolute `http` or `https` URL.
    pub fn new(base_url: &str, key: SecretString) -> Result<Self> {
        let base = Url::parse(base_url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| Error::BaseUrl { url: base_url.to_owned() })?;
        // Two providers are in the tree; the process needs to have chosen one. If it has already, that one stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("nullspace-client/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none());
        if is_loopback(&base) {
            // A proxy cannot reach this machine's own loopback.
            http = http.no_proxy();
        }
        let http = http.build().map_err(|source| Error::Transport { operation: "make the client", source })?;
        Ok(Self { http, base, key })
    }

    /// Start a build. Its secrets go over the wire with it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start_build(&self, request: &CreateTemplateRequest) -> Result<TemplateBuild> {
        let url = self.url(&["v1", "templates", "builds"])?;
        self.call(Method::POST, url, Some(request), TIMEOUT, "start the build").await
    }

    /// A build, and its log from `offset` on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn build_status(&self, build_id: &str, offset: u64) -> Result<TemplateBuildStatusSnapshot> {
        let mut url = self.url(&["v1", "templates", "builds", build_id])?;
        url.query_pairs_mut().append_pair("offset", &offset.to_string());
        self.get(url, "get the build").await
    }

    /// A build's log from `offset` on, until the entry that ends it.
    #[must_use]
    pub fn follow_build(&self, build_id: &str, offset: u64) -> BuildLog {
        follow::follow(self.clone(), build_id.to_owned(), offset)
    }

    /// Ask for a build's end. A build that has ended stays as it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancel_build(&self, build_id: &str, reason: Option<String>) -> Result<TemplateBuildStatusSnapshot> {
        let url = self.url(&["v1", "templates", "builds", build_id, "cancel"])?;
        let request = CancelTemplateBuildRequest { reason };
        self.call(Method::POST, url, Some(&request), TIMEOUT, "cancel the build").await
    }

    /// The templates that the key can use.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_templates(&self) -> Result<Vec<TemplateInfo>> {
        self.get(self.url(&["v1", "templates"])?, "list templates").await
    }

    /// A template, by id or reference.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_template(&self, id: &str) -> Result<TemplateInfo> {
        self.get(self.url(&["v1", "templates", id])?, "get the template").await
    }

    /// Delete a template, by id or reference.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_template(&self, id: &str) -> Result<()> {
        let url = self.url(&["v1", "templates", id])?;
        self.send(Method::DELETE, url, None, TIMEOUT, "delete the template").await.map(drop)
    }

    /// Make a sandbox.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_sandbox(&self, request: &CreateSandboxRequest) -> Result<CreateSandboxResponse> {
        let url = self.url(&["v1", "sandboxes"])?;
        self.call(Method::POST, url, Some(request), MACHINE_TIMEOUT, "create the sandbox").await
    }

    /// All sandboxes of the key's tenant.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_sandboxes(&self) -> Result<Vec<SandboxInfo>> {
        self.get(self.url(&["v1", "sandboxes"])?, "list sandboxes").await
    }

    /// A sandbox.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_sandbox(&self, id: &str) -> Result<SandboxInfo> {
        self.get(self.url(&["v1", "sandboxes", id])?, "get the sandbox").await
    }

    /// End a sandbox.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn destroy_sandbox(&self, id: &str) -> Result<DestroySandboxResponse> {
        let url = self.url(&["v1", "sandboxes", id])?;
        self.call(Method::DELETE, url, None::<&()>, MACHINE_TIMEOUT, "end the sandbox").await
    }

    /// Run a command in a sandbox and wait for its end. Dropping the future ends the command.
    ///
    /// # Errors
    /// See [`Error`]; a command that fails is no error but an exit code.
    pub async fn exec(&self, id: &str, request: &ExecRequest) -> Result<ExecResponse> {
        let url = self.url(&["v1", "sandboxes", id, "exec"])?;
        let seconds = request.timeout_secs.unwrap_or(ExecRequest::DEFAULT_TIMEOUT_SECS);
        let timeout = Duration::from_secs(seconds).saturating_add(EXEC_MARGIN);
        self.call(Method::POST, url, Some(request), timeout, "run the command").await
    }

    /// The processes of a sandbox.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_processes(&self, id: &str) -> Result<Vec<ProcessInfo>> {
        self.get(self.url(&["v1", "sandboxes", id, "processes"])?, "list processes").await
    }

    /// The URL of a path under the base; segments are encoded, so a reference with slashes stays one.
    fn url(&self, segments: &[&str]) -> Result<Url> {
        let mut url = self.base.clone();
        for segment in segments {
            // The URL standard drops dots and keeps nothing of an empty last segment: it would be another route.
            if matches!(*segment, "" | "." | "..") {
                return Err(Error::Id { id: (*segment).to_owned() });
            }
        }
        match url.path_segments_mut() {
            Ok(mut path) => path.pop_if_empty().extend(segments),
            Err(()) => return Err(Error::BaseUrl { url: self.base.to_string() }),
        };
        Ok(url)
    }

    async fn get<T: DeserializeOwned>(&self, url: Url, operation: &'static str) -> Result<T> {
        self.call(Method::GET, url, None::<&()>, TIMEOUT, operation).await
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: Option<&B>,
        timeout: Duration,
        operation: &'static str,
    ) -> Result<T> {
        let body = body
            .map(to_wire_json)
            .transpose()
            .map_err(|source| Error::Unreadable { operation, what: source.to_string() })?;
        let response = self.send(method, url, body, timeout, operation).await?;
        decoded(response, operation).await
    }

    /// A POST that waits for a machine. Its `Idempotency-Key` is the same at each try.
    async fn post<T: DeserializeOwned>(&self, url: Url, body: &impl Serialize, operation: &'static str) -> Result<T> {
        let key = Uuid::new_v4().to_string();
        let request = || {
            let request = self.request(Method::POST, url.clone()).timeout(MACHINE_TIMEOUT);
            request.header("idempotency-key", &key).json(body)
        };
        decoded(retried(request, operation).await?, operation).await
    }

    /// Sends a request until its answer is not to be tried again; the answer is a success.
    async fn send(
        &self,
        method: Method,
        url: Url,
        body: Option<Vec<u8>>,
        timeout: Duration,
        operation: &'static str,
    ) -> Result<Response> {
        let request = || {
            let request = self.request(method.clone(), url.clone()).timeout(timeout);
            match &body {
                Some(body) => request.header(header::CONTENT_TYPE, "application/json").body(body.clone()),
                None => request,
            }
        };
        retried(request, operation).await
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.http.request(method, url).bearer_auth(self.key.expose_secret())
    }
}

/// Sends a request again as long as the answer asks for it.
async fn retried(request: impl Fn() -> RequestBuilder, operation: &'static str) -> Result<Response> {
    let mut retries = 0;
    loop {
        match answered(request(), operation).await {
            Err(Error::Answer { retry_after: Some(after), .. }) if retries < RETRIES && after <= MAX_RETRY_AFTER => {
                retries += 1;
                tokio::time::sleep(after).await;
            }
            answer => return answer,
        }
    }
}

async fn decoded<T: DeserializeOwned>(response: Response, operation: &'static str) -> Result<T> {
    let bytes = read(response, operation).await?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Unreadable { operation, what: source.to_string() })
}

/// Send a request; an answer that is no success is an error.
async fn answered(request: RequestBuilder, operation: &'static str) -> Result<Response> {
    let response = request.send().await.map_err(|source| Error::Transport { operation, source })?;
    if response.status().is_success() {
        return Ok(response);
    }
    Err(refused(response, operation).await)
}

/// The error of an answer that is no success.
async fn refused(response: Response, operation: &'static str) -> Error {
    let (status, after) = (response.status(), retry_after(&response));
    let bytes = match read(response, operation).await {
        Ok(bytes) => bytes,
        Err(error) => return error,
    };
    match serde_json::from_slice::<ErrorResponse>(&bytes) {
        Ok(body) => {
            let passing =
                status == StatusCode::TOO_MANY_REQUESTS || body.code == ErrorResponseCode::TransitionInProgress;
            let retry_after = passing.then_some(after);
            Error::Answer { operation, status: status.as_u16(), body: Box::new(body), retry_after }
        }
        Err(_) => {
            let what = format!("{status} without the service's error body; is this its address?");
            Error::Unreadable { operation, what }
        }
    }
}

fn retry_after(response: &Response) -> Duration {
    let seconds = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1))
}

async fn read(mut response: Response, operation: &'static str) -> Result<BytesMut> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|source| Error::Transport { operation, source })? {
        if bytes.len().saturating_add(chunk.len()) > MAX_ANSWER {
            return Err(Error::Unreadable { operation, what: format!("larger than {MAX_ANSWER} bytes") });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
