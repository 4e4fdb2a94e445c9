//! The service trait [`Life`]: pauses, snapshots, forks and timeouts, for callers. The work runs in tasks of its own, so a caller
//! that disconnects leaves a complete sandbox or snapshot.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use nullspace_api::{
    CreateSnapshotRequest, PromoteSnapshotRequest, SandboxHandle, SandboxMetrics, SetTimeoutRequest,
    SetTimeoutResponse, SnapshotInfo, TemplateInfo, UpdateEgressRequest, UpdateEgressResponse,
};
use nullspace_definition::sandbox::check_metadata;
use nullspace_host_interface::invalid;
use nullspace_service::{Life, RequestContext, SnapshotQuery, Warned};
use nullspace_types::Caller;

use super::create::idempotency;
use super::pause::Cause;
use super::{answers, joined, parse};
use crate::Control;
use crate::error::Result;

#[async_trait]
impl Life for Control {
    async fn hibernate_sandbox(&self, caller: &Caller, id: &str) -> Result<SnapshotInfo> {
        let (inner, caller, id) = (Arc::clone(&self.inner), caller.clone(), parse(id)?);
        let paused =
            joined(self.inner.tasks.spawn(async move { inner.pause(&caller, id, Cause::Request).await }).await)?;
        answers::snapshot(&paused.snapshot)
    }

    async fn resume_sandbox(&self, caller: &Caller, id: &str, context: &RequestContext) -> Result<SandboxHandle> {
        let key = context.idempotency_key.clone();
        let key = key.map(|key| idempotency(key, &("resume", id))).transpose()?;
        let (inner, caller, id) = (Arc::clone(&self.inner), caller.clone(), id.to_owned());
        let work = async move {
            let began = Instant::now();
            let resumed = inner.resume(&caller, &id, key).await;
            inner.metrics.started(resumed.is_ok(), began.elapsed());
            resumed
        };
        answers::handle(&joined(self.inner.tasks.spawn(work).await)?)
    }

    async fn fork_sandbox(&self, caller: &Caller, id: &str, context: &RequestContext) -> Result<SandboxHandle> {
        let key = context.idempotency_key.clone();
        let key = key.map(|key| idempotency(key, &("fork", id))).transpose()?;
        let (inner, caller, id) = (Arc::clone(&self.inner), caller.clone(), parse(id)?);
        let work = async move {
            let began = Instant::now();
            let forked = inner.fork(&caller, id, key).await;
            inner.metrics.started(forked.is_ok(), began.elapsed());
            forked
        };
        answers::handle(&joined(self.inner.tasks.spawn(work).await)?)
    }

    async fn create_snapshot(
        &self,
        caller: &Caller,
        id: &str,
        request: CreateSnapshotRequest,
        context: &RequestContext,
    ) -> Result<SnapshotInfo> {
        check_metadata("metadata", request.metadata.as_ref()).map_err(invalid)?;
        let key = context.idempotency_key.clone();
        let key = key.map(|key| idempotency(key, &("snapshot", id, &request))).transpose()?;
        let (inner, caller, id) = (Arc::clone(&self.inner), caller.clone(), parse(id)?);
        let metadata = request.metadata.unwrap_or_default();
        joined(self.inner.tasks.spawn(async move { inner.snapshot_running(&caller, id, metadata, key).await }).await)
    }

    async fn set_timeout(&self, caller: &Caller, id: &str, request: SetTimeoutRequest) -> Result<SetTimeoutResponse> {
        let (inner, caller, id) = (Arc::clone(&self.inner), caller.clone(), parse(id)?);
        joined(self.inner.tasks.spawn(async move { inner.set_timeout(&caller, id, request).await }).await)
    }

    async fn update_egress(
        &self,
        caller: &Caller,
        id: &str,
        request: UpdateEgressRequest,
    ) -> Result<UpdateEgressResponse> {
        let (inner, caller, id) = (Arc::clone(&self.inner), caller.clone(), parse(id)?);
        joined(self.inner.tasks.spawn(async move { inner.update_egress(&caller, id, request).await }).await)
    }

    async fn sandbox_metrics(&self, caller: &Caller, id: &str) -> Result<Vec<SandboxMetrics>> {
        let id = parse(id)?;
        self.inner.running_of(caller, id).await?;
        let used = self.inner.host.sandbox_use(id).await?;
        Ok(used.into_iter().map(answers::metrics).collect())
    }

    async fn list_snapshots(&self, caller: &Caller, query: SnapshotQuery) -> Result<Vec<SnapshotInfo>> {
        self.inner.snapshots_of(caller, query).await
    }

    async fn get_snapshot(&self, caller: &Caller, id: &str) -> Result<SnapshotInfo> {
        answers::snapshot(&self.inner.snapshot_of(caller, id).await?)
    }

    async fn promote_snapshot(
        &self,
        caller: &Caller,
        id: &str,
        request: PromoteSnapshotRequest,
        context: &RequestContext,
    ) -> Result<Warned<TemplateInfo>> {
        let key = context.idempotency_key.clone();
        let key = key.map(|key| idempotency(key, &("promote", id, &request))).transpose()?;
        let (inner, caller, id) = (Arc::clone(&self.inner), caller.clone(), id.to_owned());
        joined(self.inner.tasks.spawn(async move { inner.promote_snapshot(&caller, &id, request, key).await }).await)
    }

    async fn delete_snapshot(&self, caller: &Caller, id: &str) -> Result<()> {
        self.inner.end_snapshot(caller, id).await?;
        self.inner.collect.notify_one();
        Ok(())
    }
}
