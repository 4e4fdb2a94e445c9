//! The generation file, which notifies processes from before a snapshot of a resume.
//!
//! A small tmpfs of the agent's at /run/nullspace holds two files, written anew at every boot and every resume:
//!
//! - `generation`, a random UUID and a line end. It is overwritten in place, so a watch of inotify(7) stays on it.
//! - `boot_id`, which lies over /proc/sys/kernel/random/boot_id: the kernel draws that one once and keeps it in a snapshot.
//!
//! Guests have no VMGenID device: Debian's cloud kernel is built without its driver.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::OnceLock;

use nix::mount::{MsFlags, mount};

use crate::log;

/// Where the files are.
pub(crate) const FOLDER: &str = "/run/nullspace";
/// The file that lies over [`BOOT_ID`].
pub(crate) const BOOT_ID_FILE: &CStr = c"/run/nullspace/boot_id";
/// The kernel's boot id.
pub(crate) const BOOT_ID: &CStr = c"/proc/sys/kernel/random/boot_id";
/// The kernel's source of random UUIDs.
const RANDOM_UUID: &str = "/proc/sys/kernel/random/uuid";

/// The two files, held open: whatever is mounted over the folder, its readers see what is written.
#[derive(Debug)]
struct Files {
    generation: File,
    boot_id: File,
    /// Where the kernel lists the mounts.
    places: Vec<String>,
}

static FILES: OnceLock<Files> = OnceLock::new();

/// Makes the folder and its files. The error is for the log: an image whose /run is no folder runs without them.
pub(crate) fn set_up() -> io::Result<()> {
    // The folder is on the image's disk; the files never are.
    fs::create_dir_all(FOLDER)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("nullspace"), FOLDER, Some("tmpfs"), flags, Some("mode=0755,size=64k,nr_inodes=16"))?;
    let make = |path: &str| File::options().write(true).create_new(true).mode(0o444).open(path);
    let generation = make(&format!("{FOLDER}/generation"))?;
    let boot_id = make(&BOOT_ID_FILE.to_string_lossy())?;
    renew_in(&generation, &boot_id)?;
    let mut places = vec![fs::canonicalize(FOLDER)?.to_string_lossy().into_owned()];
    match mount(Some(BOOT_ID_FILE), BOOT_ID, None::<&CStr>, MsFlags::MS_BIND, None::<&CStr>) {
        Ok(()) => places.push(BOOT_ID.to_string_lossy().into_owned()),
        Err(error) => log::problem(format_args!("boot id: {error}")),
    }
    let _ = FILES.set(Files { generation, boot_id, places });
    Ok(())
}

/// Where the agent has mounted what is in here.
pub(crate) fn places() -> impl Iterator<Item = &'static str> {
    FILES.get().into_iter().flat_map(|files| files.places.iter().map(String::as_str))
}

/// Writes new values: a machine was resumed. The kernel's random numbers must be new by then.
pub(crate) fn renew() -> io::Result<()> {
    FILES.get().map_or(Ok(()), |files| renew_in(&files.generation, &files.boot_id))
}

/// The current generation; `None` where there are no files.
pub(crate) fn current() -> Option<String> {
    FILES.get()?;
    fs::read_to_string(format!("{FOLDER}/generation")).ok().map(|text| text.trim().to_owned())
}

fn renew_in(generation: &File, boot_id: &File) -> io::Result<()> {
    // The boot id first: who is woken by the generation finds it.
    for file in [boot_id, generation] {
        // Always of one length: a reader sees the old value or the new one, never none.
        file.write_all_at(fs::read_to_string(RANDOM_UUID)?.as_bytes(), 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_renewal_writes_other_values_of_the_same_length_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| File::options().write(true).create_new(true).open(folder.path().join(name)).unwrap();
        let (generation, boot_id) = (open("generation"), open("boot_id"));
        let mut seen = std::collections::HashSet::new();
        for _ in 0..5 {
            renew_in(&generation, &boot_id).unwrap();
            for name in ["generation", "boot_id"] {
                let text = fs::read_to_string(folder.path().join(name)).unwrap();
                assert_eq!((text.len(), text.ends_with('\n')), (37, true), "{text:?}");
                assert!(seen.insert(text), "a value came twice");
            }
        }
    }
}
