//! The stage: a namespace that plays the host, one outside of it, and guests at the far ends of leases' taps.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nullspace_vmm::net::{GUEST_MAC, NetConfig, NetLease, NetPool};

pub(crate) const PUBLIC: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
pub(crate) const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
pub(crate) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 53);

pub(crate) fn config() -> NetConfig {
    NetConfig { resolvers: vec![RESOLVER], ..NetConfig::default() }
}

/// Runs `test` with a runtime whose every thread is in a fresh namespace that plays the host.
pub(crate) fn in_a_host<F, Fut>(test: F)
where
    F: FnOnce(OwnedFd) -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let body = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let outside = in_new_namespace();
        sh("ip link set lo up");
        // The peer is made here and moved by descriptor.
        let path = format!("/proc/{}/fd/{}", std::process::id(), outside.as_raw_fd());
        sh(&format!(
            "ip link add wan0 type veth peer name eth0 netns {path} && ip addr add 93.184.216.1/24 dev wan0 \
             && ip link set wan0 up && ip route add default via {PUBLIC}"
        ));
        in_namespace(outside.as_fd(), || {
            sh(&format!(
                "ip link set lo up; ip addr add {PUBLIC}/24 dev eth0; ip addr add {PRIVATE}/32 dev eth0; \
                 ip addr add {METADATA}/32 dev eth0; ip addr add {RESOLVER}/32 dev eth0; ip link set eth0 up"
            ));
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Held here too: a test that does not use it must not end it.
        let held = outside.try_clone().unwrap();
        runtime.block_on(test(outside));
        drop(held);
    });
    if let Err(panic) = body.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A guest's network stack at the far end of a lease's tap.
pub(crate) struct Guest {
    pub(crate) namespace: OwnedFd,
}

impl Guest {
    pub(crate) fn attach(lease: &mut NetLease) -> Self {
        let near = File::from(lease.take_tap().unwrap());
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let far = open_tap("eth0");
            let guest = NetPool::guest_network();
            sh(&format!(
                "ip link set lo up; ip link set eth0 address {GUEST_MAC}; ip addr add {} dev eth0; \
                 ip link set eth0 up; ip route add default via {}",
                guest.address,
                guest.gateway.unwrap()
            ));
            sender.send((far, here())).unwrap();
        });
        let (far, namespace) = receiver.recv().unwrap();
        wire(near.try_clone().unwrap(), far.try_clone().unwrap());
        wire(far, near);
        Self { namespace }
    }

    pub(crate) fn inside<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        in_namespace(self.namespace.as_fd(), f)
    }

    pub(crate) fn run(&self, script: &'static str) {
        self.inside(move || sh(script));
    }

    pub(crate) fn connect(&self, address: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
        self.inside(move || TcpStream::connect_timeout(&(address, port).into(), Duration::from_millis(1500)))
    }

    /// Connects and reads what the server says. What is not answered at all is given up soon: an answer may take longer.
    pub(crate) fn ask(&self, address: Ipv4Addr, port: u16) -> std::io::Result<String> {
        self.inside(move || {
            let limit = Duration::from_millis(1500);
            let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), limit)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }
}

/// Carries frames one way, until the devices go.
pub(crate) fn wire(mut from: File, mut to: File) {
    thread::spawn(move || {
        let mut frame = [0; 66_000];
        while let Ok(length) = from.read(&mut frame) {
            if to.write(&frame[..length]).is_err() {
                return;
            }
        }
    });
}

#[allow(unsafe_code, reason = "a tap is opened by an ioctl")]
pub(crate) fn open_tap(name: &str) -> File {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = u16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes an `ifreq` of 40 bytes.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), 0x4004_54ca, request.as_mut_ptr()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    file
}

/// Answers every connection with the address that it comes from.
pub(crate) fn answer(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            if let Ok(peer) = stream.peer_addr() {
                let _ = stream.write_all(peer.ip().to_string().as_bytes());
            }
        }
    });
}

pub(crate) fn serve(namespace: std::os::fd::BorrowedFd<'_>, port: u16) {
    answer(in_namespace(namespace, move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()));
}

pub(crate) fn serve_here(port: u16) {
    answer(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
}

pub(crate) fn here() -> OwnedFd {
    File::open("/proc/thread-self/ns/net").unwrap().into()
}

pub(crate) fn in_new_namespace() -> OwnedFd {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        here()
    })
    .join()
    .unwrap()
}

pub(crate) fn in_namespace<T: Send + 'static>(
    namespace: std::os::fd::BorrowedFd<'_>,
    f: impl FnOnce() -> T + Send + 'static,
) -> T {
    let namespace = namespace.try_clone_to_owned().unwrap();
    thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        f()
    })
    .join()
    .unwrap()
}

pub(crate) fn sh(script: &str) {
    let done = Command::new("sh").args(["-ec", script]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().unwrap();
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
}

/// What could leak on the host: interfaces, rules, the forwarding switch.
pub(crate) fn state() -> (Vec<String>, String, String) {
    let names = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = names.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect();
    let rules = Command::new("/usr/sbin/nft").args(["list", "ruleset"]).output().unwrap();
    (
        names,
        String::from_utf8_lossy(&rules.stdout).into_owned(),
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
    )
}
