//! `nullspace sandbox …`: sandboxes of a running service.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Subcommand};
use comfy_table::Table;
use nullspace_api::{
    CreateSandboxRequest, CreateSnapshotRequest, ExecRequest, JsonObject, SandboxHandle, SandboxTimeoutAction,
};

use crate::remote::{Remote, pair, shown};
use crate::shell::Shell;

/// What to do with sandboxes.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Resume a template's snapshot as a new sandbox; prints its id.
    Create {
        /// Reference of the template.
        #[arg(default_value = "base")]
        template: String,
        /// Variable for commands in the sandbox, NAME=VALUE; may be repeated.
        #[arg(long = "env", value_parser = pair)]
        envs: Vec<(String, String)>,
        /// Milliseconds until the sandbox is ended.
        #[arg(long)]
        timeout_ms: Option<u64>,
        /// No network.
        #[arg(long)]
        no_internet: bool,
        /// Print the time it took to standard error.
        #[arg(long)]
        timings: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Run a command in a sandbox; its exit code is this command's.
    Exec(Exec),
    /// Open a terminal in a sandbox, with a shell; its exit code is this command's. `~.` at the beginning of a line leaves it open.
    Shell(Shell),
    /// List sandboxes that have not ended.
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// List the processes in a sandbox.
    Processes {
        /// Id of the sandbox, `sb_…`.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// End a sandbox.
    Delete {
        /// Id of the sandbox, `sb_…`.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Pause a sandbox; prints the id of its snapshot.
    Pause {
        /// Id of the sandbox, `sb_…`.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Resume a paused sandbox, or make one from a snapshot; prints the new sandbox's id.
    Resume {
        /// Id of the snapshot, `snap_…`, or of the paused sandbox, `sb_…`.
        id: String,
        /// Print the time it took to standard error.
        #[arg(long)]
        timings: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Clone a running sandbox with its processes; prints the clone's id.
    Fork {
        /// Id of the sandbox, `sb_…`.
        id: String,
        /// Print the time it took to standard error.
        #[arg(long)]
        timings: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Take a snapshot from which any number of sandboxes can be made; prints its id.
    Snapshot {
        /// Id of the sandbox, `sb_…`.
        id: String,
        /// Note on the snapshot, NAME=VALUE; may be repeated.
        #[arg(long = "metadata", value_parser = pair)]
        metadata: Vec<(String, String)>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Set a sandbox's timeout, from now; prints when that is.
    Timeout {
        /// Id of the sandbox, `sb_…`.
        id: String,
        /// Milliseconds from now.
        timeout_ms: u64,
        /// Action at the timeout: destroy or pause. Default: as before.
        #[arg(long, value_parser = action)]
        action: Option<SandboxTimeoutAction>,
        #[command(flatten)]
        remote: Remote,
    },
}

fn action(text: &str) -> Result<SandboxTimeoutAction, String> {
    match text {
        "destroy" => Ok(SandboxTimeoutAction::Destroy),
        "pause" | "hibernate" => Ok(SandboxTimeoutAction::Hibernate),
        _ => Err("write destroy or pause".to_owned()),
    }
}

/// A command to run in a sandbox.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Id of the sandbox, `sb_…`.
    id: String,
    /// Program and arguments, after `--`.
    #[arg(required = true, last = true)]
    command: Vec<String>,
    /// User to run it as.
    #[arg(long)]
    user: Option<String>,
    /// Working directory.
    #[arg(long)]
    cwd: Option<String>,
    /// Seconds it may take.
    #[arg(long)]
    timeout_secs: Option<u64>,
    /// Print the time it took to standard error.
    #[arg(long)]
    timings: bool,
    #[command(flatten)]
    remote: Remote,
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create { template, envs, timeout_ms, no_internet, timings, remote } => {
            let request = CreateSandboxRequest {
                template: Some(template),
                envs: (!envs.is_empty()).then(|| envs.into_iter().collect()),
                timeout_ms,
                internet_access: no_internet.then_some(false),
                ..CreateSandboxRequest::default()
            };
            let client = remote.client()?;
            let began = Instant::now();
            let sandbox = client.create_sandbox(&request).await?;
            if timings {
                eprintln!("created in {}", shown(began.elapsed()));
            }
            for warning in &sandbox.warnings {
                eprintln!("warning: {warning}");
            }
            println!("{}", sandbox.id);
            Ok(ExitCode::SUCCESS)
        }
        Command::Exec(exec) => {
            let mut words = exec.command.into_iter();
            let request = ExecRequest {
                command: words.next().unwrap_or_default(),
                args: Some(words.collect()),
                user: exec.user,
                cwd: exec.cwd,
                timeout_secs: exec.timeout_secs,
                ..ExecRequest::default()
            };
            let client = exec.remote.client()?;
            let began = Instant::now();
            let done = client.exec(&exec.id, &request).await?;
            if exec.timings {
                eprintln!("answered in {}", shown(began.elapsed()));
            }
            std::io::stdout().write_all(done.stdout.as_bytes())?;
            std::io::stderr().write_all(done.stderr.as_bytes())?;
            Ok(ExitCode::from(u8::try_from(done.exit_code).unwrap_or(1)))
        }
        Command::Shell(shell) => crate::shell::run(shell).await,
        Command::List { remote } => {
            let mut table = Table::new();
            table.load_style(comfy_table::presets::NOTHING).set_header(["ID", "TEMPLATE", "STATUS", "ENDS"]);
            for sandbox in remote.client()?.list_sandboxes().await? {
                let ends = sandbox.timeout_at.map(|at| at.to_string()).unwrap_or_default();
                table.add_row([sandbox.id, sandbox.template, format!("{:?}", sandbox.status).to_lowercase(), ends]);
            }
            println!("{table}");
            Ok(ExitCode::SUCCESS)
        }
        Command::Processes { id, remote } => {
            for process in remote.client()?.list_processes(&id).await? {
                println!("{:>7}  {}", process.pid, process.command);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Delete { id, remote } => {
            remote.client()?.destroy_sandbox(&id).await?;
            println!("deleted {id}");
            Ok(ExitCode::SUCCESS)
        }
        Command::Pause { id, remote } => {
            println!("{}", remote.client()?.hibernate(&id).await?.id);
            Ok(ExitCode::SUCCESS)
        }
        Command::Resume { id, timings, remote } => {
            let client = remote.client()?;
            made("resumed", timings, client.resume(&id)).await
        }
        Command::Fork { id, timings, remote } => {
            let client = remote.client()?;
            made("forked", timings, client.fork(&id)).await
        }
        Command::Snapshot { id, metadata, remote } => {
            let metadata: JsonObject = metadata.into_iter().map(|(name, value)| (name, value.into())).collect();
            let request = CreateSnapshotRequest { metadata: (!metadata.is_empty()).then_some(metadata) };
            println!("{}", remote.client()?.create_snapshot(&id, &request).await?.id);
            Ok(ExitCode::SUCCESS)
        }
        Command::Timeout { id, timeout_ms, action, remote } => {
            let timeout = remote.client()?.set_timeout(&id, timeout_ms, action).await?;
            println!("{}", timeout.timeout_at.map(|at| at.to_string()).unwrap_or_default());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Waits for a new sandbox, and prints its id.
async fn made(
    what: &str,
    timings: bool,
    sandbox: impl Future<Output = nullspace_client::Result<SandboxHandle>>,
) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let sandbox = sandbox.await?;
    if timings {
        eprintln!("{what} in {}", shown(began.elapsed()));
    }
    println!("{}", sandbox.id);
    Ok(ExitCode::SUCCESS)
}
