//! Classification of BuildKit's failure messages.
//!
//! BuildKit reports every failure as one line of text. The texts are those of 0.8 (Docker 20.10) to 0.2x. An unknown text is
//! [`Cause::Other`], unchanged.

use std::sync::Arc;

use crate::progress::Step;

/// A failed build.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// BuildKit's text, without its prefixes.
    pub message: String,
    /// The cause.
    pub cause: Cause,
    /// The step that failed, when one did.
    pub step: Option<Arc<Step>>,
}

/// The cause of a failed build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A command ended with this code.
    Exit(i32),
    /// The Dockerfile cannot be read.
    Syntax {
        /// The line, where one is named.
        line: Option<u32>,
    },
    /// A secret that a step needs was not given.
    MissingSecret(String),
    /// A registry wants other credentials, or does not say that the image does not exist.
    Unauthorized,
    /// A registry does not have an image.
    ImageNotFound,
    /// A registry cannot be reached or has an internal error.
    RegistryUnavailable,
    /// COPY or ADD of a file that is not in the context.
    MissingFile,
    /// The image has no layer, and so nothing that could be exported.
    NoLayers,
    /// Something else.
    Other,
}

impl Failure {
    pub(crate) fn read(text: &str, step: Option<Arc<Step>>) -> Failure {
        let message = shortened(text);
        let cause = cause(&message);
        Failure { message, cause, step }
    }
}

/// Without what BuildKit says before the reason, and bounded.
fn shortened(text: &str) -> String {
    const PREFIXES: [&str; 7] = [
        "failed to solve with frontend dockerfile.v0: ",
        "failed to solve with frontend gateway.v0: ",
        "rpc error: code = Unknown desc = ",
        "failed to solve: ",
        "failed to build LLB: ",
        "failed to create LLB definition: ",
        "failed to compute cache key: ",
    ];
    let mut rest = text.trim();
    while let Some(shorter) = PREFIXES.iter().find_map(|prefix| rest.strip_prefix(prefix)) {
        rest = shorter;
    }
    rest.chars().take(2000).collect()
}

fn cause(text: &str) -> Cause {
    let lower = text.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if let Some(code) = number_behind(&lower, "exit code: ")
        && has(&["executor failed running", "did not complete successfully", "failed to solve"])
    {
        return Cause::Exit(code);
    }
    if has(&[
        "dockerfile parse error",
        "unknown instruction",
        "failed to parse dockerfile",
        "file with no instructions",
    ]) {
        let line = number_behind(&lower, "line ").and_then(|line| u32::try_from(line).ok());
        return Cause::Syntax { line };
    }
    if let Some(id) = missing_secret(text) {
        return Cause::MissingSecret(id);
    }
    if has(&[
        "pull access denied",
        "unauthorized",
        "authorization failed",
        "403 forbidden",
        "no basic auth credentials",
    ]) {
        return Cause::Unauthorized;
    }
    if has(&[
        "failed to do request",
        "connection refused",
        "no such host",
        "i/o timeout",
        "tls handshake",
        "toomanyrequests",
    ]) || has(&["500 internal", "502 bad", "503 service", "504 gateway"])
    {
        return Cause::RegistryUnavailable;
    }
    if has(&["failed to walk", "failed to calculate checksum", "\"/"]) && has(&["not found", "no such file"]) {
        return Cause::MissingFile;
    }
    if lower.ends_with(": not found") || has(&["manifest unknown", "name unknown", "failed to resolve source metadata"])
    {
        return Cause::ImageNotFound;
    }
    Cause::Other
}

fn number_behind(text: &str, mark: &str) -> Option<i32> {
    let rest = text.get(text.rfind(mark)?.checked_add(mark.len())?..)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..digits)?.parse().ok()
}

/// `secret ID not found: not found` (0.8), `secret ID: not found`, or `secret not found: ID`.
fn missing_secret(text: &str) -> Option<String> {
    let behind = text.get(text.rfind("secret ")?.checked_add("secret ".len())?..)?;
    let (front, end) = behind.split_once("not found")?;
    let front = front.trim().trim_end_matches(':');
    let id = if front.is_empty() { end.trim_start_matches(": ") } else { front };
    (!id.is_empty() && !id.contains(char::is_whitespace)).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_buildkits_say_is_told_apart() {
        for (text, expected) in [
            (
                "failed to solve with frontend dockerfile.v0: failed to build LLB: executor failed running [/bin/sh -c exit 3]: exit code: 3",
                Cause::Exit(3),
            ),
            (
                "failed to solve: process \"/bin/sh -c exit 42\" did not complete successfully: exit code: 42",
                Cause::Exit(42),
            ),
            (
                "failed to solve with frontend dockerfile.v0: failed to create LLB definition: dockerfile parse error line 3: unknown instruction: FOO",
                Cause::Syntax { line: Some(3) },
            ),
            (
                "failed to solve: dockerfile parse error on line 12: unknown flag: network",
                Cause::Syntax { line: Some(12) },
            ),
            (
                "failed to solve with frontend dockerfile.v0: failed to build LLB: secret token: not found",
                Cause::MissingSecret("token".to_owned()),
            ),
            (
                "failed to solve with frontend dockerfile.v0: failed to build LLB: secret token not found: not found",
                Cause::MissingSecret("token".to_owned()),
            ),
            ("failed to solve: secret not found: a.b-c", Cause::MissingSecret("a.b-c".to_owned())),
            ("failed to solve: secret token: not found", Cause::MissingSecret("token".to_owned())),
            (
                "failed to solve with frontend dockerfile.v0: failed to create LLB definition: 127.0.0.1:5000/nope:1: not found",
                Cause::ImageNotFound,
            ),
            (
                "failed to solve: nope:1: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
                Cause::Unauthorized,
            ),
            (
                "failed to solve with frontend dockerfile.v0: failed to create LLB definition: failed to do request: Head \"http://127.0.0.1:1/v2/x/manifests/1\": dial tcp 127.0.0.1:1: connect: connection refused",
                Cause::RegistryUnavailable,
            ),
            (
                "failed to solve with frontend dockerfile.v0: failed to build LLB: failed to compute cache key: \"/nope\" not found: not found",
                Cause::MissingFile,
            ),
            ("failed to solve: something else", Cause::Other),
            ("", Cause::Other),
        ] {
            assert_eq!(Failure::read(text, None).cause, expected, "{text}");
        }
        assert_eq!(Failure::read("failed to solve: failed to build LLB: why", None).message, "why");
    }
}
