//! Tokens for one port of one sandbox, and their grants.
//!
//! ```text
//!   32 random bytes ──> token ──> URL, once        SHA-256 of it ──> grant: row in the database, remembered for 2 s
//! ```
//! The token of a link is also remembered here, so that the same link can be given out again while most of its time is left: a client
//! that asks for the address of a port over and over makes one grant. Nothing on a disk has it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nullspace_api::{
    PreviewGrantInfo, PreviewGrantInfoAuthMode, PreviewGrantInfoBootstrapTransport, PreviewGrantInfoPrincipalKind,
    PreviewGrantInfoStatus, PreviewGrantInfoTokenKindsItem,
};
use nullspace_db::{DbError, Grant, GrantKind, NewGrant};
use nullspace_types::{Caller, GrantId, KeyId, SandboxId};
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use super::door::Door;
use super::nobody;
use crate::Inner;
use crate::error::{Error, Result, Stored, internal, of_store};
use crate::sealed::NoRandom;

/// Most active grants of a sandbox.
const ACTIVE: u32 = 100;
/// Most grants that are remembered, and links. All are forgotten when there are more.
const REMEMBERED: usize = 10_000;
/// Time for which a grant is remembered. A revocation by this process needs none of it.
const FRESH: Duration = Duration::from_secs(2);
/// Longest token that is looked up, bytes.
const LONGEST: usize = 256;
/// Beginning of a token.
const PREFIX: &str = "nse_";

/// SHA-256 of a token.
pub(super) type Hash = [u8; 32];

pub(super) fn hash(token: &SecretString) -> Hash {
    Sha256::digest(token.expose_secret().as_bytes()).into()
}

/// Makes a secret text of 32 random bytes.
pub(super) fn random(prefix: &str) -> Result<SecretString> {
    let mut bytes = [0_u8; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| internal("make a token", &NoRandom))?;
    Ok(format!("{prefix}{}", hex::encode(bytes)).into())
}

/// A grant that lets a request in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Good {
    pub(super) id: GrantId,
    pub(super) expires_at: Timestamp,
    /// The number of revocations before it was looked up.
    pub(super) seen: u64,
}

/// What is remembered of a grant.
#[derive(Debug, Clone, Copy)]
struct Known {
    id: GrantId,
    sandbox: SandboxId,
    port: u16,
    expires_at: Timestamp,
    is_revoked: bool,
    since: Instant,
}

/// Whose a link is: the sandbox, the port, and the key that asked for it.
type LinkOf = (SandboxId, u16, Option<KeyId>);

/// A link that can be given out again.
struct Link {
    grant: GrantId,
    token: SecretString,
}

/// Grants that were looked up, and links that were given out.
#[derive(Default)]
pub(super) struct Tokens {
    known: Mutex<HashMap<Hash, Known>>,
    /// Each key gets links of its own, since they end with it.
    links: Mutex<HashMap<LinkOf, Link>>,
    revocations: AtomicU64,
}

impl Tokens {
    fn known(&self) -> MutexGuard<'_, HashMap<Hash, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, HashMap<LinkOf, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of revocations so far.
    pub(super) fn revocations(&self) -> u64 {
        self.revocations.load(Ordering::SeqCst)
    }

    /// Remembers a grant that was read when so many had been revoked.
    fn remember(&self, hash: Hash, grant: Known, seen: u64) {
        let mut known = self.known();
        // A revocation since then may be that of this one. It counts under this lock.
        if self.revocations() != seen {
            return;
        }
        if known.len() >= REMEMBERED {
            known.retain(|_, grant| grant.since.elapsed() < FRESH);
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(hash, grant);
    }

    /// Forgets all grants: some of them have ended in the database.
    pub(super) fn forget_all(&self) {
        let mut known = self.known();
        self.revocations.fetch_add(1, Ordering::SeqCst);
        known.clear();
    }

    /// Forgets a grant that is recorded as revoked.
    fn forget(&self, id: GrantId) {
        let mut known = self.known();
        self.revocations.fetch_add(1, Ordering::SeqCst);
        known.retain(|_, grant| grant.id != id);
        drop(known);
        self.links().retain(|_, link| link.grant != id);
    }
}

impl Inner {
    /// Decides whether a request may reach a port. `None`: it needs no grant.
    ///
    /// # Errors
    /// [`nobody`] when it may not, or its token is one of this port's that is over.
    pub(super) async fn judge(
        &self,
        door: &Door,
        sandbox: SandboxId,
        port: u16,
        token: Option<&SecretString>,
    ) -> Result<Option<Good>> {
        let without = || if door.public { Ok(None) } else { Err(nobody()) };
        let Some(token) = token.filter(|token| token.expose_secret().len() <= LONGEST) else { return without() };
        let hash = hash(token);
        // Both are hashes: how long they are equal tells nothing of a token.
        if door.token == Some(hash) {
            return Ok(None);
        }
        let seen = self.sandboxes.ports.tokens.revocations();
        match self.known_grant(hash, seen).await? {
            Some(grant) if grant.sandbox == sandbox && grant.port == port => {
                if grant.is_revoked || grant.expires_at <= Timestamp::now() {
                    return Err(nobody());
                }
                Ok(Some(Good { id: grant.id, expires_at: grant.expires_at, seen }))
            }
            _ => without(),
        }
    }

    async fn known_grant(&self, hash: Hash, seen: u64) -> Result<Option<Known>> {
        let tokens = &self.sandboxes.ports.tokens;
        if let Some(grant) = tokens.known().get(&hash).filter(|grant| grant.since.elapsed() < FRESH) {
            return Ok(Some(*grant));
        }
        let grant = match self.db.grant_of_token(hash).await {
            Ok(grant) => grant,
            Err(DbError::NotFound) => return Ok(None),
            Err(error) => return Err(of_store(error)),
        };
        let known = Known {
            id: grant.id,
            sandbox: grant.sandbox,
            port: grant.port,
            expires_at: grant.expires_at,
            is_revoked: grant.revoked_at.is_some(),
            since: Instant::now(),
        };
        tokens.remember(hash, known, seen);
        Ok(Some(known))
    }

    /// Asks the database whether a token is still in force.
    pub(super) async fn still_in_force(&self, token: Option<&SecretString>) -> Result<()> {
        let token = token.ok_or_else(nobody)?;
        let grant = self.db.grant_of_token(hash(token)).await.or_missing(nobody)?;
        if grant.is_active(Timestamp::now()) { Ok(()) } else { Err(nobody()) }
    }

    /// Makes a grant with a new token.
    pub(super) async fn issue(
        &self,
        caller: &Caller,
        sandbox: SandboxId,
        port: u16,
        kind: GrantKind,
        secs: u64,
    ) -> Result<(Grant, SecretString)> {
        let token = random(PREFIX)?;
        let now = Timestamp::now();
        let lifetime = SignedDuration::from_secs(i64::try_from(secs).unwrap_or(i64::MAX));
        let expires_at = now.checked_add(lifetime).unwrap_or(Timestamp::MAX);
        let new = NewGrant { id: GrantId::new(), sandbox, port, kind, token_hash: hash(&token), expires_at };
        let made = self.db.insert_grant(caller, new, ACTIVE, now).await.map_err(|error| match error {
            DbError::NotFound => Error::sandbox_not_found(&sandbox.to_string()),
            DbError::Conflict { what } => Error::new(nullspace_api::ErrorResponseCode::Unauthorized, what),
            DbError::LimitReached { limit, .. } => Error::new(
                nullspace_api::ErrorResponseCode::RateLimitExceeded,
                format!(
                    "sandbox {sandbox} has {limit} preview URLs in force, the most that one may have: revoke one \
                     (DELETE /v1/sandboxes/{sandbox}/preview-urls/{{grant}}), or wait until one expires"
                ),
            ),
            other => of_store(other),
        })?;
        Ok((made, token))
    }

    /// The grant of a port's link: the one that this key got last while half of its time is left, else a new one.
    pub(super) async fn link(
        &self,
        caller: &Caller,
        sandbox: SandboxId,
        port: u16,
        secs: u64,
    ) -> Result<(Grant, SecretString)> {
        let tokens = &self.sandboxes.ports.tokens;
        let of = (sandbox, port, caller.key);
        let given = tokens.links().get(&of).map(|link| link.token.clone());
        if let Some(token) = given {
            match self.db.grant_of_token(hash(&token)).await {
                Ok(grant) if grant.revoked_at.is_none() && is_young(&grant, Timestamp::now()) => {
                    return Ok((grant, token));
                }
                Ok(_) | Err(DbError::NotFound) => {}
                Err(error) => return Err(of_store(error)),
            }
        }
        let (grant, token) = self.issue(caller, sandbox, port, GrantKind::Link, secs).await?;
        let mut links = tokens.links();
        if links.len() >= REMEMBERED {
            links.clear();
        }
        links.insert(of, Link { grant: grant.id, token: token.clone() });
        Ok((grant, token))
    }

    /// Revokes a grant, and ends what it let in.
    pub(super) async fn revoke(&self, caller: &Caller, sandbox: SandboxId, id: GrantId) -> Result<Grant> {
        let ports = &self.sandboxes.ports;
        let revoked = self.db.revoke_grant(caller, sandbox, id, Timestamp::now()).await.stored()?;
        ports.tokens.forget(id);
        ports.uses.end(id);
        tracing::info!(sandbox_id = %sandbox, grant_id = %id, "a preview URL is revoked");
        Ok(revoked)
    }
}

/// Whether more than half of a grant's time is left. The end of its key may have shortened it.
fn is_young(grant: &Grant, now: Timestamp) -> bool {
    grant.expires_at.duration_since(now) > grant.expires_at.duration_since(grant.issued_at) / 2
}

/// A grant in its wire form.
pub(super) fn wire(grant: &Grant, now: Timestamp) -> PreviewGrantInfo {
    let status = match grant {
        Grant { revoked_at: Some(_), .. } => PreviewGrantInfoStatus::Revoked,
        Grant { expires_at, .. } if *expires_at <= now => PreviewGrantInfoStatus::Expired,
        _ => PreviewGrantInfoStatus::Active,
    };
    let (first, last) = grant.used.unzip();
    let (code, failed_at) = grant.last_error.clone().unzip();
    PreviewGrantInfo {
        id: grant.id.to_string(),
        sandbox_id: grant.sandbox.to_string(),
        port: u32::from(grant.port),
        status,
        auth_mode: PreviewGrantInfoAuthMode::Direct,
        bootstrap_transport: PreviewGrantInfoBootstrapTransport::Query,
        token_kinds: vec![PreviewGrantInfoTokenKindsItem::HttpPort, PreviewGrantInfoTokenKindsItem::WebsocketPort],
        principal_kind: PreviewGrantInfoPrincipalKind::User,
        principal_id: None,
        issued_at: grant.issued_at.into(),
        expires_at: grant.expires_at.into(),
        revoked_at: grant.revoked_at.map(Into::into),
        first_used_at: first.map(Into::into),
        last_used_at: last.map(Into::into),
        use_count: grant.http_requests.saturating_add(grant.websockets),
        http_request_count: grant.http_requests,
        websocket_connection_count: grant.websockets,
        bytes_in_count: grant.bytes_in,
        bytes_out_count: grant.bytes_out,
        last_error_code: code,
        last_error_at: failed_at.map(Into::into),
        disabled_at: None,
        created_at: grant.issued_at.into(),
        updated_at: grant.updated_at.into(),
    }
}
