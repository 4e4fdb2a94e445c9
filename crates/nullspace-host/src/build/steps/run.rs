//! Runs one unit at a time in the build's machine.
//!
//! ```text
//!   folders made ── the step's tasks: programs followed to their end, work on files, files copied in ── its processes ended
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use nullspace_api::{TemplateFailurePhase as Phase, TemplateStep};
use nullspace_definition::context::PlannedContext;
use nullspace_definition::steps::{self, Command, Effect, Task, Unit};
use nullspace_guest::file::FileOp;
use nullspace_guest::host::{Agent, AgentError};
use nullspace_guest::message::{Exec, Exit, Failure, FailureKind};
use nullspace_host_interface::{BuildFailure, Place, reason};
use nullspace_types::TenantId;
use nullspace_vmm::{Ended, Vm};

use super::copy;
use super::trust::Trust;
use crate::build::log::BuildLog;
use crate::build::output::{Lost, Output};
use crate::build::{Builder, Error};
use crate::{failures, machine};

/// Free bytes below which a failed step counts as failed by a full disk.
const NO_ROOM: u64 = 1 << 20;

/// Runs units in a machine.
pub(crate) struct Runner<'a> {
    pub(crate) builder: &'a Builder,
    pub(crate) tenant: TenantId,
    pub(crate) vm: &'a dyn Vm,
    pub(crate) agent: &'a Agent,
    pub(crate) log: &'a BuildLog,
    pub(crate) context: &'a PlannedContext,
    /// Variables of the build.
    pub(crate) envs: &'a BTreeMap<String, String>,
    pub(crate) trust: Trust<'a>,
    pub(crate) total: u32,
    pub(crate) disk_bytes: u64,
}

/// The reasons for which a unit is not done.
enum Undone {
    /// The agent failed or is gone.
    Agent(AgentError),
    Other(Error),
}

impl From<AgentError> for Undone {
    fn from(error: AgentError) -> Undone {
        Undone::Agent(error)
    }
}

impl From<Error> for Undone {
    fn from(error: Error) -> Undone {
        Undone::Other(error)
    }
}

impl From<BuildFailure> for Undone {
    fn from(failure: BuildFailure) -> Undone {
        Undone::Other(failure.into())
    }
}

impl From<Lost> for Undone {
    fn from(lost: Lost) -> Undone {
        match lost {
            Lost::Agent(error) => Undone::Agent(error),
            Lost::Record(error) => Undone::Other(error.into()),
        }
    }
}

/// A step's place in the log.
pub(crate) fn place(index: u32, total: u32) -> Place {
    Place { phase: "build_step", step: Some((index, total)) }
}

impl Runner<'_> {
    /// Runs a unit. Returns when all of its processes have ended.
    pub(crate) async fn run(&mut self, unit: &Unit<'_>) -> Result<(), Error> {
        let (vm, agent) = (self.vm, self.agent);
        let done = async {
            self.unit(unit).await?;
            Ok(agent.end_processes(false).await?)
        };
        let done: Result<(), Undone> = tokio::select! {
            biased;
            done = done => done,
            ended = vm.exited() => Err(machine_ended(&ended, unit).into()),
        };
        match done {
            Ok(()) => Ok(()),
            Err(Undone::Other(error)) => Err(error),
            Err(Undone::Agent(AgentError::Closed)) => {
                let failure = match machine::ended(vm).await {
                    Some(ended) => machine_ended(&ended, unit),
                    None => failures::agent(Phase::BuildStep, &AgentError::Closed),
                };
                Err(failure.at_step(unit.index).into())
            }
            Err(Undone::Agent(AgentError::Failed(failure))) => Err(self.failed(unit, failure).await.into()),
            Err(Undone::Agent(error)) => Err(failures::agent(Phase::BuildStep, &error).at_step(unit.index).into()),
        }
    }

    async fn unit(&mut self, unit: &Unit<'_>) -> Result<(), Undone> {
        for folder in &unit.folders {
            self.make_folder(&folder.path, folder.owner.as_deref()).await?;
        }
        let Some(Effect::Tasks(tasks)) = unit.step.map(steps::effect) else { return Ok(()) };
        for task in tasks {
            self.task(unit, task).await?;
        }
        Ok(())
    }

    async fn task(&mut self, unit: &Unit<'_>, task: Task<'_>) -> Result<(), Undone> {
        let (cwd, user) = (unit.at.workdir.as_str(), unit.at.user.clone());
        let agent = self.agent;
        let file = |op: FileOp| agent.file_done(user.clone(), cwd, op);
        match task {
            Task::Run { command, user: own } => self.exec(unit, &command, own.or(user.as_deref())).await?,
            Task::Copy(copy) => {
                let copied = copy::copy(&self.builder.files, self.tenant, agent, self.context, cwd, &copy).await;
                copied.map_err(|error| match error {
                    copy::Failed::Agent(error) => Undone::Agent(error),
                    copy::Failed::Build(failure) => failure.at_step(unit.index).into(),
                })?;
            }
            Task::MakeDir { path, mode } => {
                agent.file_entry(user.clone(), cwd, FileOp::MakeDir { path: path.to_owned() }).await?;
                if let Some(mode) = mode {
                    file(FileOp::SetMode { path: path.to_owned(), mode }).await?;
                }
            }
            Task::MakeSymlink { target, path } => {
                file(FileOp::MakeSymlink { target: target.to_owned(), path: path.to_owned() }).await?;
            }
            Task::Remove { path, recursive, force } => {
                file(FileOp::Unlink { path: path.to_owned(), recursive, force }).await?;
            }
            Task::Rename { from, to } => {
                file(FileOp::Move { from: from.to_owned(), to: to.to_owned() }).await?;
            }
            Task::Empty { path } => self.empty(path, user.as_deref()).await?,
        }
        Ok(())
    }

    async fn make_folder(&self, path: &str, owner: Option<&str>) -> Result<(), AgentError> {
        let op = FileOp::MakeDirFor { path: path.to_owned(), owner: owner.unwrap_or("0").to_owned() };
        self.agent.file_done(None, "/", op).await
    }

    /// Removes everything in a folder.
    async fn empty(&self, folder: &str, user: Option<&str>) -> Result<(), AgentError> {
        let user = user.map(str::to_owned);
        for entry in self.agent.list_files(user.clone(), "/", folder, 1).await? {
            let op = FileOp::Unlink { path: entry.path, recursive: true, force: true };
            self.agent.file_done(user.clone(), "/", op).await?;
        }
        Ok(())
    }

    async fn exec(&mut self, unit: &Unit<'_>, command: &Command, user: Option<&str>) -> Result<(), Undone> {
        // As Docker does for a container whose working directory its image lacks.
        self.make_folder(&unit.at.workdir, None).await?;
        let mut envs = self.envs.clone();
        command.add_envs(&mut envs);
        self.trust.prepare(self.agent, &mut envs).await?;
        let limit = self.builder.settings.step_timeout;
        let mut missing = None;
        for program in &command.programs {
            let argv = program.iter().map(|&word| word.to_owned()).chain(command.arguments.clone()).collect();
            let exec = Exec {
                argv,
                envs: envs.clone(),
                cwd: Some(unit.at.workdir.clone()),
                user: user.map(str::to_owned),
                timeout_ms: Some(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
                ..Exec::default()
            };
            let mut session = match self.agent.exec(exec).await {
                Ok(session) => session,
                Err(AgentError::Failed(failure)) if failure.kind == FailureKind::ProgramNotFound => {
                    missing.get_or_insert(failure);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let mut output = Output::new(place(unit.index, self.total));
            let exit = output.follow(&mut session, self.log).await?;
            return match exit {
                Some(exit) if exit.code == 0 && !exit.timed_out => Ok(()),
                Some(exit) => Err(self.exited(unit, &exit, limit, &output).await.into()),
                None => Err(AgentError::Closed.into()),
            };
        }
        let nothing = || Failure { kind: FailureKind::ProgramNotFound, message: "No program is named.".to_owned() };
        Err(AgentError::Failed(missing.unwrap_or_else(nothing)).into())
    }

    /// The failure of a program that did not exit with 0.
    async fn exited(&self, unit: &Unit<'_>, exit: &Exit, limit: Duration, output: &Output) -> BuildFailure {
        let (index, total, last) = (unit.index, self.total, output.last());
        let full = last.iter().any(|line| line.contains("No space left on device"));
        if full || self.disk_is_full().await {
            return self.disk_full(unit).with("exit_code", exit.code).with("last_output", last);
        }
        let failure = if exit.timed_out {
            BuildFailure::user(
                Phase::BuildStep,
                reason::BUILD_STEP_TIMEOUT,
                format!("step {index} of {total} took longer than this service allows ({} s)", limit.as_secs()),
                "Make the step shorter or split it, or ask the operator to raise step_timeout_secs.",
            )
            .with("limit_secs", limit.as_secs())
        } else {
            let how = match exit.signal {
                Some(signal) => format!("was ended by signal {signal}"),
                None => format!("exited with code {}", exit.code),
            };
            let advice = match exit.code {
                _ if exit.out_of_memory => "The machine's memory ran out: raise build_config.memory_mib.",
                137 => {
                    "Read the step's last output lines in this log; if it ran out of memory, raise build_config.memory_mib."
                }
                127 => "A program of the step was not found: read its last output lines in this log.",
                _ => "Read the step's last output lines in this log and correct the step.",
            };
            let memory = if exit.out_of_memory { ": the machine's memory ran out" } else { "" };
            let message = format!("step {index} of {total} {how}{memory}");
            let failure = BuildFailure::user(Phase::BuildStep, reason::BUILD_STEP_NONZERO_EXIT, message, advice);
            if exit.out_of_memory { failure.with("out_of_memory", true) } else { failure }
        };
        failure.with("exit_code", exit.code).with("last_output", last).at_step(index)
    }

    /// The failure of a task of the agent.
    async fn failed(&self, unit: &Unit<'_>, failure: Failure) -> BuildFailure {
        let (index, total) = (unit.index, self.total);
        let said = |what: &str| format!("step {index} of {total}: {what}");
        let wrong = |reason: &'static str, message: String, advice: &str| {
            BuildFailure::user(Phase::BuildStep, reason, message, advice).at_step(index)
        };
        match failure.kind {
            FailureKind::DiskFull => self.disk_full(unit),
            FailureKind::ProgramNotFound | FailureKind::NotExecutable => match unit.step {
                Some(TemplateStep::Run(_)) => wrong(
                    reason::SHELL_MISSING,
                    said("a run step needs a shell, and this image has no /bin/sh"),
                    "Use an image with a shell, or steps that need none: copy, make_dir, make_symlink, remove, rename.",
                ),
                Some(TemplateStep::AptInstall(_)) => wrong(
                    reason::PROGRAM_MISSING,
                    said(&format!("apt_install needs apt-get, which this image has not ({})", self.system().await)),
                    "Use an image of Debian or Ubuntu, or this image's own packages in a run step (Alpine: apk add).",
                ),
                _ => wrong(
                    reason::PROGRAM_MISSING,
                    said(&failure.message),
                    "Install the program in an earlier step, or use an image that has it.",
                ),
            },
            FailureKind::UnknownUser => wrong(
                reason::UNKNOWN_USER,
                said(&failure.message),
                "Add the user in an earlier step, or name one that the image has.",
            ),
            FailureKind::Internal | FailureKind::Limit => {
                tracing::error!(%failure, step = index, "the agent could not run a step");
                let message = said("the build machine could not run the step");
                BuildFailure::infrastructure(Phase::BuildStep, reason::MACHINE_FAILED, message).at_step(index)
            }
            _ => wrong(
                reason::BUILD_STEP_FAILED,
                said(&failure.message),
                "Check the step's paths and its user against what the image holds by then.",
            ),
        }
    }

    /// The name of the image's system.
    async fn system(&self) -> String {
        let unknown = "it does not say what it is".to_owned();
        let Ok(mut file) = self.agent.read_file(None, "/", "/etc/os-release").await else { return unknown };
        let mut text = Vec::new();
        while let Ok(Some(piece)) = file.next().await {
            text.extend_from_slice(&piece);
            if text.len() > 64 * 1024 {
                return unknown;
            }
        }
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        let name = line.map(|name| name.trim_matches('"').chars().take(100).collect::<String>());
        name.map_or(unknown, |name| format!("it is {}", name.escape_debug()))
    }

    async fn disk_is_full(&self) -> bool {
        matches!(self.agent.space("/").await, Ok((bytes, inodes)) if bytes < NO_ROOM || inodes == 0)
    }

    fn disk_full(&self, unit: &Unit<'_>) -> BuildFailure {
        let (index, total, mib) = (unit.index, self.total, self.disk_bytes >> 20);
        let message = format!("step {index} of {total} filled the disk of {mib} MiB");
        let advice = format!("Set build_config.disk_mb to more than {mib}, or leave less behind in the steps.");
        BuildFailure::user(Phase::BuildStep, reason::DISK_FULL, message, advice).with("disk_mb", mib).at_step(index)
    }
}

fn machine_ended(ended: &Ended, unit: &Unit<'_>) -> BuildFailure {
    let advice = "Check that the step does not power the machine off, and give it more memory_mib.";
    failures::machine_ended(Phase::BuildStep, ended, &format!("step {}", unit.index), advice).at_step(unit.index)
}
