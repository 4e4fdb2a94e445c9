//! MicroVMs: boot, pause, snapshot, restore, kill.
//!
//! ```text
//!            boot(BootSpec)                       restore(RestoreSpec)
//!                 |                                        |
//!                 v            pause()                     v
//!              Running  <------------------->  Paused   Running
//!                 |            resume()           |
//!                 |                               | snapshot(dir): memory, device state, disk
//!                 +---------- kill() -------------+
//!                                v
//!                              Gone   no process, socket, tap, mount or file of it is left
//! ```
//!
//! A driver owns every file format that it makes: callers hand it a raw root image and folders, and never look into a
//! snapshot's folder. Nothing here knows of templates or tenants, and nothing named by a guest or a caller becomes a
//! path or an argument: ids, folders and numbers come from the service.

mod cgroups;
mod changes;
pub mod class;
mod dirty;
mod emulation;
pub mod firecracker;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod mappings;
mod memory;
pub mod net;
mod process;
mod qcow2;
pub mod qemu;
mod side_by_side;
mod sparse;
pub mod spec;
mod tail;
mod touched;
mod uids;
mod usage;
mod walls;

pub use changes::{DiskChanges, Extent};
pub use class::{Compatibility, CpuFeatures};
pub use side_by_side::SideBySide;
pub use spec::*;

use std::path::Path;

use async_trait::async_trait;
use nullspace_guest::message::GuestNetwork;
use nullspace_types::EgressPolicy;
use tokio::io::{AsyncRead, AsyncWrite};

/// A duplex stream to the guest's agent.
pub trait AgentStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> AgentStream for T {}

/// A virtual machine monitor.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// Returns the kind of this driver.
    fn kind(&self) -> VmmKind;

    /// Returns the compatibility class of this driver's snapshots on this host: recorded with each, judged at restore.
    fn compatibility(&self) -> &Compatibility;

    /// The property for which a snapshot with this class cannot resume under this driver, as a sentence for the user; `None`
    /// when it can. Asked before a machine is started. [`Vmm::restore`] looks at the snapshot's files besides.
    fn conflict(&self, snapshot: &Compatibility) -> Option<String> {
        snapshot.conflict_with(self.compatibility())
    }

    /// True when machines are many times slower than on real hardware: they run in software, or under KVM in a host whose own
    /// processor is emulated. Waits for a guest must be longer then.
    fn is_slow(&self) -> bool {
        self.compatibility().is_emulated() || emulation::of_host()
    }

    /// Memory that a machine takes on the host besides its guest's own, MiB: the VMM itself, and what it keeps of guest code.
    fn overhead_mib(&self, vcpus: u32) -> u32;

    /// Memory that the driver holds for templates, MiB, beside what machines are charged for: it is shared by a template's
    /// machines, or kept for the next one.
    fn template_memory_mib(&self) -> u64;

    /// Frees memory of templates that no machine uses.
    fn trim_templates(&self);

    /// Describes the walls between a guest and this host, for people.
    fn walls(&self) -> String;

    /// True when guests reach this host's loopback, so that a connection from there may be a guest's.
    fn guests_reach_loopback(&self) -> bool;

    /// True when an egress policy holds for machines of this driver, and can be changed while they run. Otherwise a machine starts only
    /// with a network without a policy, or with a policy that denies all, which is then an isolated network.
    fn enforces_egress(&self) -> bool;

    /// Boots a machine from a raw root image with the service's kernel and initramfs. Returns when the VMM process runs;
    /// the guest is ready once [`Vm::agent`] has answered. On error nothing is left.
    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Vm>, VmmError>;

    /// Starts a machine from a snapshot, running. Its cost does not depend on the size of disk or memory. On error nothing is left.
    async fn restore(&self, spec: RestoreSpec) -> Result<Box<dyn Vm>, VmmError>;
}

/// A machine. Dropping it kills it; [`Vm::kill`] also waits and reports.
#[async_trait]
pub trait Vm: Send + Sync {
    /// The id given at boot or restore.
    fn id(&self) -> &str;

    /// Address, gateway and name servers that the guest's eth0 is to have, for [`Request::Configure`] after a boot and
    /// [`Request::Restored`] after a restore; `None` when it is isolated.
    ///
    /// [`Request::Configure`]: nullspace_guest::message::Request::Configure
    /// [`Request::Restored`]: nullspace_guest::message::Request::Restored
    fn guest_network(&self) -> Option<GuestNetwork>;

    /// Opens the stream to the agent. A machine has one at a time: a second call closes the first. After a restore, and in a
    /// machine that goes on after a snapshot, a guest's vsock is reset once, and what was just opened is closed: open again.
    async fn agent(&self) -> Result<Box<dyn AgentStream>, VmmError>;

    /// Stops the vCPUs. Idempotent.
    async fn pause(&self) -> Result<(), VmmError>;

    /// Lets the vCPUs run again. Idempotent.
    async fn resume(&self) -> Result<(), VmmError>;

    /// Returns the machine's writes to its root disk since it was booted or last captured. It may run; its root
    /// filesystem must be frozen, and may be thawed as soon as this returns. For machines that were booted over a
    /// [`Disk::Overlay`] only. Under QEMU the cost depends on what changed alone; see `firecracker/capture.rs` for the other.
    ///
    /// Afterwards [`Vm::snapshot`] holds what was written since, and [`RestoreSpec::base`] of such a snapshot is the base
    /// image with all captured changes applied (grown to the disk's size or not).
    ///
    /// # Errors
    /// [`VmmError::Refused`] for another machine, and after 64 captures: then a new one has to be booted from what was
    /// captured. After any other error the machine can only be killed.
    async fn capture(&self) -> Result<DiskChanges, VmmError>;

    /// Writes into `dir` (exists, empty) what a later [`Vm::snapshot`] into it needs and what does not change, while the machine
    /// runs: the pause is shorter then. Nothing has to come of it; the folder may be removed instead.
    ///
    /// # Errors
    /// When the files cannot be written. `dir` is empty then, and a snapshot does without.
    async fn prepare_snapshot(&self, dir: &Path) -> Result<(), VmmError> {
        let _ = dir;
        Ok(())
    }

    /// Writes memory, device state and disk into `dir` (exists, empty but for what [`Vm::prepare_snapshot`] wrote). The machine must be paused, its agent stream
    /// dropped and its root filesystem frozen; it stays paused. The files are not synced to disk: publishing is the
    /// caller's. With [`BootSpec`]'s machine this may move files out of its working folder, so that afterwards it can only be killed.
    async fn snapshot(&self, dir: &Path) -> Result<SnapshotSummary, VmmError>;

    /// Resolves when the VMM process has ended, and returns how. It never resolves for a machine that keeps running.
    async fn exited(&self) -> Ended;

    /// Returns true when a write to the guest's disk has failed because the host's disk was full. Data that the guest takes
    /// for written is then lost, and neither a capture nor a snapshot of the machine may be kept. True once the guest's flush or a
    /// [`Vm::pause`] after that write has been answered. Firecracker does not tell: always false there.
    fn has_lost_writes(&self) -> bool {
        false
    }

    /// Bytes on the host's disk in files of this machine that have no name in its working folder: what its guest has
    /// written of its disk, where that lies in an overlay. Blocks for a system call.
    fn nameless_bytes(&self) -> u64;

    /// Returns the parts of a restored machine's memory that it has used so far, and their neighbours: runs of 4 KiB pages as in
    /// [`SnapshotSummary::touched`]. `None` for a machine that was booted, and when the driver or the system does not tell.
    async fn touched(&self) -> Option<Vec<(u32, u32)>> {
        None
    }

    /// Returns what the machine has used of its host so far. `None` when the machine has ended, and where the system does not
    /// tell. Costs some tens of µs.
    async fn usage(&self) -> Option<VmUsage> {
        None
    }

    /// Replaces the egress policy of the machine's network. Packets of established connections that it denies pass no more when this
    /// returns.
    ///
    /// # Errors
    /// [`VmmError::Unavailable`] for a machine that is isolated, or whose driver does not enforce policies; [`VmmError::Exited`] when it
    /// has ended. After any error the policy is the one before.
    async fn set_egress(&self, policy: &EgressPolicy) -> Result<(), VmmError>;

    /// The guest console's last lines, for the log when a boot fails. Not for users: the guest writes it.
    fn console_tail(&self) -> String;

    /// Ends the machine and removes all it had outside a snapshot folder. Idempotent; bounded in time.
    async fn kill(&self) -> Result<(), VmmError>;
}
