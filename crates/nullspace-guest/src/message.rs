//! Messages, as JSON in OPEN, REPLY, END and HELLO frames.
//!
//! Bytes that may not be text (entropy) travel as base64; process output travels in DATA frames, never here.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use crate::capability::AGENT_ABI;
use crate::capability::{Capability, OLDEST_AGENT_ABI};
use crate::file::{self, FileCall, FileEntry, FileOp};
use crate::search::{Replaced, Searched};
use crate::terminal::{OpenTerminal, Terminal, TerminalSize};
use crate::upload::{UploadCall, UploadRefusal, UploadState};
use crate::watch::WatchCall;

/// Milliseconds between the SIGTERM that a process's timeout sends and the SIGKILL that follows.
pub const KILL_AFTER_MS: u64 = 1000;

/// Milliseconds that a connection to a port may take to open.
pub const DIAL_LIMIT_MS: u64 = 5000;

/// Milliseconds that all resume hooks and the resume command of a restored guest may take together.
pub const RESUME_LIMIT_MS: u64 = 30_000;

/// Start of [`AgentInfo::root_error`] when the root has no space for the files that a machine needs.
pub const ROOT_FULL: &str = "its disk is full";

/// The agent's description of itself and its guest, in HELLO_ACK.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct AgentInfo {
    /// Interface version ([`AGENT_ABI`]) of the agent that runs in the guest.
    pub abi: u32,
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// Kernel's boot id: new per boot, kept by a snapshot.
    pub boot_id: String,
    /// True when the root filesystem is mounted and operations on it may be asked for.
    pub root_ready: bool,
    /// The reason why the root could not be mounted, if it could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_error: Option<String>,
    /// Things that the agent can do; `None`: the agent is of version 6, see [`AgentInfo::can`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<BTreeSet<Capability>>,
}

impl AgentInfo {
    /// True when the agent has this capability. An agent that tells none has those of version 6.
    pub fn can(&self, capability: Capability) -> bool {
        match &self.capabilities {
            Some(told) => told.contains(&capability),
            None => Capability::OF_VERSION_6.contains(&capability),
        }
    }

    /// True when this build's host speaks this agent's interface version.
    pub fn is_spoken(&self) -> bool {
        (OLDEST_AGENT_ABI..=AGENT_ABI).contains(&self.abi)
    }
}

/// The operation that the host asks for when it opens a channel.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Set hostname, hosts, resolver and network addresses after a cold boot. Ends with [`Outcome::Done`].
    Configure(Configure),
    /// Run a process; reply `Started`, DATA frames, end `Exit`. It dies with its channel (RESET or a new session).
    Exec(Exec),
    /// Start a process that outlives channel and session (the template's start command). Reply and end: `Started`.
    StartService(Exec),
    /// As `StartService`, and follow it from its first byte on: reply `Started`, DATA frames, end `Exit`. RESET or a new
    /// session ends the following and not the process. While somebody follows, a process that writes faster than is read
    /// waits, as at a full pipe.
    RunService(Exec),
    /// Write to the stdin of a service that was started with one: reply `Done`, DATA frames, EOF, and end `Done` once
    /// all of it is in the pipe. Stdin stays open, unless `close` says otherwise.
    FeedService {
        /// Pid that `StartService` or `RunService` answered.
        pid: u32,
        /// True: close stdin behind the last byte.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        close: bool,
    },
    /// Follow a service: reply `Attached`, its kept output from the start, then live, end `Exit` when it has exited.
    /// Without `follow` only what there is, end `Done` while it runs.
    Attach {
        /// Pid that `StartService` answered.
        pid: u32,
        /// True: wait for more output until it exits.
        follow: bool,
    },
    /// List processes of the guest (kernel threads left out). Ends with [`Outcome::Processes`].
    Processes,
    /// Send a signal to one process; a service's group gets it with it. Ends with `Done`.
    Kill {
        /// Process in the guest.
        pid: u32,
        /// Signal number, as in `kill(2)`.
        signal: i32,
    },
    /// Work on files; see [`crate::file`] for replies and ends.
    File(FileCall),
    /// One readiness attempt. Ends with [`Outcome::Probed`].
    Probe(Probe),
    /// Flush and freeze the root filesystem (`FIFREEZE`), so that the disk image is clean. Ends with `Done`.
    Freeze {
        /// Also stop all processes of the guest but the agent, until `Thaw` or `Restored`. Behind `Done` the agent sends
        /// nothing but acknowledgements of HELLO, until a frame of another kind comes. So the session may go on over another
        /// stream, see [`Kind::Hello`](crate::frame::Kind::Hello).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        halt: bool,
    },
    /// Undo [`Request::Freeze`]. Ends with `Done`.
    Thaw {
        /// Nanoseconds since 1970, UTC: the clock is set before anything goes on. A machine that stood still has lost that time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unix_time_ns: Option<u64>,
    },
    /// "You were restored": reseed the kernel's random numbers, set the clock, thaw, take the new identity, reset the TCP
    /// connections to other machines, let stopped processes go on. Replies `Done` once all of it holds, then runs the image's
    /// resume hooks and [`Restored::resume`], and ends with `Done`. Asked for once more with the same content, it answers as
    /// before and does nothing twice.
    Restored(Restored),
    /// Grow the mounted root filesystem to its device. Ends with [`Outcome::Grown`].
    GrowRoot,
    /// Leave nothing of what has run but the files on the root: end all processes of the guest, empty /dev/shm, undo
    /// mounts that the agent did not make. For between a build's steps. Ends with `Done`.
    EndProcesses {
        /// Also write the page cache out and drop it, so that the guest is as after its boot.
        drop_caches: bool,
    },
    /// Flush and power off. Ends with `Done` just before.
    Shutdown,
    /// Measure what the guest uses. Ends with [`Outcome::Usage`].
    Usage,
    /// Connect to a TCP port of the guest's loopback: 127.0.0.1, then ::1, at most for [`DIAL_LIMIT_MS`]. Reply `Done`, then bytes
    /// both ways: STDIN to the port, STDOUT from it. Each direction ends by an EOF of its own. Ends with `Done` when both have
    /// ended, or with a failure. RESET closes the connection. The credit is [`DIAL_WINDOW`](crate::frame::DIAL_WINDOW).
    Dial {
        /// Port in the guest.
        port: u16,
    },
    /// As `Dial`, to a Unix socket of the guest by its path, with the rights of root.
    DialSocket {
        /// Absolute path in the guest, at most 107 bytes. An abstract socket has none.
        path: String,
    },
    /// Tell changes of files below a directory; see [`watch`](crate::watch). Reply [`Outcome::Watching`], DATA: one JSON
    /// [`WatchEvent`](crate::watch::WatchEvent) a line. Ends with `Failed` when the directory is gone, else with its channel.
    Watch(WatchCall),
    /// Work on an upload in parts; see [`upload`](crate::upload). Ends with [`Outcome::Upload`] or [`Outcome::UploadRefused`].
    Upload(UploadCall),
    /// Start a process with a terminal of its own, as a service, and follow it: see [`Request::RunService`].
    OpenTerminal(OpenTerminal),
    /// List the terminals of the guest. Ends with [`Outcome::Terminals`].
    Terminals,
    /// Set the size of a terminal. Its foreground job gets SIGWINCH. Ends with `Done`.
    Resize {
        /// Pid of the terminal's first process.
        pid: u32,
        /// The new size.
        size: TerminalSize,
    },
    /// End the session of a terminal: SIGHUP to its processes, SIGKILL after [`KILL_AFTER_MS`]. Ends with `Done`.
    CloseTerminal {
        /// Pid of the terminal's first process.
        pid: u32,
    },
}

impl Request {
    /// True when it opens a connection: its channel has the window and the limit of connections.
    pub fn dials(&self) -> bool {
        matches!(self, Request::Dial { .. } | Request::DialSocket { .. })
    }

    /// The capability that an agent needs for this request. A new operation, or a new option of one, has a new capability:
    /// an older agent does not know the operation, and would ignore the option.
    pub fn needs(&self) -> Capability {
        match self {
            Request::Configure(_) => Capability::Configure,
            Request::Exec(_) => Capability::Exec,
            Request::StartService(_) | Request::Attach { .. } => Capability::Services,
            Request::RunService(_) => Capability::RunService,
            Request::FeedService { close: true, .. } => Capability::CloseStdin,
            Request::FeedService { close: false, .. } => Capability::FeedService,
            Request::Processes => Capability::Processes,
            Request::Kill { .. } => Capability::Kill,
            Request::File(call) if call.cwd.as_deref() == Some(file::HOME) => Capability::FileSearch,
            Request::File(call) => match call.action {
                FileOp::Read { .. }
                | FileOp::Write { .. }
                | FileOp::List { .. }
                | FileOp::Info { .. }
                | FileOp::MakeDir { .. }
                | FileOp::Remove { .. }
                | FileOp::Rename { .. }
                | FileOp::SetMode { .. }
                | FileOp::MakeDirFor { .. }
                | FileOp::MakeSymlink { .. }
                | FileOp::Unlink { .. }
                | FileOp::Move { .. }
                | FileOp::Copy(_)
                | FileOp::Space { .. } => Capability::Files,
                FileOp::ReadPart { .. }
                | FileOp::WriteOwn { .. }
                | FileOp::FindLines { .. }
                | FileOp::FindNames { .. }
                | FileOp::Replace(_) => Capability::FileSearch,
            },
            Request::Probe(probe) => match probe.check {
                ProbeCheck::Tcp { .. } | ProbeCheck::Http { .. } | ProbeCheck::Command(_) | ProbeCheck::Idle => {
                    Capability::Probe
                }
            },
            Request::Freeze { halt: true } | Request::Thaw { unix_time_ns: Some(_) } => Capability::Halt,
            Request::Freeze { halt: false } | Request::Thaw { unix_time_ns: None } => Capability::Freeze,
            Request::Restored(restored) if restored.trial => Capability::Trial,
            Request::Restored(_) => Capability::Restored,
            Request::GrowRoot => Capability::GrowRoot,
            Request::EndProcesses { .. } => Capability::EndProcesses,
            Request::Shutdown => Capability::Shutdown,
            Request::Usage => Capability::Usage,
            Request::Dial { .. } => Capability::Dial,
            Request::DialSocket { .. } => Capability::DialSocket,
            Request::Watch(_) => Capability::Watch,
            Request::Upload(_) => Capability::Upload,
            Request::OpenTerminal(_) | Request::Terminals | Request::Resize { .. } | Request::CloseTerminal { .. } => {
                Capability::Terminals
            }
        }
    }
}

/// Identity and network of a freshly booted guest.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Configure {
    /// Host name, also put into /etc/hosts.
    pub hostname: String,
    /// Static address of eth0; `None` leaves only loopback up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<GuestNetwork>,
    /// Nanoseconds since 1970, UTC.
    pub unix_time_ns: u64,
    /// The user that an imported image names. One whose number /etc/passwd does not know gets an account there,
    /// `nullspace-imported-<uid>`, as the contract has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported_user: Option<String>,
}

/// Static IPv4 configuration of the guest's eth0.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct GuestNetwork {
    /// `a.b.c.d/prefix`.
    pub address: String,
    /// Default gateway; `None`: no default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Name servers for /etc/resolv.conf.
    #[serde(default)]
    pub dns: Vec<String>,
}

/// A process to run.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Exec {
    /// Program and arguments; a program without `/` is looked up in the PATH of `envs`.
    pub argv: Vec<String>,
    /// Its whole environment, but for HOME, USER, LOGNAME, PATH and TERM defaults that the agent adds when absent.
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
    /// Working directory; created when it is `/workspace`, else an error when it does not exist. Default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Make the working directory when it is missing, with its parents, as root with mode 0755, as container engines do. A
    /// `/workspace` that cannot be one (the image has a file or a dangling link there) is replaced by `/`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub make_cwd: bool,
    /// Run as the first process of a PID namespace of its own, as a container's command does: it is PID 1, and what it
    /// leaves behind ends with it. While it lives, every other process that the agent starts joins that namespace, and the
    /// pids of this protocol are those that it shows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub first: bool,
    /// `user`, `uid`, `user:group`, `uid:gid`…, as in Docker's USER; default root. Supplementary groups from /etc/group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// After so many ms the process group gets SIGTERM, 1 s later SIGKILL; `Exit.timed_out` says so. `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// False: stdin is /dev/null. True: DATA frames feed it, EOF closes it.
    #[serde(default)]
    pub stdin: bool,
}

/// One readiness attempt, in the guest.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Probe {
    /// The check to make.
    pub check: ProbeCheck,
    /// Bound of this attempt in ms.
    pub timeout_ms: u64,
}

/// Readiness kinds that need the guest; `timeout` readiness is the host's own wait.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ProbeCheck {
    /// A TCP connection to 127.0.0.1 (then ::1) opens.
    Tcp {
        /// Port in the guest.
        port: u16,
    },
    /// `GET path` on 127.0.0.1 answers 2xx or 3xx.
    Http {
        /// Port in the guest.
        port: u16,
        /// Absolute path with query.
        path: String,
    },
    /// The command exits 0.
    Command(Exec),
    /// The machine's processors had nothing to do for nine tenths of `timeout_ms`: what runs waits for something other than
    /// the processor and the disk.
    Idle,
}

/// The new identity of a restored guest.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Restored {
    /// Host name.
    pub hostname: String,
    /// 32 lower-case hex digits for /etc/machine-id.
    pub machine_id: String,
    /// Base64 of at least 32 random bytes, mixed and credited into the kernel's pool, which is then reseeded.
    pub entropy: String,
    /// Nanoseconds since 1970, UTC.
    pub unix_time_ns: u64,
    /// New address when it differs from the one in the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<GuestNetwork>,
    /// The template's resume command, which runs after the hooks of /etc/nullspace/resume.d at every resume. Its `timeout_ms` is not used:
    /// [`RESUME_LIMIT_MS`] bounds hooks and command together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Exec>,
    /// True: the restore is a trial of a new snapshot, and the machine is ended once its agent has answered. Neither the
    /// hooks nor [`Restored::resume`] run: they are the template owner's, and may have effects outside the machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trial: bool,
}

/// A measurement of what a guest uses. The guest is hostile: none of the figures may be trusted for a limit.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Usage {
    /// Memory that the guest's kernel manages, bytes.
    pub memory_total: u64,
    /// Memory that could not be given to a new process, bytes: the total without what is available.
    pub memory_used: u64,
    /// Size of the root filesystem, bytes.
    pub disk_total: u64,
    /// Space used on it, bytes.
    pub disk_used: u64,
    /// Time in which the processors worked since the boot of the template's machine, summed over all of them, ms. A snapshot
    /// keeps it.
    pub cpu_ms: u64,
    /// Bytes that eth0 has received. A snapshot keeps them.
    pub received: u64,
    /// Bytes that eth0 has sent. A snapshot keeps them.
    pub sent: u64,
}

/// The result that ends a channel, or begins it (`Started`, `Attached`).
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Outcome {
    /// It is done; nothing to tell.
    Done,
    /// A process runs.
    Started {
        /// Its pid in the guest.
        pid: u32,
    },
    /// A service is followed.
    Attached {
        /// Its pid in the guest.
        pid: u32,
        /// Bytes of stdout that came before what is kept.
        lost_stdout: u64,
        /// Bytes of stderr that came before what is kept.
        lost_stderr: u64,
    },
    /// A process ended.
    Exit(Exit),
    /// The processes of the guest.
    Processes {
        /// In ascending pid order.
        processes: Vec<Process>,
    },
    /// A file, as it is after the operation.
    File {
        /// The file's description.
        entry: FileEntry,
    },
    /// One readiness attempt was made.
    Probed {
        /// True when the check holds.
        ready: bool,
        /// The reason why not, for the log: "connection refused", "HTTP 503", the command's exit code and last line.
        detail: String,
    },
    /// The root filesystem was grown.
    Grown {
        /// Its size in bytes now.
        bytes: u64,
    },
    /// Free space of a filesystem.
    Space {
        /// Bytes for users other than root.
        free_bytes: u64,
        /// New files and folders.
        free_inodes: u64,
    },
    /// The guest's use of its machine.
    Usage {
        /// The measurement.
        usage: Usage,
    },
    /// The terminals of the guest.
    Terminals {
        /// In ascending order of pids, those whose sessions have ended too, as long as their output is kept.
        terminals: Vec<Terminal>,
    },
    /// A directory is watched.
    Watching {
        /// Its absolute path.
        path: String,
    },
    /// An upload, as it is after the operation.
    Upload {
        /// Its state.
        state: Box<UploadState>,
    },
    /// An operation on an upload was refused.
    UploadRefused(UploadRefusal),
    /// A search has ended.
    Searched {
        /// What it has met.
        searched: Searched,
    },
    /// A replacement has ended.
    Replaced {
        /// What it has done.
        replaced: Replaced,
    },
    /// The operation failed.
    Failed(Failure),
}

/// The end of a process.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + signal when a signal ended it, as shells say it.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// True when `timeout_ms` ended it.
    #[serde(default)]
    pub timed_out: bool,
    /// True when it did not end with 0 and the kernel killed a process for want of memory while it ran.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
    /// True when it was killed because the first process of its PID namespace ended ([`Exec::first`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub first_ended: bool,
}

/// One process of the guest.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Process {
    /// Pid in the guest.
    pub pid: u32,
    /// Parent's pid.
    pub ppid: u32,
    /// Command line, arguments joined by blanks; the name in brackets when it has none.
    pub command: String,
    /// False for a zombie.
    pub running: bool,
    /// Number of times that the agent started a service of this pid: 1 for the start command, absent for other processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts: Option<u32>,
}

/// The failure of an operation, for the host to map.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its kind.
    pub kind: FailureKind,
    /// One sentence for the user: names the user, path or program that it is about.
    pub message: String,
}

/// Kinds of [`Failure`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The request makes no sense (empty argv, a NUL in an argument, bad address).
    Invalid,
    /// The program does not exist.
    ProgramNotFound,
    /// The program exists and cannot be run.
    NotExecutable,
    /// The user or group is not in the image's /etc/passwd or /etc/group.
    UnknownUser,
    /// The working directory does not exist or is no directory.
    WorkdirNotFound,
    /// No such process or service.
    NotFound,
    /// The process has no open stdin.
    StdinClosed,
    /// No such file or directory.
    FileNotFound,
    /// The user may not do that with the file.
    PermissionDenied,
    /// Something is where the file or directory should be, or a directory is not empty.
    FileExists,
    /// The disk, or the file's size limit, is full.
    DiskFull,
    /// A limit of the agent was reached (channels, processes).
    Limit,
    /// A resume hook or the resume command could not be run, failed, or took too long.
    Resume,
    /// Nothing listens on the port.
    ConnectionRefused,
    /// The port's server did not accept a connection in time.
    ConnectionTimedOut,
    /// The port's server has broken the connection off.
    ConnectionReset,
    /// Anything else; `message` has the system's words.
    Internal,
    /// A kind of a newer agent that this build does not know. This build's agent never sends it.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_of_version_6_is_read_as_it_was_written() {
        let written = r#"{"abi":6,"kernel":"6.1.0","boot_id":"b","root_ready":true}"#;
        let info: AgentInfo = serde_json::from_str(written).unwrap();
        assert!(info.is_spoken());
        assert_eq!(info.capabilities, None);
        assert!(Capability::OF_VERSION_6.iter().all(|capability| info.can(*capability)));
        assert_eq!(serde_json::to_string(&info).unwrap(), written);
    }

    #[test]
    fn a_freeze_is_written_as_older_agents_read_it() {
        assert_eq!(serde_json::to_string(&Request::Freeze { halt: false }).unwrap(), r#"{"op":"freeze"}"#);
        let read: Request = serde_json::from_str(r#"{"op":"freeze"}"#).unwrap();
        assert_eq!((read.needs(), read), (Capability::Freeze, Request::Freeze { halt: false }));
        assert_eq!(Request::Freeze { halt: true }.needs(), Capability::Halt);
        assert_eq!(serde_json::to_string(&Request::Thaw { unix_time_ns: None }).unwrap(), r#"{"op":"thaw"}"#);
        let read: Request = serde_json::from_str(r#"{"op":"thaw"}"#).unwrap();
        assert_eq!((read.needs(), read), (Capability::Freeze, Request::Thaw { unix_time_ns: None }));
        assert_eq!(Request::Thaw { unix_time_ns: Some(1) }.needs(), Capability::Halt);
    }

    #[test]
    fn a_failure_of_a_newer_agent_is_still_a_failure() {
        let read: Outcome =
            serde_json::from_str(r#"{"is":"failed","kind":"moon_phase","message":"Not now."}"#).unwrap();
        assert_eq!(read, Outcome::Failed(Failure { kind: FailureKind::Unknown, message: "Not now.".to_owned() }));
    }

    #[test]
    fn capabilities_of_a_newer_agent_are_passed_over() {
        let written =
            r#"{"abi":7,"kernel":"6","boot_id":"b","root_ready":true,"capabilities":["exec","teleport","dream"]}"#;
        let info: AgentInfo = serde_json::from_str(written).unwrap();
        assert!(info.can(Capability::Exec) && !info.can(Capability::Files));
        assert_eq!(info.capabilities.unwrap(), BTreeSet::from([Capability::Exec, Capability::Unknown]));
    }

    #[test]
    fn the_versions_on_both_sides_of_the_range_are_not_spoken() {
        let info = |abi| AgentInfo {
            abi,
            kernel: String::new(),
            boot_id: String::new(),
            root_ready: true,
            root_error: None,
            capabilities: None,
        };
        for (abi, spoken) in
            [(OLDEST_AGENT_ABI - 1, false), (OLDEST_AGENT_ABI, true), (AGENT_ABI, true), (AGENT_ABI + 1, false)]
        {
            assert_eq!(info(abi).is_spoken(), spoken, "{abi}");
        }
    }
}
