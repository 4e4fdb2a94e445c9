//! Key pairs of an S3 store: from settings, the environment or a file that may change.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use secrecy::{ExposeSecret, SecretString};

use crate::{Error, Result};

/// Longest credentials file, bytes.
const MOST_FILE_BYTES: u64 = 64 << 10;

/// Where the key pair of an S3 store comes from. Secrets are in no `Debug` output and no error.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum S3Credentials {
    /// A key pair.
    Keys {
        /// The key's id, which is no secret.
        access_key_id: String,
        /// The key.
        secret_access_key: SecretString,
        /// The token of temporary keys.
        session_token: Option<SecretString>,
    },
    /// A file in the format of AWS tools (`~/.aws/credentials`). It is read again when it has changed, so that temporary keys
    /// can be renewed without a restart.
    File {
        /// Its path.
        path: PathBuf,
        /// The section: `default` by default.
        profile: String,
    },
}

impl S3Credentials {
    /// Reads the variables of AWS tools: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`; without them,
    /// `AWS_SHARED_CREDENTIALS_FILE` and `AWS_PROFILE`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when neither is set, or only half a key pair.
    pub fn from_environment() -> Result<S3Credentials> {
        S3Credentials::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<S3Credentials> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        match (
            variable("AWS_ACCESS_KEY_ID"),
            variable("AWS_SECRET_ACCESS_KEY"),
            variable("AWS_SHARED_CREDENTIALS_FILE"),
        ) {
            (Some(access_key_id), Some(secret), _) => Ok(S3Credentials::Keys {
                access_key_id,
                secret_access_key: SecretString::from(secret),
                session_token: variable("AWS_SESSION_TOKEN").map(SecretString::from),
            }),
            (None, None, Some(path)) => Ok(S3Credentials::File {
                path: path.into(),
                profile: variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned()),
            }),
            (None, None, None) => Err(Error::Invalid(
                "there are no credentials for the S3 store: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
                 AWS_SHARED_CREDENTIALS_FILE"
                    .to_owned(),
            )),
            _ => Err(Error::Invalid("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be set together".to_owned())),
        }
    }
}

/// A credentials file cannot be used. The message has its path and nothing of its content.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unusable(String);

/// The present key pair.
pub(super) struct Provider {
    from: From,
}

enum From {
    Keys(Arc<AwsCredential>),
    File { path: Arc<Path>, profile: Arc<str>, known: Mutex<Option<Known>> },
}

/// What was read from a file, and of which version of it.
#[derive(Clone)]
struct Known {
    version: (SystemTime, u64),
    keys: Arc<AwsCredential>,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider").finish_non_exhaustive()
    }
}

impl Provider {
    /// Prepares the credentials. A file is read, so that a mistake in it is seen at the start.
    pub(super) fn new(credentials: &S3Credentials) -> Result<Provider> {
        let from = match credentials {
            S3Credentials::Keys { access_key_id, secret_access_key, session_token } => {
                From::Keys(Arc::new(AwsCredential {
                    key_id: access_key_id.clone(),
                    secret_key: secret_access_key.expose_secret().to_owned(),
                    token: session_token.as_ref().map(|token| token.expose_secret().to_owned()),
                }))
            }
            S3Credentials::File { path, profile } => {
                let known = read(path, profile, None).map_err(|Unusable(what)| Error::Denied {
                    what,
                    setting: "the credentials file of the S3 store",
                })?;
                From::File {
                    path: path.as_path().into(),
                    profile: profile.as_str().into(),
                    known: Mutex::new(Some(known)),
                }
            }
        };
        Ok(Provider { from })
    }
}

#[async_trait]
impl CredentialProvider for Provider {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let (path, profile, known) = match &self.from {
            From::Keys(keys) => return Ok(Arc::clone(keys)),
            From::File { path, profile, known } => (path, profile, known),
        };
        let before = known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (path, profile) = (Arc::clone(path), Arc::clone(profile));
        let now = tokio::task::spawn_blocking(move || read(&path, &profile, before)).await;
        let now = now.unwrap_or_else(|_| Err(Unusable("the process is shutting down".to_owned())));
        let now = now.map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })?;
        let keys = Arc::clone(&now.keys);
        *known.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        Ok(keys)
    }
}

/// Reads the keys of a profile, unless the file is the version that is known.
fn read(path: &Path, profile: &str, known: Option<Known>) -> std::result::Result<Known, Unusable> {
    let failed = |error: std::io::Error| Unusable(format!("credentials file {}: {error}", path.display()));
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let version = (metadata.modified().map_err(failed)?, metadata.len());
    if let Some(known) = known
        && known.version == version
    {
        return Ok(known);
    }
    let mut text = String::new();
    file.take(MOST_FILE_BYTES).read_to_string(&mut text).map_err(failed)?;
    let keys =
        parse(&text, profile).map_err(|what| Unusable(format!("credentials file {}: {what}", path.display())))?;
    Ok(Known { version, keys: Arc::new(keys) })
}

/// Finds a profile in the text of a credentials file.
fn parse(text: &str, profile: &str) -> std::result::Result<AwsCredential, String> {
    let (mut id, mut secret, mut token, mut here, mut found) = (None, None, None, false, false);
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            here = section.trim() == profile;
            found |= here;
        } else if here && let Some((key, value)) = line.split_once('=') {
            let value = Some(value.trim()).filter(|value| !value.is_empty()).map(str::to_owned);
            match key.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    match (id, secret) {
        (Some(key_id), Some(secret_key)) => Ok(AwsCredential { key_id, secret_key, token }),
        _ if !found => Err(format!("it has no section [{profile}]")),
        (None, _) => Err(format!("its section [{profile}] has no aws_access_key_id")),
        (_, None) => Err(format!("its section [{profile}] has no aws_secret_access_key")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<S3Credentials> {
        S3Credentials::from_variables(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_of_aws_tools() {
        let keys =
            of(&[("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "canary"), ("AWS_SESSION_TOKEN", "canary2")]);
        let keys = keys.unwrap();
        assert!(!format!("{keys:?}").contains("canary"), "{keys:?}");
        let S3Credentials::Keys { access_key_id, secret_access_key, session_token } = keys else { panic!() };
        assert_eq!((access_key_id.as_str(), secret_access_key.expose_secret()), ("id", "canary"));
        assert_eq!(session_token.unwrap().expose_secret(), "canary2");

        let file =
            of(&[("AWS_SHARED_CREDENTIALS_FILE", "/f"), ("AWS_PROFILE", "p"), ("AWS_SESSION_TOKEN", "")]).unwrap();
        assert!(matches!(file, S3Credentials::File { path, profile } if path == Path::new("/f") && profile == "p"));

        for (wrong, says) in [
            (&[][..], "AWS_ACCESS_KEY_ID"),
            (&[("AWS_ACCESS_KEY_ID", "id")], "together"),
            (&[("AWS_SECRET_ACCESS_KEY", "canary"), ("AWS_SHARED_CREDENTIALS_FILE", "/f")], "together"),
            (&[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")], "no credentials"),
        ] {
            let error = of(wrong).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("canary"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_file_is_read_again_when_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        let section = |secret: &str| {
            format!("# of a test\n[default]\naws_access_key_id = id\naws_secret_access_key={secret}\n\n")
        };
        fs::write(&path, section("one") + "[other]\naws_access_key_id=x\n").unwrap();
        let credentials = |profile: &str| S3Credentials::File { path: path.clone(), profile: profile.to_owned() };
        let provider = Provider::new(&credentials("default")).unwrap();
        let keys = provider.get_credential().await.unwrap();
        assert_eq!((keys.key_id.as_str(), keys.secret_key.as_str(), &keys.token), ("id", "one", &None));
        fs::write(&path, section("another") + "aws_session_token = t\n").unwrap();
        let keys = provider.get_credential().await.unwrap();
        assert_eq!((keys.secret_key.as_str(), keys.token.as_deref()), ("another", Some("t")));
        assert!(!format!("{provider:?}").contains("another"));

        fs::write(&path, "[default]\naws_access_key_id=canary").unwrap();
        let error = provider.get_credential().await.unwrap_err().to_string();
        assert!(error.contains("aws_secret_access_key") && !error.contains("canary"), "{error}");
        for (profile, says) in [("default", "aws_secret_access_key"), ("third", "[third]")] {
            let error = Provider::new(&credentials(profile)).unwrap_err();
            assert!(matches!(&error, Error::Denied { what, .. } if what.contains(says)), "{error}");
        }
    }
}
