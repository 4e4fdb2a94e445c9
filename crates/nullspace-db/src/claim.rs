//! Claims of template names.
//!
//! The owner of a claim has its token. The database stores only the token's hash, as with keys.

use std::fmt;

use jiff::Timestamp;
use nullspace_types::TemplateName;
use rand::{Rng, distr::Alphanumeric};
use sha2::{Digest, Sha256};

/// SHA-256 of a claim's token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClaimHash([u8; 32]);

impl ClaimHash {
    /// Hash of the token as the caller sends it.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ClaimHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClaimHash(…)")
    }
}

/// A new claim token. Every caller that sends it may use the name.
pub struct ClaimToken(String);

impl ClaimToken {
    /// Prefix of every token.
    pub const PREFIX: &'static str = "claim_";
    const RANDOM_CHARS: usize = 40;

    /// Draws a token from the system's secure generator.
    pub fn generate() -> Self {
        let random = rand::rng().sample_iter(Alphanumeric).take(Self::RANDOM_CHARS).map(char::from);
        Self(Self::PREFIX.chars().chain(random).collect())
    }

    /// The token, for its owner only.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The hash for the database.
    pub fn hash(&self) -> ClaimHash {
        ClaimHash::of(&self.0)
    }
}

impl fmt::Debug for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClaimToken(…)")
    }
}

/// A name to claim in the caller's own namespace.
#[derive(Debug, Clone)]
pub struct NewClaim {
    /// The name.
    pub name: TemplateName,
    /// Hash of the claim's token.
    pub token: ClaimHash,
    /// Time of expiry.
    pub expires_at: Timestamp,
}
