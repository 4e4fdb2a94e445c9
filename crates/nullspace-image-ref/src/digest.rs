//! Content digests (`sha256:…`), as the OCI image spec writes them.
//!
//! A [`Digest`] that exists is well formed: the algorithm is one this crate can compute and the hex part has its length
//! and is lower case (image-spec, descriptor.md, "Digests"). Nothing else in the crate checks that again.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};

/// The hash functions the image spec registers for digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, what practically every registry uses.
    Sha256,
    /// SHA-512, allowed by the spec.
    Sha512,
}

impl Algorithm {
    /// The name in front of the colon.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }

    /// A fresh hasher of this algorithm.
    pub fn hasher(self) -> Hasher {
        match self {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Box::new(Sha512::new())),
        }
    }
}

/// Why a text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No `algorithm:hex` form.
    #[error("\"{0}\" is not a digest: expected algorithm:hex")]
    Malformed(String),
    /// The algorithm is none that this program computes.
    #[error("digest algorithm \"{0}\" is not supported (sha256 and sha512 are)")]
    UnsupportedAlgorithm(String),
    /// The hex part has a wrong length or a character outside `0-9a-f`.
    #[error("\"{0}\" is not a digest: the part after the colon must be {1} lower-case hex digits")]
    Hex(String, usize),
}

/// A well-formed content digest. `Display` gives `algorithm:hex`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// Shared: digests are cloned into every error and event.
    text: Arc<str>,
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Digest {
        let mut hasher = Algorithm::Sha256.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The hex part alone.
    pub fn hex(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The digest of `bytes` by this digest's algorithm.
    pub fn of_same_kind(&self, bytes: &[u8]) -> Digest {
        let mut hasher = self.algorithm.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Whether `bytes` are what this digest names.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        self.of_same_kind(bytes) == *self
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let shown = || text.chars().take(160).collect::<String>();
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::Malformed(shown()))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            "" => return Err(DigestError::Malformed(shown())),
            other => return Err(DigestError::UnsupportedAlgorithm(other.chars().take(40).collect())),
        };
        let wanted = algorithm.hex_len();
        if hex.len() != wanted || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(DigestError::Hex(shown(), wanted));
        }
        Ok(Digest { algorithm, text: text.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A running hash that ends as a [`Digest`].
#[derive(Clone)]
pub enum Hasher {
    /// SHA-256 in progress.
    Sha256(Sha256),
    /// SHA-512 in progress.
    Sha512(Box<Sha512>),
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hasher::Sha256(_) => "Hasher(sha256)",
            Hasher::Sha512(_) => "Hasher(sha512)",
        })
    }
}

impl Hasher {
    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(state) => state.update(bytes),
            Hasher::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes so far.
    pub fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(state) => digest_of(Algorithm::Sha256, &state.finalize()),
            Hasher::Sha512(state) => digest_of(Algorithm::Sha512, &state.finalize()),
        }
    }
}

fn digest_of(algorithm: Algorithm, hash: &[u8]) -> Digest {
    Digest { algorithm, text: format!("{}:{}", algorithm.name(), hex::encode(hash)).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_round_trips_and_is_checked() {
        let digest = Digest::sha256(b"");
        assert_eq!(digest.as_str(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(digest.as_str().parse::<Digest>().unwrap(), digest);
        assert!(digest.matches(b""));
        assert!(!digest.matches(b"x"));
        assert_eq!(digest.hex().len(), 64);
        let mut hasher = Algorithm::Sha512.hasher();
        hasher.update(b"abc");
        assert!(hasher.finish().as_str().starts_with("sha512:ddaf35a1"));
    }

    #[test]
    fn malformed_digests_are_told_apart() {
        let bad = |text: &str| text.parse::<Digest>().unwrap_err();
        assert!(matches!(bad("abc"), DigestError::Malformed(_)));
        assert!(matches!(bad(":abc"), DigestError::Malformed(_)));
        assert!(matches!(bad("md5:d41d8cd98f00b204e9800998ecf8427e"), DigestError::UnsupportedAlgorithm(_)));
        assert!(matches!(bad("sha256:abc"), DigestError::Hex(..)));
        let upper = format!("sha256:{}", "A".repeat(64));
        assert!(matches!(bad(&upper), DigestError::Hex(..)));
    }
}
