//! Errors of machines, guests and the data folder, in the terms of builds and callers.

use std::time::Duration;

use nullspace_api::{ErrorResponseCode, TemplateFailureDetail, TemplateFailureDetailCode, TemplateFailurePhase};
use nullspace_data::DataError;
use nullspace_guest::host::AgentError;
use nullspace_host_interface::{BuildFailure, HostError, internal, reason, storage_full, store_away};
use nullspace_service::{Error, chain};
use nullspace_vmm::{EndCause, Ended, VmmError};

use crate::machine::MachineError;

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

/// The failure of a build whose machine ended before it was usable. Whatever ended it, the next attempt boots another one.
pub(crate) fn machine_not_up(phase: TemplateFailurePhase, ended: &Ended) -> BuildFailure {
    match ended.cause {
        EndCause::Guest => machine(phase, &VmmError::Exited(ended.how.clone())),
        EndCause::Signal(_) | EndCause::Vmm => machine_ended(phase, ended, "it was started", ""),
    }
}

/// Time after which the start of a sandbox should be tried again whose machine failed.
const START_AGAIN: Duration = Duration::from_secs(2);

/// The error of a sandbox whose machine did not come up, with the reasons that builds have. An end by its guest is no fault of
/// the host, and not retryable.
pub(crate) fn not_started(error: &MachineError) -> Error {
    tracing::error!(error = %chain(error), "a sandbox's machine did not come up");
    let (reason, retryable, what) = match error {
        MachineError::Ended(Ended { cause: EndCause::Signal(signal), .. }) => {
            (reason::MACHINE_KILLED, true, format!("was killed on this host (signal {signal})"))
        }
        MachineError::Ended(Ended { cause: EndCause::Guest, .. }) => {
            (reason::MACHINE_FAILED, false, "was shut down or crashed by its guest".to_owned())
        }
        MachineError::Vmm(VmmError::Timeout { what, limit_ms }) => {
            (reason::MACHINE_FAILED, true, format!("did not start in time: {what} took over {limit_ms} ms"))
        }
        MachineError::Agent(_) => (reason::MACHINE_FAILED, true, "did not answer".to_owned()),
        _ => (reason::MACHINE_FAILED, true, "failed on this host".to_owned()),
    };
    let message = format!("the sandbox could not start: its machine {what}");
    let advice = if retryable {
        "Try again; if it persists, tell the operator the request's id."
    } else {
        "Check what the template's start command and resume hooks do, and build it again."
    };
    let (code, phase) = (TemplateFailureDetailCode::InternalError, TemplateFailurePhase::Interrupted);
    let detail = TemplateFailureDetail::new(code, phase, retryable, message.clone(), advice.to_owned());
    Error {
        retry_after: retryable.then_some(START_AGAIN),
        detail: Some(Box::new(detail.with_reason(reason))),
        ..Error::new(ErrorResponseCode::InternalError, message)
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
        // A machine of a build runs the agent of the host's own guest image.
        AgentError::Abi { .. } | AgentError::Lacking { .. } => {
            tracing::error!(error = %chain(error), phase = ?phase, "the guest image has an agent that this service cannot use");
            let message = "this host's guest image is of another version than its service: the operator has to install \
                           the guest image of this version";
            BuildFailure::infrastructure(phase, reason::MACHINE_FAILED, message)
        }
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
    if error.is_store_away() {
        tracing::error!(error = %chain(error), phase = ?phase, "the object store failed a build");
        let message = "the object store did not answer or took nothing";
        return BuildFailure {
            suggested_action: "Build again later; if it persists, the operator must look at the object store."
                .to_owned(),
            ..BuildFailure::infrastructure(phase, reason::STORE_UNAVAILABLE, message)
        };
    }
    BuildFailure::internal(phase, &chain(error))
}

/// The failure to get the file at `path` of the build context.
pub(crate) fn context_file(phase: TemplateFailurePhase, path: &str, error: &DataError) -> BuildFailure {
    match error {
        DataError::Damaged { .. } => {
            tracing::error!(error = %chain(error), "a file of a build context is damaged");
            let message = format!("the stored file {} of the build context is damaged", path.escape_debug());
            upload_again(message)
        }
        error => data(phase, error),
    }
}

/// The failure of a build whose context has a file that is not stored any more.
pub(crate) fn missing_file(path: &str) -> BuildFailure {
    upload_again(format!("the file {} of the build context is not stored any more", path.escape_debug()))
}

fn upload_again(message: String) -> BuildFailure {
    let advice = "Upload the file again and start a new build.";
    BuildFailure {
        code: TemplateFailureDetailCode::FileUploadError,
        ..BuildFailure::user(TemplateFailurePhase::BlobUpload, reason::MISSING_BLOB, message, advice)
    }
}

/// A request that was refused, or broke off, because of the data folder; for a build with the typed detail of `phase`.
pub(crate) fn refused(error: &DataError, phase: Option<TemplateFailurePhase>) -> Error {
    if error.is_store_away() {
        tracing::error!(error = %chain(error), "refused: the object store is away");
        return store_away(phase);
    }
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
    let text = chain(&error);
    if error.is_storage_full() {
        HostError::StorageFull(text)
    } else if error.is_store_away() {
        HostError::StoreAway(text)
    } else {
        HostError::Failed(text)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error as IoError, ErrorKind};

    use super::*;

    const PHASE: TemplateFailurePhase = TemplateFailurePhase::Snapshot;

    /// A file that does not fit on the disk, and one beyond a quota of its filesystem, as the kernel tells them.
    fn full() -> [IoError; 2] {
        [28 /* ENOSPC */, 122 /* EDQUOT */].map(IoError::from_raw_os_error)
    }

    fn assert_disk_full(failure: &BuildFailure) {
        assert_eq!((failure.reason, failure.phase, failure.retryable), (reason::HOST_DISK_FULL, PHASE, true));
        // Neither the image nor the definition is to blame.
        assert!(failure.message.contains("the host's disk was full"), "{failure:?}");
        assert!(failure.suggested_action.contains("Build again later"), "{failure:?}");
    }

    fn vmm_io(source: IoError) -> VmmError {
        VmmError::Io { context: "write a machine's memory".into(), source }
    }

    fn data_io(source: IoError) -> DataError {
        DataError::Io { context: "write a pack".into(), source }
    }

    #[test]
    fn a_full_disk_under_a_machines_files_is_the_hosts_fault_and_is_retried() {
        full().map(vmm_io).iter().for_each(|error| assert_disk_full(&machine(PHASE, error)));
        // A VMM that writes the memory itself tells the fault in words.
        for message in ["No space left on device (os error 28)", "snapshot: Disk quota exceeded"] {
            let told = VmmError::Refused { context: "write the snapshot".into(), message: message.into() };
            assert_disk_full(&machine(PHASE, &told));
        }
        for other in [
            vmm_io(ErrorKind::PermissionDenied.into()),
            VmmError::Refused { context: "write the snapshot".into(), message: "Input/output error".into() },
            VmmError::Exited("the guest powered off".into()),
        ] {
            assert_eq!(machine(PHASE, &other).reason, reason::MACHINE_FAILED, "{other}");
        }
    }

    #[test]
    fn a_full_disk_under_the_data_folder_is_told_to_builds_callers_and_control() {
        for error in full().map(data_io) {
            assert_disk_full(&data(PHASE, &error));
            assert_disk_full(&context_file(PHASE, "src/main.c", &error));
            for phase in [None, Some(PHASE)] {
                let refused = refused(&error, phase);
                assert_eq!(refused.code, ErrorResponseCode::CapacityExceeded);
                assert!(refused.retry_after.is_some());
                let detail =
                    refused.detail.map(|detail| (detail.reason().map(str::to_owned), detail.retryable, detail.phase));
                assert_eq!(detail, phase.map(|phase| (Some(reason::HOST_DISK_FULL.to_owned()), true, phase)));
            }
            assert!(matches!(to_control(error), HostError::StorageFull(text) if text.contains("write a pack")));
        }
        let other = || data_io(ErrorKind::PermissionDenied.into());
        assert_eq!(data(PHASE, &other()).reason, reason::INTERNAL);
        assert_eq!(of_data(other()).code, ErrorResponseCode::InternalError);
        assert!(matches!(to_control(other()), HostError::Failed(_)));
    }
}
