//! Names of objects.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name, bytes. With a prefix of the store it stays below the 1024 bytes of an S3 key.
pub const MOST_NAME_BYTES: usize = 200;

/// The name of an object: segments of `a-z`, `0-9`, `.`, `_` and `-`, joined by `/`, at most [`MOST_NAME_BYTES`] bytes.
/// No segment is empty, `.` or `..`: a name is a path below a folder and never leaves it.
///
/// ```
/// use nullspace_objects::ObjectName;
///
/// let name: ObjectName = "packs/0a/0a1b2c.pack".parse().unwrap();
/// assert_eq!(name.to_string(), "packs/0a/0a1b2c.pack");
/// assert!("packs/../key".parse::<ObjectName>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Arc<str>);

/// A text is not an [`ObjectName`]. The message says why and repeats nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// Nothing, or more than [`MOST_NAME_BYTES`] bytes.
    #[error("a name of an object has 1 to {MOST_NAME_BYTES} bytes, not {0}")]
    Length(usize),
    /// A character that names do not have.
    #[error("a name of an object has only a-z, 0-9, '.', '_', '-' and '/'")]
    Character,
    /// An empty segment, `.` or `..`.
    #[error("no part between the '/' of an object's name may be empty, '.' or '..'")]
    Segment,
}

impl ObjectName {
    /// Parses a name.
    ///
    /// # Errors
    /// The first rule that the text breaks.
    pub fn parse(text: &str) -> Result<ObjectName, InvalidName> {
        if text.is_empty() || text.len() > MOST_NAME_BYTES {
            return Err(InvalidName::Length(text.len()));
        }
        if !text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/')) {
            return Err(InvalidName::Character);
        }
        if text.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(InvalidName::Segment);
        }
        Ok(ObjectName(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ObjectName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<ObjectName, InvalidName> {
        ObjectName::parse(text)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl AsRef<str> for ObjectName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rules() {
        for good in ["a", "a/b", "packs/0f/x.pack", "-", "_", ".hidden", "a..b", "...", &"a".repeat(200)] {
            assert_eq!(ObjectName::parse(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", InvalidName::Length(0)),
            (&*"a".repeat(201), InvalidName::Length(201)),
            ("A", InvalidName::Character),
            ("a b", InvalidName::Character),
            ("a\\b", InvalidName::Character),
            ("a\0", InvalidName::Character),
            ("ä", InvalidName::Character),
            ("a%2fb", InvalidName::Character),
            (".", InvalidName::Segment),
            ("..", InvalidName::Segment),
            ("a/../b", InvalidName::Segment),
            ("a/./b", InvalidName::Segment),
            ("/a", InvalidName::Segment),
            ("a/", InvalidName::Segment),
            ("a//b", InvalidName::Segment),
        ] {
            assert_eq!(ObjectName::parse(bad), Err(why), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn names_return_as_they_were(segments in proptest::collection::vec("[a-z0-9._-]{1,20}", 1..8)) {
            let text = segments.join("/");
            let allowed = segments.iter().all(|segment| segment != "." && segment != "..");
            match text.parse::<ObjectName>() {
                Ok(name) => {
                    prop_assert!(allowed);
                    prop_assert_eq!(name.to_string(), text);
                }
                Err(why) => prop_assert!(!allowed, "{text}: {why}"),
            }
        }

        #[test]
        fn no_text_leaves_the_folder(text in any::<String>(), dots in "[./a]{0,12}") {
            for text in [text, dots] {
                if let Ok(name) = text.parse::<ObjectName>() {
                    prop_assert_eq!(name.as_str(), &text);
                    let path = std::path::Path::new(&text);
                    prop_assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
                    prop_assert_eq!(path.components().count(), text.split('/').count());
                }
            }
        }
    }
}
