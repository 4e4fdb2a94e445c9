//! A sandbox's size and settings, as the database stores them, and its sealed variables.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nullspace_api::{
    CreateSandboxRequest, ErrorResponseCode, LifecycleConfigOnTimeout, SandboxTimeoutAction, WarmPoolCheckoutResult,
};
use nullspace_db::Sandbox;
use nullspace_definition::egress::requested_egress;
use nullspace_host_interface::{SandboxSettings, TimeLimits, invalid};
use nullspace_types::{EgressPolicy, SandboxId};
use serde::{Deserialize, Serialize};

use super::ports::mask;
use crate::Inner;
use crate::catalog::wire::column;
use crate::error::{Error, Result, Stored, internal};

/// A sandbox's size and settings. Rows of older versions lack the later ones.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Config {
    pub(super) vcpus: u32,
    pub(super) memory_mb: u32,
    pub(super) disk_mb: u32,
    pub(super) timeout_ms: u64,
    pub(super) cwd: String,
    pub(super) internet_access: bool,
    #[serde(default)]
    pub(super) at_timeout: AtTimeout,
    /// Time without use after which it is treated as at its timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) inactivity_timeout_ms: Option<u64>,
    /// Time after which it is ended while it is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) auto_delete_after_ms: Option<u64>,
    /// Use resumes it while it is paused.
    #[serde(default)]
    pub(super) auto_resume: bool,
    /// It is never stored.
    #[serde(default)]
    pub(super) ephemeral: bool,
    /// Its ports can be reached without a token.
    #[serde(default = "public")]
    pub(super) public_ports: bool,
    /// What its guest may send to.
    #[serde(default, skip_serializing_if = "EgressPolicy::is_open")]
    pub(super) egress: EgressPolicy,
    /// The `Host` header that servers on its ports see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mask_request_host: Option<String>,
    /// The use of a warm pool by its create.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) warm_pool: Option<WarmPoolCheckoutResult>,
}

fn public() -> bool {
    true
}

/// Action at a timeout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AtTimeout {
    #[default]
    Destroy,
    Hibernate,
}

impl AtTimeout {
    pub(super) fn wire(self) -> SandboxTimeoutAction {
        match self {
            AtTimeout::Destroy => SandboxTimeoutAction::Destroy,
            AtTimeout::Hibernate => SandboxTimeoutAction::Hibernate,
        }
    }

    pub(super) fn of(action: SandboxTimeoutAction) -> AtTimeout {
        match action {
            SandboxTimeoutAction::Destroy => AtTimeout::Destroy,
            SandboxTimeoutAction::Hibernate => AtTimeout::Hibernate,
        }
    }

    /// The word of the API, for events.
    pub(super) fn word(self) -> &'static str {
        match self {
            AtTimeout::Destroy => "destroy",
            AtTimeout::Hibernate => "hibernate",
        }
    }

    /// The action that a create asks for. `timeout_action` and `lifecycle.on_timeout` are two names of one setting.
    fn asked(request: &CreateSandboxRequest) -> Result<Option<AtTimeout>> {
        let lifecycle = request.lifecycle.as_ref().and_then(|lifecycle| lifecycle.on_timeout);
        let lifecycle = lifecycle.map(|action| match action {
            LifecycleConfigOnTimeout::Destroy => AtTimeout::Destroy,
            LifecycleConfigOnTimeout::Pause => AtTimeout::Hibernate,
        });
        match (request.timeout_action.map(AtTimeout::of), lifecycle) {
            (Some(one), Some(other)) if one != other => {
                Err(Error::invalid("timeout_action and lifecycle.on_timeout contradict each other: give one of them"))
            }
            (one, other) => Ok(one.or(other)),
        }
    }
}

impl Config {
    /// The configuration of a stored sandbox or snapshot.
    pub(super) fn stored(config: &serde_json::Value) -> Result<Config> {
        column("sandboxes.config", config).stored()
    }

    /// Takes over the settings that a create gives, over those of a template or snapshot.
    pub(super) fn take(&mut self, request: &CreateSandboxRequest) -> Result<()> {
        if let Some(action) = AtTimeout::asked(request)? {
            self.at_timeout = action;
        }
        if let Some(ephemeral) = request.ephemeral {
            self.ephemeral = ephemeral;
        }
        if self.ephemeral && self.at_timeout == AtTimeout::Hibernate {
            return Err(Error::invalid("an ephemeral sandbox is never stored: it cannot hibernate at its timeout"));
        }
        if let Some(timeout) = request.timeout_ms {
            self.timeout_ms = timeout;
        }
        if let Some(resume) = request.auto_resume {
            self.auto_resume = resume;
        }
        if let Some(cwd) = &request.cwd {
            self.cwd.clone_from(cwd);
        }
        if let Some(network) = &request.network {
            self.public_ports = network.allow_public_traffic.unwrap_or(self.public_ports);
            if let Some(policy) = requested_egress(request).map_err(invalid)? {
                if !self.internet_access && !policy.denies_all() {
                    return Err(Error::invalid(
                        "the snapshot's sandbox had internet_access false: an egress policy that allows something is not possible",
                    ));
                }
                self.egress = policy;
            }
            if let Some(mask) = &network.mask_request_host {
                mask::check(mask).map_err(Error::invalid)?;
                self.mask_request_host = Some(mask.clone());
            }
        }
        self.inactivity_timeout_ms = request.inactivity_timeout_ms.or(self.inactivity_timeout_ms);
        self.auto_delete_after_ms = request.auto_delete_after_ms.or(self.auto_delete_after_ms);
        Ok(())
    }

    /// The time of a timeout that begins now.
    pub(super) fn timeout_at(&self, now: Timestamp) -> Timestamp {
        later(now, self.timeout_ms)
    }

    /// The time of the end of a sandbox that is paused now.
    pub(super) fn delete_at(&self, now: Timestamp) -> Option<Timestamp> {
        self.auto_delete_after_ms.map(|ms| later(now, ms))
    }

    /// The limits of a running sandbox.
    pub(super) fn limits(&self, deadline: Option<Timestamp>) -> TimeLimits {
        TimeLimits { deadline, idle: self.inactivity_timeout_ms.map(Duration::from_millis) }
    }

    /// The settings of a start.
    pub(super) fn settings(&self, envs: BTreeMap<String, String>) -> SandboxSettings {
        SandboxSettings {
            envs,
            cwd: self.cwd.clone(),
            internet_access: self.internet_access,
            egress: self.egress.clone(),
        }
    }
}

/// The time so many milliseconds after another; the end of all time when there is none.
pub(super) fn later(now: Timestamp, ms: u64) -> Timestamp {
    now.checked_add(SignedDuration::from_millis(ms.try_into().unwrap_or(i64::MAX))).unwrap_or(Timestamp::MAX)
}

/// Milliseconds until a time; 0 when it is over.
pub(super) fn until(at: Timestamp) -> u64 {
    u64::try_from(at.duration_since(Timestamp::now()).as_millis()).unwrap_or(0)
}

impl Inner {
    /// Seals a sandbox's variables for its row.
    pub(super) fn seal_envs(&self, id: SandboxId, envs: &BTreeMap<String, String>) -> Result<Option<Vec<u8>>> {
        if envs.is_empty() {
            return Ok(None);
        }
        let plain = serde_json::to_vec(envs).map_err(|error| internal("write a sandbox's variables", &error))?;
        self.config.seal.seal(&id.to_string(), &plain).map(Some)
    }

    /// Opens variables that were sealed for a sandbox.
    pub(super) fn open_envs(&self, owner: SandboxId, sealed: Option<&[u8]>) -> Result<BTreeMap<String, String>> {
        let Some(sealed) = sealed else { return Ok(BTreeMap::new()) };
        let plain = self.config.seal.open(&owner.to_string(), sealed).map_err(|why| {
            tracing::error!(sandbox_id = %owner, %why, "a sandbox's variables cannot be read");
            Error::new(
                ErrorResponseCode::FeatureUnavailable,
                format!(
                    "the variables of sandbox {owner} cannot be decrypted: the service's seal.key is not the one that \
                     encrypted them; it works again when the operator has put that key back"
                ),
            )
        })?;
        serde_json::from_slice(&plain).map_err(|error| internal("read a sandbox's variables", &error))
    }

    /// The variables of a stored sandbox.
    pub(super) fn envs_of(&self, sandbox: &Sandbox) -> Result<BTreeMap<String, String>> {
        self.open_envs(sandbox.id, sandbox.sealed_envs.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn before() -> Value {
        json!({"vcpus": 1, "memory_mb": 192, "disk_mb": 512, "timeout_ms": 1000, "cwd": "/", "internet_access": true})
    }

    #[test]
    fn rows_of_before_are_read_and_what_a_create_says_counts() {
        let mut config = Config::stored(&before()).unwrap();
        assert_eq!((config.at_timeout, config.auto_resume, config.ephemeral), (AtTimeout::Destroy, false, false));
        assert!(config.public_ports && config.mask_request_host.is_none());
        let request = serde_json::from_value(json!({
            "network": {"allow_public_traffic": false, "mask_request_host": "localhost:${PORT}"}, "timeout_ms": 7, "lifecycle": {"on_timeout": "pause"}, "auto_resume": true, "inactivity_timeout_ms": 5000,
            "auto_delete_after_ms": 6000, "cwd": "/srv",
        }));
        config.take(&request.unwrap()).unwrap();
        let stored = Config::stored(&json!(config)).unwrap();
        assert_eq!((stored.timeout_ms, stored.at_timeout, stored.auto_resume), (7, AtTimeout::Hibernate, true));
        assert_eq!((stored.public_ports, stored.mask_request_host.as_deref()), (false, Some("localhost:${PORT}")));
        assert_eq!((stored.cwd.as_str(), stored.inactivity_timeout_ms), ("/srv", Some(5000)));
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        assert_eq!(stored.delete_at(now), Timestamp::from_second(1_700_000_006).ok());
        assert_eq!(stored.limits(None).idle, Some(Duration::from_secs(5)));
        // What is left out stays.
        let mut kept = stored.clone();
        kept.take(&CreateSandboxRequest::default()).unwrap();
        assert_eq!(json!(kept), json!(stored));
    }

    #[test]
    fn contradictions_are_refused() {
        for request in [
            json!({"timeout_action": "destroy", "lifecycle": {"on_timeout": "pause"}}),
            json!({"timeout_action": "hibernate", "lifecycle": {"on_timeout": "destroy"}}),
            json!({"timeout_action": "hibernate", "ephemeral": true}),
            json!({"network": {"mask_request_host": "localhost\r\nX: 1"}}),
        ] {
            let request = serde_json::from_value(request).unwrap();
            let error = Config::stored(&before()).unwrap().take(&request).unwrap_err();
            assert_eq!(error.code, ErrorResponseCode::InvalidRequest);
        }
    }

    #[test]
    fn a_time_beyond_all_time_is_its_end() {
        assert_eq!(later(Timestamp::now(), u64::MAX), Timestamp::MAX);
        assert_eq!(until(Timestamp::MIN), 0);
    }
}
