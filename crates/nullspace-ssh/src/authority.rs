//! The keys of host and certificate authority, and certificates: made for accesses, judged at logins.
//!
//! A certificate names its sandbox as its only principal and its access as its key id. It holds for the access's time, and permits
//! a terminal and port forwarding. It proves that an access was made; whether that still holds is the service's question.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use nullspace_service::{Error, Result, SshCertificate, SshCertificates, SshWanted};
use nullspace_types::{SandboxId, SshAccessId};
use rand::RngCore;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::ssh_key::{Algorithm, Certificate, Fingerprint, HashAlg, LineEnding, PrivateKey, PublicKey};
use secrecy::{ExposeSecret, SecretString};

use crate::settings::SshSettings;

/// Longest public key that is read, bytes.
const LONGEST_KEY: usize = 4096;
/// Seconds before now from which a certificate holds: clocks differ.
const EARLIER: u64 = 60;
/// Bytes of a certificate's nonce.
const NONCE: usize = 32;

/// A key's text is not a key.
#[derive(Debug, thiserror::Error)]
#[error("it is no Ed25519 key in OpenSSH's format")]
pub struct InvalidKey;

/// The keys of the SSH server: of the host, which clients know it by, and of the authority, which signs certificates. `Debug` shows
/// neither.
#[derive(Clone)]
pub struct SshKeys {
    host: PrivateKey,
    authority: PrivateKey,
}

impl std::fmt::Debug for SshKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SshKeys(…)")
    }
}

impl SshKeys {
    /// Makes a key, as the text of its file: Ed25519 in OpenSSH's format.
    ///
    /// # Errors
    /// [`InvalidKey`] when the text cannot be made.
    pub fn generate() -> std::result::Result<SecretString, InvalidKey> {
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
        let text = key.to_openssh(LineEnding::LF).map_err(|_| InvalidKey)?;
        Ok(SecretString::from(text.to_string()))
    }

    /// Reads the keys from the texts of their files.
    ///
    /// # Errors
    /// [`InvalidKey`] when one is damaged, encrypted or not Ed25519.
    pub fn parse(host: &SecretString, authority: &SecretString) -> std::result::Result<Self, InvalidKey> {
        let parse = |text: &SecretString| {
            PrivateKey::from_openssh(text.expose_secret())
                .ok()
                .filter(|key| key.algorithm() == Algorithm::Ed25519 && !key.is_encrypted())
                .ok_or(InvalidKey)
        };
        Ok(Self { host: parse(host)?, authority: parse(authority)? })
    }

    pub(crate) fn host(&self) -> &PrivateKey {
        &self.host
    }

    /// What certificates must be signed with.
    pub(crate) fn signer(&self) -> Fingerprint {
        self.authority.public_key().fingerprint(HashAlg::Sha256)
    }
}

/// Makes the certificates of accesses.
#[derive(Debug, Clone)]
pub struct Authority {
    keys: SshKeys,
    settings: SshSettings,
}

impl Authority {
    /// Makes the authority of a server that clients reach there.
    pub fn new(keys: SshKeys, settings: SshSettings) -> Self {
        Self { keys, settings }
    }
}

/// A failure of signing, for the log.
fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let message = "The service failed to make the certificate.";
    Error {
        source: Some(std::sync::Arc::new(error)),
        ..Error::new(nullspace_api::ErrorResponseCode::InternalError, message)
    }
}

/// Reads a caller's public key.
fn public_key(text: &str) -> Result<PublicKey> {
    let wrong = || {
        Error::invalid(
            "public_key is not a public key: give the text of a .pub file, such as `ssh-ed25519 AAAA…` \
             (ssh-keygen -t ed25519 makes one)",
        )
    };
    if text.len() > LONGEST_KEY {
        return Err(wrong());
    }
    let key = PublicKey::from_openssh(text.trim()).map_err(|_| wrong())?;
    match key.algorithm() {
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } => Ok(key),
        other => Err(Error::invalid(format!(
            "public_key is of the type {other}, which is not supported: use ssh-ed25519 or ecdsa (ssh-keygen -t ed25519)"
        ))),
    }
}

fn seconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_second()).unwrap_or(0)
}

impl SshCertificates for Authority {
    fn certify(&self, wanted: SshWanted<'_>) -> Result<SshCertificate> {
        let key = public_key(wanted.public_key)?;
        let mut nonce = vec![0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let from = seconds(wanted.now).saturating_sub(EARLIER);
        let mut builder =
            Builder::new(nonce, key.key_data().clone(), from, seconds(wanted.expires_at)).map_err(failed)?;
        builder.cert_type(CertType::User).map_err(failed)?;
        builder.key_id(wanted.access.to_string()).map_err(failed)?;
        builder.valid_principal(wanted.sandbox.to_string()).map_err(failed)?;
        builder.extension("permit-port-forwarding", "").map_err(failed)?;
        builder.extension("permit-pty", "").map_err(failed)?;
        let certificate = builder.sign(&self.keys.authority).map_err(failed)?;
        let mut host_key = self.keys.host.public_key().clone();
        host_key.set_comment("");
        Ok(SshCertificate {
            certificate: certificate.to_openssh().map_err(failed)?,
            host_key: host_key.to_openssh().map_err(failed)?,
            host: self.settings.host.clone(),
            port: self.settings.port,
        })
    }
}

/// Why a certificate lets nobody in. For the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("it is not signed by this service, or not in force")]
    Invalid,
    #[error("it is no user's certificate")]
    Kind,
    #[error("it has critical options")]
    Options,
    #[error("it is for another sandbox")]
    Principal,
    #[error("it names no access")]
    Access,
}

/// Judges the certificate of a client that logs in with this user name. Returns the access that it was made for.
pub(crate) fn judge(
    certificate: &Certificate,
    signer: &Fingerprint,
    user: &str,
    now: SystemTime,
) -> std::result::Result<(SandboxId, SshAccessId), Unfit> {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    certificate.validate_at(now, [signer]).map_err(|_| Unfit::Invalid)?;
    if certificate.cert_type() != CertType::User {
        return Err(Unfit::Kind);
    }
    if !certificate.critical_options().is_empty() {
        return Err(Unfit::Options);
    }
    // A certificate without principals would be good for every user name.
    let [principal] = certificate.valid_principals() else { return Err(Unfit::Principal) };
    if principal != user {
        return Err(Unfit::Principal);
    }
    let sandbox = user.parse().map_err(|_| Unfit::Principal)?;
    let access = certificate.key_id().parse().map_err(|_| Unfit::Access)?;
    Ok((sandbox, access))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::ToSpan;

    use super::*;
    use crate::tests::keys;

    fn user_key() -> String {
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
        key.public_key().to_openssh().unwrap()
    }

    fn authority() -> Authority {
        Authority::new(keys(), SshSettings { host: "host.example".into(), port: 2222 })
    }

    fn made(authority: &Authority, sandbox: SandboxId, access: SshAccessId, now: Timestamp) -> Certificate {
        let key = user_key();
        let wanted = SshWanted { public_key: &key, sandbox, access, now, expires_at: now + 600.seconds() };
        let made = authority.certify(wanted).unwrap();
        assert_eq!((made.host.as_str(), made.port), ("host.example", 2222));
        assert!(made.host_key.starts_with("ssh-ed25519 "), "{}", made.host_key);
        Certificate::from_openssh(&made.certificate).unwrap()
    }

    #[test]
    fn a_certificate_is_good_for_its_sandbox_and_time_alone() {
        let (authority, sandbox, access) = (authority(), SandboxId::new(), SshAccessId::new());
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let certificate = made(&authority, sandbox, access, now);
        let extensions: Vec<&str> = certificate.extensions().keys().map(String::as_str).collect();
        assert_eq!(extensions, ["permit-port-forwarding", "permit-pty"]);
        let at = |after: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(1_700_000_000 + after).unwrap());
        let signer = authority.keys.signer();
        let user = sandbox.to_string();
        assert_eq!(judge(&certificate, &signer, &user, at(0)), Ok((sandbox, access)));
        assert_eq!(judge(&certificate, &signer, &user, at(599)), Ok((sandbox, access)));
        assert_eq!(judge(&certificate, &signer, &user, at(601)), Err(Unfit::Invalid));
        assert_eq!(judge(&certificate, &signer, &user, at(-61)), Err(Unfit::Invalid));
        let other = SandboxId::new().to_string();
        for name in [other.as_str(), "root", ""] {
            assert_eq!(judge(&certificate, &signer, name, at(0)), Err(Unfit::Principal), "{name}");
        }
    }

    #[test]
    fn a_certificate_of_another_authority_or_for_everybody_is_none() {
        let (sandbox, access) = (SandboxId::new(), SshAccessId::new());
        let user = sandbox.to_string();
        let now = SystemTime::now();
        let at = Timestamp::try_from(now).unwrap();
        let certificate = made(&authority(), sandbox, access, at);
        let signer = keys().signer();
        assert_eq!(judge(&certificate, &signer, &user, now), Ok((sandbox, access)));
        let strangers = SshKeys::parse(&SshKeys::generate().unwrap(), &SshKeys::generate().unwrap()).unwrap();
        assert_eq!(judge(&certificate, &strangers.signer(), &user, now), Err(Unfit::Invalid));

        let authority = keys().authority;
        let sign = |change: &dyn Fn(&mut Builder)| {
            let key = PublicKey::from_openssh(&user_key()).unwrap();
            let mut builder = Builder::new(vec![1; 32], key.key_data().clone(), 0, seconds(at) + 60).unwrap();
            builder.key_id(access.to_string()).unwrap();
            change(&mut builder);
            builder.sign(&authority).unwrap()
        };
        let principal = |builder: &mut Builder| {
            builder.valid_principal(user.clone()).unwrap();
        };
        type Change<'c> = &'c dyn Fn(&mut Builder);
        let cases: [(Change<'_>, Unfit); 4] = [
            (
                &|builder| {
                    builder.all_principals_valid().unwrap();
                },
                Unfit::Principal,
            ),
            (
                &|builder| {
                    principal(builder);
                    builder.cert_type(CertType::Host).unwrap();
                },
                Unfit::Kind,
            ),
            (
                &|builder| {
                    principal(builder);
                    builder.valid_principal("root").unwrap();
                },
                Unfit::Principal,
            ),
            (
                &|builder| {
                    principal(builder);
                    builder.critical_option("force-command", "id").unwrap();
                },
                Unfit::Options,
            ),
        ];
        for (change, unfit) in cases {
            assert_eq!(judge(&sign(change), &signer, &user, now), Err(unfit));
        }
    }

    #[test]
    fn only_keys_that_a_login_can_be_checked_with_are_certified() {
        let wanted = |public_key| SshWanted {
            public_key,
            sandbox: SandboxId::new(),
            access: SshAccessId::new(),
            now: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::UNIX_EPOCH + 60.seconds(),
        };
        let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDZ0qBlBDW0bWw0GJDBjFIVDSgqKqwfVqTBgXAHUDPEBsRz0BlqLvHqzLpZ6hFNqB4R\
                   1sXkSRKKvAIWHRnSUMWqgsCGbkJtWYGs0vQmCWKBQF1hYbbmzbXgSDyFlCQJUYxOXSwUJpCyUMfCIwgSWlPKzZ1Ev3Qe4e3hHcvD0w==";
        let long = "a".repeat(LONGEST_KEY + 1);
        for text in ["", "x", "ssh-ed25519", "ssh-ed25519 AAAA", rsa, &long] {
            let refused = authority().certify(wanted(text)).unwrap_err();
            assert!(refused.message.starts_with("public_key is "), "{text}: {refused}");
        }
        let good = format!("{} me@laptop\n", user_key());
        assert!(authority().certify(wanted(&good)).is_ok());
    }

    #[test]
    fn keys_survive_their_files_and_are_never_shown() {
        let (host, authority) = (SshKeys::generate().unwrap(), SshKeys::generate().unwrap());
        let keys = SshKeys::parse(&host, &authority).unwrap();
        assert_eq!(keys.signer(), SshKeys::parse(&authority, &authority).unwrap().signer());
        assert_eq!(format!("{keys:?}"), "SshKeys(…)");
        assert!(SshKeys::parse(&host, &SecretString::from("x")).is_err());
    }
}
