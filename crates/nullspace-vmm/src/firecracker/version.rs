//! Versions of Firecracker and what differs between them: the only place that compares version numbers.

use std::fmt;

/// `major.minor.patch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Patch.
    pub patch: u32,
}

/// Oldest version that is known to work: before it, guests were not told of the vsock reset after a restore.
pub const OLDEST: Version = Version::new(1, 10, 0);

impl Version {
    /// A version.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Reads `1.12.1`, `v1.12.1`, `1.17.0-dev`, and the first line of `firecracker --version`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.lines().next()?.trim();
        let text = text.strip_prefix("Firecracker ").unwrap_or(text);
        let text = text.strip_prefix('v').unwrap_or(text);
        let numbers = text.split(['-', '+', ' ']).next()?;
        let mut parts = numbers.split('.').map(|part| part.parse::<u32>().ok());
        let version = Self::new(parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(version)
    }

    /// Boots a bzImage too; older ones take an uncompressed ELF only. (Changelog, #6037.)
    pub fn boots_bzimage(self) -> bool {
        self >= Self::new(1, 17, 0)
    }

    /// `PUT /snapshot/load` takes `clock_realtime`: the guest's kvm-clock is set to now. (Changelog of 1.16.0.)
    pub fn sets_clock_at_load(self) -> bool {
        self >= Self::new(1, 16, 0)
    }

    /// `PUT /snapshot/load` takes `vsock_override`. (Changelog of 1.16.0.)
    pub fn overrides_vsock(self) -> bool {
        self >= Self::new(1, 16, 0)
    }

    /// `PUT /snapshot/load` takes `network_overrides`. (Changelog of 1.12.0.)
    pub fn overrides_network(self) -> bool {
        self >= Self::new(1, 12, 0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_read() {
        for (text, version) in [
            ("Firecracker v1.12.1\n\n2026 exiting", Some(Version::new(1, 12, 1))),
            ("1.17.0-dev", Some(Version::new(1, 17, 0))),
            ("v1.10.0", Some(Version::new(1, 10, 0))),
            ("1.12", None),
            ("1.12.1.3", None),
            ("QEMU emulator version 7.2", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(text), version, "{text}");
        }
    }

    #[test]
    fn features_come_in_their_order() {
        let [old, mid, new] = [Version::new(1, 12, 1), Version::new(1, 16, 0), Version::new(1, 17, 0)];
        assert!(old > OLDEST && old.overrides_network() && !old.boots_bzimage() && !old.sets_clock_at_load());
        assert!(mid.sets_clock_at_load() && mid.overrides_vsock() && !mid.boots_bzimage());
        assert!(new.boots_bzimage());
    }
}
