//! A reference beside its text: what is shown and stored is what the user wrote.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::reference::{Reference, ReferenceError};

/// A [`Reference`] with the text that it was parsed from. `Display` and serde give the text, unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Written {
    text: String,
    reference: Reference,
}

impl Written {
    /// The text, as the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What the text means.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Written {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Written, ReferenceError> {
        let reference = text.parse()?;
        Ok(Written { text, reference })
    }
}

impl FromStr for Written {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Written, ReferenceError> {
        text.to_owned().try_into()
    }
}

impl From<Written> for String {
    fn from(written: Written) -> String {
        written.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_stays_as_it_was_written() {
        let json = r#""ubuntu:22.04""#;
        let written: Written = serde_json::from_str(json).unwrap();
        assert_eq!(written.reference().to_string(), "docker.io/library/ubuntu:22.04");
        assert_eq!((written.as_str(), written.to_string().as_str()), ("ubuntu:22.04", "ubuntu:22.04"));
        assert_eq!(serde_json::to_string(&written).unwrap(), json);
        serde_json::from_str::<Written>(r#""No Such""#).unwrap_err();
    }
}
