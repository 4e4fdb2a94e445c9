//! SSH accesses: made for owners, looked up for logins. Certificates are made by the SSH server's part, if there is one.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use nullspace_api::{ErrorResponseCode, SshAccessRequest, SshAccessResponse};
use nullspace_db::{DbError, NewSshAccess};
use nullspace_service::{SshAccesses, SshCertificates, SshEntered, SshLogin, SshWanted};
use nullspace_types::{Caller, SshAccessId};

use super::parse;
use crate::Control;
use crate::error::{Error, Result, Stored, of_store};

/// Seconds for which an access holds where none are requested, and the most.
const USUAL_SECS: u64 = 3600;
const LONGEST_SECS: u64 = 24 * 3600;
/// Most accesses of one sandbox in force.
const IN_FORCE: u32 = 64;
/// Longest name of a user, bytes.
const LONGEST_USER: usize = 256;

/// The certificates of the SSH server, if there is one.
#[derive(Default)]
pub(super) struct State(OnceLock<Arc<dyn SshCertificates>>);

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl Control {
    /// Gives the service the certificates of its SSH server. Without them it makes no SSH accesses. A second call changes nothing.
    pub fn use_ssh(&self, certificates: Arc<dyn SshCertificates>) {
        // Set already: those that are known stay.
        let _ = self.inner.sandboxes.ssh.0.set(certificates);
    }
}

/// The lifetime that a request asks for, in seconds.
fn lifetime(request: &SshAccessRequest) -> Result<u64> {
    let seconds = match request.ttl_seconds {
        Some(seconds) if !(1..=LONGEST_SECS).contains(&seconds) => {
            let message = format!("ttl_seconds is {seconds}: it must be 1 to {LONGEST_SECS}, which is a day");
            return Err(Error::invalid(message));
        }
        seconds => seconds,
    };
    let most = LONGEST_SECS / 60;
    let minutes = match request.expires_in_minutes {
        Some(minutes) if !(1..=most).contains(&minutes) => {
            let message = format!("expires_in_minutes is {minutes}: it must be 1 to {most}, which is a day");
            return Err(Error::invalid(message));
        }
        minutes => minutes.map(|minutes| minutes * 60),
    };
    Ok([seconds, minutes].into_iter().flatten().min().unwrap_or(USUAL_SECS))
}

#[async_trait]
impl SshAccesses for Control {
    async fn create_ssh_access(
        &self,
        caller: &Caller,
        id: &str,
        request: SshAccessRequest,
    ) -> Result<SshAccessResponse> {
        let sandbox = self.inner.sandbox_of(caller, parse(id)?).await?;
        if sandbox.status.is_final() {
            return Err(Error::sandbox_not_found(id));
        }
        let Some(certificates) = self.inner.sandboxes.ssh.0.get() else {
            let message = "this service has no SSH server: its operator can start one with the setting ssh_listen";
            return Err(Error::new(ErrorResponseCode::FeatureUnavailable, message));
        };
        let wrong_user = |user: &String| user.is_empty() || user.len() > LONGEST_USER || user.contains('\0');
        if request.user.as_ref().is_some_and(wrong_user) {
            return Err(Error::invalid(format!("user must have 1 to {LONGEST_USER} bytes, without a NUL character")));
        }
        let seconds = SignedDuration::from_secs(i64::try_from(lifetime(&request)?).unwrap_or(i64::MAX));
        // Certificates count in seconds: the access ends with its certificate, not a moment later.
        let now = Timestamp::now();
        let expires_at = now.checked_add(seconds).unwrap_or(Timestamp::MAX);
        let expires_at = Timestamp::from_second(expires_at.as_second()).unwrap_or(expires_at);
        let access = SshAccessId::new();
        let wanted = SshWanted { public_key: &request.public_key, sandbox: sandbox.id, access, now, expires_at };
        let made = certificates.certify(wanted)?;
        let new = NewSshAccess { id: access, sandbox: sandbox.id, user: request.user, expires_at };
        self.inner.db.insert_ssh_access(caller, new, IN_FORCE, now).await.map_err(|error| match error {
            DbError::NotFound => Error::sandbox_not_found(id),
            DbError::LimitReached { limit, .. } => Error::new(
                ErrorResponseCode::RateLimitExceeded,
                format!(
                    "sandbox {id} has {limit} SSH accesses in force, the most that one may have: wait until one expires"
                ),
            ),
            other => of_store(other),
        })?;
        tracing::info!(sandbox_id = %sandbox.id, %access, "an SSH access is made");
        let user = sandbox.id.to_string();
        Ok(SshAccessResponse {
            command: format!("ssh -p {} {user}@{}", made.port, made.host),
            certificate: made.certificate,
            host: made.host,
            port: made.port,
            user,
            expires_at: expires_at.into(),
            access_id: access.to_string(),
            host_key: Some(made.host_key),
        })
    }

    async fn ssh_login(&self, login: SshLogin) -> Result<SshEntered> {
        let missing = || Error::sandbox_not_found(&login.sandbox.to_string());
        let found = self.inner.db.ssh_access(login.access, Timestamp::now()).await.or_missing(missing)?;
        if found.sandbox != login.sandbox {
            return Err(missing());
        }
        Ok(SshEntered { sandbox: found.sandbox, caller: found.caller, user: found.user, expires_at: found.expires_at })
    }

    async fn ssh_accesses_in_force(&self, accesses: &[SshAccessId]) -> Result<Vec<SshAccessId>> {
        self.inner.db.ssh_accesses_in_force(accesses, Timestamp::now()).await.stored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_has_a_default_and_a_range_and_the_shorter_one_counts() {
        let asked = |ttl_seconds, expires_in_minutes| {
            lifetime(&SshAccessRequest { ttl_seconds, expires_in_minutes, ..SshAccessRequest::default() }).ok()
        };
        assert_eq!(asked(None, None), Some(3600));
        assert_eq!(asked(Some(1), None), Some(1));
        assert_eq!(asked(None, Some(10)), Some(600));
        assert_eq!(asked(Some(60), Some(10)), Some(60));
        assert_eq!(asked(Some(86_400), Some(1440)), Some(86_400));
        for (seconds, minutes) in [
            (Some(0), None),
            (Some(86_401), None),
            (None, Some(0)),
            (None, Some(1441)),
            (Some(u64::MAX), Some(u64::MAX)),
        ] {
            assert_eq!(asked(seconds, minutes), None);
        }
    }
}
