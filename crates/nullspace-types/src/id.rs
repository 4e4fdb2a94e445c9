//! Identifiers: a prefix that says the kind, then 32 lower-case hex digits of a UUIDv7.
//!
//! Version 7 sorts by creation time, so an id can be the tie-break of a page cursor. A parsed id is safe as a file name and
//! in a URL: its alphabet is `[a-z0-9_]`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Text that is not an identifier of the requested kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {kind} is written {prefix} and 32 lower-case hexadecimal digits")]
pub struct InvalidId {
    kind: &'static str,
    prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// Prefix of every id of this kind.
            pub const PREFIX: &'static str = $prefix;

            /// A new id, unlike every other.
            #[allow(clippy::new_without_default, reason = "a default that differs each time would surprise")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The bits without the prefix.
            pub fn uuid(self) -> Uuid {
                self.0
            }

            /// The id with these bits.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $prefix, self.0.as_simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                text.strip_prefix($prefix)
                    .and_then(parse_hex)
                    .map(Self)
                    .ok_or(InvalidId { kind: $kind, prefix: $prefix })
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

/// Stricter than `Uuid::parse_str`, which also takes upper case, hyphens, braces and `urn:uuid:`: one id has one spelling.
fn parse_hex(text: &str) -> Option<Uuid> {
    let canonical = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if canonical { Uuid::try_parse(text).ok() } else { None }
}

id!(
    /// A tenant: owns keys, builds, templates and sandboxes.
    TenantId, "tn_", "tenant id"
);
id!(
    /// An API key, not the secret itself.
    KeyId, "key_", "key id"
);
id!(
    /// A build.
    BuildId, "tb_", "build id"
);
id!(
    /// The artifact of one build; the API calls it `template_id`. Assigned when the build is accepted.
    ArtifactId, "tmpl_", "template id"
);
id!(
    /// A logical template (a name in a namespace). Never leaves the service.
    TemplateId, "tpl_", "logical template id"
);
id!(
    /// A sandbox.
    SandboxId, "sb_", "sandbox id"
);
id!(
    /// A snapshot of a sandbox: paused, or kept for others.
    SnapshotId, "snap_", "snapshot id"
);
id!(
    /// A token for a port of a sandbox, not the secret itself.
    GrantId, "pvg_", "preview grant id"
);
id!(
    /// An SSH access to a sandbox: the right to log in, not the certificate itself.
    SshAccessId, "ssh_", "SSH access id"
);
id!(
    /// A terminal of a sandbox: unlike every other of that sandbox. Clones of the sandbox have the same.
    TerminalId, "pty_", "terminal id"
);
id!(
    /// A warm pool of a template: machines that are resumed ahead of their sandboxes.
    WarmPoolId, "twp_", "warm pool id"
);
id!(
    /// A spare: a resumed machine that is no sandbox yet. Never leaves the service.
    SpareId, "sp_", "spare id"
);
id!(
    /// A store: one database and the data folder that belongs to it. Never leaves the service.
    StoreId, "st_", "store id"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_exactly_one_spelling() {
        let id = BuildId::new();
        let text = id.to_string();
        assert_eq!(text.parse::<BuildId>(), Ok(id));
        assert_eq!(text.len(), 3 + 32);
        let body = &text[3..];
        for wrong in [
            body.to_owned(),
            format!("tb_{}", body.to_uppercase().replace(char::is_numeric, "A")),
            format!("tmpl_{body}"),
            format!("tb_{}", id.uuid().as_hyphenated()),
            format!("tb_{{{body}}}"),
            format!("tb_{body}0"),
            format!("tb_{}", &body[1..]),
            format!("tb_{body}/"),
            format!(" tb_{body}"),
            "tb_".to_owned(),
            "tb_../../../../../../../../../../etcc".to_owned(),
            String::new(),
        ] {
            assert!(wrong.parse::<BuildId>().is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn ids_sort_in_the_order_of_their_making() {
        let made: Vec<_> = (0..1000).map(|_| BuildId::new().to_string()).collect();
        let mut sorted = made.clone();
        sorted.sort();
        assert_eq!(made, sorted);
    }

    #[test]
    fn serde_refuses_what_parse_refuses() {
        let id = SandboxId::new();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<SandboxId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<SandboxId>("\"sb_x\"").is_err());
    }
}
