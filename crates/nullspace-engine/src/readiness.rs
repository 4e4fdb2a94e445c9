//! Readiness: when the service that the start command began may be snapshotted.
//!
//! ```text
//!   start command running ──probe──> ready
//!        │   ▲      │ not yet: wait interval_ms, probe again
//!        │   └──────┘
//!        ├── exits non-zero ─────────> failed at once (start_cmd_exited)
//!        ├── exits 0 ────────────────> simply done; probes go on
//!        └── startup_grace_secs + timeout_secs are over ──> failed (readiness_timeout)
//! ```
//!
//! Probes begin at once, so that a service which is ready in 50 ms costs 50 ms; `startup_grace_secs` is time that does
//! not count against `timeout_secs`.

use std::time::Duration;

use nullspace_guest::host::{Agent, AgentError};
use nullspace_guest::message::{Exec, Probe, ProbeCheck};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// What counts as ready, with the contract's defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Readiness {
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
pub(crate) struct Timing {
    /// Seconds until the build fails, the grace not counted.
    pub(crate) timeout_secs: u64,
    /// Milliseconds between two attempts.
    pub(crate) interval_ms: u64,
    /// Seconds that do not count.
    pub(crate) startup_grace_secs: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Timing { timeout_secs: 30, interval_ms: 500, startup_grace_secs: 2 }
    }
}

impl Timing {
    /// When the build fails for want of readiness, from the start command's start.
    pub(crate) fn limit(&self) -> Duration {
        Duration::from_secs(self.timeout_secs.saturating_add(self.startup_grace_secs))
    }
}

/// How waiting for readiness ended.
#[derive(Debug)]
pub(crate) enum Waited {
    /// It is ready after so many attempts.
    Ready {
        /// Attempts made.
        attempts: u32,
    },
    /// The time is over; what the last attempt saw.
    TimedOut {
        /// The whole limit.
        limit: Duration,
        /// The last attempt's answer.
        last: String,
    },
}

/// A connection may always take so long, if there is as much left; a guest under software emulation on a loaded host needs
/// some of it.
const CONNECTION: Duration = Duration::from_secs(10);

/// How long one attempt may take of what is left: a command what its own limit says, or all of it; a connection so much that
/// one which hangs leaves time for another.
fn attempt(readiness: &Readiness, left: Duration) -> Duration {
    match readiness {
        Readiness::Command { attempt_secs: Some(secs), .. } => Duration::from_secs(*secs).min(left),
        Readiness::Command { .. } | Readiness::Timeout { .. } => left,
        Readiness::Tcp { .. } | Readiness::Http { .. } => (left / 4 * 3).max(CONNECTION).min(left),
    }
}

/// Probes until ready or over time. Cancel by dropping.
pub(crate) async fn wait(agent: &Agent, readiness: &Readiness, exec: &Exec) -> Result<Waited, AgentError> {
    let (check, timing) = match readiness {
        Readiness::Timeout { timeout_ms } => {
            tokio::time::sleep(Duration::from_millis(*timeout_ms)).await;
            return Ok(Waited::Ready { attempts: 0 });
        }
        Readiness::Tcp { port, timing } => (ProbeCheck::Tcp { port: *port }, timing),
        Readiness::Http { port, path, timing } => (ProbeCheck::Http { port: *port, path: path.clone() }, timing),
        Readiness::Command { command, argv, timing, .. } => {
            let argv = match argv.is_empty() {
                true => ["sh", "-c", command].map(str::to_owned).to_vec(),
                false => argv.clone(),
            };
            (ProbeCheck::Command(Exec { argv, ..exec.clone() }), timing)
        }
    };
    let deadline = Instant::now() + timing.limit();
    let mut last = String::from("no attempt was answered");
    let mut attempts = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Waited::TimedOut { limit: timing.limit(), last });
        }
        let timeout_ms = u64::try_from(attempt(readiness, left).as_millis()).unwrap_or(u64::MAX).max(1);
        attempts += 1;
        let (ready, detail) = agent.probe(Probe { check: check.clone(), timeout_ms }).await?;
        if ready {
            return Ok(Waited::Ready { attempts });
        }
        last = detail;
        // Early attempts come quicker than the interval: a service that is up after 60 ms should not cost 500.
        let pause = Duration::from_millis(timing.interval_ms).min(Duration::from_millis(25 << attempts.min(6)));
        tokio::time::sleep(pause.min(deadline.saturating_duration_since(Instant::now()))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_may_take_what_its_own_timeout_says_or_what_is_left() {
        let command = |attempt_secs| Readiness::Command {
            command: "check".into(),
            argv: Vec::new(),
            attempt_secs,
            timing: Timing::default(),
        };
        let http = Readiness::Http { port: 80, path: "/".into(), timing: Timing::default() };
        let tcp = Readiness::Tcp { port: 80, timing: Timing::default() };
        // seconds left, seconds that an attempt gets
        for (readiness, left, expected) in [
            (&command(None), 42, 42),
            (&command(Some(30)), 42, 30),
            (&command(Some(30)), 12, 12),
            (&http, 40, 30),
            (&http, 12, 10),
            (&http, 5, 5),
            (&tcp, 40, 30),
        ] {
            let given = attempt(readiness, Duration::from_secs(left));
            assert_eq!(given, Duration::from_secs(expected), "{readiness:?}, {left} s left");
        }
    }
}
