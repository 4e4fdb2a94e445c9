//! Disks and memory as files: copies that share blocks where the filesystem can, and holes instead of zeros.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom as Seeking, fallocate, ioctl_ficlone, seek};
use rustix::io::Errno;

use super::folder::Folder;

/// Granularity of holes: a page of the guest, a block of nearly every filesystem.
const PAGE: usize = 4096;
/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Makes `to`, a new file of `size` bytes (at least the source's), with the content of `source`, a file or a block
/// device: blocks are shared where the filesystem can, else data is copied and holes are not. Returns it opened.
pub(super) fn copy(source: &File, to: &Path, size: u64) -> io::Result<File> {
    let target = match reflink(source, to)? {
        Some(target) => target,
        None => {
            let target = create(to)?;
            copy_data(source, &target)?;
            target
        }
    };
    if target.metadata()?.len() < size {
        target.set_len(size)?;
    }
    Ok(target)
}

/// A new file that shares all its blocks with `source`; `None`, and no file, where the filesystem has no such thing.
pub(super) fn reflink(source: &File, to: &Path) -> io::Result<Option<File>> {
    let target = create(to)?;
    match ioctl_ficlone(&target, source) {
        Ok(()) => Ok(Some(target)),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {
            std::fs::remove_file(to)?;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// A file without a name in `folder`: it goes with its last descriptor.
pub(super) fn nameless(folder: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(folder)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let mut end = source.metadata()?.len();
    if end == 0 {
        // A block device.
        end = (&*source).seek(SeekFrom::End(0))?;
    }
    target.set_len(end)?;
    let mut at = 0;
    while at < end {
        let data = match seek(source, Seeking::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            // No knowledge of holes.
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let hole = seek(source, Seeking::Hole(data)).unwrap_or(end).min(end);
        copy_range(source, target, data, hole)?;
        at = hole.max(data + 1);
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, mut from: u64, to: u64) -> io::Result<()> {
    let mut in_kernel = true;
    let mut buffer = Vec::new();
    while from < to {
        let wanted = usize::try_from(to - from).unwrap_or(usize::MAX).min(64 * CHUNK);
        if in_kernel {
            let (mut read_at, mut write_at) = (from, from);
            match rustix::fs::copy_file_range(source, Some(&mut read_at), target, Some(&mut write_at), wanted) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(copied) => from += copied as u64,
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => in_kernel = false,
                Err(error) => return Err(error.into()),
            }
            continue;
        }
        buffer.resize(wanted.min(CHUNK), 0);
        let read = source.read_at(&mut buffer, from)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let read = buffer.get(..read).unwrap_or(&buffer);
        if read.iter().any(|byte| *byte != 0) {
            target.write_all_at(read, from)?;
        }
        from += read.len() as u64;
    }
    Ok(())
}

/// Gives pages that hold only zeros back to the filesystem. Returns how many bytes that were.
///
/// Firecracker writes a full snapshot's memory without holes; of a guest of 512 MiB most is never touched.
pub(super) fn punch_zeros(file: &File) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let (mut at, mut punched, mut zeros_from) = (0, 0, None);
    loop {
        let read = read_chunk(file, &mut buffer, at)?;
        for page in buffer.get(..read).unwrap_or_default().chunks(PAGE) {
            let zero = page.iter().all(|byte| *byte == 0);
            match (zero, zeros_from) {
                (true, None) => zeros_from = Some(at),
                (false, Some(from)) => {
                    punched += punch(file, from, at)?;
                    zeros_from = None;
                }
                _ => {}
            }
            at += page.len() as u64;
        }
        if read < buffer.len() {
            break;
        }
    }
    if let Some(from) = zeros_from {
        punched += punch(file, from, at)?;
    }
    Ok(punched)
}

fn read_chunk(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn punch(file: &File, from: u64, to: u64) -> io::Result<u64> {
    match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, to - from) {
        Ok(()) => Ok(to - from),
        // The file stays as it is: larger, not wrong.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Moves the regular file `name` out of a VMM's folder to `to`, makes it root's (or ours) and read-only, and returns it.
pub(super) fn take(folder: &Folder, name: &str, to: &Path) -> io::Result<File> {
    let file = folder.open_file(name)?;
    match folder.rename_out(name, to) {
        Ok(()) => {
            // The VMM still runs: what was moved must be what was checked.
            let moved = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(to);
            let same = moved.and_then(|moved| same_file(&file, &moved)).unwrap_or(false);
            if !same {
                let _ = std::fs::remove_file(to);
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} was exchanged")));
            }
            seal(&file)?;
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let target = create(to)?;
            copy_data(&file, &target)?;
            folder.remove(name);
            seal(&target)?;
            Ok(target)
        }
        Err(error) => Err(error),
    }
}

fn same_file(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (rustix::fs::fstat(a)?, rustix::fs::fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

/// The service's own, and for all to read: the VMMs that restore it have uids of their own, and no way to change it.
/// The folders above it decide who else gets there.
pub(super) fn seal(file: &File) -> io::Result<()> {
    rustix::fs::fchown(file, Some(rustix::process::geteuid()), Some(rustix::process::getegid()))?;
    file.set_permissions(Permissions::from_mode(0o444))
}

/// Writes a small new file, sealed.
pub(super) fn write_new(to: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(to)?;
    file.write_all(content)?;
    seal(&file)
}

/// Reads a file of at most `limit` bytes.
pub(super) fn read_small(from: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(from)?.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too long"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn sparse(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("base");
        let file = File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"start", 0).unwrap();
        file.write_all_at(&[7; 9000], 33 << 20).unwrap();
        path
    }

    #[test]
    fn a_copy_is_equal_longer_when_asked_and_as_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let base = sparse(dir.path());
        let to = dir.path().join("copy");
        let source = File::open(&base).unwrap();
        copy(&source, &to, 100 << 20).unwrap();
        let (a, b) = (std::fs::read(&base).unwrap(), std::fs::read(&to).unwrap());
        assert_eq!(b.len(), 100 << 20);
        assert!(a == b[..a.len()] && b[a.len()..].iter().all(|byte| *byte == 0));
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        // Another filesystem: neither reflink nor, on old kernels, copy_file_range.
        if let Ok(other) = tempfile::tempdir_in("/dev/shm") {
            copy(&source, &other.path().join("copy"), 0).unwrap();
            assert!(a == std::fs::read(other.path().join("copy")).unwrap());
        }
        assert!(copy(&source, &to, 0).is_err(), "an existing target is not overwritten");
    }

    #[test]
    fn zero_pages_become_holes_and_data_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let mut content = vec![0; (3 << 20) + 100];
        content[PAGE * 3] = 1;
        content[(2 << 20) - 1] = 2;
        std::fs::write(&path, &content).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let punched = punch_zeros(&file).unwrap();
        assert!(std::fs::read(&path).unwrap() == content);
        // All but two pages; the odd 100 bytes at the end are asked for too.
        assert_eq!(punched, content.len() as u64 - 2 * PAGE as u64);
        assert!(file.metadata().unwrap().blocks() * 512 <= 4 * PAGE as u64);
    }

    #[test]
    fn taking_seals_and_refuses_links() {
        let dir = tempfile::tempdir().unwrap();
        let jail = dir.path().join("jail");
        std::fs::create_dir(&jail).unwrap();
        std::fs::write(jail.join("state"), "s").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", jail.join("memory")).unwrap();
        let folder = Folder::open(&jail).unwrap();
        let to = dir.path().join("state");
        take(&folder, "state", &to).unwrap();
        assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o444);
        assert!(!jail.join("state").exists());
        assert!(take(&folder, "memory", &dir.path().join("memory")).is_err());
        assert!(!dir.path().join("memory").exists());
    }
}
