//! The start command: started once, its output copied to the log, and ready by one rule.
//!
//! ```text
//!   launch ── output ──> log
//!     └─ ready: its readiness check passed | it ended with 0 | it runs, and its machine has settled
//! ```

use std::time::{Duration, Instant};

use nullspace_api::TemplateFailurePhase as Phase;
use nullspace_definition::runtime::{Runtime, StartCommand};
use nullspace_guest::host::{Agent, AgentError, ExecSession};
use nullspace_guest::message::{Exec, Exit};
use nullspace_host_interface::{BuildFailure, reason};
use nullspace_vmm::Ended;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::log::BuildLog;
use super::output::{Lost, Output};
use super::readiness::{self, SETTLE, SETTLE_EMULATED, Waited};
use super::scope::Scope;
use super::{Attempt, Error};
use crate::failures;
use crate::machine::{self, Machine};

/// Runs the start command and waits until it is ready.
pub(crate) async fn start(attempt: &Attempt, machine: &Machine, runtime: &Runtime) -> Result<(), Error> {
    let Attempt { builder, job, log, scope, .. } = attempt;
    let definition = &job.definition;
    let began = Instant::now();
    let mut envs = runtime.envs.clone();
    envs.extend(definition.build_envs.clone());
    let dir = runtime.start.as_ref().and_then(|start| start.dir.clone());
    let exec = Exec {
        envs,
        cwd: Some(dir.unwrap_or_else(|| runtime.workdir.clone())),
        make_cwd: true,
        user: runtime.user.clone(),
        ..Exec::default()
    };
    let settle = if builder.machines.vmm.is_slow() { SETTLE_EMULATED } else { SETTLE };
    let up = async {
        let ended = match &runtime.start {
            None => None,
            Some(command) => Some(launch(&machine.agent, command, &exec, log, scope).await?),
        };
        wait_ready(&machine.agent, runtime, &exec, ended, settle, definition.machine.memory_mib).await
    };
    let outcome = tokio::select! {
        biased;
        outcome = up => outcome,
        ended = machine.vm.exited() => return Err(machine_ended(&ended).into()),
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(NotUp::Other(error)) => return Err(error),
        Err(NotUp::Agent(AgentError::Closed)) => {
            let failure = match machine::ended(machine.vm.as_ref()).await {
                Some(ended) => machine_ended(&ended),
                None => failures::agent(Phase::Readiness, &AgentError::Closed),
            };
            return Err(failure.into());
        }
        Err(NotUp::Agent(error)) => return Err(failures::agent(Phase::Readiness, &error).into()),
    };
    let ms = began.elapsed().as_millis();
    match outcome {
        Up::Nothing => Ok(()),
        Up::Settled => {
            let line = format!("Ready after {ms} ms: the start command still runs, and no readiness check is given");
            Ok(log.say("readiness", line).await?)
        }
        Up::Done => {
            let line = format!("Ready after {ms} ms: the start command ended with 0, and no readiness check is given");
            Ok(log.say("readiness", line).await?)
        }
        Up::Checked(Waited::Ready { attempts: 0 }) => {
            Ok(log.say("readiness", format!("Ready after {ms} ms: the readiness timeout has passed")).await?)
        }
        Up::Checked(Waited::Ready { attempts }) => {
            log.say("readiness", format!("Ready after {ms} ms ({attempts} probes)")).await?;
            Ok(())
        }
        Up::Checked(Waited::TimedOut { limit, last }) => {
            let message = format!("the readiness check did not pass within {} s: {last}", limit.as_secs());
            let advice = "Read the start command's output in this log; raise timeout_secs if it only needs longer.";
            let failure = BuildFailure::user(Phase::Readiness, reason::READINESS_TIMEOUT, message, advice);
            Err(failure.with("last_probe", last).into())
        }
    }
}

/// The reasons for which a start command is not up.
enum NotUp {
    /// The agent failed or is gone.
    Agent(AgentError),
    /// The command or the log failed.
    Other(Error),
}

impl<E: Into<Error>> From<E> for NotUp {
    fn from(error: E) -> Self {
        NotUp::Other(error.into())
    }
}

fn machine_ended(ended: &Ended) -> BuildFailure {
    failures::machine_ended(
        Phase::Readiness,
        ended,
        "the start command",
        "Check that start_cmd does not power the machine off, and give it more memory_mib.",
    )
}

/// How a start command ended; `None` while it runs.
type StartEnded = watch::Receiver<Option<Exit>>;

/// Starts the command as a service of the guest and sends its output to the log.
async fn launch(
    agent: &Agent,
    command: &StartCommand,
    exec: &Exec,
    log: &BuildLog,
    scope: &Scope,
) -> Result<StartEnded, NotUp> {
    log.say("startup", format!("Running start command: {}", command.shown)).await?;
    let exec = Exec { argv: command.argv.clone(), first: command.first, ..exec.clone() };
    let session = agent.run_service(exec).await.map_err(NotUp::Agent)?;
    let (ended_tx, ended) = watch::channel(None);
    scope.tasks.spawn(follow(session, log.clone(), ended_tx, scope.cancel.clone()));
    Ok(ended)
}

/// Copies a service's output into the log, line by line, until the service or the session ends.
async fn follow(
    mut session: ExecSession,
    log: BuildLog,
    ended: watch::Sender<Option<Exit>>,
    cancel: CancellationToken,
) {
    let mut output = Output::new("startup".into());
    let followed = tokio::select! {
        () = cancel.cancelled() => return,
        followed = output.follow(&mut session, &log) => followed,
    };
    match followed {
        Ok(Some(exit)) => {
            ended.send_replace(Some(exit));
        }
        // The agent is dropped before the snapshot: the usual end.
        Ok(None) | Err(Lost::Agent(_)) => {}
        Err(Lost::Record(error)) => tracing::warn!(%error, "output of the start command could not be logged"),
    }
}

/// The rule by which a template counts as ready.
enum Up {
    /// There is no start command, and no readiness check.
    Nothing,
    /// The start command has ended with 0.
    Done,
    /// The start command has run for the settling time.
    Settled,
    /// The readiness check's result.
    Checked(Waited),
}

/// Waits for readiness, or for a start command without one to settle.
async fn wait_ready(
    agent: &Agent,
    runtime: &Runtime,
    exec: &Exec,
    ended: Option<StartEnded>,
    settle: Duration,
    memory_mib: u32,
) -> Result<Up, NotUp> {
    let failed = async {
        let Some(mut ended) = ended.clone() else { return std::future::pending().await };
        let exit = ended.wait_for(|exit| exit.is_some_and(|exit| exit.code != 0)).await.map(|exit| *exit);
        match exit {
            Ok(exit) => exit.unwrap_or_default(),
            // It ended with 0, or its output cannot be followed any more.
            Err(_) => std::future::pending().await,
        }
    };
    let ready = async {
        match (&runtime.readiness, ended.clone()) {
            (Some(readiness), _) => readiness::wait(agent, readiness, exec).await.map(Up::Checked),
            (None, Some(mut ended)) => {
                let first = runtime.start.as_ref().is_some_and(|start| start.first);
                tokio::select! {
                    biased;
                    _ = ended.wait_for(Option::is_some) => Ok(Up::Done),
                    settled = readiness::settled(agent, settle, first) => settled.map(|()| Up::Settled),
                }
            }
            (None, None) => Ok(Up::Nothing),
        }
    };
    tokio::select! {
        biased;
        exit = failed => Err(exited(&exit, memory_mib).into()),
        waited = ready => {
            // Both may have become true at once.
            if let Some(exit) = ended.as_ref().and_then(|ended| *ended.borrow()).filter(|exit| exit.code != 0) {
                return Err(exited(&exit, memory_mib).into());
            }
            waited.map_err(NotUp::Agent)
        }
    }
}

fn exited(exit: &Exit, memory_mib: u32) -> BuildFailure {
    let how = match exit.signal {
        Some(signal) => format!("was ended by signal {signal}"),
        None => format!("exited with code {}", exit.code),
    };
    if exit.out_of_memory {
        let message =
            format!("the start command {how} before it was ready: the machine's {memory_mib} MiB of memory ran out");
        let advice = format!("Set build_config.memory_mib to more than {memory_mib}, or start less in the machine.");
        return BuildFailure::user(Phase::Readiness, reason::START_CMD_EXITED, message, advice)
            .with("exit_code", exit.code)
            .with("out_of_memory", true)
            .with("memory_mib", memory_mib);
    }
    let advice =
        "Read the start command's last output lines in this log; it must stay up, or exit 0 if it only prepares.";
    BuildFailure::user(
        Phase::Readiness,
        reason::START_CMD_EXITED,
        format!("the start command {how} before it was ready"),
        advice,
    )
    .with("exit_code", exit.code)
}
