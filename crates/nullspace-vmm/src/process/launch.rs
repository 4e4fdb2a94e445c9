//! The description of a child: its program, its descriptors, and the walls around it.

use std::ffi::{CString, OsString};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// A program to run, and what stands around it.
#[derive(Debug)]
pub(crate) struct Launch {
    /// The program's file.
    pub(crate) program: PathBuf,
    /// Its arguments, without its name.
    pub(crate) args: Vec<OsString>,
    /// Its working folder, by its path in the child's mount namespace.
    pub(crate) directory: PathBuf,
    /// stdout and stderr.
    pub(crate) output: OwnedFd,
    /// Descriptors that keep their number in the child, and the only ones besides 0-2.
    pub(crate) inherit: Vec<OwnedFd>,
    /// The network namespace to enter.
    pub(crate) network: Option<OwnedFd>,
    /// The other namespaces.
    pub(crate) namespaces: Namespaces,
    /// `None`: the program confines itself, as the jailer does, or runs as the service does.
    pub(crate) confinement: Option<Confinement>,
}

/// Namespaces of a child besides its network's. All but [`Self::Host`] need root.
#[derive(Debug)]
pub(crate) enum Namespaces {
    /// The service's own.
    Host,
    /// A PID namespace, whose end ends everything in it, and a copy of the host's mounts with files bound in it. The
    /// mounts go with the last process, whatever ends it.
    Bound(Vec<Bind>),
    /// PID, mount, IPC and UTS namespaces, with a `/proc` of their own.
    Own {
        /// The mount namespace to copy; `None`: the host's.
        tree: Option<OwnedFd>,
        /// Where [`Launch::network`] names no network namespace: an empty one, instead of the host's.
        offline: bool,
    },
}

/// A file that is shown at another place.
#[derive(Debug)]
pub(crate) struct Bind {
    /// The file.
    pub(crate) from: CString,
    /// The path where it appears: an existing empty file.
    pub(crate) to: CString,
    /// False: the child cannot write to it there.
    pub(crate) writable: bool,
}

/// The rights of a child that the service itself confines.
#[derive(Debug)]
pub(crate) struct Confinement {
    /// Control groups to enter, by their `cgroup.procs`. Without one the child is made nice instead, so that the service
    /// gets the processors before it.
    pub(crate) groups: Vec<OwnedFd>,
    /// Needs root. `None`: it runs as us.
    pub(crate) identity: Option<Identity>,
    /// Longest file that it may write, bytes.
    pub(crate) file_limit: u64,
    /// The Landlock ruleset to be restricted by.
    pub(crate) ruleset: Option<OwnedFd>,
}

/// The user and groups of a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its uid and gid.
    pub(crate) id: u32,
    /// Its only supplementary group.
    pub(crate) group: Option<u32>,
}
