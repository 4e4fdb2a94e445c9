//! BuildKit's failures in the user's terms.

use nullspace_api::{TemplateFailureDetailCode, TemplateFailurePhase as Phase};
use nullspace_buildkit::{Cause, Error, Failure};
use nullspace_host_interface::{BuildFailure, reason};
use serde_json::json;

use super::log::Writer;

/// The failure of a build that BuildKit did not finish. `log` has the output of its steps and the secrets to mask.
pub(super) fn failure(error: &Error, log: &Writer<'_>) -> BuildFailure {
    match error {
        Error::Failed(failure) => failed(failure, log),
        Error::TooLarge { limit } => BuildFailure::user(
            Phase::Prepare,
            reason::DISK_TOO_SMALL,
            format!("the image that the Dockerfile makes has more than {} MiB", limit >> 20),
            "Make the image smaller, or raise build_config.disk_mb.",
        ),
        Error::Cancelled => BuildFailure::infrastructure(Phase::Interrupted, reason::INTERNAL, "the build was stopped"),
        Error::Unavailable { .. } => {
            let message = "BuildKit is unreachable or closed the connection";
            BuildFailure::infrastructure(Phase::Prepare, reason::BUILDKIT_UNAVAILABLE, message)
        }
        Error::NotExported { .. } => {
            tracing::error!(%error, "a BuildKit cannot export an image");
            let message = "BuildKit built the image but could not export it";
            BuildFailure::infrastructure(Phase::Prepare, reason::EXPORT_FAILED, message)
        }
        Error::Io { .. } => BuildFailure::internal(Phase::Prepare, error),
    }
}

fn failed(failure: &Failure, log: &Writer<'_>) -> BuildFailure {
    let said = log.masked(&failure.message);
    let step = failure.step.as_deref();
    let what = step.map(|step| log.masked(&super::log::named(step)));
    let at = what.map(|what| format!(" at {what}")).unwrap_or_default();
    let user = |phase, reason, message: String, advice: &str| BuildFailure::user(phase, reason, message, advice);
    let answer = match &failure.cause {
        Cause::Exit(code) => user(
            Phase::BuildStep,
            reason::BUILD_STEP_NONZERO_EXIT,
            format!("the Dockerfile's build failed{at}: exit code {code}"),
            "Read the step's last output lines in this log and correct its command.",
        )
        .with("exit_code", *code)
        .with("last_output", json!(log.last_lines())),
        Cause::Syntax { line } => {
            let failure = user(
                Phase::Preflight,
                reason::DOCKERFILE_INVALID,
                format!("BuildKit cannot read the Dockerfile: {said}"),
                "Correct the line that the message names.",
            );
            match line {
                Some(line) => failure.with("line", *line),
                None => failure,
            }
        }
        Cause::MissingSecret(id) => user(
            Phase::BuildStep,
            reason::BUILD_SECRET_MISSING,
            format!("a step of the Dockerfile needs the secret {id}, which the request does not have"),
            &format!("Give build_secrets with an entry whose id is {id}."),
        )
        .with("secret_id", id.as_str()),
        Cause::Unauthorized => BuildFailure {
            code: TemplateFailureDetailCode::Unauthorized,
            ..user(
                Phase::Auth,
                reason::REGISTRY_UNAUTHORIZED,
                format!("a registry refused an image of the Dockerfile: {said}"),
                "Check the image's name and give registry_auth, or base_image_auth, with credentials that may pull it.",
            )
        },
        Cause::ImageNotFound => user(
            Phase::Prepare,
            reason::IMAGE_NOT_FOUND,
            format!("an image of the Dockerfile is not in its registry: {said}"),
            "Check the names after FROM and --from, and that the images were pushed.",
        ),
        Cause::RegistryUnavailable => {
            let mut failure = user(
                Phase::Prepare,
                reason::REGISTRY_UNAVAILABLE,
                format!("a registry of the Dockerfile's images is unreachable: {said}"),
                "Check that the registry is up and reachable from BuildKit's host, then build again.",
            );
            failure.retryable = true;
            failure
        }
        Cause::MissingFile => user(
            Phase::BuildStep,
            reason::CONTEXT_FILE_MISSING,
            format!("the Dockerfile's build failed{at}: {said}"),
            "Check that build_context has the file and that .dockerignore does not leave it out.",
        ),
        Cause::NoLayers => user(
            Phase::Prepare,
            reason::INVALID_IMAGE,
            "the image that the Dockerfile makes has no files at all: no instruction adds a layer".to_owned(),
            "Start FROM an image with files, or COPY some.",
        ),
        Cause::Other => user(
            Phase::BuildStep,
            reason::BUILD_STEP_FAILED,
            format!("the Dockerfile's build failed{at}: {said}"),
            "Read the log and correct the Dockerfile.",
        ),
    };
    match step.and_then(|step| step.index) {
        Some(index) => answer.at_step(index),
        None => answer,
    }
}
