//! The program and version of QEMU.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::VmmError;

/// Time limit of `--version`, on a busy host with a cold disk.
const LIMIT: Duration = Duration::from_secs(20);
const PREFIX: &str = "QEMU emulator version ";

/// A QEMU's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    /// The version as QEMU prints it, packaging included: another build may have another migration format.
    pub(super) text: String,
    major: u32,
    minor: u32,
}

impl Version {
    /// Asks the binary.
    pub(super) async fn of(binary: &Path) -> Result<Self, VmmError> {
        let mut command = tokio::process::Command::new(binary);
        command.arg("--version").env_clear().stdin(std::process::Stdio::null()).kill_on_drop(true);
        let failed = |source| VmmError::Io { context: format!("run {} --version", binary.display()), source };
        let output = match tokio::time::timeout(LIMIT, command.output()).await {
            Ok(output) => output.map_err(failed)?,
            Err(_) => return Err(super::qmp::timed_out("--version", LIMIT)),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        Self::parse(&text).ok_or_else(|| {
            let message = format!("{} does not say that it is QEMU: install qemu-system-x86", binary.display());
            VmmError::Unavailable(message)
        })
    }

    /// Parses what `--version` prints.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.lines().next()?.strip_prefix(PREFIX)?.trim();
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(Self { text: text.into(), major, minor })
    }

    /// True when a private mapping of a memory file needs no write access to it (`readonly=on,rom=off`).
    pub(super) fn maps_read_only(&self) -> bool {
        (self.major, self.minor) >= (8, 2)
    }

    /// True when it has all that the driver uses; extended L2 entries came last, with 5.2.
    pub(super) fn is_recent_enough(&self) -> bool {
        (self.major, self.minor) >= (6, 0)
    }
}

/// The program's path: as given when it has a slash, else the first in PATH.
pub(super) fn find(program: &Path) -> Result<PathBuf, VmmError> {
    let usable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file();
    let found = if program.components().count() > 1 {
        usable(program).then(|| program.to_path_buf())
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| usable(path))
    };
    found.ok_or_else(|| {
        let message = format!("{} is not on this machine: apt-get install qemu-system-x86", program.display());
        VmmError::Unavailable(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_are_understood() {
        let debian =
            Version::parse("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright").unwrap();
        assert_eq!(debian.text, "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)");
        assert!(!debian.maps_read_only() && debian.is_recent_enough());
        assert!(Version::parse("QEMU emulator version 10.0.2").unwrap().maps_read_only());
        assert!(!Version::parse("QEMU emulator version 5.2.0 (Debian)").unwrap().is_recent_enough());
        assert_eq!(Version::parse("Firecracker v1.12.1"), None);
        assert_eq!(Version::parse(""), None);
    }

    #[test]
    fn a_missing_program_is_named_with_its_cure() {
        let error = find(Path::new("qemu-system-none")).unwrap_err().to_string();
        assert_eq!(error, "qemu-system-none is not on this machine: apt-get install qemu-system-x86");
        assert!(find(Path::new("/nonexistent/qemu")).is_err());
        assert!(find(Path::new("sh")).unwrap().is_absolute());
    }
}
