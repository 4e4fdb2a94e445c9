//! Builds: start and follow them, what there was, what a request would do, files of contexts.

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

/// Which of a template's builds to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildQuery {
    /// In this status only.
    pub status: Option<TemplateBuildStatus>,
    /// Made by this backend only.
    pub backend: Option<TemplateBuildBackend>,
    /// From this kind of source only.
    pub source_type: Option<TemplateBuildSourceType>,
    /// At most so many, 1 to 100; 50 when not given.
    pub limit: Option<u32>,
    /// Where the page starts, from the page before.
    pub cursor: Option<String>,
}

/// Builds that run or will run.
#[async_trait]
pub trait Builds: Send + Sync + 'static {
    /// Accepts a build, which is durable before this returns and reaches a terminal state whatever happens. A request
    /// repeated with its idempotency key is answered with the build that it started the first time.
    async fn start_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
        context: &RequestContext,
    ) -> Result<Warned<TemplateBuild>>;

    /// A build and its log from `offset` on, at most a thousand entries.
    async fn build_status(&self, caller: &Caller, build_id: &str, offset: u64) -> Result<TemplateBuildStatusSnapshot>;

    /// A build's log from `offset` on: what there is, and with `follow` also what comes, until the terminal entry.
    async fn build_logs(&self, caller: &Caller, build_id: &str, offset: u64, follow: bool) -> Result<LogStream>;

    /// Asks for a build's end. Asking again, or when it has ended, changes nothing and is no error.
    async fn cancel_build(
        &self,
        caller: &Caller,
        build_id: &str,
        reason: Option<String>,
    ) -> Result<TemplateBuildStatusSnapshot>;

    /// Waits for a build's end: its template, or why there is none. The build goes on when nobody waits any more.
    async fn wait_for_template(&self, caller: &Caller, build_id: &str) -> Result<TemplateInfo>;
}

/// Builds that are over.
#[async_trait]
pub trait BuildHistory: Send + Sync + 'static {
    /// A template's builds, newest first: those that failed and those whose tags have moved, too. Of a public template of
    /// another tenant nothing is shown: builds are their callers'.
    async fn template_builds(
        &self,
        caller: &Caller,
        reference: &str,
        query: BuildQuery,
    ) -> Result<TemplateBuildListResponse>;

    /// Builds once more what failed or was cancelled, as a new build with a log of its own.
    async fn retry_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: RetryTemplateBuildRequest,
    ) -> Result<Warned<TemplateBuild>>;

    /// Moves tags to what a ready build made.
    async fn promote_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: PromoteTemplateBuildRequest,
    ) -> Result<Warned<TemplateInfo>>;
}

/// Requests that are looked at and not carried out.
#[async_trait]
pub trait BuildChecks: Send + Sync + 'static {
    /// Everything that is wrong with a request. Nothing is built or stored.
    async fn validate_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
    ) -> Result<TemplateBuildValidationResponse>;

    /// What a build of the request would do. The registry of its base image is asked whether it wants credentials.
    async fn plan_build(&self, caller: &Caller, request: CreateTemplateRequest) -> Result<TemplateBuildPlanResponse>;
}

/// Files of build contexts.
#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// Which of these files the service does not have yet, and under which name to upload them.
    async fn preflight_blobs(
        &self,
        caller: &Caller,
        request: TemplateBlobPreflightRequest,
    ) -> Result<TemplateBlobPreflightResponse>;

    /// Stores a file whose digest and size are those that its id says. Doing it again changes nothing. The bytes end with an
    /// error when the client went away.
    async fn upload_blob(&self, caller: &Caller, blob_id: &str, bytes: ByteStream) -> Result<()>;
}
