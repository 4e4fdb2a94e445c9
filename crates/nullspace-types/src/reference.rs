//! References to templates, as people write them.
//!
//! | form | meaning |
//! |---|---|
//! | `name`, `name:tag`, `name:tb_…` | the caller's own template, else the built-in of that name |
//! | `tmpl_…` | exactly that artifact |
//! | `nullspace/name[:tag]` | the built-in, else the caller's own template of that name |
//! | `namespace/name[:tag\|:tb_…]` | that namespace's template |
//!
//! The namespace may also be a tenant's UUID, with hyphens. Without a tag the tag is `default`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{ArtifactId, BuildId};

/// Slug of the namespace that holds the built-in templates.
pub const SYSTEM_NAMESPACE: &str = "nullspace";

/// Longest template name, tag or namespace slug, in characters.
pub const MAX_NAME_CHARS: usize = 128;

/// An invalid reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// The whole has none of the forms.
    #[error("a template reference is name[:tag], name:tb_…, tmpl_…, or namespace/name[:tag or :tb_…]")]
    Form,
    /// The name part.
    #[error(
        "a template name starts with a letter or digit, has only letters, digits, '.', '_' and '-', at most 128, and \
         does not start with tmpl_"
    )]
    Name,
    /// The tag part.
    #[error(
        "a tag starts with a letter, digit or '_', has only letters, digits, '.', '_' and '-', at most 128, and does \
         not start with tb_"
    )]
    Tag,
    /// The namespace part.
    #[error("a namespace has lower-case letters and digits, with single hyphens between them, at most 128")]
    Namespace,
    /// `tb_` or `tmpl_` and then something that is no id.
    #[error(transparent)]
    Id(#[from] crate::InvalidId),
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:ident, $error:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidReference;

            fn from_str(text: &str) -> Result<Self, InvalidReference> {
                if $check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidReference::$error)
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidReference;

            fn try_from(text: String) -> Result<Self, InvalidReference> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
    };
}

checked_text!(
    /// A template's name within its namespace.
    TemplateName, is_name, Name
);
checked_text!(
    /// A movable pointer from a template to one of its builds.
    Tag, is_tag, Tag
);

impl Tag {
    /// The tag of a bare name.
    pub const DEFAULT: &'static str = "default";

    /// `default`.
    pub fn default_tag() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

fn is_word(text: &str, first: impl Fn(u8) -> bool) -> bool {
    text.len() <= MAX_NAME_CHARS
        && text.bytes().next().is_some_and(first)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_name(text: &str) -> bool {
    is_word(text, |b| b.is_ascii_alphanumeric()) && !text.starts_with(ArtifactId::PREFIX)
}

fn is_tag(text: &str) -> bool {
    is_word(text, |b| b.is_ascii_alphanumeric() || b == b'_') && !text.starts_with(BuildId::PREFIX)
}

/// Whether `text` can be a namespace: `^[a-z0-9]+(-[a-z0-9]+)*$`, at most [`MAX_NAME_CHARS`].
pub fn is_namespace_slug(text: &str) -> bool {
    text.len() <= MAX_NAME_CHARS
        && text
            .split('-')
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()))
}

/// The build that a reference selects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// The one that the tag points to.
    Tag(Tag),
    /// Exactly this one.
    Build(BuildId),
}

/// A template reference, parsed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TemplateRef {
    /// `tmpl_…`
    Artifact(ArtifactId),
    /// A name with or without its namespace.
    Named {
        /// Slug or tenant UUID; `None` when the reference was bare.
        namespace: Option<String>,
        /// The name.
        name: TemplateName,
        /// Tag or build; `None` when the reference gave neither, which means the tag `default`.
        selector: Option<Selector>,
    },
}

impl FromStr for TemplateRef {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        if text.starts_with(ArtifactId::PREFIX) {
            return Ok(Self::Artifact(text.parse()?));
        }
        let (namespace, rest) = match text.split_once('/') {
            Some((namespace, rest)) => {
                // A UUID may be written in either case; slugs are lower-case only.
                let namespace = if uuid::Uuid::try_parse(namespace).is_ok() {
                    namespace.to_ascii_lowercase()
                } else {
                    namespace.to_owned()
                };
                if !is_namespace_slug(&namespace) {
                    return Err(InvalidReference::Namespace);
                }
                (Some(namespace), rest)
            }
            None => (None, text),
        };
        let (name, selector) = match rest.split_once(':') {
            Some((name, qualifier)) if qualifier.starts_with(BuildId::PREFIX) => {
                (name, Some(Selector::Build(qualifier.parse()?)))
            }
            Some((name, tag)) => (name, Some(Selector::Tag(tag.parse()?))),
            None => (rest, None),
        };
        if name.contains('/') {
            return Err(InvalidReference::Form);
        }
        Ok(Self::Named { namespace, name: name.parse()?, selector })
    }
}

impl fmt::Display for TemplateRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Artifact(id) => fmt::Display::fmt(id, f),
            Self::Named { namespace, name, selector } => {
                if let Some(namespace) = namespace {
                    write!(f, "{namespace}/")?;
                }
                write!(f, "{name}")?;
                match selector {
                    Some(Selector::Tag(tag)) => write!(f, ":{tag}"),
                    Some(Selector::Build(build)) => write!(f, ":{build}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl TemplateRef {
    /// Whether the reference is written as one to a built-in.
    pub fn is_system(&self) -> bool {
        matches!(self, Self::Named { namespace: Some(slug), .. } if slug == SYSTEM_NAMESPACE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_contract_parses_and_prints_back() {
        let build = BuildId::new();
        let artifact = ArtifactId::new();
        let uuid = uuid::Uuid::now_v7();
        for text in [
            "web".to_owned(),
            "web:v1.2".to_owned(),
            format!("web:{build}"),
            artifact.to_string(),
            "nullspace/base".to_owned(),
            "nullspace/base:latest".to_owned(),
            "my-team/web".to_owned(),
            "my-team/web:v1".to_owned(),
            format!("my-team/web:{build}"),
            format!("{uuid}/web:v1"),
        ] {
            let parsed: TemplateRef = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "", ":", "/", "a/", "/a", "a:", ":b", "a/b/c", "A-/b", "a--b/c", "-a/b", "Team/web", "a b", "a\n",
            "../etc", "tmpl_", "tmpl_x", "a:tb_", "a:tb_x", "ü", "a:b:c", ".a",
        ] {
            assert!(text.parse::<TemplateRef>().is_err(), "{text:?} was taken");
        }
        assert!("a".repeat(129).parse::<TemplateName>().is_err());
        assert!("tb_1".parse::<Tag>().is_err());
        assert!("tmpl_1".parse::<TemplateName>().is_err());
    }
}
