//! Tokens for one file of a sandbox, which stand in a URL in the place of a key.
//!
//! ```text
//!   token = base64url( version 1 · seal key's id 1 · expiry 8 · tenant 16 · key 16 · HMAC-SHA256 32 )
//!   HMAC over all before it, and: transfer · sandbox · path · user, each with its length
//! ```
//! The HMAC's key is derived from a seal key, so a token holds over restarts and needs no row. Sandbox, path, user and direction are
//! not in the token: they stand in the URL, and the HMAC ties the token to them. The key's id is in it, so that a token ends with
//! the key that made it; the sandbox is looked up for that key's tenant, so that it ends with the sandbox.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use nullspace_db::DbError;
use nullspace_service::{SignedFile, SignedFiles, Transfer};
use nullspace_types::{Caller, KeyId, TenantId};
use uuid::Uuid;

use crate::Control;
use crate::error::{Error, Result, Stored, internal};
use crate::sealed::SealKey;

/// Seconds for which a token holds.
const LIFE: i64 = 3600;
/// Longest path and longest user's name in a signed URL, bytes.
const MAX_PATH: usize = 4096;
const MAX_USER: usize = 256;
/// The form of the token.
const VERSION: u8 = 1;
/// Bytes before the HMAC, and of it.
const HEAD: usize = 1 + 1 + 8 + 16 + 16;
const MAC: usize = 32;
/// Characters of a token.
const TOKEN: usize = ((HEAD + MAC) * 4).div_ceil(3);

#[async_trait]
impl SignedFiles for Control {
    async fn sign_file(&self, caller: &Caller, file: SignedFile<'_>) -> Result<String> {
        check(file)?;
        // Whether it is the caller's, and not over; it need not run.
        nullspace_service::Sandboxes::get_sandbox(self, caller, file.sandbox).await?;
        let key = caller.key.ok_or_else(|| internal("sign a URL", &NoKey))?;
        let expires = Timestamp::now().as_second().saturating_add(LIFE);
        let claim = Claim { expires, tenant: caller.tenant, key };
        claim.token(&self.inner.config.seal, file)
    }

    async fn signed_caller(&self, file: SignedFile<'_>, token: &str) -> Result<Option<Caller>> {
        let now = Timestamp::now();
        if check(file).is_err() {
            return Ok(None);
        }
        let Some(claim) = Claim::of_token(&self.inner.config.seal, file, token, now.as_second()) else {
            return Ok(None);
        };
        match self.inner.db.caller_of_key(claim.key, now).await {
            Err(DbError::NotFound) => Ok(None),
            found => found.stored().map(|caller| Some(caller).filter(|caller| caller.tenant == claim.tenant)),
        }
    }
}

/// A request of the API comes with a key, always.
#[derive(Debug, thiserror::Error)]
#[error("the caller has no key")]
struct NoKey;

fn check(file: SignedFile<'_>) -> Result<()> {
    let path = file.path;
    if path.is_empty() || path.len() > MAX_PATH || path.contains('\0') {
        return Err(Error::invalid(format!("path must have 1 to {MAX_PATH} bytes, without a NUL character")));
    }
    if file.user.is_some_and(|user| user.is_empty() || user.len() > MAX_USER || user.contains('\0')) {
        return Err(Error::invalid(format!("user must have 1 to {MAX_USER} bytes, without a NUL character")));
    }
    Ok(())
}

/// What a token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    /// The second from which on it is refused.
    expires: i64,
    tenant: TenantId,
    key: KeyId,
}

impl Claim {
    fn head(&self, seal: u8) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        let (expires, tenant, key) = (self.expires.to_be_bytes(), self.tenant.uuid(), self.key.uuid());
        let parts: [&[u8]; 5] = [&[VERSION], &[seal], &expires, tenant.as_bytes(), key.as_bytes()];
        for (to, from) in head.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        head
    }

    /// The token for a file.
    fn token(&self, seal: &SealKey, file: SignedFile<'_>) -> Result<String> {
        let signer = seal.signer()?;
        let mut token = self.head(signer.id()).to_vec();
        let mac = signer.sign(&signed(&token, file));
        token.extend_from_slice(&mac);
        Ok(URL_SAFE_NO_PAD.encode(token))
    }

    /// What a token says, if it is one for this file and holds.
    fn of_token(seal: &SealKey, file: SignedFile<'_>, token: &str, now: i64) -> Option<Claim> {
        if token.len() != TOKEN {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (head, mac) = bytes.split_at_checked(HEAD)?;
        let (version, rest) = head.split_first()?;
        let (id, rest) = rest.split_first()?;
        let (expires, rest) = rest.split_first_chunk::<8>()?;
        let (tenant, rest) = rest.split_first_chunk::<16>()?;
        let (key, _) = rest.split_first_chunk::<16>()?;
        let expires = i64::from_be_bytes(*expires);
        let holds = *version == VERSION && seal.signer_with(*id)?.verify(&signed(head, file), mac) && expires > now;
        holds.then_some(Claim {
            expires,
            tenant: TenantId::from_uuid(Uuid::from_bytes(*tenant)),
            key: KeyId::from_uuid(Uuid::from_bytes(*key)),
        })
    }
}

/// The bytes that are signed. Each part has its length, so that no two files have the same.
fn signed(head: &[u8], file: SignedFile<'_>) -> Vec<u8> {
    let transfer = match file.transfer {
        Transfer::Download => 0_u8,
        Transfer::Upload => 1,
    };
    let mut bytes = head.to_vec();
    bytes.extend([transfer, u8::from(file.user.is_some())]);
    for part in [file.sandbox, file.path, file.user.unwrap_or_default()] {
        bytes.extend((part.len() as u64).to_be_bytes());
        bytes.extend(part.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEAL: &str = "1 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const OTHER: &str = "2 ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const FILE: SignedFile<'_> =
        SignedFile { sandbox: "sb_1", path: "/home/user/a.txt", user: Some("user"), transfer: Transfer::Download };

    fn seal() -> SealKey {
        SealKey::parse(SEAL).unwrap()
    }

    fn claim() -> Claim {
        Claim { expires: 1000, tenant: TenantId::new(), key: KeyId::new() }
    }

    #[test]
    fn a_token_is_good_for_its_file_until_it_expires() {
        let claim = claim();
        let token = claim.token(&seal(), FILE).unwrap();
        assert_eq!(token.len(), TOKEN);
        assert_eq!(Claim::of_token(&seal(), FILE, &token, 999), Some(claim));
        assert_eq!(Claim::of_token(&seal(), FILE, &token, 1000), None);
    }

    #[test]
    fn a_token_is_good_for_nothing_else() {
        let token = claim().token(&seal(), FILE).unwrap();
        for (what, other) in [
            ("another sandbox", SignedFile { sandbox: "sb_2", ..FILE }),
            ("another path", SignedFile { path: "/home/user/b.txt", ..FILE }),
            ("the same path, written otherwise", SignedFile { path: "/home/user/./a.txt", ..FILE }),
            ("a path above it", SignedFile { path: "/home/user/a.txt/../../../etc/shadow", ..FILE }),
            ("a shorter path", SignedFile { path: "/home/user/a.tx", ..FILE }),
            ("another user", SignedFile { user: Some("root"), ..FILE }),
            ("no user", SignedFile { user: None, ..FILE }),
            ("an empty user", SignedFile { user: Some(""), ..FILE }),
            ("bytes moved from user to path", SignedFile { path: "/home/user/a.txtu", user: Some("ser"), ..FILE }),
            ("the other direction", SignedFile { transfer: Transfer::Upload, ..FILE }),
        ] {
            assert_eq!(Claim::of_token(&seal(), other, &token, 0), None, "{what}");
        }
    }

    #[test]
    fn a_token_ends_with_the_seal_key_that_signed_it() {
        let (claim, old) = (claim(), SealKey::parse(SEAL).unwrap());
        let token = claim.token(&old, FILE).unwrap();
        let rotated = SealKey::parse(&format!("{OTHER}\n{SEAL}")).unwrap();
        assert_eq!(Claim::of_token(&rotated, FILE, &token, 0), Some(claim));
        let newer = claim.token(&rotated, FILE).unwrap();
        assert_ne!(newer, token);
        assert_eq!(Claim::of_token(&rotated, FILE, &newer, 0), Some(claim));
        assert_eq!(Claim::of_token(&old, FILE, &newer, 0), None);
        assert_eq!(Claim::of_token(&SealKey::parse(OTHER).unwrap(), FILE, &token, 0), None);
        // The same number, another key.
        let same_number = SealKey::parse(&OTHER.replacen('2', "1", 1)).unwrap();
        assert_eq!(Claim::of_token(&same_number, FILE, &token, 0), None);
    }

    #[test]
    fn a_token_that_was_changed_anywhere_is_none() {
        let token = claim().token(&seal(), FILE).unwrap();
        for length in 0..token.len() {
            assert_eq!(Claim::of_token(&seal(), FILE, &token[..length], 0), None, "{length}");
        }
        assert_eq!(Claim::of_token(&seal(), FILE, &format!("{token}="), 0), None);
        assert_eq!(Claim::of_token(&seal(), FILE, &format!(" {token}"), 0), None);
        for at in 0..token.len() {
            for replacement in ["A", "B", "_", "+"] {
                let mut changed = token.clone();
                changed.replace_range(at..=at, replacement);
                let same = changed == token;
                assert_eq!(Claim::of_token(&seal(), FILE, &changed, 0).is_some(), same, "{at} {replacement}");
            }
        }
    }

    #[test]
    fn a_request_that_no_url_can_have_is_refused() {
        let long = "x".repeat(MAX_PATH + 1);
        for file in [
            SignedFile { path: "", ..FILE },
            SignedFile { path: &long, ..FILE },
            SignedFile { path: "a\0b", ..FILE },
            SignedFile { user: Some(""), ..FILE },
            SignedFile { user: Some(&long), ..FILE },
        ] {
            assert!(check(file).is_err(), "{file:?}");
        }
        assert!(check(SignedFile { path: "../a", user: None, ..FILE }).is_ok());
    }

    proptest! {
        #[test]
        fn text_of_others_is_never_a_token(text in "\\PC{0,120}", bytes in proptest::collection::vec(any::<u8>(), HEAD + MAC)) {
            prop_assert_eq!(Claim::of_token(&seal(), FILE, &text, 0), None);
            prop_assert_eq!(Claim::of_token(&seal(), FILE, &URL_SAFE_NO_PAD.encode(bytes), 0), None);
        }
    }
}
