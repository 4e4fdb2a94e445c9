//! The fake service's builds, templates and sandboxes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use nullspace_api::*;
use nullspace_service::{
    Access, Blobs, BuildChecks, BuildHistory, BuildQuery, Builds, ByteStream, Caller, Error, Health, KeyId,
    LiveSandbox, LogStream, Names, RequestContext, Result, SandboxQuery, Sandboxes, Templates, Warned,
};
use secrecy::{ExposeSecret, SecretString};

use super::live::Live;
use super::{
    BUILD, Fake, KEY, OTHER_KEY, READ_KEY, SANDBOX, TEMPLATE, build, cause, key_id, letter, sandbox, template, tenant,
};

#[async_trait]
impl Health for Fake {
    async fn ready(&self) -> Result<()> {
        if *self.down.lock().unwrap() {
            let message = "The metadata store cannot be reached.";
            return Err(Error::new(ErrorResponseCode::DatabaseError, message));
        }
        Ok(())
    }

    async fn details(&self) -> Vec<String> {
        vec!["machines: imaginary".to_owned()]
    }

    async fn metrics(&self) -> Result<String> {
        Ok("# TYPE fake gauge\nfake 1\n# EOF\n".to_owned())
    }
}

#[async_trait]
impl Access for Fake {
    async fn authenticate(&self, key: &SecretString) -> Result<Option<Caller>> {
        let tenant = match key.expose_secret() {
            KEY | OTHER_KEY | READ_KEY if self.revoked.load(Ordering::SeqCst) => return Ok(None),
            KEY | READ_KEY => tenant('a'),
            OTHER_KEY => tenant('b'),
            "ns_live_store-is-down" => {
                let message = "The metadata store cannot be reached.";
                return Err(Error::new(ErrorResponseCode::DatabaseError, message));
            }
            _ => return Ok(None),
        };
        let read_only = key.expose_secret() == READ_KEY;
        Ok(Some(Caller { tenant, namespace: "ns".into(), key: Some(key_id()), read_only }))
    }

    async fn keys_in_force(&self, keys: &[KeyId]) -> Result<Vec<KeyId>> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        if *self.down.lock().unwrap() {
            return Err(cause());
        }
        let revoked = self.revoked.load(Ordering::SeqCst);
        Ok(keys.iter().filter(|key| !revoked && **key == key_id()).copied().collect())
    }
}

#[async_trait]
impl Builds for Fake {
    async fn start_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
        context: &RequestContext,
    ) -> Result<Warned<TemplateBuild>> {
        self.call(format!("start_build {} {request:?} {context:?}", letter(caller)));
        if request.tags.as_ref().is_some_and(Vec::is_empty) {
            let detail = TemplateFailureDetail::new(
                TemplateFailureDetailCode::BuildError,
                TemplateFailurePhase::Preflight,
                false,
                "`tags` is empty",
                "leave `tags` out or name one",
            );
            return Err(Error {
                detail: Some(Box::new(detail)),
                build_id: Some(BUILD.to_owned()),
                ..Error::invalid("`tags` must not be empty.")
            });
        }
        Ok(build(TemplateBuildStatus::Waiting).into())
    }

    async fn build_status(&self, caller: &Caller, build_id: &str, offset: u64) -> Result<TemplateBuildStatusSnapshot> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound)?;
        let entries: Vec<_> = self.log.borrow().iter().filter(|entry| entry.offset >= offset).cloned().collect();
        let next_offset = entries.last().map_or(offset, |entry| entry.offset + 1);
        Ok(TemplateBuildStatusSnapshot { build: build(TemplateBuildStatus::Building), entries, next_offset })
    }

    async fn build_logs(&self, caller: &Caller, build_id: &str, offset: u64, follow: bool) -> Result<LogStream> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound)?;
        self.call(format!("build_logs from {offset} follow {follow}"));
        let break_at = self.break_after.lock().unwrap().take();
        let state = (offset, self.log.subscribe());
        Ok(stream::unfold(state, move |(offset, mut log)| async move {
            if break_at == Some(offset) {
                return Some((Err(cause()), (offset + 1, log)));
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
    ) -> Result<TemplateBuildStatusSnapshot> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound)?;
        self.call(format!("cancel_build {reason:?}"));
        let build = build(TemplateBuildStatus::Cancelled);
        Ok(TemplateBuildStatusSnapshot { build, entries: Vec::new(), next_offset: 0 })
    }

    async fn wait_for_template(&self, caller: &Caller, build_id: &str) -> Result<TemplateInfo> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound).map(|()| template())
    }
}

#[async_trait]
impl BuildHistory for Fake {
    async fn template_builds(
        &self,
        caller: &Caller,
        reference: &str,
        query: BuildQuery,
    ) -> Result<TemplateBuildListResponse> {
        self.get_template(caller, reference).await?;
        self.call(format!("template_builds {reference} {query:?}"));
        Ok(TemplateBuildListResponse { builds: Vec::new(), next_cursor: None })
    }

    async fn retry_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: RetryTemplateBuildRequest,
    ) -> Result<Warned<TemplateBuild>> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound)?;
        self.call(format!("retry_build {request:?}"));
        Ok(build(TemplateBuildStatus::Waiting).into())
    }

    async fn promote_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: PromoteTemplateBuildRequest,
    ) -> Result<Warned<TemplateInfo>> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound)?;
        self.call(format!("promote_build {:?} {:?}", request.tag, request.tags));
        Ok(template().into())
    }
}

#[async_trait]
impl BuildChecks for Fake {
    async fn validate_build(&self, _: &Caller, _: CreateTemplateRequest) -> Result<TemplateBuildValidationResponse> {
        Ok(TemplateBuildValidationResponse { valid: true, errors: Vec::new(), warnings: Vec::new() })
    }

    async fn plan_build(&self, _: &Caller, _: CreateTemplateRequest) -> Result<TemplateBuildPlanResponse> {
        Err(cause())
    }
}

#[async_trait]
impl Blobs for Fake {
    async fn preflight_blobs(
        &self,
        _: &Caller,
        request: TemplateBlobPreflightRequest,
    ) -> Result<TemplateBlobPreflightResponse> {
        let files = request.files.into_iter().map(|file| TemplateBlobPreflightResult {
            path: file.path,
            entry_type: file.entry_type,
            missing: true,
            mode: file.mode,
            blob_id: Some("b".into()),
        });
        Ok(TemplateBlobPreflightResponse { files: files.collect() })
    }

    async fn upload_blob(&self, _: &Caller, blob_id: &str, mut bytes: ByteStream) -> Result<()> {
        let mut size = 0;
        while let Some(chunk) = bytes.next().await {
            size += chunk.map_err(|_| Error::invalid("The upload broke off."))?.len();
        }
        self.call(format!("upload_blob {blob_id} {size}"));
        Ok(())
    }
}

#[async_trait]
impl Templates for Fake {
    async fn list_templates(&self, _: &Caller) -> Result<Vec<TemplateInfo>> {
        Ok(vec![template()])
    }

    async fn get_template(&self, caller: &Caller, id: &str) -> Result<TemplateInfo> {
        self.call(format!("get_template {id}"));
        match id {
            "panic" => panic!("canary-cause: a bug"),
            "broken" => Err(cause()),
            "busy" => Err(Error {
                retry_after: Some(Duration::from_millis(1500)),
                ..Error::new(ErrorResponseCode::RateLimitExceeded, "Too fast.")
            }),
            "busy-without-hint" => Err(Error::new(ErrorResponseCode::RateLimitExceeded, "Too fast.")),
            "conflict" => Err(Error::new(ErrorResponseCode::RebuildRequired, "It must be rebuilt.")),
            "ns/app:v1" | "ns/tags" => Ok(template()),
            id => Self::own(caller, id, TEMPLATE, ErrorResponseCode::TemplateNotFound).map(|()| template()),
        }
    }

    async fn delete_template(&self, caller: &Caller, id: &str) -> Result<()> {
        Self::own(caller, id, TEMPLATE, ErrorResponseCode::TemplateNotFound)
    }
}

#[async_trait]
impl Names for Fake {
    async fn template_tags(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateTagInfo>> {
        self.get_template(caller, reference).await?;
        self.call(format!("template_tags {reference}"));
        Ok(Vec::new())
    }

    async fn assign_tags(&self, caller: &Caller, reference: &str, tags: Vec<String>) -> Result<Warned<TemplateInfo>> {
        let template = self.get_template(caller, reference).await?;
        self.call(format!("assign_tags {reference} {tags:?}"));
        Ok(template.into())
    }

    async fn remove_tag(&self, caller: &Caller, reference: &str, tag: &str) -> Result<()> {
        self.get_template(caller, reference).await?;
        self.call(format!("remove_tag {reference} {tag}"));
        Ok(())
    }

    async fn template_aliases(&self, caller: &Caller, reference: &str) -> Result<Vec<TemplateAliasInfo>> {
        self.get_template(caller, reference).await?;
        self.call(format!("template_aliases {reference}"));
        Ok(Vec::new())
    }

    async fn remove_alias(&self, caller: &Caller, reference: &str, alias: &str) -> Result<()> {
        self.get_template(caller, reference).await?;
        self.call(format!("remove_alias {reference} {alias}"));
        Ok(())
    }

    async fn rename_template(&self, caller: &Caller, reference: &str, new_name: &str) -> Result<TemplateInfo> {
        let template = self.get_template(caller, reference).await?;
        self.call(format!("rename_template {reference} {new_name}"));
        Ok(template)
    }

    async fn set_visibility(
        &self,
        caller: &Caller,
        reference: &str,
        visibility: TemplateVisibility,
    ) -> Result<Warned<TemplateInfo>> {
        let template = self.get_template(caller, reference).await?;
        self.call(format!("set_visibility {reference} {visibility:?}"));
        Ok(Warned { value: template, warnings: vec!["gives away A".into(), "and B".into()] })
    }

    async fn reserve_name(&self, _: &Caller, reference: &str) -> Result<TemplateNameClaim> {
        Ok(TemplateNameClaim {
            claim_token: "claim_1".into(),
            canonical_ref: format!("ns/{reference}"),
            expires_at: "2025-01-31T10:00:00Z".parse().unwrap(),
        })
    }

    async fn release_name(&self, caller: &Caller, token: &str) -> Result<()> {
        Self::own(caller, token, "claim_1", ErrorResponseCode::TemplateNameClaimNotFound)
    }

    async fn namespace(&self, caller: &Caller, slug: &str) -> Result<TemplateNamespaceInfo> {
        Self::own(caller, slug, "ns", ErrorResponseCode::NotFound)?;
        Ok(TemplateNamespaceInfo { slug: slug.into(), kind: TemplateNamespaceKind::User, is_default: true })
    }
}

#[async_trait]
impl Sandboxes for Fake {
    async fn create_sandbox(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        context: &RequestContext,
    ) -> Result<CreateSandboxResponse> {
        self.call(format!("create_sandbox {} {request:?} {context:?}", letter(caller)));
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

    async fn list_sandboxes(&self, _: &Caller, query: SandboxQuery) -> Result<SandboxListPage> {
        self.call(format!("{query:?}"));
        let has_next = query.limit.is_some();
        Ok(SandboxListPage { items: vec![sandbox()], next_token: has_next.then(|| "t2".into()), has_next })
    }

    async fn get_sandbox(&self, caller: &Caller, id: &str) -> Result<SandboxInfo> {
        if letter(caller) == "a" && self.life.lock().unwrap().has(id) {
            let traffic_access_token = Some("canary-traffic".to_owned());
            return Ok(SandboxInfo { id: id.to_owned(), traffic_access_token, ..sandbox() });
        }
        Err(Error::sandbox_not_found(id))
    }

    async fn destroy_sandbox(&self, caller: &Caller, id: &str) -> Result<DestroySandboxResponse> {
        self.get_sandbox(caller, id).await?;
        self.life.lock().unwrap().end(id);
        self.events.record(LifecycleOperation::Destroy, id, None, &[]);
        Ok(DestroySandboxResponse { id: id.into(), status: SandboxStatus::Destroyed })
    }

    async fn live_sandbox(&self, caller: &Caller, id: &str) -> Result<Arc<dyn LiveSandbox>> {
        Self::own(caller, id, SANDBOX, ErrorResponseCode::SandboxNotFound)?;
        let fake = self.this.upgrade().expect("it is called");
        Ok(Arc::new(Live { fake, id: id.to_owned() }))
    }
}
