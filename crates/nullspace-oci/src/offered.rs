//! The platform that an image is for, as its documents have it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::json;

/// The `platform` object of an index entry, or the same fields of an image config. Missing and null are the empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OfferedPlatform {
    /// `linux`, `windows`, …
    #[serde(deserialize_with = "json::null_default")]
    pub os: String,
    /// `amd64`, `arm64`, …
    #[serde(deserialize_with = "json::null_default")]
    pub architecture: String,
    /// `v1`, `v8`, …
    #[serde(deserialize_with = "json::null_default")]
    pub variant: String,
    /// A minimal host OS version (Windows).
    #[serde(rename = "os.version", deserialize_with = "json::null_default")]
    pub os_version: String,
    /// Host OS features that are needed (Windows).
    #[serde(rename = "os.features", deserialize_with = "json::null_default")]
    pub os_features: Vec<String>,
}

impl OfferedPlatform {
    /// Nothing is said, as in indexes that were put together by hand.
    pub(crate) fn is_missing(&self) -> bool {
        *self == OfferedPlatform::default()
    }

    /// BuildKit's attestation manifests carry this platform so that no client takes them for an image.
    pub(crate) fn is_attestation(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }
}

impl fmt::Display for OfferedPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
        write!(f, "{}/{}", or_unknown(&self.os), or_unknown(&self.architecture))?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        if !self.os_version.is_empty() {
            write!(f, " (os.version {})", self.os_version)?;
        }
        if !self.os_features.is_empty() {
            write!(f, " (os.features {})", self.os_features.join(","))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offered_platform_reads_nulls_and_shows_all_it_has() {
        let json =
            r#"{"os":"windows","architecture":"amd64","variant":null,"os.version":"10.0","os.features":["win32k"]}"#;
        let platform: OfferedPlatform = serde_json::from_str(json).unwrap();
        assert_eq!(platform.to_string(), "windows/amd64 (os.version 10.0) (os.features win32k)");
        assert_eq!(OfferedPlatform::default().to_string(), "unknown/unknown");
    }
}
