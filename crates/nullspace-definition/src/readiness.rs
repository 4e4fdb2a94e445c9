//! The readiness check as a value: the condition, its time limit and its interval.

use std::time::Duration;

use nullspace_api::{
    CommandReadinessProbe, HttpReadinessProbe, TcpReadinessProbe, TemplateReadinessProbe, TimeoutReadinessProbe,
};
use serde::{Deserialize, Serialize};

/// The condition of readiness, with the contract's defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Readiness {
    /// A TCP connection to localhost opens.
    Tcp {
        /// Port in the guest.
        port: u16,
        /// Time limit and interval.
        #[serde(flatten)]
        timing: Timing,
    },
    /// `GET` on localhost answers 2xx or 3xx.
    Http {
        /// Port in the guest.
        port: u16,
        /// Absolute path.
        path: String,
        /// Time limit and interval.
        #[serde(flatten)]
        timing: Timing,
    },
    /// A command exits 0, run as the default user.
    Command {
        /// A line for `sh -c`. If there is an `argv`, it is only shown.
        command: String,
        /// Program and arguments of a check without a shell, for images that may have none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        argv: Vec<String>,
        /// Time limit of one attempt, seconds; `None`: the rest of the whole limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempt_secs: Option<u64>,
        /// Time limit and interval.
        #[serde(flatten)]
        timing: Timing,
    },
    /// A wait of fixed length.
    Timeout {
        /// Milliseconds.
        timeout_ms: u64,
    },
}

/// Time limit and interval of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Seconds until the build fails, without the grace period.
    pub timeout_secs: u64,
    /// Milliseconds between two attempts.
    pub interval_ms: u64,
    /// Grace period, seconds.
    pub startup_grace_secs: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Timing { timeout_secs: 30, interval_ms: 500, startup_grace_secs: 2 }
    }
}

impl Timing {
    /// Time from the start of the start command until the build fails.
    pub fn limit(&self) -> Duration {
        Duration::from_secs(self.timeout_secs.saturating_add(self.startup_grace_secs))
    }
}

impl Readiness {
    /// The wire's form.
    pub fn shown(&self) -> TemplateReadinessProbe {
        let parts =
            |timing: &Timing| (Some(timing.timeout_secs), Some(timing.interval_ms), Some(timing.startup_grace_secs));
        match self {
            Readiness::Tcp { port, timing } => {
                let (timeout_secs, interval_ms, startup_grace_secs) = parts(timing);
                TemplateReadinessProbe::Tcp(TcpReadinessProbe {
                    port: *port,
                    timeout_secs,
                    interval_ms,
                    startup_grace_secs,
                })
            }
            Readiness::Http { port, path, timing } => {
                let (timeout_secs, interval_ms, startup_grace_secs) = parts(timing);
                let (port, path) = (*port, path.clone());
                let probe = HttpReadinessProbe { port, path, timeout_secs, interval_ms, startup_grace_secs };
                TemplateReadinessProbe::Http(probe)
            }
            Readiness::Command { command, timing, .. } => {
                let (timeout_secs, interval_ms, startup_grace_secs) = parts(timing);
                let command = command.clone();
                let probe = CommandReadinessProbe { command, timeout_secs, interval_ms, startup_grace_secs };
                TemplateReadinessProbe::Command(probe)
            }
            Readiness::Timeout { timeout_ms } => {
                TemplateReadinessProbe::Timeout(TimeoutReadinessProbe { timeout_ms: *timeout_ms })
            }
        }
    }
}
