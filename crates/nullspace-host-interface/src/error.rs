//! Errors that pass between control and host.

use std::time::Duration;

use nullspace_api::{ErrorResponseCode, TemplateFailureDetail, TemplateFailureDetailCode, TemplateFailurePhase};
use nullspace_definition::problems::Invalid;
use nullspace_service::Error;

use crate::reason;

/// When a request that was refused for a full disk may come again.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// What a caller is told of a full disk.
const MESSAGE: &str = "the host's disk is nearly full: the service takes nothing new until there is room";
const ACTION: &str = "Try again later; the operator must make room on the disk under the service's data folder.";

/// The refusal of a request because the host's disk is full; for a build with the typed detail of `phase`.
pub fn storage_full(phase: Option<TemplateFailurePhase>) -> Error {
    let detail = phase.map(|phase| {
        let code = TemplateFailureDetailCode::InternalError;
        Box::new(TemplateFailureDetail::new(code, phase, true, MESSAGE, ACTION).with_reason(reason::HOST_DISK_FULL))
    });
    Error { retry_after: Some(RETRY_AFTER), detail, ..Error::new(ErrorResponseCode::CapacityExceeded, MESSAGE) }
}

/// The refusal of a request that breaks rules: all of them in one sentence.
pub fn invalid(error: Invalid) -> Error {
    Error::invalid(error.to_string())
}

/// Why a host could not do something with what it stores.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The disk under its data folder has no room. What failed may succeed once there is room.
    #[error("{0}")]
    StorageFull(String),
    /// It cannot be done as things are: a name that is none, a file that is missing or damaged, a fault of the file system. The
    /// text is for the log.
    #[error("{0}")]
    Failed(String),
}

impl HostError {
    /// Whether the disk under the data folder has no room.
    pub fn is_storage_full(&self) -> bool {
        matches!(self, HostError::StorageFull(_))
    }
}

/// Why control did not record something of a running build, or did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Another worker has the build, or it ended: the host must stop and ask nothing more.
    #[error("the lease on this build was lost")]
    LeaseLost,
    /// There is no such thing, or it cannot be used any more.
    #[error("not found")]
    NotFound,
    /// The database has no room on its disk.
    #[error("{0}")]
    StorageFull(String),
    /// Something stored does not read as what it must be. Trying again would not help.
    #[error("stored data is damaged: {0}")]
    Corrupt(String),
    /// The database refused or did not answer. The text is for the log.
    #[error("{0}")]
    Failed(String),
}
