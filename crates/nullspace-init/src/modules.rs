//! Kernel modules of the initramfs.

use std::fs::{self, File};
use std::path::Path;

use nix::kmod::{ModuleInitFlags, finit_module};

use crate::log;

/// Loads what `folder/order` lists, in that order, then frees its memory. A kernel that has them built in needs no
/// folder; one that fails is told and skipped: the devices that are missing then say more.
pub(crate) fn load(folder: &Path) {
    let order = fs::read_to_string(folder.join("order")).unwrap_or_default();
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let path = folder.join(name);
        let loaded = File::open(&path).map_err(|error| error.to_string()).and_then(|file| {
            match finit_module(&file, c"", ModuleInitFlags::empty()) {
                Ok(()) | Err(nix::Error::EEXIST) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        });
        if let Err(error) = loaded {
            log::problem(format_args!("module {name}: {error}"));
        }
        let _ = fs::remove_file(path);
    }
}
