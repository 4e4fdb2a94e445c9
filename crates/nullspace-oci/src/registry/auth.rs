//! Authentication at a registry: Basic, or a Bearer token from the server that the registry names.
//!
//! ```text
//!  GET manifest ─▶ 401  WWW-Authenticate: Bearer realm="https://auth…/token",service="…",scope="repository:x:pull"
//!  GET realm?service=…&scope=…  (Basic, if there are credentials) ─▶ {"token": …, "expires_in": 300}
//!  GET manifest  Authorization: Bearer …
//! ```
//! (distribution-spec's token authentication; RFC 7617 and RFC 6750 for the headers.)

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::error::{At, RegistryError};
use super::exchange::Login;
use super::http::{Answer, Get, Http, host_port};

/// Largest answer of a token server, bytes.
const MAX_TOKEN_ANSWER: u64 = 1 << 20;
/// Default lifetime of a token without `expires_in` (distribution-spec), and how much earlier it is renewed.
const DEFAULT_LIFE: u64 = 60;
const RENEW_BEFORE: Duration = Duration::from_secs(5);

/// The known state of the authentication at one endpoint.
#[derive(Clone, Debug, Default)]
pub(super) enum Access {
    /// Nothing was asked for yet.
    #[default]
    Open,
    /// The endpoint wants Basic.
    Basic(Login),
    /// The endpoint wants this token.
    Bearer { token: SecretString, until: Instant },
}

impl Access {
    /// The header to send, if any. An expired token is not sent: the 401 brings a new one.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        match self {
            Access::Open => None,
            Access::Basic(login) if login.is_current() => basic(login),
            Access::Basic(_) => None,
            Access::Bearer { token, until } if Instant::now() < *until => {
                secret_header(&format!("Bearer {}", token.expose_secret()))
            }
            Access::Bearer { .. } => None,
        }
    }
}

fn basic(login: &Login) -> Option<HeaderValue> {
    let pair = format!("{}:{}", login.username, login.password.expose_secret());
    secret_header(&format!("Basic {}", STANDARD.encode(pair)))
}

/// A header value that `Debug` does not show.
fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// One challenge of a `WWW-Authenticate` header.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Answers a 401: says what to send from now on, fetching a token if that is what is wanted.
pub(super) async fn answer(
    http: &Http,
    registry: &Url,
    challenges: &[String],
    message: String,
    login: Option<Login>,
    at: &At,
) -> Result<Access, RegistryError> {
    let denied = |message| RegistryError::Unauthorized { at: at.clone(), message };
    let parsed: Vec<Challenge> = challenges.iter().flat_map(|header| parse(header)).collect();
    if let Some(bearer) = parsed.iter().find(|challenge| challenge.scheme == "bearer") {
        return token(http, registry, bearer, login, at).await;
    }
    if parsed.iter().any(|challenge| challenge.scheme == "basic") {
        return login.map(Access::Basic).ok_or_else(|| denied(message));
    }
    Err(denied(message))
}

async fn token(
    http: &Http,
    registry: &Url,
    challenge: &Challenge,
    login: Option<Login>,
    at: &At,
) -> Result<Access, RegistryError> {
    let protocol = |reason: &str| RegistryError::Protocol { at: at.clone(), reason: reason.to_owned() };
    let realm = challenge.parameter("realm").and_then(|realm| registry.join(realm).ok());
    let mut url = realm.ok_or_else(|| protocol("the registry asks for a token but names no token server"))?;
    // The realm is as foreign as a redirect, and a password goes there.
    http.may_follow(registry, &url)
        .map_err(|_| protocol("the registry names a token server this client does not go to"))?;
    let _ = url.set_username("");
    let _ = url.set_password(None);
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = challenge.parameter("service") {
            query.append_pair("service", service);
        }
        let pull = format!("repository:{}:pull", at.repository());
        query.append_pair("scope", challenge.parameter("scope").unwrap_or(&pull));
        if let Some(login) = &login {
            query.append_pair("account", &login.username);
        }
    }
    let token_at = At::new(host_port(&url), at.repository(), "token");
    let get = Get { url, accept: Some("application/json"), authorization: login.as_ref().and_then(basic), offset: 0 };
    let response = match http.get(&get, &token_at).await? {
        Answer::Success(response) => response,
        Answer::Challenge { message, .. } => return Err(RegistryError::Unauthorized { at: token_at, message }),
    };
    let body = http.body(response, MAX_TOKEN_ANSWER, &token_at).await?;
    #[derive(Deserialize)]
    struct Token {
        #[serde(default)]
        token: Option<SecretString>,
        #[serde(default)]
        access_token: Option<SecretString>,
        #[serde(default)]
        expires_in: Option<u64>,
    }
    let parsed = body.and_then(|body| serde_json::from_slice::<Token>(&body).ok());
    let token = parsed.and_then(|answer| {
        let life = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFE).clamp(DEFAULT_LIFE, 24 * 3600));
        let token = answer.token.or(answer.access_token).filter(|token| !token.expose_secret().is_empty())?;
        Some(Access::Bearer { token, until: Instant::now() + life.saturating_sub(RENEW_BEFORE) })
    });
    token.ok_or(RegistryError::Protocol { at: token_at, reason: "the token server's answer holds no token".to_owned() })
}

/// Parses a `WWW-Authenticate` header: one or more `Scheme key=value, key="quoted", …` (RFC 9110, 11.6.1).
fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return challenges;
        }
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if let Some(value) = after.trim_start().strip_prefix('=') {
            let Some((value, after)) = value_of(value.trim_start()) else { return challenges };
            if let Some(challenge) = challenges.last_mut() {
                challenge.parameters.push((word.to_ascii_lowercase(), value));
            }
            rest = after;
        } else {
            challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
            rest = after;
        }
        if word.is_empty() && !rest.is_empty() {
            // A stray '=': nothing sensible follows.
            return challenges;
        }
    }
}

/// A token or a quoted string, and what follows it.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, quoted.get(at + 1..)?)),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let parameters = parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Challenge { scheme: scheme.to_owned(), parameters }
    }

    #[test]
    fn challenges_parse_as_servers_write_them() {
        assert_eq!(
            parse(
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#
            ),
            [challenge(
                "bearer",
                &[
                    ("realm", "https://auth.docker.io/token"),
                    ("service", "registry.docker.io"),
                    ("scope", "repository:a/b:pull,push")
                ]
            )]
        );
        assert_eq!(
            parse(r#"Basic realm=x, Bearer Realm = "a\"b" , service=s"#),
            [challenge("basic", &[("realm", "x")]), challenge("bearer", &[("realm", "a\"b"), ("service", "s")])]
        );
        assert_eq!(parse("Negotiate"), [challenge("negotiate", &[])]);
    }

    #[test]
    fn broken_challenges_do_not_hang_or_panic() {
        for text in
            ["", ",", "=", "= x", "Bearer realm=\"", "Bearer realm=\"a\\", "a=b", "Bearer ====", "\u{e9} \u{e9}=\u{e9}"]
        {
            let _ = parse(text);
        }
        assert_eq!(parse("Bearer realm=\"open"), [challenge("bearer", &[])]);
    }

    #[test]
    fn secrets_are_not_shown() {
        let access = Access::Bearer { token: "hunter2".into(), until: Instant::now() + RENEW_BEFORE };
        let header = access.header().unwrap();
        assert_eq!(header.to_str().unwrap(), "Bearer hunter2");
        let expired = Access::Bearer { token: "hunter2".into(), until: Instant::now() };
        assert!(expired.header().is_none());
        for shown in [format!("{header:?}"), format!("{access:?}")] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}
