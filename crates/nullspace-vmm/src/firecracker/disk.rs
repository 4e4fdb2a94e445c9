//! A machine's own disk, made from an image that does not change.
//!
//! | way | where | cost by the image's size |
//! |---|---|---|
//! | reflink | XFS, btrfs | none |
//! | device-mapper snapshot (`overlay.rs`) | root, dm-snapshot; for restored machines | none |
//! | copy of the data | everywhere | its data, holes left out |
//!
//! Measured on ext4: mapping takes 40 to 80 ms for 16 MiB and for 256 MiB alike in the nested host of the tests, where
//! everything is emulated and a copy takes 100 ms and 2.2 s; on a real machine a copy of 206 MiB takes 55 to 115 ms.
//!
//! Tried in this order, except that an image with little data is copied before a mapping is made for it: below
//! [`COPY_UP_TO`] that is as quick, and simpler. A machine that is booted in order to be snapshotted gets a file in any
//! case, because that file is moved into the snapshot, which a mapping's content would have to be copied into.

use std::fs::File;
use std::io;
use std::path::Path;

use super::files;
use super::jail::{DISK, Jail};
use super::overlay::Overlay;
use crate::sparse;

/// Data that is copied rather than mapped, bytes. The kernel copies a GB/s and more from its cache; making and removing
/// a mapping takes it about 20 ms, in RCU grace periods.
pub(super) const COPY_UP_TO: u64 = 32 << 20;

/// A machine's disk.
#[derive(Debug)]
pub(super) struct Made {
    /// Open, so that a later copy needs no path in the machine's folder.
    pub(super) file: File,
    pub(super) bytes: u64,
    /// To be dropped when the VMM has opened the disk.
    pub(super) overlay: Option<Overlay>,
}

/// The permitted kinds of disk.
#[derive(Debug, Clone, Copy)]
pub(super) enum Choice {
    /// A file.
    File,
    /// A mapping too, when there is more data than this.
    MapAbove(u64),
}

/// Makes the machine's disk of `size` bytes (at least the image's) in its folder. `work` is on the same filesystem.
pub(super) fn make(image: &Path, size: u64, jail: &Jail, work: &Path, choice: Choice) -> io::Result<Made> {
    let image = File::open(image)?;
    let meta = image.metadata()?;
    let target = jail.path(DISK);
    if let (Choice::MapAbove(limit), Some(uid)) = (choice, jail.uid())
        && sparse::stored_bytes(&meta) > limit
        && meta.len() >= size
    {
        if let Some(file) = files::reflink(&image, &target)? {
            jail.own(&file)?;
            return Ok(Made { file, bytes: meta.len(), overlay: None });
        }
        match Overlay::make(&image, work).and_then(|overlay| Ok((overlay.place(&target, uid)?, overlay))) {
            Ok((file, overlay)) => return Ok(Made { file, bytes: meta.len(), overlay: Some(overlay) }),
            Err(error) => {
                tracing::warn!(%error, "device-mapper cannot map a disk; its image is copied instead");
                let _ = std::fs::remove_file(&target);
            }
        }
    }
    let file = files::copy(&image, &target, size)?;
    jail.own(&file)?;
    Ok(Made { bytes: file.metadata()?.len(), file, overlay: None })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::firecracker::overlay;

    /// Prints what each way costs for two sizes; asserts only which way was taken and that the content is right.
    #[test]
    fn an_image_is_mapped_where_it_can_be_and_little_data_is_copied() {
        if !rustix::process::geteuid().is_root() || !overlay::available() {
            eprintln!("skipped: needs root and the kernel's device mapper");
            return;
        }
        let work = tempfile::tempdir().unwrap();
        for mib in [16, 256] {
            let image = work.path().join(format!("image-{mib}"));
            std::fs::write(&image, vec![b'i'; mib << 20]).unwrap();
            for (limit, mapped) in [(0, true), (1 << 40, false)] {
                let jail = Jail::make(work.path(), "firecracker", "m1", Some(65_534)).unwrap();
                let started = Instant::now();
                let made = make(&image, (mib as u64) << 20, &jail, work.path(), Choice::MapAbove(limit)).unwrap();
                let took = started.elapsed();
                eprintln!("{mib} MiB, {}: {took:?}", if made.overlay.is_some() { "mapped" } else { "copied" });
                let shares =
                    files::reflink(&File::open(&image).unwrap(), &work.path().join("probe")).unwrap().is_some();
                let _ = std::fs::remove_file(work.path().join("probe"));
                assert_eq!(made.overlay.is_some(), mapped && !shares);
                assert_eq!(made.bytes, (mib as u64) << 20);
                let mut start = [0; 4];
                std::os::unix::fs::FileExt::read_exact_at(&made.file, &mut start, 4096).unwrap();
                assert_eq!(&start, b"iiii");
                drop(made);
                super::super::jail::remove(jail.top());
            }
        }
    }
}
