//! Egress policies of sandboxes: the network that a machine starts with, and changes while it runs.

use nullspace_api::ErrorResponseCode;
use nullspace_host_interface::{SandboxSettings, internal};
use nullspace_service::{Error, Result};
use nullspace_types::EgressPolicy;
use nullspace_vmm::{Network, VmmError};

use super::live::Live;

/// Returns the network of a machine. `enforced`: policies hold on this host.
///
/// # Errors
/// `not_implemented` for a policy that would not hold here.
pub(super) fn network(settings: &SandboxSettings, enforced: bool) -> Result<Network> {
    if !settings.internet_access {
        return Ok(Network::Isolated);
    }
    match &settings.egress {
        policy if policy.is_open() => Ok(Network::Internet),
        policy if enforced || policy.denies_all() => Ok(Network::Narrowed(policy.clone())),
        _ => Err(Error::not_implemented(NOT_ENFORCED)),
    }
}

/// The answer to a policy that would not hold.
const NOT_ENFORCED: &str = "this deployment cannot enforce an egress policy, because its machines have no network namespaces: the \
     operator runs the service as root for that. Leave the policy out, or create the sandbox with internet_access false";

/// Replaces the policy of a running machine.
pub(super) async fn set(live: &Live, policy: &EgressPolicy) -> Result<()> {
    live.machine.vm.set_egress(policy).await.map_err(|error| match error {
        VmmError::Unavailable(why) => {
            tracing::warn!(sandbox_id = %live.id, why, "an egress policy cannot be changed");
            Error::not_implemented(NOT_ENFORCED)
        }
        VmmError::Exited(_) => Error::sandbox_not_found(&live.id.to_string()),
        error @ VmmError::Timeout { .. } => {
            tracing::warn!(sandbox_id = %live.id, %error, "an egress policy was not changed");
            let message = "the egress policy was not changed: the host is too busy; try again";
            Error::new(ErrorResponseCode::FeatureUnavailable, message)
        }
        error => internal("change an egress policy", &error),
    })
}
