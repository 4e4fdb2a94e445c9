//! The walls around a VMM: the namespaces, the file tree and the Landlock rules that leave it only its descriptors.
//!
//! ```text
//!   root   namespaces   PID, IPC and UTS of its own; a mount namespace whose root is a read-only tmpfs with
//!                         /usr /lib* /bin /sbin   the host's, read-only      /dev/{null,urandom,kvm}
//!                         /proc                   of its own PID namespace   nothing else
//!          Landlock     reads those, writes only the files it was given, no sockets by name, no signals
//!   user   Landlock     the same, over the host's own tree
//! ```
//! Landlock's rules are made from the host's files, so within the tree they cover neither its root folder nor its /proc: a
//! VMM lists neither and reads nothing there, but still opens the files that it was given by `/proc/self/fd`.
//!
//! The mount namespace is made once ([`Tree`]) and copied by each VMM, which costs it no unmounting. With QEMU's user
//! network a VMM keeps the host's tree, because the resolver's configuration may be replaced at any time; Landlock then
//! lets it read /etc besides.
//!
//! A kernel that lacks one of these does without, and [`Walls::describe`] says so. Whether all of it suits the program is
//! tried with `--version` when a driver starts.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
    make_bitflags,
};

use crate::process::Namespaces;

/// The newest Landlock that is made use of; older kernels give what they have.
const LANDLOCK: ABI = ABI::V6;
/// The folder where the tree is mounted; in the host's own mount namespace it stays empty.
const PLACE: &str = "/run/nullspace/root";
/// Folders with programs and libraries.
const SYSTEM: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32"];
/// Files that a dynamic linker reads besides.
const LINKER: [&str; 2] = ["/etc/ld.so.cache", "/etc/alternatives"];
/// Files that a resolver reads (QEMU's user network).
const RESOLVER: [&str; 4] = ["/etc", "/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf"];
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/urandom", "/dev/kvm"];

/// The walls around the VMMs of one program.
#[derive(Debug, Clone)]
pub(crate) struct Walls {
    tree: Option<Arc<Tree>>,
    namespaces: bool,
    landlock: Option<Arc<Allowed>>,
    /// Missing walls, each with its reason.
    missing: Vec<String>,
}

/// The walls of one VMM; see [`Walls::around`].
#[derive(Debug)]
pub(crate) struct Around {
    /// PID, IPC, UTS and mount namespaces of its own, or none.
    pub(crate) namespaces: Namespaces,
    /// The Landlock ruleset to be restricted by.
    pub(crate) ruleset: Option<OwnedFd>,
}

/// Files that may be opened by name.
#[derive(Debug)]
struct Allowed {
    paths: Vec<(OwnedFd, BitFlags<AccessFs>)>,
    resolver: Vec<OwnedFd>,
}

/// A mount namespace with nothing in it but what a VMM's program needs.
#[derive(Debug)]
struct Tree {
    namespace: OwnedFd,
}

impl Walls {
    /// All that this kernel and this user can make for `program`. Blocks.
    pub(crate) fn new(program: &Path) -> Self {
        let mut missing = Vec::new();
        let root = rustix::process::geteuid().is_root();
        let tree = match root.then(|| Tree::make(program)) {
            Some(Ok(tree)) => Some(Arc::new(tree)),
            Some(Err(error)) => {
                missing.push(format!("a root folder of its own ({error})"));
                None
            }
            None => {
                missing.push("namespaces (not root)".to_owned());
                None
            }
        };
        let landlock = match Allowed::open(program) {
            Ok(Some(allowed)) => Some(Arc::new(allowed)),
            Ok(None) => {
                missing.push("Landlock (the kernel has none, or it is not among the boot parameter lsm=)".to_owned());
                None
            }
            Err(error) => {
                missing.push(format!("Landlock ({error})"));
                None
            }
        };
        Self { tree, namespaces: root, landlock, missing }
    }

    /// The same without one of them, for a program that does not start within all; `None` when there is nothing left to
    /// leave out.
    pub(crate) fn fewer(&self, why: &str) -> Option<Self> {
        let mut fewer = self.clone();
        if fewer.tree.take().is_some() {
            fewer.missing.push(format!("a root folder of its own ({why})"));
        } else if fewer.landlock.take().is_some() {
            fewer.missing.push(format!("Landlock ({why})"));
        } else if std::mem::take(&mut fewer.namespaces) {
            fewer.missing.push(format!("namespaces ({why})"));
        } else {
            return None;
        }
        Some(fewer)
    }

    /// For one VMM that is given `files`, which it may open again by `/proc/self/fd` as they are open now. One with a
    /// user network may read the resolver's configuration, and connect to the network. One without has no network but that of
    /// the namespace that it is given.
    pub(crate) fn around(&self, files: &[OwnedFd], user_network: bool) -> io::Result<Around> {
        let tree = self.tree.as_ref().filter(|_| !user_network);
        let tree = tree.map(|tree| tree.namespace.try_clone()).transpose()?;
        let ruleset = match &self.landlock {
            Some(allowed) => allowed.ruleset(files, user_network)?,
            None => None,
        };
        let namespaces =
            if self.namespaces { Namespaces::Own { tree, offline: !user_network } } else { Namespaces::Host };
        Ok(Around { namespaces, ruleset })
    }

    /// For people: what there is.
    pub(crate) fn describe(&self) -> String {
        let mut parts = Vec::new();
        if self.namespaces {
            parts.push("PID, IPC, UTS and mount namespaces");
        }
        if self.tree.is_some() {
            parts.push("a root folder of its own");
        }
        if self.landlock.is_some() {
            parts.push("Landlock");
        }
        if parts.is_empty() { "no namespaces, no Landlock".to_owned() } else { parts.join(", ") }
    }

    /// For people: what there is not, each with why.
    pub(crate) fn missing(&self) -> &[String] {
        &self.missing
    }
}

impl Allowed {
    /// `None` when the kernel has no Landlock.
    fn open(program: &Path) -> io::Result<Option<Self>> {
        let read = AccessFs::from_read(LANDLOCK);
        let device = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});
        let mut paths = Vec::new();
        let folders = SYSTEM.iter().chain(&LINKER).map(PathBuf::from).chain(own_folders(program));
        for (path, access) in folders
            .map(|path| (path, read))
            .chain([(PathBuf::from("/proc"), make_bitflags!(AccessFs::{ReadFile | ReadDir}))])
            .chain(DEVICES.iter().map(|path| (PathBuf::from(path), device)))
        {
            if let Some(fd) = place(&path)? {
                paths.push((fd, access));
            }
        }
        let resolver = RESOLVER
            .iter()
            .filter_map(|path| place(Path::new(path)).transpose())
            .collect::<io::Result<Vec<OwnedFd>>>()?;
        let allowed = Self { paths, resolver };
        // Whether there is a Landlock is known by asking for a ruleset.
        Ok(allowed.ruleset(&[], false)?.map(|_| allowed))
    }

    fn ruleset(&self, files: &[OwnedFd], user_network: bool) -> io::Result<Option<OwnedFd>> {
        let make = || {
            let mut ruleset =
                Ruleset::default().handle_access(AccessFs::from_all(LANDLOCK))?.scope(Scope::from_all(LANDLOCK))?;
            if !user_network {
                ruleset = ruleset.handle_access(AccessNet::from_all(LANDLOCK))?;
            }
            let mut ruleset = ruleset.create()?;
            for (fd, access) in &self.paths {
                ruleset = ruleset.add_rule(PathBeneath::new(fd.as_fd(), *access))?;
            }
            for fd in self.resolver.iter().filter(|_| user_network) {
                ruleset = ruleset.add_rule(PathBeneath::new(fd.as_fd(), AccessFs::from_read(LANDLOCK)))?;
            }
            for file in files {
                if let Some(access) = access_of(file) {
                    ruleset = ruleset.add_rule(PathBeneath::new(file.as_fd(), access))?;
                }
            }
            Ok::<Option<OwnedFd>, landlock::RulesetError>(ruleset.into())
        };
        make().map_err(io::Error::other)
    }
}

/// Returns the access that a regular file's descriptor is open for; `None` for anything else, which is not opened by name.
fn access_of(file: &OwnedFd) -> Option<BitFlags<AccessFs>> {
    let stat = rustix::fs::fstat(file).ok()?;
    // Not linked anywhere: anonymous memory and unnamed files are beyond rules.
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile || stat.st_nlink == 0 {
        return None;
    }
    let flags = rustix::fs::fcntl_getfl(file).ok()?;
    let writes = flags.intersects(rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::RDWR);
    Some(match writes {
        true => make_bitflags!(AccessFs::{ReadFile | WriteFile}),
        false => AccessFs::ReadFile.into(),
    })
}

/// A handle on a path; `None` when it is not there.
fn place(path: &Path) -> io::Result<Option<OwnedFd>> {
    match OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path) {
        Ok(file) => Ok(Some(file.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the folders of a program outside the system's own: its prefix, and the store of its libraries.
fn own_folders(program: &Path) -> Vec<PathBuf> {
    let Ok(program) = program.canonicalize() else { return Vec::new() };
    if SYSTEM.iter().any(|folder| program.starts_with(folder)) {
        return Vec::new();
    }
    for store in ["/nix/store", "/gnu/store"] {
        if program.starts_with(store) {
            return vec![store.into()];
        }
    }
    let Some(folder) = program.parent() else { return Vec::new() };
    let prefix = folder.parent().filter(|prefix| folder.ends_with("bin") && prefix.parent().is_some());
    vec![prefix.unwrap_or(folder).to_owned()]
}

impl Tree {
    /// Puts the tree together in a thread of its own, whose mount namespace it is.
    fn make(program: &Path) -> io::Result<Self> {
        fs::create_dir_all(PLACE)?;
        let more = own_folders(program);
        let thread = std::thread::Builder::new().name("nullspace-tree".into()).spawn(move || build(&more))?;
        let namespace = thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that made it has ended")))?;
        Ok(Self { namespace })
    }
}

/// Leaves the calling thread in the new mount namespace.
fn build(more: &[PathBuf]) -> io::Result<OwnedFd> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    let namespace = File::open("/proc/thread-self/ns/mnt")?;
    let root = Path::new(PLACE);
    mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_PRIVATE, None)?;
    mount(Some("tmpfs"), root, Some("tmpfs"), libc::MS_NOSUID | libc::MS_NOEXEC, Some("mode=755,size=256k"))?;
    for path in SYSTEM.iter().chain(&LINKER).map(PathBuf::from).chain(more.iter().cloned()) {
        show(root, &path, true)?;
    }
    for device in DEVICES {
        show(root, Path::new(device), false)?;
    }
    fs::create_dir(root.join("proc"))?;
    let sealed =
        libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(None, root, None, sealed, None)?;
    nix::unistd::chdir(root)?;
    // The old root lies over the new one then, and goes (pivot_root(2)).
    nix::unistd::pivot_root(".", ".")?;
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH)?;
    Ok(namespace.into())
}

/// Shows a path of the host at the same place below `root`; a link as a link, what is not there not at all.
fn show(root: &Path, path: &Path, read_only: bool) -> io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let target = root.join(path.strip_prefix("/").unwrap_or(path));
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if meta.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(path)?, &target);
    }
    if meta.is_dir() {
        fs::create_dir_all(&target)?;
    } else {
        File::create(&target)?;
    }
    mount(path.to_str(), &target, None, libc::MS_BIND | libc::MS_REC, None)?;
    if read_only {
        seal(&target)?;
    }
    Ok(())
}

/// Makes a mount and those below it read-only, without devices and set-uid programs.
#[allow(unsafe_code, reason = "mount_setattr has no safe wrapper here")]
fn seal(target: &Path) -> io::Result<()> {
    let path = c_path(target)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: a NUL-terminated path and a struct of the size that is given, both alive past the call.
    let sealed = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if sealed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn mount(
    source: Option<&str>,
    target: &Path,
    kind: Option<&str>,
    flags: libc::c_ulong,
    options: Option<&str>,
) -> io::Result<()> {
    let flags = nix::mount::MsFlags::from_bits_retain(flags);
    nix::mount::mount(source, target, kind, flags, options).map_err(|error| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("mount {}: {error}", target.display()))
    })
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_its_own_prefix_is_shown_with_it() {
        assert!(own_folders(Path::new("/bin/sh")).is_empty());
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().canonicalize().unwrap().join("bin");
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("vmm"), "").unwrap();
        assert_eq!(own_folders(&bin.join("vmm")), [bin.parent().unwrap()]);
        fs::write(folder.path().join("vmm"), "").unwrap();
        assert_eq!(own_folders(&folder.path().join("vmm")), [bin.parent().unwrap()]);
    }

    #[test]
    fn only_files_with_a_name_are_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        fs::write(&path, "").unwrap();
        assert_eq!(access_of(&File::open(&path).unwrap().into()), Some(AccessFs::ReadFile.into()));
        let written: OwnedFd = OpenOptions::new().read(true).write(true).open(&path).unwrap().into();
        assert_eq!(access_of(&written), Some(make_bitflags!(AccessFs::{ReadFile | WriteFile})));
        assert_eq!(access_of(&tempfile::tempfile().unwrap().into()), None);
        assert_eq!(access_of(&File::open("/dev/null").unwrap().into()), None);
    }
}
