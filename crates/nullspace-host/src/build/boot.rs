//! The build's machine: its admission and its boot.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nullspace_api::TemplateFailurePhase as Phase;
use nullspace_guest::message::ROOT_FULL;
use nullspace_host_interface::{BuildFailure, BuildJob, reason};
use nullspace_vmm::{BootSpec, Disk, Network};

use super::prepare::{Prepared, unreadable};
use super::{Attempt, Error};
use crate::admission::{Permit, Refused, Wanted};
use crate::failures;
use crate::machine::{Machine, MachineError, SharedMachine};

/// Longest wait of a build for admission.
const ADMISSION: Duration = Duration::from_secs(300);
/// Free disk space that a machine needs on a disk that an older import has filled, MiB.
const ROOM_FOR_MACHINE_MIB: u64 = 64;

/// Waits for admission: for capacity of the host and for the tenant's quota.
pub(crate) async fn admit(attempt: &Attempt) -> Result<Permit, Error> {
    let (job, size) = (&attempt.job, &attempt.job.definition.machine);
    let wanted = Wanted { tenant: job.tenant, memory_mib: size.memory_mib, vcpus: size.vcpus, sandbox: false };
    let deadline = Instant::now() + ADMISSION;
    let mut said = false;
    loop {
        let full = match attempt.builder.machines.admission.admit(wanted) {
            Ok(permit) => return Ok(permit),
            Err(full) => full,
        };
        if Instant::now() >= deadline {
            let failure = BuildFailure::infrastructure(Phase::Prepare, reason::CAPACITY, full.to_string());
            return Err(failure.into());
        }
        // Of a quota, another tenant's builder holds nothing.
        let own = matches!(full, Refused::Quota { .. }).then_some(job.tenant);
        if attempt.builder.buildkits.make_room(own).await || attempt.builder.spares.make_room(own).await {
            continue;
        }
        if !said {
            said = true;
            attempt.log.say("startup", format!("Waiting: {full}")).await?;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Boots the build's machine over its root image.
pub(crate) async fn boot(attempt: &Attempt, prepared: &Prepared, permit: Permit) -> Result<SharedMachine, Error> {
    let Attempt { builder, job, log, scope, .. } = attempt;
    let size = &job.definition.machine;
    let began = Instant::now();
    let work_dir = scope.scratch(&builder.files, &builder.disk)?.path().join("machine");
    std::fs::create_dir(&work_dir).map_err(|error| BuildFailure::own(Phase::Prepare, &error))?;
    let root = builder.files.open_rootfs(&prepared.rootfs).await.map_err(unreadable)?;
    let spec = BootSpec {
        id: machine_id("build", job),
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        disk: Disk::Overlay { base: root.path().to_owned(), size_bytes: prepared.disk_bytes },
        network: if size.internet_access { Network::Internet } else { Network::Isolated },
        work_dir,
    };
    // A parent's root image is what was imported once: its user may need the account again.
    let imported = prepared.runtime.user.clone();
    scope.keep_root(root);
    // A task of the scope's: when this future is dropped, the scope still knows what there is to wait for and to end.
    let booting = scope.tasks.spawn({
        let (vmm, cancel, held) = (Arc::clone(&builder.machines.vmm), scope.cancel.clone(), Arc::clone(&scope.machine));
        async move {
            let machine = Arc::new(Machine::boot(vmm.as_ref(), spec, imported, permit, &cancel).await?);
            *held.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&machine));
            Ok(machine)
        }
    });
    let booted = booting.await.map_err(|error| BuildFailure::internal(Phase::Prepare, &error))?;
    let machine: SharedMachine = booted.map_err(|error| match error {
        MachineError::Vmm(error) => failures::machine(Phase::Prepare, &error),
        MachineError::Agent(error) => failures::agent(Phase::Prepare, &error),
        MachineError::Ended(ended) => failures::machine_not_up(Phase::Prepare, &ended),
        MachineError::Root(why) if why.starts_with(ROOT_FULL) => {
            let mib = prepared.disk_bytes >> 20;
            let message = format!("the image leaves its machine no room on the disk of {mib} MiB: {why}");
            let advice = format!("Set build_config.disk_mb to at least {}.", mib + ROOM_FOR_MACHINE_MIB);
            BuildFailure::user(Phase::Prepare, reason::DISK_TOO_SMALL, message, advice)
                .with("needed_mb", mib + ROOM_FOR_MACHINE_MIB)
        }
        MachineError::Root(why) => BuildFailure::user(
            Phase::Prepare,
            reason::ROOT_UNUSABLE,
            format!("the image's root filesystem cannot be used in a machine: {why}"),
            "Check the image: a file or link stands where a folder must be.",
        ),
        MachineError::Cancelled => {
            BuildFailure::infrastructure(Phase::Interrupted, reason::INTERNAL, "the machine's start was given up")
        }
    })?;
    if prepared.disk_bytes > prepared.rootfs.bytes {
        machine.agent.grow_root().await.map_err(|error| failures::agent(Phase::Prepare, &error))?;
    }
    log.say("startup", format!("Machine booted in {} ms", began.elapsed().as_millis())).await?;
    Ok(machine)
}

/// The id of a build's machine for `what`: the end of the build's id, which differs between builds of one moment.
pub(super) fn machine_id(what: &str, job: &BuildJob) -> String {
    let id = job.build.uuid().as_simple().to_string();
    format!("{what}-{}-{}", &id[16..], job.attempt)
}
