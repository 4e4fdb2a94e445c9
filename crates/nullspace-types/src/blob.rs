//! Names of uploaded files.
//!
//! ```text
//!   sha256-<64 hex digits>-<bytes>        says all that an upload is checked against
//! ```
//!
//! A blob belongs to one tenant: a digest is no proof of having the bytes.

use std::{fmt, str::FromStr};

use crate::TenantId;

const PREFIX: &str = "sha256-";

/// Name of a blob within its tenant: digest and size of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId {
    sha256: String,
    bytes: u64,
}

/// Text that is not a blob id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a blob id is sha256-, 64 lower-case hexadecimal digits, and -size in bytes")]
pub struct InvalidBlobId;

impl BlobId {
    /// The blob of this SHA-256 (64 lower-case hex digits) and size.
    ///
    /// # Errors
    /// [`InvalidBlobId`] for any other text, or a size beyond what a file can have.
    pub fn new(sha256: &str, bytes: u64) -> Result<Self, InvalidBlobId> {
        let digest = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !digest || i64::try_from(bytes).is_err() {
            return Err(InvalidBlobId);
        }
        Ok(Self { sha256: sha256.to_owned(), bytes })
    }

    /// SHA-256 of the bytes, lower-case hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Number of bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.sha256, self.bytes)
    }
}

impl FromStr for BlobId {
    type Err = InvalidBlobId;

    fn from_str(text: &str) -> Result<Self, InvalidBlobId> {
        let (sha256, bytes) = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).ok_or(InvalidBlobId)?;
        let id = Self::new(sha256, bytes.parse().map_err(|_| InvalidBlobId)?)?;
        // One blob, one spelling: no `+7`, no `007`.
        if id.to_string() == text { Ok(id) } else { Err(InvalidBlobId) }
    }
}

/// A blob of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob {
    /// The tenant that owns it.
    pub tenant: TenantId,
    /// Its id.
    pub id: BlobId,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_blob_id_has_one_spelling_and_is_safe_in_a_path() {
        let id = BlobId::new(DIGEST, 7).unwrap();
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in [
            "",
            "sha256-",
            DIGEST,
            &format!("sha256-{DIGEST}"),
            &format!("sha256-{DIGEST}-"),
            &format!("sha256-{DIGEST}-+7"),
            &format!("sha256-{DIGEST}-07"),
            &format!("sha256-{DIGEST}--7"),
            &format!("sha256-{DIGEST}-9223372036854775808"),
            &format!("sha256-{}-7", DIGEST.to_uppercase()),
            &format!("sha256-{}-7", &DIGEST[1..]),
            "sha256-../../../../../../../../../../../../../../../../../../../etc/shadow-1",
        ] {
            assert_eq!(wrong.parse::<BlobId>(), Err(InvalidBlobId), "{wrong:?} was taken");
        }
    }
}
