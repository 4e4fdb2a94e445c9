//! A machine's disk: layers of files, the topmost its own.
//!
//! ```text
//!   restored machine      image <- disk.qcow2 <- disk.1.qcow2 <- own (written)
//!   snapshot of it        image <- disk.qcow2 <- disk.1.qcow2 <- copy of own
//!                         two neighbours are merged where there would be more than four: the two that are the smallest together
//! ```
//! So a machine can be snapshotted and restored any number of times, and what a merge costs goes with what was written
//! lately, not with what was ever written.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::args::{Format, Layer};
use crate::{Disk, VmmError, memory, qcow2, sparse};

/// Most overlays on each other that a snapshot gets.
const MOST_OVERLAYS: usize = 4;
/// Most overlays on each other that are read: older snapshots have more than a new one gets.
pub(super) const MAX_OVERLAYS: usize = 16;

/// Names of the overlays in a snapshot's folder, from the base up. The first is also the name in a working folder whose
/// filesystem knows no nameless files.
pub(super) fn overlay_name(index: usize) -> String {
    if index == 0 { "disk.qcow2".into() } else { format!("disk.{index}.qcow2") }
}

/// Layers for QEMU, and what is kept of the disk on our side.
#[derive(Debug)]
pub(super) struct OpenDisk {
    pub(super) layers: Vec<Layer>,
    /// Size as the guest sees it, bytes.
    pub(super) size: u64,
    /// The files of it that go into a snapshot.
    pub(super) written: Written,
}

/// All that differs from the raw image.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// The template's overlays, from the base up.
    below: Vec<File>,
    /// The machine's own and its size as the guest sees it; `None` when it writes to a raw image directly.
    top: Option<(Overlay, u64)>,
    /// Those of `below` that were merged for a snapshot, where they have names until it is published.
    merged: Vec<Overlay>,
}

impl OpenDisk {
    /// The disk of a machine that boots. Blocks.
    pub(super) fn boot(disk: &Disk, work_dir: &Path) -> Result<Self, VmmError> {
        match disk {
            Disk::Overlay { base, size_bytes } => {
                let (file, base_size) = open(base, false)?;
                if *size_bytes < base_size {
                    let message = format!("{size_bytes} bytes are less than the {base_size} of {}", base.display());
                    return Err(invalid("a disk smaller than its image", message));
                }
                let layers = vec![Layer { file: file.into(), format: Format::Raw, writable: false }];
                Self::with_overlay(layers, Vec::new(), *size_bytes, work_dir)
            }
            Disk::Direct { path } => {
                let (file, size) = open(path, true)?;
                if size == 0 || !size.is_multiple_of(512) {
                    return Err(invalid("a disk image", format!("{} has {size} bytes", path.display())));
                }
                let layers = vec![Layer { file: file.into(), format: Format::Raw, writable: true }];
                Ok(Self { layers, size, written: Written::default() })
            }
        }
    }

    /// An empty disk that is not kept, for a machine whose disk does not matter.
    pub(super) fn empty(size: u64) -> io::Result<Self> {
        let file = memory::anonymous("nullspace-disk", 0)?;
        qcow2::create(&file, size)?;
        let layers = vec![Layer { file: file.into(), format: Format::Qcow2, writable: true }];
        Ok(Self { layers, size, written: Written::default() })
    }

    /// The disk of a restored machine: the raw image, what the snapshotted machine wrote over it, and an empty overlay.
    /// Blocks.
    pub(super) fn restore(base: &Path, overlays: &[PathBuf], size: u64, work_dir: &Path) -> Result<Self, VmmError> {
        let (file, _) = open(base, false)?;
        let mut layers = vec![Layer { file: file.into(), format: Format::Raw, writable: false }];
        let mut below = Vec::new();
        for path in overlays {
            let (file, _) = open(path, false)?;
            qcow2::verify(&file, size).map_err(|error| VmmError::Incompatible(error.to_string()))?;
            let kept = file.try_clone();
            below.push(kept.map_err(|source| VmmError::Io { context: format!("open {}", path.display()), source })?);
            layers.push(Layer { file: file.into(), format: Format::Qcow2, writable: false });
        }
        Self::with_overlay(layers, below, size, work_dir)
    }

    fn with_overlay(mut layers: Vec<Layer>, below: Vec<File>, size: u64, work_dir: &Path) -> Result<Self, VmmError> {
        let failed =
            |source| VmmError::Io { context: format!("make a disk overlay in {}", work_dir.display()), source };
        let overlay = Overlay::create(work_dir, size).map_err(failed)?;
        let file = overlay.file.try_clone().map_err(failed)?;
        layers.push(Layer { file: file.into(), format: Format::Qcow2, writable: true });
        Ok(Self { layers, size, written: Written { below, top: Some((overlay, size)), merged: Vec::new() } })
    }
}

impl Written {
    /// The same disk in at most [`MOST_OVERLAYS`] layers, with nameless copies in `folder` of the layer that a stopped machine
    /// writes to and of those that had to be merged. Blocks.
    pub(super) fn copy_to(&self, folder: &Path) -> io::Result<Self> {
        let Some((own, size)) = &self.top else {
            let below = self.below.iter().map(File::try_clone).collect::<io::Result<_>>()?;
            return Ok(Self { below, top: None, merged: Vec::new() });
        };
        let layers: Vec<&File> = self.below.iter().chain([&own.file]).collect();
        let stored = |file: &&File| file.metadata().map(|metadata| sparse::stored_bytes(&metadata));
        let sizes = layers.iter().map(stored).collect::<io::Result<Vec<u64>>>()?;
        let mut copy = Self::default();
        for group in groups(&sizes) {
            let holds_own = group.end == layers.len();
            let part = layers.get(group.clone()).unwrap_or_default();
            if let ([file], false) = (part, holds_own) {
                copy.below.push(file.try_clone()?);
                continue;
            }
            let overlay = Overlay::new(folder, &format!("{}.part", overlay_name(group.start)))?;
            match part {
                [file] => sparse::copy(file, &overlay.file, file.metadata()?.len()).map(drop)?,
                several => qcow2::merge(several, *size, &overlay.file)?,
            }
            if holds_own {
                copy.top = Some((overlay, *size));
            } else {
                copy.below.push(overlay.file.try_clone()?);
                copy.merged.push(overlay);
            }
        }
        Ok(copy)
    }

    /// True for a machine's own overlay over a raw image.
    pub(super) fn is_a_single_overlay(&self) -> bool {
        self.below.is_empty() && self.top.is_some()
    }

    /// Returns the space on the disk, bytes, of the machine's own overlay if it has no name in a folder; else 0. Blocks.
    pub(super) fn nameless_bytes(&self) -> u64 {
        let overlay = self.top.as_ref().map(|(overlay, _)| overlay).filter(|overlay| overlay.name.is_none());
        let metadata = overlay.and_then(|overlay| overlay.file.metadata().ok());
        metadata.map_or(0, |metadata| sparse::stored_bytes(&metadata))
    }

    /// An empty overlay to lie on these layers. Blocks.
    pub(super) fn successor(&self, folder: &Path) -> io::Result<Self> {
        let Some((_, size)) = self.top else { return Err(io::ErrorKind::Unsupported.into()) };
        Ok(Self { below: Vec::new(), top: Some((Overlay::create(folder, size)?, size)), merged: Vec::new() })
    }

    /// The machine's own overlay, to be handed to QEMU.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.overlay_file().map(OwnedFd::from)
    }

    /// The machine's own overlay, to be read.
    pub(super) fn overlay_file(&self) -> io::Result<File> {
        let Some((overlay, _)) = &self.top else { return Err(io::ErrorKind::Unsupported.into()) };
        overlay.file.try_clone()
    }

    /// Gives all layers their names in `folder`, and returns the names. Blocks.
    pub(super) fn publish(&self, folder: &Path) -> io::Result<Vec<String>> {
        let Some((overlay, size)) = &self.top else { return Ok(Vec::new()) };
        if self.below.len() >= MAX_OVERLAYS {
            let message =
                format!("a snapshot would have more than {MAX_OVERLAYS} disk overlays, which no restore reads");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        for (index, file) in self.below.iter().enumerate() {
            put(file, &folder.join(overlay_name(index)))?;
        }
        qcow2::verify(&overlay.file, *size)?;
        put(&overlay.file, &folder.join(overlay_name(self.below.len())))?;
        Ok((0..=self.below.len()).map(overlay_name).collect())
    }
}

/// Neighbouring layers, by their sizes from the base up, that become one each in a snapshot.
fn groups(sizes: &[u64]) -> Vec<Range<usize>> {
    let mut groups: Vec<(Range<usize>, u64)> =
        sizes.iter().enumerate().map(|(index, size)| (index..index + 1, *size)).collect();
    while groups.len() > MOST_OVERLAYS {
        let pairs = groups.windows(2).map(|pair| pair.iter().fold(0u64, |sum, (_, size)| sum.saturating_add(*size)));
        let Some((at, sum)) = pairs.enumerate().min_by_key(|(_, sum)| *sum) else { break };
        let (upper, _) = groups.remove(at + 1);
        if let Some((lower, size)) = groups.get_mut(at) {
            (lower.end, *size) = (upper.end, sum);
        }
    }
    groups.into_iter().map(|(group, _)| group).collect()
}

/// Gives an open file another name: a link on the same filesystem, else a copy.
fn put(file: &File, target: &Path) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, source, CWD, target, AtFlags::SYMLINK_FOLLOW) {
        // Another filesystem; or a file whose last name is gone; or more names than a file may have.
        Err(Errno::XDEV | Errno::NOENT | Errno::MLINK | Errno::PERM) => {
            let copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
            sparse::copy(file, &copy, file.metadata()?.len()).map(|_| ())
        }
        other => Ok(other?),
    }
}

fn open(path: &Path, writable: bool) -> Result<(File, u64), VmmError> {
    let failed = |source| VmmError::Io { context: format!("open the disk image {}", path.display()), source };
    let file = File::options().read(true).write(writable).open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    Ok((file, size))
}

fn invalid(context: &str, message: String) -> VmmError {
    VmmError::Refused { context: context.into(), message }
}

/// A machine's own overlay. It has no name where the filesystem can do that, so that not even a killed service leaves it
/// behind; else it is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    name: Option<PathBuf>,
}

impl Overlay {
    /// An empty one, whose name where it must have one is that of a snapshot's first.
    fn create(folder: &Path, size: u64) -> io::Result<Self> {
        let overlay = Self::new(folder, &overlay_name(0))?;
        qcow2::create(&overlay.file, size)?;
        Ok(overlay)
    }

    /// The file, to be read and written.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// An empty file, with a name where it must have one.
    pub(super) fn new(folder: &Path, name: &str) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::openat(CWD, folder, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Ok(Self { file: fd.into(), name: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let name = folder.join(name);
                let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&name)?;
                Ok(Self { file, name: Some(name) })
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = std::fs::remove_file(name)
        {
            tracing::warn!(%error, file = %name.display(), "a machine's disk overlay could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 4 << 20;

    fn own(work: &Path) -> Written {
        Written { top: Some((Overlay::create(work, SIZE).unwrap(), SIZE)), ..Written::default() }
    }

    #[test]
    fn an_overlay_leaves_nothing_until_it_is_published() {
        let (work, snapshot) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
        let written = own(work.path());
        let before = written.nameless_bytes();
        written.overlay_file().unwrap().write_all_at(&[1; 1 << 20], SIZE).unwrap();
        assert!(written.nameless_bytes() >= before + (1 << 20), "{before}, {}", written.nameless_bytes());
        drop(written);
        assert_eq!(files(work.path()), 0);
        let names = own(work.path()).publish(snapshot.path()).unwrap();
        assert_eq!((names, files(work.path()), files(snapshot.path())), (vec![overlay_name(0)], 0, 1));
        qcow2::verify(&File::open(snapshot.path().join(overlay_name(0))).unwrap(), SIZE).unwrap();
    }

    #[test]
    fn an_overlay_moves_to_another_filesystem_by_copy() {
        let (work, snapshot) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        own(work.path()).publish(snapshot.path()).unwrap();
        qcow2::verify(&File::open(snapshot.path().join(overlay_name(0))).unwrap(), SIZE).unwrap();
    }

    #[test]
    fn layers_outlive_the_folder_that_they_came_from_and_never_become_more_than_four() {
        const CLUSTER: usize = 64 << 10;
        let work = tempfile::tempdir().unwrap();
        let base = work.path().join("base.raw");
        std::fs::write(&base, [0; 1024]).unwrap();
        let mut overlays: Vec<PathBuf> = Vec::new();
        let mut folder = tempfile::tempdir().unwrap();
        for generation in 0..40_u64 {
            let disk = OpenDisk::restore(&base, &overlays, SIZE, work.path()).unwrap();
            assert!(disk.layers.len() <= MOST_OVERLAYS + 2, "{}", disk.layers.len());
            let place = generation % 30 * CLUSTER as u64;
            write_cluster(&disk.written.overlay_file().unwrap(), place, generation as u8 + 1);
            let next = tempfile::tempdir().unwrap();
            if generation % 2 == 0 {
                drop(std::mem::replace(&mut folder, tempfile::tempdir().unwrap())); // the older one is deleted
            }
            let names = disk.written.copy_to(next.path()).unwrap().publish(next.path()).unwrap();
            assert!(names.len() <= MOST_OVERLAYS, "{names:?}");
            assert_eq!(std::fs::read_dir(next.path()).unwrap().count(), names.len(), "files that nobody names");
            overlays = names.iter().map(|name| next.path().join(name)).collect();
            folder = next;
        }
        // Of each cluster, what was written last is seen.
        for place in 0..30_u8 {
            let last = if place < 10 { place + 31 } else { place + 1 };
            assert_eq!(seen(&overlays, u64::from(place) * CLUSTER as u64), Some(last), "cluster {place}");
        }
        assert_eq!(seen(&overlays, 31 * CLUSTER as u64), None);
    }

    /// Writes a cluster of a disk through an empty overlay's tables, as QEMU does.
    fn write_cluster(overlay: &File, place: u64, byte: u8) {
        let at = overlay.metadata().unwrap().len().next_multiple_of(64 << 10);
        let entry = [(at + (64 << 10)).to_be_bytes(), u64::from(u32::MAX).to_be_bytes()].concat();
        overlay.write_all_at(&at.to_be_bytes(), 3 * (64 << 10)).unwrap();
        overlay.write_all_at(&entry, at + place / (64 << 10) * 16).unwrap();
        overlay.write_all_at(&[byte; 64 << 10], at + (64 << 10)).unwrap();
    }

    /// The byte that a guest sees, where any overlay has one.
    fn seen(overlays: &[PathBuf], place: u64) -> Option<u8> {
        overlays.iter().rev().find_map(|path| {
            let file = File::open(path).unwrap();
            let parts = qcow2::allocated(&file, SIZE).unwrap();
            let changes = crate::DiskChanges::new(SIZE, parts, file);
            let mut byte = [0];
            changes.read_at(place, &mut byte).ok().map(|()| byte[0])
        })
    }

    #[test]
    fn an_older_snapshot_of_many_layers_becomes_one_of_four() {
        let work = tempfile::tempdir().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let layer = |index: u8| {
            let file = tempfile::tempfile().unwrap();
            qcow2::create(&file, SIZE).unwrap();
            write_cluster(&file, u64::from(index) * (64 << 10), index + 1);
            file
        };
        let written = Written { below: (0..15).map(layer).collect(), ..own(work.path()) };
        let names = written.copy_to(folder.path()).unwrap().publish(folder.path()).unwrap();
        let overlays: Vec<PathBuf> = names.iter().map(|name| folder.path().join(name)).collect();
        assert_eq!(overlays.len(), MOST_OVERLAYS);
        for index in 0..15_u8 {
            assert_eq!(seen(&overlays, u64::from(index) * (64 << 10)), Some(index + 1));
        }
    }

    proptest! {
        #[test]
        fn every_layer_is_in_one_group_and_large_ones_are_left_alone(
            sizes in prop::collection::vec(0..u64::MAX / 32, 1..20), large in any::<prop::sample::Index>()
        ) {
            let found = groups(&sizes);
            prop_assert!(found.len() <= MOST_OVERLAYS && !found.is_empty());
            let layers: Vec<usize> = found.iter().cloned().flatten().collect();
            prop_assert_eq!(layers, (0..sizes.len()).collect::<Vec<_>>());
            // One that is larger than all others together is copied only when there is no other way.
            let large = large.index(sizes.len());
            let mut sizes = sizes;
            sizes[large] = u64::MAX / 2;
            let found = groups(&sizes);
            prop_assert!(found.contains(&(large..large + 1)), "{:?}", found);
        }
    }

    #[test]
    fn a_named_overlay_goes_when_it_is_dropped() {
        let work = tempfile::tempdir().unwrap();
        let name = work.path().join(overlay_name(0));
        let file = File::options().read(true).write(true).create_new(true).open(&name).unwrap();
        drop(Overlay { file, name: Some(name.clone()) });
        assert!(!name.exists());
    }

    #[test]
    fn a_disk_smaller_than_its_image_is_refused() {
        let work = tempfile::tempdir().unwrap();
        let base = work.path().join("base.raw");
        std::fs::write(&base, [0; 1024]).unwrap();
        let error = OpenDisk::boot(&Disk::Overlay { base, size_bytes: 512 }, work.path()).unwrap_err().to_string();
        assert!(error.starts_with("a disk smaller than its image: 512 bytes are less than the 1024 of "), "{error}");
    }
}
