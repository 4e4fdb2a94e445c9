//! Timeouts: set, reached, and what happens then.
//!
//! ```text
//!   running ──due──> looked at again ──┬── not due any more: new limits
//!                                      ├── destroy:   ended
//!                                      └── hibernate: paused ── failed: it runs on, and the pause is tried again,
//!                                                               for at most 10 minutes; then it ends, with the reason
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nullspace_api::{ErrorResponseCode, LifecycleActorKind, LifecycleOperation, SetTimeoutRequest, SetTimeoutResponse};
use nullspace_db::{DbError, Sandbox, SandboxStatus};
use nullspace_definition::sandbox::check_timeout;
use nullspace_host_interface::{Due, Found, invalid};
use nullspace_service::chain;
use nullspace_types::{Caller, SandboxId, SnapshotId, TenantId};
use serde_json::json;

use super::pause::Cause;
use super::resume::TURN;
use super::spec::{AtTimeout, Config, later};
use crate::Inner;
use crate::collect::Broken;
use crate::error::{Error, Result, Stored};
use crate::lifecycle::Event;

/// Time for which a pause at a timeout is tried.
const TRY_FOR: Duration = Duration::from_secs(600);
/// Time before the second try; doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The service itself, in the name of a tenant.
pub(super) fn for_tenant(tenant: TenantId) -> Caller {
    Caller { tenant, namespace: String::new(), key: None, read_only: false }
}

impl Inner {
    /// Sets a running sandbox's timeout, from now.
    pub(super) async fn set_timeout(
        &self,
        caller: &Caller,
        id: SandboxId,
        request: SetTimeoutRequest,
    ) -> Result<SetTimeoutResponse> {
        check_timeout(request.timeout_ms).map_err(invalid)?;
        // A pause must not begin between the look and the write.
        let _turn = self.sandboxes.transitions.begin_within(id, "given another timeout", TURN).await?;
        let sandbox = self.running_of(caller, id).await?;
        let mut config = Config::stored(&sandbox.config)?;
        config.timeout_ms = request.timeout_ms;
        if let Some(action) = request.timeout_action {
            config.at_timeout = AtTimeout::of(action);
        }
        if config.ephemeral && config.at_timeout == AtTimeout::Hibernate {
            return Err(Error::invalid("an ephemeral sandbox is never stored: it cannot hibernate at its timeout"));
        }
        let event = Event::requested(caller.tenant, LifecycleOperation::TimeoutUpdated)
            .sandbox(id)
            .reason("api")
            .detail("timeout_action", config.at_timeout.word())
            .detail("timeout_ms", config.timeout_ms);
        self.lifecycle.record(event.clone());
        let at = config.timeout_at(Timestamp::now());
        let set = match self.db.set_sandbox_timeout(caller, id, &json!(config), Some(at)).await {
            Err(DbError::Conflict { .. }) => Err(Error::sandbox_not_found(&id.to_string())),
            set => set.or_missing(|| Error::sandbox_not_found(&id.to_string())),
        };
        if let Err(error) = set {
            self.lifecycle.record(event.now_failed(&error));
            return Err(error);
        }
        // False: it has ended meanwhile.
        self.host.set_limits(id, config.limits(Some(at)));
        self.lifecycle.record(event.now_succeeded());
        Ok(SetTimeoutResponse {
            timeout_ms: config.timeout_ms,
            timeout_action: config.at_timeout.wire(),
            timeout_at: Some(at.into()),
            remaining_ms: Some(config.timeout_ms),
        })
    }

    /// Ends or pauses a sandbox that has reached a limit in time, if it still has.
    pub(super) async fn at_limit(self: Arc<Self>, id: SandboxId, due: Due) {
        let Found::Running(_, tenant) = self.host.find_sandbox(id) else { return };
        let caller = for_tenant(tenant);
        let cause = Cause::Timeout { idle: due == Due::Idle };
        let (began, mut wait, mut told) = (Instant::now(), FIRST_WAIT, false);
        loop {
            // The stop pauses or ends it.
            if self.shutdown.is_cancelled() {
                return;
            }
            match self.db.get_sandbox(&caller, id).await {
                Ok(sandbox) if sandbox.status != SandboxStatus::Running => return,
                Ok(sandbox) => {
                    let Ok(config) = Config::stored(&sandbox.config) else {
                        tracing::error!(sandbox_id = %id, "the settings of a sandbox at its timeout cannot be read: it ends");
                        self.destroy(tenant, id, LifecycleActorKind::System, cause.reason(), Some("its time was up"))
                            .await;
                        return;
                    };
                    if !self.is_due(&sandbox, &config, due) {
                        self.host.set_limits(id, config.limits(sandbox.timeout_at));
                        return;
                    }
                    if !std::mem::replace(&mut told, true) {
                        self.lifecycle.record(
                            Event::succeeded(tenant, LifecycleOperation::TimeoutExpired)
                                .by(LifecycleActorKind::System)
                                .sandbox(id)
                                .reason(cause.reason())
                                .detail("timeout_action", config.at_timeout.word()),
                        );
                        tracing::info!(sandbox_id = %id, reason = cause.reason(), "sandbox's time is up");
                    }
                    if self.act(tenant, &caller, id, &config, cause, began).await {
                        return;
                    }
                }
                Err(DbError::NotFound) => return,
                Err(error) => {
                    tracing::warn!(sandbox_id = %id, error = %chain(&error), "a sandbox at its timeout runs on for now");
                }
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Does what is to be done at a timeout. False: again later.
    async fn act(
        &self,
        tenant: TenantId,
        caller: &Caller,
        id: SandboxId,
        config: &Config,
        cause: Cause,
        began: Instant,
    ) -> bool {
        let why = match config.at_timeout {
            AtTimeout::Destroy => "its time was up".to_owned(),
            AtTimeout::Hibernate => match self.pause(caller, id, cause).await {
                Ok(_) => return true,
                Err(error) if error.code == ErrorResponseCode::SandboxNotFound => return true,
                Err(error) if began.elapsed() < TRY_FOR => {
                    tracing::warn!(sandbox_id = %id, %error, "a sandbox could not be paused at its timeout: it runs on");
                    return false;
                }
                Err(error) => {
                    tracing::error!(sandbox_id = %id, %error, "a sandbox could not be paused at its timeout: it ends");
                    format!("its time was up, and it could not be paused: {error}")
                }
            },
        };
        self.destroy(tenant, id, LifecycleActorKind::System, cause.reason(), Some(&why)).await;
        true
    }

    fn is_due(&self, sandbox: &Sandbox, config: &Config, due: Due) -> bool {
        let now = Timestamp::now();
        match due {
            Due::Deadline => sandbox.timeout_at.is_some_and(|at| at <= now),
            Due::Idle => config.inactivity_timeout_ms.is_some_and(|ms| {
                // Without a known use, the host's word is all there is.
                self.host
                    .last_active(sandbox.id)
                    .is_none_or(|at| later(at, ms) <= now + SignedDuration::from_millis(50))
            }),
        }
    }

    /// Ends paused sandboxes whose time is over. Evicted ones have reached their timeout: they end, or stay paused, as it says.
    pub(crate) async fn end_due(&self, now: Timestamp, limit: u32) -> std::result::Result<(), Broken> {
        for sandbox in self.db.due_sandboxes(&self.config.host, now, limit).await? {
            let (tenant, id) = (sandbox.tenant, sandbox.id);
            let evicted = self.evicted(&sandbox).await?;
            let config = Config::stored(&sandbox.config).ok();
            let action = config.as_ref().map_or(AtTimeout::Destroy, |config| config.at_timeout);
            let expired = Event::succeeded(tenant, LifecycleOperation::TimeoutExpired)
                .by(LifecycleActorKind::System)
                .sandbox(id)
                .reason("timeout")
                .detail("timeout_action", action.word());
            if let (Some(snapshot), AtTimeout::Hibernate) = (evicted, action) {
                // As if it had been paused at its timeout.
                let at = sandbox.timeout_at.unwrap_or(now);
                let settled = self.db.settle_eviction(snapshot, config.and_then(|config| config.delete_at(at))).await;
                match settled {
                    Err(DbError::Conflict { .. } | DbError::NotFound) => continue,
                    settled => settled?,
                };
                self.lifecycle.record(expired);
                continue;
            }
            let (reason, why) = match evicted {
                Some(_) => ("timeout", "its time was up"),
                None => ("auto_delete", "it was paused for as long as auto_delete_after_ms says"),
            };
            match self.db.end_due_sandbox(id, why, now).await {
                // It was resumed since it was listed, or has ended.
                Err(DbError::Conflict { .. } | DbError::NotFound) => continue,
                ended => ended?,
            };
            if evicted.is_some() {
                self.lifecycle.record(expired);
            }
            self.destroy(tenant, id, LifecycleActorKind::System, reason, Some(why)).await;
            tracing::info!(sandbox_id = %id, reason, "a paused sandbox is deleted: its time is over");
        }
        Ok(())
    }

    /// The snapshot of an evicted sandbox. `None` for one that is paused otherwise.
    async fn evicted(&self, sandbox: &Sandbox) -> std::result::Result<Option<SnapshotId>, Broken> {
        let Some(snapshot) = sandbox.snapshot else { return Ok(None) };
        match self.db.get_snapshot(&for_tenant(sandbox.tenant), snapshot).await {
            Ok(snapshot) => Ok(Some(snapshot.id).filter(|_| snapshot.evicted)),
            Err(DbError::NotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Records when running sandboxes were last used.
    pub(crate) async fn record_use(&self) -> std::result::Result<(), Broken> {
        let used: Vec<_> =
            self.host.sandboxes().into_iter().filter_map(|id| Some((id, self.host.last_active(id)?))).collect();
        if !used.is_empty() {
            self.db.touch_sandboxes(&used).await?;
        }
        Ok(())
    }
}
