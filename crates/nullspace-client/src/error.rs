//! Errors of the client.

use std::time::Duration;

use nullspace_api::{ErrorResponse, ErrorResponseCode};

/// The result of a call.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base URL is not valid.
    #[error("`{url}` is not an http or https URL")]
    BaseUrl {
        /// The given URL.
        url: String,
    },
    /// An id or reference that cannot be part of a path.
    #[error("`{id}` is not an id")]
    Id {
        /// The given text.
        id: String,
    },
    /// The service was not reached, or the connection broke.
    #[error("{operation}: no answer from the service")]
    Transport {
        /// The operation.
        operation: &'static str,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// The service answered with an error.
    #[error("{operation}: {}", said(.body))]
    Answer {
        /// The operation.
        operation: &'static str,
        /// HTTP status.
        status: u16,
        /// The body of the answer.
        body: Box<ErrorResponse>,
        /// Time after which to retry, with 429 and `transition_in_progress`.
        retry_after: Option<Duration>,
    },
    /// The answer does not follow the contract.
    #[error("{operation}: the answer cannot be read: {what}")]
    Unreadable {
        /// The operation.
        operation: &'static str,
        /// The difference.
        what: String,
    },
    /// The service refused an operation over a socket.
    #[error("{operation}: {message}")]
    Refused {
        /// The operation.
        operation: &'static str,
        /// Code for programs.
        code: ErrorResponseCode,
        /// The service's words.
        message: String,
    },
    /// A socket's connection ended.
    #[error("{operation}: the connection ended: {what}")]
    Lost {
        /// The operation.
        operation: &'static str,
        /// How.
        what: String,
    },
    /// A build's log broke off repeatedly without new entries.
    #[error("the build's log broke off at offset {offset}, and again {attempts} times")]
    LogBrokeOff {
        /// Offset to continue at.
        offset: u64,
        /// Number of attempts.
        attempts: u32,
        /// The last error.
        #[source]
        last: Option<Box<Self>>,
    },
}

impl Error {
    /// The service's answer, if there was one.
    #[must_use]
    pub fn response(&self) -> Option<&ErrorResponse> {
        match self {
            Self::Answer { body, .. } => Some(body),
            Self::LogBrokeOff { last: Some(last), .. } => last.response(),
            _ => None,
        }
    }
}

fn said(body: &ErrorResponse) -> String {
    let code = serde_json::to_value(body.code).ok();
    let code = code.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
    match &body.request_id {
        Some(id) => format!("{} ({code}, request {id})", body.error),
        None => format!("{} ({code})", body.error),
    }
}
