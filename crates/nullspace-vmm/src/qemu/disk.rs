//! A machine's disk: layers of files, the topmost its own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::args::{Format, Layer};
use crate::{Disk, VmmError, qcow2, sparse};

/// The overlay's name in a snapshot's folder, and in a working folder whose filesystem knows no nameless files.
pub(super) const OVERLAY: &str = "disk.qcow2";

/// Layers for QEMU, and what is kept of the disk on our side.
#[derive(Debug)]
pub(super) struct OpenDisk {
    pub(super) layers: Vec<Layer>,
    /// As the guest sees it, bytes.
    pub(super) size: u64,
    /// The machine's own overlay; `None` when it writes to a raw image directly.
    pub(super) overlay: Option<Overlay>,
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
                Self::with_overlay(layers, *size_bytes, work_dir)
            }
            Disk::Direct { path } => {
                let (file, size) = open(path, true)?;
                if size == 0 || !size.is_multiple_of(512) {
                    return Err(invalid("a disk image", format!("{} has {size} bytes", path.display())));
                }
                let layers = vec![Layer { file: file.into(), format: Format::Raw, writable: true }];
                Ok(Self { layers, size, overlay: None })
            }
        }
    }

    /// The disk of a restored machine: the raw image, what the snapshotted machine wrote over it, and an empty overlay.
    /// Blocks.
    pub(super) fn restore(base: &Path, written: Option<&Path>, size: u64, work_dir: &Path) -> Result<Self, VmmError> {
        let (file, _) = open(base, false)?;
        let mut layers = vec![Layer { file: file.into(), format: Format::Raw, writable: false }];
        if let Some(path) = written {
            let (file, _) = open(path, false)?;
            qcow2::verify(&file, size).map_err(|error| VmmError::Incompatible(error.to_string()))?;
            layers.push(Layer { file: file.into(), format: Format::Qcow2, writable: false });
        }
        Self::with_overlay(layers, size, work_dir)
    }

    fn with_overlay(mut layers: Vec<Layer>, size: u64, work_dir: &Path) -> Result<Self, VmmError> {
        let failed =
            |source| VmmError::Io { context: format!("make a disk overlay in {}", work_dir.display()), source };
        let overlay = Overlay::create(work_dir, size).map_err(failed)?;
        let file = overlay.file.try_clone().map_err(failed)?;
        layers.push(Layer { file: file.into(), format: Format::Qcow2, writable: true });
        Ok(Self { layers, size, overlay: Some(overlay) })
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
    fn create(folder: &Path, size: u64) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let overlay = match rustix::fs::openat(CWD, folder, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Self { file: fd.into(), name: None },
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let name = folder.join(OVERLAY);
                let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&name)?;
                Self { file, name: Some(name) }
            }
            Err(error) => return Err(error.into()),
        };
        qcow2::create(&overlay.file, size)?;
        Ok(overlay)
    }

    /// Checks the overlay and gives it a name in `folder`: a link on the same filesystem, else a copy. Blocks.
    pub(super) fn publish(mut self, folder: &Path, size: u64) -> io::Result<()> {
        qcow2::verify(&self.file, size)?;
        let target = folder.join(OVERLAY);
        let linked = match &self.name {
            Some(name) => std::fs::rename(name, &target),
            None => {
                let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
                rustix::fs::linkat(CWD, source, CWD, &target, AtFlags::SYMLINK_FOLLOW).map_err(io::Error::from)
            }
        };
        match linked {
            Ok(()) => {
                self.name = None;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
                sparse::copy(&self.file, &copy, self.file.metadata()?.len()).map(|_| ())
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = std::fs::remove_file(name)
        {
            tracing::warn!(%error, file = %name.display(), "remove a machine's disk overlay");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 4 << 20;

    #[test]
    fn an_overlay_leaves_nothing_until_it_is_published() {
        let (work, snapshot) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
        drop(Overlay::create(work.path(), SIZE).unwrap());
        assert_eq!(files(work.path()), 0);
        let overlay = Overlay::create(work.path(), SIZE).unwrap();
        overlay.publish(snapshot.path(), SIZE).unwrap();
        assert_eq!((files(work.path()), files(snapshot.path())), (0, 1));
        qcow2::verify(&File::open(snapshot.path().join(OVERLAY)).unwrap(), SIZE).unwrap();
    }

    #[test]
    fn an_overlay_moves_to_another_filesystem_by_copy() {
        let (work, snapshot) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        Overlay::create(work.path(), SIZE).unwrap().publish(snapshot.path(), SIZE).unwrap();
        qcow2::verify(&File::open(snapshot.path().join(OVERLAY)).unwrap(), SIZE).unwrap();
    }

    #[test]
    fn a_named_overlay_goes_when_it_is_dropped() {
        let work = tempfile::tempdir().unwrap();
        let name = work.path().join(OVERLAY);
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
