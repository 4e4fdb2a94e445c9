//! Names from archives, made plain: no leading slash, no `.`, no `..`, within the limits.

use crate::tar::shown;

use super::error::{LayerError, MergeLimits};

/// A file name: bytes without a slash.
pub(super) type Name = Box<[u8]>;

/// The components of an entry's path; empty for the root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Path(pub(super) Vec<Name>);

impl Path {
    /// Normalises a stored name: `./a//b/` is `a/b`, `/a` is `a`.
    pub(super) fn parse(name: &[u8], limits: &MergeLimits) -> Result<Path, LayerError> {
        let invalid = |reason| LayerError::InvalidPath { path: shown(name), reason };
        if name.len() > limits.path {
            return Err(LayerError::Limit {
                what: "the length of a path",
                limit: limits.path as u64,
                at: Some(shown(name)),
            });
        }
        if name.contains(&0) {
            return Err(invalid("it contains a NUL"));
        }
        let mut components: Vec<Name> = Vec::new();
        for component in name.split(|&b| b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(invalid("it contains \"..\"")),
                _ if component.len() > limits.name => {
                    let limit = limits.name as u64;
                    return Err(LayerError::Limit { what: "the length of a file name", limit, at: Some(shown(name)) });
                }
                _ => components.push(component.into()),
            }
        }
        Ok(Path(components))
    }

    /// Parent components and the last one; `None` for the root.
    pub(super) fn split_last(&self) -> Option<(&[Name], &[u8])> {
        self.0.split_last().map(|(last, parents)| (parents, &**last))
    }

    /// For messages: components joined, no leading slash.
    pub(super) fn shown(&self) -> String {
        shown(&self.0.join(&b'/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_normalise() {
        let limits = MergeLimits::default();
        let path = |name: &[u8]| Path::parse(name, &limits).unwrap().shown();
        assert_eq!(path(b"./a//b/"), "a/b");
        assert_eq!(path(b"/a/./b"), "a/b");
        assert_eq!(path(b"./"), "");
        assert_eq!(path(b""), "");
        assert_eq!(path(b"..a/b.."), "..a/b..");
        assert_eq!(path(b"a\nb"), "a\\nb");
    }

    #[test]
    fn dangerous_and_long_names_are_refused() {
        let limits = MergeLimits::default();
        let bad = |name: &[u8]| Path::parse(name, &limits).unwrap_err();
        for name in [&b"../x"[..], b"a/../b", b"..", b"a/.."] {
            assert!(matches!(bad(name), LayerError::InvalidPath { .. }));
        }
        assert!(matches!(bad(b"a\0b"), LayerError::InvalidPath { .. }));
        assert!(matches!(bad(&[b'a'; 256]), LayerError::Limit { limit: 255, .. }));
        assert!(matches!(bad(&b"a/".repeat(2049)), LayerError::Limit { limit: 4096, .. }));
        assert!(Path::parse(&[b'a'; 255], &limits).is_ok());
    }
}
