//! fork and exec.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nullspace_guest::message::{Failure, FailureKind};

use super::prepare::Plan;
use super::reaper::{Reaper, Watch};

/// How long a child may take from fork to exec: reading a program from a slow disk.
const EXEC_LIMIT: Duration = Duration::from_secs(20);

/// A process that runs, and our ends of its pipes.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) watch: Arc<Watch>,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Where a child failed, as it tells through the error pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    Stdio = 1,
    Cwd = 2,
    User = 3,
    Exec = 4,
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

fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    let moved = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: F_DUPFD answers a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
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
    let (status_read, status_write) = pipe().map_err(system)?;
    let (in_read, in_write) = if with_stdin {
        let (read, write) = pipe().map_err(system)?;
        nonblocking(&write).map_err(system)?;
        (read, Some(write))
    } else {
        let null = std::fs::File::open("/dev/null").map_err(|error| internal("/dev/null cannot be opened", error))?;
        (above_stdio(null.into()).map_err(system)?, None)
    };
    nonblocking(&out_read).and_then(|()| nonblocking(&err_read)).map_err(system)?;

    let argv = pointers(&plan.argv);
    let envp = pointers(&plan.envp);
    let image = Image {
        stdio: [in_read.as_raw_fd(), out_write.as_raw_fd(), err_write.as_raw_fd()],
        status: status_write.as_raw_fd(),
        program: &plan.program,
        argv: &argv,
        envp: &envp,
        cwd: &plan.cwd,
        uid: plan.account.uid,
        gid: plan.account.gid,
        groups: &plan.account.groups,
    };
    let fork = || {
        // SAFETY: the child only makes system calls on what was prepared above, and never returns.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: this is the child, right after fork.
            0 => unsafe { image.become_it() },
            pid => Ok(pid),
        }
    };
    let watch = Reaper::get().spawn(fork).map_err(system)?;
    drop((in_read, out_write, err_write, status_write));

    match await_exec(status_read.as_fd()) {
        Ok(None) => Ok(Child { watch, stdin: in_write, stdout: out_read, stderr: err_read }),
        Ok(Some((stage, errno))) => Err(explain(plan, stage, errno)),
        Err(error) => {
            Reaper::get().signal_group(&watch, libc::SIGKILL, false);
            // Before setsid the child is in our own group, so by its number too.
            if watch.exit().is_none() {
                // SAFETY: a plain system call. The child is ours and hangs before exec; were it reaped this instant, its
                // number would not be given out again so soon.
                unsafe { libc::kill(watch.pid(), libc::SIGKILL) };
            }
            Err(internal("A process did not start", error))
        }
    }
}

/// `None` once exec has closed the pipe.
fn await_exec(status: std::os::fd::BorrowedFd<'_>) -> io::Result<Option<(u8, i32)>> {
    let until = std::time::Instant::now() + EXEC_LIMIT;
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
        return match nix::unistd::read(status, &mut told) {
            Ok(0) => Ok(None),
            // Five bytes into an empty pipe are written as one.
            Ok(_) => Ok(Some((told[0], i32::from_le_bytes([told[1], told[2], told[3], told[4]])))),
            Err(nix::Error::EINTR) => continue,
            Err(error) => Err(error.into()),
        };
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

/// All that the child needs, borrowed from the parent's memory, which fork copies.
struct Image<'a> {
    stdio: [RawFd; 3],
    status: RawFd,
    program: &'a CStr,
    argv: &'a [*const libc::c_char],
    envp: &'a [*const libc::c_char],
    cwd: &'a CStr,
    uid: u32,
    gid: u32,
    groups: &'a [u32],
}

impl Image<'_> {
    /// Turns the forked child into the program.
    ///
    /// # Safety
    /// Only in a child right after fork: other threads of the parent may have held any lock, so nothing here allocates,
    /// and only async-signal-safe calls are made. User and group are set by raw system calls, since the C library's
    /// wrappers signal all threads it believes to exist.
    unsafe fn become_it(&self) -> ! {
        // SAFETY: every pointer comes from strings and slices that outlive the call, in memory of this child alone.
        unsafe {
            // The raw call, since the C library refuses signals 32 and 33, which may be inherited as ignored all the same.
            // Zeros are the default action without flags, as the kernel's own `struct sigaction` on 64-bit machines.
            let default = [0u64; 4];
            for signal in 1..=64 {
                // SIGKILL and SIGSTOP refuse; that is right.
                libc::syscall(libc::SYS_rt_sigaction, signal, &default, std::ptr::null::<u64>(), 8usize);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            libc::setsid();
            for (at, fd) in self.stdio.iter().enumerate() {
                if libc::dup2(*fd, at as RawFd) < 0 {
                    self.fail(Stage::Stdio);
                }
            }
            // As root, so that a home that the user may not search can still be a working directory, as in runc.
            let entered = libc::chdir(self.cwd.as_ptr()) == 0;
            // PID 1 is root. An agent in a developer's tests may not be, and then is the user already or may not become it.
            let already = libc::geteuid() != 0 && libc::geteuid() == self.uid && libc::getegid() == self.gid;
            if !already
                && (libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()) != 0
                    || libc::syscall(libc::SYS_setresgid, self.gid, self.gid, self.gid) != 0
                    || libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid) != 0)
            {
                self.fail(Stage::User);
            }
            // A network filesystem may know the user and not root.
            if !entered && libc::chdir(self.cwd.as_ptr()) != 0 {
                self.fail(Stage::Cwd);
            }
            libc::umask(0o022);
            // Ours are all close-on-exec; this is for those that a kernel or test harness handed down.
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
            libc::execve(self.program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
            self.fail(Stage::Exec)
        }
    }

    /// # Safety
    /// As [`Image::become_it`].
    unsafe fn fail(&self, stage: Stage) -> ! {
        // SAFETY: system calls on memory of this frame.
        unsafe {
            let errno = (*libc::__errno_location()).to_le_bytes();
            let told = [stage as u8, errno[0], errno[1], errno[2], errno[3]];
            libc::write(self.status, told.as_ptr().cast(), told.len());
            libc::_exit(127)
        }
    }
}
