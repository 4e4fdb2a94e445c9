//! A machine with its agent, as builds and sandboxes use it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
/// The same after a restore, on real hardware. Where machines are slow, the guest's first answer takes nearly as long as a boot.
const RESTORE: Duration = Duration::from_secs(30);

/// Connections to the agent of a spare that are tried again when they close at once.
const GREETINGS: u32 = 8;

/// Time limit from a machine's last message to the end of its process.
const ENDING: Duration = Duration::from_secs(5);

/// Time limit from the VMM's start to the agent's first message after a restore under this driver.
pub(crate) fn restore_limit(vmm: &dyn Vmm) -> Duration {
    if vmm.is_slow() { BOOT } else { RESTORE }
}

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
    /// The machine ended before it was usable.
    #[error("the virtual machine ended: {0}")]
    Ended(Ended),
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
        let (hostname, limit) = (spec.id.clone(), restore_limit(vmm));
        let vm = vmm.restore(spec).await?;
        // Nobody may be waiting for it any more.
        let _ = resumed.send(());
        let restored = Restored { resume, ..identity(hostname, vm.as_ref()) };
        let greeted = alive(vm.as_ref(), greet_restored(vm.as_ref(), restored, limit)).await;
        Machine::joined(vm, greeted, permit).await
    }

    /// Resumes a halted snapshot ahead of the sandbox that will take it. Returns when its agent answers. The guest has no identity, and
    /// does nothing, before [`Machine::claim`].
    pub(crate) async fn restore_spare(
        vmm: &dyn Vmm,
        spec: RestoreSpec,
        permit: Permit,
    ) -> Result<Machine, MachineError> {
        let limit = restore_limit(vmm);
        let vm = vmm.restore(spec).await?;
        let greeting = async {
            let mut left = GREETINGS;
            loop {
                match Agent::connect(vm.agent().await?, limit).await {
                    // A vsock's transport is reset after a restore, and takes the first connection along.
                    Err(AgentError::Closed) if left > 0 => left -= 1,
                    greeted => return Ok(greeted?),
                }
            }
        };
        let greeted = alive(vm.as_ref(), greeting).await;
        Machine::joined(vm, greeted, permit).await
    }

    /// Gives the guest of a spare its identity, as [`Machine::restore`] does.
    pub(crate) async fn claim(
        self,
        vmm: &dyn Vmm,
        hostname: String,
        resume: Option<Exec>,
    ) -> Result<Machine, MachineError> {
        let Machine { vm, agent, permit } = self;
        let restored = Restored { resume, ..identity(hostname, vm.as_ref()) };
        let claiming = async {
            match agent.restored(restored.clone()).await {
                Ok(()) => Ok((agent.clone(), agent.info())),
                // The connection did not outlive the restore, or the wait: another one is made.
                Err(AgentError::Closed) => greet_restored(vm.as_ref(), restored, restore_limit(vmm)).await,
                Err(error) => Err(error.into()),
            }
        };
        let greeted = alive(vm.as_ref(), claiming).await;
        let permit = permit.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (greeted, permit) {
            (Ok((agent, _)), permit) => Ok(Machine { vm, agent, permit: Mutex::new(permit) }),
            (Err(error), Some(permit)) => Machine::joined(vm, Err(error), permit).await,
            (Err(error), None) => Err(error),
        }
    }

    /// Resumes a new snapshot in trial. Returns when the guest has an identity of its own and its agent has answered a
    /// question after that. No hook runs in it. To stop it, cancel, as [`Machine::boot`].
    pub(crate) async fn restore_in_trial(
        vmm: &dyn Vmm,
        spec: RestoreSpec,
        permit: Permit,
        cancel: &CancellationToken,
    ) -> Result<Machine, MachineError> {
        let (hostname, limit) = (spec.id.clone(), restore_limit(vmm));
        let vm = vmm.restore(spec).await?;
        let restored = Restored { trial: true, ..identity(hostname, vm.as_ref()) };
        let greeting = async {
            let (agent, info) = match greet_restored(vm.as_ref(), restored, limit).await {
                // An older guest image: its agent would run the hooks. It only has to answer.
                Err(MachineError::Agent(AgentError::Lacking { .. })) => {
                    Agent::connect(vm.agent().await?, limit).await?
                }
                greeted => greeted?,
            };
            answers(&agent, limit).await?;
            Ok((agent, info))
        };
        let greeted = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(MachineError::Cancelled),
            greeted = alive(vm.as_ref(), greeting) => greeted,
        };
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
        drop(self.end_for_next().await);
    }

    /// The same, and returns the admission for a next machine of the same size. `None`: the machine could not be ended, or
    /// was ended before.
    pub(crate) async fn end_for_next(&self) -> Option<Permit> {
        end(self.vm.as_ref(), &self.permit).await
    }

    /// The machine without its agent, for an owner that replaces the agent.
    pub(crate) fn into_parts(self) -> (Body, Agent) {
        let Machine { vm, agent, permit } = self;
        (Body { vm, permit }, agent)
    }
}

/// A running machine whose agent is somebody else's. [`Body::end`] ends it. Dropping it kills it without waiting.
pub(crate) struct Body {
    pub(crate) vm: Box<dyn Vm>,
    permit: Mutex<Option<Permit>>,
}

impl Body {
    /// As [`Machine::end`].
    pub(crate) async fn end(&self) {
        drop(end(self.vm.as_ref(), &self.permit).await);
    }
}

async fn end(vm: &dyn Vm, permit: &Mutex<Option<Permit>>) -> Option<Permit> {
    if let Err(error) = vm.kill().await {
        tracing::error!(machine = vm.id(), error = %chain(&error), "machine could not be ended");
        // It may still hold its memory: the permit goes with the last owner.
        return None;
    }
    permit.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Asks the agent a question, again while it is late, at most for `limit`.
async fn answers(agent: &Agent, limit: Duration) -> Result<(), AgentError> {
    let until = Instant::now() + limit;
    loop {
        match agent.processes().await {
            Err(AgentError::Timeout { .. }) if Instant::now() < until => {}
            answered => return answered.map(drop),
        }
    }
}

/// Gives a restored guest its identity, and connects to its agent, within `limit`.
async fn greet_restored(vm: &dyn Vm, restored: Restored, limit: Duration) -> Result<(Agent, AgentInfo), MachineError> {
    let open = || async { vm.agent().await.map_err(MachineError::from) };
    // The clock is that of the moment at which it is sent: to connect takes seconds on a busy host.
    let now = || Restored { unix_time_ns: unix_time_ns(), ..restored.clone() };
    Agent::connect_restored(open, now, limit).await
}

/// Runs the work, unless the machine ends first. A failure that an ending machine brings on is told as its end.
async fn alive<T>(vm: &dyn Vm, work: impl Future<Output = Result<T, MachineError>>) -> Result<T, MachineError> {
    let failed = tokio::select! {
        biased;
        done = work => match done {
            Err(failed @ (MachineError::Vmm(_) | MachineError::Agent(AgentError::Closed))) => failed,
            done => return done,
        },
        ended = vm.exited() => return Err(MachineError::Ended(ended)),
    };
    Err(ended(vm).await.map_or(failed, MachineError::Ended))
}

fn identity(hostname: String, vm: &dyn Vm) -> Restored {
    let mut random = [0; 64 + 16];
    rand::rng().fill_bytes(&mut random);
    let (entropy, machine_id) = random.split_at(64);
    Restored {
        hostname,
        machine_id: hex::encode(machine_id),
        entropy: base64::engine::general_purpose::STANDARD.encode(entropy),
        unix_time_ns: unix_time_ns(),
        network: vm.guest_network(),
        resume: None,
        trial: false,
    }
}

pub(crate) fn unix_time_ns() -> u64 {
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
