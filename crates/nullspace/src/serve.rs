//! The whole service, wired.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nullspace_control::{Control, ControlConfig};
use nullspace_data::ArtifactStore;
use nullspace_db::{Database, QueueLimits, SqliteStore};
use nullspace_host::{HostConfig, LocalHost, TenantQuota};
use nullspace_host_interface::Capacity;
use nullspace_oci::registry::{DockerConfig, Registry, RegistryConfig};
use nullspace_server::{BufferLimits, ConnectionLimits, RequestRate, ServerConfig};
use nullspace_vmm::Vmm;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::survey::survey;
use crate::{buildkit, guest, vmm};

/// File name of the database in the data folder.
const DATABASE: &str = "nullspace.db";

pub(crate) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    // Before there is anything that an orderly end has to remove; the start is finished before a signal is obeyed.
    let signals = Signals::install()?;
    let files = open_files(&config)?;
    let database: Arc<dyn Database> = Arc::new(open_database(&config).await?);
    let machines = vmm::choose(&config).await?;
    let server_config = server_config(&config, machines.as_ref());
    let registry = registry(&config)?;
    let buildkits = buildkit::all(&config)?;
    for kit in &buildkits {
        tracing::info!("Dockerfiles are built by BuildKit at {}: their steps run as its containers", kit.endpoint());
    }

    raise_descriptor_limit(&config);
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listen on {} (another service? give --listen)", config.listen))?;
    let operators_listener = match config.admin_listen {
        None => None,
        Some(address) => {
            let bound = tokio::net::TcpListener::bind(address).await;
            Some(bound.with_context(|| format!("listen on {address} (admin_listen)"))?)
        }
    };
    let host = files.host(&hostname()).context("read whose data folder this is")?;
    belong_together(&files, database.as_ref()).await?;
    let machines = LocalHost::new(host_config(&config, &host)?, files, machines, registry, buildkits);
    let control = Control::new(control_config(&config, host), database, Arc::new(machines));
    control.start().await.context("start the service")?;

    let address = listener.local_addr().context("read the address listened on")?;
    tracing::info!("listening on http://{address}");
    let stop = CancellationToken::new();
    let routers = nullspace_server::routers(Arc::new(control.clone()), server_config);
    let limits = connection_limits(&config);
    let serving = nullspace_server::serve_with_limits(listener, routers.api, limits, stop.clone().cancelled_owned());
    let server = tokio::spawn(serving);
    let operators = match operators_listener {
        None => None,
        Some(listener) => {
            let address = listener.local_addr().context("read the address listened on")?;
            tracing::info!("operators' routes also on http://{address}");
            let (limits, stopped) = (operators_limits(), stop.clone().cancelled_owned());
            let serving = nullspace_server::serve_with_limits(listener, routers.operators, limits, stopped);
            Some(tokio::spawn(serving))
        }
    };

    signals.arrived().await;
    tracing::info!("stopping: running builds go back to the queue, sandboxes end");
    stop.cancel();
    control.stop().await;
    server.await.context("join the server")?.context("serve HTTP")?;
    if let Some(operators) = operators {
        operators.await.context("join the operators' server")?.context("serve operators")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// SIGTERM and SIGINT, kept from the moment of installing.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> anyhow::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).context("handle SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("handle SIGINT")?,
        })
    }

    /// Waits for one, also one that has come since the installing.
    async fn arrived(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Opens the database of the data folder, made and migrated if needed. None is made beside files that belonged to another.
pub(crate) async fn open_database(config: &Config) -> anyhow::Result<SqliteStore> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("make the data folder {}", config.data_dir.display()))?;
    let path = config.data_dir.join(DATABASE);
    // One that is empty was made by something that died at once, or is what a failed copy left.
    let is_there = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > 0);
    if !is_there {
        let stored = nullspace_data::stored_without_database(&config.data_dir).context("look at the data folder")?;
        if !stored.is_empty() {
            bail!(
                "the database {} is missing, and the files that it names are there: {}. Nothing was changed. Restore the \
                 database (or mount what holds it) and start again; or, to give those files up, move them away",
                path.display(),
                stored.join(", ")
            );
        }
    }
    SqliteStore::open(&path).await.with_context(|| format!("open the database {}", path.display()))
}

/// Opens the database of a data folder that a service has used; makes nothing.
pub(crate) async fn open_existing_database(config: &Config) -> anyhow::Result<SqliteStore> {
    let path = config.data_dir.join(DATABASE);
    // A database that is missing beside its files has an error of its own.
    let stored = nullspace_data::stored_without_database(&config.data_dir).context("look at the data folder")?;
    if !path.is_file() && stored.is_empty() {
        bail!("there is no data folder of a service at {}: give --data-dir", config.data_dir.display());
    }
    open_database(config).await
}

/// Opens the data folder, which no other process may have.
pub(crate) fn open_files(config: &Config) -> anyhow::Result<ArtifactStore> {
    let cache = config.rootfs_cache_mib.saturating_mul(1 << 20);
    ArtifactStore::open_with(&config.data_dir, cache).context("open the data folder")
}

fn server_config(config: &Config, machines: &dyn Vmm) -> ServerConfig {
    let per_second = config.requests_per_second;
    ServerConfig {
        // Five seconds of quiet may be spent at once.
        rate: RequestRate { per_second, burst: per_second.saturating_mul(5) },
        metrics_token: config.metrics_token.clone(),
        requests_at_once: config.connections_per_tenant,
        buffers: BufferLimits {
            per_tenant: mib(config.request_memory_mib_per_tenant),
            total: mib(config.request_memory_mib),
        },
        guests_on_loopback: machines.guests_reach_loopback(),
        ..ServerConfig::default()
    }
}

fn mib(mib: u32) -> usize {
    usize::try_from(mib).unwrap_or(usize::MAX).saturating_mul(1 << 20)
}

fn connection_limits(config: &Config) -> ConnectionLimits {
    ConnectionLimits {
        max_connections: config.max_connections,
        per_peer: config.connections_per_address,
        ..ConnectionLimits::default()
    }
}

/// Of the listener that only operators reach.
fn operators_limits() -> ConnectionLimits {
    let header_timeout = Duration::from_secs(10);
    ConnectionLimits { max_connections: 64, per_peer: 64, reserve: 8, header_timeout, ..ConnectionLimits::default() }
}

/// Descriptors that the service needs besides one for each connection: files, machines, registries.
const DESCRIPTORS: u64 = 4096;

/// A connection is a descriptor: as many as the settings allow must be possible, or accepting fails before they are reached.
fn raise_descriptor_limit(config: &Config) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let wanted = u64::try_from(config.max_connections).unwrap_or(u64::MAX).saturating_add(DESCRIPTORS);
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    limit.current = Some(raised);
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    } else if raised < wanted {
        tracing::warn!(
            limit = raised,
            wanted,
            "the limit of open files (ulimit -Hn) is lower than max_connections needs: raise it, or lower the setting"
        );
    }
}

/// Refuses a database and a data folder that do not belong together; nothing was changed then.
async fn belong_together(files: &ArtifactStore, database: &dyn Database) -> anyhow::Result<()> {
    let found = survey(files, database).await.context("compare database and data folder")?;
    if let Some(refusal) = found.refusal() {
        bail!("{refusal}");
    }
    if !found.is_clean() {
        let (lost, blobs) = (&found.lost, &found.lost_blobs);
        tracing::error!(
            ?lost,
            ?blobs,
            "files of the store are missing: what needs them fails until they are back, or until `nullspace store \
             accept-loss` gives them up"
        );
    }
    Ok(())
}

fn control_config(config: &Config, host: String) -> ControlConfig {
    ControlConfig {
        host,
        build_concurrency: config.build_concurrency,
        build_timeout: Duration::from_secs(config.build_timeout_secs),
        lease_ttl: Duration::from_secs(config.lease_secs),
        max_attempts: 3,
        queue: QueueLimits { per_tenant: config.builds_per_tenant, total: 10_000 },
        running_per_tenant: config.running_builds_per_tenant,
        untagged_retention: Duration::from_secs(config.untagged_retention_secs),
        blob_bytes_per_tenant: config.upload_mib_per_tenant.saturating_mul(1 << 20),
    }
}

fn host_config(config: &Config, name: &str) -> anyhow::Result<HostConfig> {
    Ok(HostConfig {
        name: name.to_owned(),
        step_timeout: Duration::from_secs(config.step_timeout_secs),
        extra_ca_pem: extra_ca(config)?,
        capacity: capacity(config)?,
        quota: TenantQuota {
            sandboxes: config.sandboxes_per_tenant,
            vcpus: config.vcpus_per_tenant,
            memory_mib: config.memory_mib_per_tenant,
        },
        disk_reserve: config.disk_reserve_mib.map(|mib| mib.saturating_mul(1 << 20)),
        base_tar: guest::base_tar(config),
    })
}

fn hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

fn capacity(config: &Config) -> anyhow::Result<Capacity> {
    let memory_mib = match config.memory_mib {
        Some(mib) => mib,
        None => rustix::system::sysinfo().totalram / (1 << 20) * 3 / 4,
    };
    let cpus = std::thread::available_parallelism().context("count processors")?.get() as u64;
    Ok(Capacity { memory_mib, vcpus: config.vcpus.unwrap_or(16 * cpus) })
}

fn extra_ca(config: &Config) -> anyhow::Result<Option<Vec<u8>>> {
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("read extra_ca_file {}", path.display()));
    config.extra_ca_file.as_ref().map(read).transpose()
}

fn registry(config: &Config) -> anyhow::Result<Registry> {
    let extra_ca_pem = extra_ca(config)?;
    let mut mirrors = BTreeMap::new();
    for (host, url) in &config.registry_mirrors {
        let url = url.parse().with_context(|| format!("registry_mirrors: '{url}' of {host} is not a URL"))?;
        mirrors.insert(host.clone(), vec![url]);
    }
    let url = |name: &str, text: &Option<String>| {
        text.as_ref().map(|text| text.parse().with_context(|| format!("{name}: '{text}' is not a URL"))).transpose()
    };
    let listed = config.private_registries.iter().map(|text| text.parse().context("private_registries"));
    let registry = RegistryConfig {
        mirrors,
        private_registries: listed.collect::<anyhow::Result<_>>()?,
        docker_config: config.docker_config.as_deref().map(docker_config).transpose()?,
        ecr_endpoint: url("ecr_endpoint", &config.ecr_endpoint)?,
        gcp_token_url: url("gcp_token_url", &config.gcp_token_url)?,
        extra_ca_pem,
        plain_http: config.plain_http_registries.iter().cloned().collect(),
        ..RegistryConfig::default()
    };
    Registry::new(registry).context("set up the registry client")
}

fn docker_config(path: &Path) -> anyhow::Result<DockerConfig> {
    let what = || format!("docker_config {}", path.display());
    let bytes = std::fs::read(path).with_context(what)?;
    let config = DockerConfig::parse(&bytes).with_context(what)?;
    if !config.unused().is_empty() {
        let registries = config.unused().join(", ");
        tracing::warn!(%registries, "docker_config has no plain login for these: credential helpers are not run");
    }
    Ok(config)
}
