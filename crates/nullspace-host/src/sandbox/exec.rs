//! A command that a caller waits for: `exec`.

use nullspace_api::{
    ErrorResponseCode, ExecRequest, ExecResponse, JsonObject, TemplateFailureDetail, TemplateFailureDetailCode,
    TemplateFailurePhase,
};
use nullspace_definition::sandbox::{check_envs, check_workdir};
use nullspace_guest::host::{Agent, AgentError, ExecOutput};
use nullspace_guest::message::{Exec, FailureKind};
use nullspace_service::Memory;

use super::live::Live;
use nullspace_host_interface::{invalid, reason};
use nullspace_service::chain;
use nullspace_service::{Error, Result};

/// Most bytes of stdout, and of stderr, in the answer of an exec.
const MAX_OUTPUT: usize = 10 * 1024 * 1024;
/// Most bytes of each stream, from its end, in the error of a command that timed out.
const MAX_TIMED_OUT_OUTPUT: usize = 64 * 1024;
/// Longest command that `exec` waits for.
const MAX_EXEC_SECS: u64 = 3600;

/// Runs a command and waits for its end; see [`LiveCommands::exec`](nullspace_service::LiveCommands::exec).
pub(super) async fn run(live: &Live, request: &ExecRequest, memory: &dyn Memory) -> Result<ExecResponse> {
    let exec = command(live, request)?;
    live.using(|agent| async move { run_with(&agent, exec, request, memory).await }).await
}

async fn run_with(agent: &Agent, exec: Exec, request: &ExecRequest, memory: &dyn Memory) -> Result<ExecResponse> {
    let timeout_ms = exec.timeout_ms.unwrap_or_default();
    let failed = |error| exec_error(error, &request.command);
    if request.background == Some(true) {
        let exec = Exec { timeout_ms: None, stdin: true, ..exec };
        let pid = agent.start_service(exec).await.map_err(failed)?;
        return Ok(ExecResponse { exit_code: 0, stdout: String::new(), stderr: String::new(), pid: Some(pid) });
    }
    let run = agent.exec_collect_while(exec, MAX_OUTPUT, |bytes| memory.grow(bytes).is_ok());
    let output = run.await.map_err(failed)?;
    if output.exit.timed_out {
        return Err(timed_out(&output, timeout_ms));
    }
    let kept = output.stdout.len().max(output.stderr.len());
    let (stdout, stdout_cut) = text(output.stdout);
    let (mut stderr, stderr_cut) = text(output.stderr);
    if output.exit.out_of_memory {
        stderr.push_str(
            "\n[nullspace: the machine's memory ran out while this ran; memory_mib of the template sets it]\n",
        );
    }
    if output.exit.first_ended {
        stderr.push_str(
            "\n[nullspace: the image's own command ended while this ran; it is PID 1, so everything beside it ended with it]\n",
        );
    }
    if output.truncated || stdout_cut || stderr_cut {
        let notice = if kept >= MAX_OUTPUT || stdout_cut || stderr_cut {
            format!("\n[nullspace: output beyond {MAX_OUTPUT} bytes was dropped]\n")
        } else {
            let why = "there was no memory for more of it: run fewer commands with much output at once";
            format!("\n[nullspace: output was dropped, {why}]\n")
        };
        stderr.push_str(&notice);
    }
    Ok(ExecResponse { exit_code: output.exit.code, stdout, stderr, pid: Some(output.pid) })
}

/// The error of a command that timed out, with the end of its output.
fn timed_out(output: &ExecOutput, timeout_ms: u64) -> Error {
    let message = format!("the command did not end within {timeout_ms} ms and was stopped");
    let advice = "Give it a higher timeout_secs, or run it in the background.".to_owned();
    let end = |bytes: &[u8]| {
        let from = bytes.len().saturating_sub(MAX_TIMED_OUT_OUTPUT);
        String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
    };
    let cut = |bytes: &[u8]| bytes.len() > MAX_TIMED_OUT_OUTPUT;
    let (code, phase) = (TemplateFailureDetailCode::BuildError, TemplateFailurePhase::Interrupted);
    let mut detail = TemplateFailureDetail::new(code, phase, false, message.clone(), advice);
    let mut details = JsonObject::new();
    details.insert("stdout".to_owned(), end(&output.stdout).into());
    details.insert("stderr".to_owned(), end(&output.stderr).into());
    details.insert("truncated".to_owned(), (output.truncated || cut(&output.stdout) || cut(&output.stderr)).into());
    detail.details = Some(details);
    Error {
        detail: Some(Box::new(detail.with_reason(reason::EXEC_TIMEOUT))),
        ..Error::new(ErrorResponseCode::ExecTimeout, format!("{message}; give it a higher timeout_secs"))
    }
}

/// Output as text of at most [`MAX_OUTPUT`] bytes, and whether it was cut. An invalid byte becomes three.
fn text(bytes: Vec<u8>) -> (String, bool) {
    let mut text =
        String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    let cut = text.len() > MAX_OUTPUT;
    if cut {
        text.truncate(text.floor_char_boundary(MAX_OUTPUT));
        text.shrink_to_fit();
    }
    (text, cut)
}

/// The agent's form of a request: the settings of template and sandbox, then the request's own.
pub(super) fn command(live: &Live, request: &ExecRequest) -> Result<Exec> {
    if request.command.is_empty() {
        return Err(Error::invalid("command is empty"));
    }
    let args = request.args.clone().unwrap_or_default();
    if request.command.contains('\0') || args.iter().any(|arg| arg.contains('\0')) {
        return Err(Error::invalid("command or args contain a NUL character"));
    }
    if let Some(cwd) = &request.cwd {
        check_workdir("cwd", cwd).map_err(invalid)?;
    }
    let timeout_secs = request.timeout_secs.unwrap_or(ExecRequest::DEFAULT_TIMEOUT_SECS);
    if !(1..=MAX_EXEC_SECS).contains(&timeout_secs) {
        return Err(Error::invalid(format!("timeout_secs is {timeout_secs}: it must be 1 to {MAX_EXEC_SECS}")));
    }
    let mut argv = Vec::with_capacity(args.len() + 4);
    if request.shell == Some(true) {
        // `sh -c line sh args…`: the arguments are $1, $2, …, never part of the line.
        argv.extend(["sh".to_owned(), "-c".to_owned(), request.command.clone()]);
        if !args.is_empty() {
            argv.push("sh".to_owned());
        }
    } else {
        argv.push(request.command.clone());
    }
    argv.extend(args);
    let mut envs = live.runtime.envs.clone();
    envs.extend(live.envs.clone());
    envs.extend(check_envs("envs", request.envs.as_ref()).map_err(invalid)?);
    Ok(Exec {
        argv,
        envs,
        cwd: Some(request.cwd.clone().unwrap_or_else(|| live.cwd.clone())),
        // The template's or the sandbox's own is made when it is missing, as a container's; one that is named for a
        // command has to be there.
        make_cwd: request.cwd.is_none(),
        user: request.user.clone().or_else(|| live.runtime.user.clone()),
        timeout_ms: Some(timeout_secs * 1000),
        ..Exec::default()
    })
}

/// An error of the agent at `command`.
pub(super) fn exec_error(error: AgentError, command: &str) -> Error {
    match error {
        AgentError::Failed(failure) => match failure.kind {
            FailureKind::Invalid | FailureKind::UnknownUser | FailureKind::WorkdirNotFound => {
                Error::invalid(failure.message)
            }
            FailureKind::NotFound => Error::new(ErrorResponseCode::NotFound, failure.message),
            FailureKind::StdinClosed => Error::new(ErrorResponseCode::TransitionConflict, failure.message),
            _ => Error::new(ErrorResponseCode::ExecFailed, failure.message),
        },
        AgentError::Lacking { .. } => Error::new(ErrorResponseCode::RebuildRequired, error.to_string()),
        AgentError::Timeout { .. } => Error::new(
            ErrorResponseCode::ExecTimeout,
            format!("the sandbox did not answer in time while it ran {command:?}"),
        ),
        other => {
            tracing::warn!(error = %chain(&other), "exec failed");
            Error::new(ErrorResponseCode::ExecFailed, "the sandbox stopped answering; create a new one")
        }
    }
}

#[cfg(test)]
mod tests {
    use nullspace_guest::capability::Capability;

    use super::*;

    #[test]
    fn what_an_older_agent_lacks_is_for_its_template_to_be_built_again() {
        let error = exec_error(AgentError::Lacking { capability: Capability::FeedService, version: 6 }, "stdin");
        assert_eq!(error.code, ErrorResponseCode::RebuildRequired);
        let text = "this template's agent is older (interface version 6) and cannot write to a command's stdin: build the \
                    template again";
        assert_eq!(error.message, text);
        assert_eq!(exec_error(AgentError::Closed, "sh").code, ErrorResponseCode::ExecFailed);
    }
}
