//! Errors of machines, guests and the data folder, in the terms of builds and callers.

use nullspace_api::TemplateFailurePhase;
use nullspace_data::DataError;
use nullspace_guest::host::AgentError;
use nullspace_host_interface::{BuildFailure, HostError, internal, reason, storage_full};
use nullspace_service::{Error, chain};
use nullspace_vmm::{EndCause, Ended, VmmError};

/// A machine's failure in `phase`. It is only a warning in the log: the next attempt usually succeeds. Control logs an error
/// when there is no next attempt.
pub(crate) fn machine(phase: TemplateFailurePhase, error: &VmmError) -> BuildFailure {
    tracing::warn!(error = %chain(error), phase = ?phase, "machine failed in a build");
    if error.is_storage_full() {
        return BuildFailure::host_disk_full(phase);
    }
    let message = match error {
        VmmError::Timeout { what, limit_ms } => format!("the build machine failed: {what} took over {limit_ms} ms"),
        VmmError::Unavailable(why) => format!("this host cannot run machines: {why}"),
        _ => String::from("the build machine ended or failed by itself"),
    };
    BuildFailure::infrastructure(phase, reason::MACHINE_FAILED, message)
}

/// The failure of a machine that ended while `what` ran in it. An end by its guest is the owner's, with `advice`. A signal or
/// a fault of the VMM is the host's, and is retried.
pub(crate) fn machine_ended(phase: TemplateFailurePhase, ended: &Ended, what: &str, advice: &str) -> BuildFailure {
    tracing::warn!(how = %ended, cause = ?ended.cause, what, "a build's machine ended");
    match ended.cause {
        EndCause::Guest => BuildFailure::user(
            phase,
            reason::MACHINE_FAILED,
            format!("the machine ended while {what} ran (shut down, crashed or out of memory)"),
            advice,
        ),
        EndCause::Signal(signal) => BuildFailure::infrastructure(
            phase,
            reason::MACHINE_KILLED,
            format!("the machine was killed on this host (signal {signal}) while {what} ran"),
        )
        .with("signal", signal),
        EndCause::Vmm => BuildFailure::infrastructure(
            phase,
            reason::MACHINE_FAILED,
            format!("the machine failed on this host while {what} ran"),
        ),
    }
}

/// The agent's failure in `phase`. [`AgentError::Failed`] is a failure of the image or the definition.
pub(crate) fn agent(phase: TemplateFailurePhase, error: &AgentError) -> BuildFailure {
    match error {
        AgentError::Failed(failure) => BuildFailure::user(
            phase,
            reason::START_CMD_NOT_STARTED,
            failure.message.clone(),
            "Check start_cmd, default_user and default_workdir against what the image holds.",
        ),
        _ => {
            tracing::warn!(error = %chain(error), phase = ?phase, "guest agent failed in a build");
            BuildFailure::infrastructure(phase, reason::MACHINE_FAILED, "the build machine stopped answering")
        }
    }
}

/// The data folder's failure in `phase`.
pub(crate) fn data(phase: TemplateFailurePhase, error: &DataError) -> BuildFailure {
    if error.is_storage_full() {
        tracing::error!(error = %chain(error), phase = ?phase, "the disk is full");
        return BuildFailure::host_disk_full(phase);
    }
    BuildFailure::internal(phase, &chain(error))
}

/// A request that was refused, or broke off, because of the data folder; for a build with the typed detail of `phase`.
pub(crate) fn refused(error: &DataError, phase: Option<TemplateFailurePhase>) -> Error {
    if !error.is_storage_full() {
        return internal("use the data folder", error);
    }
    tracing::debug!(error = %chain(error), "refused: the disk under the data folder has no room");
    storage_full(phase)
}

/// The data folder's error for a caller.
pub(crate) fn of_data(error: DataError) -> Error {
    refused(&error, None)
}

/// The data folder's error for control.
pub(crate) fn to_control(error: DataError) -> HostError {
    let full = error.is_storage_full();
    let text = chain(&error);
    if full { HostError::StorageFull(text) } else { HostError::Failed(text) }
}
