//! The readiness check as a value: what counts as ready, how long and how often it is tried.

use std::time::Duration;

use nullspace_api::{
    CommandReadinessProbe, HttpReadinessProbe, TcpReadinessProbe, TemplateReadinessProbe, TimeoutReadinessProbe,
};
use serde::{Deserialize, Serialize};

/// What counts as ready, with the contract's defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Readiness {
    /// A TCP connection to localhost opens.
    Tcp {
        /// Port in the guest.
        port: u16,
        /// How long and how often.
        #[serde(flatten)]
        timing: Timing,
    },
    /// `GET` on localhost answers 2xx or 3xx.
    Http {
        /// Port in the guest.
        port: u16,
        /// Absolute path.
        path: String,
        /// How long and how often.
        #[serde(flatten)]
        timing: Timing,
    },
    /// A command exits 0, run as the default user.
    Command {
        /// A line for `sh -c`; only shown when there is an `argv`.
        command: String,
        /// Program and arguments, for a check that needs no shell: the image may have none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        argv: Vec<String>,
        /// Seconds that one attempt may take; without it, all that is left.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempt_secs: Option<u64>,
        /// How long and how often.
        #[serde(flatten)]
        timing: Timing,
    },
    /// A wait of fixed length.
    Timeout {
        /// Milliseconds.
        timeout_ms: u64,
    },
}

/// How long and how often a probe is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Seconds until the build fails, the grace not counted.
    pub timeout_secs: u64,
    /// Milliseconds between two attempts.
    pub interval_ms: u64,
    /// Seconds that do not count.
    pub startup_grace_secs: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Timing { timeout_secs: 30, interval_ms: 500, startup_grace_secs: 2 }
    }
}

impl Timing {
    /// When the build fails for want of readiness, from the start command's start.
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
