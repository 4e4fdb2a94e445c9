//! Failures of builds: one typed value for the row, the log's last entry and the API's `error_detail`.
//!
//! Reasons are part of the contract with users: each is documented here and tested where it arises.

use nullspace_api::{TemplateFailureDetail, TemplateFailureDetailCode, TemplateFailurePhase};
use nullspace_service::chain;
use serde_json::{Map, Value};

/// A build's failure, in the user's terms.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct BuildFailure {
    /// The phase of the build.
    pub phase: TemplateFailurePhase,
    /// The responsible party, coarsely.
    pub code: TemplateFailureDetailCode,
    /// `details.reason`: see the constants of [`reason`].
    pub reason: &'static str,
    /// The error, in one sentence.
    pub message: String,
    /// True when the same build may succeed later, unchanged.
    pub retryable: bool,
    /// The advice to the user.
    pub suggested_action: String,
    /// The step in question, from 1.
    pub step_index: Option<u32>,
    /// Further keys of `details`.
    pub details: Map<String, Value>,
}

/// Values of `details.reason`.
pub mod reason {
    /// The image has no manifest for this host's platform. Details: wanted, available.
    pub const UNSUPPORTED_PLATFORM: &str = "oci_unsupported_platform";
    /// A layer holds a device, FIFO or socket. Details: path, entry_type.
    pub const UNSUPPORTED_SPECIAL_FILE: &str = "oci_unsupported_special_file";
    /// The registry does not have the image.
    pub const IMAGE_NOT_FOUND: &str = "image_not_found";
    /// The registry wants other credentials.
    pub const REGISTRY_UNAUTHORIZED: &str = "registry_unauthorized";
    /// The registry cannot be reached or answers with errors.
    pub const REGISTRY_UNAVAILABLE: &str = "registry_unavailable";
    /// An image's host, or a host that its registry leads to, has no public address, and the operator does not list it.
    pub const ADDRESS_NOT_ALLOWED: &str = "address_not_allowed";
    /// The image breaks its format's rules or a limit.
    pub const INVALID_IMAGE: &str = "invalid_image";
    /// The image does not fit into `disk_mb`. Details: needed_mb.
    pub const DISK_TOO_SMALL: &str = "disk_too_small";
    /// The parent template was deleted after the build was accepted.
    pub const PARENT_NOT_FOUND: &str = "parent_template_not_found";
    /// The start command ended with an error before it was ready. Details: exit_code; out_of_memory and memory_mib when the
    /// machine's memory ran out meanwhile.
    pub const START_CMD_EXITED: &str = "start_cmd_exited";
    /// The start command could not be started (no such program, user or folder).
    pub const START_CMD_NOT_STARTED: &str = "start_cmd_not_started";
    /// The readiness check did not pass in time. Details: last_probe.
    pub const READINESS_TIMEOUT: &str = "readiness_timeout";
    /// The machine did not come up or ended by itself.
    pub const MACHINE_FAILED: &str = "machine_failed";
    /// The machine was ended from outside, by a signal: an operator, or a host short of memory. Details: signal.
    pub const MACHINE_KILLED: &str = "machine_killed";
    /// The new snapshot could not be restored, or its agent did not answer. The build is retried with another machine.
    pub const SNAPSHOT_TRIAL_FAILED: &str = "snapshot_trial_failed";
    /// The image's root could not be mounted or prepared in the machine.
    pub const ROOT_UNUSABLE: &str = "root_unusable";
    /// A step's program did not exit with 0. Details: exit_code, last_output (its last lines); out_of_memory when the
    /// machine's memory ran out meanwhile.
    pub const BUILD_STEP_NONZERO_EXIT: &str = "build_step_nonzero_exit";
    /// A step's program ran longer than the service allows. Details: limit_secs, exit_code, last_output.
    pub const BUILD_STEP_TIMEOUT: &str = "build_step_timeout";
    /// A step's file operation failed: a path is missing, has another type, or access to it is denied.
    pub const BUILD_STEP_FAILED: &str = "build_step_failed";
    /// A step filled the disk. Details: disk_mb.
    pub const DISK_FULL: &str = "disk_full";
    /// A run step in an image without /bin/sh.
    pub const SHELL_MISSING: &str = "shell_missing";
    /// The program that a step needs is not in the image.
    pub const PROGRAM_MISSING: &str = "program_missing";
    /// A step names a user or group that the image does not have.
    pub const UNKNOWN_USER: &str = "unknown_user";
    /// BuildKit is unreachable or closed the connection.
    pub const BUILDKIT_UNAVAILABLE: &str = "buildkit_unavailable";
    /// BuildKit has built the image, but its host cannot export it.
    pub const EXPORT_FAILED: &str = "export_failed";
    /// BuildKit cannot read the Dockerfile. Details: line, when it names one.
    pub const DOCKERFILE_INVALID: &str = "dockerfile_invalid";
    /// A step needs a secret that the request does not have. Details: secret_id.
    pub const BUILD_SECRET_MISSING: &str = "build_secret_missing";
    /// COPY or ADD of a file that is not in the build context.
    pub const CONTEXT_FILE_MISSING: &str = "context_file_missing";
    /// A file of the context was never uploaded. Details: path, blob_id, count.
    pub const UNKNOWN_BLOB: &str = "unknown_blob";
    /// An uploaded file of the context is missing.
    pub const MISSING_BLOB: &str = "missing_blob";
    /// The whole build took longer than the service allows. Details: limit_secs.
    pub const BUILD_TIMEOUT: &str = "build_timeout";
    /// The host had no capacity for the machine in time.
    pub const CAPACITY: &str = "capacity_exceeded";
    /// The host's disk, under the service's data folder, was full while the build ran. The build is retried, and may succeed
    /// unchanged once there is space. Details: cause, the reason of the attempt itself.
    pub const HOST_DISK_FULL: &str = "host_disk_full";
    /// The object store did not answer, refused, or was full.
    pub const STORE_UNAVAILABLE: &str = "object_store_unavailable";
    /// All attempts of the build were interrupted.
    pub const ATTEMPTS_SPENT: &str = "attempts_spent";
    /// Credentials of the request were lost with the process that held them.
    pub const CREDENTIALS_LOST: &str = "credentials_lost";
    /// The stored root image that the build starts from is damaged.
    pub const ROOT_DAMAGED: &str = "root_image_damaged";
    /// A command in a sandbox timed out. Details: stdout, stderr (the ends of its output), truncated.
    pub const EXEC_TIMEOUT: &str = "exec_timeout";
    /// A sandbox's resume hook or resume command failed or took too long.
    pub const RESUME_FAILED: &str = "resume_failed";
    /// A fault of the service; the log has its request or build id.
    pub const INTERNAL: &str = "internal";
}

const RETRY_LATER: &str = "Try again; if it persists, tell the operator the build id.";

impl BuildFailure {
    /// A failure of the definition or the image. An unchanged retry would fail again.
    pub fn user(
        phase: TemplateFailurePhase,
        reason: &'static str,
        message: impl Into<String>,
        suggested_action: impl Into<String>,
    ) -> Self {
        BuildFailure {
            phase,
            code: TemplateFailureDetailCode::BuildError,
            reason,
            message: message.into(),
            retryable: false,
            suggested_action: suggested_action.into(),
            step_index: None,
            details: Map::new(),
        }
    }

    /// A failure of the service or the host that another attempt may pass. `message` is for users: no internals.
    pub fn infrastructure(phase: TemplateFailurePhase, reason: &'static str, message: impl Into<String>) -> Self {
        BuildFailure {
            code: TemplateFailureDetailCode::InternalError,
            retryable: true,
            ..BuildFailure::user(phase, reason, message, RETRY_LATER)
        }
    }

    /// An internal error: logged in full, shown without internals.
    pub fn internal(phase: TemplateFailurePhase, error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, phase = ?phase, "internal error in a build");
        BuildFailure::infrastructure(phase, reason::INTERNAL, "internal error of the service")
    }

    /// The host's disk is full.
    pub fn host_disk_full(phase: TemplateFailurePhase) -> Self {
        BuildFailure {
            suggested_action:
                "Build again later; the operator must make room on the disk under the service's data folder.".to_owned(),
            ..BuildFailure::infrastructure(
                phase,
                reason::HOST_DISK_FULL,
                "the host's disk was full: the data that the build had written may be incomplete",
            )
        }
    }

    /// The same failure, of an attempt during which the host's disk was full, which may be its cause.
    pub fn for_want_of_room(self) -> Self {
        if self.reason == reason::HOST_DISK_FULL {
            return self;
        }
        tracing::warn!(reason = self.reason, failure = %self, "the host's disk was full while this attempt ran");
        let full = BuildFailure::host_disk_full(self.phase).with("cause", self.reason);
        BuildFailure { step_index: self.step_index, ..full }
    }

    /// An error of the service's own work in `phase`. A full disk may have caused it.
    pub fn own(phase: TemplateFailurePhase, error: &(dyn std::error::Error + 'static)) -> Self {
        if is_storage_full(error) {
            tracing::error!(error = %chain(error), phase = ?phase, "the disk is full");
            return BuildFailure::host_disk_full(phase);
        }
        BuildFailure::internal(phase, &chain(error))
    }

    /// Names the step in question, from 1.
    pub fn at_step(mut self, index: u32) -> Self {
        self.step_index = Some(index);
        self
    }

    /// Adds a key to `details`.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }

    /// The `error_detail` of the wire.
    pub fn detail(&self, build_id: &str, attempt: u32, max_attempts: u32) -> TemplateFailureDetail {
        let (message, action) = (self.message.clone(), self.suggested_action.clone());
        let mut detail = TemplateFailureDetail::new(self.code, self.phase, self.retryable, message, action);
        detail.attempt = Some(attempt);
        detail.max_attempts = Some(max_attempts);
        detail.build_id = Some(build_id.to_owned());
        detail.step_index = self.step_index;
        detail.details = Some(self.details.clone());
        detail.with_reason(self.reason)
    }
}

/// Whether the system's error for a full disk is among an error's causes.
pub fn is_storage_full(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| matches!(io.kind(), StorageFull | QuotaExceeded)) {
            return true;
        }
        cause = error.source();
    }
    false
}
