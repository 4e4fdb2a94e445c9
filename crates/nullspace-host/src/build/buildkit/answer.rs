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

/// Whether the disk that BuildKit has ran full: by its own words, or by the last lines of the step that failed.
pub(super) fn ran_full(error: &Error, last: &[String]) -> bool {
    let says = |text: &str| text.to_ascii_lowercase().contains("no space left on device");
    match error {
        Error::Failed(Failure { cause: Cause::Exit(_), .. }) => last.iter().any(|line| says(line)),
        Error::Failed(_) | Error::NotExported { .. } => says(&error.to_string()),
        _ => false,
    }
}

/// The failure of a build that alone fills the disk of a builder machine.
pub(super) fn too_large(error: &Error, log: &Writer<'_>, disk_mib: u64) -> BuildFailure {
    let step = if let Error::Failed(failure) = error { failure.step.as_deref() } else { None };
    let at = step.map(|step| format!(" at {}", log.masked(&super::log::named(step)))).unwrap_or_default();
    let message = format!("the Dockerfile's build filled the disk of its builder machine, {disk_mib} MiB{at}");
    let advice = "Use smaller images and write less in steps, or ask the operator to raise builder_disk_mib.";
    let failure = BuildFailure::user(Phase::BuildStep, reason::DISK_FULL, message, advice)
        .with("builder_disk_mib", disk_mib)
        .with("last_output", json!(log.last_lines()));
    match step.and_then(|step| step.index) {
        Some(index) => failure.at_step(index),
        None => failure,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_known_by_the_words_of_whoever_met_it() {
        let failed = |message: &str, cause| Error::Failed(Failure { message: message.to_owned(), cause, step: None });
        let lines = ["cp: error writing '/b': No space left on device".to_owned(), "make: *** [b] Error 1".to_owned()];
        let exit = || failed("executor failed running [/bin/sh -c make]: exit code: 2", Cause::Exit(2));
        assert!(ran_full(&exit(), &lines));
        assert!(!ran_full(&exit(), &lines[1..]));
        // What a step printed is not why BuildKit itself failed.
        assert!(!ran_full(&failed("box:1: not found", Cause::ImageNotFound), &lines));
        assert!(ran_full(&failed("write /var/lib/docker/x: no space left on device", Cause::Other), &[]));
        let (endpoint, what) = (String::new(), "cannot export it: mkdir x: no space left on device".to_owned());
        assert!(ran_full(&Error::NotExported { endpoint, what }, &[]));
        assert!(!ran_full(&Error::Cancelled, &lines));
    }
}
