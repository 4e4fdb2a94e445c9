//! Reading builds and their logs.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{BuildId, Caller};
use sqlx::QueryBuilder;

use super::{
    Db, Store, finish, logs, one_build,
    rows::{self, select_build},
};
use crate::{Build, BuildFilter, BuildPage, Builds, CancelOutcome, CancelRequest, LogEntry, Result};

#[async_trait]
impl Builds for Store {
    async fn get_build(&self, caller: &Caller, build: BuildId) -> Result<Build> {
        Ok(self.build_and_next_offset(caller, build).await?.0)
    }

    async fn list_builds(&self, caller: &Caller, filter: BuildFilter) -> Result<BuildPage> {
        list(self, caller, filter).await
    }

    async fn log_entries(&self, caller: &Caller, build: BuildId, from: u64, limit: u32) -> Result<Vec<LogEntry>> {
        logs::entries(self, caller, build, from, limit).await
    }

    async fn build_and_next_offset(&self, caller: &Caller, build: BuildId) -> Result<(Build, u64)> {
        get(self, caller, build).await
    }

    async fn request_cancel(
        &self,
        caller: &Caller,
        build: BuildId,
        request: CancelRequest,
        now: Timestamp,
    ) -> Result<CancelOutcome> {
        finish::request_cancel(self, caller, build, request, now).await
    }
}

/// Longest page of builds.
const MAX_PAGE: u32 = 100;

pub(super) async fn get(store: &Store, caller: &Caller, build: BuildId) -> Result<(Build, u64)> {
    one_build::get_in(&mut store.read().await?, caller, build).await
}

pub(super) async fn list(store: &Store, caller: &Caller, filter: BuildFilter) -> Result<BuildPage> {
    let limit = filter.limit.clamp(1, MAX_PAGE);
    let mut query: QueryBuilder<Db> = QueryBuilder::new(select_build!("WHERE b.tenant_id = "));
    query.push_bind(caller.tenant.to_string());
    if let Some(template) = filter.template {
        query.push(" AND b.template_id = ").push_bind(template.to_string());
    }
    if let Some(status) = filter.status {
        query.push(" AND b.status = ").push_bind(status.as_str());
    }
    if let Some(backend) = filter.backend {
        query.push(" AND b.backend = ").push_bind(backend.as_str());
    }
    if let Some(source_type) = filter.source_type {
        query.push(" AND b.source_type = ").push_bind(source_type.as_str());
    }
    if let Some(after) = filter.after {
        query.push(" AND b.id < ").push_bind(after.to_string());
    }
    // One more than asked for, to know whether there is a next page.
    query.push(" ORDER BY b.id DESC LIMIT ").push_bind(i64::from(limit) + 1);
    let found = query.build().fetch_all(&store.readers).await?;
    let mut builds = found.iter().map(rows::build).collect::<Result<Vec<_>>>()?;
    let size = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = builds.len() > size;
    builds.truncate(size);
    let next = if more { builds.last().map(|build| build.id) } else { None };
    Ok(BuildPage { builds, next })
}
