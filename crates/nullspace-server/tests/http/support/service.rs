//! The fake service's builds, templates and sandboxes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use nullspace_api::*;
use nullspace_server::{
    BuildQuery, ByteStream, Caller, ErrorKind, LogStream, RequestContext, Room, SandboxQuery, Service, ServiceError,
    Warned,
};
use secrecy::{ExposeSecret, SecretString};

use super::{BUILD, Cause, Fake, KEY, MUCH, OTHER_KEY, SANDBOX, TEMPLATE, build, sandbox, template};

#[async_trait]
impl Service for Fake {
    async fn ready(&self) -> Result<(), ServiceError> {
        if *self.down.lock().unwrap() {
            let message = "The metadata store cannot be reached.";
            return Err(ServiceError::new(ErrorKind::Unavailable, ErrorResponseCode::DatabaseError, message));
        }
        Ok(())
    }

    async fn details(&self) -> Result<Vec<String>, ServiceError> {
        Ok(vec!["machines: imaginary".to_owned()])
    }

    async fn metrics(&self) -> Result<String, ServiceError> {
        Ok("# TYPE fake gauge\nfake 1\n# EOF\n".to_owned())
    }

    async fn authenticate(&self, key: &SecretString) -> Result<Option<Caller>, ServiceError> {
        let tenant_id = match key.expose_secret() {
            KEY | OTHER_KEY if self.revoked.load(Ordering::SeqCst) => return Ok(None),
            KEY => "a",
            OTHER_KEY => "b",
            "ns_live_store-is-down" => {
                let message = "The metadata store cannot be reached.";
                return Err(ServiceError::new(ErrorKind::Unavailable, ErrorResponseCode::DatabaseError, message));
            }
            _ => return Ok(None),
        };
        Ok(Some(Caller { tenant_id: tenant_id.into(), namespace: "ns".into(), key_id: "key_1".into() }))
    }

    async fn keys_in_force(&self, key_ids: &[String]) -> Result<Vec<String>, ServiceError> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        if *self.down.lock().unwrap() {
            return Err(ServiceError::internal(Cause));
        }
        let revoked = self.revoked.load(Ordering::SeqCst);
        Ok(key_ids.iter().filter(|id| !revoked && *id == "key_1").cloned().collect())
    }

    async fn start_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
        context: &RequestContext,
    ) -> Result<Warned<TemplateBuild>, ServiceError> {
        self.call(format!("start_build {} {request:?} {context:?}", caller.tenant_id));
        if request.tags.as_ref().is_some_and(Vec::is_empty) {
            let detail = TemplateFailureDetail::new(
                TemplateFailureDetailCode::BuildError,
                TemplateFailurePhase::Preflight,
                false,
                "`tags` is empty",
                "leave `tags` out or name one",
            );
            return Err(ServiceError::invalid("`tags` must not be empty.").with_detail(detail).with_build_id(BUILD));
        }
        Ok(build(TemplateBuildStatus::Waiting).into())
    }

    async fn build_status(
        &self,
        caller: &Caller,
        build_id: &str,
        offset: u64,
    ) -> Result<TemplateBuildStatusSnapshot, ServiceError> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound)?;
        let entries: Vec<_> = self.log.borrow().iter().filter(|entry| entry.offset >= offset).cloned().collect();
        let next_offset = entries.last().map_or(offset, |entry| entry.offset + 1);
        Ok(TemplateBuildStatusSnapshot { build: build(TemplateBuildStatus::Building), entries, next_offset })
    }

    async fn build_logs(
        &self,
        caller: &Caller,
        build_id: &str,
        offset: u64,
        follow: bool,
    ) -> Result<LogStream, ServiceError> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound)?;
        self.call(format!("build_logs from {offset} follow {follow}"));
        let break_at = self.break_after.lock().unwrap().take();
        let state = (offset, self.log.subscribe());
        Ok(stream::unfold(state, move |(offset, mut log)| async move {
            if break_at == Some(offset) {
                return Some((Err(ServiceError::internal(Cause)), (offset + 1, log)));
            }
            loop {
                let next = log.borrow_and_update().get(offset as usize).cloned();
                match next {
                    Some(entry) => return Some((Ok(entry), (offset + 1, log))),
                    None if follow => log.changed().await.ok()?,
                    None => return None,
                }
            }
        })
        .boxed())
    }

    async fn cancel_build(
        &self,
        caller: &Caller,
        build_id: &str,
        reason: Option<String>,
    ) -> Result<TemplateBuildStatusSnapshot, ServiceError> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound)?;
        self.call(format!("cancel_build {reason:?}"));
        let build = build(TemplateBuildStatus::Cancelled);
        Ok(TemplateBuildStatusSnapshot { build, entries: Vec::new(), next_offset: 0 })
    }

    async fn list_templates(&self, _: &Caller) -> Result<Vec<TemplateInfo>, ServiceError> {
        Ok(vec![template()])
    }

    async fn get_template(&self, caller: &Caller, id: &str) -> Result<TemplateInfo, ServiceError> {
        self.call(format!("get_template {id}"));
        match id {
            "panic" => panic!("canary-cause: a bug"),
            "broken" => Err(ServiceError::internal(Cause)),
            "busy" => Err(ServiceError::new(ErrorKind::RateLimited, ErrorResponseCode::RateLimitExceeded, "Too fast.")
                .with_retry_after(Duration::from_millis(1500))),
            "busy-without-hint" => {
                Err(ServiceError::new(ErrorKind::RateLimited, ErrorResponseCode::RateLimitExceeded, "Too fast."))
            }
            "conflict" => {
                Err(ServiceError::new(ErrorKind::Conflict, ErrorResponseCode::RebuildRequired, "It must be rebuilt."))
            }
            "ns/app:v1" | "ns/tags" => Ok(template()),
            id => Self::own(caller, id, TEMPLATE, ErrorResponseCode::TemplateNotFound).map(|()| template()),
        }
    }

    async fn delete_template(&self, caller: &Caller, id: &str) -> Result<(), ServiceError> {
        Self::own(caller, id, TEMPLATE, ErrorResponseCode::TemplateNotFound)
    }

    async fn wait_for_template(&self, caller: &Caller, build_id: &str) -> Result<TemplateInfo, ServiceError> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound).map(|()| template())
    }

    async fn retry_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: RetryTemplateBuildRequest,
    ) -> Result<Warned<TemplateBuild>, ServiceError> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound)?;
        self.call(format!("retry_build {request:?}"));
        Ok(build(TemplateBuildStatus::Waiting).into())
    }

    async fn promote_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: PromoteTemplateBuildRequest,
    ) -> Result<Warned<TemplateInfo>, ServiceError> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound)?;
        self.call(format!("promote_build {:?} {:?}", request.tag, request.tags));
        Ok(template().into())
    }

    async fn validate_build(
        &self,
        _: &Caller,
        _: CreateTemplateRequest,
    ) -> Result<TemplateBuildValidationResponse, ServiceError> {
        Ok(TemplateBuildValidationResponse { valid: true, errors: Vec::new(), warnings: Vec::new() })
    }

    async fn plan_build(
        &self,
        _: &Caller,
        _: CreateTemplateRequest,
    ) -> Result<TemplateBuildPlanResponse, ServiceError> {
        Err(ServiceError::internal(Cause))
    }

    async fn preflight_blobs(
        &self,
        _: &Caller,
        request: TemplateBlobPreflightRequest,
    ) -> Result<TemplateBlobPreflightResponse, ServiceError> {
        let files = request.files.into_iter().map(|file| TemplateBlobPreflightResult {
            path: file.path,
            entry_type: file.entry_type,
            missing: true,
            mode: file.mode,
            blob_id: Some("b".into()),
        });
        Ok(TemplateBlobPreflightResponse { files: files.collect() })
    }

    async fn upload_blob(&self, _: &Caller, blob_id: &str, mut bytes: ByteStream) -> Result<(), ServiceError> {
        let mut size = 0;
        while let Some(chunk) = bytes.next().await {
            size += chunk.map_err(|error| ServiceError::invalid("The upload broke off.").with_source(error))?.len();
        }
        self.call(format!("upload_blob {blob_id} {size}"));
        Ok(())
    }

    async fn template_builds(
        &self,
        caller: &Caller,
        reference: &str,
        query: BuildQuery,
    ) -> Result<TemplateBuildListResponse, ServiceError> {
        self.get_template(caller, reference).await?;
        self.call(format!("template_builds {reference} {query:?}"));
        Ok(TemplateBuildListResponse { builds: Vec::new(), next_cursor: None })
    }

    async fn template_tags(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateTagInfo>, ServiceError> {
        self.get_template(caller, reference).await?;
        self.call(format!("template_tags {reference}"));
        Ok(Vec::new())
    }

    async fn assign_tags(
        &self,
        caller: &Caller,
        reference: &str,
        tags: Vec<String>,
    ) -> Result<Warned<TemplateInfo>, ServiceError> {
        let template = self.get_template(caller, reference).await?;
        self.call(format!("assign_tags {reference} {tags:?}"));
        Ok(template.into())
    }

    async fn remove_tag(&self, caller: &Caller, reference: &str, tag: &str) -> Result<(), ServiceError> {
        self.get_template(caller, reference).await?;
        self.call(format!("remove_tag {reference} {tag}"));
        Ok(())
    }

    async fn template_aliases(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateAliasInfo>, ServiceError> {
        self.get_template(caller, reference).await?;
        self.call(format!("template_aliases {reference}"));
        Ok(Vec::new())
    }

    async fn remove_alias(&self, caller: &Caller, reference: &str, alias: &str) -> Result<(), ServiceError> {
        self.get_template(caller, reference).await?;
        self.call(format!("remove_alias {reference} {alias}"));
        Ok(())
    }

    async fn rename_template(
        &self,
        caller: &Caller,
        reference: &str,
        new_name: &str,
    ) -> Result<TemplateInfo, ServiceError> {
        let template = self.get_template(caller, reference).await?;
        self.call(format!("rename_template {reference} {new_name}"));
        Ok(template)
    }

    async fn set_visibility(
        &self,
        caller: &Caller,
        reference: &str,
        visibility: TemplateVisibility,
    ) -> Result<Warned<TemplateInfo>, ServiceError> {
        let template = self.get_template(caller, reference).await?;
        self.call(format!("set_visibility {reference} {visibility:?}"));
        Ok(Warned { value: template, warnings: vec!["gives away A".into(), "and B".into()] })
    }

    async fn reserve_name(&self, _: &Caller, reference: &str) -> Result<TemplateNameClaim, ServiceError> {
        Ok(TemplateNameClaim {
            claim_token: "claim_1".into(),
            canonical_ref: format!("ns/{reference}"),
            expires_at: "2025-01-31T10:00:00Z".parse().unwrap(),
        })
    }

    async fn release_name(&self, caller: &Caller, token: &str) -> Result<(), ServiceError> {
        Self::own(caller, token, "claim_1", ErrorResponseCode::TemplateNameClaimNotFound)
    }

    async fn namespace(&self, caller: &Caller, slug: &str) -> Result<TemplateNamespaceInfo, ServiceError> {
        Self::own(caller, slug, "ns", ErrorResponseCode::NotFound)?;
        Ok(TemplateNamespaceInfo { slug: slug.into(), kind: TemplateNamespaceKind::User, is_default: true })
    }

    async fn create_sandbox(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        context: &RequestContext,
    ) -> Result<CreateSandboxResponse, ServiceError> {
        self.call(format!("create_sandbox {} {request:?} {context:?}", caller.tenant_id));
        Ok(CreateSandboxResponse {
            id: SANDBOX.into(),
            status: SandboxStatus::Running,
            config: SandboxConfig { vcpus: 1, memory_mb: 512, disk_mb: None },
            template: request.template.unwrap_or_else(|| CreateSandboxRequest::DEFAULT_TEMPLATE.into()),
            created_at: "2025-01-31T10:00:00Z".parse().unwrap(),
            metadata: request.metadata,
            started_at: None,
            timeout_ms: request.timeout_ms,
            timeout_at: None,
            expires_at: None,
            timeout_action: None,
            cwd: None,
            traffic_access_token: None,
            warm_pool_checkout: None,
            warnings: Vec::new(),
        })
    }

    async fn list_sandboxes(&self, _: &Caller, query: SandboxQuery) -> Result<SandboxListPage, ServiceError> {
        self.call(format!("{query:?}"));
        let has_next = query.limit.is_some();
        Ok(SandboxListPage { items: vec![sandbox()], next_token: has_next.then(|| "t2".into()), has_next })
    }

    async fn get_sandbox(&self, caller: &Caller, id: &str) -> Result<SandboxInfo, ServiceError> {
        Self::own(caller, id, SANDBOX, ErrorResponseCode::SandboxNotFound).map(|()| sandbox())
    }

    async fn destroy_sandbox(&self, caller: &Caller, id: &str) -> Result<DestroySandboxResponse, ServiceError> {
        Self::own(caller, id, SANDBOX, ErrorResponseCode::SandboxNotFound)?;
        Ok(DestroySandboxResponse { id: id.into(), status: SandboxStatus::Destroyed })
    }

    async fn exec(
        &self,
        caller: &Caller,
        id: &str,
        request: ExecRequest,
        room: &Room,
    ) -> Result<ExecResponse, ServiceError> {
        Self::own(caller, id, SANDBOX, ErrorResponseCode::SandboxNotFound)?;
        self.call(format!("{request:?}"));
        match request.command.as_str() {
            "slow" => Err(ServiceError::new(
                ErrorKind::UpstreamTimeout,
                ErrorResponseCode::ExecTimeout,
                "The command did not end within 30 s.",
            )),
            "missing" => {
                Err(ServiceError::new(ErrorKind::Upstream, ErrorResponseCode::ExecFailed, "There is no `missing`."))
            }
            "sleep" => {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Ok(ExecResponse { exit_code: 0, stdout: "slept".into(), stderr: String::new(), pid: Some(8) })
            }
            "hang" => std::future::pending().await,
            "much" => {
                room.grow(MUCH)?;
                Ok(ExecResponse { exit_code: 0, stdout: "\0".repeat(MUCH), stderr: String::new(), pid: Some(9) })
            }
            _ => Ok(ExecResponse { exit_code: 0, stdout: "out\n".into(), stderr: String::new(), pid: Some(7) }),
        }
    }

    async fn list_processes(&self, caller: &Caller, id: &str) -> Result<Vec<ProcessInfo>, ServiceError> {
        Self::own(caller, id, SANDBOX, ErrorResponseCode::SandboxNotFound)?;
        Ok(vec![ProcessInfo { pid: 7, command: "python3 -m http.server".into(), running: true }])
    }
}
