//! Tenants, their namespaces and their API keys.

use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{Caller, KeyId, TenantId};
use rand::{Rng, distr::Alphanumeric};
use sha2::{Digest, Sha256};

#[cfg(doc)]
use crate::DbError;
use crate::{Result, text_enum::text_enum};

/// Stores tenants, their namespaces and the hashes of their API keys.
#[async_trait]
pub trait Tenants: Send + Sync + 'static {
    /// Returns the tenant of this name. Creates it with its default namespace if it does not exist. The namespace's slug is
    /// made from the name, with a number if it is taken. For [`NamespaceKind::System`] it is
    /// [`SYSTEM_NAMESPACE`](nullspace_types::SYSTEM_NAMESPACE).
    async fn ensure_tenant(&self, name: &str, kind: NamespaceKind, now: Timestamp) -> Result<Tenant>;

    /// Returns all tenants, sorted by name.
    async fn list_tenants(&self) -> Result<Vec<Tenant>>;

    /// Stores the hash of a key for a tenant. The key itself is not stored.
    async fn create_key(&self, tenant: &Tenant, label: &str, key: &NewKey, now: Timestamp) -> Result<ApiKey>;

    /// Returns a tenant's keys, oldest first, with revoked ones.
    async fn list_keys(&self, tenant: &Tenant) -> Result<Vec<ApiKey>>;

    /// Revokes a key. A second call changes nothing.
    async fn revoke_key(&self, key: KeyId, now: Timestamp) -> Result<()>;

    /// Returns the tenant of this key as a caller; [`DbError::NotFound`] when the key is unknown or revoked.
    async fn authenticate(&self, key: &KeyHash, now: Timestamp) -> Result<Caller>;

    /// Returns which of these keys are still valid for [`authenticate`](Self::authenticate): neither revoked nor of a deleted
    /// tenant.
    async fn keys_in_force(&self, keys: &[KeyId]) -> Result<Vec<KeyId>>;

    /// Returns a namespace that the caller can see: its own, the system's, the deployment's, or one with a public template.
    async fn get_namespace(&self, caller: &Caller, slug: &str) -> Result<Namespace>;
}

text_enum! {
    /// Kind of a namespace.
    NamespaceKind {
        /// Has the built-in templates. Every tenant sees them, and none can change them.
        System = "system",
        /// Belongs to one tenant.
        User = "user",
        /// Created by the operator of this deployment.
        Deployment = "deployment",
    }
}

/// A namespace of template names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// `^[a-z0-9]+(-[a-z0-9]+)*$`, unique in the deployment.
    pub slug: String,
    /// Its kind.
    pub kind: NamespaceKind,
    /// The tenant that may write to it.
    pub owner: TenantId,
}

/// A tenant and its default namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Identity.
    pub id: TenantId,
    /// The operator's name for it, unique.
    pub name: String,
    /// The namespace of its templates.
    pub namespace: Namespace,
    /// Time of creation.
    pub created_at: Timestamp,
}

impl Tenant {
    /// The caller of requests with this tenant's keys.
    pub fn caller(&self) -> Caller {
        Caller { tenant: self.id, namespace: self.namespace.slug.clone(), key: None }
    }
}

/// An API key as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Identity.
    pub id: KeyId,
    /// The tenant that owns it.
    pub tenant: TenantId,
    /// The operator's note.
    pub label: String,
    /// The key's first characters, by which people tell keys apart.
    pub shown: String,
    /// Time of creation.
    pub created_at: Timestamp,
    /// Time of its last use, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// Time of its revocation.
    pub revoked_at: Option<Timestamp>,
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
