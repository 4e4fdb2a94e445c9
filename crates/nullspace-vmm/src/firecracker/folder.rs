//! The folder that a VMM sees as its root, which it may write to: whatever lies in it may be a trap.
//!
//! A VMM that a guest has taken over can put a symbolic link where the service expects a socket or a snapshot file.
//! So names in it are opened without following links, checked for their kind, and used by descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use tokio::net::UnixStream;

use crate::VmmError;

/// A held folder. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Folder(Arc<OwnedFd>);

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Self, VmmError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
            .map(|fd| Self(Arc::new(fd)))
            .map_err(|e| VmmError::Io { context: format!("open {}", path.display()), source: e.into() })
    }

    /// Connects to the socket `name`. Through descriptors, which also keeps the path within a socket address's 108 bytes.
    pub(super) async fn connect(&self, name: &str) -> io::Result<UnixStream> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let socket = rustix::fs::openat(self.0.as_fd(), name, flags, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode);
        if kind != FileType::Socket {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is no socket")));
        }
        UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
    }

    /// Opens the regular file `name` for reading and writing; it must be the only name of its file.
    pub(super) fn open_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.0.as_fd(), name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is no file of its own")));
        }
        Ok(file.into())
    }

    /// Moves `name` to the path `to` on the same filesystem.
    pub(super) fn rename_out(&self, name: &str, to: &Path) -> io::Result<()> {
        rustix::fs::renameat(self.0.as_fd(), name, rustix::fs::CWD, to)?;
        Ok(())
    }

    /// Removes `name` when it is there.
    pub(super) fn remove(&self, name: &str) {
        let _ = rustix::fs::unlinkat(self.0.as_fd(), name, rustix::fs::AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn links_and_other_kinds_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let target = elsewhere.path().join("secret");
        std::fs::write(&target, "x").unwrap();
        let _listener = tokio::net::UnixListener::bind(elsewhere.path().join("sock")).unwrap();
        symlink(&target, dir.path().join("memory")).unwrap();
        symlink(elsewhere.path().join("sock"), dir.path().join("v.sock")).unwrap();
        std::fs::hard_link(&target, dir.path().join("state")).unwrap();
        std::fs::write(dir.path().join("plain"), "y").unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert!(folder.open_file("memory").is_err());
        assert!(folder.open_file("state").is_err());
        assert!(folder.open_file("plain").is_ok());
        assert!(folder.connect("v.sock").await.is_err());
        assert!(folder.connect("plain").await.is_err());
        let _here = tokio::net::UnixListener::bind(dir.path().join("api.sock")).unwrap();
        assert!(folder.connect("api.sock").await.is_ok());
    }
}
