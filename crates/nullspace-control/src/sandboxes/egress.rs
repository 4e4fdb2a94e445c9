//! The egress policy of a sandbox: a part of its settings, which the host enforces.
//!
//! ```text
//!   create ──> settings ──> row ──> every start: the host has the policy in force before the guest runs
//!   change ──> host: in force ──> row; when the row cannot be written, the host gets the one before back
//! ```
//! A change takes the sandbox's turn. So a pause or a snapshot has the settings of before the change or of after it, wholly.

use nullspace_api::{ErrorResponseCode, UpdateEgressRequest, UpdateEgressResponse};
use nullspace_db::DbError;
use nullspace_definition::egress::{check_egress, wire};
use nullspace_host_interface::invalid;
use nullspace_service::chain;
use nullspace_types::{Caller, EgressPolicy, SandboxId};
use serde_json::json;

use super::pause::not_ready;
use super::resume::TURN;
use super::spec::Config;
use crate::Inner;
use crate::error::{Error, Result, Stored};

impl Inner {
    /// Refuses settings whose egress policy would not hold on this host.
    pub(super) fn enforceable(&self, config: &Config) -> Result<()> {
        let holds = self.host.enforces_egress() || config.egress.is_open() || config.egress.denies_all();
        if holds || !config.internet_access { Ok(()) } else { Err(not_enforced()) }
    }

    /// Replaces a running sandbox's egress policy.
    pub(super) async fn update_egress(
        &self,
        caller: &Caller,
        id: SandboxId,
        request: UpdateEgressRequest,
    ) -> Result<UpdateEgressResponse> {
        let policy = check_egress(&request.egress).map_err(invalid)?;
        let _turn = self.sandboxes.transitions.begin_within(id, "given another egress policy", TURN).await?;
        let sandbox = self.running_of(caller, id).await?;
        let mut config = Config::stored(&sandbox.config)?;
        let before = std::mem::replace(&mut config.egress, policy.clone());
        let changed = if !config.internet_access {
            if !policy.denies_all() {
                return Err(Error::new(
                    ErrorResponseCode::TransitionConflict,
                    format!(
                        "sandbox {id} was created with internet_access false: it has no network whose policy could \
                         change; create one with internet access and the policy deny_all instead"
                    ),
                ));
            }
            false
        } else if self.host.enforces_egress() {
            self.enforce(id, &policy).await?;
            true
        } else if policy == before {
            false
        } else {
            return Err(not_enforced());
        };
        let stored = match self.db.set_sandbox_timeout(caller, id, &json!(config), sandbox.timeout_at).await {
            Err(DbError::Conflict { .. }) => Err(Error::sandbox_not_found(&id.to_string())),
            set => set.or_missing(|| Error::sandbox_not_found(&id.to_string())),
        };
        if let Err(error) = stored {
            if changed && let Err(failed) = self.enforce(id, &before).await {
                tracing::error!(sandbox_id = %id, error = %chain(&failed),
                    "an egress policy is in force that the database does not have: it holds until the sandbox is paused or ends");
            }
            return Err(error);
        }
        tracing::info!(sandbox_id = %id, mode = ?request.egress.mode, "egress policy of a sandbox changed");
        Ok(UpdateEgressResponse { sandbox_id: id.to_string(), egress: wire(&policy) })
    }

    async fn enforce(&self, id: SandboxId, policy: &EgressPolicy) -> Result<()> {
        match self.host.set_egress(id, policy).await? {
            true => Ok(()),
            // Its row says that it runs, a moment before its host does or after it has ended.
            false => Err(not_ready(id, "is not running; try again")),
        }
    }
}

fn not_enforced() -> Error {
    Error::not_implemented(
        "this deployment cannot enforce this egress policy, because its machines have no network namespaces: the operator runs \
         the service as root for that. At create, internet_access false or the policy deny_all work",
    )
}
