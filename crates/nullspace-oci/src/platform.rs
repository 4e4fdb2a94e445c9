//! Choice of the image for this host's platform.
//!
//! ```text
//! index entries -> drop those with os.version or os.features   (they ask for a host we cannot promise)
//!               -> exact  linux/amd64/v1   (arm64: v8, v8.0)
//!               -> else   linux/amd64      without a variant
//!               -> else   entries without a platform, in their order: the first whose config fits
//!               -> else   UnsupportedPlatform, with all that was on offer
//! ```
//!
//! The choice is made on the index as the registry sent it: no aliases (`x86_64`), no normalisation, no "closest" variant.
//! An image that has no index says what it is in its config, and that is checked by the same rule.

use std::fmt;

use crate::manifest::Descriptor;
pub use crate::offered::OfferedPlatform;

/// Most platforms named in an error.
const MAX_SHOWN: usize = 50;
/// Most entries without a platform whose configs are read.
const MAX_UNNAMED: usize = 8;

/// The platform an image is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Platform {
    /// `linux/amd64/v1`, or without a variant.
    LinuxAmd64,
    /// `linux/arm64/v8`, or without a variant.
    LinuxArm64,
}

impl Platform {
    /// The platform of the machine this program runs on, if images for it can be used.
    pub fn host() -> Option<Platform> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Platform::LinuxAmd64),
            "aarch64" => Some(Platform::LinuxArm64),
            _ => None,
        }
    }

    /// The architecture's name in image indexes.
    pub fn architecture(self) -> &'static str {
        match self {
            Platform::LinuxAmd64 => "amd64",
            Platform::LinuxArm64 => "arm64",
        }
    }

    /// The variants that are an exact match.
    fn exact_variants(self) -> &'static [&'static str] {
        match self {
            Platform::LinuxAmd64 => &["v1"],
            Platform::LinuxArm64 => &["v8", "v8.0"],
        }
    }

    fn fit(self, offered: &OfferedPlatform) -> Option<Fit> {
        let plain = offered.os_version.is_empty() && offered.os_features.is_empty();
        if !plain || offered.os != "linux" || offered.architecture != self.architecture() {
            return None;
        }
        if self.exact_variants().contains(&offered.variant.as_str()) {
            Some(Fit::Exact)
        } else if offered.variant.is_empty() {
            Some(Fit::Variantless)
        } else {
            None
        }
    }

    /// Whether an image for `offered` can be used.
    pub fn accepts(self, offered: &OfferedPlatform) -> bool {
        self.fit(offered).is_some()
    }

    /// The index (into `offered`) of the image to use: the first exact match, else the first without a variant.
    pub fn choose<'a>(self, offered: impl IntoIterator<Item = &'a OfferedPlatform>) -> Option<usize> {
        let mut variantless = None;
        for (at, platform) in offered.into_iter().enumerate() {
            match self.fit(platform) {
                Some(Fit::Exact) => return Some(at),
                Some(Fit::Variantless) => variantless = variantless.or(Some(at)),
                None => {}
            }
        }
        variantless
    }

    /// The index entry to use, or the entries of which only the config tells.
    pub fn choose_descriptor(self, entries: &[Descriptor]) -> Choice<'_> {
        let chosen = self.choose(entries.iter().map(|entry| &entry.platform)).and_then(|index| entries.get(index));
        if let Some(chosen) = chosen {
            return Choice::One(chosen);
        }
        let unnamed = entries.iter().filter(|entry| entry.platform.is_missing()).take(MAX_UNNAMED).collect();
        let named = entries.iter().filter(|entry| !entry.platform.is_missing() && !entry.platform.is_attestation());
        Choice::Unnamed(unnamed, named.map(|entry| entry.platform.to_string()).collect())
    }

    /// The error for an index that offers these and nothing that fits.
    pub fn unsupported(self, mut available: Vec<String>) -> UnsupportedPlatform {
        available.sort();
        available.dedup();
        available.truncate(MAX_SHOWN);
        UnsupportedPlatform { wanted: self.to_string(), available }
    }

    /// Checks an image's config. An image without an index is what its config says. One from an index was chosen by the
    /// index; its config may leave the platform out, but must not contradict.
    pub fn check(self, offered: &OfferedPlatform, via_index: bool) -> Result<(), UnsupportedPlatform> {
        let agrees = |text: &str, wanted: &str| text.is_empty() || text == wanted;
        let fits = if via_index {
            agrees(&offered.os, "linux") && agrees(&offered.architecture, self.architecture())
        } else {
            self.accepts(offered)
        };
        if fits {
            return Ok(());
        }
        Err(UnsupportedPlatform { wanted: self.to_string(), available: vec![offered.to_string()] })
    }
}

/// What an index offers for a platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// This entry.
    One(&'a Descriptor),
    /// No entry says that it fits. These say nothing, so that their configs must be read; the platforms of the others.
    Unnamed(Vec<&'a Descriptor>, Vec<String>),
}

/// Nothing an image offers can run here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the image is not available for {wanted}; available: {}", if .available.is_empty() { "nothing".to_owned() } else { .available.join(", ") })]
pub struct UnsupportedPlatform {
    /// The platform asked for, `linux/amd64`.
    pub wanted: String,
    /// What the image offers.
    pub available: Vec<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture())
    }
}

enum Fit {
    Exact,
    Variantless,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `os/architecture/variant`, then `version=…` and `feature=…`, as the table writes an entry.
    fn offered(text: &str) -> OfferedPlatform {
        let mut words = text.split_whitespace();
        let mut parts = words.next().unwrap_or("").split('/').map(str::to_owned);
        let mut platform = OfferedPlatform {
            os: parts.next().unwrap_or_default(),
            architecture: parts.next().unwrap_or_default(),
            variant: parts.next().unwrap_or_default(),
            ..OfferedPlatform::default()
        };
        for word in words {
            match word.split_once('=').unwrap() {
                ("version", version) => platform.os_version = version.to_owned(),
                ("feature", feature) => platform.os_features.push(feature.to_owned()),
                other => panic!("unknown word {other:?}"),
            }
        }
        platform
    }

    /// `tests/platforms.txt`: `host | entry, entry, … | index of the chosen one or "none"`.
    #[test]
    fn platform_choice_follows_the_table() {
        let mut rows = 0;
        for line in include_str!("../tests/platforms.txt").lines() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let columns: Vec<&str> = line.split('|').map(str::trim).collect();
            let &[host, entries, wanted] = columns.as_slice() else { panic!("bad row: {line}") };
            let host = match host {
                "amd64" => Platform::LinuxAmd64,
                "arm64" => Platform::LinuxArm64,
                other => panic!("unknown host {other}"),
            };
            let entries: Vec<OfferedPlatform> = entries.split(',').map(|entry| offered(entry.trim())).collect();
            let wanted = (wanted != "none").then(|| wanted.parse::<usize>().unwrap());
            assert_eq!(host.choose(&entries), wanted, "{line}");
            rows += 1;
        }
        assert!(rows >= 20, "the table has only {rows} rows");
    }
}
