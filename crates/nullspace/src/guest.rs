//! Where the guest's kernel, initramfs, base tree and builder tree are.

use std::path::{Path, PathBuf};

use nullspace_vmm::GuestImage;

use crate::config::Config;

/// Installed place, last in the search.
const INSTALLED: &str = "/usr/share/nullspace/guest";

/// The configured folder, else `guest` beside or above the program (`target/guest` for `target/debug/nullspace`), else
/// the installed place.
pub(crate) fn dir(config: &Config) -> PathBuf {
    if let Some(dir) = &config.guest_dir {
        return dir.clone();
    }
    let program = std::env::current_exe().unwrap_or_default();
    let beside = program.ancestors().skip(1).take(2).map(|dir| dir.join("guest"));
    beside.into_iter().find(|dir| dir.join("initramfs.cpio").exists()).unwrap_or_else(|| PathBuf::from(INSTALLED))
}

/// The files of a guest folder.
pub(crate) fn image(dir: &Path) -> GuestImage {
    let vmlinux = dir.join("vmlinux");
    GuestImage {
        vmlinuz: dir.join("vmlinuz"),
        vmlinux: vmlinux.exists().then_some(vmlinux),
        initramfs: dir.join("initramfs.cpio"),
    }
}

/// Files of a guest folder that are not there.
pub(crate) fn missing(dir: &Path) -> Vec<PathBuf> {
    ["vmlinuz", "initramfs.cpio"].map(|name| dir.join(name)).into_iter().filter(|path| !path.exists()).collect()
}

/// Tar of the base template's root tree, when there is one.
pub(crate) fn base_tar(config: &Config) -> Option<PathBuf> {
    config.base_tar.clone().or_else(|| Some(dir(config).join("base.tar")).filter(|path| path.exists()))
}

/// Tar of the root tree of builder machines, when there is one.
pub(crate) fn builder_tar(config: &Config) -> Option<PathBuf> {
    config.builder_tar.clone().or_else(|| Some(dir(config).join("builder.tar"))).filter(|path| path.exists())
}
