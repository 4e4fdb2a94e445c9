//! Seals secrets for the database: variables of sandboxes, and keys of webhooks.
//!
//! ```text
//!   sealed = key id (1 byte) · nonce (12 random bytes) · AES-256-GCM of the secret, with its tag (16 bytes)
//! ```
//! The owner of a secret (a sandbox's id, a webhook's id) is authenticated with it, so a sealed secret that is copied into another
//! row does not open. The keys come from a file of the service's data folder, one a line: `<id> <64 hex digits>`. The first line
//! seals, all of them open. To rotate: put a new line with another id first, restart, and remove the old line when nothing is
//! sealed with it any more.
//!
//! Each key also gives one for signatures, derived with a label of its own: a signature tells nothing about what is sealed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use nullspace_api::ErrorResponseCode;
use nullspace_service::Error;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac::{self, HMAC_SHA256};
use ring::rand::{SecureRandom, SystemRandom};

/// Bytes of a key.
const KEY_LEN: usize = 32;
/// Most keys of a file.
const MOST_KEYS: usize = 16;
/// Label of the keys for signatures.
const SIGNATURES: &[u8] = b"nullspace signatures 1";

/// The keys that seal secrets in the database. Cheap to clone. Never shown.
#[derive(Clone)]
pub struct SealKey(Arc<Keys>);

struct Keys {
    /// The first one seals.
    keys: Vec<(u8, LessSafeKey)>,
    signers: Vec<Signer>,
    random: SystemRandom,
}

/// A key for signatures.
pub(crate) struct Signer {
    id: u8,
    key: hmac::Key,
}

impl Signer {
    /// The number of the key that it is derived from.
    pub(crate) fn id(&self) -> u8 {
        self.id
    }

    /// The HMAC-SHA256 of these bytes.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        hmac::sign(&self.key, bytes).as_ref().to_vec()
    }

    /// Whether this is the HMAC of these bytes, in a time that does not depend on how much of it is right.
    pub(crate) fn verify(&self, bytes: &[u8], mac: &[u8]) -> bool {
        hmac::verify(&self.key, bytes, mac).is_ok()
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys.iter().map(|(id, _)| id)).finish()
    }
}

/// A file of keys that is not one. The text names the line, and no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}; a line is a number from 0 to 255, a space, and 64 hexadecimal digits")]
pub struct InvalidSealKey {
    line: usize,
    what: &'static str,
}

/// The system gives no random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandom;

/// Why a secret does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unopened {
    /// Its key is not in the file.
    #[error("it was sealed with key {0}, which is not in the file of seal keys: put that key back")]
    NoKey(u8),
    /// Another key has its number, or it is damaged, or it belongs to something else.
    #[error("the file of seal keys has another key under its number, or it is damaged: put the earlier key back")]
    Refused,
}

impl SealKey {
    /// Reads a file of keys.
    ///
    /// # Errors
    /// [`InvalidSealKey`].
    pub fn parse(text: &str) -> Result<SealKey, InvalidSealKey> {
        let mut keys: Vec<(u8, LessSafeKey)> = Vec::new();
        let mut signers = Vec::new();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |what| InvalidSealKey { line: at + 1, what };
            let (id, key) = line.trim().split_once(' ').ok_or(wrong("it has no space"))?;
            let id = id.parse::<u8>().map_err(|_| wrong("its number is none"))?;
            let mut bytes = [0_u8; KEY_LEN];
            hex::decode_to_slice(key.trim(), &mut bytes).map_err(|_| wrong("its key is not 64 hexadecimal digits"))?;
            if keys.iter().any(|(other, _)| *other == id) {
                return Err(wrong("its number is given twice"));
            }
            if keys.len() == MOST_KEYS {
                return Err(wrong("there are more than 16 keys"));
            }
            let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| wrong("its key has another length"))?;
            keys.push((id, LessSafeKey::new(key)));
            let derived = hmac::sign(&hmac::Key::new(HMAC_SHA256, &bytes), SIGNATURES);
            signers.push(Signer { id, key: hmac::Key::new(HMAC_SHA256, derived.as_ref()) });
        }
        if keys.is_empty() {
            return Err(InvalidSealKey { line: 1, what: "there is no key" });
        }
        Ok(SealKey(Arc::new(Keys { keys, signers, random: SystemRandom::new() })))
    }

    /// The key that signs: of the first line.
    ///
    /// # Errors
    /// An internal error when there is no key, which no file that was read has.
    pub(crate) fn signer(&self) -> Result<&Signer, Error> {
        self.0
            .signers
            .first()
            .ok_or_else(|| Error::new(ErrorResponseCode::InternalError, "a signature could not be made; try again"))
    }

    /// The key with this number, for a signature of an earlier time.
    pub(crate) fn signer_with(&self, id: u8) -> Option<&Signer> {
        self.0.signers.iter().find(|signer| signer.id == id)
    }

    /// Whether a key with this number is in the file.
    pub fn has(&self, id: u8) -> bool {
        self.0.keys.iter().any(|(known, _)| *known == id)
    }

    /// Makes the contents of a new file: one random key under a random number.
    ///
    /// # Errors
    /// [`NoRandom`].
    pub fn generate() -> Result<String, NoRandom> {
        SealKey::generate_beside(&BTreeSet::new())
    }

    /// Makes the contents of a new file as [`SealKey::generate`] does, under none of these numbers, as far as one is left.
    ///
    /// # Errors
    /// [`NoRandom`].
    pub fn generate_beside(taken: &BTreeSet<u8>) -> Result<String, NoRandom> {
        let mut bytes = [0_u8; KEY_LEN + 1];
        SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandom)?;
        let [first, key @ ..] = bytes;
        let id = (0..=u8::MAX).map(|step| first.wrapping_add(step)).find(|id| !taken.contains(id)).unwrap_or(first);
        let mut text = String::with_capacity(4 + 2 * KEY_LEN);
        // Writing to a text cannot fail.
        let _ = write!(text, "{id} ");
        text.push_str(&hex::encode(key));
        text.push('\n');
        Ok(text)
    }

    /// Seals a secret for its owner.
    ///
    /// # Errors
    /// An internal error when the system gives no random numbers.
    pub(crate) fn seal(&self, owner: &str, secret: &[u8]) -> Result<Vec<u8>, Error> {
        let failed = |what: &str| {
            tracing::error!(what, "a secret could not be sealed");
            Error::new(ErrorResponseCode::InternalError, "a secret could not be encrypted; try again")
        };
        let mut nonce = [0_u8; NONCE_LEN];
        self.0.random.fill(&mut nonce).map_err(|_| failed("no random numbers"))?;
        let (id, key) = self.0.keys.first().ok_or_else(|| failed("no key"))?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + secret.len() + AES_256_GCM.tag_len());
        sealed.push(*id);
        sealed.extend_from_slice(&nonce);
        let mut text = secret.to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(owner), &mut text)
            .map_err(|_| failed("it is too long"))?;
        sealed.append(&mut text);
        Ok(sealed)
    }

    /// Opens what was sealed for this owner.
    ///
    /// # Errors
    /// [`Unopened`].
    pub(crate) fn open(&self, owner: &str, sealed: &[u8]) -> Result<Vec<u8>, Unopened> {
        let (id, rest) = sealed.split_first().ok_or(Unopened::Refused)?;
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(Unopened::Refused)?;
        let key = self.0.keys.iter().find(|(known, _)| known == id).map(|(_, key)| key).ok_or(Unopened::NoKey(*id))?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unopened::Refused)?;
        let mut text = text.to_vec();
        let length = key.open_in_place(nonce, Aad::from(owner), &mut text).map_err(|_| Unopened::Refused)?.len();
        text.truncate(length);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "1 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const NEW: &str = "2 ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    #[test]
    fn a_secret_opens_for_its_owner_alone_and_never_looks_the_same() {
        let key = SealKey::parse(&SealKey::generate().unwrap()).unwrap();
        let sealed = key.seal("sb_1", b"TOKEN=hush").unwrap();
        assert_eq!(key.open("sb_1", &sealed).unwrap(), b"TOKEN=hush");
        assert_eq!(key.open("sb_2", &sealed), Err(Unopened::Refused));
        assert_ne!(key.seal("sb_1", b"TOKEN=hush").unwrap(), sealed);
        assert!(!sealed.windows(4).any(|window| window == b"hush"));
        for at in 1..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!(key.open("sb_1", &damaged), Err(Unopened::Refused), "byte {at}");
        }
        for length in 0..sealed.len() {
            assert!(key.open("sb_1", &sealed[..length]).is_err());
        }
    }

    #[test]
    fn after_a_rotation_old_secrets_open_until_their_key_goes() {
        let old = SealKey::parse(OLD).unwrap();
        let sealed = old.seal("sb_1", b"A=1").unwrap();
        let rotated = SealKey::parse(&format!("{NEW}\n{OLD}\n")).unwrap();
        assert_eq!(rotated.open("sb_1", &sealed).unwrap(), b"A=1");
        let resealed = rotated.seal("sb_1", b"A=1").unwrap();
        assert_eq!(old.open("sb_1", &resealed), Err(Unopened::NoKey(2)));
        let new = SealKey::parse(NEW).unwrap();
        assert_eq!(new.open("sb_1", &resealed).unwrap(), b"A=1");
        assert_eq!(new.open("sb_1", &sealed), Err(Unopened::NoKey(1)));
        let other = SealKey::parse(&NEW.replacen('2', "1", 1)).unwrap();
        assert_eq!(other.open("sb_1", &sealed), Err(Unopened::Refused));
    }

    #[test]
    fn a_new_key_has_no_number_of_an_earlier_one() {
        for free in [0, 7, 255] {
            let taken = (0..=u8::MAX).filter(|id| *id != free).collect();
            let key = SealKey::parse(&SealKey::generate_beside(&taken).unwrap()).unwrap();
            assert!(key.has(free) && !key.has(free.wrapping_add(1)));
        }
        SealKey::parse(&SealKey::generate_beside(&(0..=u8::MAX).collect()).unwrap()).unwrap();
    }

    #[test]
    fn a_file_that_is_none_is_refused_without_showing_a_key() {
        let many: String = (0..17).map(|id| format!("{id} {}\n", &OLD[2..])).collect();
        let twice = format!("{OLD}\n{OLD}");
        for (text, line) in [("", 1), ("1", 1), ("256 00", 1), ("\n1 zz", 2), (&OLD[..20], 1), (&twice, 2), (&many, 17)]
        {
            let error = SealKey::parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text}");
            assert!(!error.to_string().contains("0001"), "{error}");
        }
        assert_eq!(format!("{:?}", SealKey::parse(OLD).unwrap()), "[1]");
    }
}
