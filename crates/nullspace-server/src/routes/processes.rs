//! Processes of a sandbox.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use nullspace_api::{ErrorResponse, KillProcessRequest, ProcessInfo, ProcessLogs, SendStdinRequest, Signal};
use nullspace_service::Caller;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, OptionalJsonBody, OwnSandbox, OwnSandboxAnd, PathParams};
use crate::state::AppState;

/// List a sandbox's processes
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/processes",
    operation_id = "list_processes",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`")),
    responses(
        (status = 200, description = "The processes, by pid.", body = Vec<ProcessInfo>),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 409, description = "The sandbox does not run.", body = ErrorResponse),
        (status = 502, description = "The guest did not answer.", body = ErrorResponse),
        (status = 504, description = "The guest took too long.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_processes(OwnSandbox(sandbox): OwnSandbox) -> Result<Response, Refusal> {
    json(StatusCode::OK, &sandbox.list_processes().await?)
}

/// End a process
///
/// By SIGKILL, or by the signal that the body names. A command that runs in the background gets it with its process group.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/processes/{pid}/kill",
    operation_id = "kill_process",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`"), ("pid" = u32, Path, description = "Its pid in the sandbox")),
    request_body = Option<KillProcessRequest>,
    responses(
        (status = 204, description = "It was sent the signal."),
        (status = 400, description = "There is no such signal.", body = ErrorResponse),
        (status = 404, description = "There is no such sandbox or process.", body = ErrorResponse),
    ),
)]
pub(super) async fn kill_process(
    OwnSandboxAnd(sandbox, pid): OwnSandboxAnd,
    OptionalJsonBody(request): OptionalJsonBody<KillProcessRequest>,
) -> Result<Response, Refusal> {
    sandbox.kill_process(number(&pid)?, signal(request.signal)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Get a process's output
///
/// Of the start command, or of a command that was started in the background: what is kept of it so far.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/processes/{pid}/logs",
    operation_id = "get_process_logs",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`"), ("pid" = u32, Path, description = "Its pid in the sandbox")),
    responses(
        (status = 200, description = "The last 256 KiB of each stream.", body = ProcessLogs),
        (status = 404, description = "There is no such sandbox or process.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_process_logs(
    State(state): State<AppState>,
    caller: Caller,
    PathParams(id, pid): PathParams,
) -> Result<Response, Refusal> {
    let pid = number(&pid)?;
    json(StatusCode::OK, &state.service.live_sandbox(&caller, &id).await?.process_logs(pid).await?)
}

/// Write to a process's stdin
///
/// Of a command that was started in the background, or over the WebSocket. Its stdin stays open, unless `close` is true.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/processes/{pid}/stdin",
    operation_id = "send_stdin",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`"), ("pid" = u32, Path, description = "Its pid in the sandbox")),
    request_body = SendStdinRequest,
    responses(
        (status = 204, description = "It is written."),
        (status = 404, description = "There is no such sandbox or process.", body = ErrorResponse),
        (status = 409, description = "The sandbox does not run, or the process has no open stdin.", body = ErrorResponse),
        (status = 502, description = "The guest did not answer.", body = ErrorResponse),
        (status = 504, description = "The process does not read.", body = ErrorResponse),
    ),
)]
pub(super) async fn send_stdin(
    OwnSandboxAnd(sandbox, pid): OwnSandboxAnd,
    JsonBody(request): JsonBody<SendStdinRequest>,
) -> Result<Response, Refusal> {
    sandbox.send_stdin(number(&pid)?, request.data.as_bytes(), request.close.unwrap_or_default()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn number(pid: &str) -> Result<u32, Refusal> {
    pid.parse().map_err(|_| Refusal::invalid("The pid in the path must be a number."))
}

/// Names of the signals of Linux, from 1.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// The signal of a request that names none.
const KILL: i32 = 9;

fn signal(named: Option<Signal>) -> Result<i32, Refusal> {
    let found = match &named {
        None => Some(KILL),
        Some(Signal::Number(number)) => Some(*number),
        Some(Signal::Name(name)) => {
            let upper = name.to_ascii_uppercase();
            let short = upper.strip_prefix("SIG").unwrap_or(&upper);
            (1..)
                .zip(SIGNALS)
                .find(|(_, known)| *known == short)
                .map(|(number, _)| number)
                .or_else(|| name.parse().ok())
        }
    };
    found.filter(|number| (1..=64).contains(number)).ok_or_else(|| {
        Refusal::invalid("There is no such signal: send a name such as SIGTERM, or a number from 1 to 64.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let name = |name: &str| signal(Some(Signal::Name(name.into()))).ok();
        assert_eq!(signal(None).unwrap(), 9);
        for (text, number) in [("SIGTERM", 15), ("term", 15), ("HUP", 1), ("SIGSYS", 31), ("2", 2), ("WINCH", 28)] {
            assert_eq!(name(text), Some(number), "{text}");
        }
        for text in ["", "SIG", "NONE", "0", "65", "-9"] {
            assert_eq!(name(text), None, "{text}");
        }
        for number in [0, -1, 65, i32::MAX] {
            assert!(signal(Some(Signal::Number(number))).is_err());
        }
        assert_eq!(signal(Some(Signal::Number(64))).unwrap(), 64);
    }
}
