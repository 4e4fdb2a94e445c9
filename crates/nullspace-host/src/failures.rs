//! Errors of machines, guests and the data folder, in the words of builds and callers.

use nullspace_api::{ErrorResponseCode, TemplateFailurePhase};
use nullspace_data::DataError;
use nullspace_guest::host::AgentError;
use nullspace_host_interface::{BuildFailure, HostError, reason};
use nullspace_service::{Error, chain};
use nullspace_vmm::{EndCause, Ended, VmmError};

/// A machine's failure while in `phase`. It is a warning in the log: the next attempt usually succeeds, and control logs an
/// error when there is none.
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

/// A machine ended while `what` ran in it. What its guest did is its owner's (`advice` says what to look at); a signal
/// or a fault of the VMM is the host's, and worth another attempt.
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

/// The agent's failure while in `phase`; a [`AgentError::Failed`] is the image's or the definition's.
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

/// The data folder's failure while in `phase`.
pub(crate) fn data(phase: TemplateFailurePhase, error: &DataError) -> BuildFailure {
    if error.is_storage_full() {
        tracing::error!(error = %chain(error), phase = ?phase, "the disk is full");
        return BuildFailure::host_disk_full(phase);
    }
    BuildFailure::internal(phase, &chain(error))
}

/// A fault of the service: logged whole, shown without internals.
pub(crate) fn internal(what: &str, error: &dyn std::error::Error) -> Error {
    tracing::error!(error = %chain(error), "{what}");
    Error::new(ErrorResponseCode::InternalError, "the service failed at its own work; its log has this request's id")
}

/// The data folder's error for a caller.
pub(crate) fn of_data(error: DataError) -> Error {
    if error.is_storage_full() {
        return crate::disk::refused(&error, None);
    }
    internal("data folder", &error)
}

/// The data folder's error for control.
pub(crate) fn to_control(error: DataError) -> HostError {
    let full = error.is_storage_full();
    let text = chain(&error);
    if full { HostError::StorageFull(text) } else { HostError::Failed(text) }
}
