//! API keys of tenants.
//!
//! ```text
//!   valid ── revoke_key ──────────> over: it opens nothing any more, and its row says since when
//!     ├──── expires_at ───────────>
//!     └──── rotate_key: another one comes in its place; it is over at once, or after a grace
//! ```

use std::fmt;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use nullspace_types::{Caller, KeyId, TenantId};
use rand::{Rng, distr::Alphanumeric};
use sha2::{Digest, Sha256};

#[cfg(doc)]
use crate::DbError;
use crate::{Result, text_enum::text_enum};

/// Stores the hashes of API keys.
#[async_trait]
pub trait Keys: Send + Sync + 'static {
    /// Stores the hash of a key for a tenant. The key itself is not stored.
    ///
    /// # Errors
    /// [`DbError::LimitReached`] when the tenant has as many valid keys as `limits` allow; without `limits`, never.
    /// [`DbError::Conflict`] when [`KeySpec::maker`] is not valid any more.
    async fn create_key(
        &self,
        tenant: TenantId,
        key: &NewKey,
        spec: KeySpec,
        limits: Option<KeyLimits>,
        now: Timestamp,
    ) -> Result<ApiKey>;

    /// Stores the hash of a key in another one's place, which is over after the rotation's grace. Until then it counts. The grants of
    /// the older key end with it.
    ///
    /// # Errors
    /// [`DbError::NotFound`] for a key of another tenant. [`DbError::Conflict`] when it is over, when it was rotated already, and when
    /// [`KeySpec::maker`] is not valid any more.
    /// [`DbError::LimitReached`] as [`create_key`](Self::create_key).
    async fn rotate_key(
        &self,
        tenant: TenantId,
        rotation: Rotation,
        key: &NewKey,
        spec: KeySpec,
        limits: KeyLimits,
        now: Timestamp,
    ) -> Result<ApiKey>;

    /// Returns a tenant's keys, oldest first, with those that are over.
    async fn list_keys(&self, tenant: TenantId) -> Result<Vec<ApiKey>>;

    /// Revokes a key, of this tenant or of any, and the grants that it made. A second call changes nothing.
    async fn revoke_key(&self, tenant: Option<TenantId>, key: KeyId, now: Timestamp) -> Result<()>;

    /// Returns the tenant of this key as a caller; [`DbError::NotFound`] when the key is unknown or over.
    async fn authenticate(&self, key: &KeyHash, now: Timestamp) -> Result<Caller>;

    /// Returns the tenant of the key with this id as a caller; [`DbError::NotFound`] when it is unknown or over. It is no use of the
    /// key.
    async fn caller_of_key(&self, key: KeyId, now: Timestamp) -> Result<Caller>;

    /// Returns which of these keys are still valid for [`authenticate`](Self::authenticate): neither over nor of a deleted tenant.
    async fn keys_in_force(&self, keys: &[KeyId], now: Timestamp) -> Result<Vec<KeyId>>;
}

/// An API key as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Identity.
    pub id: KeyId,
    /// The tenant that owns it.
    pub tenant: TenantId,
    /// Its owner's note.
    pub label: String,
    /// The key's first characters, by which people tell keys apart.
    pub shown: String,
    /// Time of creation.
    pub created_at: Timestamp,
    /// Time of its last use, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// What it may do.
    pub scope: KeyScope,
    /// Time from which on it is not valid.
    pub expires_at: Option<Timestamp>,
    /// Time of its revocation.
    pub revoked_at: Option<Timestamp>,
    /// The key in whose place it came.
    pub rotated_from: Option<KeyId>,
}

impl ApiKey {
    /// Whether it is neither revoked nor expired.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| end > now)
    }
}

text_enum! {
    /// What a key may do.
    KeyScope {
        /// Everything that its tenant may.
        Full = "full",
        /// Only requests that read.
        Read = "read",
    }
}

/// Description of a key that is to be made. Where a rotation leaves something open, the older key's holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeySpec {
    /// Its owner's note; empty by default.
    pub label: Option<String>,
    /// What it may do; everything by default.
    pub scope: Option<KeyScope>,
    /// Time from which on it is not valid; never by default.
    pub expires_at: Option<Timestamp>,
    /// The key of the request: the new key ends no later than it. `None`: the operator makes it.
    pub maker: Option<KeyId>,
}

/// A key that gets another one in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// The older key.
    pub key: KeyId,
    /// Time for which it still works. Zero: it is revoked at once.
    pub grace: SignedDuration,
}

/// Limits of a tenant's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyLimits {
    /// Most valid keys.
    pub active: u32,
    /// Most rows of keys that are over. The oldest ones go first.
    pub over: u32,
}

/// SHA-256 of an API key, which the database stores and looks up. The key has more than 190 random bits, so a salt or a slow
/// hash would not help. The time of a look-up by hash does not depend on the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Hash of the whole key as the caller sends it.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// A new API key. It exists only in this value: print it once, and store its [`KeyHash::of`].
pub struct NewKey(String);

impl NewKey {
    /// Prefix of every key.
    pub const PREFIX: &'static str = "ns_live_";
    const RANDOM_CHARS: usize = 40;
    const SHOWN_RANDOM_CHARS: usize = 4;

    /// Draws a key from the system's secure generator.
    pub fn generate() -> Self {
        let random = rand::rng().sample_iter(Alphanumeric).take(Self::RANDOM_CHARS).map(char::from);
        Self(Self::PREFIX.chars().chain(random).collect())
    }

    /// The key, for its owner only.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The hash for the database.
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(&self.0)
    }

    /// The part that may be shown later. It is too short to guess the rest from.
    pub fn shown(&self) -> String {
        self.0.chars().take(Self::PREFIX.len() + Self::SHOWN_RANDOM_CHARS).collect()
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_long_random_and_never_in_debug_output() {
        let (one, two) = (NewKey::generate(), NewKey::generate());
        assert_ne!(one.expose(), two.expose());
        assert!(one.expose().starts_with("ns_live_"));
        assert_eq!(one.expose().len(), 48);
        assert!(one.expose().starts_with(&one.shown()));
        assert!(!format!("{one:?} {:?}", one.hash()).contains(&one.expose()[8..]));
        assert_eq!(one.hash(), KeyHash::of(one.expose()));
    }
}
