//! Builds as callers follow them: status, log, waiting for the end, cancellation.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use jiff::Timestamp;
use nullspace_api::{
    CreateTemplateRequest, ErrorResponseCode, TemplateBuild, TemplateBuildLogEntry, TemplateBuildLogKind,
    TemplateBuildStatusSnapshot, TemplateFailureDetailCode, TemplateInfo,
};
use nullspace_db::{Build, CancelRequest};
use nullspace_service::{Builds, LogStream, RequestContext, Templates, Warned};
use nullspace_types::{BuildId, Caller};

use super::logs::{LogSource, POLL, to_store};
use super::shared_reads::{Limit, PAGE, Page};
use super::worker::cancelled_entry;
use crate::catalog::wire;
use crate::error::{Error, Result, Stored};
use crate::{Control, Inner};

/// Bytes of entries that one follower buffers, about.
const FOLLOW_BYTES: usize = 128 << 10;

#[async_trait]
impl Builds for Control {
    async fn start_build(
        &self,
        caller: &Caller,
        request: CreateTemplateRequest,
        context: &RequestContext,
    ) -> Result<Warned<TemplateBuild>> {
        self.inner.start_build(caller, request, context).await
    }

    async fn wait_for_template(&self, caller: &Caller, build_id: &str) -> Result<TemplateInfo> {
        let mut log = self.build_logs(caller, build_id, 0, true).await?;
        while let Some(entry) = log.next().await {
            let entry = entry?;
            match entry.kind {
                TemplateBuildLogKind::End => return self.get_template(caller, &entry.template_id).await,
                TemplateBuildLogKind::Cancelled => {
                    let error = Error::new(ErrorResponseCode::TransitionConflict, "the build was cancelled");
                    return Err(Error { build_id: Some(build_id.to_owned()), ..error });
                }
                TemplateBuildLogKind::Error => {
                    let code = match entry.error_detail.as_ref().map(|detail| detail.code) {
                        Some(TemplateFailureDetailCode::InternalError) | None => ErrorResponseCode::InternalError,
                        Some(TemplateFailureDetailCode::Unauthorized | TemplateFailureDetailCode::BuildError) => {
                            ErrorResponseCode::BuildError
                        }
                        Some(TemplateFailureDetailCode::FileUploadError) => ErrorResponseCode::FileUploadError,
                    };
                    let error = Error::new(code, entry.message);
                    let detail = entry.error_detail.map(Box::new);
                    return Err(Error { build_id: Some(build_id.to_owned()), detail, ..error });
                }
                _ => {}
            }
        }
        let what = "the service stops; the build goes on: follow it by its build_id";
        let error = Error::new(ErrorResponseCode::FeatureUnavailable, what);
        Err(Error { build_id: Some(build_id.to_owned()), retry_after: Some(Duration::from_secs(5)), ..error })
    }

    async fn build_status(&self, caller: &Caller, build_id: &str, offset: u64) -> Result<TemplateBuildStatusSnapshot> {
        self.inner.snapshot(caller, parse(build_id)?, offset).await
    }

    async fn build_logs(&self, caller: &Caller, build_id: &str, offset: u64, follow: bool) -> Result<LogStream> {
        let id = parse(build_id)?;
        let missing = || Error::build_not_found(build_id);
        self.inner.db.get_build(caller, id).await.or_missing(missing)?;
        let inner = self.inner.clone();
        let caller = caller.clone();
        let changed = inner.builds.hub.follow(id);
        let state = (inner, changed, VecDeque::new(), offset, false);
        let stream = futures::stream::try_unfold(state, move |(inner, mut changed, mut ready, mut next, mut last)| {
            let caller = caller.clone();
            async move {
                loop {
                    if let Some(entry) = ready.pop_front() {
                        let entry = Arc::unwrap_or_clone(entry);
                        return Ok(Some((entry, (inner, changed, ready, next, last))));
                    }
                    if last {
                        return Ok(None);
                    }
                    changed.look();
                    let page = inner.read_log(&caller, id, next, Limit { entries: PAGE, bytes: FOLLOW_BYTES }).await?;
                    if let Some(entry) = page.entries.last() {
                        next = entry.offset + 1;
                        ready.extend(page.entries);
                        continue;
                    }
                    // Row and end are of one moment: a build that is final has no entry after these.
                    if !follow || page.row.status.is_final() {
                        last = true;
                        continue;
                    }
                    tokio::select! {
                        () = inner.shutdown.cancelled() => last = true,
                        () = changed.changed() => {}
                        () = tokio::time::sleep(POLL) => {}
                    }
                }
            }
        });
        Ok(stream.boxed())
    }

    async fn cancel_build(
        &self,
        caller: &Caller,
        build_id: &str,
        reason: Option<String>,
    ) -> Result<TemplateBuildStatusSnapshot> {
        let id = parse(build_id)?;
        let missing = || Error::build_not_found(build_id);
        if reason.as_ref().is_some_and(|reason| reason.len() > 4096) {
            return Err(Error::invalid("reason is longer than 4096 bytes"));
        }
        let now = Timestamp::now();
        let build = self.inner.db.get_build(caller, id).await.or_missing(missing)?;
        let request = CancelRequest {
            by: caller.namespace.clone(),
            reason,
            entry: to_store(&cancelled_entry(&build), now).stored()?,
        };
        let outcome = self.inner.db.request_cancel(caller, id, request, now).await;
        let outcome = outcome.or_missing(missing)?;
        if outcome.ended_now {
            self.inner.builds.credentials.forget(id);
            self.inner.builds.hub.notify(id);
        } else {
            self.inner.builds.running.ask_now(id);
        }
        self.inner.snapshot(caller, id, 0).await
    }
}

pub(super) fn parse(build_id: &str) -> Result<BuildId> {
    build_id.parse().map_err(|_| Error::build_not_found(build_id))
}

impl Inner {
    async fn snapshot(&self, caller: &Caller, id: BuildId, offset: u64) -> Result<TemplateBuildStatusSnapshot> {
        let page = self.read_log(caller, id, offset, Limit { entries: PAGE, bytes: usize::MAX }).await?;
        let entries: Vec<_> = page.entries.into_iter().map(Arc::unwrap_or_clone).collect();
        let next_offset = entries.last().map_or(offset.min(page.end), |entry| entry.offset + 1);
        Ok(TemplateBuildStatusSnapshot {
            build: wire::build(&page.row, Timestamp::now()).stored()?,
            entries,
            next_offset,
        })
    }

    /// Reads a build and a part of its log, as of one moment after the call.
    async fn read_log(
        &self,
        caller: &Caller,
        id: BuildId,
        from: u64,
        limit: Limit,
    ) -> Result<Page<Arc<Build>, TemplateBuildLogEntry>> {
        let source = LogSource { db: Arc::clone(&self.db), caller: caller.clone(), build: id };
        self.builds.reads.read(id, &source, from, limit).await
    }
}
