//! Sandboxes as rows: created, looked up, listed, ended. Their machines belong to a host.
//!
//! ```text
//!  create ──> creating ──restored, new identity──> running ──destroy, timeout──> destroyed
//!                 └── restore failed ──> error         └── machine ended, or cannot be talked to any more ──> error
//! ```
//! A sandbox ends with the service. The database remembers it.
//!
//! Size of a sandbox: a snapshot fixes vCPUs, memory and disk. A create that asks for others gets the template's, and
//! `warnings` in the answer says so.

mod answers;
mod create;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{
    CreateSandboxRequest, CreateSandboxResponse, DestroySandboxResponse, ErrorResponseCode, SandboxInfo,
    SandboxListPage, SandboxStatus as WireStatus,
};
use nullspace_db::{DbError, SandboxFilter, SandboxStatus};
use nullspace_host_interface::{Found, HostEvents, SandboxEnd};
use nullspace_service::{LiveSandbox, RequestContext, SandboxQuery, chain};
use nullspace_types::{Caller, SandboxId};
use serde::{Deserialize, Serialize};

use self::answers::{info, status_to_store};
use crate::error::{Error, Result, Stored, internal};
use crate::{Control, Inner};

/// Time between two attempts to record ends that the database refused.
const RECORD_AGAIN: Duration = Duration::from_millis(250);

/// A sandbox's size and settings, as the database stores them.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Config {
    vcpus: u32,
    memory_mb: u32,
    disk_mb: u32,
    timeout_ms: u64,
    cwd: String,
    internet_access: bool,
}

/// Ends that the database refused. There are at most as many as machines.
#[derive(Debug, Default)]
pub(crate) struct State {
    unrecorded: Mutex<HashMap<SandboxId, (SandboxStatus, Option<String>)>>,
}

/// Records the ends of sandboxes that end by themselves.
pub(crate) struct Ends(pub(crate) Weak<Inner>);

#[async_trait]
impl HostEvents for Ends {
    async fn sandbox_ended(&self, id: SandboxId, end: SandboxEnd) {
        let Some(inner) = self.0.upgrade() else { return };
        if let Some(fault) = end.fault {
            inner.metrics.sandbox_failed(fault);
        }
        let status = if end.failed { SandboxStatus::Error } else { SandboxStatus::Destroyed };
        inner.set_status(id, status, Some(&end.reason)).await;
        inner.collect.notify_one();
    }
}

/// Records ends that the database refused at first, until the service stops.
pub(crate) async fn record_late(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.shutdown.cancelled() => return,
            () = tokio::time::sleep(RECORD_AGAIN) => {}
        }
        inner.record_ends().await;
    }
}

#[async_trait]
impl nullspace_service::Sandboxes for Control {
    async fn create_sandbox(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        context: &RequestContext,
    ) -> Result<CreateSandboxResponse> {
        let (control, caller, key) = (self.clone(), caller.clone(), context.idempotency_key.clone());
        let work = async move {
            let began = Instant::now();
            let made = control.create(&caller, request, key).await;
            control.inner.metrics.started(made.is_ok(), began.elapsed());
            made
        };
        joined(self.inner.tasks.spawn(work).await)
    }

    async fn get_sandbox(&self, caller: &Caller, id: &str) -> Result<SandboxInfo> {
        let sandbox = self.inner.db.get_sandbox(caller, parse(id)?).await;
        info(&sandbox.or_missing(|| Error::sandbox_not_found(id))?)
    }

    async fn list_sandboxes(&self, caller: &Caller, query: SandboxQuery) -> Result<SandboxListPage> {
        let limit = query.limit.unwrap_or(1000).clamp(1, 1000);
        let after = match &query.next_token {
            None => None,
            Some(token) => Some(token.parse().map_err(|_| Error::invalid("next_token is not one that was given out"))?),
        };
        let statuses = query.states.into_iter().map(status_to_store).collect();
        let mut filter = SandboxFilter { statuses, after, limit };
        let mut page = SandboxListPage { items: Vec::new(), next_token: None, has_next: false };
        loop {
            let found = self.inner.db.list_sandboxes(caller, filter.clone()).await.stored()?;
            let full = found.len() >= limit as usize;
            for sandbox in found {
                filter.after = Some(sandbox.id);
                let wanted = query.template.as_ref().is_none_or(|template| *template == sandbox.template_ref)
                    && query.metadata.iter().all(|(key, value)| sandbox.metadata.get(key) == Some(value));
                if !wanted {
                    continue;
                }
                if page.items.len() == limit as usize {
                    // Only this one more tells that there is a next page.
                    page.next_token = page.items.last().map(|last| last.id.clone());
                    page.has_next = true;
                    return Ok(page);
                }
                page.items.push(info(&sandbox)?);
            }
            if !full {
                return Ok(page);
            }
        }
    }

    async fn destroy_sandbox(&self, caller: &Caller, id: &str) -> Result<DestroySandboxResponse> {
        let parsed = parse(id)?;
        let missing = || Error::sandbox_not_found(id);
        let sandbox = self.inner.db.get_sandbox(caller, parsed).await;
        let sandbox = sandbox.or_missing(missing)?;
        if sandbox.status.is_final() {
            return Err(missing());
        }
        let inner = Arc::clone(&self.inner);
        let work = async move {
            inner.end_sandbox(parsed, SandboxStatus::Destroyed, None).await;
            Ok(())
        };
        joined(self.inner.tasks.spawn(work).await)?;
        Ok(DestroySandboxResponse { id: id.to_owned(), status: WireStatus::Destroyed })
    }

    async fn live_sandbox(&self, caller: &Caller, id: &str) -> Result<Arc<dyn LiveSandbox>> {
        let parsed = parse(id)?;
        let starts = match self.inner.host.find_sandbox(parsed) {
            Found::Running(live, tenant) if tenant == caller.tenant => return Ok(live),
            Found::Running(..) => return Err(Error::sandbox_not_found(id)),
            Found::Starting => true,
            Found::Absent => false,
        };
        let sandbox = self.inner.db.get_sandbox(caller, parsed).await;
        let sandbox = sandbox.or_missing(|| Error::sandbox_not_found(id))?;
        if starts || sandbox.status == SandboxStatus::Creating {
            let message = format!("sandbox {id} is not running yet; try again");
            return Err(Error::new(ErrorResponseCode::SandboxNotReady, message));
        }
        Err(Error::sandbox_not_found(id))
    }
}

impl Inner {
    /// Has the host end a sandbox, and records the end. A second call does nothing.
    async fn end_sandbox(&self, id: SandboxId, status: SandboxStatus, reason: Option<&str>) {
        self.host.end_sandbox(id).await;
        self.set_status(id, status, reason).await;
        self.collect.notify_one();
    }

    async fn set_status(&self, id: SandboxId, status: SandboxStatus, reason: Option<&str>) {
        match self.db.set_sandbox_status(id, status, reason, Timestamp::now()).await {
            // A conflict: it was ended by somebody else meanwhile.
            Ok(_) | Err(DbError::Conflict { .. }) => {}
            Err(error) => {
                tracing::error!(sandbox_id = %id, error = %chain(&error), "a sandbox's end is not recorded yet");
                let mut unrecorded = self.sandboxes.unrecorded.lock().unwrap_or_else(PoisonError::into_inner);
                unrecorded.insert(id, (status, reason.map(str::to_owned)));
            }
        }
    }

    /// Records ends that the database refused at first.
    async fn record_ends(&self) {
        let unrecorded = std::mem::take(&mut *self.sandboxes.unrecorded.lock().unwrap_or_else(PoisonError::into_inner));
        for (id, (status, reason)) in unrecorded {
            self.set_status(id, status, reason.as_deref()).await;
        }
    }

    /// Ends all sandboxes of the host, concurrently.
    pub(crate) async fn end_all_sandboxes(&self, reason: &str) {
        let ends =
            self.host.sandboxes().into_iter().map(|id| self.end_sandbox(id, SandboxStatus::Destroyed, Some(reason)));
        futures::future::join_all(ends).await;
    }
}

/// The result of a task that continued after its caller left.
fn joined<T>(done: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    done.unwrap_or_else(|error| Err(internal("a sandbox's task", &error)))
}

fn parse(id: &str) -> Result<SandboxId> {
    id.parse().map_err(|_| Error::sandbox_not_found(id))
}
