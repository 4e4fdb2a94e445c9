//! The agent's transports: virtio-serial and vsock.

#![allow(unsafe_code, reason = "vsock sockets are made with structures of the C library")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::agent::Agent;
use crate::connection::serve;
use crate::log;
use crate::stream::{Stream, StreamKind};

/// Name of the virtio-serial port.
const PORT_NAME: &str = "nullspace.agent";
/// vsock port that the agent listens on.
const VSOCK_PORT: u32 = 1024;
/// The host's address; no other is let in.
const HOST_CID: u32 = 2;
/// Device id of vsock in the virtio specification, section 5.
const VIRTIO_VSOCK: &str = "0x0013";
/// How often devices are looked for until one is there.
const LOOK_EVERY: Duration = Duration::from_millis(2);
// The C library has the constant as `int` and lengths as `usize`, and the structures and calls have narrower fields.
const AF_VSOCK: libc::sa_family_t = 40;
const ADDRESS_LEN: libc::socklen_t = 16;
const _: () = assert!(libc::AF_VSOCK == 40 && size_of::<libc::sockaddr_vm>() == 16);
/// Rest after a failure, so that a broken device does not cost the guest a CPU.
const REST: Duration = Duration::from_millis(100);

/// An open transport: opened before the root is entered, which may have no /dev worth the name.
#[derive(Debug)]
pub(crate) enum Transport {
    /// QEMU: a virtio-serial port.
    Port(PathBuf, Option<OwnedFd>),
    /// Firecracker: a listening vsock.
    Vsock(OwnedFd),
}

/// Waits for a transport's device and opens it.
pub(crate) fn open() -> Transport {
    let mut looks = 0u32;
    loop {
        if let Some(path) = find_port() {
            match open_port(&path) {
                Ok(fd) => return Transport::Port(path, Some(fd)),
                Err(error) => log::problem(format_args!("{}: {error}", path.display())),
            }
        } else if has_vsock() {
            match listen() {
                Ok(fd) => return Transport::Vsock(fd),
                Err(error) => log::problem(format_args!("vsock: {error}")),
            }
        }
        looks = looks.saturating_add(1);
        if looks == 5000 {
            log::problem(format_args!("no port {PORT_NAME} and no vsock device: the host cannot reach this guest"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn entries(folder: &str) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

fn find_port() -> Option<PathBuf> {
    let named = |path: &PathBuf| fs::read_to_string(path.join("name")).is_ok_and(|name| name.trim() == PORT_NAME);
    Some(Path::new("/dev").join(entries("/sys/class/virtio-ports").find(named)?.file_name()?))
}

fn open_port(path: &Path) -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open(path)?.into())
}

fn has_vsock() -> bool {
    entries("/sys/bus/virtio/devices")
        .any(|path| fs::read_to_string(path.join("device")).is_ok_and(|id| id.trim() == VIRTIO_VSOCK))
}

fn listen() -> io::Result<OwnedFd> {
    // SAFETY: plain system calls; the address is a valid `sockaddr_vm` of the length given.
    unsafe {
        let raw = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = OwnedFd::from_raw_fd(raw);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = AF_VSOCK;
        address.svm_port = VSOCK_PORT;
        address.svm_cid = libc::VMADDR_CID_ANY;
        let len = ADDRESS_LEN;
        if libc::bind(raw, (&raw const address).cast(), len) != 0 || libc::listen(raw, 8) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(fd)
    }
}

fn accept(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    // SAFETY: plain system calls; the kernel writes at most `len` bytes into `address`.
    unsafe {
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        let mut len = ADDRESS_LEN;
        let raw = libc::accept4(listener.as_raw_fd(), (&raw mut address).cast(), &mut len, libc::SOCK_CLOEXEC);
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = OwnedFd::from_raw_fd(raw);
        Ok((address.svm_cid == HOST_CID).then_some(fd))
    }
}

/// Serves the agent; comes back only when the transport fails, to be called again.
pub(crate) fn run(agent: &Arc<Agent>, transport: &mut Transport) {
    let failed = match transport {
        Transport::Port(path, opened) => {
            let fd = opened.take().map_or_else(|| open_port(path), Ok);
            fd.and_then(|fd| Stream::new(fd, StreamKind::Port)).and_then(|stream| serve(agent, &Arc::new(stream)))
        }
        Transport::Vsock(listener) => accept_connections(agent, listener),
    };
    if let Err(error) = failed {
        log::problem(format_args!("agent transport: {error}"));
    }
    std::thread::sleep(REST);
}

/// One connection at a time, the newest: after a restore the one from before the snapshot may look alive for a while.
fn accept_connections(agent: &Arc<Agent>, listener: &OwnedFd) -> io::Result<()> {
    let mut current: Option<Arc<Stream>> = None;
    loop {
        let Some(fd) = accept(listener)? else { continue };
        let stream = Arc::new(Stream::new(fd, StreamKind::Connection)?);
        if let Some(older) = current.replace(stream.clone()) {
            older.shut_down();
        }
        let agent = agent.clone();
        std::thread::Builder::new().name("connection".into()).spawn(move || {
            // A lost connection is the host's business: it connects again.
            let _ = serve(&agent, &stream);
        })?;
    }
}
