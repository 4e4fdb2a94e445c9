//! Amazon ECR: `GetAuthorizationToken`, signed with Signature Version 4.
//!
//! (AWS: "Signature Version 4 signing process"; "Amazon ECR API Reference, GetAuthorizationToken".)

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::registry::error::{At, RegistryError};
use crate::registry::http::{Http, Post, host_port};

use super::{Login, MAX_ANSWER, elsewhere, now};

const TARGET: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
/// Used when the answer's own time cannot be; ECR gives twelve hours.
const SHORT_LIFE: Duration = Duration::from_secs(3600);

pub(super) struct Identity<'a> {
    pub(super) access_key_id: &'a str,
    pub(super) secret_access_key: &'a SecretString,
    pub(super) region: &'a str,
    pub(super) session_token: Option<&'a SecretString>,
}

pub(super) async fn login(
    http: &Http,
    registry: &str,
    repository: &str,
    identity: &Identity<'_>,
) -> Result<Login, RegistryError> {
    let region = identity.region;
    // The region becomes part of a host name.
    if region.is_empty() || !region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        let at = At::new(registry, repository, "login");
        return Err(RegistryError::Unauthorized { at, message: "the AWS region is not one".to_owned() });
    }
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let endpoint = match &http.config.ecr_endpoint {
        Some(endpoint) => endpoint.clone(),
        None if !registry.ends_with(&format!(".{domain}")) => return Err(elsewhere(registry, repository, "AWS")),
        None => Url::parse(&format!("https://api.ecr.{region}.{domain}/"))
            .map_err(|_| RegistryError::Setup("the AWS region is not one".to_owned()))?,
    };
    let host = host_port(&endpoint);
    let at = At::new(host.as_str(), repository, "login");
    let body = "{}";
    let date = amz_date(now());
    let mut signed = vec![
        ("content-type", "application/x-amz-json-1.1".to_owned()),
        ("host", host),
        ("x-amz-date", date.clone()),
        ("x-amz-target", TARGET.to_owned()),
    ];
    if let Some(token) = identity.session_token {
        signed.insert(3, ("x-amz-security-token", token.expose_secret().to_owned()));
    }
    let request = Request { method: "POST", path: endpoint.path(), query: "", headers: &signed, body: body.as_bytes() };
    let authorization = sign(&request, identity, &date, "ecr");
    signed.retain(|(name, _)| *name != "host");
    signed.push(("authorization", authorization));
    let mut headers = HeaderMap::new();
    for (name, value) in signed {
        let unusable =
            |_| RegistryError::Unauthorized { at: at.clone(), message: "unusable AWS credentials".to_owned() };
        let mut value = HeaderValue::from_str(&value).map_err(unusable)?;
        value.set_sensitive(!matches!(name, "content-type" | "x-amz-date" | "x-amz-target"));
        let name = if name == "content-type" { CONTENT_TYPE } else { HeaderName::from_static(name) };
        headers.insert(name, value);
    }
    let post = Post { url: endpoint, headers, body: body.to_owned() };
    // AWS answers 400 to keys it does not know.
    let answer = http.post(&post, MAX_ANSWER, &at).await.map_err(|error| match error {
        RegistryError::Status { at, status: 400, message, .. } => RegistryError::Unauthorized { at, message },
        other => other,
    })?;
    parse(&answer).ok_or(RegistryError::Protocol { at, reason: "ECR's answer holds no authorization token".to_owned() })
}

fn parse(answer: &[u8]) -> Option<Login> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        authorization_data: Vec<Data>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Data {
        authorization_token: SecretString,
        #[serde(default)]
        expires_at: Option<f64>,
    }
    let data = serde_json::from_slice::<Answer>(answer).ok()?.authorization_data.into_iter().next()?;
    let pair = String::from_utf8(STANDARD.decode(data.authorization_token.expose_secret()).ok()?).ok()?;
    let (username, password) = pair.split_once(':')?;
    let life = data.expires_at.and_then(|at| Duration::try_from_secs_f64(at).ok()).and_then(|at| {
        let life = at.checked_sub(Duration::from_secs(now()))?;
        Some(life.min(Duration::from_secs(12 * 3600)))
    });
    Some(Login::for_a_time(username, password.to_owned(), life.unwrap_or(SHORT_LIFE)))
}

/// A request as Signature V4 sees it. `headers` are sorted and in lower case; all of them are signed.
struct Request<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: &'a [(&'a str, String)],
    body: &'a [u8],
}

/// The `Authorization` header.
fn sign(request: &Request<'_>, identity: &Identity<'_>, amz_date: &str, service: &str) -> String {
    let names: Vec<&str> = request.headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let headers: String = request.headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let canonical = format!(
        "{}\n{}\n{}\n{headers}\n{names}\n{}",
        request.method,
        request.path,
        request.query,
        hex::encode(Sha256::digest(request.body))
    );
    let day = amz_date.get(..8).unwrap_or_default();
    let scope = format!("{day}/{}/{service}/aws4_request", identity.region);
    let to_sign =
        format!("AWS4-HMAC-SHA256\n{amz_date}\n{scope}\n{}", hex::encode(Sha256::digest(canonical.as_bytes())));
    let mut key = format!("AWS4{}", identity.secret_access_key.expose_secret()).into_bytes();
    for part in [day, identity.region, service, "aws4_request", &to_sign] {
        key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
    }
    let signature = hex::encode(key);
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
        identity.access_key_id
    )
}

/// `20150830T123600Z`.
fn amz_date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days, with years that begin in March (the inverse of the one in `http`).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of AWS' documentation of Signature Version 4.
    #[test]
    fn signature_equals_the_documented_example() {
        let secret = SecretString::from("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        let identity = Identity {
            access_key_id: "AKIDEXAMPLE",
            secret_access_key: &secret,
            region: "us-east-1",
            session_token: None,
        };
        let headers = [
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8".to_owned()),
            ("host", "iam.amazonaws.com".to_owned()),
            ("x-amz-date", "20150830T123600Z".to_owned()),
        ];
        let query = "Action=ListUsers&Version=2010-05-08";
        let request = Request { method: "GET", path: "/", query, headers: &headers, body: b"" };
        assert_eq!(
            sign(&request, &identity, "20150830T123600Z", "iam"),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
    }

    #[test]
    fn dates_are_civil() {
        assert_eq!(amz_date(0), "19700101T000000Z");
        assert_eq!(amz_date(1_440_938_160), "20150830T123600Z");
        assert_eq!(amz_date(1_709_208_000), "20240229T120000Z");
        assert_eq!(amz_date(1_735_689_599), "20241231T235959Z");
    }

    #[test]
    fn answers_parse_and_nonsense_does_not() {
        let token = STANDARD.encode("AWS:secret:with:colons");
        let answer = format!(r#"{{"authorizationData":[{{"authorizationToken":"{token}","expiresAt":1.5E9}}]}}"#);
        let login = parse(answer.as_bytes()).unwrap();
        assert_eq!((login.username.as_str(), login.password.expose_secret()), ("AWS", "secret:with:colons"));
        for bad in ["", "{}", r#"{"authorizationData":[]}"#, r#"{"authorizationData":[{"authorizationToken":"%"}]}"#] {
            assert!(parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
