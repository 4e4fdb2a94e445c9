//! Messages, as JSON in OPEN, REPLY, END and HELLO frames.
//!
//! Bytes that may not be text (entropy) travel as base64; process output travels in DATA frames, never here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::file::{FileCall, FileEntry};

/// Version of this protocol and of the agent's behaviour; part of a snapshot's compatibility class.
pub const AGENT_ABI: u32 = 6;

/// Milliseconds between the SIGTERM that a process's timeout sends and the SIGKILL that follows.
pub const KILL_AFTER_MS: u64 = 1000;

/// Milliseconds that all resume hooks and the resume command of a restored guest may take together.
pub const RESUME_LIMIT_MS: u64 = 30_000;

/// Start of [`AgentInfo::root_error`] when the root has no space for the files that a machine needs.
pub const ROOT_FULL: &str = "its disk is full";

/// The agent's description of itself and its guest, in HELLO_ACK.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct AgentInfo {
    /// [`AGENT_ABI`] of the agent that runs in the guest.
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
    /// all of it is in the pipe. Stdin stays open.
    FeedService {
        /// Pid that `StartService` or `RunService` answered.
        pid: u32,
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
    /// Work on files; see [`file`](crate::file) for replies and ends.
    File(FileCall),
    /// One readiness attempt. Ends with [`Outcome::Probed`].
    Probe(Probe),
    /// Flush and freeze the root filesystem (`FIFREEZE`), so that the disk image is clean. Ends with `Done`.
    Freeze,
    /// Undo [`Request::Freeze`]. Ends with `Done`.
    Thaw,
    /// "You were restored": thaw, reseed the kernel's random numbers, set the clock, take the new identity. Replies `Done`
    /// once all of it holds, then runs the image's resume hooks and [`Restored::resume`], and ends with `Done`. Asked for
    /// once more with the same content, it answers as before and does nothing twice.
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
    /// Anything else; `message` has the system's words.
    Internal,
}
