//! Room for a sandbox on a full host: what idles longest is paused (`pause_when_full`).
//!
//! ```text
//!   start ──host full──> one at a time: of the tenant that holds most, the sandbox that idles longest ──pause──> admitted
//!                              └── nothing idles for long enough, or may be paused ──> `capacity_exceeded`
//! ```
//! A paused sandbox is as good as one that its owner paused. Its owner gets the event of the pause, with the reason `host_full`.
//! A sandbox in use, an ephemeral one, and one of a tenant that may have no more paused ones are left alone.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nullspace_api::ErrorResponseCode;
use nullspace_db::SandboxStatus;
use nullspace_host_interface::{AdmittedSandbox, Found, SandboxSpec};
use nullspace_types::{SandboxId, TenantId};

use super::pause::Cause;
use super::spec::Config;
use super::timeouts::for_tenant;
use crate::Inner;
use crate::error::Result;

/// Most sandboxes that are paused for one start.
const MOST: u32 = 4;
/// Most pauses that are tried for one of them.
const TRIES: usize = 4;
/// Longest wait of a start for others that make room.
const TURN: Duration = Duration::from_secs(20);

/// A sandbox that may be paused.
struct Idle {
    id: SandboxId,
    tenant: TenantId,
    since: Timestamp,
}

impl Inner {
    /// Has the host admit a sandbox. On a full host, pauses others for it if the operator wants that.
    pub(super) async fn admit(&self, spec: SandboxSpec) -> Result<Box<dyn AdmittedSandbox>> {
        if let Some(idle) = self.config.life.pause_when_full {
            for _ in 0..MOST {
                if !self.host.is_full_for(&spec) || !self.pause_one_for(&spec, idle).await {
                    break;
                }
            }
        }
        self.host.admit_sandbox(spec).await
    }

    /// Pauses one sandbox, unless there is room since. False: there is none to pause.
    async fn pause_one_for(&self, spec: &SandboxSpec, idle: Duration) -> bool {
        let Ok(_turn) = tokio::time::timeout(TURN, self.sandboxes.room.lock()).await else { return false };
        if !self.host.is_full_for(spec) {
            return true;
        }
        let (mut tried, mut refused) = (0, HashSet::new());
        for Idle { id, tenant, since } in self.idle(idle).await {
            if tried == TRIES {
                break;
            }
            // It may be used, or its tenant have enough paused ones, since the look.
            if refused.contains(&tenant) || self.host.idle_since(id) != Some(since) {
                continue;
            }
            tried += 1;
            match self.pause(&for_tenant(tenant), id, Cause::HostFull).await {
                Ok(_) => {
                    tracing::info!(sandbox_id = %id, for_sandbox = %spec.id, "an idle sandbox is paused: the host is full");
                    return true;
                }
                Err(error) => {
                    if error.code == ErrorResponseCode::QuotaExceeded {
                        refused.insert(tenant);
                    }
                    tracing::debug!(sandbox_id = %id, %error, "an idle sandbox is not paused for another");
                }
            }
        }
        false
    }

    /// The sandboxes that may be paused: those of the tenant with the most memory in use first, and of one tenant those that
    /// idle longest.
    async fn idle(&self, least: Duration) -> Vec<Idle> {
        let until = Timestamp::now().checked_sub(SignedDuration::try_from(least).unwrap_or(SignedDuration::MAX));
        let until = until.unwrap_or(Timestamp::MIN);
        let (mut held, mut idle) = (HashMap::<TenantId, u64>::new(), Vec::new());
        for id in self.host.sandboxes() {
            let Found::Running(_, tenant) = self.host.find_sandbox(id) else { continue };
            let Ok(row) = self.db.get_sandbox(&for_tenant(tenant), id).await else { continue };
            let Ok(config) = Config::stored(&row.config) else { continue };
            *held.entry(tenant).or_default() += u64::from(config.memory_mb);
            if row.status == SandboxStatus::Running
                && !config.ephemeral
                && let Some(since) = self.host.idle_since(id)
                && since <= until
            {
                idle.push(Idle { id, tenant, since });
            }
        }
        idle.sort_by_key(|idle| (Reverse(held.get(&idle.tenant).copied()), idle.since));
        idle
    }
}
