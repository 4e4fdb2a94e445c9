use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::*;
use crate::walls::{Around, Walls};

struct Flag(Arc<AtomicBool>);
impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A shell that the service confines.
fn shell(script: &str, inherit: Vec<OwnedFd>) -> (Launch, Receiver) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let launch = Launch {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        directory: "/".into(),
        output: writer,
        inherit,
        network: None,
        namespaces: Namespaces::Host,
        confinement: Some(Confinement { groups: Vec::new(), identity: None, file_limit: 4096, ruleset: None }),
    };
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).unwrap();
    (launch, Receiver::from_owned_fd(reader).unwrap())
}

fn confinement(launch: &mut Launch) -> &mut Confinement {
    launch.confinement.as_mut().unwrap()
}

async fn said(mut reader: Receiver) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).await.unwrap();
    text
}

async fn output_of(launch_it: Launch, reader: Receiver) -> (ExitStatus, String) {
    let process = launch(launch_it, ()).await.unwrap();
    let text = said(reader).await;
    (process.exited().await, text)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
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
    let fds: Vec<_> = lines.next().unwrap().split(' ').map(|fd| fd.rsplit('/').next().unwrap().to_owned()).collect();
    assert!(fds.contains(&number.to_string()), "{fds:?}");
    // The shell itself holds the folder that it lists.
    assert!(fds.len() <= 5, "{fds:?}");
    assert!(text.ends_with("\n8\n/\n"), "{text}");
    assert!(!text.contains("PATH=/"), "{text}");
}

#[tokio::test]
async fn a_child_without_confinement_has_no_environment_and_no_descriptors_and_tells_its_status() {
    let (_leak, _leak_too) = rustix::pipe::pipe().unwrap();
    let (mut launch_it, reader) = shell("env | grep -v -E '^(PWD|SHLVL|_)='; ls /proc/self/fd; exit 7", vec![]);
    launch_it.confinement = None;
    let (status, text) = output_of(launch_it, reader).await;
    assert_eq!(status.code(), Some(7));
    // 3 is the folder that `ls` lists.
    assert_eq!(text, "0\n1\n2\n3\n");
}

#[tokio::test]
async fn a_child_leads_a_session_and_dies_before_the_service_under_memory_pressure() {
    let (mut launch_it, reader) = shell("cut -d' ' -f1,6 /proc/$$/stat; cat /proc/self/oom_score_adj", vec![]);
    launch_it.confinement = None;
    let (_, text) = output_of(launch_it, reader).await;
    let lines: Vec<_> = text.lines().collect();
    let (pid, session) = lines[0].split_once(' ').unwrap();
    assert_eq!((pid, lines[1]), (session, "500"));
}

#[tokio::test]
async fn what_a_child_holds_is_dropped_after_it_is_gone() {
    let dropped = Arc::new(AtomicBool::new(false));
    let (launch_it, _reader) = shell("exec sleep 1000", vec![]);
    let process = launch(launch_it, Flag(dropped.clone())).await.unwrap();
    assert!(process.status().is_none());
    assert!(!dropped.load(Ordering::SeqCst));
    process.kill().await.unwrap();
    assert_eq!(process.exited().await.signal(), Some(libc::SIGKILL));
    assert!(dropped.load(Ordering::SeqCst));
    process.kill().await.unwrap();
}

#[tokio::test]
async fn a_caller_who_stops_waiting_leaves_no_child_and_nothing_that_it_held() {
    let dropped = Arc::new(AtomicBool::new(false));
    let (launch_it, reader) = shell("exec sleep 1000", vec![]);
    let mut starting = Box::pin(launch(launch_it, Flag(dropped.clone())));
    assert!(futures_poll(starting.as_mut()).await.is_none(), "it cannot be there at once");
    drop(starting);
    // The child had the pipe's other end.
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), said(reader)).await.unwrap(), "");
    let let_go = async {
        while !dropped.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), let_go).await.expect("what it held is still held");
}

/// Polls once.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[tokio::test]
async fn a_missing_program_is_an_error_that_names_the_step_and_frees_what_was_held() {
    let dropped = Arc::new(AtomicBool::new(false));
    let (mut launch_it, _reader) = shell("", vec![]);
    launch_it.program = "/nonexistent/vmm".into();
    let error = launch(launch_it, Flag(dropped.clone())).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().starts_with("could not run the program: "), "{error}");
    assert!(dropped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn as_root_a_child_gets_its_own_identity_and_no_rights() {
    if !is_root() {
        return;
    }
    let (mut launch_it, reader) = shell("cat /proc/self/status", vec![]);
    confinement(&mut launch_it).identity = Some(Identity { id: 7_654_321, group: Some(12_345) });
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
    assert!(text.trim().parse::<i32>().unwrap() >= child::NICE, "{text}");
}

#[tokio::test]
async fn killing_the_first_of_a_namespace_ends_even_those_that_changed_their_uid() {
    if !is_root() {
        return;
    }
    // `setpriv` changes the uid as the jailer does, which clears the parent-death signal.
    let script = "setpriv --reuid 65534 --clear-groups sh -c 'echo up; exec sleep 1000'; exit $?";
    let (mut launch_it, mut reader) = shell(script, vec![]);
    launch_it.confinement = None;
    launch_it.namespaces = Namespaces::Bound(Vec::new());
    let process = launch(launch_it, ()).await.unwrap();
    reader.read_exact(&mut [0; 3]).await.unwrap();
    process.kill().await.unwrap();
    assert_eq!(process.exited().await.signal(), Some(libc::SIGKILL));
    // The sleeper had the pipe's other end.
    assert_eq!(said(reader).await, "");
}

#[tokio::test]
async fn a_bound_file_is_seen_read_only_there_and_nowhere_else() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [from, to] = ["memory", "place"].map(|name| dir.path().join(name));
    std::fs::write(&from, "template").unwrap();
    std::fs::write(&to, "").unwrap();
    let script = format!("cat {0}; echo x 2>/dev/null >{0} || echo ' read-only'; echo pid $$", to.display());
    let (mut launch_it, reader) = shell(&script, vec![]);
    let [c_from, c_to] = [&from, &to].map(|path| CString::new(path.as_os_str().as_bytes()).unwrap());
    launch_it.confinement = None;
    launch_it.namespaces = Namespaces::Bound(vec![Bind { from: c_from, to: c_to, writable: false }]);
    let (status, text) = output_of(launch_it, reader).await;
    assert!(status.success());
    assert_eq!(text, "template read-only\npid 1\n");
    assert_eq!(std::fs::read(&to).unwrap(), b"");
}

#[tokio::test]
async fn as_root_a_child_is_alone_in_namespaces_that_show_it_programs_and_nothing_else() {
    if !is_root() {
        return;
    }
    let walls = Walls::new(Path::new("/bin/sh"));
    let here = tempfile::tempdir().unwrap();
    std::fs::set_permissions(here.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let secret = here.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    for namespace_of in ["pid", "ipc", "uts", "mnt"] {
        let (mut launch_it, reader) = shell(&format!("readlink /proc/self/ns/{namespace_of}"), vec![]);
        within(&mut launch_it, walls.around(&[], false).unwrap());
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
        let whole =
            matches!(around.namespaces, Namespaces::Own { tree: Some(_), offline: true }) && around.ruleset.is_some();
        assert!(whole, "{:?}", walls.missing());
        within(&mut launch_it, if landlock { around } else { Around { ruleset: None, ..around } });
        // Without Landlock it stays root, so that only the tree can refuse it anything.
        confinement(&mut launch_it).identity = landlock.then_some(Identity { id: 7_654_321, group: None });
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
    within(&mut launch_it, Around { namespaces: Namespaces::Host, ..around });
    let (_, text) = output_of(launch_it, reader).await;
    assert!(text.starts_with("given") && text.matches("Permission denied").count() == 3, "{text}");
    assert!(!here.path().join("new").exists());
}

fn within(launch: &mut Launch, Around { namespaces, ruleset }: Around) {
    launch.namespaces = namespaces;
    confinement(launch).ruleset = ruleset;
}
