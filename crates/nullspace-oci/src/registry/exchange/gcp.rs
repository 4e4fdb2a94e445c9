//! Google Artifact Registry: a service account's signed assertion exchanged for an access token.
//!
//! (RFC 7523; Google: "Using OAuth 2.0 for Server to Server Applications".)

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;

use crate::registry::error::{At, RegistryError};
use crate::registry::http::{Http, Post, host_port};

use super::{Login, MAX_ANSWER, elsewhere, now};

/// The only audience and destination of the assertion. The `token_uri` of a key file is ignored, because the file is the
/// caller's.
const TOKEN_URL: &str = "https://oauth2.googleapis.com/token";
const SCOPE: &str =
    "https://www.googleapis.com/auth/devstorage.read_only https://www.googleapis.com/auth/cloud-platform";
/// The user name that goes with an access token.
const USER: &str = "oauth2accesstoken";

#[derive(Deserialize)]
struct KeyFile {
    client_email: String,
    private_key: SecretString,
    #[serde(default)]
    private_key_id: Option<String>,
}

pub(super) async fn login(
    http: &Http,
    registry: &str,
    repository: &str,
    key_file: &SecretString,
) -> Result<Login, RegistryError> {
    let override_url = http.config.gcp_token_url.clone();
    let is_google = registry == "gcr.io" || registry.ends_with(".gcr.io") || registry.ends_with(".pkg.dev");
    if override_url.is_none() && !is_google {
        return Err(elsewhere(registry, repository, "Google Cloud"));
    }
    let url = match override_url {
        Some(url) => url,
        None => Url::parse(TOKEN_URL).map_err(|error| RegistryError::Setup(error.to_string()))?,
    };
    let at = At::new(host_port(&url), repository, "login");
    let denied = |message: &str| RegistryError::Unauthorized { at: at.clone(), message: message.to_owned() };
    // The parser's words could quote the key.
    let key_file: KeyFile = serde_json::from_str(key_file.expose_secret())
        .map_err(|_| denied("the service account's key file is not one"))?;
    let assertion = assertion(&key_file, url.as_str(), now()).map_err(denied)?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    // URL-safe base64 and dots need no escaping.
    let body = format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={assertion}");
    let answer = http.post(&Post { url, headers, body }, MAX_ANSWER, &at).await.map_err(|error| match error {
        RegistryError::Status { at, status: 400, message, .. } => RegistryError::Unauthorized { at, message },
        other => other,
    })?;
    #[derive(Deserialize)]
    struct Answer {
        access_token: SecretString,
        #[serde(default)]
        expires_in: Option<u64>,
    }
    let answer: Answer = serde_json::from_slice(&answer).map_err(|_| RegistryError::Protocol {
        at: at.clone(),
        reason: "the token server's answer holds no token".to_owned(),
    })?;
    let life = Duration::from_secs(answer.expires_in.unwrap_or(300).min(12 * 3600));
    Ok(Login::for_a_time(USER, answer.access_token.expose_secret().to_owned(), life))
}

/// A JSON web token that says: this account asks for read access now. Signed with RS256.
fn assertion(key_file: &KeyFile, audience: &str, now: u64) -> Result<String, &'static str> {
    let der = der_of_pem(key_file.private_key.expose_secret()).ok_or("the service account's private key is not PEM")?;
    let key = RsaKeyPair::from_pkcs8(&der).map_err(|_| "the service account's private key is not an RSA key")?;
    let header = json!({"alg": "RS256", "typ": "JWT", "kid": key_file.private_key_id});
    let claims = json!({
        "iss": key_file.client_email, "scope": SCOPE, "aud": audience,
        "iat": now, "exp": now.saturating_add(600),
    });
    let encoded = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", encoded(&header), encoded(&claims));
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature)
        .map_err(|_| "signing with the service account's key failed")?;
    Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// The one `PRIVATE KEY` block of a PEM text.
fn der_of_pem(pem: &str) -> Option<Vec<u8>> {
    let (_, rest) = pem.split_once("-----BEGIN PRIVATE KEY-----")?;
    let (body, _) = rest.split_once("-----END PRIVATE KEY-----")?;
    let packed: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(packed).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_keys_are_refused_without_showing_them() {
        let key_file = |private_key: &str| KeyFile {
            client_email: "a@b".to_owned(),
            private_key: private_key.into(),
            private_key_id: None,
        };
        for bad in ["", "secret", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"] {
            let error = assertion(&key_file(bad), "https://x/", 0).unwrap_err();
            assert!(!error.contains("secret"));
        }
    }
}
