//! Starting a process.
//!
//! Not by fork: copying the agent's memory map, and the page faults that follow in parent and child, cost more than
//! all the rest. The child is cloned into the agent's memory instead, on a stack of its own, until its exec gives it new
//! memory. Unlike with vfork the parent goes on meanwhile, so that a program that cannot be read (a dead network
//! filesystem) holds up nothing but its own request.
//!
//! ```text
//!  parent                      child (same memory, own stack, own descriptors)
//!   clone ------------------->  signals, setsid, namespaces, dup2, terminal, chdir, ids
//!   waits at the error pipe     execve: old memory left, then the pipe closed
//!         <-- end of file --    or 5 bytes (stage, errno), and exit
//!   frees stack and strings
//! ```

#![allow(unsafe_code, reason = "a child that shares memory with its parent makes raw system calls")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nullspace_guest::message::{Failure, FailureKind};

use super::memory;
use super::namespace::{self, Namespace};
use super::prepare::Plan;
use super::pty::Pty;
use super::reaper::{Reaper, Watch};
use crate::generation;

/// How long a child may take from fork to exec: reading a program from a slow disk.
const EXEC_LIMIT: Duration = Duration::from_secs(20);
/// How long a child that was killed before its exec may take to be gone.
const KILLED_LIMIT: Duration = Duration::from_secs(2);

/// A process that runs, and our ends of its pipes.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) watch: Arc<Watch>,
    pub(crate) stdin: Option<OwnedFd>,
    /// With a terminal this is its master, as stdin is.
    pub(crate) stdout: OwnedFd,
    /// None with a terminal: all of its output is stdout.
    pub(crate) stderr: Option<OwnedFd>,
    /// When it was started, on the monotonic clock.
    pub(crate) began: Duration,
    /// The namespace that it joined.
    pub(crate) namespace: Option<Arc<Namespace>>,
}

/// Where a child failed, as it tells through the error pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    Stdio = 1,
    Cwd = 2,
    User = 3,
    Exec = 4,
    Namespace = 5,
}

fn internal(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure { kind: FailureKind::Internal, message: format!("{what}: {error}.") }
}

/// A close-on-exec pipe whose ends are above the standard descriptors, so that `dup2` in the child clobbers none.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: a plain system call that fills `ends` with two descriptors, which are ours from then on.
    let (read, write) = unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    };
    Ok((above_stdio(read)?, above_stdio(write)?))
}

pub(crate) fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    let moved = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: F_DUPFD answers a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// Gives a pipe to the command's user: `/dev/stdout` and the like are opened anew through /proc, where the pipe's owner and
/// mode are asked. For everybody, since a program may take another user on later; who does not have it open cannot reach
/// it. Container engines do the first half of that.
fn give(pipe: &OwnedFd, plan: &Plan) {
    // SAFETY: plain system calls on a pipe that is ours alone. An agent in a developer's tests may not give things away; the
    // user is the same there.
    unsafe {
        libc::fchown(pipe.as_raw_fd(), plan.account.uid, plan.account.gid);
        libc::fchmod(pipe.as_raw_fd(), 0o666);
    }
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Starts the process in a session and process group of its own. Answers once `execve` has succeeded.
pub(crate) fn spawn(plan: &Plan, with_stdin: bool) -> Result<Child, Failure> {
    let system = |error: io::Error| internal("A process cannot be started", error);
    let (out_read, out_write) = pipe().map_err(system)?;
    let (err_read, err_write) = pipe().map_err(system)?;
    let (in_read, in_write) = if with_stdin {
        let (read, write) = pipe().map_err(system)?;
        nonblocking(&write).map_err(system)?;
        give(&read, plan);
        (read, Some(write))
    } else {
        let null = std::fs::File::open("/dev/null").map_err(|error| internal("/dev/null cannot be opened", error))?;
        (above_stdio(null.into()).map_err(system)?, None)
    };
    nonblocking(&out_read).and_then(|()| nonblocking(&err_read)).map_err(system)?;
    give(&out_write, plan);
    give(&err_write, plan);

    let ends = Ends { stdin: in_write, stdout: out_read, stderr: Some(err_read) };
    start(plan, [&in_read, &out_write, &err_write], false, ends)
}

/// As [`spawn`], with a terminal: it is the controlling terminal of the process's session.
pub(crate) fn spawn_on(plan: &Plan, pty: &Pty) -> Result<Child, Failure> {
    let master = || pty.master.try_clone().map_err(|error| internal("A terminal cannot be shared", error));
    let ends = Ends { stdin: Some(master()?), stdout: master()?, stderr: None };
    start(plan, [&pty.slave; 3], true, ends)
}

/// Our ends of a process's descriptors.
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

/// `stdio`: the process's descriptors 0 to 2. The caller closes them afterwards. `controls`: descriptor 0 is a terminal, and
/// becomes the controlling one.
fn start(plan: &Plan, stdio: [&OwnedFd; 3], controls: bool, ends: Ends) -> Result<Child, Failure> {
    let system = |error: io::Error| internal("A process cannot be started", error);
    let (status_read, status_write) = pipe().map_err(system)?;
    let began = memory::now();
    let stdio = stdio.map(AsRawFd::as_raw_fd);
    let place = if plan.first {
        namespace::share_mounts().map_err(|error| internal("Mounts cannot be shared", error))?;
        Place::First
    } else {
        namespace::current().map_or(Place::Machine, Place::Joins)
    };
    let namespace = if let Place::Joins(namespace) = &place { Some(Arc::clone(namespace)) } else { None };
    let mut image = Box::new(Image::new(plan, stdio, status_write.as_raw_fd(), place));
    image.controls = controls;
    let watch = Reaper::get().spawn(|| image.clone_it()).map_err(system)?;
    drop(status_write);

    match await_exec(status_read.as_fd(), EXEC_LIMIT) {
        Ok(None) => {
            watch.show(image.own_pid.load(Ordering::Relaxed));
            if plan.first {
                namespace::adopt(&watch);
            }
            let Ends { stdin, stdout, stderr } = ends;
            Ok(Child { watch, stdin, stdout, stderr, began, namespace })
        }
        Ok(Some((stage, errno))) => Err(explain(plan, stage, errno)),
        Err(error) => {
            // The child hangs before exec. It may not lead a group yet.
            Reaper::get().kill(&watch);
            if await_exec(status_read.as_fd(), KILLED_LIMIT).is_err() {
                // It does not end, and may still run in this memory one day.
                std::mem::forget(image);
            }
            Err(internal("A process did not start", error))
        }
    }
}

/// Waits until the child has left our memory, by exec or by its end; what it told, when it failed. The kernel
/// closes descriptors after it has left the memory in both cases (`begin_new_exec`, `do_exit`).
fn await_exec(status: BorrowedFd<'_>, limit: Duration) -> io::Result<Option<(u8, i32)>> {
    let until = std::time::Instant::now() + limit;
    let mut failure = None;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(status, PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut told = [0; 5];
        match nix::unistd::read(status, &mut told) {
            Ok(0) => return Ok(failure),
            // Five bytes into an empty pipe are written as one.
            Ok(_) => failure = Some((told[0], i32::from_le_bytes([told[1], told[2], told[3], told[4]]))),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn explain(plan: &Plan, stage: u8, errno: i32) -> Failure {
    let error = io::Error::from_raw_os_error(errno);
    let program = plan.program.to_string_lossy();
    let cwd = plan.cwd.to_string_lossy();
    let (kind, message) = match (stage, errno) {
        (s, _) if s == Stage::Cwd as u8 => {
            (FailureKind::WorkdirNotFound, format!("Working directory `{cwd}` cannot be entered: {error}."))
        }
        (s, _) if s == Stage::User as u8 => {
            let (uid, gid) = (plan.account.uid, plan.account.gid);
            (FailureKind::Internal, format!("The process cannot become uid {uid}, gid {gid}: {error}."))
        }
        (s, _) if s == Stage::Namespace as u8 => {
            (FailureKind::Internal, format!("`{program}` cannot have a PID namespace of its own: {error}."))
        }
        (s, libc::ENOENT) if s == Stage::Exec as u8 => {
            // The file itself was there a moment ago.
            let message = format!("`{program}` cannot be run: its interpreter or dynamic loader is not in the image.");
            (FailureKind::NotExecutable, message)
        }
        (s, libc::ENOEXEC) if s == Stage::Exec as u8 => {
            let message = format!("`{program}` cannot be run: it is no program of this platform and has no #! line.");
            (FailureKind::NotExecutable, message)
        }
        (s, libc::E2BIG) if s == Stage::Exec as u8 => {
            (FailureKind::Invalid, "Arguments and environment are longer than the kernel takes.".to_owned())
        }
        (s, libc::EACCES | libc::EPERM | libc::ELIBBAD | libc::EISDIR) if s == Stage::Exec as u8 => {
            (FailureKind::NotExecutable, format!("`{program}` cannot be run: {error}."))
        }
        _ => (FailureKind::Internal, format!("`{program}` cannot be started: {error}.")),
    };
    Failure { kind, message }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Which namespaces the child is in.
enum Place {
    /// The agent's own.
    Machine,
    /// Those of a first process that lives.
    Joins(Arc<Namespace>),
    /// New ones, of which it is the first process.
    First,
}

/// All that the child needs. Its own copies: they may have to outlive the request.
struct Image {
    stdio: [RawFd; 3],
    /// Descriptor 0 becomes the controlling terminal.
    controls: bool,
    status: RawFd,
    program: CString,
    cwd: CString,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// What `argv` and `envp` point into.
    _strings: [Vec<CString>; 2],
    stack: Vec<u8>,
    root: bool,
    place: Place,
    /// The child's pid as it sees it, written by it.
    own_pid: AtomicI32,
}

/// The child calls a dozen functions, none deep.
const STACK: usize = 64 * 1024;

impl Image {
    fn new(plan: &Plan, stdio: [RawFd; 3], status: RawFd, place: Place) -> Image {
        // Moving a CString moves no bytes of it, so the pointers stay good.
        let strings = [plan.argv.clone(), plan.envp.clone()];
        // PID 1 is root. An agent in a developer's tests may not be, and then is the user already or may not become it.
        // SAFETY: plain system calls.
        let (own_uid, own_gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        Image {
            stdio,
            controls: false,
            status,
            program: plan.program.clone(),
            cwd: plan.cwd.clone(),
            uid: plan.account.uid,
            gid: plan.account.gid,
            groups: plan.account.groups.clone(),
            argv: pointers(&strings[0]),
            envp: pointers(&strings[1]),
            _strings: strings,
            stack: vec![0; STACK],
            root: own_uid == 0 || (own_uid, own_gid) != (plan.account.uid, plan.account.gid),
            place,
            own_pid: AtomicI32::new(0),
        }
    }

    /// Starts the child; answers its pid. `self` must stay until [`await_exec`] has seen it leave.
    fn clone_it(&mut self) -> io::Result<i32> {
        let Place::Joins(namespace) = &self.place else { return self.clone_here() };
        let namespace = Arc::clone(namespace);
        match namespace.bear(|| self.clone_here()) {
            // Its first process has just ended, and no other can be born in it.
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                self.place = Place::Machine;
                self.clone_here()
            }
            other => other,
        }
    }

    fn clone_here(&mut self) -> io::Result<i32> {
        extern "C" fn child(image: *mut libc::c_void) -> libc::c_int {
            // SAFETY: `clone_it` passes itself, and its caller keeps it until the child has left this memory.
            unsafe { (*image.cast::<Image>()).become_it() }
        }
        let image: *mut Image = self;
        let top = self.stack.as_mut_ptr_range().end;
        // SAFETY: the stack is the child's alone. All signals are blocked around the clone, so that the child runs no
        // handler in memory that is not its own; it unblocks them once it has reset them.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            // The ABI wants 16 bytes of alignment.
            let top = top.sub(top.addr() % 16).cast();
            let mut flags = libc::CLONE_VM | libc::SIGCHLD;
            if matches!((*image).place, Place::First) {
                flags |= libc::CLONE_NEWPID | libc::CLONE_NEWNS;
            }
            let pid = libc::clone(child, top, flags, image.cast());
            let error = io::Error::last_os_error();
            libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
            if pid < 0 { Err(error) } else { Ok(pid) }
        }
    }

    /// Turns the cloned child into the program.
    ///
    /// # Safety
    /// Only in the child. It shares memory and thread-local storage with a parent that runs: so it allocates nothing, takes no
    /// lock, writes to nothing but its stack, and makes its system calls without the C library, which keeps errno in that
    /// storage.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the kernel takes and gives registers")]
    unsafe fn become_it(&self) -> ! {
        let default = [0u64; 4];
        let none = 0u64;
        // SAFETY: every pointer is into `self` or this frame.
        unsafe {
            for signal in 1..=64 {
                // Zeros are the default action, as the kernel's `struct sigaction` has it. SIGKILL and SIGSTOP refuse; that
                // is right.
                syscall(libc::SYS_rt_sigaction, [signal, default.as_ptr().addr(), 0, 8, 0]);
            }
            syscall(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, (&raw const none).addr(), 0, 8, 0]);
            syscall(libc::SYS_setsid, [0; 5]);
            self.own_pid.store(syscall(libc::SYS_getpid, [0; 5]) as i32, Ordering::Relaxed);
            match &self.place {
                Place::Machine => {}
                Place::Joins(namespace) => {
                    let entered = [namespace.mounts() as usize, libc::CLONE_NEWNS as usize, 0, 0, 0];
                    self.must(Stage::Namespace, syscall(libc::SYS_setns, entered));
                }
                Place::First => self.mount_proc(),
            }
            for (at, fd) in self.stdio.iter().enumerate() {
                self.must(Stage::Stdio, syscall(libc::SYS_dup3, [*fd as usize, at, 0, 0, 0]));
            }
            if self.controls {
                self.must(Stage::Stdio, syscall(libc::SYS_ioctl, [0, libc::TIOCSCTTY as usize, 0, 0, 0]));
            }
            // As root, so that a home that the user may not search can still be a working directory, as in runc.
            let cwd = [self.cwd.as_ptr().addr(), 0, 0, 0, 0];
            let entered = syscall(libc::SYS_chdir, cwd) == 0;
            if self.root {
                let (uid, gid) = (self.uid as usize, self.gid as usize);
                let groups = [self.groups.len(), self.groups.as_ptr().addr(), 0, 0, 0];
                self.must(Stage::User, syscall(libc::SYS_setgroups, groups));
                self.must(Stage::User, syscall(libc::SYS_setresgid, [gid, gid, gid, 0, 0]));
                self.must(Stage::User, syscall(libc::SYS_setresuid, [uid, uid, uid, 0, 0]));
            }
            if !entered {
                // A network filesystem may know the user and not root.
                self.must(Stage::Cwd, syscall(libc::SYS_chdir, cwd));
            }
            syscall(libc::SYS_umask, [0o022, 0, 0, 0, 0]);
            // Ours are all close-on-exec; this is for those that a kernel or test harness handed down.
            syscall(libc::SYS_close_range, [3, u32::MAX as usize, libc::CLOSE_RANGE_CLOEXEC as usize, 0, 0]);
            let (program, argv, envp) = (self.program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
            self.must(Stage::Exec, syscall(libc::SYS_execve, [program.addr(), argv.addr(), envp.addr(), 0, 0]));
            exit()
        }
    }

    /// Lays a /proc that shows the new PID namespace over the machine's, unseen from outside.
    ///
    /// # Safety
    /// As [`Image::become_it`].
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the kernel takes and gives registers")]
    unsafe fn mount_proc(&self) {
        let (proc, kind) = (c"/proc".as_ptr().addr(), c"proc".as_ptr().addr());
        let plain = (libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC) as usize;
        // SAFETY: the strings are constants.
        unsafe {
            let private = [0, proc, 0, libc::MS_PRIVATE as usize, 0];
            self.must(Stage::Namespace, syscall(libc::SYS_mount, private));
            self.must(Stage::Namespace, syscall(libc::SYS_mount, [kind, proc, kind, plain, 0]));
            // As the machine's: without it the boot id is the same in all sandboxes, which is no reason not to start.
            let (from, to) = (generation::BOOT_ID_FILE.as_ptr().addr(), generation::BOOT_ID.as_ptr().addr());
            syscall(libc::SYS_mount, [from, to, 0, libc::MS_BIND as usize, 0]);
        }
    }

    /// Tells the parent of a failed call, and ends.
    ///
    /// # Safety
    /// As [`Image::become_it`].
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the kernel takes and gives registers")]
    unsafe fn must(&self, stage: Stage, result: isize) {
        if result >= 0 {
            return;
        }
        let errno = (-result as i32).to_le_bytes();
        let told = [stage as u8, errno[0], errno[1], errno[2], errno[3]];
        // SAFETY: memory of this frame.
        unsafe {
            syscall(libc::SYS_write, [self.status as usize, told.as_ptr().addr(), told.len(), 0, 0]);
            exit()
        }
    }
}

/// # Safety
/// As [`Image::become_it`].
unsafe fn exit() -> ! {
    loop {
        // SAFETY: ends this process, which has one thread.
        unsafe { syscall(libc::SYS_exit_group, [127, 0, 0, 0, 0]) };
    }
}

/// A system call; a negative result is an errno.
///
/// # Safety
/// As the call itself.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the kernel takes and gives registers")]
unsafe fn syscall(number: libc::c_long, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let result: isize;
    // SAFETY: the kernel's calling convention: it clobbers rcx and r11 and touches no stack.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result
}

#[cfg(not(target_arch = "x86_64"))]
compile_error!("guests are x86-64 machines; another architecture needs its system call convention here");
