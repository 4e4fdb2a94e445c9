//! Cloud identities exchanged for a user and password that a registry takes.
//!
//! ```text
//!  AWS    key pair  ─▶ POST api.ecr.<region>  signed (Signature V4)       ─▶ AWS:<password>
//!  Google key file  ─▶ POST oauth2.googleapis.com/token  signed assertion ─▶ oauth2accesstoken:<token>
//! ```
//!
//! A password goes only where such a registry can be: `*.amazonaws.com` and `*.pkg.dev` or `gcr.io`. A user who
//! types another registry's name must not hand it a token for their cloud account.

mod aws;
mod gcp;

use std::time::{Duration, Instant, SystemTime};

use secrecy::SecretString;

use super::credentials::Credentials;
use super::error::{At, RegistryError};
use super::http::Http;

/// Largest answer of an identity service, bytes.
const MAX_ANSWER: u64 = 1 << 20;
/// A password is renewed this long before its end.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// What a registry is shown.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) username: String,
    pub(super) password: SecretString,
    /// `None`: for ever.
    until: Option<Instant>,
}

impl Login {
    pub(super) fn is_current(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }

    fn for_a_time(username: &str, password: String, life: Duration) -> Login {
        let until = Instant::now() + life.saturating_sub(RENEW_BEFORE);
        Login { username: username.to_owned(), password: password.into(), until: Some(until) }
    }
}

/// The login for `registry` (a host name, without its port); `None` for anonymous use.
pub(super) async fn login(
    http: &Http,
    registry: &str,
    repository: &str,
    credentials: &Credentials,
) -> Result<Option<Login>, RegistryError> {
    match credentials {
        Credentials::Anonymous => Ok(None),
        Credentials::Basic { username, password } => {
            Ok(Some(Login { username: username.clone(), password: password.clone(), until: None }))
        }
        Credentials::AwsEcr { access_key_id, secret_access_key, region, session_token } => {
            let identity =
                aws::Identity { access_key_id, secret_access_key, region, session_token: session_token.as_ref() };
            aws::login(http, registry, repository, &identity).await.map(Some)
        }
        Credentials::GcpServiceAccount { key_file } => gcp::login(http, registry, repository, key_file).await.map(Some),
    }
}

/// The error for credentials of one cloud and a registry that is not there.
fn elsewhere(registry: &str, repository: &str, cloud: &str) -> RegistryError {
    RegistryError::Unauthorized {
        at: At::new(registry, repository, "login"),
        message: format!("{cloud} credentials were given, but this is not one of its registries"),
    }
}

/// Seconds since the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
