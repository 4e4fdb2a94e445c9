//! Settings: defaults, then the config file, then `NULLSPACE_…` variables, then flags; the later one wins.
//!
//! Every key of the file is also a variable: `data_dir` is `NULLSPACE_DATA_DIR`. An unknown key in the file is an error
//! that names it, and so is a variable that is spelt almost like one. `nullspace.example.toml` in the repository lists all
//! of them with comments; a test keeps it complete.

mod check;
mod variables;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nullspace_vmm::DiskLimits;
use nullspace_vmm::net::NetLimits;
use secrecy::SecretString;
use serde::Deserialize;

pub(crate) use variables::unread;

/// All settings, as the file may give them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Address of the HTTP API.
    pub(crate) listen: SocketAddr,
    /// Address that has `/healthz`, `/readyz` and `/metrics` alone, besides the API's; default: none.
    pub(crate) admin_listen: Option<SocketAddr>,
    /// Address of the SSH server; default: none, and there is no SSH server.
    pub(crate) ssh_listen: Option<SocketAddr>,
    /// Where clients reach the SSH server, `host` or `host:port`; default: the address it listens on.
    pub(crate) ssh_address: Option<String>,
    /// Connections at once; at the limit the longest idle one makes room.
    pub(crate) max_connections: usize,
    /// Connections at once from one address.
    pub(crate) connections_per_address: usize,
    /// Requests of one tenant under way at once, log followers and WebSockets among them; more are refused with 429.
    pub(crate) connections_per_tenant: usize,
    /// What all requests may hold in memory together, MiB: bodies that are read whole and answers that are kept.
    pub(crate) request_memory_mib: u32,
    /// What one tenant's requests may hold of it, MiB.
    pub(crate) request_memory_mib_per_tenant: u32,
    /// Database, artifacts and scratch space. One service at a time uses it.
    pub(crate) data_dir: PathBuf,
    /// URL of a PostgreSQL database that has the rows instead of a file in the data folder. It may have a password.
    pub(crate) database: Option<SecretString>,
    /// Folder with `vmlinuz`, `initramfs.cpio` and, for Firecracker, `vmlinux`.
    pub(crate) guest_dir: Option<PathBuf>,
    /// Tar of the root tree of the built-in `base` template.
    pub(crate) base_tar: Option<PathBuf>,
    /// Which VMM runs the machines.
    pub(crate) vmm: VmmChoice,
    /// How QEMU runs guests.
    pub(crate) accel: AccelChoice,
    /// Refuse to start where guests would run in software.
    pub(crate) require_kvm: bool,
    /// Let Firecracker run without its jailer where that cannot be used.
    pub(crate) unjailed: bool,
    /// The QEMU program.
    pub(crate) qemu: PathBuf,
    /// Further QEMU programs, under which templates resume that the first one cannot read.
    pub(crate) older_qemu: Vec<PathBuf>,
    /// The Firecracker program.
    pub(crate) firecracker: PathBuf,
    /// Further Firecracker programs, as `older_qemu`.
    pub(crate) older_firecracker: Vec<PathBuf>,
    /// Firecracker's jailer.
    pub(crate) jailer: PathBuf,
    /// Registry host -> base URLs asked instead of it.
    pub(crate) registry_mirrors: BTreeMap<String, String>,
    /// Registries that are spoken to in plain HTTP, wherever they are.
    pub(crate) plain_http_registries: Vec<String>,
    /// Registries that are asked although they are not on the internet: `127.0.0.1`, `10.0.0.0/8`, `registry.corp:5000`.
    pub(crate) private_registries: Vec<String>,
    /// Receivers of webhooks that are sent to although they are not on the internet, as `private_registries`.
    pub(crate) private_webhooks: Vec<String>,
    /// Docker config file whose logins serve every build that brings no credentials.
    pub(crate) docker_config: Option<PathBuf>,
    /// Where ECR logins are asked for instead of the region's own API.
    pub(crate) ecr_endpoint: Option<String>,
    /// Where Google service accounts are exchanged instead of Google's own token server.
    pub(crate) gcp_token_url: Option<String>,
    /// PEM file with CA certificates trusted besides the public ones.
    pub(crate) extra_ca_file: Option<PathBuf>,
    /// BuildKits for Dockerfiles, in the order in which they are tried: `docker`, `docker:///path`, `unix:///path`,
    /// `tcp://host:port`; `machine` alone for one in a machine of each tenant's own, `off` alone for none. Default: `machine` if
    /// the root of builder machines is there, else the usual sockets that are there.
    pub(crate) buildkit: Option<Vec<String>>,
    /// PEM file of the authority that signed the certificates of BuildKits on TCP.
    pub(crate) buildkit_ca: Option<PathBuf>,
    /// PEM file of the certificate that is shown to them.
    pub(crate) buildkit_cert: Option<PathBuf>,
    /// PEM file of that certificate's key.
    pub(crate) buildkit_key: Option<PathBuf>,
    /// Tar of the root tree of builder machines.
    pub(crate) builder_tar: Option<PathBuf>,
    /// Memory of a builder machine, MiB.
    pub(crate) builder_memory_mib: u32,
    /// Size of the disk of a tenant's builder machine, MiB; it takes only what was written.
    pub(crate) builder_disk_mib: u64,
    /// A builder machine without a build ends after so many seconds.
    pub(crate) builder_idle_secs: u64,
    /// Builder machines that run at once.
    pub(crate) builder_machines: usize,
    /// Builds that run at once.
    pub(crate) build_concurrency: usize,
    /// Bound of a whole build, seconds.
    pub(crate) build_timeout_secs: u64,
    /// Bound of one program of a build's step, seconds.
    pub(crate) step_timeout_secs: u64,
    /// Unfinished builds of one tenant; more are refused with 429.
    pub(crate) builds_per_tenant: u32,
    /// Builds of one tenant that run at once; more wait.
    pub(crate) running_builds_per_tenant: u32,
    /// What no tag points to is kept so many seconds after its build.
    pub(crate) untagged_retention_secs: u64,
    /// The row of an ended sandbox is removed so many seconds after its end.
    pub(crate) sandbox_retention_secs: u64,
    /// The rows of a failed or cancelled build, and of one whose artifact was removed, are removed so many seconds later.
    pub(crate) build_retention_secs: u64,
    /// An `Idempotency-Key` is free again so many seconds after its build or sandbox is over.
    pub(crate) idempotency_retention_secs: u64,
    /// A build's log is compressed so many seconds after its end.
    pub(crate) build_log_compression_secs: u64,
    /// A lifecycle event is removed so many seconds after it happened.
    pub(crate) lifecycle_retention_secs: u64,
    /// Requests per second of one tenant, in the long run; more are refused with 429.
    pub(crate) requests_per_second: u32,
    /// Opens `/metrics` from other hosts; without it the page is for this host only.
    pub(crate) metrics_token: Option<SecretString>,
    /// Files of build contexts that one tenant may have uploaded together, MiB.
    pub(crate) upload_mib_per_tenant: u64,
    /// Raw files of root images, from which machines run, are kept up to so many MiB together; more only while in use.
    pub(crate) rootfs_cache_mib: u64,
    /// Image layers are kept as they were downloaded, up to so many MiB together; 0: none.
    pub(crate) layer_cache_mib: u64,
    /// Bucket of an S3 store that keeps everything durable; without one, the data folder does.
    pub(crate) s3_bucket: Option<String>,
    /// Address of the S3 store; default: Amazon S3 of the region.
    pub(crate) s3_endpoint: Option<String>,
    /// Put before each key in the bucket.
    pub(crate) s3_prefix: Option<String>,
    /// Region that requests are signed for; default: us-east-1.
    pub(crate) s3_region: Option<String>,
    /// Whether the bucket is in the path of URLs instead of the host's name; default: with an endpoint.
    pub(crate) s3_path_style: Option<bool>,
    /// Allow an `http://` endpoint on another host.
    pub(crate) s3_allow_http: bool,
    /// File with the key pair, as AWS tools have it; default: the variables of AWS tools.
    pub(crate) s3_credentials_file: Option<PathBuf>,
    /// What the data folder keeps of the S3 store as a cache, MiB: packs and uploaded files.
    pub(crate) object_cache_mib: u64,
    /// Time between the removal of a pack or manifest in the data folder and in the S3 store, seconds.
    pub(crate) object_grace_secs: u64,
    /// With less than so many MiB free on the disk under `data_dir` nothing new begins; default: 512, or a sixteenth of a
    /// disk under 8 GiB.
    pub(crate) disk_reserve_mib: Option<u64>,
    /// A worker that is silent for so many seconds has lost its build.
    pub(crate) lease_secs: u64,
    /// Memory of all machines together, guests' and VMMs', MiB; default: 3/4 of the host's.
    pub(crate) memory_mib: Option<u64>,
    /// Virtual CPUs of all machines together; default: 16 for each of the host's.
    pub(crate) vcpus: Option<u64>,
    /// Sandboxes of one tenant that start or run at a time; more are refused with 429.
    pub(crate) sandboxes_per_tenant: Option<u64>,
    /// Virtual CPUs of one tenant's machines, builds' included.
    pub(crate) vcpus_per_tenant: Option<u64>,
    /// Memory of one tenant's machines, builds' included, as `memory_mib` counts it.
    pub(crate) memory_mib_per_tenant: Option<u64>,
    /// Paused sandboxes of one tenant; a pause beyond is refused with 429.
    pub(crate) paused_sandboxes_per_tenant: u32,
    /// Reusable snapshots of one tenant; more are refused with 429.
    pub(crate) snapshots_per_tenant: u32,
    /// Machines that the warm pools of one tenant keep ready together, at most. 0: there are no warm pools.
    pub(crate) warm_machines_per_tenant: u32,
    /// A sandbox that finds the host full has the one paused that idles longest.
    pub(crate) pause_when_full: bool,
    /// Least time without use, seconds, of a sandbox that is paused for another.
    pub(crate) pause_when_full_idle_secs: u64,
    /// Running sandboxes are paused for so many seconds when the service stops, and run again after its start; the rest ends.
    /// 0: all end.
    pub(crate) stop_pause_secs: u64,
    /// The domain under which ports of sandboxes have host names, with `:port` when clients need one.
    pub(crate) preview_domain: Option<String>,
    /// How clients reach that domain.
    pub(crate) preview_scheme: PreviewScheme,
    /// Whether `/p/{sandbox}/{port}/` leads to ports; default: without a domain.
    pub(crate) preview_paths: Option<bool>,
    /// Whether ports have listeners on the loopback address; default: without a domain, if the service listens there and
    /// guests do not reach it.
    pub(crate) local_ports: Option<bool>,
    /// Addresses and networks of the operator's proxies, whose `X-Forwarded-For` and `-Proto` are believed.
    pub(crate) preview_proxies: Vec<String>,
    /// Time that a server in a sandbox has for the head of its response, seconds.
    pub(crate) preview_response_timeout_secs: u64,
    /// What one machine may read from and write to its disk, MiB in a second.
    pub(crate) disk_mib_per_second: u32,
    /// Requests of one machine to its disk in a second.
    pub(crate) disk_operations_per_second: u32,
    /// Connections of one machine at a time.
    pub(crate) network_connections: u32,
    /// Connections that one machine may begin in a second.
    pub(crate) network_connections_per_second: u32,
    /// Packets that one machine may send in a second.
    pub(crate) network_packets_per_second: u32,
    /// What one machine may send and receive together, MiB in a second.
    pub(crate) network_mib_per_second: u32,
    /// How machines reach the internet.
    pub(crate) network: NetworkChoice,
    /// First letters of this service's network interfaces and of its nftables table; unlike any other service's here.
    pub(crate) network_prefix: String,
    /// IPv4 addresses for the links to machines; used on this host only.
    pub(crate) network_pool: String,
    /// Private destinations that machines may reach all the same: `10.1.2.3`, `10.0.0.0/8`, `10.1.2.3:443`.
    pub(crate) network_allow: Vec<String>,
    /// Name servers of guests; default: the host's.
    pub(crate) dns: Vec<String>,
    /// Log filter, as in `info,nullspace_host=debug`.
    pub(crate) log: String,
    /// `text` or `json` log lines on standard error.
    pub(crate) log_format: LogFormat,
}

/// `vmm` setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum VmmChoice {
    /// Firecracker with working KVM and a binary, else QEMU.
    Auto,
    /// Firecracker or an error.
    Firecracker,
    /// QEMU, with KVM when it works.
    Qemu,
}

/// `accel` setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AccelChoice {
    /// KVM when a guest truly runs in it, found out once by booting one; else software.
    Auto,
    /// KVM.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// `network` setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkChoice {
    /// Namespaces as root, else QEMU's user network.
    Auto,
    /// A namespace for each machine, closed against this host and private networks. Needs root.
    Namespaces,
    /// QEMU's user network, through which machines reach what this host's user reaches, its loopback included.
    User,
}

/// `preview_scheme` setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PreviewScheme {
    /// TLS, by a proxy of the operator's.
    Https,
    /// Without TLS.
    Http,
}

/// `log_format` setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            admin_listen: None,
            ssh_listen: None,
            ssh_address: None,
            max_connections: 4096,
            connections_per_address: 1024,
            connections_per_tenant: 1024,
            request_memory_mib: 512,
            request_memory_mib_per_tenant: 128,
            data_dir: PathBuf::from("data"),
            database: None,
            guest_dir: None,
            base_tar: None,
            vmm: VmmChoice::Auto,
            accel: AccelChoice::Auto,
            require_kvm: false,
            unjailed: false,
            qemu: PathBuf::from("qemu-system-x86_64"),
            older_qemu: Vec::new(),
            firecracker: PathBuf::from("firecracker"),
            older_firecracker: Vec::new(),
            jailer: PathBuf::from("jailer"),
            registry_mirrors: BTreeMap::new(),
            plain_http_registries: Vec::new(),
            private_registries: Vec::new(),
            private_webhooks: Vec::new(),
            docker_config: None,
            ecr_endpoint: None,
            gcp_token_url: None,
            extra_ca_file: None,
            buildkit: None,
            buildkit_ca: None,
            buildkit_cert: None,
            buildkit_key: None,
            builder_tar: None,
            builder_memory_mib: 1536,
            builder_disk_mib: 16_384,
            builder_idle_secs: 300,
            builder_machines: 4,
            build_concurrency: 2,
            build_timeout_secs: 1800,
            step_timeout_secs: 1200,
            builds_per_tenant: 1_000,
            running_builds_per_tenant: 64,
            untagged_retention_secs: 30 * 24 * 3600,
            sandbox_retention_secs: 30 * 24 * 3600,
            build_retention_secs: 90 * 24 * 3600,
            idempotency_retention_secs: 7 * 24 * 3600,
            build_log_compression_secs: 600,
            lifecycle_retention_secs: 30 * 24 * 3600,
            requests_per_second: 200,
            metrics_token: None,
            upload_mib_per_tenant: 10_240,
            rootfs_cache_mib: nullspace_data::DEFAULT_CACHE >> 20,
            layer_cache_mib: nullspace_data::DEFAULT_LAYERS >> 20,
            s3_bucket: None,
            s3_endpoint: None,
            s3_prefix: None,
            s3_region: None,
            s3_path_style: None,
            s3_allow_http: false,
            s3_credentials_file: None,
            object_cache_mib: 20_480,
            object_grace_secs: 3600,
            disk_reserve_mib: None,
            lease_secs: 30,
            memory_mib: None,
            vcpus: None,
            sandboxes_per_tenant: None,
            vcpus_per_tenant: None,
            memory_mib_per_tenant: None,
            paused_sandboxes_per_tenant: 100,
            snapshots_per_tenant: 200,
            warm_machines_per_tenant: 16,
            pause_when_full: false,
            pause_when_full_idle_secs: 60,
            stop_pause_secs: 60,
            preview_domain: None,
            preview_scheme: PreviewScheme::Https,
            preview_paths: None,
            local_ports: None,
            preview_proxies: Vec::new(),
            preview_response_timeout_secs: 300,
            disk_mib_per_second: DiskLimits::default().mib_per_second,
            disk_operations_per_second: DiskLimits::default().operations_per_second,
            network_connections: NetLimits::default().connections,
            network_connections_per_second: NetLimits::default().new_connections_per_second,
            network_packets_per_second: NetLimits::default().packets_per_second,
            network_mib_per_second: NetLimits::default().mib_per_second,
            network: NetworkChoice::Auto,
            network_prefix: String::from("nsv"),
            network_pool: String::from("100.96.0.0/16"),
            network_allow: Vec::new(),
            dns: Vec::new(),
            log: String::from("info"),
            log_format: LogFormat::Text,
        }
    }
}

/// How a variable's text becomes a value of the file's kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Text,
    Number,
    /// `true` or `false`
    Flag,
    /// `a,b`
    List,
    /// `key=value,key=value`
    Map,
}

/// Every key with the kind of its value.
const KEYS: &[(&str, Kind)] = &[
    ("listen", Kind::Text),
    ("admin_listen", Kind::Text),
    ("ssh_listen", Kind::Text),
    ("ssh_address", Kind::Text),
    ("max_connections", Kind::Number),
    ("connections_per_address", Kind::Number),
    ("connections_per_tenant", Kind::Number),
    ("request_memory_mib", Kind::Number),
    ("request_memory_mib_per_tenant", Kind::Number),
    ("data_dir", Kind::Text),
    ("database", Kind::Text),
    ("guest_dir", Kind::Text),
    ("base_tar", Kind::Text),
    ("vmm", Kind::Text),
    ("accel", Kind::Text),
    ("require_kvm", Kind::Flag),
    ("unjailed", Kind::Flag),
    ("qemu", Kind::Text),
    ("older_qemu", Kind::List),
    ("firecracker", Kind::Text),
    ("older_firecracker", Kind::List),
    ("jailer", Kind::Text),
    ("registry_mirrors", Kind::Map),
    ("plain_http_registries", Kind::List),
    ("private_registries", Kind::List),
    ("private_webhooks", Kind::List),
    ("docker_config", Kind::Text),
    ("ecr_endpoint", Kind::Text),
    ("gcp_token_url", Kind::Text),
    ("extra_ca_file", Kind::Text),
    ("buildkit", Kind::List),
    ("buildkit_ca", Kind::Text),
    ("buildkit_cert", Kind::Text),
    ("buildkit_key", Kind::Text),
    ("builder_tar", Kind::Text),
    ("builder_memory_mib", Kind::Number),
    ("builder_disk_mib", Kind::Number),
    ("builder_idle_secs", Kind::Number),
    ("builder_machines", Kind::Number),
    ("build_concurrency", Kind::Number),
    ("build_timeout_secs", Kind::Number),
    ("step_timeout_secs", Kind::Number),
    ("builds_per_tenant", Kind::Number),
    ("running_builds_per_tenant", Kind::Number),
    ("untagged_retention_secs", Kind::Number),
    ("sandbox_retention_secs", Kind::Number),
    ("build_retention_secs", Kind::Number),
    ("idempotency_retention_secs", Kind::Number),
    ("build_log_compression_secs", Kind::Number),
    ("lifecycle_retention_secs", Kind::Number),
    ("requests_per_second", Kind::Number),
    ("metrics_token", Kind::Text),
    ("upload_mib_per_tenant", Kind::Number),
    ("rootfs_cache_mib", Kind::Number),
    ("layer_cache_mib", Kind::Number),
    ("s3_bucket", Kind::Text),
    ("s3_endpoint", Kind::Text),
    ("s3_prefix", Kind::Text),
    ("s3_region", Kind::Text),
    ("s3_path_style", Kind::Flag),
    ("s3_allow_http", Kind::Flag),
    ("s3_credentials_file", Kind::Text),
    ("object_cache_mib", Kind::Number),
    ("object_grace_secs", Kind::Number),
    ("disk_reserve_mib", Kind::Number),
    ("lease_secs", Kind::Number),
    ("memory_mib", Kind::Number),
    ("vcpus", Kind::Number),
    ("sandboxes_per_tenant", Kind::Number),
    ("vcpus_per_tenant", Kind::Number),
    ("memory_mib_per_tenant", Kind::Number),
    ("paused_sandboxes_per_tenant", Kind::Number),
    ("snapshots_per_tenant", Kind::Number),
    ("warm_machines_per_tenant", Kind::Number),
    ("pause_when_full", Kind::Flag),
    ("pause_when_full_idle_secs", Kind::Number),
    ("stop_pause_secs", Kind::Number),
    ("preview_domain", Kind::Text),
    ("preview_scheme", Kind::Text),
    ("preview_paths", Kind::Flag),
    ("local_ports", Kind::Flag),
    ("preview_proxies", Kind::List),
    ("preview_response_timeout_secs", Kind::Number),
    ("disk_mib_per_second", Kind::Number),
    ("disk_operations_per_second", Kind::Number),
    ("network_connections", Kind::Number),
    ("network_connections_per_second", Kind::Number),
    ("network_packets_per_second", Kind::Number),
    ("network_mib_per_second", Kind::Number),
    ("network", Kind::Text),
    ("network_prefix", Kind::Text),
    ("network_pool", Kind::Text),
    ("network_allow", Kind::List),
    ("dns", Kind::List),
    ("log", Kind::Text),
    ("log_format", Kind::Text),
];

impl Config {
    /// Reads the file, if one is given, and the variables that `env` knows.
    pub(crate) fn load(file: Option<&Path>, env: impl Fn(&str) -> Option<String>) -> anyhow::Result<Config> {
        let mut table = match file {
            None => toml::Table::new(),
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("read config file {}", path.display()))?;
                let table: toml::Table =
                    text.parse().with_context(|| format!("parse config file {}", path.display()))?;
                // Said of the file alone, so that the message names the right place.
                Config::deserialize(table.clone()).with_context(|| format!("config file {}", path.display()))?;
                table
            }
        };
        for (key, kind) in KEYS {
            let variable = format!("NULLSPACE_{}", key.to_uppercase());
            let Some(text) = env(&variable).filter(|text| !text.is_empty()) else { continue };
            let value = parse(*kind, &text).with_context(|| format!("variable {variable}"))?;
            table.insert((*key).to_owned(), value);
        }
        let config = Config::deserialize(table).context("settings from NULLSPACE_… variables")?;
        check::check(&config)?;
        Ok(config)
    }
}

fn parse(kind: Kind, text: &str) -> anyhow::Result<toml::Value> {
    let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
    Ok(match kind {
        Kind::Text => toml::Value::String(text.to_owned()),
        Kind::Number => toml::Value::Integer(text.trim().parse().with_context(|| format!("'{text}' is not a number"))?),
        Kind::Flag => {
            toml::Value::Boolean(text.trim().parse().with_context(|| format!("'{text}' is neither true nor false"))?)
        }
        Kind::List => toml::Value::Array(parts().map(|part| toml::Value::String(part.to_owned())).collect()),
        Kind::Map => {
            let mut map = toml::Table::new();
            for part in parts() {
                let (key, value) = part.split_once('=').with_context(|| format!("'{part}' is not key=value"))?;
                map.insert(key.to_owned(), toml::Value::String(value.to_owned()));
            }
            toml::Value::Table(map)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let file = file("listne = '127.0.0.1:1'\n");
        let error = format!("{:#}", Config::load(Some(file.path()), |_| None).unwrap_err());
        assert!(error.contains("listne"), "{error}");
    }

    #[test]
    fn a_variable_wins_over_the_file() {
        let file = file("listen = '127.0.0.1:1'\nbuild_concurrency = 3\n");
        let env = |name: &str| match name {
            "NULLSPACE_LISTEN" => Some("127.0.0.1:2".to_owned()),
            "NULLSPACE_REGISTRY_MIRRORS" => {
                Some("docker.io=http://127.0.0.1:5000,ghcr.io=http://127.0.0.1:5001".to_owned())
            }
            _ => None,
        };
        let config = Config::load(Some(file.path()), env).unwrap();
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.build_concurrency, 3);
        assert_eq!(config.registry_mirrors["ghcr.io"], "http://127.0.0.1:5001");
    }

    #[test]
    fn a_bad_variable_is_an_error_that_names_it() {
        for (name, text) in [
            ("NULLSPACE_BUILD_CONCURRENCY", "many"),
            ("NULLSPACE_BUILD_CONCURRENCY", "0"),
            ("NULLSPACE_REGISTRY_MIRRORS", "docker.io"),
            ("NULLSPACE_VMM", "xen"),
        ] {
            let error = Config::load(None, |asked| (asked == name).then(|| text.to_owned())).unwrap_err();
            let error = format!("{error:#}").to_lowercase();
            assert!(error.contains("nullspace_") || error.contains("build_concurrency"), "{name}: {error}");
        }
    }

    #[test]
    fn the_example_file_names_every_key_and_parses() {
        let example = include_str!("../../../nullspace.example.toml");
        let mut table = toml::Table::new();
        for line in example.lines() {
            let line = line.strip_prefix("# ").unwrap_or(line);
            if let Ok(parsed) = line.parse::<toml::Table>() {
                table.extend(parsed);
            }
        }
        for (key, _) in KEYS {
            assert!(table.contains_key(*key), "nullspace.example.toml lacks {key}");
        }
        assert_eq!(table.len(), KEYS.len(), "{:?}", table.keys().collect::<Vec<_>>());
        Config::deserialize(table).unwrap();
    }
}
