//! One host: its machines, caches and disk, behind the [host interface](nullspace_host_interface). It runs builds and sandboxes
//! for control, and knows neither database nor HTTP.
//!
//! ```text
//!   control ── Host ──> LocalHost
//!                         ├─ build/     one attempt of a build: prepare, steps, start, snapshot, publish
//!                         ├─ builder/   BuildKit in a microVM, one for each tenant, kept between builds
//!                         ├─ sandbox/   a sandbox from its snapshot to its end
//!                         ├─ spares     machines that are resumed ahead of their sandboxes
//!                         ├─ files      files of build contexts      storage   what can go
//!                         └─ machine · admission · disk              what both kinds of work have in common
//! ```

mod admission;
mod build;
mod builder;
mod disk;
mod failures;
mod files;
mod lines;
mod machine;
mod sandbox;
mod spares;
mod storage;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nullspace_buildkit::BuildKit;
use nullspace_data::ArtifactStore;
use nullspace_host_interface::{Capacity, Host};
use nullspace_oci::registry::Registry;
use nullspace_vmm::Vmm;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use admission::TenantQuota;
pub use builder::{BuilderConfig, BuilderDisks, builder_disks};

use self::build::Builder;
use self::builder::Builders;
use self::disk::Disk;
use self::machine::Machines;
use self::sandbox::Actors;
use self::spares::Spares;

/// Settings of a [`LocalHost`].
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Name of this host among the hosts that share the database. Together with the data folder's path it names this
    /// service's images on a Docker Engine.
    pub name: String,
    /// Time limit of one program of a build's step.
    pub step_timeout: Duration,
    /// Certificates in PEM that the programs of build steps trust in addition to their image's.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// Limits of all machines together.
    pub capacity: Capacity,
    /// Limits of one tenant's machines.
    pub quota: TenantQuota,
    /// Bytes that must stay free on the disk under the data folder when new work begins. `None`: the default for its size.
    pub disk_reserve: Option<u64>,
    /// Tar of the root tree of the built-in base template.
    pub base_tar: Option<PathBuf>,
    /// Builder machines for Dockerfiles, used instead of other BuildKits.
    pub builders: Option<BuilderConfig>,
}

/// The host that runs in this process. Cheap to clone.
#[derive(Clone)]
pub struct LocalHost {
    inner: Arc<Inner>,
}

/// The parts behind the host interface. Each topic has a value of its own and uses no other.
struct Inner {
    machines: Machines,
    disk: Arc<Disk>,
    files: ArtifactStore,
    builder: Arc<Builder>,
    actors: Arc<Actors>,
    spares: Arc<Spares>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl LocalHost {
    /// Creates the host. Nothing runs before [`Lifecycle::start`](nullspace_host_interface::Lifecycle::start).
    pub fn new(
        config: HostConfig,
        files: ArtifactStore,
        vmm: Arc<dyn Vmm>,
        registry: Registry,
        buildkits: Vec<BuildKit>,
    ) -> LocalHost {
        let HostConfig { name, step_timeout, extra_ca_pem, capacity, quota, disk_reserve, base_tar, builders } = config;
        let machines = Machines::new(vmm, capacity, quota);
        let disk = Arc::new(Disk::new(files.clone(), disk_reserve));
        let builders = builders.map(|config| {
            let (machines, disk) = (machines.clone(), Arc::clone(&disk));
            Arc::new(Builders::new(config, extra_ca_pem.clone(), machines, disk, files.clone()))
        });
        let settings = build::Settings { step_timeout, extra_ca_pem, base_tar };
        let buildkits = build::buildkit::Pool::new(buildkits, builders, &name, files.root());
        let spares = Arc::new(Spares::default());
        let mut builder =
            Builder::new(settings, machines.clone(), Arc::clone(&disk), files.clone(), registry, buildkits);
        builder.spares = Arc::clone(&spares);
        let actors = Actors::new(machines.clone(), Arc::clone(&disk), files.clone(), Arc::clone(&spares));
        LocalHost {
            inner: Arc::new(Inner {
                machines,
                disk,
                files,
                builder: Arc::new(builder),
                actors: Arc::new(actors),
                spares,
                shutdown: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        }
    }
}

impl Host for LocalHost {}
