//! Builds: start, status, log, history, validation and plan of requests, files of contexts.

use async_trait::async_trait;
use futures::stream::BoxStream;
use nullspace_api::{
    CreateTemplateRequest, PromoteTemplateBuildRequest, RetryTemplateBuildRequest, TemplateBlobPreflightRequest,
    TemplateBlobPreflightResponse, TemplateBuild, TemplateBuildBackend, TemplateBuildListResponse,
    TemplateBuildLogEntry, TemplateBuildPlanResponse, TemplateBuildSourceType, TemplateBuildStatus,
    TemplateBuildStatusSnapshot, TemplateBuildValidationResponse, TemplateInfo,
};

use crate::{ByteStream, Caller, RequestContext, Result, Warned};

/// A build's log entries in order, without a gap.
pub type LogStream = BoxStream<'static, Result<TemplateBuildLogEntry>>;

/// A query for a template's builds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildQuery {
    /// Only builds with this status.
    pub status: Option<TemplateBuildStatus>,
    /// Only builds of this backend.
    pub backend: Option<TemplateBuildBackend>,
    /// Only builds from this kind of source.
    pub source_type: Option<TemplateBuildSourceType>,
    /// Page size, 1 to 100; 50 by default.
    pub limit: Option<u32>,
    /// Start of the page, from the page before.
    pub cursor: Option<String>,
}

/// Builds that wait or run.
#[async_trait]
pub trait Builds: Send + Sync + 'static {
    /// Accepts a build. The build is durable before this returns, and always reaches a final status. A request with a known
    /// idempotency key is answered with the build that it started the first time.
    async fn start_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
        context: &RequestContext,
    ) -> Result<Warned<TemplateBuild>>;

    /// Returns a build and its log from `offset` on, at most a thousand entries.
    async fn build_status(&self, caller: &Caller, build_id: &str, offset: u64) -> Result<TemplateBuildStatusSnapshot>;

    /// Returns a build's log from `offset` on: the entries so far, and with `follow` also new ones, until the final entry.
    async fn build_logs(&self, caller: &Caller, build_id: &str, offset: u64, follow: bool) -> Result<LogStream>;

    /// Requests a build's cancellation. A second request, or one after the end, changes nothing and is no error.
    async fn cancel_build(
        &self,
        caller: &Caller,
        build_id: &str,
        reason: Option<String>,
    ) -> Result<TemplateBuildStatusSnapshot>;

    /// Waits for a build's end. Returns its template or its failure. The build continues when the waiting call is dropped.
    async fn wait_for_template(&self, caller: &Caller, build_id: &str) -> Result<TemplateInfo>;
}

/// Finished builds.
#[async_trait]
pub trait BuildHistory: Send + Sync + 'static {
    /// Returns a template's builds, newest first, with failed ones and those without tags. Builds of another tenant's public
    /// template are not shown: they belong to their callers.
    async fn template_builds(
        &self,
        caller: &Caller,
        reference: &str,
        query: BuildQuery,
    ) -> Result<TemplateBuildListResponse>;

    /// Retries a failed or cancelled build as a new build with its own log.
    async fn retry_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: RetryTemplateBuildRequest,
    ) -> Result<Warned<TemplateBuild>>;

    /// Moves tags to a ready build's artifact.
    async fn promote_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: PromoteTemplateBuildRequest,
    ) -> Result<Warned<TemplateInfo>>;
}

/// Checks of requests without a build.
#[async_trait]
pub trait BuildChecks: Send + Sync + 'static {
    /// Returns every problem of a request. Nothing is built or stored.
    async fn validate_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
    ) -> Result<TemplateBuildValidationResponse>;

    /// Returns the plan of a build of the request. Asks the registry of its base image whether it wants credentials.
    async fn plan_build(&self, caller: &Caller, request: CreateTemplateRequest) -> Result<TemplateBuildPlanResponse>;
}

/// Files of build contexts.
#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// Returns which of these files are missing, and the ids under which to upload them.
    async fn preflight_blobs(
        &self,
        caller: &Caller,
        request: TemplateBlobPreflightRequest,
    ) -> Result<TemplateBlobPreflightResponse>;

    /// Stores a file whose digest and size match its id. A second upload changes nothing. The bytes end with an error when
    /// the client disconnects.
    async fn upload_blob(&self, caller: &Caller, blob_id: &str, bytes: ByteStream) -> Result<()>;
}
