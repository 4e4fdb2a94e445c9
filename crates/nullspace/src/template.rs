//! `nullspace template …`: templates of a running service.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use comfy_table::Table;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use nullspace_api::{
    CommandReadinessProbe, CreateTemplateRequest, ErrorResponseCode, HttpReadinessProbe, TcpReadinessProbe,
    TemplateBuildConfig, TemplateBuildContext, TemplateBuildLogEntry, TemplateBuildLogKind, TemplateReadinessProbe,
    TemplateRuntimeConfig, TimeoutReadinessProbe,
};
use nullspace_client::Client;

use crate::context;
use crate::remote::{Remote, pair, shown};

/// What to do with templates.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build a template and follow the build's log.
    Build(Box<Build>),
    /// Follow the log of a build.
    Logs {
        /// Id of the build, `tb_…`.
        build: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Ask for a build to be cancelled.
    Cancel {
        /// Id of the build, `tb_…`.
        build: String,
        /// Reason, stored with the build.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// List templates.
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Wait until a template can be used.
    Wait {
        /// Reference of the template.
        reference: String,
        /// Seconds to wait at most.
        #[arg(long, default_value_t = 300)]
        timeout_secs: u64,
        #[command(flatten)]
        remote: Remote,
    },
    /// Delete a template. Sandboxes that run stay.
    Delete {
        /// Reference of the template.
        reference: String,
        #[command(flatten)]
        remote: Remote,
    },
}

/// A build.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// Name of the template; generated when left out.
    #[arg(long)]
    name: Option<String>,
    /// What to start from: an image (`ubuntu:22.04`) or a template (`nullspace/base:latest`).
    #[arg(long, conflicts_with_all = ["dockerfile", "context"])]
    from: Option<String>,
    /// Dockerfile to build. Default: `Dockerfile` in the folder of `--context`.
    #[arg(long)]
    dockerfile: Option<PathBuf>,
    /// Folder with the files that the Dockerfile copies. What its `.dockerignore` names is not sent. Default: no files.
    #[arg(long)]
    context: Option<PathBuf>,
    /// Stage of the Dockerfile to build. Default: the last.
    #[arg(long)]
    target: Option<String>,
    /// Argument of the Dockerfile, NAME=VALUE; may be repeated.
    #[arg(long = "build-arg", value_parser = pair)]
    build_args: Vec<(String, String)>,
    /// Tag to put on the result; may be repeated. Default: `default`.
    #[arg(long = "tag")]
    tags: Vec<String>,
    /// Command to start before the snapshot.
    #[arg(long)]
    start_cmd: Option<String>,
    /// Command to run in every sandbox when it is resumed, before anything else.
    #[arg(long)]
    resume_cmd: Option<String>,
    /// Readiness check: `tcp:PORT`, `http:PORT/PATH`, `command:LINE` or `wait:MS`.
    #[arg(long, value_parser = readiness)]
    ready: Option<TemplateReadinessProbe>,
    /// Variable for the start command and for sandboxes, NAME=VALUE; may be repeated.
    #[arg(long = "env", value_parser = pair)]
    envs: Vec<(String, String)>,
    /// Virtual CPUs.
    #[arg(long)]
    vcpus: Option<u32>,
    /// Memory, MiB.
    #[arg(long)]
    memory_mib: Option<u32>,
    /// Disk, MiB.
    #[arg(long)]
    disk_mb: Option<u32>,
    /// No network in the build machine.
    #[arg(long)]
    no_internet: bool,
    #[command(flatten)]
    remote: Remote,
}

fn readiness(text: &str) -> Result<TemplateReadinessProbe, String> {
    let (timeout_secs, interval_ms, startup_grace_secs) = (None, None, None);
    let port = |text: &str| text.parse::<u16>().map_err(|error| format!("port '{text}': {error}"));
    match text.split_once(':') {
        Some(("tcp", number)) => {
            let port = port(number)?;
            Ok(TemplateReadinessProbe::Tcp(TcpReadinessProbe { port, timeout_secs, interval_ms, startup_grace_secs }))
        }
        Some(("http", rest)) => {
            let (number, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let (port, path) = (port(number)?, if path.is_empty() { "/".to_owned() } else { path.to_owned() });
            let probe = HttpReadinessProbe { port, path, timeout_secs, interval_ms, startup_grace_secs };
            Ok(TemplateReadinessProbe::Http(probe))
        }
        Some(("command", line)) => {
            let command = line.to_owned();
            let probe = CommandReadinessProbe { command, timeout_secs, interval_ms, startup_grace_secs };
            Ok(TemplateReadinessProbe::Command(probe))
        }
        Some(("wait", ms)) => {
            let timeout_ms = ms.parse().map_err(|error| format!("'{ms}' ms: {error}"))?;
            Ok(TemplateReadinessProbe::Timeout(TimeoutReadinessProbe { timeout_ms }))
        }
        _ => Err("write tcp:PORT, http:PORT/PATH, command:LINE or wait:MS".to_owned()),
    }
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Build(build) => start(*build).await,
        Command::Logs { build, remote } => follow(&remote.client()?, &build).await,
        Command::Cancel { build, reason, remote } => {
            let snapshot = remote.client()?.cancel_build(&build, reason).await?;
            println!("{:?}", snapshot.build.status);
            Ok(ExitCode::SUCCESS)
        }
        Command::List { remote } => {
            let mut table = Table::new();
            table.load_style(comfy_table::presets::NOTHING).set_header(["REFERENCE", "TAGS", "START COMMAND", "ID"]);
            for template in remote.client()?.list_templates().await? {
                let start = template.runtime_defaults.and_then(|defaults| defaults.start_cmd).unwrap_or_default();
                let start = start.split_whitespace().collect::<Vec<_>>().join(" ");
                let start: String = start.chars().take(40).collect();
                table.add_row([template.canonical_ref, template.tags.join(","), start, template.id]);
            }
            println!("{table}");
            Ok(ExitCode::SUCCESS)
        }
        Command::Wait { reference, timeout_secs, remote } => wait(&remote.client()?, &reference, timeout_secs).await,
        Command::Delete { reference, remote } => {
            remote.client()?.delete_template(&reference).await?;
            println!("deleted {reference}");
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn start(build: Build) -> anyhow::Result<ExitCode> {
    let client = build.remote.client()?;
    let runtime = TemplateRuntimeConfig {
        default_envs: (!build.envs.is_empty()).then(|| build.envs.into_iter().collect()),
        readiness: build.ready,
        ..TemplateRuntimeConfig::default()
    };
    let config = TemplateBuildConfig {
        vcpus: build.vcpus,
        memory_mib: build.memory_mib,
        disk_mb: build.disk_mb,
        internet_access: build.no_internet.then_some(false),
    };
    let (dockerfile, dockerfile_path, build_context) =
        dockerfile(&client, build.dockerfile, build.context.as_deref()).await?;
    let request = CreateTemplateRequest {
        name: build.name,
        base_image: build.from,
        dockerfile,
        dockerfile_path,
        build_context,
        build_target: build.target,
        build_args: (!build.build_args.is_empty()).then(|| build.build_args.into_iter().collect()),
        tags: (!build.tags.is_empty()).then_some(build.tags),
        start_cmd: build.start_cmd,
        resume_cmd: build.resume_cmd,
        build_config: Some(config),
        runtime_config: Some(runtime),
        ..CreateTemplateRequest::default()
    };
    let accepted = client.start_build(&request).await.context("start the build")?;
    follow(&client, &accepted.build_id).await
}

/// Reads the Dockerfile, and uploads its context: its text, its path in the context, and the context.
async fn dockerfile(
    client: &Client,
    file: Option<PathBuf>,
    folder: Option<&Path>,
) -> anyhow::Result<(Option<String>, Option<String>, Option<TemplateBuildContext>)> {
    let Some(file) = file.or_else(|| folder.map(|folder| folder.join("Dockerfile"))) else {
        return Ok((None, None, None));
    };
    let text = std::fs::read_to_string(&file).with_context(|| format!("read the Dockerfile {}", file.display()))?;
    let Some(folder) = folder else { return Ok((Some(text), None, None)) };
    let whole = |path: &Path| path.canonicalize().with_context(|| format!("read {}", path.display()));
    let inside = whole(&file)?.strip_prefix(whole(folder)?).ok().and_then(Path::to_str).map(str::to_owned);
    // One of another folder is named as if it were here, for an ignore file beside it.
    let name = inside.or_else(|| Some(file.file_name()?.to_str()?.to_owned()));
    let name = name.with_context(|| format!("{}: its name is not UTF-8", file.display()))?;
    let context = context::upload(client, folder, &name).await?;
    Ok((Some(text), Some(name), Some(context)))
}

/// Shows a build's log until its end. In a terminal, a line below the log says for how long the build has been doing
/// what it does.
async fn follow(client: &Client, build: &str) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}").context("progress style")?);
    bar.enable_steady_tick(Duration::from_millis(120));
    let mut log = client.follow_build(build, 0);
    let mut last = None;
    while let Some(entry) = log.next().await {
        let entry = entry.context("follow the build's log")?;
        bar.suspend(|| println!("{}", line(&entry, began.elapsed())));
        bar.set_message(entry.phase.clone().unwrap_or_default());
        last = Some(entry);
    }
    bar.finish_and_clear();
    match last {
        Some(entry) if entry.kind == TemplateBuildLogKind::End => {
            println!("{build} is ready after {}", shown(began.elapsed()));
            Ok(ExitCode::SUCCESS)
        }
        Some(TemplateBuildLogEntry { error_detail: Some(detail), .. }) => {
            eprintln!("hint: {}", detail.suggested_action);
            Ok(ExitCode::FAILURE)
        }
        Some(_) => Ok(ExitCode::FAILURE),
        None => bail!("the log of {build} is empty"),
    }
}

fn line(entry: &TemplateBuildLogEntry, at: Duration) -> String {
    let phase = entry.phase.as_deref().unwrap_or("build");
    let mark = match entry.kind {
        TemplateBuildLogKind::Error => "ERROR ",
        TemplateBuildLogKind::Cancelled | TemplateBuildLogKind::Retry | TemplateBuildLogKind::Warning => "! ",
        _ => "",
    };
    format!("{:>6.2}s  {phase:<9} {mark}{}", at.as_secs_f64(), entry.message)
}

async fn wait(client: &Client, reference: &str, timeout_secs: u64) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    loop {
        let error = match client.get_template(reference).await {
            Ok(template) => {
                println!("{} is there ({}) after {}", template.canonical_ref, template.id, shown(began.elapsed()));
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => error,
        };
        let passing = error.response().is_some_and(|body| body.code == ErrorResponseCode::FeatureUnavailable);
        if !passing || began.elapsed() > Duration::from_secs(timeout_secs) {
            return Err(error).with_context(|| format!("wait for {reference}"));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_written_in_one_word() {
        assert!(matches!(readiness("tcp:8000"), Ok(TemplateReadinessProbe::Tcp(probe)) if probe.port == 8000));
        let Ok(TemplateReadinessProbe::Http(probe)) = readiness("http:80/a:b?c") else { panic!() };
        assert_eq!((probe.port, probe.path.as_str()), (80, "/a:b?c"));
        let Ok(TemplateReadinessProbe::Http(probe)) = readiness("http:80") else { panic!() };
        assert_eq!(probe.path, "/");
        let Ok(TemplateReadinessProbe::Command(probe)) = readiness("command:test -e /x:y") else { panic!() };
        assert_eq!(probe.command, "test -e /x:y");
        assert!(matches!(readiness("wait:50"), Ok(TemplateReadinessProbe::Timeout(probe)) if probe.timeout_ms == 50));
        for bad in ["", "tcp", "tcp:x", "tcp:70000", "http:/x", "wait:", "udp:1"] {
            assert!(readiness(bad).is_err(), "{bad}");
        }
    }
}
