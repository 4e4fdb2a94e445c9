//! A machine with its agent, as builds and sandboxes use it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use jiff::Timestamp;
use nullspace_guest::host::{Agent, AgentError};
use nullspace_guest::message::{AgentInfo, Configure, Exec, Restored};
use nullspace_vmm::{BootSpec, Ended, RestoreSpec, Vm, Vmm, VmmError};
use rand::RngCore;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use nullspace_host_interface::Capacity;
use nullspace_service::chain;

use crate::admission::{Admission, Memory, Permit, TenantQuota};

/// Time limit from the VMM's start to the agent's first message. A guest under software emulation on a loaded host needs most
/// of it.
const BOOT: Duration = Duration::from_secs(90);
/// The same after a restore.
const RESTORE: Duration = Duration::from_secs(30);

/// Time limit from a machine's last message to the end of its process.
const ENDING: Duration = Duration::from_secs(5);

/// Returns the end of a machine whose agent's connection has closed: an ending machine closes it first. `None`: the machine
/// still runs.
pub(crate) async fn ended(vm: &dyn Vm) -> Option<Ended> {
    tokio::time::timeout(ENDING, vm.exited()).await.ok()
}

/// A running machine that answers. [`Machine::end`] ends it. Dropping it kills it without waiting.
pub(crate) struct Machine {
    pub(crate) vm: Box<dyn Vm>,
    pub(crate) agent: Agent,
    permit: Mutex<Option<Permit>>,
}

/// The reasons for which there is no machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The guest runs, but its root filesystem cannot be used: a fault of the image.
    #[error("{0}")]
    Root(String),
    /// The start was cancelled.
    #[error("the start of the machine was given up")]
    Cancelled,
}

impl Machine {
    /// Boots a machine, waits for its agent, and sets name, clock and network. To stop it, cancel and wait for the return:
    /// then all of the machine's resources are released. Dropping the future only kills the machine.
    pub(crate) async fn boot(
        vmm: &dyn Vmm,
        spec: BootSpec,
        imported_user: Option<String>,
        permit: Permit,
        cancel: &CancellationToken,
    ) -> Result<Machine, MachineError> {
        let hostname = spec.id.clone();
        let vm = vmm.boot(spec).await?;
        let greeting = async {
            let (agent, info) = Agent::connect(vm.agent().await?, BOOT).await?;
            if !info.root_ready {
                return Err(MachineError::Root(
                    info.root_error.unwrap_or_else(|| "the root is not mounted".to_owned()),
                ));
            }
            let configure =
                Configure { hostname, network: vm.guest_network(), unix_time_ns: unix_time_ns(), imported_user };
            agent.configure(configure).await?;
            Ok((agent, info))
        };
        let greeted = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(MachineError::Cancelled),
            greeted = alive(vm.as_ref(), greeting) => greeted,
        };
        Machine::joined(vm, greeted, permit).await
    }

    /// Resumes a snapshot. Returns when the guest has its own random numbers, clock, name and machine id, and the resume
    /// hooks and `resume` have run. `resumed` is notified as soon as the machine runs.
    pub(crate) async fn restore(
        vmm: &dyn Vmm,
        spec: RestoreSpec,
        resume: Option<Exec>,
        permit: Permit,
        resumed: oneshot::Sender<()>,
    ) -> Result<Machine, MachineError> {
        let hostname = spec.id.clone();
        let vm = vmm.restore(spec).await?;
        // Nobody may be waiting for it any more.
        let _ = resumed.send(());
        let greeting = async {
            let restored = identity(hostname, vm.as_ref(), resume);
            let open = || async { vm.agent().await.map_err(MachineError::from) };
            // The clock is that of the moment at which it is sent: to connect takes seconds on a busy host.
            let now = || Restored { unix_time_ns: unix_time_ns(), ..restored.clone() };
            Agent::connect_restored(open, now, RESTORE).await
        };
        let greeted = alive(vm.as_ref(), greeting).await;
        Machine::joined(vm, greeted, permit).await
    }

    async fn joined(
        vm: Box<dyn Vm>,
        greeted: Result<(Agent, AgentInfo), MachineError>,
        permit: Permit,
    ) -> Result<Machine, MachineError> {
        match greeted {
            Ok((agent, _)) => Ok(Machine { vm, agent, permit: Mutex::new(Some(permit)) }),
            Err(error) => {
                if !matches!(error, MachineError::Cancelled) {
                    tracing::warn!(machine = vm.id(), %error, console = vm.console_tail(), "machine did not come up");
                }
                if let Err(error) = vm.kill().await {
                    tracing::error!(machine = vm.id(), %error, "machine could not be ended");
                }
                Err(error)
            }
        }
    }

    /// Ends the machine and waits until its resources are released. Its admission is then free, even if other handles exist.
    pub(crate) async fn end(&self) {
        if let Err(error) = self.vm.kill().await {
            tracing::error!(machine = self.vm.id(), error = %chain(&error), "machine could not be ended");
            // It may still hold its memory: the permit goes with the last owner.
            return;
        }
        self.permit.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Runs the work, unless the machine ends first.
async fn alive<T>(vm: &dyn Vm, work: impl Future<Output = Result<T, MachineError>>) -> Result<T, MachineError> {
    tokio::select! {
        biased;
        done = work => done,
        ended = vm.exited() => Err(VmmError::Exited(ended.how).into()),
    }
}

fn identity(hostname: String, vm: &dyn Vm, resume: Option<Exec>) -> Restored {
    let mut random = [0; 64 + 16];
    rand::rng().fill_bytes(&mut random);
    let (entropy, machine_id) = random.split_at(64);
    Restored {
        hostname,
        machine_id: hex::encode(machine_id),
        entropy: base64::engine::general_purpose::STANDARD.encode(entropy),
        unix_time_ns: unix_time_ns(),
        network: vm.guest_network(),
        resume,
    }
}

fn unix_time_ns() -> u64 {
    u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or_default()
}

/// The driver of machines, and their admission. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Machines {
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) admission: Admission,
}

impl Machines {
    /// A driver without running machines.
    pub(crate) fn new(vmm: Arc<dyn Vmm>, capacity: Capacity, quota: TenantQuota) -> Machines {
        let admission = Admission::new(capacity, quota, Arc::new(DriverMemory(Arc::clone(&vmm))));
        Machines { vmm, admission }
    }
}

/// Memory of a driver's machines, for admission.
struct DriverMemory(Arc<dyn Vmm>);

impl Memory for DriverMemory {
    fn overhead_mib(&self, vcpus: u32) -> u32 {
        self.0.overhead_mib(vcpus)
    }

    fn templates_mib(&self) -> u64 {
        self.0.template_memory_mib()
    }

    fn trim(&self) {
        self.0.trim_templates();
    }
}

/// A machine that several tasks use.
pub(crate) type SharedMachine = Arc<Machine>;
