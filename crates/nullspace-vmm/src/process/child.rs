//! The clone of this process, and the clone's set-up before its program runs. No other code clones this process.
//!
//! ```text
//!   stdio, signals          every child starts with the same
//!   session, OOM score      the service's terminal and its memory are not the child's
//!   umask, control groups   (confined)  before namespaces: cgroup files are named by the host
//!   network, other namespaces, binds, folder
//!   limits                  (confined)
//!   descriptors             everything close-on-exec, then the inherited ones open
//!   identity                (confined)  the last step that needs root
//!   no_new_privs, Landlock  (confined)  Landlock asks for the former
//!   death signal            after the change of uid, which clears it
//!   exec
//! ```
//!
//! Between clone and exec the child is a copy of one thread of a program with many: a lock that another thread held is
//! locked for ever. So it only makes system calls on memory that is ready before the clone: no allocation, no lock, no
//! panic. It tells the failed step through a pipe that exec closes.

#![allow(unsafe_code, reason = "a cloned child makes raw system calls until exec")]

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags};

use super::launch::{Bind, Confinement, Identity, Launch, Namespaces};
use super::life::Child;

/// Niceness of a child that no control group weighs.
pub(super) const NICE: libc::c_int = 10;

/// The child's steps, in this order, for an error's text.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Step {
    Output,
    Session,
    ControlGroup,
    Network,
    Namespaces,
    Bind,
    Folder,
    Limits,
    Descriptors,
    Identity,
    NoNewPrivileges,
    Landlock,
    DeathSignal,
    Exec,
}

/// By the number of the step.
const STEPS: [&str; 14] = [
    "redirect its output",
    "make a session",
    "enter a control group",
    "enter the network namespace",
    "make its namespaces",
    "bind a file",
    "enter its folder",
    "set its limits",
    "close its descriptors",
    "change its user",
    "give up new privileges",
    "enter the Landlock rules",
    "tie its life to the service's",
    "run the program",
];

/// Starts the child. Blocks for the few ms of a fork; the calling thread must live as long as the service.
pub(super) fn start(launch: &Launch) -> io::Result<Child> {
    let program = launch.program.as_os_str();
    let argv = std::iter::once(program).chain(launch.args.iter().map(AsRef::as_ref)).map(c_string);
    let argv = argv.collect::<io::Result<Vec<CString>>>()?;
    let arguments = argv.iter().map(|arg| arg.as_ptr()).chain([std::ptr::null()]).collect();
    let (failure, report) = pipe_with(PipeFlags::CLOEXEC)?;
    let inside = Inside {
        launch,
        arguments,
        directory: c_string(launch.directory.as_os_str())?,
        null: File::open("/dev/null")?,
        parent: rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?,
        report,
    };
    let mut flags = libc::CLONE_PIDFD | libc::SIGCHLD;
    if !matches!(launch.namespaces, Namespaces::Host) {
        flags |= libc::CLONE_NEWPID;
    }
    let mut pidfd: libc::c_int = -1;
    // clone(2) and not clone3(2), which containers' system call filters refuse.
    // SAFETY: without CLONE_VM the child is a copy of this process with this one thread, as after fork(2); no stack of its
    // own is needed. The kernel writes the descriptor to `pidfd`, which lives past the call. The child runs `Inside::run`.
    let child =
        unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0usize, &raw mut pidfd, 0usize, 0usize) };
    if child == 0 {
        // SAFETY: this is the child of the clone above, and `inside` was made before it.
        unsafe { inside.run() }
    }
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has put a new descriptor there, close-on-exec, which nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(child).ok().and_then(Pid::from_raw);
    let child = Child::new(pid.ok_or_else(|| io::Error::other("the child has an impossible pid"))?, pidfd);
    drop(inside);
    let mut told = Vec::new();
    File::from(failure).take(5).read_to_end(&mut told)?;
    // Nothing: exec has closed the pipe. Else the child exits by itself, and dropping it reaps it.
    let [step, errno @ ..] = told.as_slice() else { return Ok(child) };
    let source = io::Error::from_raw_os_error(i32::from_ne_bytes(errno.try_into().unwrap_or_default()));
    let step = STEPS.get(usize::from(*step)).unwrap_or(&"start it");
    Err(io::Error::new(source.kind(), format!("could not {step}: {source}")))
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

/// Everything that the child uses.
struct Inside<'a> {
    launch: &'a Launch,
    /// Null-terminated; points into strings that outlive this.
    arguments: Vec<*const libc::c_char>,
    directory: CString,
    null: File,
    /// A pidfd of the service: its pid means nothing in another PID namespace.
    parent: OwnedFd,
    report: OwnedFd,
}

impl Inside<'_> {
    /// The child's way to its program.
    ///
    /// # Safety
    /// Must run in a process that was just cloned from one with this value in it. So must all others here.
    unsafe fn run(&self) -> ! {
        let confinement = self.launch.confinement.as_ref();
        // SAFETY: the caller's promise; plain system calls on numbers, constants and strings made before the clone.
        unsafe {
            self.begin();
            if let Some(confinement) = confinement {
                libc::umask(0o077);
                self.share_processors(&confinement.groups);
            }
            self.enter_namespaces();
            self.must(Step::Folder, libc::chdir(self.directory.as_ptr()));
            if let Some(confinement) = confinement {
                self.limit(libc::RLIMIT_CORE, 0);
                self.limit(libc::RLIMIT_FSIZE, confinement.file_limit);
                self.limit(libc::RLIMIT_NOFILE, 1024);
            }
            self.keep_descriptors();
            if let Some(confinement) = confinement {
                self.give_up_rights(confinement);
            }
            self.die_with_the_service();
            let environment = [std::ptr::null::<libc::c_char>()];
            if let Some(program) = self.arguments.first() {
                libc::execve(*program, self.arguments.as_ptr(), environment.as_ptr());
            }
            self.fail(Step::Exec)
        }
    }

    /// Standard streams, signals, session, OOM score.
    unsafe fn begin(&self) {
        let output = self.launch.output.as_raw_fd();
        // SAFETY: as in `run`; the set of signals is a local.
        unsafe {
            self.must(Step::Output, libc::dup2(self.null.as_raw_fd(), 0));
            self.must(Step::Output, libc::dup2(output, 1));
            self.must(Step::Output, libc::dup2(output, 2));
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            // Rust's runtime ignores it, and what is ignored stays so over an exec.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            // Keys pressed in the service's terminal signal the service alone.
            self.must(Step::Session, libc::setsid());
            // The kernel's choice under memory pressure shall be a guest, not the service.
            write_once(c"/proc/self/oom_score_adj", b"500");
        }
    }

    /// Enters control groups, or makes room for the service without them.
    unsafe fn share_processors(&self, groups: &[OwnedFd]) {
        // SAFETY: as in `run`.
        unsafe {
            for group in groups {
                let entered = libc::write(group.as_raw_fd(), b"0".as_ptr().cast(), 1);
                self.must(Step::ControlGroup, entered as libc::c_int);
            }
            if groups.is_empty() {
                // On top of the service's own. Its result says nothing: -1 is a niceness too.
                libc::nice(NICE);
                // Where the scheduler groups by session, niceness counts within the session, and this file between them.
                write_once(c"/proc/self/autogroup", b"10");
            }
        }
    }

    /// The network's namespace and those of [`Namespaces`], of which clone has made the PID namespace.
    unsafe fn enter_namespaces(&self) {
        // SAFETY: as in `run`.
        unsafe {
            if let Some(network) = &self.launch.network {
                self.must(Step::Network, libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET));
            }
            match &self.launch.namespaces {
                Namespaces::Host => {}
                Namespaces::Bound(binds) => {
                    self.unshare(libc::CLONE_NEWNS);
                    binds.iter().for_each(|bind| self.bind(bind));
                }
                Namespaces::Own { tree, offline } => {
                    if let Some(tree) = tree {
                        self.must(Step::Namespaces, libc::setns(tree.as_raw_fd(), libc::CLONE_NEWNS));
                    }
                    let empty = if *offline && self.launch.network.is_none() { libc::CLONE_NEWNET } else { 0 };
                    self.unshare(libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | empty);
                    let (proc, none) = (c"proc".as_ptr(), std::ptr::null());
                    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
                    self.must(Step::Namespaces, libc::mount(proc, c"/proc".as_ptr(), proc, flags, none));
                    self.must(Step::Namespaces, libc::sethostname(c"vm".as_ptr(), 2));
                }
            }
        }
    }

    unsafe fn unshare(&self, namespaces: libc::c_int) {
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: as in `run`.
        unsafe {
            self.must(Step::Namespaces, libc::unshare(namespaces));
            // Slave: what the host unmounts later goes here too and is not held busy; what is mounted here stays here.
            let propagation = libc::MS_REC | libc::MS_SLAVE;
            self.must(Step::Namespaces, libc::mount(none, c"/".as_ptr(), none, propagation, none.cast()));
        }
    }

    unsafe fn bind(&self, Bind { from, to, writable }: &Bind) {
        let none = std::ptr::null::<libc::c_char>();
        let again = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let flags = if *writable { again } else { again | libc::MS_RDONLY };
        // SAFETY: as in `run`.
        unsafe {
            self.must(Step::Bind, libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND, none.cast()));
            self.must(Step::Bind, libc::mount(none, to.as_ptr(), none, flags, none.cast()));
        }
    }

    /// Closes at exec everything that is not the child's, also what some library forgot to mark. The report is closed so
    /// too, and not before, since a failing exec must still be told.
    unsafe fn keep_descriptors(&self) {
        // SAFETY: as in `run`.
        unsafe {
            let marked = libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            self.must(Step::Descriptors, marked as libc::c_int);
            for fd in &self.launch.inherit {
                self.must(Step::Descriptors, libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0));
            }
        }
    }

    /// The change of user, `no_new_privs`, Landlock.
    unsafe fn give_up_rights(&self, confinement: &Confinement) {
        // SAFETY: as in `run`. The raw numbers for the ids are used because libc's wrappers signal threads that do not
        // exist on this side of the clone.
        unsafe {
            if let Some(Identity { id, group }) = confinement.identity {
                let groups = [group.unwrap_or(0)];
                let set = libc::syscall(libc::SYS_setgroups, usize::from(group.is_some()), groups.as_ptr());
                self.must(Step::Identity, set as libc::c_int);
                self.must(Step::Identity, libc::syscall(libc::SYS_setresgid, id, id, id) as libc::c_int);
                self.must(Step::Identity, libc::syscall(libc::SYS_setresuid, id, id, id) as libc::c_int);
            }
            self.must(Step::NoNewPrivileges, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
            if let Some(ruleset) = &confinement.ruleset {
                let restricted = libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32);
                self.must(Step::Landlock, restricted as libc::c_int);
            }
        }
    }

    unsafe fn die_with_the_service(&self) {
        // SAFETY: as in `run`; the struct is a local.
        unsafe {
            self.must(Step::DeathSignal, libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong));
            let mut service = libc::pollfd { fd: self.parent.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            if libc::poll(&raw mut service, 1, 0) != 0 {
                // It has ended, before the line above.
                *libc::__errno_location() = libc::ESRCH;
                self.fail(Step::DeathSignal);
            }
        }
    }

    unsafe fn limit(&self, resource: libc::__rlimit_resource_t, value: u64) {
        let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: as in `run`; the structs are locals.
        unsafe {
            self.must(Step::Limits, libc::getrlimit(resource, &raw mut now));
            // Raising the hard limit needs a right that we may not have: never above it.
            let value = value.min(now.rlim_max);
            let wanted = libc::rlimit { rlim_cur: value, rlim_max: value };
            self.must(Step::Limits, libc::setrlimit(resource, &raw const wanted));
        }
    }

    unsafe fn must(&self, step: Step, result: libc::c_int) {
        if result < 0 {
            // SAFETY: as in `run`.
            unsafe { self.fail(step) }
        }
    }

    /// Tells the step and `errno`, and ends.
    unsafe fn fail(&self, step: Step) -> ! {
        // SAFETY: errno's location is always valid; write and _exit take plain values and a local buffer.
        unsafe {
            let errno = (*libc::__errno_location()).to_ne_bytes();
            let told = [step as u8, errno[0], errno[1], errno[2], errno[3]];
            libc::write(self.report.as_raw_fd(), told.as_ptr().cast(), told.len());
            libc::_exit(127)
        }
    }
}

/// Writes to a file of the kernel's. It is fine when it is not there.
///
/// # Safety
/// As of [`Inside::run`].
unsafe fn write_once(path: &std::ffi::CStr, text: &[u8]) {
    // SAFETY: as in `run`.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, text.as_ptr().cast(), text.len());
            libc::close(file);
        }
    }
}
