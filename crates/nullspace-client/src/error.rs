//! Errors of the client.

use std::time::Duration;

use nullspace_api::ErrorResponse;

/// The result of a call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base URL cannot be one.
    #[error("`{url}` is not an http or https URL")]
    BaseUrl {
        /// What was given.
        url: String,
    },
    /// An id or reference that cannot be part of a path.
    #[error("`{id}` is not an id")]
    Id {
        /// What was given.
        id: String,
    },
    /// The service was not reached, or the connection broke.
    #[error("{operation}: no answer from the service")]
    Transport {
        /// What was asked for.
        operation: &'static str,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The service said no.
    #[error("{operation}: {}", said(.body))]
    Answer {
        /// What was asked for.
        operation: &'static str,
        /// HTTP status.
        status: u16,
        /// What it said.
        body: Box<ErrorResponse>,
        /// With 429: when to try again.
        retry_after: Option<Duration>,
    },
    /// The answer is not what the contract says.
    #[error("{operation}: the answer cannot be read: {what}")]
    Unreadable {
        /// What was asked for.
        operation: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// A build's log broke off again and again without anything new.
    #[error("the build's log broke off at offset {offset}, and again {attempts} times")]
    LogBrokeOff {
        /// Where to go on.
        offset: u64,
        /// How often it was tried.
        attempts: u32,
        /// What went wrong the last time.
        #[source]
        last: Option<Box<Self>>,
    },
}

impl Error {
    /// What the service said, when it said something.
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
