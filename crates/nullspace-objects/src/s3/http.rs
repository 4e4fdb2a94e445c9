//! HTTP below the S3 client: bounded answers, typed failures and no redirects.
//!
//! `object_store` reads an answer that is no success without a limit and shows its text, which can repeat a session token. So
//! such an answer ends here, and only its status and error code go on.

use std::error::Error as StdError;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use reqwest::{Method, StatusCode};

use crate::{Error, Result};

/// Most bytes of an answer that is an error.
const MOST_ERROR_BYTES: usize = 64 << 10;
/// Most bytes of an answer in XML: a page of 1000 names has less than a quarter of it.
const MOST_XML_BYTES: usize = 4 << 20;
/// Longest error code and longest text of a failure that go on.
const MOST_CODE_BYTES: usize = 64;
const MOST_TEXT_CHARS: usize = 200;

/// The store refused a request.
#[derive(Debug, thiserror::Error)]
#[error("HTTP status {status} {code}")]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// The code of S3's error document; empty without one.
    pub(super) code: String,
}

/// A request got no usable answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(pub(super) String);

/// Makes the clients of an S3 store: all are this one.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    client: reqwest::Client,
}

impl Connector {
    pub(super) fn new(extra_ca_pem: Option<&[u8]>, loopback: bool) -> Result<Connector> {
        let invalid = |what: String| Error::Invalid(what);
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(invalid("the process has no default TLS crypto provider".to_owned()));
        }
        let extra = match extra_ca_pem {
            None => Vec::new(),
            Some(pem) => reqwest::Certificate::from_pem_bundle(pem).map_err(|error| {
                invalid(format!("read the extra CA certificates of the S3 store: {}", root(&error)))
            })?,
        };
        if extra_ca_pem.is_some() && extra.is_empty() {
            return Err(invalid("the extra CA file of the S3 store holds no certificate".to_owned()));
        }
        let base = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("nullspace/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(Duration::from_secs(10))
                .pool_idle_timeout(Duration::from_secs(60));
            if loopback { builder.no_proxy() } else { builder }
        };
        let client = base().tls_certs_merge(extra.iter().cloned()).build().or_else(|error| {
            // A bare machine has no CA certificates at all; plain HTTP and private CAs must work there too.
            tracing::warn!(error = %root(&error), "system CA certificates unusable, trusting the extra ones only");
            base().tls_certs_only(extra.iter().cloned()).build()
        });
        let client =
            client.map_err(|error| invalid(format!("set up the HTTP client of the S3 store: {}", root(&error))))?;
        Ok(Connector { client })
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url = parts.uri.to_string().parse().map_err(|_| broken("the request's URL cannot be parsed".to_owned()))?;
        let method = parts.method;
        let is_document = method == Method::POST || parts.uri.query().is_some_and(|query| query.contains("list-type="));
        let mut request = reqwest::Request::new(method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(match body.as_bytes() {
            Some(bytes) => bytes.clone().into(),
            None => reqwest::Body::wrap(body),
        });
        let response = self.client.execute(request).await.map_err(|error| broken(failure(&error)))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = reqwest::Body::from(response);
        if !status.is_success() {
            // The text only adds the code: one that breaks or is too long does not hide the status.
            let text = collect(body, MOST_ERROR_BYTES).await.unwrap_or_default();
            return Err(refused(status, &text));
        }
        let body = if is_document {
            let document = collect(body, MOST_XML_BYTES).await?;
            // A success whose document is an error: S3 sends the status before it has completed an upload.
            if find(&document, b"<Error>").is_some() {
                return Err(refused(StatusCode::INTERNAL_SERVER_ERROR, &document));
            }
            HttpResponseBody::from(document)
        } else {
            HttpResponseBody::new(body.map_err(|error| broken(failure(&error))))
        };
        let mut response = HttpResponse::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

async fn collect(body: reqwest::Body, most: usize) -> std::result::Result<Bytes, HttpError> {
    let collected = Limited::new(body, most).collect().await;
    collected
        .map(|collected| collected.to_bytes())
        .map_err(|error| broken(format!("read the answer: {}", root(&*error))))
}

fn broken(what: String) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, Broken(what))
}

fn refused(status: StatusCode, document: &[u8]) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, Refusal { status, code: code(document) })
}

/// The code in an error document of S3.
fn code(document: &[u8]) -> String {
    let Some(from) = find(document, b"<Code>") else { return String::new() };
    let text = &document[from + b"<Code>".len()..];
    text.iter()
        .take(MOST_CODE_BYTES)
        .take_while(|byte| byte.is_ascii_alphanumeric())
        .map(|byte| char::from(*byte))
        .collect()
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// What became of a request without an answer, without its URL.
fn failure(error: &reqwest::Error) -> String {
    let what = match error {
        error if error.is_timeout() => "timeout",
        error if error.is_connect() => "connect",
        error if error.is_body() || error.is_decode() => "the answer broke",
        _ => "the request failed",
    };
    format!("{what}: {}", root(error))
}

/// The innermost cause of an error, short and printable.
pub(super) fn root(error: &(dyn StdError + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    short(&cause.to_string())
}

/// A foreign text, short and printable.
pub(super) fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST_TEXT_CHARS).collect()
}

/// The first cause of this type.
pub(super) fn cause<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_error_documents() {
        for (document, expected) in [
            ("<?xml?><Error><Code>NoSuchKey</Code><Message>x</Message></Error>", "NoSuchKey"),
            ("", ""),
            ("<html>", ""),
            ("<Code>", ""),
            ("<Code><b>", ""),
            (&format!("<Code>{}", "A".repeat(500)), &"A".repeat(64)),
        ] {
            assert_eq!(code(document.as_bytes()), expected, "{document}");
        }
        assert_eq!(short("a\u{1b}[31m\nb"), "a [31m b");
        assert_eq!(short(&"ä".repeat(1000)).chars().count(), MOST_TEXT_CHARS);
    }

    #[test]
    fn causes_are_found_at_any_depth() {
        let refusal =
            HttpError::new(HttpErrorKind::Unknown, Refusal { status: StatusCode::NOT_FOUND, code: "X".to_owned() });
        let outer = object_store::Error::Generic { store: "S3", source: Box::new(refusal) };
        assert_eq!(cause::<Refusal>(&outer).unwrap().code, "X");
        assert!(cause::<Broken>(&outer).is_none());
        assert_eq!(root(&outer), "HTTP status 404 Not Found X");
    }
}
