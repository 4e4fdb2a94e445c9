//! One delivery over HTTP: a signed POST of an event, to a permitted destination.
//!
//! ```text
//!   POST <url>
//!   content-type: application/json
//!   x-nullspace-event-id, x-nullspace-delivery-id: UUIDs        x-nullspace-operation: hibernate
//!   x-nullspace-timestamp: 1767225600                           seconds since 1970
//!   x-nullspace-signature: t=1767225600,v1=<hex of HMAC-SHA256(signing_secret, "1767225600." + body)>
//!
//!   {"id": "…", "operation": "hibernate", "status": "succeeded", …}      the event, as the API lists it
//! ```
//! A receiver compares the signature, refuses old timestamps, and ignores an event id that it has had: a delivery can arrive
//! more than once. It answers 2xx within 10 seconds. Redirects are not followed, and proxies of the environment are not used.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nullspace_reach::{Clients, Lookup, PrivateHost, Reach, SystemLookup, is_closed};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Response, Url, redirect};
use ring::hmac;

/// Time for a delivery: from the connection's set-up to the end of the answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read. They are dropped.
const ANSWER: usize = 4 << 10;

/// Sends events to webhooks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WebhookSender {
    clients: Arc<Clients>,
    limit: Duration,
}

/// The HTTP clients for webhooks could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("webhooks: {0}")]
pub struct WebhookSetup(String);

/// A webhook's host is not a permitted destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("leads to no public address; ask the operator to list a receiver in a private network in private_webhooks")]
pub(super) struct NotAllowed;

/// The same for a closed address and for a name that is unknown, so that names of an inner network cannot be guessed.
const CLOSED: &str = "the url's host is unknown or has no public address; ask the operator to list a receiver in a private network in \
                      private_webhooks";

/// A message to send.
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) url: &'a str,
    pub(super) secret: &'a [u8],
    pub(super) event: String,
    pub(super) delivery: String,
    pub(super) operation: &'a str,
    pub(super) body: Vec<u8>,
}

/// Why a delivery failed: a code, a text for the webhook's owner, and the receiver's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) status: Option<u16>,
    pub(super) code: &'static str,
    pub(super) text: String,
}

impl WebhookSender {
    /// Makes the HTTP clients: for the internet, and for the receivers outside it that the operator lists. The process must have a
    /// default rustls crypto provider by now.
    ///
    /// # Errors
    /// [`WebhookSetup`]: no crypto provider, or certificates that cannot be read.
    pub fn new(private: Vec<PrivateHost>, extra_ca_pem: Option<&[u8]>) -> Result<WebhookSender, WebhookSetup> {
        WebhookSender::with(private, extra_ca_pem, Arc::new(SystemLookup), LIMIT)
    }

    fn with(
        private: Vec<PrivateHost>,
        extra_ca_pem: Option<&[u8]>,
        lookup: Arc<dyn Lookup>,
        limit: Duration,
    ) -> Result<WebhookSender, WebhookSetup> {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(WebhookSetup("the process has no default TLS crypto provider".to_owned()));
        }
        let setup = |error: reqwest::Error| WebhookSetup(reason(&error));
        let extra = extra_ca_pem.map(Certificate::from_pem_bundle).transpose().map_err(setup)?.unwrap_or_default();
        let base = || {
            Client::builder()
                .user_agent(concat!("nullspace/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .no_proxy()
                .connect_timeout(limit)
                .timeout(limit)
                .pool_idle_timeout(Duration::from_secs(30))
                .pool_max_idle_per_host(1)
        };
        let clients = Clients::new(Reach::new(private), lookup, |reaching| {
            let built = reaching(base().tls_certs_merge(extra.iter().cloned())).build().or_else(|error| {
                // A bare machine has no CA certificates at all; plain HTTP and private CAs must work there too.
                tracing::debug!(error = reason(&error), "system CA certificates unusable for webhooks");
                reaching(base().tls_certs_only(extra.iter().cloned())).build()
            });
            built.map_err(setup)
        })?;
        Ok(WebhookSender { clients: Arc::new(clients), limit })
    }

    /// Judges what the URL alone tells. A name is judged when it is dialled.
    pub(super) fn judge(&self, url: &Url) -> Result<(), NotAllowed> {
        self.clients.of(url).map(|_| ()).map_err(|_| NotAllowed)
    }

    /// Sends a message once. Returns the receiver's status, which is 2xx.
    pub(super) async fn send(&self, message: Message<'_>) -> Result<u16, Failed> {
        let failed = |code, text| Failed { status: None, code, text };
        let closed = || failed("destination_not_allowed", CLOSED.to_owned());
        let url = Url::parse(message.url).map_err(|_| failed("invalid_url", "the url cannot be read".to_owned()))?;
        let client = self.clients.of(&url).map_err(|_| closed())?;
        let headers = headers(&message, Timestamp::now().as_second());
        let exchange = async {
            let response = client.post(url).headers(headers).body(message.body).send().await?;
            let status = response.status();
            read(response).await;
            Ok::<_, reqwest::Error>(status)
        };
        let late = || failed("timeout", format!("no answer within {} s", self.limit.as_secs_f32()));
        let status = match tokio::time::timeout(self.limit, exchange).await {
            Err(_) => return Err(late()),
            Ok(Err(error)) if is_closed(&error) => return Err(closed()),
            Ok(Err(error)) if error.is_timeout() => return Err(late()),
            Ok(Err(error)) => return Err(failed("connection_failed", reason(&error.without_url()))),
            Ok(Ok(status)) => status,
        };
        let number = status.as_u16();
        if status.is_success() {
            return Ok(number);
        }
        let text = match status.is_redirection() {
            true => format!("the receiver answered {number}; redirects are not followed"),
            false => format!("the receiver answered {number}"),
        };
        Err(Failed { status: Some(number), code: "refused", text })
    }
}

/// Reads a short answer to its end, so that its connection can be used again; a long one is given up.
async fn read(mut response: Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > ANSWER {
            return;
        }
    }
}

fn headers(message: &Message<'_>, now: i64) -> HeaderMap {
    let signature = format!("t={now},v1={}", signature(message.secret, now, &message.body));
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in [
        ("x-nullspace-event-id", message.event.clone()),
        ("x-nullspace-delivery-id", message.delivery.clone()),
        ("x-nullspace-operation", message.operation.to_owned()),
        ("x-nullspace-timestamp", now.to_string()),
        ("x-nullspace-signature", signature),
    ] {
        // All of them are words, digits and hyphens.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    headers
}

/// Hex of the HMAC-SHA256 over time and body.
pub(super) fn signature(secret: &[u8], now: i64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    context.update(format!("{now}.").as_bytes());
    context.update(body);
    hex::encode(context.sign())
}

/// An error of the HTTP client with its causes, at most 500 characters.
fn reason(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.chars().take(500).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::io;
    use std::net::IpAddr;

    use futures::future::BoxFuture;

    use super::*;

    /// Every name is this machine.
    #[derive(Debug)]
    struct Here;

    impl Lookup for Here {
        fn lookup(&self, _name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            Box::pin(std::future::ready(Ok(vec![[127, 0, 0, 1].into()])))
        }
    }

    /// A sender to which every name is this machine, with another time limit.
    pub(in crate::lifecycle) fn sender(private: &[&str], limit: Duration) -> WebhookSender {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let private = private.iter().map(|text| text.parse().unwrap()).collect();
        WebhookSender::with(private, None, Arc::new(Here), limit).unwrap()
    }

    #[test]
    fn the_signature_is_the_hmac_of_time_and_body() {
        // RFC 4231, case 2, whose text has a point put in it.
        let known = signature(b"Jefe", 17, b"what do ya want for nothing?");
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"Jefe");
        let plain = hmac::sign(&key, b"17.what do ya want for nothing?");
        assert_eq!(known, hex::encode(plain));
        assert_ne!(known, signature(b"Jefe", 18, b"what do ya want for nothing?"));
    }

    #[test]
    fn urls_of_closed_addresses_are_refused_before_anything_is_sent() {
        let sender = sender(&["127.0.0.1:8000"], LIMIT);
        let judged = |url: &str| sender.judge(&Url::parse(url).unwrap());
        assert_eq!(judged("http://127.0.0.1:8000/x"), Ok(()));
        assert_eq!(judged("https://example.com/"), Ok(()));
        for url in ["http://127.0.0.1:8001/", "http://localhost/", "http://169.254.169.254/", "http://[::1]:80/"] {
            assert_eq!(judged(url), Err(NotAllowed), "{url}");
        }
    }
}
