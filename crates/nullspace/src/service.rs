//! The engine as the HTTP layer asks for it.

use async_trait::async_trait;
use futures::StreamExt;
use nullspace_api::{
    CreateSandboxRequest, CreateSandboxResponse, CreateTemplateRequest, DestroySandboxResponse,
    ErrorResponseCode as Code, ExecRequest, ExecResponse, ProcessInfo, PromoteTemplateBuildRequest,
    RetryTemplateBuildRequest, SandboxInfo, SandboxListPage, TemplateAliasInfo, TemplateBlobPreflightRequest,
    TemplateBlobPreflightResponse, TemplateBuild, TemplateBuildListResponse, TemplateBuildPlanResponse,
    TemplateBuildStatusSnapshot, TemplateBuildValidationResponse, TemplateInfo, TemplateNameClaim,
    TemplateNamespaceInfo, TemplateTagInfo, TemplateVisibility,
};
use nullspace_engine::{Engine, UnknownFiles};
use nullspace_server::{
    BuildQuery, ByteStream, Caller, ErrorKind, LogStream, RequestContext, Room, SandboxQuery, Service, ServiceError,
    Warned,
};
use nullspace_store as store;
use secrecy::{ExposeSecret, SecretString};

/// Adapts an [`Engine`] to [`Service`].
pub(crate) struct EngineService(pub(crate) Engine);

#[async_trait]
impl Service for EngineService {
    async fn ready(&self) -> Result<(), ServiceError> {
        self.0.ready().await.map_err(error)
    }

    async fn details(&self) -> Result<Vec<String>, ServiceError> {
        Ok(self.0.details())
    }

    async fn metrics(&self) -> Result<String, ServiceError> {
        self.0.metrics().await.map_err(error)
    }

    async fn authenticate(&self, key: &SecretString) -> Result<Option<Caller>, ServiceError> {
        let caller = self.0.authenticate(key.expose_secret()).await.map_err(error)?;
        Ok(caller.map(|caller| Caller {
            tenant_id: caller.tenant.to_string(),
            namespace: caller.namespace,
            key_id: caller.key.map(|key| key.to_string()).unwrap_or_default(),
        }))
    }

    async fn keys_in_force(&self, key_ids: &[String]) -> Result<Vec<String>, ServiceError> {
        let ids: Vec<store::KeyId> = key_ids.iter().filter_map(|id| id.parse().ok()).collect();
        let in_force = self.0.keys_in_force(&ids).await.map_err(error)?;
        Ok(in_force.iter().map(ToString::to_string).collect())
    }

    async fn start_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
        context: &RequestContext,
    ) -> Result<Warned<TemplateBuild>, ServiceError> {
        let unknown = match context.refuse_unknown_files {
            true => UnknownFiles::Refuse,
            false => UnknownFiles::FailTheBuild,
        };
        let key = context.idempotency_key.clone();
        self.0.start_build(&domain(caller)?, request, key, unknown).await.map(warned).map_err(error)
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

    async fn wait_for_template(&self, caller: &Caller, build_id: &str) -> Result<TemplateInfo, ServiceError> {
        self.0.wait_for_template(&domain(caller)?, build_id).await.map_err(error)
    }

    async fn retry_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: RetryTemplateBuildRequest,
    ) -> Result<Warned<TemplateBuild>, ServiceError> {
        self.0.retry_build(&domain(caller)?, build_id, request).await.map(warned).map_err(error)
    }

    async fn promote_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: PromoteTemplateBuildRequest,
    ) -> Result<Warned<TemplateInfo>, ServiceError> {
        self.0.promote_build(&domain(caller)?, build_id, request).await.map(warned).map_err(error)
    }

    async fn validate_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
    ) -> Result<TemplateBuildValidationResponse, ServiceError> {
        self.0.validate_build(&domain(caller)?, request).await.map_err(error)
    }

    async fn plan_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
    ) -> Result<TemplateBuildPlanResponse, ServiceError> {
        self.0.plan_build(&domain(caller)?, request).await.map_err(error)
    }

    async fn preflight_blobs(
        &self,
        caller: &Caller,
        request: TemplateBlobPreflightRequest,
    ) -> Result<TemplateBlobPreflightResponse, ServiceError> {
        self.0.preflight_blobs(&domain(caller)?, request).await.map_err(error)
    }

    async fn upload_blob(&self, caller: &Caller, blob_id: &str, bytes: ByteStream) -> Result<(), ServiceError> {
        self.0.upload_blob(&domain(caller)?, blob_id, bytes).await.map_err(error)
    }

    async fn template_builds(
        &self,
        caller: &Caller,
        reference: &str,
        query: BuildQuery,
    ) -> Result<TemplateBuildListResponse, ServiceError> {
        let BuildQuery { status, backend, source_type, limit, cursor } = query;
        let query = nullspace_engine::BuildQuery { status, backend, source_type, limit, cursor };
        self.0.template_builds(&domain(caller)?, reference, query).await.map_err(error)
    }

    async fn template_tags(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateTagInfo>, ServiceError> {
        self.0.template_tags(&domain(caller)?, reference).await.map_err(error)
    }

    async fn assign_tags(
        &self,
        caller: &Caller,
        reference: &str,
        tags: Vec<String>,
    ) -> Result<Warned<TemplateInfo>, ServiceError> {
        self.0.assign_tags(&domain(caller)?, reference, &tags).await.map(warned).map_err(error)
    }

    async fn remove_tag(&self, caller: &Caller, reference: &str, tag: &str) -> Result<(), ServiceError> {
        self.0.remove_tag(&domain(caller)?, reference, tag).await.map_err(error)
    }

    async fn template_aliases(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateAliasInfo>, ServiceError> {
        self.0.template_aliases(&domain(caller)?, reference).await.map_err(error)
    }

    async fn remove_alias(&self, caller: &Caller, reference: &str, alias: &str) -> Result<(), ServiceError> {
        self.0.remove_alias(&domain(caller)?, reference, alias).await.map_err(error)
    }

    async fn rename_template(
        &self,
        caller: &Caller,
        reference: &str,
        new_name: &str,
    ) -> Result<TemplateInfo, ServiceError> {
        self.0.rename_template(&domain(caller)?, reference, new_name).await.map_err(error)
    }

    async fn set_visibility(
        &self,
        caller: &Caller,
        reference: &str,
        visibility: TemplateVisibility,
    ) -> Result<Warned<TemplateInfo>, ServiceError> {
        self.0.set_visibility(&domain(caller)?, reference, visibility).await.map(warned).map_err(error)
    }

    async fn reserve_name(&self, caller: &Caller, reference: &str) -> Result<TemplateNameClaim, ServiceError> {
        self.0.reserve_name(&domain(caller)?, reference).await.map_err(error)
    }

    async fn release_name(&self, caller: &Caller, token: &str) -> Result<(), ServiceError> {
        self.0.release_name(&domain(caller)?, token).await.map_err(error)
    }

    async fn namespace(&self, caller: &Caller, slug: &str) -> Result<TemplateNamespaceInfo, ServiceError> {
        self.0.namespace(&domain(caller)?, slug).await.map_err(error)
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

    async fn exec(
        &self,
        caller: &Caller,
        id: &str,
        request: ExecRequest,
        room: &Room,
    ) -> Result<ExecResponse, ServiceError> {
        let may_keep = |bytes| room.grow(bytes).is_ok();
        self.0.exec(&domain(caller)?, id, request, may_keep).await.map_err(error)
    }

    async fn list_processes(&self, caller: &Caller, id: &str) -> Result<Vec<ProcessInfo>, ServiceError> {
        self.0.processes(&domain(caller)?, id).await.map_err(error)
    }
}

/// An answer and its warnings, as the HTTP layer has them.
fn warned<T>(answer: nullspace_engine::Warned<T>) -> Warned<T> {
    Warned { value: answer.value, warnings: answer.warnings }
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
        Code::InvalidRequest | Code::InvalidFields | Code::BuildError | Code::FileUploadError => ErrorKind::Invalid,
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
        Code::RateLimitExceeded | Code::QuotaExceeded => ErrorKind::RateLimited,
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
