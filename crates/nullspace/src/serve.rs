//! The whole service, wired.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use nullspace_control::{Control, ControlConfig, LifeSettings, PreviewSettings, Retention, SealKey, WebhookSender};
use nullspace_data::{ArtifactStore, ObjectSettings, OpenSettings};
use nullspace_db::{Database, NamespaceKind, QueueLimits};
use nullspace_host::{BuilderConfig, HostConfig, LocalHost, TenantQuota};
use nullspace_host_interface::Capacity;
use nullspace_oci::registry::{DockerConfig, Registry, RegistryConfig};
use nullspace_server::{BufferLimits, ConnectionLimits, RequestRate, ServerConfig};
use nullspace_vmm::Vmm;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, PreviewScheme};
use crate::objects::{self, Use};
use crate::sealing::{self, Sealing};
use crate::segments::{self, StoredSegments};
use crate::survey::survey;
use crate::{buildkit, database, guest, identity, object_identity, ports, ssh, vmm};

/// Time that calls of the object store have to end after a signal, when the sandboxes are paused.
const STORE_ENDING: Duration = Duration::from_secs(15);

pub(crate) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    // Before there is anything that an orderly end has to remove; the start is finished before a signal is obeyed.
    let signals = Signals::install()?;
    let files = open_files(&config).await?;
    let segments = StoredSegments::new(files.logs());
    let (database, service_lock) = database::open_for_service(&config, segments).await?;
    let machines = vmm::choose(&config).await?;
    let server_config = server_config(&config, machines.as_ref());
    let guests_on_loopback = server_config.guests_on_loopback;
    let registry = registry(&config)?;
    let webhooks = webhooks(&config)?;
    let (buildkits, builders) = match buildkit::choose(&config)? {
        buildkit::Choice::Engines(engines) => (engines, None),
        buildkit::Choice::Machines(machines) => (Vec::new(), Some(machines)),
    };
    for kit in &buildkits {
        tracing::info!("Dockerfiles are built by BuildKit at {}: their steps run as its containers", kit.endpoint());
    }
    if builders.is_some() {
        tracing::info!("Dockerfiles are built in builder machines, one for each tenant");
    }
    if !buildkits.is_empty() && has_several_tenants(database.as_ref()).await? {
        tracing::warn!("tenants share that BuildKit: one can find images that another pulled (SECURITY.md)");
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
    let ssh_listener = ssh::bind(&config).await?;
    let sealing = belong_together(&files, database.as_ref()).await?;
    let host = files.host(&hostname()).context("read whose data folder this is")?;
    let (logs, store) = (files.logs(), files.clone());
    let seal = sealing::key(&files, &sealing)?;
    let machines = LocalHost::new(host_config(&config, &host, builders)?, files, machines, registry, buildkits);
    let address = listener.local_addr().context("read the address listened on")?;
    let settings = control_config(&config, host, seal, webhooks, previews(&config, address));
    let control = Control::new(settings, Arc::clone(&database), Arc::new(machines));
    let ssh = ssh_listener.map(|listener| ssh::prepare(&config, listener, &store, &control)).transpose()?;
    control.start().await.context("start the service")?;

    tracing::info!("listening on http://{address}");
    let stop = CancellationToken::new();
    let uploading = tokio::spawn(objects::upload_missing(store.clone(), stop.clone()));
    let sweeping = tokio::spawn(segments::sweep_daily(logs, database, stop.clone()));
    let routers = nullspace_server::routers(Arc::new(control.clone()), server_config);
    let limits = connection_limits(&config);
    let edge = Some(ports::edge(&config, &control, address, guests_on_loopback, &stop)?);
    let stopped = stop.clone().cancelled_owned();
    let serving = nullspace_server::serve_with_edge(listener, routers.api, edge, limits, stopped);
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

    let ssh = ssh.map(|ssh| tokio::spawn(ssh.serve(control.clone(), stop.clone())));

    let code = tokio::select! {
        () = signals.arrived() => ExitCode::SUCCESS,
        error = database::lost(service_lock) => {
            tracing::error!(error = %format!("{error:#}"), "this service ends");
            ExitCode::FAILURE
        }
    };
    tracing::info!("stopping: running builds go back to the queue, sandboxes are paused until the next start");
    stop.cancel();
    control.pause_sandboxes().await;
    let ending = tokio::spawn({
        let store = store.clone();
        async move {
            tokio::time::sleep(STORE_ENDING).await;
            store.stop_objects();
        }
    });
    control.stop().await;
    uploading.await.context("join the upload to the object store")?;
    ending.abort();
    store.stop_objects();
    sweeping.await.context("join the sweep of logs")?;
    if let Some(ssh) = ssh {
        ssh.await.context("join the SSH server")?;
    }
    server.await.context("join the server")?.context("serve HTTP")?;
    if let Some(operators) = operators {
        operators.await.context("join the operators' server")?.context("serve operators")?;
    }
    Ok(code)
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

/// Opens the data folder, which no other process may have, with the object store of the settings, which must answer.
pub(crate) async fn open_files(config: &Config) -> anyhow::Result<ArtifactStore> {
    open_files_with(config, objects::settings(config)?).await
}

/// Opens the data folder as [`open_files`] does, with these settings of its object store.
pub(crate) async fn open_files_with(config: &Config, objects: Option<ObjectSettings>) -> anyhow::Result<ArtifactStore> {
    if let Some(settings) = &objects {
        objects::reach(&settings.objects, Use::Write).await?;
        tracing::info!("packs, uploaded files and logs are kept in {}", settings.objects.location());
    }
    let settings = OpenSettings { cache_bytes: config.rootfs_cache_mib.saturating_mul(1 << 20), objects };
    let data_dir = config.data_dir.clone();
    let opened = tokio::task::spawn_blocking(move || ArtifactStore::open_with(&data_dir, settings)).await;
    let files = opened.context("join the opening of the data folder")?.context("open the data folder")?;
    files
        .set_image_layer_limit(config.layer_cache_mib.saturating_mul(1 << 20))
        .context("limit the cached image layers")?;
    Ok(files)
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

/// Refuses a database and a data folder that do not belong together; nothing was changed then. Returns what it found of the
/// seal key.
async fn belong_together(files: &ArtifactStore, database: &dyn Database) -> anyhow::Result<Sealing> {
    let found = survey(files, database).await.context("compare database and data folder")?;
    if let Some(refusal) = found.refusal() {
        bail!("{refusal}");
    }
    if found.is_clean() {
        identity::settle(files, database, &found.identity, &found.objects, Timestamp::now()).await?;
    } else {
        object_identity::attach(files, &found.objects)?;
        let (lost, blobs, log_parts) = (&found.lost, &found.lost_blobs, found.lost_segments.len());
        tracing::error!(
            ?lost,
            ?blobs,
            log_parts,
            "files of the store are missing: what needs them fails until they are back, or until `nullspace store \
             repair` gives them up"
        );
    }
    Ok(found.sealing)
}

/// An address that clients on this host reach a listener at: of one on every address, the loopback's.
pub(crate) fn reachable(listening: IpAddr) -> IpAddr {
    match listening {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    }
}

/// Where ports of sandboxes are reached. `address` is what the service listens on.
fn previews(config: &Config, address: SocketAddr) -> PreviewSettings {
    let ip = reachable(address.ip());
    PreviewSettings {
        domain: config.preview_domain.clone(),
        tls: config.preview_scheme == PreviewScheme::Https,
        address: SocketAddr::new(ip, address.port()).to_string(),
        paths: ports::paths(config),
    }
}

fn control_config(
    config: &Config,
    host: String,
    seal: SealKey,
    webhooks: WebhookSender,
    previews: PreviewSettings,
) -> ControlConfig {
    ControlConfig {
        host,
        build_concurrency: config.build_concurrency,
        build_timeout: Duration::from_secs(config.build_timeout_secs),
        lease_ttl: Duration::from_secs(config.lease_secs),
        max_attempts: 3,
        queue: QueueLimits { per_tenant: config.builds_per_tenant, total: 10_000 },
        running_per_tenant: config.running_builds_per_tenant,
        untagged_retention: Duration::from_secs(config.untagged_retention_secs),
        retention: retention(config),
        blob_bytes_per_tenant: config.upload_mib_per_tenant.saturating_mul(1 << 20),
        life: LifeSettings {
            stop_pause: Duration::from_secs(config.stop_pause_secs),
            paused_per_tenant: config.paused_sandboxes_per_tenant,
            snapshots_per_tenant: config.snapshots_per_tenant,
            warm_per_tenant: config.warm_machines_per_tenant,
            pause_when_full: config.pause_when_full.then(|| Duration::from_secs(config.pause_when_full_idle_secs)),
        },
        previews,
        seal,
        webhooks,
    }
}

/// Times for which rows of the database are kept after they are over.
pub(crate) fn retention(config: &Config) -> Retention {
    Retention {
        sandboxes: Duration::from_secs(config.sandbox_retention_secs),
        builds: Duration::from_secs(config.build_retention_secs),
        idempotency_keys: Duration::from_secs(config.idempotency_retention_secs),
        plain_logs: Duration::from_secs(config.build_log_compression_secs),
        events: Duration::from_secs(config.lifecycle_retention_secs),
    }
}

fn host_config(config: &Config, name: &str, builders: Option<BuilderConfig>) -> anyhow::Result<HostConfig> {
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
        builders,
    })
}

/// True when there is more than one tenant, besides the owner of the built-in templates.
async fn has_several_tenants(database: &dyn Database) -> anyhow::Result<bool> {
    let tenants = database.list_tenants().await.context("list tenants")?;
    Ok(tenants.iter().filter(|tenant| tenant.namespace.kind == NamespaceKind::User).count() > 1)
}

fn hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

pub(crate) fn capacity(config: &Config) -> anyhow::Result<Capacity> {
    let memory_mib = match config.memory_mib {
        Some(mib) => mib,
        None => rustix::system::sysinfo().totalram / (1 << 20) * 3 / 4,
    };
    let cpus = std::thread::available_parallelism().context("count processors")?.get() as u64;
    Ok(Capacity { memory_mib, vcpus: config.vcpus.unwrap_or(16 * cpus) })
}

pub(crate) fn extra_ca(config: &Config) -> anyhow::Result<Option<Vec<u8>>> {
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("read extra_ca_file {}", path.display()));
    config.extra_ca_file.as_ref().map(read).transpose()
}

/// The HTTP clients that deliver lifecycle events.
fn webhooks(config: &Config) -> anyhow::Result<WebhookSender> {
    let listed = config.private_webhooks.iter().map(|text| text.parse().context("private_webhooks"));
    Ok(WebhookSender::new(listed.collect::<anyhow::Result<_>>()?, extra_ca(config)?.as_deref())?)
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

#[cfg(test)]
mod tests {
    use nullspace_data::StoreMark;
    use nullspace_types::StoreId;

    use super::*;

    #[tokio::test]
    async fn no_database_is_made_in_a_folder_whose_id_another_one_has() {
        let dir = tempfile::TempDir::new().unwrap();
        let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        let files = open_files(&config).await.unwrap();
        let id = StoreId::new();
        // All volumes of the folder are unmounted: only its id is left.
        files.put_store_mark(StoreMark { id, settled: true }).unwrap();
        for error in
            [database::open(&config).await.err().unwrap(), database::open_existing(&config).await.err().unwrap()]
        {
            let said = format!("{error:#}");
            assert!(said.contains("is missing") && said.contains(&format!("store ({id})")), "{said}");
        }
        assert!(!dir.path().join("nullspace.db").exists());
        // A first start that was interrupted before its database was made.
        files.put_store_mark(StoreMark { id, settled: false }).unwrap();
        let database = database::open(&config).await.unwrap();
        let survey = survey(&files, database.as_ref()).await.unwrap();
        assert_eq!((survey.refusal(), survey.identity), (None, identity::Identity::Unsettled(Some(id))));
        database.close().await;
    }
}
