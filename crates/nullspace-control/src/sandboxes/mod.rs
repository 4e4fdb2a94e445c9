//! Sandboxes as rows: created, paused, resumed, cloned, ended. Their machines belong to a host.
//!
//! ```text
//!            ┌──────────────── snapshot, fork ────────────────┐
//!  create ──> creating ──restored, new identity──> running ───┴──destroy, timeout──> destroyed
//!                 │                                │  ^  └── machine ended, service killed ──> error
//!                 └── restore failed ──> error   pause │
//!                                                  v  │ used (auto_resume), service back: same id
//!                                                paused ──resume──> another sandbox runs in its place; this one is destroyed
//!                                                   └── destroy, auto_delete_after_ms ──> destroyed, and its snapshot over
//! ```
//! | file | arrow | fails with |
//! |---|---|---|
//! | `create`, `start` | create | `capacity_exceeded`, `QUOTA_EXCEEDED`, `rebuild_required`, `incompatible_snapshot`: nothing is left |
//! | `pause` | pause | `transition_in_progress`, `capacity_exceeded`, `QUOTA_EXCEEDED`: it runs on |
//! | `publications` | paused, captured -> paused, stored | what failed is tried again: it stays paused, and can be resumed |
//! | `resume` | resume, continue | `incompatible_snapshot`, `rebuild_required`, `capacity_exceeded`: it stays paused |
//! | `snapshots` | snapshot | as pause: it runs on |
//! | `promote` | snapshot -> template | `incompatible_snapshot`, a name that clashes: the snapshot stays |
//! | `evictions` | pause of an idle one on a full host | as pause: it runs on, and the other sandbox is refused |
//! | `fork` | fork | as create: the source runs on |
//! | `egress` | change of the egress policy | `not_implemented` where it cannot be enforced, `internal_error`: the policy before holds |
//! | `timeouts` | timeout | a pause that fails is tried again for 10 minutes, and then the sandbox ends |
//! | `restart` | stop and start of the service | what is not paused in time ends; what cannot be resumed stays paused |
//!
//! One transition of a sandbox at a time (`transitions`); an end needs no turn and always wins. The database remembers all.
//!
//! Size of a sandbox: a snapshot fixes vCPUs, memory and disk. A create that asks for others gets the template's, and
//! `warnings` in the answer says so.

mod answers;
mod create;
mod egress;
mod evictions;
#[cfg(test)]
mod fake;
mod fork;
mod life;
mod pause;
mod ports;
mod promote;
mod publications;
mod restart;
mod resume;
mod snapshots;
mod spec;
mod ssh;
mod start;
#[cfg(test)]
mod tests;
mod timeouts;
mod transitions;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{
    CreateSandboxRequest, CreateSandboxResponse, DestroySandboxResponse, ErrorResponseCode, LifecycleActorKind,
    LifecycleOperation, SandboxInfo, SandboxListPage, SandboxStatus as WireStatus,
};
use nullspace_db::{DbError, Sandbox, SandboxFilter, SandboxStatus};
use nullspace_host_interface::{Due, Found, HostEvents, SandboxEnd};
use nullspace_service::{LiveSandbox, RequestContext, SandboxQuery, chain};
use nullspace_types::{Caller, SandboxId, TenantId};
use secrecy::ExposeSecret;

use self::answers::{info, status_to_store};
use self::pause::not_ready;
pub use self::ports::PreviewSettings;
pub(crate) use self::ports::keep as keep_ports;
pub(crate) use self::publications::publish_all;
pub(crate) use self::restart::continue_all;
use self::resume::Why;
use self::spec::Config;
use crate::error::{Error, Result, Stored, internal};
use crate::lifecycle::Event;
use crate::{Control, Inner};

/// Time between two attempts to record ends that the database refused.
const RECORD_AGAIN: Duration = Duration::from_millis(250);
/// Looks for a machine whose row says that it runs, and the time between two.
const LOOKS: u32 = 100;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Limits of stored sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LifeSettings {
    /// Time for which running sandboxes are paused when the service stops. Those that are not paused then end. Zero: all end.
    pub stop_pause: Duration,
    /// Most paused sandboxes of one tenant.
    pub paused_per_tenant: u32,
    /// Most reusable snapshots of one tenant.
    pub snapshots_per_tenant: u32,
    /// Most machines that the warm pools of one tenant keep ready. 0: there are no warm pools.
    pub warm_per_tenant: u32,
    /// A sandbox that finds the host full has others paused that idle for at least so long. `None`: it is refused.
    pub pause_when_full: Option<Duration>,
}

impl LifeSettings {
    /// Most evicted sandboxes of one tenant, which its limit of paused ones does not count: half of that limit, rounded up.
    pub(crate) fn evicted_per_tenant(&self) -> u32 {
        self.paused_per_tenant.div_ceil(2)
    }
}

/// The state of sandboxes in this process.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Ends that the database refused. There are at most as many as machines.
    unrecorded: Mutex<HashMap<SandboxId, (SandboxStatus, Option<String>)>>,
    transitions: Arc<transitions::Transitions>,
    captures: fork::Captures,
    publications: Arc<publications::Publications>,
    continuations: resume::Continuations,
    pending: Arc<snapshots::Pending>,
    ports: ports::State,
    ssh: ssh::State,
    /// Paused sandboxes that continue after a start of the service. There are at most as many as there were machines.
    awaited: Mutex<HashSet<SandboxId>>,
    /// One start at a time evicts others.
    evictions: tokio::sync::Mutex<evictions::Failed>,
}

/// Receives a host's reports of its sandboxes.
pub(crate) struct Ends(pub(crate) Weak<Inner>);

#[async_trait]
impl HostEvents for Ends {
    async fn sandbox_ended(&self, id: SandboxId, end: SandboxEnd) {
        let Some(inner) = self.0.upgrade() else { return };
        if let Some(fault) = end.fault {
            inner.metrics.sandbox_failed(fault);
        }
        let status = if end.failed { SandboxStatus::Error } else { SandboxStatus::Destroyed };
        if let Some(sandbox) = inner.set_status(id, status, Some(&end.reason)).await {
            inner.lifecycle.record(restart::reconciled(sandbox.tenant, id, &end.reason));
        }
        inner.collect.notify_one();
    }

    async fn sandbox_due(&self, id: SandboxId, due: Due) {
        let Some(inner) = self.0.upgrade() else { return };
        let tasks = inner.tasks.clone();
        tasks.spawn(inner.at_limit(id, due));
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
        let sandbox = self.inner.sandbox_of(caller, parse(id)?).await?;
        if sandbox.status == SandboxStatus::Destroyed {
            return Err(Error::sandbox_not_found(id));
        }
        let mut info = self.inner.info(&sandbox)?;
        info.traffic_access_token = self.inner.traffic_token(&sandbox).map(|token| token.expose_secret().to_owned());
        Ok(info)
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
                page.items.push(self.inner.info(&sandbox)?);
            }
            if !full {
                return Ok(page);
            }
        }
    }

    async fn destroy_sandbox(&self, caller: &Caller, id: &str) -> Result<DestroySandboxResponse> {
        let parsed = parse(id)?;
        let sandbox = self.inner.sandbox_of(caller, parsed).await?;
        if sandbox.status.is_final() {
            return Err(Error::sandbox_not_found(id));
        }
        let (inner, tenant) = (Arc::clone(&self.inner), caller.tenant);
        let work = async move {
            inner.destroy(tenant, parsed, LifecycleActorKind::User, "manual", None).await;
            Ok(())
        };
        joined(self.inner.tasks.spawn(work).await)?;
        Ok(DestroySandboxResponse { id: id.to_owned(), status: WireStatus::Destroyed })
    }

    async fn live_sandbox(&self, caller: &Caller, id: &str) -> Result<Arc<dyn LiveSandbox>> {
        let (inner, parsed) = (&self.inner, parse(id)?);
        let (mut continued, mut looks) = (false, 0);
        loop {
            let starts = match inner.host.find_sandbox(parsed) {
                Found::Running(live, tenant) if tenant == caller.tenant => return Ok(live),
                Found::Running(..) => return Err(Error::sandbox_not_found(id)),
                Found::Starting => true,
                Found::Absent => false,
            };
            let sandbox = inner.sandbox_of(caller, parsed).await?;
            match sandbox.status {
                SandboxStatus::Paused if inner.is_awaited(parsed) => {
                    return Err(not_ready(parsed, "is being resumed after a restart of the service; try again"));
                }
                SandboxStatus::Paused if continued => return Err(not_ready(parsed, "is paused again; try again")),
                SandboxStatus::Paused if Config::stored(&sandbox.config)?.auto_resume => {
                    inner.continue_shared(caller, parsed, Why::Used).await?;
                    continued = true;
                }
                SandboxStatus::Paused => {
                    let message =
                        format!("sandbox {id} is paused: resume it first, or create sandboxes with auto_resume");
                    return Err(Error::new(ErrorResponseCode::SandboxNotReady, message));
                }
                SandboxStatus::Creating => return Err(not_ready(parsed, "is not running yet; try again")),
                // Its row says that it runs, a moment before its host does.
                SandboxStatus::Running if starts && looks < LOOKS => {
                    looks += 1;
                    tokio::time::sleep(BETWEEN_LOOKS).await;
                }
                SandboxStatus::Running if starts => return Err(not_ready(parsed, "is not running yet; try again")),
                // It runs since the host was asked.
                SandboxStatus::Running if !continued => continued = true,
                _ => return Err(Error::sandbox_not_found(id)),
            }
        }
    }
}

impl Inner {
    /// One of the caller's sandboxes, in any state.
    async fn sandbox_of(&self, caller: &Caller, id: SandboxId) -> Result<Sandbox> {
        let sandbox = self.db.get_sandbox(caller, id).await;
        sandbox.or_missing(|| Error::sandbox_not_found(&id.to_string()))
    }

    fn info(&self, sandbox: &Sandbox) -> Result<SandboxInfo> {
        let last_active =
            if sandbox.status == SandboxStatus::Running { self.host.last_active(sandbox.id) } else { None };
        info(sandbox, last_active)
    }

    /// Ends a sandbox, paused or with a machine, and records the events of that. `reason` is for the row.
    async fn destroy(
        &self,
        tenant: TenantId,
        id: SandboxId,
        actor: LifecycleActorKind,
        why: &str,
        reason: Option<&str>,
    ) {
        let event = Event::requested(tenant, LifecycleOperation::Destroy).by(actor).sandbox(id).reason(why);
        self.lifecycle.record(event.clone());
        self.end_sandbox(id, SandboxStatus::Destroyed, reason).await;
        self.lifecycle.record(event.now_succeeded());
    }

    /// Has the host end a sandbox, and records the end. A second call does nothing.
    async fn end_sandbox(&self, id: SandboxId, status: SandboxStatus, reason: Option<&str>) {
        self.sandboxes.publications.over(id);
        self.host.end_sandbox(id).await;
        self.set_status(id, status, reason).await;
        self.collect.notify_one();
    }

    /// Records a sandbox's end. `None` when it had ended before, or the database refuses for now.
    async fn set_status(&self, id: SandboxId, status: SandboxStatus, reason: Option<&str>) -> Option<Sandbox> {
        match self.db.set_sandbox_status(id, status, reason, Timestamp::now()).await {
            Ok(sandbox) => Some(sandbox),
            // It was ended by somebody else meanwhile, or was never recorded.
            Err(DbError::Conflict { .. } | DbError::NotFound) => None,
            Err(error) => {
                tracing::error!(sandbox_id = %id, error = %chain(&error), "a sandbox's end is not recorded yet");
                let mut unrecorded = self.sandboxes.unrecorded.lock().unwrap_or_else(PoisonError::into_inner);
                unrecorded.insert(id, (status, reason.map(str::to_owned)));
                None
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
}

/// The result of a task that continued after its caller left.
fn joined<T>(done: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    done.unwrap_or_else(|error| Err(internal("a sandbox's task", &error)))
}

fn parse(id: &str) -> Result<SandboxId> {
    id.parse().map_err(|_| Error::sandbox_not_found(id))
}
