//! Failures of git, in the terms of the API.

use nullspace_api::{ErrorResponseCode as Code, Secret};
use nullspace_guest::host::{AgentError, ExecOutput};
use nullspace_guest::message::FailureKind;
use nullspace_service::Error;

use super::credentials::KEY_REFUSED;
use crate::sandbox::exec::exec_error;

/// Most bytes of git's own words in an error, from their end.
const MAX_WORDS: usize = 2000;
/// The shell's exit code for a program that it does not find.
const NO_PROGRAM: i32 = 127;

const NO_GIT: &str = "git is not installed in this sandbox: build its template with the step apt_install and the package git, or \
                      install it in the sandbox";
const NO_SSH: &str = "ssh is not installed in this sandbox: build its template with the step apt_install and the package \
                      openssh-client, or install it in the sandbox";

/// What git says of a failure, and what that means. The first that fits holds.
const MEANINGS: &[(&str, Code, &str)] = &[
    ("cannot run ssh", Code::FileError, NO_SSH),
    ("ssh: not found", Code::FileError, NO_SSH),
    ("ssh-add: not found", Code::FileError, NO_SSH),
    ("git: not found", Code::FileError, NO_GIT),
    ("cannot change to '", Code::NotFound, "there is no such directory"),
    ("not a git repository", Code::NotFound, "there is no git repository at this path"),
    ("dubious ownership", Code::FileError, "another user owns the repository: set safe.directory in the sandbox"),
    ("Please tell me who you are", Code::FileError, "nobody is set as its author: give author_name and author_email"),
    ("empty ident name", Code::FileError, "nobody is set as its author: give author_name and author_email"),
    ("nothing to commit", Code::FileError, "there is nothing to commit"),
    ("nothing added to commit", Code::FileError, "nothing is added: give files or add_all"),
    ("no changes added to commit", Code::FileError, "nothing is added: give files or add_all"),
    ("could not read Username", Code::ExecFailed, "the remote asks for credentials: give auth"),
    ("could not read Password", Code::ExecFailed, "the remote asks for credentials: give auth"),
    ("Authentication failed", Code::ExecFailed, "the remote refuses the credentials"),
    ("Permission denied (publickey", Code::ExecFailed, "the remote refuses the key, or asks for one: give auth"),
    ("Host key verification failed", Code::ExecFailed, "the remote's host key is not the known one"),
    (
        "Could not resolve host",
        Code::ExecFailed,
        "the remote's name does not resolve; the sandbox may have no internet access",
    ),
    ("unable to access 'http", Code::ExecFailed, "the remote is not reached or refuses"),
    ("Could not read from remote repository", Code::ExecFailed, "the remote is not reached or refuses"),
    ("not found", Code::FileError, "it was not found"),
    ("[rejected]", Code::FileError, "the remote has commits that this repository lacks: pull first"),
    ("CONFLICT (", Code::FileError, "the commits conflict: resolve it in the sandbox and commit"),
    ("divergent branches", Code::FileError, "both sides have commits: set pull.rebase or pull.ff in the repository"),
    ("already exists and is not an empty directory", Code::FileError, "the directory is not empty"),
    ("not fully merged", Code::FileError, "the branch is not merged: give force to delete it"),
];

/// The error of a git that ended with a failure.
pub(super) fn of(operation: &str, output: &ExecOutput, hidden: &[Secret]) -> Error {
    if output.exit.timed_out {
        let message =
            format!("git {operation} took too long and was stopped; try again, or run git by exec with a timeout");
        return Error::new(Code::ExecTimeout, message);
    }
    if output.exit.code == KEY_REFUSED {
        let message =
            format!("git {operation}: the private key is none that ssh-add takes, or its passphrase is wrong");
        return Error::invalid(message);
    }
    let words = words(output, hidden);
    let meaning = MEANINGS.iter().find(|(says, ..)| words.contains(says));
    let (code, meaning) = match meaning {
        Some((_, code, meaning)) => (*code, *meaning),
        None if output.exit.code == NO_PROGRAM => (Code::FileError, NO_GIT),
        None => (Code::FileError, "git refuses"),
    };
    let message = if words.is_empty() {
        format!("git {operation} failed: {meaning} (exit code {})", output.exit.code)
    } else {
        format!("git {operation} failed: {meaning}. git says: {words}")
    };
    Error::new(code, message)
}

/// The error of a git that did not run.
pub(super) fn of_agent(program: &str, error: AgentError) -> Error {
    match error {
        AgentError::Failed(failure) if failure.kind == FailureKind::ProgramNotFound => {
            let message = match program {
                "git" => NO_GIT,
                "ssh-agent" => NO_SSH,
                _ => {
                    "sh is not installed in this sandbox, which auth needs: build its template from an image with a shell"
                }
            };
            Error::new(Code::FileError, message)
        }
        error => exec_error(error, "git"),
    }
}

/// The end of what git says, in plain text.
pub(super) fn words(output: &ExecOutput, hidden: &[Secret]) -> String {
    let said = if output.stderr.trim_ascii().is_empty() { &output.stdout } else { &output.stderr };
    let mut text: String = String::from_utf8_lossy(said)
        .chars()
        .map(|c| if c == '\r' { '\n' } else { c })
        .filter(|c| !c.is_control() || *c == '\n')
        .collect();
    for secret in hidden {
        text = text.replace(secret.expose(), "…");
    }
    let text = text.trim();
    let from = text.ceil_char_boundary(text.len().saturating_sub(MAX_WORDS));
    text.get(from..).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use nullspace_guest::message::{Exit, Failure};

    use super::*;

    fn output(code: i32, stderr: &str) -> ExecOutput {
        ExecOutput { stderr: stderr.into(), exit: Exit { code, ..Exit::default() }, ..ExecOutput::default() }
    }

    #[test]
    fn each_failure_has_the_code_of_who_can_mend_it() {
        for (code, stderr, expected) in [
            (128, "fatal: not a git repository (or any of the parent directories): .git", Code::NotFound),
            (128, "fatal: cannot change to '/x': No such file or directory", Code::NotFound),
            (128, "fatal: could not read Username for 'http://h': terminal prompts disabled", Code::ExecFailed),
            (128, "fatal: Authentication failed for 'http://h/a.git/'", Code::ExecFailed),
            (128, "fatal: unable to access 'http://h/': Could not resolve host: h", Code::ExecFailed),
            (
                128,
                "git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.",
                Code::ExecFailed,
            ),
            (1, " ! [rejected]        main -> main (fetch first)", Code::FileError),
            (128, "Author identity unknown\n\n*** Please tell me who you are.", Code::FileError),
            (127, "sh: 2: exec: git: not found", Code::FileError),
            (127, "", Code::FileError),
            (76, "nullspace: ssh-add did not take the private key", Code::InvalidRequest),
            (1, "error: something else", Code::FileError),
        ] {
            assert_eq!(of("x", &output(code, stderr), &[]).code, expected, "{stderr}");
        }
        let late = ExecOutput { exit: Exit { code: 143, timed_out: true, ..Exit::default() }, ..ExecOutput::default() };
        assert_eq!(of("x", &late, &[]).code, Code::ExecTimeout);
    }

    #[test]
    fn a_missing_git_is_named_with_its_cure() {
        let failure =
            Failure { kind: FailureKind::ProgramNotFound, message: "Program `git` is in no folder".to_owned() };
        let error = of_agent("git", AgentError::Failed(failure));
        assert_eq!(error.code, Code::FileError);
        assert!(error.message.contains("apt_install"), "{error}");
        assert!(of("clone", &output(127, "sh: 2: exec: git: not found"), &[]).message.contains("apt_install"));
    }

    #[test]
    fn an_error_is_short_plain_and_without_the_secret() {
        let noise = format!("\u{1b}[31m{}\rpassword canary-pw\u{7}", "x".repeat(5000));
        let error = of("push", &output(1, &noise), &["canary-pw".into()]);
        assert!(!error.message.contains("canary") && error.message.len() < MAX_WORDS + 200, "{error}");
        assert!(!error.message.chars().any(|c| c.is_control() && c != '\n'));
    }
}
