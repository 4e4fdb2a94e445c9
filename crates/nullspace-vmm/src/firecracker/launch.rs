//! Starts a VMM so that it cannot outlive the service, and watches for its end.
//!
//! ```text
//!  service --(spawn thread)-- clone3: new PID namespace, PDEATHSIG = KILL
//!                                 |
//!                                 sh, PID 1 of the namespace: runs its arguments, waits, passes the status on
//!                                 |
//!                                 jailer, then (exec) firecracker under its own uid
//! ```
//!
//! The parent-death signal alone is not enough: the kernel clears it when a process changes its uid, which the jailer
//! does. But PID 1 of the namespace stays root and keeps it, and when PID 1 dies the kernel kills all others in the
//! namespace, whoever they are. The signal is tied to the *thread* that made the child, so one thread of the service
//! does nothing but this, for ever. A VMM without jailer keeps its uid and gets the signal itself.
//!
//! The child also gets a mount namespace of its own in which a template's files are bound, read-only, to places in
//! the VMM's folder: those mounts go with the process, whatever ends it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, mpsc};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::io::unix::AsyncFd;

use crate::{EndCause, Ended};

/// Everything the child needs; made before the clone, because afterwards it may not allocate.
pub(super) struct Launch {
    argv: Vec<CString>,
    directory: CString,
    output: OwnedFd,
    network: Option<OwnedFd>,
    binds: Vec<Bind>,
    own_pid_namespace: bool,
}

struct Bind {
    from: CString,
    to: CString,
    writable: bool,
}

impl Launch {
    /// Runs `program` with `args`, an empty environment, stdin from nowhere, stdout and stderr to `output`.
    pub(super) fn new(program: &Path, args: &[String], directory: &Path, output: OwnedFd) -> io::Result<Self> {
        let mut argv = vec![c_path(program)?];
        for arg in args {
            argv.push(CString::new(arg.as_str())?);
        }
        Ok(Self {
            argv,
            directory: c_path(directory)?,
            output,
            network: None,
            binds: Vec::new(),
            own_pid_namespace: false,
        })
    }

    /// Enters this network namespace.
    pub(super) fn network(&mut self, namespace: BorrowedFd<'_>) -> io::Result<()> {
        self.network = Some(namespace.try_clone_to_owned()?);
        Ok(())
    }

    /// Shows the file `from` at `to`, an existing empty file. Needs root.
    pub(super) fn bind(&mut self, from: &Path, to: &Path, writable: bool) -> io::Result<()> {
        self.binds.push(Bind { from: c_path(from)?, to: c_path(to)?, writable });
        Ok(())
    }

    /// Puts the program into a PID namespace whose first process dies with the service. Needs root.
    pub(super) fn in_own_pid_namespace(&mut self) {
        let holder = [c"/bin/sh", c"-c", c"\"$@\"; exit $?", c"nullspace-vm"];
        self.argv.splice(0..0, holder.map(CStr::to_owned));
        self.own_pid_namespace = true;
    }
}

/// A started process. Dropping it before its end was seen ends it, and blocks until it is gone.
#[derive(Debug)]
pub(super) struct Process {
    pidfd: OwnedFd,
    reaped: AtomicBool,
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped.load(Ordering::Acquire) {
            self.kill();
            let _ = self.reap(WaitIdOptions::empty());
        }
    }
}

impl Process {
    /// Starts it, from the thread that lives as long as the service. Blocks for the few ms of a fork.
    pub(super) fn start(launch: Launch) -> io::Result<Self> {
        type Job = (Launch, mpsc::Sender<io::Result<Process>>);
        static THREAD: OnceLock<Result<Mutex<mpsc::Sender<Job>>, io::ErrorKind>> = OnceLock::new();
        let thread = THREAD.get_or_init(|| {
            let (sender, jobs) = mpsc::channel::<Job>();
            std::thread::Builder::new()
                .name("nullspace-spawn".into())
                .spawn(move || {
                    for (launch, reply) in jobs {
                        let _ = reply.send(clone_and_exec(&launch));
                    }
                })
                .map(|_| Mutex::new(sender))
                .map_err(|e| e.kind())
        });
        let gone = || io::Error::other("the spawn thread has ended");
        let thread = thread.as_ref().map_err(|kind| io::Error::from(*kind))?;
        let (reply, answer) = mpsc::channel();
        thread.lock().map_err(|_| gone())?.send((launch, reply)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }

    /// Sends SIGKILL. The process may have ended before.
    pub(super) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits for the end, reaps, and says how it ended. With a PID namespace, nothing is left in it then.
    pub(super) async fn wait(&self) -> Ended {
        let readable = async {
            let pidfd = self.pidfd.try_clone()?;
            // SAFETY: the `AsyncFd` owns the descriptor, which stays open and the same as long as it is registered.
            let watched = unsafe { AsyncFd::register(pidfd) }?;
            watched.readable().await.map(drop)
        };
        if let Err(error) = readable.await {
            // No reactor any more: the service is ending, and the kernel ends the process with it.
            return Ended { cause: EndCause::Vmm, how: format!("its end cannot be watched: {error}") };
        }
        match self.reap(WaitIdOptions::NOHANG) {
            Ok(Some(ended)) => ended,
            Ok(None) => Ended { cause: EndCause::Vmm, how: "it ended".into() },
            Err(error) => Ended { cause: EndCause::Vmm, how: format!("its end is unknown: {error}") },
        }
    }

    fn reap(&self, options: WaitIdOptions) -> io::Result<Option<Ended>> {
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | options)?;
        if status.is_some() {
            self.reaped.store(true, Ordering::Release);
        }
        Ok(status.map(|status| ended(status.exit_status(), status.terminating_signal())))
    }
}

/// What a status says. Firecracker ends with 0 when its guest reboots, and has numbers of its own for the signals that it
/// catches (`FcExitCode`); the holding shell passes others on as 128 and their number.
fn ended(code: Option<i32>, signal: Option<i32>) -> Ended {
    let signal = signal.or(match code {
        Some(148) => Some(libc::SIGSYS),
        Some(149) => Some(libc::SIGBUS),
        Some(150) => Some(libc::SIGSEGV),
        Some(151) => Some(libc::SIGXFSZ),
        // Its settings or arguments.
        Some(152 | 153) => None,
        Some(154) => Some(libc::SIGXCPU),
        Some(155) => Some(libc::SIGPIPE),
        Some(156) => Some(libc::SIGHUP),
        Some(157) => Some(libc::SIGILL),
        Some(code @ 129..=192) => Some(code - 128),
        _ => None,
    });
    match (signal, code) {
        (Some(signal), _) => Ended { cause: EndCause::Signal(signal), how: format!("killed by signal {signal}") },
        (None, Some(0)) => Ended { cause: EndCause::Guest, how: "exit status 0".into() },
        (None, Some(code)) => Ended { cause: EndCause::Vmm, how: format!("exit status {code}") },
        (None, None) => Ended { cause: EndCause::Vmm, how: "it ended".into() },
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Where the child failed, for the error's text.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Stage {
    DeathSignal,
    Network,
    MountNamespace,
    Bind,
    Directory,
    Output,
    Exec,
}

const STAGES: [(Stage, &str); 7] = [
    (Stage::DeathSignal, "tie its life to the service's"),
    (Stage::Network, "enter the network namespace"),
    (Stage::MountNamespace, "make a mount namespace"),
    (Stage::Bind, "bind a template's file"),
    (Stage::Directory, "enter its folder"),
    (Stage::Output, "redirect its output"),
    (Stage::Exec, "run the program"),
];

fn clone_and_exec(launch: &Launch) -> io::Result<Process> {
    let (failure, report) = pipe_with(PipeFlags::CLOEXEC)?;
    let null = File::open("/dev/null")?;
    let argv: Vec<*const libc::c_char> = launch.argv.iter().map(|arg| arg.as_ptr()).chain([std::ptr::null()]).collect();
    let parent = rustix::process::getpid();
    let mut pidfd: libc::c_int = -1;
    let mut flags = libc::CLONE_PIDFD as u64;
    if launch.own_pid_namespace {
        flags |= libc::CLONE_NEWPID as u64;
    }
    // SAFETY: all fields of clone_args are integers, zero is "not used".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM the child is a copy of this process with this one thread, as after fork(2). `args` and
    // what it points to live past the call. The child only makes async-signal-safe calls, then execs or exits.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &mut args, size_of::<libc::clone_args>()) };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: this is the child of the clone above; `argv` is null-terminated and points into `launch`.
            unsafe { run_child(launch, &argv, &null, &report, parent.as_raw_nonzero().get()) }
        }
        _ => {
            // SAFETY: clone3 has put a new descriptor there, which nothing else owns.
            let process = Process { pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) }, reaped: AtomicBool::new(false) };
            drop(report);
            let mut told = Vec::new();
            File::from(failure).take(5).read_to_end(&mut told)?;
            let [stage, errno @ ..] = told.as_slice() else { return Ok(process) };
            let _ = process.reap(WaitIdOptions::empty());
            let source = io::Error::from_raw_os_error(i32::from_ne_bytes(errno.try_into().unwrap_or_default()));
            let what = STAGES.iter().find(|(number, _)| *number as u8 == *stage).map_or("start it", |(_, text)| text);
            Err(io::Error::new(source.kind(), format!("could not {what}: {source}")))
        }
    }
}

/// The child, between clone and exec: no allocation, no lock, no panic.
///
/// # Safety
/// Must run in a just cloned process; `argv` must be null-terminated.
unsafe fn run_child(launch: &Launch, argv: &[*const libc::c_char], null: &File, report: &OwnedFd, parent: i32) -> ! {
    let fail = |stage: Stage| -> ! {
        // SAFETY: errno's location is always valid; write and _exit take plain values and a local buffer.
        unsafe {
            let errno = (*libc::__errno_location()).to_ne_bytes();
            let told = [stage as u8, errno[0], errno[1], errno[2], errno[3]];
            libc::write(report.as_raw_fd(), told.as_ptr().cast(), told.len());
            libc::_exit(127)
        }
    };
    // SAFETY: system calls with valid, NUL-terminated strings and open descriptors.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) != 0 {
            fail(Stage::DeathSignal);
        }
        // The service may have died before the line above; in a new PID namespace the parent is never visible.
        if !launch.own_pid_namespace && libc::getppid() != parent {
            fail(Stage::DeathSignal);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        // Rust's runtime ignores it, and what is ignored stays so over an exec.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        if let Some(network) = &launch.network
            && libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) != 0
        {
            fail(Stage::Network);
        }
        if !launch.binds.is_empty() {
            // Slave: what the host unmounts later goes here too and is not held busy; what is bound here stays here.
            let propagation = libc::MS_REC | libc::MS_SLAVE;
            if libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(c"".as_ptr(), c"/".as_ptr(), std::ptr::null(), propagation, std::ptr::null()) != 0
            {
                fail(Stage::MountNamespace);
            }
        }
        let again = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        for Bind { from, to, writable } in &launch.binds {
            let none = std::ptr::null();
            let flags = if *writable { again } else { again | libc::MS_RDONLY };
            if libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND, none.cast()) != 0
                || libc::mount(none, to.as_ptr(), none, flags, none.cast()) != 0
            {
                fail(Stage::Bind);
            }
        }
        if libc::chdir(launch.directory.as_ptr()) != 0 {
            fail(Stage::Directory);
        }
        let output = launch.output.as_raw_fd();
        if libc::dup2(null.as_raw_fd(), 0) != 0 || libc::dup2(output, 1) != 1 || libc::dup2(output, 2) != 2 {
            fail(Stage::Output);
        }
        // Descriptors that some code opened without O_CLOEXEC do not pass. `report` is marked, not closed, since a
        // failing exec must still be told.
        libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        let environment = [std::ptr::null::<libc::c_char>()];
        libc::execve(argv[0], argv.as_ptr(), environment.as_ptr());
        fail(Stage::Exec)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sh(script: &str) -> (Launch, File) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let args = ["-c".to_owned(), script.to_owned()];
        (Launch::new(Path::new("/bin/sh"), &args, Path::new("/"), write).unwrap(), read.into())
    }

    fn said(mut output: File) -> String {
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        text
    }

    async fn run(launch: Launch) -> String {
        let process = Process::start(launch).unwrap();
        tokio::time::timeout(Duration::from_secs(20), process.wait()).await.unwrap().how
    }

    #[test]
    fn a_status_says_whose_doing_it_was() {
        for (code, signal, cause) in [
            (Some(0), None, EndCause::Guest),
            (Some(1), None, EndCause::Vmm),
            (Some(137), None, EndCause::Signal(libc::SIGKILL)),
            (Some(143), None, EndCause::Signal(libc::SIGTERM)),
            (Some(148), None, EndCause::Signal(libc::SIGSYS)),
            (Some(150), None, EndCause::Signal(libc::SIGSEGV)),
            (Some(153), None, EndCause::Vmm),
            (Some(157), None, EndCause::Signal(libc::SIGILL)),
            (None, Some(9), EndCause::Signal(libc::SIGKILL)),
        ] {
            assert_eq!(ended(code, signal).cause, cause, "{code:?} {signal:?}");
        }
    }

    #[tokio::test]
    async fn the_child_has_no_environment_no_descriptors_and_tells_its_status() {
        let (launch, output) = sh("env | grep -v -E '^(PWD|SHLVL|_)='; ls /proc/self/fd; exit 7");
        assert_eq!(run(launch).await, "exit status 7");
        // 3 is the folder that `ls` lists.
        assert_eq!(said(output), "0\n1\n2\n3\n");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_an_error_at_once() {
        let (_read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let launch = Launch::new(Path::new("/nowhere/firecracker"), &[], Path::new("/"), write).unwrap();
        let error = Process::start(launch).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("run the program"), "{error}");
    }

    #[tokio::test]
    async fn a_signal_is_told_with_and_without_a_holder() {
        let (launch, _output) = sh("kill -9 $$");
        assert_eq!(run(launch).await, "killed by signal 9");
        if rustix::process::geteuid().is_root() {
            let (mut launch, _output) = sh("kill -9 $$");
            launch.in_own_pid_namespace();
            assert_eq!(run(launch).await, "killed by signal 9");
        }
    }

    #[tokio::test]
    async fn killing_the_holder_ends_even_those_that_changed_their_uid() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // `setpriv` changes the uid as the jailer does, which clears the parent-death signal.
        let (mut launch, output) = sh("echo up; exec setpriv --reuid 65534 --clear-groups sleep 1000");
        launch.in_own_pid_namespace();
        let process = Process::start(launch).unwrap();
        let mut output = output;
        output.read_exact(&mut [0; 3]).unwrap();
        process.kill();
        let ended = tokio::time::timeout(Duration::from_secs(20), process.wait()).await.unwrap();
        assert_eq!(ended.how, "killed by signal 9");
        // The sleeper had the pipe's other end.
        assert_eq!(said(output), "");
    }

    #[tokio::test]
    async fn a_bound_file_is_seen_read_only_there_and_nowhere_else() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["memory", "place"].map(|name| dir.path().join(name));
        std::fs::write(&from, "template").unwrap();
        std::fs::write(&to, "").unwrap();
        let (mut launch, output) = sh(&format!("cat {0}; echo x 2>/dev/null >{0} || echo ' read-only'", to.display()));
        launch.bind(&from, &to, false).unwrap();
        assert_eq!(run(launch).await, "exit status 0");
        assert_eq!(said(output), "template read-only\n");
        assert_eq!(std::fs::read(&to).unwrap(), b"");
    }
}
