//! The engine as the HTTP layer asks for it.

use async_trait::async_trait;
use futures::StreamExt;
use nullspace_api::{
    CreateSandboxRequest, CreateSandboxResponse, CreateTemplateRequest, DestroySandboxResponse,
    ErrorResponseCode as Code, ExecRequest, ExecResponse, ProcessInfo, SandboxInfo, SandboxListPage, TemplateBuild,
    TemplateBuildStatusSnapshot, TemplateInfo,
};
use nullspace_engine::Engine;
use nullspace_server::{Caller, ErrorKind, LogStream, RequestContext, SandboxQuery, Service, ServiceError};
use nullspace_store as store;
use secrecy::{ExposeSecret, SecretString};

/// Adapts an [`Engine`] to [`Service`].
pub(crate) struct EngineService(pub(crate) Engine);

#[async_trait]
impl Service for EngineService {
    async fn authenticate(&self, key: &SecretString) -> Result<Option<Caller>, ServiceError> {
        let caller = self.0.authenticate(key.expose_secret()).await.map_err(error)?;
        Ok(caller.map(|caller| Caller {
            tenant_id: caller.tenant.to_string(),
            namespace: caller.namespace,
            key_id: caller.key.map(|key| key.to_string()).unwrap_or_default(),
        }))
    }

    async fn start_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
        _context: &RequestContext,
    ) -> Result<TemplateBuild, ServiceError> {
        self.0.start_build(&domain(caller)?, request).await.map_err(error)
    }

    async fn build_status(
        &self,
        caller: &Caller,
        build_id: &str,
        offset: u64,
    ) -> Result<TemplateBuildStatusSnapshot, ServiceError> {
        self.0.build_status(&domain(caller)?, build_id, offset).await.map_err(error)
    }

    async fn build_logs(
        &self,
        caller: &Caller,
        build_id: &str,
        offset: u64,
        follow: bool,
    ) -> Result<LogStream, ServiceError> {
        let log = self.0.build_logs(&domain(caller)?, build_id, offset, follow).await.map_err(error)?;
        Ok(log.map(|entry| entry.map_err(error)).boxed())
    }

    async fn cancel_build(
        &self,
        caller: &Caller,
        build_id: &str,
        reason: Option<String>,
    ) -> Result<TemplateBuildStatusSnapshot, ServiceError> {
        self.0.cancel_build(&domain(caller)?, build_id, reason).await.map_err(error)
    }

    async fn list_templates(&self, caller: &Caller) -> Result<Vec<TemplateInfo>, ServiceError> {
        self.0.list_templates(&domain(caller)?).await.map_err(error)
    }

    async fn get_template(&self, caller: &Caller, id: &str) -> Result<TemplateInfo, ServiceError> {
        self.0.get_template(&domain(caller)?, id).await.map_err(error)
    }

    async fn delete_template(&self, caller: &Caller, id: &str) -> Result<(), ServiceError> {
        self.0.delete_template(&domain(caller)?, id).await.map_err(error)
    }

    async fn create_sandbox(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        context: &RequestContext,
    ) -> Result<CreateSandboxResponse, ServiceError> {
        self.0.create_sandbox(&domain(caller)?, request, context.idempotency_key.clone()).await.map_err(error)
    }

    async fn list_sandboxes(&self, caller: &Caller, query: SandboxQuery) -> Result<SandboxListPage, ServiceError> {
        let query = nullspace_engine::SandboxQuery {
            statuses: query.states,
            limit: query.limit,
            next_token: query.next_token,
            template: query.template,
            metadata: query.metadata,
        };
        let page = self.0.list_sandboxes(&domain(caller)?, query).await.map_err(error)?;
        Ok(SandboxListPage { has_next: page.next_token.is_some(), items: page.sandboxes, next_token: page.next_token })
    }

    async fn get_sandbox(&self, caller: &Caller, id: &str) -> Result<SandboxInfo, ServiceError> {
        self.0.get_sandbox(&domain(caller)?, id).await.map_err(error)
    }

    async fn destroy_sandbox(&self, caller: &Caller, id: &str) -> Result<DestroySandboxResponse, ServiceError> {
        self.0.destroy_sandbox(&domain(caller)?, id).await.map_err(error)
    }

    async fn exec(&self, caller: &Caller, id: &str, request: ExecRequest) -> Result<ExecResponse, ServiceError> {
        self.0.exec(&domain(caller)?, id, request).await.map_err(error)
    }

    async fn list_processes(&self, caller: &Caller, id: &str) -> Result<Vec<ProcessInfo>, ServiceError> {
        self.0.processes(&domain(caller)?, id).await.map_err(error)
    }
}

/// The caller that `authenticate` gave out, in the domain's types.
pub(crate) fn domain(caller: &Caller) -> Result<store::Caller, ServiceError> {
    Ok(store::Caller {
        tenant: caller.tenant_id.parse().map_err(|error: store::InvalidId| ServiceError::internal(error))?,
        namespace: caller.namespace.clone(),
        key: caller.key_id.parse().ok(),
    })
}

/// The domain's error with the kind that decides the status: the one place where codes become kinds.
pub(crate) fn error(error: nullspace_engine::Error) -> ServiceError {
    let kind = match error.code {
        Code::InvalidRequest | Code::InvalidFields => ErrorKind::Invalid,
        Code::Unauthorized => ErrorKind::Unauthorized,
        Code::NotFound
        | Code::TemplateNotFound
        | Code::TemplateBuildNotFound
        | Code::TemplateNameClaimNotFound
        | Code::SandboxNotFound
        | Code::SnapshotNotFound => ErrorKind::NotFound,
        Code::TransitionConflict
        | Code::TransitionInProgress
        | Code::SandboxNotReady
        | Code::RebuildRequired
        | Code::IncompatibleSnapshot => ErrorKind::Conflict,
        Code::FileError if error.forbidden => ErrorKind::Forbidden,
        Code::FileError => ErrorKind::Conflict,
        Code::RateLimitExceeded => ErrorKind::RateLimited,
        Code::NotImplemented => ErrorKind::NotImplemented,
        Code::FeatureUnavailable | Code::DatabaseError | Code::CapacityExceeded | Code::NoEligibleRuntimeHost => {
            ErrorKind::Unavailable
        }
        Code::ExecFailed => ErrorKind::Upstream,
        Code::ExecTimeout => ErrorKind::UpstreamTimeout,
        _ => ErrorKind::Internal,
    };
    let mut service = ServiceError::new(kind, error.code, error.message);
    if let Some(after) = error.retry_after {
        service = service.with_retry_after(after);
    }
    if let Some(id) = error.build_id {
        service = service.with_build_id(id);
    }
    if let Some(detail) = error.detail {
        service = service.with_detail(*detail);
    }
    service
}
