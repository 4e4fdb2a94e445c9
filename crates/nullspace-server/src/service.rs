//! What the HTTP layer asks of the domain: one trait, in wire types, and one error that knows nothing of HTTP.
//!
//! ```text
//!   handler ── Service::start_build(caller, request, context) ──> engine
//!           <── Ok(TemplateBuild) | Err(ServiceError { kind, code, message, … })
//! ```
//!
//! Rules for an implementation:
//! - A future is dropped when its client goes away, at any await. What must not stop half-way runs in a task of its own.
//! - Another tenant's private thing is not found, never forbidden.
//! - Every call is bounded in time by the implementation; the server only bounds what it reads and writes itself.

use std::error::Error;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use nullspace_api::{
    CreateSandboxRequest, CreateSandboxResponse, CreateTemplateRequest, DestroySandboxResponse, ErrorDetail,
    ErrorResponse, ErrorResponseCode, ExecRequest, ExecResponse, JsonObject, ProcessInfo, PromoteTemplateBuildRequest,
    RetryTemplateBuildRequest, SandboxInfo, SandboxListPage, SandboxStatus, TemplateAliasInfo,
    TemplateBlobPreflightRequest, TemplateBlobPreflightResponse, TemplateBuild, TemplateBuildBackend,
    TemplateBuildListResponse, TemplateBuildLogEntry, TemplateBuildPlanResponse, TemplateBuildSourceType,
    TemplateBuildStatus, TemplateBuildStatusSnapshot, TemplateBuildValidationResponse, TemplateInfo, TemplateNameClaim,
    TemplateNamespaceInfo, TemplateTagInfo, TemplateVisibility,
};
use secrecy::SecretString;

use crate::budget::Room;
use crate::commands::CommandService;
use crate::files::FileService;

/// Who makes a request, as its key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Id of the tenant that everything belongs to.
    pub tenant_id: String,
    /// Slug of the tenant's own namespace.
    pub namespace: String,
    /// Id of the key (not the key), for logs and `triggered_by`.
    pub key_id: String,
}

/// What of an HTTP request the domain keeps.
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

/// A build's log entries in order, without a gap.
pub type LogStream = BoxStream<'static, Result<TemplateBuildLogEntry, ServiceError>>;

/// The bytes of a body as they arrive.
pub type ByteStream = BoxStream<'static, Result<Bytes, io::Error>>;

/// Which of a template's builds to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildQuery {
    /// In this status only.
    pub status: Option<TemplateBuildStatus>,
    /// Made by this backend only.
    pub backend: Option<TemplateBuildBackend>,
    /// From this kind of source only.
    pub source_type: Option<TemplateBuildSourceType>,
    /// At most so many, 1..=100.
    pub limit: Option<u32>,
    /// Where the page starts, from the page before.
    pub cursor: Option<String>,
}

/// Which sandboxes to list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SandboxQuery {
    /// Only these states; all that have not ended when empty.
    pub states: Vec<SandboxStatus>,
    /// At most so many, 1..=1000; `None`: all.
    pub limit: Option<u32>,
    /// Where the page starts, from the page before.
    pub next_token: Option<String>,
    /// Only of this template.
    pub template: Option<String>,
    /// Only with these entries in their metadata.
    pub metadata: JsonObject,
}

/// The domain, as the HTTP layer needs it.
#[async_trait]
pub trait Service: FileService + CommandService {
    /// Whether requests can be served now.
    async fn ready(&self) -> Result<(), ServiceError>;

    /// What an operator asks of a host that serves: lines of text, each `name: what there is`.
    async fn details(&self) -> Result<Vec<String>, ServiceError>;

    /// What the domain counts, in Prometheus' text form.
    async fn metrics(&self) -> Result<String, ServiceError>;

    /// Whose key it is; `None` when it is nobody's.
    async fn authenticate(&self, key: &SecretString) -> Result<Option<Caller>, ServiceError>;

    /// Which of these keys, by [`Caller::key_id`], still open something. Asked every few seconds while requests are under
    /// way; those of other keys are ended.
    async fn keys_in_force(&self, key_ids: &[String]) -> Result<Vec<String>, ServiceError>;

    /// Accept a build. Once this returns `Ok`, the build reaches a terminal state whatever happens.
    async fn start_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
        context: &RequestContext,
    ) -> Result<Warned<TemplateBuild>, ServiceError>;

    /// A build and its log entries from `offset` on.
    async fn build_status(
        &self,
        caller: &Caller,
        build_id: &str,
        offset: u64,
    ) -> Result<TemplateBuildStatusSnapshot, ServiceError>;

    /// A build's log from `offset` on: what there is, and with `follow` also what comes, until the terminal entry.
    async fn build_logs(
        &self,
        caller: &Caller,
        build_id: &str,
        offset: u64,
        follow: bool,
    ) -> Result<LogStream, ServiceError>;

    /// Ask for a build's end. Asking again, or when it has ended, changes nothing and is no error.
    async fn cancel_build(
        &self,
        caller: &Caller,
        build_id: &str,
        reason: Option<String>,
    ) -> Result<TemplateBuildStatusSnapshot, ServiceError>;

    /// The templates that the caller can use.
    async fn list_templates(&self, caller: &Caller) -> Result<Vec<TemplateInfo>, ServiceError>;

    /// One template, by id or reference.
    async fn get_template(&self, caller: &Caller, id: &str) -> Result<TemplateInfo, ServiceError>;

    /// Delete a template, by id or reference.
    async fn delete_template(&self, caller: &Caller, id: &str) -> Result<(), ServiceError>;

    /// Wait for a build's end: its template, or why there is none. The build goes on when nobody waits.
    async fn wait_for_template(&self, caller: &Caller, build_id: &str) -> Result<TemplateInfo, ServiceError>;

    /// Build once more what failed or was cancelled.
    async fn retry_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: RetryTemplateBuildRequest,
    ) -> Result<Warned<TemplateBuild>, ServiceError>;

    /// Move tags to what a build made.
    async fn promote_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: PromoteTemplateBuildRequest,
    ) -> Result<Warned<TemplateInfo>, ServiceError>;

    /// Everything that is wrong with a request.
    async fn validate_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
    ) -> Result<TemplateBuildValidationResponse, ServiceError>;

    /// What a build of a request would do.
    async fn plan_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
    ) -> Result<TemplateBuildPlanResponse, ServiceError>;

    /// Which files of a build context to upload, and as what.
    async fn preflight_blobs(
        &self,
        caller: &Caller,
        request: TemplateBlobPreflightRequest,
    ) -> Result<TemplateBlobPreflightResponse, ServiceError>;

    /// Store a file of a build context. The bytes end with an error when the client went away.
    async fn upload_blob(&self, caller: &Caller, blob_id: &str, bytes: ByteStream) -> Result<(), ServiceError>;

    /// A template's builds, newest first.
    async fn template_builds(
        &self,
        caller: &Caller,
        reference: &str,
        query: BuildQuery,
    ) -> Result<TemplateBuildListResponse, ServiceError>;

    /// A template's tags.
    async fn template_tags(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateTagInfo>, ServiceError>;

    /// Make tags point to what the reference means.
    async fn assign_tags(
        &self,
        caller: &Caller,
        reference: &str,
        tags: Vec<String>,
    ) -> Result<Warned<TemplateInfo>, ServiceError>;

    /// Remove a tag.
    async fn remove_tag(&self, caller: &Caller, reference: &str, tag: &str) -> Result<(), ServiceError>;

    /// A template's older names.
    async fn template_aliases(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateAliasInfo>, ServiceError>;

    /// Remove an older name.
    async fn remove_alias(&self, caller: &Caller, reference: &str, alias: &str) -> Result<(), ServiceError>;

    /// Give a template another name.
    async fn rename_template(
        &self,
        caller: &Caller,
        reference: &str,
        new_name: &str,
    ) -> Result<TemplateInfo, ServiceError>;

    /// Say who can use a template.
    async fn set_visibility(
        &self,
        caller: &Caller,
        reference: &str,
        visibility: TemplateVisibility,
    ) -> Result<Warned<TemplateInfo>, ServiceError>;

    /// Reserve a name.
    async fn reserve_name(&self, caller: &Caller, reference: &str) -> Result<TemplateNameClaim, ServiceError>;

    /// Give a reserved name back.
    async fn release_name(&self, caller: &Caller, token: &str) -> Result<(), ServiceError>;

    /// A namespace.
    async fn namespace(&self, caller: &Caller, slug: &str) -> Result<TemplateNamespaceInfo, ServiceError>;

    /// Resume a template's snapshot as a new sandbox.
    async fn create_sandbox(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        context: &RequestContext,
    ) -> Result<CreateSandboxResponse, ServiceError>;

    /// The caller's sandboxes.
    async fn list_sandboxes(&self, caller: &Caller, query: SandboxQuery) -> Result<SandboxListPage, ServiceError>;

    /// One sandbox.
    async fn get_sandbox(&self, caller: &Caller, id: &str) -> Result<SandboxInfo, ServiceError>;

    /// End a sandbox.
    async fn destroy_sandbox(&self, caller: &Caller, id: &str) -> Result<DestroySandboxResponse, ServiceError>;

    /// Run a command in a sandbox. `room` is charged with what is kept of its output; when it has no more, the rest of the
    /// output is dropped, and the answer says so: a command that has run must not be tried again for that.
    async fn exec(
        &self,
        caller: &Caller,
        id: &str,
        request: ExecRequest,
        room: &Room,
    ) -> Result<ExecResponse, ServiceError>;

    /// The processes of a sandbox.
    async fn list_processes(&self, caller: &Caller, id: &str) -> Result<Vec<ProcessInfo>, ServiceError>;
}

/// What sort of failure it is. It decides the HTTP status, the code says the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong.
    Invalid,
    /// The caller's own sandbox refuses it to the user that it was asked as.
    Forbidden,
    /// The key is missing or wrong.
    Unauthorized,
    /// There is no such thing, or it is another tenant's.
    NotFound,
    /// The path exists, but not with this method.
    MethodNotAllowed,
    /// The thing is not in a state for this.
    Conflict,
    /// The body is too large.
    TooLarge,
    /// The body is of the wrong media type.
    UnsupportedMediaType,
    /// The request's head is too large.
    HeadTooLarge,
    /// The body did not arrive in time.
    RequestTimeout,
    /// Too many requests, or too much queued.
    RateLimited,
    /// A fault of the service.
    Internal,
    /// This deployment cannot.
    NotImplemented,
    /// What the request was passed on to (a guest) failed.
    Upstream,
    /// It could, but a backend is down.
    Unavailable,
    /// What the request was passed on to (a guest) took too long.
    UpstreamTimeout,
}

/// Why a request failed: what the caller may know, and apart from it the cause, which only the log sees.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ServiceError {
    kind: ErrorKind,
    code: ErrorResponseCode,
    message: String,
    retry_after: Option<Duration>,
    build_id: Option<String>,
    detail: Option<Box<ErrorDetail>>,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ServiceError {
    /// A failure. `message` is for the caller: no internals, no secrets.
    #[must_use]
    pub fn new(kind: ErrorKind, code: ErrorResponseCode, message: impl Into<String>) -> Self {
        Self { kind, code, message: message.into(), retry_after: None, build_id: None, detail: None, source: None }
    }

    /// A wrong request: 400 `invalid_request`.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, ErrorResponseCode::InvalidRequest, message)
    }

    /// A thing that is not there: 404 with the code of its sort (`template_not_found`, …).
    #[must_use]
    pub fn not_found(code: ErrorResponseCode, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, code, message)
    }

    /// A fault of the service: 500 `internal_error`. The cause goes to the log, the caller sees none of it.
    #[must_use]
    pub fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Internal, ErrorResponseCode::InternalError, "The service failed to handle the request.")
            .with_source(source)
    }

    /// The same with what causes it, for the log.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same with details for programs.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<ErrorDetail>) -> Self {
        self.detail = Some(Box::new(detail.into()));
        self
    }

    /// The same about a build.
    #[must_use]
    pub fn with_build_id(mut self, build_id: impl Into<String>) -> Self {
        self.build_id = Some(build_id.into());
        self
    }

    /// The same with when to try again; rounded up to whole seconds on the wire.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Its code on the wire.
    #[must_use]
    pub fn code(&self) -> ErrorResponseCode {
        self.code
    }

    /// When to try again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Its parts: the body that the caller gets, but for the request id, and the cause.
    pub(crate) fn into_parts(self) -> (ErrorResponse, Option<Box<dyn Error + Send + Sync>>) {
        let mut body = ErrorResponse::new(self.code, self.message);
        body.build_id = self.build_id;
        body.error_detail = self.detail.map(|detail| *detail);
        (body, self.source)
    }
}
