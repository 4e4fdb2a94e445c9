//! Values that must not leak.

use std::cell::Cell;
use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

/// A credential in a request. It prints as `[REDACTED]`, is wiped from memory when dropped, and serialising it is an
/// error unless [`to_wire_json`] does it: a request that still holds its secrets cannot end in a database by accident.
#[derive(Clone)]
pub struct Secret(SecretString);

thread_local! {
    static EXPOSED: Cell<bool> = const { Cell::new(false) };
}

impl Secret {
    /// Wrap a secret.
    #[must_use]
    pub fn new(value: impl Into<SecretString>) -> Self {
        Self(value.into())
    }

    /// The secret itself. Keep it out of logs, errors, argv and files.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// A request as JSON with its secrets in the clear: what a client puts on the wire, and the only way to serialise a
/// [`Secret`].
///
/// # Errors
/// When a value cannot be expressed in JSON.
pub fn to_wire_json<T: Serialize>(request: &T) -> Result<Vec<u8>, serde_json::Error> {
    struct Conceal(bool);
    impl Drop for Conceal {
        fn drop(&mut self) {
            EXPOSED.set(self.0);
        }
    }
    let _conceal = Conceal(EXPOSED.replace(true));
    serde_json::to_vec(request)
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value.into())
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self(value.into())
    }
}

impl From<Secret> for SecretString {
    fn from(secret: Secret) -> Self {
        secret.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[REDACTED]")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if EXPOSED.get() {
            serializer.serialize_str(self.expose())
        } else {
            Err(ser::Error::custom("a secret may only be serialised for the wire"))
        }
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        SecretString::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_leaves_only_by_the_wire() {
        let secret: Secret = serde_json::from_str("\"hunter2\"").unwrap();
        assert_eq!(format!("{secret:?}"), "[REDACTED]");
        assert!(serde_json::to_string(&secret).is_err());
        assert_eq!(to_wire_json(&secret).unwrap(), b"\"hunter2\"");
        assert!(serde_json::to_string(&secret).is_err(), "exposed for one call only");
    }
}
