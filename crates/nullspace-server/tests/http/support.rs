//! A service in memory, for what is HTTP's alone: it knows two keys, one build and one sandbox, and fails on request.
#![allow(dead_code, reason = "shared with the tests of the client")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use nullspace_api::*;
use nullspace_server::{
    BuildQuery, ByteStream, Caller, ErrorKind, FileAt, FileContent, FileDownload, FileService, LogStream,
    RequestContext, SandboxQuery, ServerConfig, Service, ServiceError, router,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;

pub(crate) const KEY: &str = "ns_live_canary-key";
pub(crate) const OTHER_KEY: &str = "ns_live_other";
pub(crate) const BUILD: &str = "tb_1";
pub(crate) const TEMPLATE: &str = "tmpl_1";
pub(crate) const SANDBOX: &str = "sb_1";

/// A cause that only the log may see.
#[derive(Debug, thiserror::Error)]
#[error("canary-cause: disk is full")]
struct Cause;

pub(crate) struct Fake {
    log: watch::Sender<Vec<TemplateBuildLogEntry>>,
    /// What arrived, as the service sees it.
    pub(crate) calls: Mutex<Vec<String>>,
    /// After so many entries the log stream fails, once.
    pub(crate) break_after: Mutex<Option<u64>>,
    file: Mutex<Option<Vec<u8>>>,
    /// A backend is down.
    pub(crate) down: Mutex<bool>,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        let (log, _) = watch::channel(Vec::new());
        Arc::new(Self {
            log,
            calls: Mutex::new(Vec::new()),
            break_after: Mutex::new(None),
            file: Mutex::new(None),
            down: Mutex::new(false),
        })
    }

    pub(crate) fn router(self: &Arc<Self>, config: ServerConfig) -> axum::Router {
        router(Arc::clone(self) as Arc<dyn Service>, config)
    }

    /// Append an entry to the build's log.
    pub(crate) fn push(&self, kind: TemplateBuildLogKind, message: &str) {
        self.log.send_modify(|log| log.push(entry(log.len() as u64, kind, message)));
    }

    pub(crate) fn last_call(&self) -> String {
        self.calls.lock().unwrap().last().cloned().unwrap_or_default()
    }

    fn call(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn own(caller: &Caller, id: &str, known: &str, code: ErrorResponseCode) -> Result<(), ServiceError> {
        if caller.tenant_id == "a" && id == known {
            return Ok(());
        }
        Err(ServiceError::not_found(code, format!("There is no `{id}`.")))
    }
}

pub(crate) fn entry(offset: u64, kind: TemplateBuildLogKind, message: &str) -> TemplateBuildLogEntry {
    TemplateBuildLogEntry {
        build_id: BUILD.into(),
        template_id: TEMPLATE.into(),
        offset,
        timestamp: Time::from_microsecond(1_700_000_000_000_000 + offset as i64).unwrap(),
        kind,
        level: TemplateBuildLogLevel::Info,
        message: message.into(),
        error_detail: None,
        result: None,
        result_metadata: None,
        phase: None,
        step_index: None,
        total_steps: None,
        attempt: None,
        max_attempts: None,
        cache_kind: None,
        cache_status: None,
        cache_reason: None,
        cache_subject: None,
    }
}

pub(crate) fn build(status: TemplateBuildStatus) -> TemplateBuild {
    let time: Time = "2025-01-31T10:00:00Z".parse().unwrap();
    TemplateBuild {
        build_id: BUILD.into(),
        template_id: TEMPLATE.into(),
        name: "app".into(),
        tags: vec!["default".into()],
        status,
        build_backend: TemplateBuildBackend::Native,
        source_type: TemplateBuildSourceType::OciImport,
        canonical_ref: "ns/app:default".into(),
        namespace_slug: "ns".into(),
        visibility: TemplateVisibility::Private,
        created_at: time,
        updated_at: time,
        source_digest: None,
        context_digest: None,
        dockerfile_digest: None,
        build_config: None,
        triggered_by: None,
        queued_at: None,
        started_at: None,
        finished_at: None,
        duration_ms: None,
        failure_phase: None,
        cache_summary: None,
        artifact_availability: None,
        promotability: None,
        retention_expires_at: None,
        runtime_defaults: None,
        oci_metadata: None,
        artifact_ids: Vec::new(),
        retry_of_build_id: None,
        original_build_id: None,
        cancel_requested_at: None,
        cancel_requested_by: None,
        cancellation_reason: None,
        error: None,
        error_detail: None,
    }
}

pub(crate) fn template() -> TemplateInfo {
    TemplateInfo {
        id: TEMPLATE.into(),
        name: "app".into(),
        description: String::new(),
        builtin: false,
        canonical_ref: "ns/app:default".into(),
        namespace_slug: "ns".into(),
        visibility: TemplateVisibility::Private,
        tags: vec!["default".into()],
        default_tag: Some("default".into()),
        runtime_defaults: Some(TemplateRuntimeDefaults::default()),
    }
}

pub(crate) fn sandbox() -> SandboxInfo {
    SandboxInfo {
        id: SANDBOX.into(),
        status: SandboxStatus::Running,
        config: SandboxConfig { vcpus: 1, memory_mb: 512, disk_mb: None },
        template: "app".into(),
        created_at: "2025-01-31T10:00:00Z".parse().unwrap(),
        metadata: None,
        started_at: None,
        timeout_ms: None,
        timeout_at: None,
        expires_at: None,
        remaining_ms: None,
        timeout_action: None,
        last_active_at: None,
        inactivity_timeout_ms: None,
        auto_delete_after_ms: None,
        ephemeral: None,
        cwd: None,
        snapshot_id: None,
        warm_pool_checkout: None,
    }
}

/// One file's content is kept, whatever its name; the other operations are noted.
#[async_trait]
impl FileService for Fake {
    async fn read_file(&self, caller: &Caller, at: FileAt) -> Result<FileDownload, ServiceError> {
        Self::own(caller, &at.sandbox_id, SANDBOX, ErrorResponseCode::SandboxNotFound)?;
        let content = self.file.lock().unwrap().clone();
        let content = content.ok_or_else(|| ServiceError::not_found(ErrorResponseCode::NotFound, "no file"))?;
        let pieces: Vec<_> = content.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Ok(FileDownload { info: file(&at.path, content.len()), content: stream::iter(pieces).boxed() })
    }

    async fn write_file(
        &self,
        caller: &Caller,
        at: FileAt,
        mut content: FileContent,
    ) -> Result<FileInfo, ServiceError> {
        Self::own(caller, &at.sandbox_id, SANDBOX, ErrorResponseCode::SandboxNotFound)?;
        self.call(format!("write_file {} {:?}", at.path, at.user));
        let mut whole = Vec::new();
        while let Some(piece) = content.next().await {
            whole.extend_from_slice(&piece?);
        }
        let info = file(&at.path, whole.len());
        *self.file.lock().unwrap() = Some(whole);
        Ok(info)
    }

    async fn list_files(&self, _: &Caller, at: FileAt, depth: u32) -> Result<Vec<FileInfo>, ServiceError> {
        self.call(format!("list_files {at:?} {depth}"));
        Ok(vec![file("/a", 1), file("/b", 2)])
    }

    async fn file_info(&self, _: &Caller, at: FileAt) -> Result<FileInfo, ServiceError> {
        Ok(file(&at.path, 3))
    }

    async fn file_exists(&self, _: &Caller, at: FileAt) -> Result<bool, ServiceError> {
        Ok(at.path == "/here")
    }

    async fn make_dir(&self, _: &Caller, at: FileAt) -> Result<(), ServiceError> {
        self.call(format!("make_dir {at:?}"));
        Ok(())
    }

    async fn remove_file(&self, _: &Caller, at: FileAt) -> Result<(), ServiceError> {
        self.call(format!("remove_file {at:?}"));
        Ok(())
    }

    async fn rename_file(&self, _: &Caller, at: FileAt, to: String) -> Result<FileInfo, ServiceError> {
        self.call(format!("rename_file {at:?} {to}"));
        Ok(file(&to, 3))
    }

    async fn set_file_permissions(&self, _: &Caller, _: FileAt, permissions: &str) -> Result<(), ServiceError> {
        let message = format!("`/etc/passwd`: permission denied for {permissions}.");
        Err(ServiceError::new(ErrorKind::Forbidden, ErrorResponseCode::FileError, message))
    }

    async fn kill_process(&self, _: &Caller, id: &str, pid: u32) -> Result<(), ServiceError> {
        self.call(format!("kill_process {id} {pid}"));
        Ok(())
    }

    async fn process_logs(&self, _: &Caller, _: &str, pid: u32) -> Result<ProcessLogs, ServiceError> {
        let text = pid.to_string();
        Ok(ProcessLogs { stdout: text.clone(), stderr: String::new(), output: text, exit_code: None })
    }
}

fn file(path: &str, size: usize) -> FileInfo {
    FileInfo {
        name: path.rsplit('/').next().unwrap_or_default().into(),
        path: path.into(),
        is_dir: false,
        size: size as u64,
        kind: "file".into(),
        mode: None,
        permissions: None,
        owner: None,
        group: None,
        modified_time: None,
        symlink_target: None,
    }
}

#[async_trait]
impl Service for Fake {
    async fn ready(&self) -> Result<(), ServiceError> {
        if *self.down.lock().unwrap() {
            let message = "The metadata store cannot be reached.";
            return Err(ServiceError::new(ErrorKind::Unavailable, ErrorResponseCode::DatabaseError, message));
        }
        Ok(())
    }

    async fn metrics(&self) -> Result<String, ServiceError> {
        Ok("# TYPE fake gauge\nfake 1\n# EOF\n".to_owned())
    }

    async fn authenticate(&self, key: &SecretString) -> Result<Option<Caller>, ServiceError> {
        let tenant_id = match key.expose_secret() {
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

    async fn start_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
        context: &RequestContext,
    ) -> Result<TemplateBuild, ServiceError> {
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
        Ok(build(TemplateBuildStatus::Waiting))
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
    ) -> Result<TemplateBuild, ServiceError> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound)?;
        self.call(format!("retry_build {request:?}"));
        Ok(build(TemplateBuildStatus::Waiting))
    }

    async fn promote_build(
        &self,
        caller: &Caller,
        build_id: &str,
        request: PromoteTemplateBuildRequest,
    ) -> Result<TemplateInfo, ServiceError> {
        Self::own(caller, build_id, BUILD, ErrorResponseCode::TemplateBuildNotFound)?;
        self.call(format!("promote_build {:?} {:?}", request.tag, request.tags));
        Ok(template())
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
    ) -> Result<TemplateInfo, ServiceError> {
        let template = self.get_template(caller, reference).await?;
        self.call(format!("assign_tags {reference} {tags:?}"));
        Ok(template)
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
    ) -> Result<TemplateInfo, ServiceError> {
        let template = self.get_template(caller, reference).await?;
        self.call(format!("set_visibility {reference} {visibility:?}"));
        Ok(template)
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

    async fn exec(&self, caller: &Caller, id: &str, request: ExecRequest) -> Result<ExecResponse, ServiceError> {
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
            _ => Ok(ExecResponse { exit_code: 0, stdout: "out\n".into(), stderr: String::new(), pid: Some(7) }),
        }
    }

    async fn list_processes(&self, caller: &Caller, id: &str) -> Result<Vec<ProcessInfo>, ServiceError> {
        Self::own(caller, id, SANDBOX, ErrorResponseCode::SandboxNotFound)?;
        Ok(vec![ProcessInfo { pid: 7, command: "python3 -m http.server".into(), running: true }])
    }
}
