//! The files of a snapshot: written from a paused machine, read for a restore.
//!
//! ```text
//!   memory         guest memory, sparse: pages of zeros are holes
//!   state          QEMU's migration stream without memory: CPUs and devices, about 70 KB
//!   disk.qcow2     what the machine wrote over its base image; absent when it wrote to a raw image directly
//!   disk.N.qcow2   what a machine that was restored wrote over that, and so on upwards
//!   machine.json   what else a restore must know, see [`Manifest`]
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::args::CARD;
use super::disk::{MAX_OVERLAYS, Written, overlay_name};
use super::qmp::{Qmp, timed_out};
use crate::{VmmError, sparse};

/// Version of this folder's layout and of the machine's devices. A change to either needs a new one.
pub(super) const FORMAT: u32 = 1;

pub(super) const MEMORY: &str = "memory";
pub(super) const STATE: &str = "state";
pub(super) const MANIFEST: &str = "machine.json";

/// Bound of a machine's way out: milliseconds for the devices' state, a second for each gigabyte of memory.
pub(super) const MIGRATION: Duration = Duration::from_secs(120);
/// A manifest has a few hundred bytes.
const MAX_MANIFEST: u64 = 64 * 1024;

/// Properties of the machine that a restore needs besides the summary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// The backend of the machine's card.
    pub(super) card: CardKind,
    /// Rate of the TSC that the guest counts time with, kHz; under TCG only, where it is the host's own.
    pub(super) tsc_khz: Option<u64>,
}

/// Backends that look different to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CardKind {
    /// A tap, with offloads.
    Tap,
    /// Anything else, without.
    Plain,
}

impl Manifest {
    /// Reads a folder's manifest. Blocks.
    pub(super) fn read(folder: &Path) -> Result<Self, VmmError> {
        use std::io::Read;
        let path = folder.join(MANIFEST);
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_MANIFEST).read_to_end(&mut text))
            .map_err(|source| VmmError::Io { context: format!("read {}", path.display()), source })?;
        serde_json::from_slice(&text).map_err(|error| VmmError::Incompatible(format!("{}: {error}", path.display())))
    }

    /// Compares with `ours`, the host's: returns why a snapshot with this manifest cannot run here; `None` when it can.
    pub(super) fn conflict_with(&self, ours: &Manifest) -> Option<String> {
        if self.card == CardKind::Tap && ours.card == CardKind::Plain {
            return Some(
                "the snapshot's network card offloads work to a tap, which needs a service that runs as root".into(),
            );
        }
        match (self.tsc_khz, ours.tsc_khz) {
            // Half a percent is more than two measurements differ by, and less than two processors' clocks.
            (Some(then), Some(now)) if then.abs_diff(now) <= then / 200 => None,
            (None, None) => None,
            (then, now) => {
                let mhz = |khz: Option<u64>| khz.map_or("no known".into(), |khz| format!("{} MHz", khz / 1000));
                Some(format!(
                    "the snapshot's guest counts time with a TSC of {}, this host's has {}",
                    mhz(then),
                    mhz(now)
                ))
            }
        }
    }
}

/// Writes the device state of a stopped machine.
pub(super) async fn write_state(monitor: &Qmp, folder: &Path) -> Result<(), VmmError> {
    let path = folder.join(STATE);
    let state =
        new_file(&path).map_err(|source| VmmError::Io { context: format!("make {}", path.display()), source })?;
    let run = async {
        let before = monitor.observed().migrations;
        // The user network would put its connections into the stream, and a restore with another card would refuse it.
        // A card that lost its peer reads as unplugged; a restore plugs it in again before the guest can look.
        let unplug = monitor.send("netdev_del", json!({ "id": CARD }), None).await?;
        let capabilities = monitor.send("migrate-set-capabilities", capabilities(true), None).await?;
        unplug.answer().await?;
        capabilities.answer().await?;
        migrate(monitor, state.as_fd()).await?;
        ended(monitor, before).await
    };
    tokio::time::timeout(MIGRATION, run).await.unwrap_or_else(|_| Err(timed_out("migrate", MIGRATION)))
}

/// Begins to write a stopped machine to a descriptor.
pub(super) async fn migrate(monitor: &Qmp, target: BorrowedFd<'_>) -> Result<(), VmmError> {
    const NAME: &str = "target";
    // Without a bound: the default would be 128 MiB/s.
    let parameters = monitor.send("migrate-set-parameters", json!({ "max-bandwidth": 1u64 << 40 }), None).await?;
    let descriptor = monitor.send("getfd", json!({ "fdname": NAME }), Some(target)).await?;
    let migrate = monitor.send("migrate", json!({ "uri": format!("fd:{NAME}") }), None).await?;
    for answer in [parameters, descriptor, migrate] {
        answer.answer().await?;
    }
    Ok(())
}

/// Waits for the end of a migration that began when `before` had ended.
pub(super) async fn ended(monitor: &Qmp, before: u64) -> Result<(), VmmError> {
    if monitor.observe(|observed| observed.migrations != before).await?.migrated {
        return Ok(());
    }
    let detail = monitor.send("query-migrate", json!({}), None).await?.answer().await?;
    let message = detail["error-desc"].as_str().unwrap_or("QEMU does not say why").to_owned();
    Err(VmmError::Refused { context: "move the machine's state".into(), message })
}

/// Capabilities, which both ends must agree on: whether memory that is mapped from a file stays out of the stream; and
/// progress is told by events.
pub(super) fn capabilities(without_memory: bool) -> serde_json::Value {
    json!({ "capabilities": [
        { "capability": "x-ignore-shared", "state": without_memory },
        { "capability": "events", "state": true },
    ] })
}

/// Writes memory, disk and manifest of a machine whose process is gone. Returns the names of all files. Blocks.
pub(super) fn write_files(
    folder: &Path,
    memory: &File,
    disk: &Written,
    manifest: &Manifest,
) -> Result<Vec<String>, VmmError> {
    let len = memory.metadata().map_err(failed(folder, MEMORY))?.len();
    let file = new_memory(folder).map_err(failed(folder, MEMORY))?;
    sparse::copy(memory, &file, len).map_err(failed(folder, MEMORY))?;
    write_rest(folder, disk, manifest)
}

/// Writes all but the memory: state, disk and manifest of a machine that lives on. Returns the names of all files. Blocks.
pub(super) fn write_others(
    folder: &Path,
    state: &[u8],
    disk: &Written,
    manifest: &Manifest,
) -> Result<Vec<String>, VmmError> {
    write_new(folder, STATE, state)?;
    write_rest(folder, disk, manifest)
}

fn write_rest(folder: &Path, disk: &Written, manifest: &Manifest) -> Result<Vec<String>, VmmError> {
    let mut files = disk.publish(folder).map_err(failed(folder, "the disk's overlays"))?;
    let text = serde_json::to_vec(manifest).map_err(|error| failed(folder, MANIFEST)(error.into()))?;
    write_new(folder, MANIFEST, &text)?;
    files.extend([MEMORY, STATE, MANIFEST].map(str::to_owned));
    Ok(files)
}

fn write_new(folder: &Path, name: &'static str, bytes: &[u8]) -> Result<(), VmmError> {
    let written = new_file(&folder.join(name)).and_then(|mut file| io::Write::write_all(&mut file, bytes));
    written.map_err(failed(folder, name))
}

/// Opens the file of a snapshot's memory to write over it.
pub(super) fn open_memory(folder: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(folder.join(MEMORY))
}

/// Makes the file of a snapshot's memory.
pub(super) fn new_memory(folder: &Path) -> io::Result<File> {
    new_file(&folder.join(MEMORY))
}

fn failed(folder: &Path, name: &str) -> impl FnOnce(io::Error) -> VmmError {
    let context = format!("write {}", folder.join(name).display());
    move |source| VmmError::Io { context, source }
}

/// The overlays that a snapshot with these files has, from the base up.
pub(super) fn overlays(folder: &Path, files: &[String]) -> Vec<PathBuf> {
    let names = (0..MAX_OVERLAYS).map(overlay_name);
    names.take_while(|name| files.contains(name)).map(|name| folder.join(name)).collect()
}

/// Removes what a failed snapshot may have written. Blocks, for the few milliseconds that some unlinks take.
pub(super) fn discard(folder: &Path) {
    let names = [MEMORY, STATE, MANIFEST].map(str::to_owned).into_iter();
    for name in names.chain((0..MAX_OVERLAYS).map(overlay_name)) {
        match std::fs::remove_file(folder.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, folder = %folder.display(), name, "a part of a failed snapshot could not be removed");
            }
            _ => {}
        }
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(card: CardKind, tsc_khz: Option<u64>) -> Manifest {
        Manifest { card, tsc_khz }
    }

    #[test]
    fn a_guest_that_counts_with_another_clock_is_refused() {
        let ours = manifest(CardKind::Plain, Some(2_600_000));
        assert_eq!(manifest(CardKind::Plain, Some(2_599_000)).conflict_with(&ours), None);
        let conflict = manifest(CardKind::Plain, Some(2_900_000)).conflict_with(&ours).unwrap();
        assert_eq!(conflict, "the snapshot's guest counts time with a TSC of 2900 MHz, this host's has 2600 MHz");
        assert!(manifest(CardKind::Plain, None).conflict_with(&ours).is_some());
    }

    #[test]
    fn a_card_on_a_tap_needs_a_tap() {
        let (tap, plain) = (manifest(CardKind::Tap, None), manifest(CardKind::Plain, None));
        assert!(tap.conflict_with(&plain).is_some());
        assert_eq!(plain.conflict_with(&tap), None);
        assert_eq!(tap.conflict_with(&tap), None);
    }

    #[test]
    fn a_damaged_manifest_is_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(MANIFEST), b"{\"card\":\"tap\",\"tsc_khz\":null,\"x\":1}").unwrap();
        assert!(matches!(Manifest::read(folder.path()), Err(VmmError::Incompatible(_))));
        std::fs::write(folder.path().join(MANIFEST), b"{\"card\":\"tap\",\"tsc_khz\":null}").unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), manifest(CardKind::Tap, None));
    }
}
