//! The fake service's pauses, snapshots, forks and timeouts.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use nullspace_api::*;
use nullspace_service::{Caller, Error, Life, RequestContext, Result, SnapshotQuery, Warned};

use super::{Fake, SANDBOX, letter, sandbox};

/// Sandboxes and snapshots of the tenant `a`.
pub(crate) struct Lives {
    /// Those that are not over, with the snapshot that a paused one is stored in.
    sandboxes: BTreeMap<String, Option<String>>,
    /// Oldest first.
    snapshots: Vec<SnapshotInfo>,
    /// Ids given so far.
    given: usize,
    /// What the next call ends with.
    pub(crate) fails: Option<ErrorResponseCode>,
}

impl Default for Lives {
    fn default() -> Self {
        Self { sandboxes: [(SANDBOX.to_owned(), None)].into(), snapshots: Vec::new(), given: 1, fails: None }
    }
}

impl Lives {
    fn id(&mut self, prefix: &str) -> String {
        self.given += 1;
        format!("{prefix}_{}", self.given)
    }

    /// A running sandbox of the caller.
    fn running(&self, caller: &Caller, id: &str) -> Result<()> {
        match self.sandboxes.get(id) {
            Some(None) if letter(caller) == "a" => Ok(()),
            Some(Some(_)) if letter(caller) == "a" => {
                Err(Error::new(ErrorResponseCode::SandboxNotReady, format!("`{id}` is paused: resume it.")))
            }
            _ => Err(Error::sandbox_not_found(id)),
        }
    }

    fn keep(&mut self, sandbox: &str, metadata: Option<JsonObject>) -> SnapshotInfo {
        let snapshot = SnapshotInfo {
            id: self.id("snap"),
            sandbox_id: sandbox.to_owned(),
            size_bytes: 4096,
            created_at: Time::now(),
            metadata,
        };
        self.snapshots.push(snapshot.clone());
        snapshot
    }

    fn make(&mut self) -> SandboxHandle {
        let id = self.id("sb");
        self.sandboxes.insert(id.clone(), None);
        SandboxHandle { id, status: SandboxStatus::Running, config: sandbox().config, cwd: None }
    }

    fn trip(&mut self) -> Result<()> {
        match self.fails.take() {
            None => Ok(()),
            Some(ErrorResponseCode::CapacityExceeded) => Err(Error {
                retry_after: Some(Duration::from_secs(5)),
                ..Error::new(ErrorResponseCode::CapacityExceeded, "There is no room.")
            }),
            Some(code) => Err(Error::new(code, "It cannot be done now.")),
        }
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.sandboxes.contains_key(id)
    }

    pub(super) fn end(&mut self, id: &str) {
        if let Some(Some(snapshot)) = self.sandboxes.remove(id) {
            self.snapshots.retain(|kept| kept.id != snapshot);
        }
    }
}

#[async_trait]
impl Life for Fake {
    async fn hibernate_sandbox(&self, caller: &Caller, id: &str) -> Result<SnapshotInfo> {
        let mut life = self.life.lock().unwrap();
        life.trip()?;
        life.running(caller, id)?;
        let snapshot = life.keep(id, None);
        life.sandboxes.insert(id.to_owned(), Some(snapshot.id.clone()));
        self.events.record(LifecycleOperation::Hibernate, id, Some(&snapshot.id), &[]);
        self.events.record(
            LifecycleOperation::SnapshotCreated,
            id,
            Some(&snapshot.id),
            &[("created_via", "hibernate")],
        );
        Ok(snapshot)
    }

    async fn resume_sandbox(&self, caller: &Caller, id: &str, context: &RequestContext) -> Result<SandboxHandle> {
        self.call(format!("resume_sandbox {} {id} {:?}", letter(caller), context.idempotency_key));
        let mut life = self.life.lock().unwrap();
        life.trip()?;
        let own = letter(caller) == "a";
        let paused = life.sandboxes.iter().find(|(sandbox, snapshot)| {
            own && snapshot.as_ref().is_some_and(|snapshot| *sandbox == id || snapshot == id)
        });
        let paused = paused.and_then(|(sandbox, snapshot)| Some((sandbox.clone(), snapshot.clone()?)));
        if let Some((source, snapshot)) = paused {
            life.end(&source);
            let made = life.make();
            self.events.resumed(&made.id, &source, &snapshot);
            return Ok(made);
        }
        let kept = life.snapshots.iter().find(|snapshot| own && snapshot.id == id).cloned();
        let kept =
            kept.ok_or_else(|| Error::new(ErrorResponseCode::SnapshotNotFound, format!("There is no `{id}`.")))?;
        let made = life.make();
        self.events.resumed(&made.id, &kept.sandbox_id, &kept.id);
        Ok(made)
    }

    async fn fork_sandbox(&self, caller: &Caller, id: &str, context: &RequestContext) -> Result<SandboxHandle> {
        self.call(format!("fork_sandbox {} {id} {:?}", letter(caller), context.idempotency_key));
        let mut life = self.life.lock().unwrap();
        life.trip()?;
        life.running(caller, id)?;
        Ok(life.make())
    }

    async fn create_snapshot(
        &self,
        caller: &Caller,
        id: &str,
        request: CreateSnapshotRequest,
        context: &RequestContext,
    ) -> Result<SnapshotInfo> {
        self.call(format!("create_snapshot {} {id} {:?}", letter(caller), context.idempotency_key));
        let mut life = self.life.lock().unwrap();
        life.trip()?;
        life.running(caller, id)?;
        let snapshot = life.keep(id, request.metadata);
        let via = [("created_via", "snapshot")];
        self.events.record(LifecycleOperation::SnapshotCreated, id, Some(&snapshot.id), &via);
        Ok(snapshot)
    }

    async fn set_timeout(&self, caller: &Caller, id: &str, request: SetTimeoutRequest) -> Result<SetTimeoutResponse> {
        self.life.lock().unwrap().running(caller, id)?;
        let SetTimeoutRequest { timeout_ms, timeout_action } = request;
        if timeout_ms == 0 {
            return Err(Error::invalid("`timeout_ms` must be at least 1."));
        }
        self.events.record(LifecycleOperation::TimeoutUpdated, id, None, &[]);
        Ok(SetTimeoutResponse {
            timeout_ms,
            timeout_action: timeout_action.unwrap_or(SandboxTimeoutAction::Destroy),
            timeout_at: Some("2025-01-31T10:00:00Z".parse().unwrap()),
            remaining_ms: Some(timeout_ms),
        })
    }

    async fn update_egress(
        &self,
        caller: &Caller,
        id: &str,
        request: UpdateEgressRequest,
    ) -> Result<UpdateEgressResponse> {
        let mut life = self.life.lock().unwrap();
        life.trip()?;
        life.running(caller, id)?;
        Ok(UpdateEgressResponse { sandbox_id: id.to_owned(), egress: request.egress })
    }

    async fn sandbox_metrics(&self, caller: &Caller, id: &str) -> Result<Vec<SandboxMetrics>> {
        self.life.lock().unwrap().running(caller, id)?;
        Ok(vec![SandboxMetrics {
            timestamp: "2025-01-31T10:00:00Z".parse().unwrap(),
            cpu_percent: 12.5,
            cpu_count: 2,
            mem_used_bytes: 1,
            mem_total_bytes: 2,
            disk_used_bytes: 3,
            disk_total_bytes: 4,
            network_rx_bytes: 5,
            network_tx_bytes: 6,
        }])
    }

    async fn list_snapshots(&self, caller: &Caller, query: SnapshotQuery) -> Result<Vec<SnapshotInfo>> {
        let life = self.life.lock().unwrap();
        let fits = |snapshot: &&SnapshotInfo| {
            letter(caller) == "a"
                && query.sandbox_id.as_ref().is_none_or(|sandbox| *sandbox == snapshot.sandbox_id)
                && query.metadata.iter().all(|(name, value)| {
                    snapshot.metadata.as_ref().and_then(|metadata| metadata.get(name)) == Some(value)
                })
        };
        Ok(life.snapshots.iter().rev().filter(fits).cloned().collect())
    }

    async fn get_snapshot(&self, caller: &Caller, id: &str) -> Result<SnapshotInfo> {
        let all = self.list_snapshots(caller, SnapshotQuery::default()).await?;
        let found = all.into_iter().find(|snapshot| snapshot.id == id);
        found.ok_or_else(|| Error::new(ErrorResponseCode::SnapshotNotFound, format!("There is no `{id}`.")))
    }

    async fn promote_snapshot(
        &self,
        caller: &Caller,
        id: &str,
        request: PromoteSnapshotRequest,
        context: &RequestContext,
    ) -> Result<Warned<TemplateInfo>> {
        let PromoteSnapshotRequest { name, tag } = &request;
        self.call(format!("promote_snapshot {} {id} {name} {tag:?} {:?}", letter(caller), context.idempotency_key));
        self.life.lock().unwrap().trip()?;
        self.get_snapshot(caller, id).await?;
        if name == "taken" {
            return Err(Error::new(ErrorResponseCode::TransitionConflict, "`taken` is an alias."));
        }
        let value = TemplateInfo { name: name.clone(), ..super::answers::template() };
        Ok(Warned { value, warnings: vec!["memory is shared".to_owned()] })
    }

    async fn delete_snapshot(&self, caller: &Caller, id: &str) -> Result<()> {
        self.get_snapshot(caller, id).await?;
        let mut life = self.life.lock().unwrap();
        if life.sandboxes.values().flatten().any(|used| used == id) {
            let message = "A paused sandbox is stored in it: end the sandbox.";
            return Err(Error::new(ErrorResponseCode::SnapshotInUse, message));
        }
        life.snapshots.retain(|snapshot| snapshot.id != id);
        Ok(())
    }
}
