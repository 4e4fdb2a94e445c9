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

/// Keeps tenants, their namespaces and the hashes of their API keys.
#[async_trait]
pub trait Tenants: Send + Sync + 'static {
    /// The tenant of this name, made with its default namespace if there is none. The namespace's slug is the name made
    /// into one, with a number when taken; for [`NamespaceKind::System`] it is [`SYSTEM_NAMESPACE`](nullspace_types::SYSTEM_NAMESPACE).
    async fn ensure_tenant(&self, name: &str, kind: NamespaceKind, now: Timestamp) -> Result<Tenant>;

    /// All tenants by name.
    async fn list_tenants(&self) -> Result<Vec<Tenant>>;

    /// Stores the hash of a key for a tenant. The key itself is not kept.
    async fn create_key(&self, tenant: &Tenant, label: &str, key: &NewKey, now: Timestamp) -> Result<ApiKey>;

    /// A tenant's keys, oldest first, revoked ones too.
    async fn list_keys(&self, tenant: &Tenant) -> Result<Vec<ApiKey>>;

    /// Makes a key open nothing from now on. Doing it again changes nothing.
    async fn revoke_key(&self, key: KeyId, now: Timestamp) -> Result<()>;

    /// Whose key this is; [`DbError::NotFound`] when it is unknown or revoked.
    async fn authenticate(&self, key: &KeyHash, now: Timestamp) -> Result<Caller>;

    /// Which of these keys [`authenticate`](Self::authenticate) would still know: neither revoked nor their tenant gone.
    async fn keys_in_force(&self, keys: &[KeyId]) -> Result<Vec<KeyId>>;

    /// A namespace that the caller can see: its own, the system's, the deployment's, or one with a public template.
    async fn get_namespace(&self, caller: &Caller, slug: &str) -> Result<Namespace>;
}

text_enum! {
    /// Whose namespace it is.
    NamespaceKind {
        /// Built-in templates; every tenant sees them and none can change them.
        System = "system",
        /// One tenant's own.
        User = "user",
        /// Made by the operator of this deployment.
        Deployment = "deployment",
    }
}

/// A namespace of template names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// `^[a-z0-9]+(-[a-z0-9]+)*$`, unique in the deployment.
    pub slug: String,
    /// Whose it is.
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
    /// Where its templates live.
    pub namespace: Namespace,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Tenant {
    /// Who a request with one of this tenant's keys acts as.
    pub fn caller(&self) -> Caller {
        Caller { tenant: self.id, namespace: self.namespace.slug.clone(), key: None }
    }
}

/// What is kept of an API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Identity.
    pub id: KeyId,
    /// Whose.
    pub tenant: TenantId,
    /// The operator's note.
    pub label: String,
    /// The key's first characters, so that a person can tell keys apart.
    pub shown: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last opened a request, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// Since when it opens nothing.
    pub revoked_at: Option<Timestamp>,
}

/// SHA-256 of an API key: what the database keeps and looks up. The key has more than 190 random bits, so neither a salt
/// nor a slow hash would add anything, and looking up a hash takes no time that depends on the key.
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

/// A freshly made API key. It exists in this value only: print it once, keep [`KeyHash::of`] it.
pub struct NewKey(String);

impl NewKey {
    /// What every key starts with.
    pub const PREFIX: &'static str = "ns_live_";
    const RANDOM_CHARS: usize = 40;
    const SHOWN_RANDOM_CHARS: usize = 4;

    /// Draws a key from the system's secure generator.
    pub fn generate() -> Self {
        let random = rand::rng().sample_iter(Alphanumeric).take(Self::RANDOM_CHARS).map(char::from);
        Self(Self::PREFIX.chars().chain(random).collect())
    }

    /// The key, to be given to its owner and to nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What the database keeps.
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(&self.0)
    }

    /// The part that may be shown later: too little to guess the rest from.
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
