//! The `nullspace` command: the service, its operator's tools, and a client of its API.
//!
//! ```text
//!   serve    config ─> data folder + VMM + registry ─> LocalHost ─┐
//!                      database ──────────────────> Control ──────┴─> HTTP   (serve.rs wires it, one screen)
//!   keys     writes a key's hash into the store
//!   store    says what the data folder holds, checks it, removes what is unused
//!   db       makes the tables of a PostgreSQL database, and moves the rows of the data folder to it
//!   doctor   says what this host lacks and what cures it
//!   template, sandbox, snapshot    talk to a running service over HTTP, as any client does
//! ```

mod buildkit;
mod config;
mod context;
mod database;
mod doctor;
mod growth;
mod guest;
mod identity;
mod keys;
mod object_identity;
mod objects;
mod ports;
mod remote;
mod sandbox;
mod sealing;
mod segments;
mod serve;
mod shell;
mod snapshot;
mod ssh;
mod store;
mod survey;
mod template;
mod vmm;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, LogFormat, VmmChoice};

/// Builds microVM templates and resumes sandboxes from them.
#[derive(Debug, Parser)]
#[command(name = "nullspace", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service.
    Serve(Serve),
    /// Make and list API keys (the service may be running).
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Inspect, verify and collect the stored data in the data folder and its object store.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Make the tables of a PostgreSQL database, and move a service to one (setting `database`).
    #[command(subcommand)]
    Db(DbCommand),
    /// Check this host: what works, what does not, and how to fix it.
    Doctor(Settings),
    /// Build, list and delete templates on a running service.
    #[command(subcommand)]
    Template(template::Command),
    /// Create and use sandboxes on a running service.
    #[command(subcommand)]
    Sandbox(sandbox::Command),
    /// List and delete snapshots of sandboxes on a running service.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Create a key for a tenant, and the tenant if it is new. The key is printed once; only its hash is stored.
    Create {
        /// The tenant's name.
        #[arg(long)]
        tenant: String,
        /// A note to tell keys apart.
        #[arg(long, default_value = "")]
        label: String,
        #[command(flatten)]
        settings: Settings,
    },
    /// List keys. Only their first characters are shown.
    List {
        #[command(flatten)]
        settings: Settings,
    },
    /// Revoke a key.
    Revoke {
        /// Id of the key, as `keys list` shows it.
        id: String,
        #[command(flatten)]
        settings: Settings,
    },
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Show what is stored and how much disk it uses (the service may be running).
    Stats {
        #[command(flatten)]
        settings: Settings,
    },
    /// Remove data that no template needs. A running service does this itself; stop it before this command.
    Gc {
        #[command(flatten)]
        settings: Settings,
    },
    /// List data that is lost, files of another database, and store ids that differ. With --yes, give lost data up (templates
    /// that need it become unusable), remove the other database's files, and make the ids one. Stop the service before this
    /// command.
    #[command(alias = "accept-loss")]
    Repair {
        /// Make the changes instead of only listing them.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Bring everything that only the object store has into the data folder, so that the service can do without it. Stop the service
    /// before this command.
    Fetch {
        #[command(flatten)]
        settings: Settings,
    },
    /// Read everything and report what is missing or damaged (the service may be running). Exits with 1 if anything is.
    Verify {
        #[command(flatten)]
        settings: Settings,
    },
}

#[derive(Debug, Subcommand)]
enum DbCommand {
    /// Make the tables of the PostgreSQL database, or migrate them to this version, as the service does when it starts.
    Migrate {
        #[command(flatten)]
        settings: Settings,
    },
    /// Copy all rows of the data folder's SQLite database to the PostgreSQL database, which must be empty, and rename the file. Stop
    /// the service before this command.
    Copy {
        #[command(flatten)]
        settings: Settings,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// Address of the HTTP API.
    #[arg(long)]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    settings: Settings,
}

/// Where settings come from; flags win over variables, variables over the file.
#[derive(Debug, Args)]
struct Settings {
    /// Settings file.
    #[arg(long, env = "NULLSPACE_CONFIG")]
    config: Option<PathBuf>,
    /// Database, artifacts and scratch space.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Which VMM runs the machines.
    #[arg(long, value_enum)]
    vmm: Option<VmmChoice>,
}

impl Settings {
    fn load(&self) -> anyhow::Result<Config> {
        // Standard error, not the log: whether and how it is written is a setting.
        for warning in config::unread(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()))? {
            eprintln!("nullspace: warning: {warning}");
        }
        let mut config = Config::load(self.config.as_deref(), |name| std::env::var(name).ok())?;
        if let Some(dir) = &self.data_dir {
            config.data_dir.clone_from(dir);
        }
        if let Some(vmm) = self.vmm {
            config.vmm = vmm;
        }
        Ok(config)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Two providers are in the dependency tree; without a choice rustls panics at its first use.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("nullspace: a TLS provider was installed before");
    }
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("nullspace: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    match command {
        Command::Serve(serve) => {
            let mut config = serve.settings.load()?;
            if let Some(listen) = serve.listen {
                config.listen = listen;
            }
            log(&config)?;
            runtime.block_on(serve::run(config))
        }
        Command::Keys(command) => runtime.block_on(async {
            match command {
                KeysCommand::Create { tenant, label, settings } => {
                    keys::create(&settings.load()?, &tenant, &label).await
                }
                KeysCommand::List { settings } => keys::list(&settings.load()?).await,
                KeysCommand::Revoke { id, settings } => keys::revoke(&settings.load()?, &id).await,
            }
        }),
        Command::Store(command) => runtime.block_on(async {
            match command {
                StoreCommand::Stats { settings } => store::stats(&settings.load()?).await,
                StoreCommand::Gc { settings } => store::gc(&settings.load()?).await,
                StoreCommand::Repair { yes, settings } => store::repair(&settings.load()?, yes).await,
                StoreCommand::Fetch { settings } => store::fetch(&settings.load()?).await,
                StoreCommand::Verify { settings } => store::verify(&settings.load()?).await,
            }
        }),
        Command::Db(command) => runtime.block_on(async {
            match command {
                DbCommand::Migrate { settings } => database::migrate(&settings.load()?).await,
                DbCommand::Copy { settings } => database::copy(&settings.load()?).await,
            }
        }),
        Command::Doctor(settings) => runtime.block_on(doctor::run(&settings.load()?)),
        Command::Template(command) => runtime.block_on(template::run(command)),
        Command::Sandbox(command) => runtime.block_on(sandbox::run(command)),
        Command::Snapshot(command) => runtime.block_on(snapshot::run(command)),
    }
}

/// Log lines go to standard error: standard output is for what a command answers.
fn log(config: &Config) -> anyhow::Result<()> {
    let filter =
        tracing_subscriber::EnvFilter::try_new(&config.log).with_context(|| format!("log '{}'", config.log))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
