//! Errors of the edge as responses: JSON in the shape of the API's errors, or a small page for browsers.

use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};
use nullspace_service::chain;
use serde::Serialize;

use crate::body::{EdgeBody, full};

/// Names the error of the edge, so that it can be told from an answer of the server in the sandbox.
const EDGE_ERROR: &str = "x-nullspace-edge-error";

/// A request that the edge itself answers with an error.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    /// For programs.
    pub(crate) code: &'static str,
    /// For people: what happened, and what helps. Only text of this crate and of the service's errors.
    pub(crate) message: String,
    /// Seconds after which to ask again.
    pub(crate) retry_after: Option<u64>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: &'a str,
    code: &'a str,
    request_id: &'a str,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None }
    }

    /// A request that is no valid request.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// The one answer for all that is not there and all that is not allowed.
    pub(crate) fn not_found() -> Self {
        let message = "There is no such port here, or it is not open to you. Check the URL, or ask the owner of the sandbox for a new \
                       preview URL.";
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The problem as a response.
    pub(crate) fn into_response(self, browser: bool) -> Response<EdgeBody> {
        let id = uuid::Uuid::now_v7().to_string();
        let (media, text) =
            if browser { ("text/html; charset=utf-8", self.page(&id)) } else { ("application/json", self.json(&id)) };
        let mut response = Response::new(full(text));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
        );
        headers.insert(EDGE_ERROR, HeaderValue::from_static(self.code));
        if matches!(self.status, StatusCode::BAD_REQUEST | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE) {
            // Nobody knows what the rest of the connection would be.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert("x-request-id", id);
        }
        response
    }

    fn json(&self, request_id: &str) -> String {
        // Three texts: this cannot fail.
        serde_json::to_string(&Body { error: &self.message, code: self.code, request_id }).unwrap_or_default()
    }

    fn page(&self, id: &str) -> String {
        let again = match self.retry_after {
            // The page asks again by itself: whoever opened a sleeping sandbox sees it when it runs.
            Some(seconds) => format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">"),
            None => String::new(),
        };
        let (status, reason) = (self.status.as_u16(), self.status.canonical_reason().unwrap_or("Error"));
        let message = escaped(&self.message);
        format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">{again}<title>{status} {reason}</title>\
             <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em;color:#222}}\
             small{{color:#777}}</style></head><body><h1>{reason}</h1><p>{message}</p>\
             <p><small>{status} {code}, request {id}</small></p></body></html>\n",
            code = self.code,
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The service's error about the sandbox, or about a connection to its port.
pub(crate) fn of_service(error: &nullspace_service::Error, port: u16) -> Problem {
    use nullspace_api::ErrorResponseCode as Code;
    match error.code {
        Code::SandboxNotFound => Problem::not_found(),
        Code::NotFound => Problem::new(
            StatusCode::BAD_GATEWAY,
            "port_not_listening",
            format!(
                "Nothing listens on port {port} in the sandbox. Start the server there (on 127.0.0.1 or 0.0.0.0), and ask again."
            ),
        ),
        Code::SandboxNotReady | Code::TransitionInProgress => match error.retry_after {
            Some(after) => {
                let message = "The sandbox is waking up. Ask again in a few seconds.";
                let seconds = after.as_secs().max(1);
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "sandbox_not_ready", message).retry_after(seconds)
            }
            None => {
                let message = "The sandbox is paused, and a request does not wake it. Its owner can resume it.";
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "sandbox_not_ready", message)
            }
        },
        Code::RateLimitExceeded | Code::CapacityExceeded => {
            let message = "The sandbox has too many connections. Close some, or ask again in a moment.";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", message).retry_after(1)
        }
        Code::NotImplemented => {
            let message = "The sandbox was started from a template of an older version, and its agent cannot connect to ports. Build the \
                           template again.";
            Problem::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", message)
        }
        Code::DatabaseError | Code::FeatureUnavailable => {
            tracing::warn!(error = chain(error), "ports are unavailable");
            let message = "The service cannot look the sandbox up now. Ask again in a few seconds.";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "feature_unavailable", message).retry_after(5)
        }
        _ => {
            tracing::warn!(error = chain(error), "connect to a port");
            let message = "The service could not connect to the sandbox. Ask again; if it stays so, look whether the sandbox runs.";
            Problem::new(StatusCode::BAD_GATEWAY, "sandbox_unreachable", message)
        }
    }
}

/// Whether the client is a browser that shows a page.
pub(crate) fn shows_pages(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepts.flat_map(|value| value.split(',')).any(|range| {
        let media = range.split(';').next().unwrap_or_default().trim();
        media.eq_ignore_ascii_case("text/html")
    })
}
