//! Bounded HTTP requests: timeouts, retries, redirects, and errors from answers.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backon::{ExponentialBuilder, Retryable};
use nullspace_reach::{Clients, Lookup, SystemLookup, is_closed, is_local_name, literal};
pub(super) use nullspace_reach::{is_loopback, is_loopback_host};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode, Url};

use super::error::{At, NotAllowed, RegistryError};
use super::reach;
use super::settings::RegistryConfig;

const MAX_REDIRECTS: usize = 5;
/// Error bodies are read up to here, bytes.
const MAX_ERROR_BODY: usize = 64 << 10;
/// Most characters of a registry's own text in an error.
const MAX_MESSAGE: usize = 300;

/// The HTTP clients and their settings.
#[derive(Debug)]
pub(super) struct Http {
    pub(super) config: RegistryConfig,
    clients: Clients,
}

/// The result of a GET without an error.
pub(super) enum Answer {
    /// 2xx.
    Success(Response),
    /// 401 from the host that was asked.
    Challenge {
        /// The `WWW-Authenticate` headers.
        challenges: Vec<String>,
        /// The registry's words.
        message: String,
    },
}

/// One GET.
pub(super) struct Get<'a> {
    pub(super) url: Url,
    pub(super) accept: Option<&'a str>,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) offset: u64,
}

/// One POST. It is not redirected.
pub(super) struct Post {
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Http {
    pub(super) fn new(config: RegistryConfig) -> Result<Http, RegistryError> {
        Http::with_lookup(config, Arc::new(SystemLookup))
    }

    /// One whose names are looked up elsewhere than with the host's resolver.
    pub(super) fn with_lookup(config: RegistryConfig, lookup: Arc<dyn Lookup>) -> Result<Http, RegistryError> {
        let setup = |reason: String| RegistryError::Setup(reason);
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(setup("the process has no default TLS crypto provider".to_owned()));
        }
        let extra = match &config.extra_ca_pem {
            None => Vec::new(),
            Some(pem) => {
                let certificates = reqwest::Certificate::from_pem_bundle(pem)
                    .map_err(|error| setup(format!("read the extra CA certificates: {}", reason(error))))?;
                if certificates.is_empty() {
                    return Err(setup("the extra CA file holds no certificate".to_owned()));
                }
                certificates
            }
        };
        let base = || {
            Client::builder()
                .user_agent(&config.user_agent)
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(config.timeouts.connect)
                .read_timeout(config.timeouts.idle)
                .pool_idle_timeout(Duration::from_secs(60))
        };
        let build = |reaching: &dyn Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder| {
            let built = reaching(base().tls_certs_merge(extra.iter().cloned())).build().or_else(|error| {
                // A bare machine has no CA certificates at all; plain HTTP and private CAs must work there too.
                tracing::warn!(error = %reason(error), "system CA certificates unusable, trusting the extra ones only");
                reaching(base().tls_certs_only(extra.iter().cloned())).build()
            });
            built.map_err(|error| setup(reason(error)))
        };
        let clients = Clients::new(reach::of(&config)?, lookup, build)?;
        Ok(Http { config, clients })
    }

    /// Sends a GET until it is answered, retrying what may pass, and following redirects.
    pub(super) async fn get(&self, get: &Get<'_>, at: &At) -> Result<Answer, RegistryError> {
        self.retried(|| self.try_get(get, at)).await
    }

    /// Sends a POST that may be sent twice, until it is answered with success; returns the answer's body.
    pub(super) async fn post(&self, post: &Post, limit: u64, at: &At) -> Result<Vec<u8>, RegistryError> {
        let too_long = || RegistryError::Protocol { at: at.clone(), reason: "the answer is too long".to_owned() };
        let once = || async {
            let client = self.client(&post.url, at)?;
            let request = client.post(post.url.clone()).headers(post.headers.clone()).body(post.body.clone());
            let response = self.answered(request, &post.url, at).await?;
            if !response.status().is_success() {
                return Err(self.refusal(response, at).await);
            }
            self.body(response, limit, at).await?.ok_or_else(too_long)
        };
        self.retried(once).await
    }

    async fn retried<T, F>(&self, attempt: impl FnMut() -> F) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        let policy = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(self.config.backoff)
            .with_max_delay(self.config.max_backoff)
            .with_max_times(self.config.attempts.saturating_sub(1));
        let max = self.config.max_backoff;
        attempt
            .retry(policy)
            .when(|error| error.is_retryable() && !matches!(wait_of(error), Some(wait) if wait > max))
            .adjust(|error, planned| planned.map(|planned| wait_of(error).map_or(planned, |wait| wait.max(planned))))
            .notify(|error, wait| tracing::debug!(%error, wait_ms = wait.as_millis(), "registry request is retried"))
            .await
    }

    async fn try_get(&self, get: &Get<'_>, at: &At) -> Result<Answer, RegistryError> {
        let mut url = get.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(&url, get, at).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(Answer::Success(response));
            }
            // Only the registry itself can ask for credentials, not what it redirected to.
            if status == StatusCode::UNAUTHORIZED && url.origin() == get.url.origin() {
                let values = response.headers().get_all(WWW_AUTHENTICATE).iter();
                let challenges = values.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
                let message = message(response, self.config.timeouts.response).await;
                return Ok(Answer::Challenge { challenges, message });
            }
            if !status.is_redirection() {
                return Err(self.refusal(response, at).await);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next =
                location.and_then(|location| url.join(location).ok()).ok_or_else(|| RegistryError::Protocol {
                    at: at.clone(),
                    reason: format!("status {} without a usable Location", status.as_u16()),
                })?;
            self.may_follow(&url, &next).map_err(|reason| RegistryError::Redirect { at: at.clone(), reason })?;
            url = next;
        }
        Err(RegistryError::Redirect { at: at.clone(), reason: "too many redirects in a row" })
    }

    async fn send(&self, url: &Url, get: &Get<'_>, at: &At) -> Result<Response, RegistryError> {
        let mut headers = HeaderMap::new();
        if let Some(accept) = get.accept.and_then(|accept| HeaderValue::from_str(accept).ok()) {
            headers.insert(ACCEPT, accept);
        }
        // Credentials are for the server they were made for. A redirect leads to storage that has its own signature.
        if let Some(authorization) = &get.authorization
            && url.origin() == get.url.origin()
        {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if get.offset > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", get.offset))
        {
            headers.insert(RANGE, range);
        }
        self.answered(self.client(url, at)?.get(url.clone()).headers(headers), url, at).await
    }

    /// The client for a URL, if it may be gone to as far as the URL tells.
    fn client(&self, url: &Url, at: &At) -> Result<&Client, RegistryError> {
        self.clients.of(url).map_err(|_| not_allowed(url, at))
    }

    /// Whether a program elsewhere may be sent to a URL's host. It chooses among a name's addresses itself: all of them
    /// must be open. A name that does not resolve here is left to that program.
    pub(super) async fn admit(&self, url: &Url) -> Result<(), NotAllowed> {
        let admitted = self.clients.admit(url, self.config.timeouts.connect).await;
        admitted.map_err(|_| NotAllowed { host: host_port(url) })
    }

    /// Sends a request and waits for the head of its answer.
    async fn answered(&self, request: reqwest::RequestBuilder, url: &Url, at: &At) -> Result<Response, RegistryError> {
        let unreachable = |reason| RegistryError::Unreachable { at: at.clone(), reason };
        match tokio::time::timeout(self.config.timeouts.response, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if is_closed(&error) => Err(not_allowed(url, at)),
            Ok(Err(error)) => Err(unreachable(reason(error))),
            Err(_) => Err(unreachable(format!("no answer within {} s", self.config.timeouts.response.as_secs_f32()))),
        }
    }

    /// Whether the host answers in this scheme at all, with whatever status. A TLS server that is spoken to in plain text
    /// answers 400; that is no yes.
    pub(super) async fn speaks(&self, base: &Url) -> bool {
        let Ok(url) = base.join("/v2/") else { return false };
        let Ok(client) = self.client(&url, &At::new(host_port(&url), "", "")) else { return false };
        let request = client.get(url);
        let answer = tokio::time::timeout(self.config.timeouts.connect, request.send()).await;
        matches!(answer, Ok(Ok(response)) if response.status() != StatusCode::BAD_REQUEST)
    }

    /// Where a server may send this client: not from TLS to plain text, not from outside to this machine.
    pub(super) fn may_follow(&self, from: &Url, to: &Url) -> Result<(), &'static str> {
        match to.scheme() {
            "https" => {}
            "http" if from.scheme() == "http" || self.is_plain_http(to) => {}
            "http" => return Err("it leads from HTTPS to plain HTTP"),
            _ => return Err("it leads to a scheme other than HTTP"),
        }
        if is_loopback(to) && !is_loopback(from) && !self.is_plain_http(to) && !self.is_mirror(to) {
            return Err("it leads from another host to this machine");
        }
        Ok(())
    }

    fn is_plain_http(&self, url: &Url) -> bool {
        self.config.plain_http.contains(&host_port(url))
    }

    fn is_mirror(&self, url: &Url) -> bool {
        self.config.mirrors.values().flatten().any(|mirror| mirror.origin() == url.origin())
    }

    async fn refusal(&self, response: Response, at: &At) -> RegistryError {
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(retry_after);
        let at = at.clone();
        if status == StatusCode::TOO_MANY_REQUESTS {
            return RegistryError::RateLimited { at, retry_after };
        }
        let message = message(response, self.config.timeouts.response).await;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized { at, message },
            StatusCode::NOT_FOUND => RegistryError::NotFound { at, message },
            _ => RegistryError::Status { at, status: status.as_u16(), message, retry_after },
        }
    }

    /// Reads a whole body of at most `limit` bytes. `None` if it is longer.
    pub(super) async fn body(
        &self,
        mut response: Response,
        limit: u64,
        at: &At,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        let mut body: Vec<u8> = Vec::new();
        let interrupted =
            |received: usize, reason| RegistryError::Interrupted { at: at.clone(), received: received as u64, reason };
        let announced = response.content_length();
        let all = async {
            loop {
                match response.chunk().await {
                    Ok(Some(chunk)) if (body.len() as u64).saturating_add(chunk.len() as u64) > limit => {
                        return Ok(None);
                    }
                    Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                    Ok(None) if announced.is_some_and(|length| length > body.len() as u64) => {
                        return Err(interrupted(body.len(), "the answer was cut short".to_owned()));
                    }
                    Ok(None) => return Ok(Some(())),
                    Err(error) => return Err(interrupted(body.len(), reason(error))),
                }
            }
        };
        // Documents are small: the whole of one gets the time that one piece of a blob gets.
        let patience = self.config.timeouts.response.saturating_add(self.config.timeouts.idle);
        let outcome = tokio::time::timeout(patience, all).await;
        match outcome {
            Ok(Ok(whole)) => Ok(whole.map(|()| body)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(interrupted(0, format!("the answer took longer than {} s", patience.as_secs_f32()))),
        }
    }

    /// Waits before attempt number `attempt` (1 is the first retry).
    pub(super) async fn pause(&self, attempt: usize) {
        let doubled =
            u32::try_from(attempt.saturating_sub(1)).ok().and_then(|n| 2_u32.checked_pow(n)).unwrap_or(u32::MAX);
        tokio::time::sleep(self.config.backoff.saturating_mul(doubled).min(self.config.max_backoff)).await;
    }
}

/// How long a server wants to be left alone.
fn wait_of(error: &RegistryError) -> Option<Duration> {
    match error {
        RegistryError::RateLimited { retry_after, .. } | RegistryError::Status { retry_after, .. } => *retry_after,
        _ => None,
    }
}

/// `host` or `host:port`, as references and settings write it.
pub(super) fn host_port(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => String::new(),
    }
}

fn not_allowed(url: &Url, at: &At) -> RegistryError {
    let by_name = url.host_str().is_some_and(|host| literal(host).is_none() && !is_local_name(host));
    RegistryError::NotAllowed { at: at.clone(), source: NotAllowed { host: host_port(url) }, by_name }
}

/// An error of the HTTP client with its causes, without the URL.
pub(super) fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = inner.source();
    }
    clean(&text)
}

/// Text of foreign origin for an error message: one line, no control characters, bounded.
pub(super) fn clean(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(MAX_MESSAGE).collect::<String>().trim().to_owned()
}

/// The registry's own words: the messages of a distribution-spec error body, else nothing.
async fn message(mut response: Response, patience: Duration) -> String {
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ERROR_BODY {
                break;
            }
        }
    };
    if tokio::time::timeout(patience, read).await.is_err() {
        return String::new();
    }
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(body) = serde_json::from_slice::<Body>(&body) else { return String::new() };
    let words = body.errors.into_iter().map(|item| if item.message.is_empty() { item.code } else { item.message });
    clean(&words.collect::<Vec<_>>().join("; "))
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_reads_seconds_and_dates() {
        assert_eq!(retry_after(&HeaderValue::from_static("7")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT")), Some(Duration::ZERO));
        let later = SystemTime::now() + Duration::from_secs(100);
        let later = HeaderValue::from_str(&httpdate::fmt_http_date(later)).unwrap();
        assert!(retry_after(&later).is_some_and(|wait| (98..=100).contains(&wait.as_secs())));
        for wrong in ["-1", "nonsense", "Sun, 32 Nov 1994 08:49:37 GMT"] {
            assert_eq!(retry_after(&HeaderValue::from_static(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn loopback_hosts_are_recognised() {
        for host in ["localhost", "a.localhost", "127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in ["example.org", "localhost.example.org", "128.0.0.1", "[::2]", "127.0.0.1.example.org"] {
            assert!(!is_loopback_host(host), "{host}");
        }
    }
}
