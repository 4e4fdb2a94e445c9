//! Child processes that own nothing, and that never outlive this one.
//!
//! ```text
//!   launch() -> [thread vmm-spawner] fork --- child: session, groups, namespaces, limits, uid, Landlock, death signal, exec
//!                                      |
//!   Process <- [task] pidfd readable: reap, then drop what the child's life held (uid slot, network, memory)
//! ```
//!
//! A child gets `/dev/null` as stdin, a bounded log as stdout and stderr, an empty environment, and of our descriptors
//! only those it was meant to have. The kernel kills it when the thread that forked it ends (`PR_SET_PDEATHSIG` is bound
//! to the thread, not to the process): hence one thread forks them all and lives as long as the service. A service
//! killed with SIGKILL leaves no child behind.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use crate::VmmError;
use crate::walls::{Around, RawAround};

/// How long a process may take to vanish after SIGKILL: it may have to free gigabytes, or hang in a dying disk.
const REAP_LIMIT: Duration = Duration::from_secs(20);

/// Who a child is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its uid and gid.
    pub(crate) id: u32,
    /// Its only supplementary group.
    pub(crate) group: Option<u32>,
}

/// A program to run.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Descriptors that keep their number in the child, and the only ones besides 0-2.
    pub(crate) inherit: Vec<OwnedFd>,
    /// stdout and stderr.
    pub(crate) output: OwnedFd,
    /// Network namespace to enter.
    pub(crate) namespace: Option<OwnedFd>,
    /// Other namespaces and Landlock.
    pub(crate) around: Around,
    /// Control groups to enter, by their `cgroup.procs`. Without one the child is made nice instead, so that the service
    /// gets the processors before it.
    pub(crate) groups: Vec<OwnedFd>,
    /// Needs root. `None`: it runs as us.
    pub(crate) identity: Option<Identity>,
    /// Longest file that it may write, bytes.
    pub(crate) file_limit: u64,
}

/// Starts a program. `held` is dropped when the process is gone, and not before. Call it in a tokio runtime.
pub(crate) async fn launch<G: Send + 'static>(launch: Launch, held: G) -> Result<Process, VmmError> {
    let program = launch.program.display().to_string();
    let failed = |source| VmmError::Io { context: format!("start {program}"), source };
    let (reply, answer) = oneshot::channel();
    spawner().send((launch, reply)).map_err(|_| failed(io::Error::other("the spawning thread has ended")))?;
    let child = answer.await.map_err(|_| failed(io::Error::other("the spawning thread has ended")))?.map_err(failed)?;
    Process::supervise(child, held).map_err(failed)
}

type Request = (Launch, oneshot::Sender<io::Result<Child>>);

fn spawner() -> &'static mpsc::Sender<Request> {
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        let run = move || {
            for (launch, reply) in requests {
                // When nobody waits any more, the reply and with it the child are dropped, which ends it.
                let _ = reply.send(spawn(launch));
            }
        };
        if let Err(error) = std::thread::Builder::new().name("vmm-spawner".into()).spawn(run) {
            // The sender then has no receiver: every launch fails and says so.
            tracing::error!(%error, "start the thread that starts virtual machines");
        }
        sender
    })
}

/// A process that was not yet handed to a task: dropping it ends it.
#[derive(Debug)]
struct Child {
    pidfd: Option<OwnedFd>,
    pid: Pid,
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
            let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

/// A new PID namespace for the children of the calling thread, until it is dropped.
struct ChildNamespace(OwnedFd);

impl ChildNamespace {
    fn make() -> io::Result<Self> {
        let own = std::fs::File::open("/proc/self/ns/pid")?;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID)?;
        Ok(Self(own.into()))
    }
}

impl Drop for ChildNamespace {
    fn drop(&mut self) {
        if let Err(error) = nix::sched::setns(&self.0, nix::sched::CloneFlags::CLONE_NEWPID) {
            // The next unshare is refused then, and every launch that wants one says so.
            tracing::error!(%error, "the thread that starts virtual machines is left in a PID namespace");
        }
    }
}

fn spawn(launch: Launch) -> io::Result<Child> {
    let parent = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    let setup = Setup {
        keep: launch.inherit.iter().map(AsRawFd::as_raw_fd).collect(),
        namespace: launch.namespace.as_ref().map(AsRawFd::as_raw_fd),
        identity: launch.identity,
        around: launch.around.raw(),
        groups: launch.groups.iter().map(AsRawFd::as_raw_fd).collect(),
        file_limit: launch.file_limit,
        parent: parent.as_raw_fd(),
    };
    let namespace = launch.around.namespaces.then(ChildNamespace::make).transpose()?;
    let mut command = Command::new(&launch.program);
    command.args(&launch.args).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(launch.output.try_clone()?).stderr(launch.output);
    // SAFETY: `apply` only makes system calls on numbers and memory that exist before the fork: it neither allocates
    // nor takes a lock.
    unsafe { command.pre_exec(move || setup.apply()) };
    let child = command.spawn();
    drop(namespace);
    let child = child?;
    let raw = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = raw.ok_or_else(|| io::Error::other("the child has an impossible pid"))?;
    // The child is ours and not reaped: the number cannot mean another process.
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Child { pidfd: Some(pidfd), pid }),
        Err(error) => {
            let mut child = child;
            let _ = child.kill();
            let _ = child.wait();
            Err(error.into())
        }
    }
}

/// What the child does between fork and exec.
struct Setup {
    keep: Vec<RawFd>,
    namespace: Option<RawFd>,
    identity: Option<Identity>,
    around: RawAround,
    groups: Vec<RawFd>,
    file_limit: u64,
    /// A pidfd of the service: its pid means nothing in another PID namespace.
    parent: RawFd,
}

/// Niceness of a child that no control group weighs.
const NICE: libc::c_int = 10;

impl Setup {
    fn apply(&self) -> io::Result<()> {
        // SAFETY: plain system calls; pointers are to locals that outlive the call. The raw numbers for the ids are
        // used because libc's wrappers signal threads that do not exist on this side of the fork.
        unsafe {
            check(libc::setsid())?;
            libc::umask(0o077);
            // The kernel's choice under memory pressure shall be a guest, not the service.
            let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if score >= 0 {
                libc::write(score, b"500".as_ptr().cast(), 3);
                libc::close(score);
            }
            for group in &self.groups {
                let entered = libc::write(*group, b"0".as_ptr().cast(), 1);
                check(entered as libc::c_int)?;
            }
            if self.groups.is_empty() {
                // On top of the service's own. Its result says nothing: -1 is a niceness too.
                libc::nice(NICE);
                // Where the scheduler groups by session, niceness counts within the session, and this file between them.
                let autogroup = libc::open(c"/proc/self/autogroup".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                if autogroup >= 0 {
                    libc::write(autogroup, b"10".as_ptr().cast(), 2);
                    libc::close(autogroup);
                }
            }
            if let Some(namespace) = self.namespace {
                check(libc::setns(namespace, libc::CLONE_NEWNET))?;
            }
            self.around.enter()?;
            limit(libc::RLIMIT_CORE, 0)?;
            limit(libc::RLIMIT_FSIZE, self.file_limit)?;
            limit(libc::RLIMIT_NOFILE, 1024)?;
            let all_but_std = libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            check(all_but_std as libc::c_int)?;
            for fd in &self.keep {
                check(libc::fcntl(*fd, libc::F_SETFD, 0))?;
            }
            if let Some(Identity { id, group }) = self.identity {
                let groups = [group.unwrap_or(0)];
                check(libc::syscall(libc::SYS_setgroups, usize::from(group.is_some()), groups.as_ptr()) as libc::c_int)?;
                check(libc::syscall(libc::SYS_setresgid, id, id, id) as libc::c_int)?;
                check(libc::syscall(libc::SYS_setresuid, id, id, id) as libc::c_int)?;
            }
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            self.around.restrict()?;
            // After the change of uid, which clears it.
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            let mut service = libc::pollfd { fd: self.parent, events: libc::POLLIN, revents: 0 };
            if libc::poll(&raw mut service, 1, 0) != 0 {
                // It has ended, before the line above.
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        Ok(())
    }
}

unsafe fn limit(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is a local.
    check(unsafe { libc::getrlimit(resource, &mut now) })?;
    // Raising the hard limit needs a right that we may not have: never above it.
    let value = value.min(now.rlim_max);
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(resource, &libc::rlimit { rlim_cur: value, rlim_max: value }) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A running child. Dropping it kills it; its task reaps it.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: Arc<OwnedFd>,
    pid: Pid,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    fn supervise<G: Send + 'static>(mut child: Child, held: G) -> io::Result<Self> {
        let pid = child.pid;
        let watched = match &child.pidfd {
            // SAFETY: the `AsyncFd` owns the descriptor, which nobody else knows or closes.
            Some(pidfd) => unsafe { AsyncFd::register_with_interest(pidfd.try_clone()?, Interest::READABLE) }?,
            None => return Err(io::Error::other("the child has no descriptor")),
        };
        let pidfd = child.pidfd.take().map(Arc::new).ok_or_else(|| io::Error::other("the child has no descriptor"))?;
        let (sender, exit) = watch::channel(None);
        tokio::spawn(async move {
            let status = reap(&watched).await;
            // Removing control groups and giving memory back takes the kernel a moment.
            let _ = tokio::task::spawn_blocking(move || drop(held)).await;
            let _ = sender.send(Some(status));
        });
        Ok(Self { pidfd, pid, exit })
    }

    /// Its pid, for the log.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// How it ended; waits until it has.
    pub(crate) async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await.map(|status| *status) {
            Ok(Some(status)) => status,
            // The runtime that reaped it is shutting down: nobody will ever know.
            _ => ExitStatus::from_raw(libc::SIGKILL),
        }
    }

    /// True once it is gone.
    pub(crate) fn has_exited(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Sends SIGKILL. A process that is gone already is fine.
    pub(crate) fn signal_kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&*self.pidfd, Signal::KILL);
    }

    /// Ends it and waits until it is gone.
    pub(crate) async fn kill(&self) -> Result<(), VmmError> {
        self.signal_kill();
        match tokio::time::timeout(REAP_LIMIT, self.exited()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(VmmError::Timeout {
                what: format!("ending process {}", self.pid()),
                limit_ms: REAP_LIMIT.as_millis() as u64,
            }),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal_kill();
    }
}

async fn reap(pidfd: &AsyncFd<OwnedFd>) -> ExitStatus {
    loop {
        let Ok(mut ready) = pidfd.readable().await else {
            return ExitStatus::from_raw(libc::SIGKILL); // the runtime is shutting down
        };
        match rustix::process::waitid(
            WaitId::PidFd(pidfd.get_ref().as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Ok(Some(status)) => {
                let raw = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => (code & 0xff) << 8,
                    (None, Some(signal)) => signal & 0x7f,
                    (None, None) => libc::SIGKILL,
                };
                return ExitStatus::from_raw(raw);
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => ready.clear_ready(),
            // ECHILD: somebody reaped it behind our back. It is gone all the same.
            Err(_) => return ExitStatus::from_raw(libc::SIGKILL),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use std::path::Path;

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::walls::Walls;

    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn shell(script: &str, inherit: Vec<OwnedFd>) -> (Launch, tokio::net::unix::pipe::Receiver) {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let launch = Launch {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            inherit,
            output: writer,
            namespace: None,
            around: Around::default(),
            groups: Vec::new(),
            identity: None,
            file_limit: 4096,
        };
        (launch, tokio::net::unix::pipe::Receiver::from_owned_fd(reader).unwrap())
    }

    async fn output_of(launch_it: Launch, mut reader: tokio::net::unix::pipe::Receiver) -> (ExitStatus, String) {
        let process = launch(launch_it, ()).await.unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        (process.exited().await, text)
    }

    #[tokio::test]
    async fn a_child_has_only_the_descriptors_it_was_given() {
        let (extra, _other) = rustix::pipe::pipe().unwrap();
        // Inheritable on purpose: a descriptor that some library forgot to mark.
        let (_leak, _leak_too) = rustix::pipe::pipe().unwrap();
        let number = extra.as_raw_fd();
        let (launch_it, reader) = shell("echo /proc/self/fd/*; id -u; env; ulimit -f; pwd", vec![extra]);
        let (status, text) = output_of(launch_it, reader).await;
        assert!(status.success());
        let mut lines = text.lines();
        let fds: Vec<_> =
            lines.next().unwrap().split(' ').map(|fd| fd.rsplit('/').next().unwrap().to_owned()).collect();
        assert!(fds.contains(&number.to_string()), "{fds:?}");
        // The shell itself holds the folder that it lists.
        assert!(fds.len() <= 5, "{fds:?}");
        assert!(text.ends_with("\n8\n/\n"), "{text}");
        assert!(!text.contains("PATH=/"), "{text}");
    }

    #[tokio::test]
    async fn what_a_child_holds_is_dropped_after_it_is_gone() {
        let dropped = Arc::new(AtomicBool::new(false));
        let (launch_it, _reader) = shell("sleep 1000", vec![]);
        let process = launch(launch_it, Flag(dropped.clone())).await.unwrap();
        assert!(!process.has_exited());
        assert!(!dropped.load(Ordering::SeqCst));
        process.kill().await.unwrap();
        assert_eq!(process.exited().await.signal(), Some(libc::SIGKILL));
        assert!(dropped.load(Ordering::SeqCst));
        process.kill().await.unwrap();
    }

    #[tokio::test]
    async fn a_missing_program_is_an_error_that_names_it() {
        let (mut launch_it, _reader) = shell("", vec![]);
        launch_it.program = "/nonexistent/vmm".into();
        let error = launch(launch_it, ()).await.unwrap_err();
        assert_eq!(error.to_string(), "start /nonexistent/vmm");
    }

    #[tokio::test]
    async fn as_root_a_child_gets_its_own_identity_and_no_rights() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (mut launch_it, reader) = shell("cat /proc/self/status", vec![]);
        launch_it.identity = Some(Identity { id: 7_654_321, group: Some(12_345) });
        let (status, text) = output_of(launch_it, reader).await;
        assert!(status.success(), "{text}");
        let field = |name: &str| {
            text.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().skip(1).collect::<Vec<_>>()
        };
        assert_eq!(field("Uid:"), ["7654321"; 4]);
        assert_eq!(field("Gid:"), ["7654321"; 4]);
        assert_eq!(field("Groups:"), ["12345"]);
        assert_eq!(field("NoNewPrivs:"), ["1"]);
        assert_eq!(field("CapEff:"), ["0000000000000000"]);
    }

    #[tokio::test]
    async fn without_control_groups_a_child_is_nice() {
        let (launch_it, reader) = shell("cut -d' ' -f19 /proc/self/stat", vec![]);
        let (_, text) = output_of(launch_it, reader).await;
        assert!(text.trim().parse::<i32>().unwrap() >= NICE, "{text}");
    }

    #[tokio::test]
    async fn as_root_a_child_is_alone_in_namespaces_that_show_it_programs_and_nothing_else() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let walls = Walls::new(Path::new("/bin/sh"));
        let here = tempfile::tempdir().unwrap();
        std::fs::set_permissions(here.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let secret = here.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        for namespace_of in ["pid", "ipc", "uts", "mnt"] {
            let (mut launch_it, reader) = shell(&format!("readlink /proc/self/ns/{namespace_of}"), vec![]);
            launch_it.around = walls.around(&[], false).unwrap();
            let (status, text) = output_of(launch_it, reader).await;
            assert!(status.success(), "{namespace_of}: {text}");
            let ours = std::fs::read_link(format!("/proc/self/ns/{namespace_of}")).unwrap();
            assert_ne!(Path::new(text.trim()), ours, "{namespace_of}");
        }
        let script = format!(
            "echo pid $$; echo /*; echo /proc/[0-9]*; cat /proc/1/status | grep ^Pid; cat {} 2>&1; echo x >/x; echo x >/usr/x; ls /usr >/dev/null && echo shown",
            secret.display()
        );
        for landlock in [false, true] {
            let (mut launch_it, reader) = shell(&script, vec![]);
            let around = walls.around(&[], false).unwrap();
            assert!(around.tree.is_some() && around.ruleset.is_some(), "{:?}", walls.missing());
            launch_it.around = if landlock { around } else { Around { ruleset: None, ..around } };
            // Without Landlock it stays root, so that only the tree can refuse it anything.
            launch_it.identity = landlock.then_some(Identity { id: 7_654_321, group: None });
            let (_, text) = output_of(launch_it, reader).await;
            let lines: Vec<_> = text.lines().collect();
            assert_eq!(lines[0], "pid 1", "{text}");
            if landlock {
                // No rule covers the new root folder and the new /proc.
                assert_eq!(lines[1..3], ["/*", "/proc/[0-9]*"], "{text}");
                assert!(text.contains("/proc/1/status: Permission denied"), "{text}");
            } else {
                let shown = ["/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/usr"];
                assert!(lines[1].contains("/usr") && lines[1].split(' ').all(|path| shown.contains(&path)), "{text}");
                assert!(lines[2].starts_with("/proc/1") && text.contains("Pid:\t1\n"), "{text}");
            }
            assert!(text.contains("No such file") && !text.contains("secret\n"), "{text}");
            assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
            assert_eq!(lines.last(), Some(&"shown"), "the programs' folders can be read: {text}");
        }
        assert!(walls.missing().is_empty(), "{:?}", walls.missing());
    }

    #[tokio::test]
    async fn landlock_keeps_a_child_without_a_tree_of_its_own_from_files_it_was_not_given() {
        let walls = Walls::new(Path::new("/bin/sh"));
        if !walls.describe().contains("Landlock") {
            return; // this kernel has none: doctor says so
        }
        let here = tempfile::tempdir().unwrap();
        let paths = ["given", "other"].map(|name| here.path().join(name));
        for path in &paths {
            std::fs::write(path, path.file_name().unwrap().as_encoded_bytes()).unwrap();
        }
        let given: OwnedFd = std::fs::File::open(&paths[0]).unwrap().into();
        let script = format!(
            "cat /proc/self/fd/{}; cat {} 2>&1; echo x >{} ; ls {} 2>&1",
            given.as_raw_fd(),
            paths[1].display(),
            here.path().join("new").display(),
            here.path().display()
        );
        let around = walls.around(std::slice::from_ref(&given), true).unwrap();
        let (mut launch_it, reader) = shell(&script, vec![given]);
        launch_it.around = Around { namespaces: false, tree: None, ..around };
        let (_, text) = output_of(launch_it, reader).await;
        assert!(text.starts_with("given") && text.matches("Permission denied").count() == 3, "{text}");
        assert!(!here.path().join("new").exists());
    }
}
