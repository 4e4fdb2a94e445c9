//! Readiness: the condition under which a started service may be snapshotted.
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
//! Probes begin at once: a service that is ready after 50 ms costs 50 ms. `startup_grace_secs` does not count against
//! `timeout_secs`.

use std::time::Duration;

use nullspace_definition::readiness::Readiness;
use nullspace_guest::host::{Agent, AgentError};
use nullspace_guest::message::{Exec, Probe, ProbeCheck};
use tokio::time::Instant;

/// Without a readiness check, a start command that still runs after this counts as ready; see [`settled`].
pub(crate) const SETTLE: Duration = Duration::from_secs(2);
/// The same in a machine under software emulation, where programs are slower.
pub(crate) const SETTLE_EMULATED: Duration = Duration::from_secs(4);
/// Idle time after which a start command that is PID 1 of a namespace has settled. A command that is about to end (`node`
/// without a terminal) would end the first commands of each sandbox with it.
const IDLE: Duration = Duration::from_millis(500);
/// A start command has settled after this, even on a busy machine.
const SETTLE_MOST: Duration = Duration::from_secs(30);

/// The result of waiting for readiness.
#[derive(Debug)]
pub(crate) enum Waited {
    /// The service is ready.
    Ready {
        /// Attempts made.
        attempts: u32,
    },
    /// The time limit has passed.
    TimedOut {
        /// The whole limit.
        limit: Duration,
        /// The last attempt's answer.
        last: String,
    },
}

/// Least time for a connection, if so much is left. A guest under software emulation on a loaded host needs it.
const CONNECTION: Duration = Duration::from_secs(10);

/// Time limit of one attempt within the time that is left. A command has its own limit, or all of the rest. A connection gets
/// a part, so that there is time for another attempt.
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

/// Waits until a start command that still runs counts as ready: after `settle`. If it is PID 1 of a namespace (`first`), its
/// machine must also be idle, or [`SETTLE_MOST`] must have passed.
pub(crate) async fn settled(agent: &Agent, settle: Duration, first: bool) -> Result<(), AgentError> {
    if !first {
        tokio::time::sleep(settle).await;
        return Ok(());
    }
    let until = Instant::now() + SETTLE_MOST;
    tokio::time::sleep(settle.saturating_sub(IDLE)).await;
    let timeout_ms = u64::try_from(IDLE.as_millis()).unwrap_or(u64::MAX);
    loop {
        let (idle, found) = agent.probe(Probe { check: ProbeCheck::Idle, timeout_ms }).await?;
        if idle || Instant::now() >= until {
            tracing::debug!(found, "start command has settled");
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use nullspace_definition::readiness::Timing;

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
