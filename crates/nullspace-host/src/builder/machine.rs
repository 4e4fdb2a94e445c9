//! One builder: a machine over the tenant's disk, with a Docker Engine that the host reaches through the agent alone.
//!
//! ```text
//!   BuildKit's client ── agent's connection ──> guest's agent ──> /run/builder/engine.sock ── dockerd
//!                                                                   RUN ── container: its own mounts and processes,
//!                                                                          the machine's network or none
//! ```
//! No port of the machine leads to the engine, and its socket is in a folder that no container has.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::FutureExt;
use nullspace_api::TemplateFailurePhase as Phase;
use nullspace_buildkit::{BuildKit, Dial, Duplex, Endpoint};
use nullspace_data::Scratch;
use nullspace_guest::host::AgentError;
use nullspace_guest::message::Exec;
use nullspace_host_interface::{BuildFailure, reason};
use nullspace_service::chain;
use nullspace_types::TenantId;
use nullspace_vmm::{BootSpec, Disk, EndCause, Ended, Network};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::Builders;
use super::disks::Kept;
use crate::admission::Permit;
use crate::disk::Writing;
use crate::failures;
use crate::machine::{Machine, MachineError, SharedMachine};

/// The engine's socket in the guest.
const SOCKET: &str = "/run/builder/engine.sock";
/// Starts the engine: the trusted certificates come on stdin, further options as arguments. Whatever an earlier engine left in
/// /run is of a machine that has ended.
const ENGINE: &str = r#"
set -e
grep -q ' /sys/fs/cgroup cgroup2 ' /proc/mounts || mount -t cgroup2 none /sys/fs/cgroup
rm -rf /run/docker /run/docker.pid /run/docker.sock /run/containerd /run/builder
mkdir -m 700 /run/builder
cd /run/builder
cat > extra.pem
if [ -s extra.pem ]; then
    cat /etc/ssl/certs/ca-certificates.crt extra.pem > trusted.pem
    export SSL_CERT_FILE=/run/builder/trusted.pem
fi
printf '{"builder":{"gc":{"enabled":true,"defaultKeepStorage":"%sMB"}}}' "$KEEP_MB" > daemon.json
exec dockerd --config-file /run/builder/daemon.json --host unix:///run/builder/engine.sock --group root \
    --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false --storage-driver=overlay2 "$@"
"#;
/// Programs of the builder image.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Time limit from the engine's start to its first answer. Under software emulation it takes ten seconds of an idle host.
const READY: Duration = Duration::from_secs(180);
/// Time between two questions whether it is ready.
const ASK: Duration = Duration::from_millis(250);
/// Time limit to give the engine its certificates.
const FEED: Duration = Duration::from_secs(30);
/// Time limit to connect to the engine. The emulated machine may be busy with a build.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time limit of an orderly end.
const QUIT: Duration = Duration::from_secs(30);
/// Bytes of the engine's words when it does not start.
const MAX_WORDS: usize = 16 << 10;
/// Free space on the disk below which it counts as full, bytes.
const FULL: u64 = 256 << 20;

/// A builder that answers.
pub(super) struct Running {
    pub(super) kit: Arc<BuildKit>,
    /// Size of the disk, MiB.
    pub(super) disk_mib: u64,
    leases: AtomicUsize,
    machine: SharedMachine,
    disk: Kept,
    /// Held until the machine has ended.
    held: Mutex<Option<Held>>,
}

/// Resources of the host that a builder has.
struct Held {
    _scratch: Scratch,
    _writing: Writing,
    _place: OwnedSemaphorePermit,
}

impl Running {
    /// Boots the machine over its disk and starts the engine. On error nothing is left, and neither is the disk.
    pub(super) async fn start(
        builders: &Builders,
        tenant: TenantId,
        disk: Kept,
        permit: Permit,
        place: OwnedSemaphorePermit,
    ) -> Result<Running, BuildFailure> {
        let began = Instant::now();
        let running = boot(builders, tenant, disk, permit, place).await?;
        let up = tokio::select! {
            biased;
            () = builders.stopping.cancelled() => Err(BuildFailure::infrastructure(
                Phase::Interrupted, reason::INTERNAL, "the start of the builder machine was given up",
            )),
            up = running.start_engine(builders) => up,
            ended = running.machine.vm.exited() => Err(failures::machine_not_up(Phase::Prepare, &ended)),
        };
        if let Err(failure) = up {
            tracing::warn!(%tenant, %failure, console = running.console(), "a builder machine does not come up");
            running.discard().await;
            return Err(failure);
        }
        tracing::info!(%tenant, ms = began.elapsed().as_millis(), "a builder machine is up");
        Ok(running)
    }

    async fn start_engine(&self, builders: &Builders) -> Result<(), BuildFailure> {
        let agent = &self.machine.agent;
        let failed = |error: AgentError| failures::agent(Phase::Prepare, &error);
        // What is not in use of half the disk may go.
        let keep_mb = (builders.config.disk_mib / 2).to_string();
        let options = builders.config.engine_options.iter().cloned();
        let argv = ["/bin/sh", "-c", ENGINE, "dockerd"].map(str::to_owned).into_iter().chain(options).collect();
        let envs = BTreeMap::from([("PATH".to_owned(), PATH.to_owned()), ("KEEP_MB".to_owned(), keep_mb)]);
        let exec = Exec { argv, envs, stdin: true, ..Exec::default() };
        // Followed until it answers, and let alone from then on.
        let engine = agent.run_service(exec).await.map_err(failed)?;
        let trusted = builders.extra_ca_pem.as_deref().unwrap_or_default();
        agent.close_service_stdin(engine.pid, trusted, FEED).await.map_err(failed)?;
        let why = tokio::select! {
            biased;
            answered = self.answers() => match answered {
                Ok(()) => return Ok(()),
                Err(error) => chain(&error),
            },
            output = engine.collect(MAX_WORDS) => match output {
                Ok(output) => format!("it ended: {}", String::from_utf8_lossy(&output.stderr)),
                Err(error) => chain(&error),
            },
        };
        tracing::warn!(why, "the engine of a builder machine does not answer");
        let message = "the engine of the builder machine does not answer";
        Err(BuildFailure::infrastructure(Phase::Prepare, reason::BUILDKIT_UNAVAILABLE, message))
    }

    /// Waits for the engine's first answer.
    async fn answers(&self) -> Result<(), nullspace_buildkit::Error> {
        let deadline = Instant::now() + READY;
        loop {
            match self.kit.about().await {
                Err(_) if Instant::now() < deadline => tokio::time::sleep(ASK).await,
                answered => return answered.map(drop),
            }
        }
    }

    /// True when the machine has ended by itself.
    pub(super) fn has_ended(&self) -> bool {
        self.machine.vm.exited().now_or_never().is_some()
    }

    /// True when the disk was made for this machine.
    pub(super) fn is_fresh(&self) -> bool {
        self.disk.is_fresh()
    }

    /// Counts a build that uses it.
    pub(super) fn leased(&self) {
        self.leases.fetch_add(1, Ordering::Relaxed);
    }

    /// Builds that have used it so far.
    pub(super) fn leases(&self) -> usize {
        self.leases.load(Ordering::Relaxed)
    }

    /// True when there is little room on its disk.
    pub(super) async fn is_full(&self) -> bool {
        let usage = self.machine.agent.usage().await;
        usage.is_ok_and(|usage| usage.disk_total.saturating_sub(usage.disk_used) < FULL)
    }

    /// The last lines of the guest's console, for the log.
    pub(super) fn console(&self) -> String {
        self.machine.vm.console_tail()
    }

    /// Ends the builder in order, and keeps its disk.
    pub(super) async fn finish(&self) {
        let ended = async {
            if self.machine.agent.shutdown().await.is_err() {
                return false;
            }
            matches!(self.machine.vm.exited().await, Ended { cause: EndCause::Guest, .. })
        };
        let ended = tokio::time::timeout(QUIT, ended).await.unwrap_or(false);
        let whole = ended && !self.machine.vm.has_lost_writes();
        self.release().await;
        if whole {
            self.disk.keep();
        } else {
            tracing::warn!("a builder machine did not end in order: its cache is removed");
            self.disk.remove();
        }
    }

    /// Ends the builder at once, and removes its disk.
    pub(super) async fn discard(&self) {
        self.release().await;
        self.disk.remove();
    }

    async fn release(&self) {
        self.machine.end().await;
        drop(self.held.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

async fn boot(
    builders: &Builders,
    tenant: TenantId,
    disk: Kept,
    permit: Permit,
    place: OwnedSemaphorePermit,
) -> Result<Running, BuildFailure> {
    let own = |error: std::io::Error| BuildFailure::own(Phase::Prepare, &error);
    let scratch = builders.files.scratch().map_err(|error| failures::data(Phase::Prepare, &error))?;
    let work_dir = scratch.path().join("machine");
    std::fs::create_dir(&work_dir).map_err(own)?;
    let overran = CancellationToken::new();
    let writing = builders.disk.enter(disk.folder(), overran.clone());
    let id = uuid::Uuid::new_v4().as_simple().to_string();
    let spec = BootSpec {
        id: format!("builder-{}", &id[..16]),
        vcpus: builders.config.vcpus,
        memory_mib: builders.config.memory_mib,
        disk: Disk::Direct { path: disk.path().to_owned() },
        network: Network::Internet,
        work_dir,
    };
    let booted = Machine::boot(builders.machines.vmm.as_ref(), spec, None, permit, &builders.stopping).await;
    let machine = match booted {
        Ok(machine) => Arc::new(machine),
        Err(error) => {
            disk.remove();
            return Err(not_booted(&error));
        }
    };
    builders.tasks.spawn(end_when_full(Arc::clone(&machine), overran, builders.stopping.clone(), tenant));
    let socket = Arc::new(GuestSocket(Arc::clone(&machine)));
    let kit = Arc::new(BuildKit::in_machine(Endpoint::Docker(SOCKET.into()), socket, PATIENCE));
    let held = Mutex::new(Some(Held { _scratch: scratch, _writing: writing, _place: place }));
    Ok(Running { kit, disk_mib: builders.config.disk_mib, leases: AtomicUsize::new(0), machine, disk, held })
}

/// Ends the machine when it has written most while the host's disk ran full.
async fn end_when_full(machine: SharedMachine, overran: CancellationToken, stop: CancellationToken, tenant: TenantId) {
    tokio::select! {
        () = overran.cancelled() => {
            tracing::warn!(%tenant, "a builder machine is ended: it fills the host's disk");
            machine.end().await;
        }
        _ = machine.vm.exited() => {}
        () = stop.cancelled() => {}
    }
}

fn not_booted(error: &MachineError) -> BuildFailure {
    match error {
        MachineError::Vmm(error) => failures::machine(Phase::Prepare, error),
        MachineError::Agent(error) => failures::agent(Phase::Prepare, error),
        MachineError::Ended(ended) => failures::machine_not_up(Phase::Prepare, ended),
        MachineError::Root(why) => {
            tracing::warn!(why, "the root of a builder machine cannot be used");
            let message = "the disk of the builder machine cannot be used";
            BuildFailure::infrastructure(Phase::Prepare, reason::MACHINE_FAILED, message)
        }
        MachineError::Cancelled => {
            let message = "the start of the builder machine was given up";
            BuildFailure::infrastructure(Phase::Interrupted, reason::INTERNAL, message)
        }
    }
}

/// Opens streams to the engine's socket in a guest.
struct GuestSocket(SharedMachine);

impl fmt::Debug for GuestSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GuestSocket").field(&self.0.vm.id()).finish()
    }
}

#[async_trait]
impl Dial for GuestSocket {
    async fn dial(&self) -> io::Result<Box<dyn Duplex>> {
        let dialled = self.0.agent.dial_socket(SOCKET).await.map_err(io::Error::other)?;
        Ok(Box::new(dialled))
    }
}
