//! Image references as people type them: `ubuntu`, `ghcr.io/org/app:1.2`, `localhost:5000/app@sha256:…`.
//!
//! The grammar and the defaults are those of `distribution/reference`, which Docker uses, so that a name means the same
//! image here as there:
//!
//! ```text
//! [registry[:port]/]path/components[:tag][@digest]
//!   no registry           -> docker.io            (a first component without '.', ':' that is not "localhost")
//!   docker.io + one word  -> library/<word>
//!   no tag and no digest  -> tag "latest"
//!   tag and digest        -> the digest decides; the tag is kept for display
//! ```

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// The registry that names without one belong to.
pub const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// Longest repository name Docker accepts (`distribution/reference`, `RepositoryNameTotalLengthMax`).
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("the image reference is empty")]
    Empty,
    /// The part before the first slash is not a host name with an optional port.
    #[error("\"{0}\" is not a registry host")]
    InvalidRegistry(String),
    /// The repository has an upper-case letter.
    #[error("repository name \"{0}\" must be lower case")]
    UpperCase(String),
    /// The repository breaks the grammar.
    #[error("\"{0}\" is not a valid repository name")]
    InvalidRepository(String),
    /// The repository name is too long.
    #[error("the repository name has more than {MAX_NAME} characters")]
    NameTooLong,
    /// The tag breaks the grammar.
    #[error("\"{0}\" is not a valid tag")]
    InvalidTag(String),
    /// The part after `@` is not a digest.
    #[error("invalid digest in the image reference: {0}")]
    InvalidDigest(#[from] DigestError),
    /// 64 hex digits: Docker reads that as an image id, never as a name.
    #[error("\"{0}\" looks like an image id, not like a name")]
    LooksLikeId(String),
}

/// A parsed, normalised image reference. `Display` gives the full form, `docker.io/library/ubuntu:latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's host, with its port if one was given: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry: `library/ubuntu`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. `latest` when neither tag nor digest was given; `None` when only a digest was.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference is pinned.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What the registry is asked for: the digest if there is one, else the tag.
    pub fn selector(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    /// The same image pinned to `digest`, without a tag.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Reference {
        Reference {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if is_image_id(text) {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (registry, rest) = split_registry(rest)?;
        // A colon after the last slash starts the tag; before it, it belonged to the registry's port.
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') && !path.is_empty() {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        check_repository(&repository)?;
        // Docker counts the registry in ("the name"), so does this.
        if registry.len().saturating_add(1).saturating_add(repository.len()) > MAX_NAME {
            return Err(ReferenceError::NameTooLong);
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ReferenceError::InvalidTag(shown(tag)));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Reference { registry, repository, tag, digest })
    }
}

fn is_image_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// An error message must not carry a megabyte of what the caller sent.
fn shown(text: &str) -> String {
    text.chars().take(MAX_NAME).collect()
}

/// Docker's `splitDockerDomain`: the first component is a registry if it could not be a Docker Hub user name.
fn split_registry(text: &str) -> Result<(String, &str), ReferenceError> {
    let Some((first, rest)) = text.split_once('/') else {
        return Ok((DEFAULT_REGISTRY.to_owned(), text));
    };
    let is_host = first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase());
    if !is_host {
        return Ok((DEFAULT_REGISTRY.to_owned(), text));
    }
    if !is_host_port(first) {
        return Err(ReferenceError::InvalidRegistry(shown(first)));
    }
    // Hosts are compared (for mirrors, for credentials), and host names have no case. One that is a host for its capitals
    // alone keeps them: without, what is written out would be read as a name on Docker Hub.
    let lower = first.to_ascii_lowercase();
    let host = if lower.contains(['.', ':']) || lower == "localhost" { lower } else { first.to_owned() };
    let host = if host == "index.docker.io" { DEFAULT_REGISTRY.to_owned() } else { host };
    Ok((host, rest))
}

fn is_host_port(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        }
    };
    if let Some(port) = port
        && (port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err())
    {
        return false;
    }
    host.is_none_or(|host| {
        host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
    })
}

fn check_repository(repository: &str) -> Result<(), ReferenceError> {
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase(shown(repository)));
    }
    if repository.is_empty() || !repository.split('/').all(is_path_component) {
        return Err(ReferenceError::InvalidRepository(shown(repository)));
    }
    Ok(())
}

/// `[a-z0-9]+` runs joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes
        .split(|&b| alphanumeric(b))
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !tag.is_empty()
        && tag.len() <= MAX_TAG
        && tag.as_bytes().first().is_some_and(|&b| word(b))
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// Found by fuzzing: the host was written in lower case and then read as a name on Docker Hub.
    #[test]
    fn what_is_written_is_read_as_the_same() {
        for text in ["ghcrBio/aapp", "LOCALHOST/x", "Registry.Example:5000/x:y", "INDEX.docker.io/x", "ubuntu"] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference, "{text}");
        }
        let reference: Reference = "ghcrBio/aapp".parse().unwrap();
        assert_eq!((reference.registry(), reference.repository()), ("ghcrBio", "aapp"));
    }

    #[test]
    fn references_normalise_as_docker_does() {
        let table = [
            ("ubuntu", "docker.io/library/ubuntu:latest"),
            ("ubuntu:22.04", "docker.io/library/ubuntu:22.04"),
            ("org/app", "docker.io/org/app:latest"),
            ("docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
            ("index.docker.io/library/ubuntu", "docker.io/library/ubuntu:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/app:x", "[::1]:5000/app:x"),
            ("GHCR.io/org/app", "ghcr.io/org/app:latest"),
            ("Foo/bar", "Foo/bar:latest"),
            ("ghcr.io/a__b/c-d.e--f:A_b-1.x", "ghcr.io/a__b/c-d.e--f:A_b-1.x"),
            ("app:5000", "docker.io/library/app:5000"),
            (" ubuntu\n", "docker.io/library/ubuntu:latest"),
        ];
        for (given, wanted) in table {
            assert_eq!(given.parse::<Reference>().unwrap().to_string(), wanted, "{given}");
        }
    }

    #[test]
    fn digest_decides_over_tag() {
        let pinned: Reference = format!("ubuntu@{HEX}").parse().unwrap();
        assert_eq!(pinned.tag(), None);
        assert_eq!(pinned.selector(), HEX);
        assert_eq!(pinned.to_string(), format!("docker.io/library/ubuntu@{HEX}"));
        let both: Reference = format!("localhost:1/x:y@{HEX}").parse().unwrap();
        assert_eq!(both.tag(), Some("y"));
        assert_eq!(both.selector(), HEX);
        assert_eq!(both.to_string(), format!("localhost:1/x:y@{HEX}"));
        let tagged: Reference = "x:y".parse().unwrap();
        assert_eq!(tagged.selector(), "y");
        assert_eq!(tagged.pinned(Digest::sha256(b"")).to_string(), format!("docker.io/library/x@{HEX}"));
    }

    #[test]
    fn bad_references_have_typed_errors() {
        let bad = |text: &str| text.parse::<Reference>().expect_err(text);
        use ReferenceError::*;
        assert_eq!(bad(""), Empty);
        assert!(matches!(bad("Ubuntu"), UpperCase(_)));
        assert!(matches!(bad("ghcr.io/Org/app"), UpperCase(_)));
        assert!(matches!(bad("a//b"), InvalidRepository(_)));
        assert!(matches!(bad("a/"), InvalidRepository(_)));
        assert!(matches!(bad("-a"), InvalidRepository(_)));
        assert!(matches!(bad("a___b"), InvalidRepository(_)));
        assert!(matches!(bad("a..b"), InvalidRepository(_)));
        assert!(matches!(bad("../etc"), InvalidRegistry(_)));
        assert!(matches!(bad("a/../b"), InvalidRepository(_)));
        assert!(matches!(bad("a b"), InvalidRepository(_)));
        assert!(matches!(bad("http://x/y"), InvalidRegistry(_)));
        assert!(matches!(bad("localhost:99999/x"), InvalidRegistry(_)));
        assert!(matches!(bad("user:pw@host/x"), InvalidDigest(_)));
        assert!(matches!(bad("x:"), InvalidTag(_)));
        assert!(matches!(bad("x:-a"), InvalidTag(_)));
        assert!(matches!(bad(&format!("x:{}", "a".repeat(129))), InvalidTag(_)));
        assert!(matches!(bad("x@sha256:12"), InvalidDigest(_)));
        assert!(matches!(bad(&"a".repeat(260)), NameTooLong));
        assert!(matches!(bad(&"a".repeat(64)), LooksLikeId(_)));
    }
}
