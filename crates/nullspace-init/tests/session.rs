//! The real agent and the real client over a socket pair, in this process: what needs neither root nor PID 1.

#![allow(unsafe_code, reason = "the test becomes the reaper of its children")]
// clippy.toml lets tests unwrap, and does not count their helpers.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Guest, SOON};
use nullspace_guest::host::{Agent, AgentError, ExecEvent, ExecOutput};
use nullspace_guest::message::{Exec, Exit, Failure, FailureKind, Probe, ProbeCheck};

/// A shell command as the user that runs the tests.
fn sh(script: &str) -> Exec {
    Exec {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        user: Some(format!("{}:{}", nix::unistd::geteuid(), nix::unistd::getegid())),
        ..Exec::default()
    }
}

async fn output(agent: &Agent, exec: Exec) -> ExecOutput {
    agent.exec_collect(exec, 1 << 20).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

async fn refusal(agent: &Agent, exec: Exec) -> FailureKind {
    match agent.exec_collect(exec, 100).await {
        Err(AgentError::Failed(Failure { kind, .. })) => kind,
        other => panic!("{other:?}"),
    }
}

fn alive(pid: u32) -> bool {
    // A zombie counts as gone: whose child it is may be nobody's concern here.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

async fn gone(pid: u32) {
    let until = Instant::now() + SOON;
    while alive(pid) {
        assert!(Instant::now() < until, "process {pid} lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn streams_codes_and_signals_are_told_apart() {
    let agent = Guest::new().connect().await;
    let out = output(&agent, sh("echo out; echo err >&2; exit 41")).await;
    assert_eq!((text(&out.stdout), text(&out.stderr)), ("out".into(), "err".into()));
    assert_eq!(out.exit, Exit { code: 41, ..Exit::default() });
    let out = output(&agent, sh("kill -9 $$")).await;
    assert_eq!(out.exit, Exit { code: 137, signal: Some(9), ..Exit::default() });
    assert!(out.pid > 1);
}

#[tokio::test]
async fn environment_directory_and_lookup() {
    let agent = Guest::new().connect().await;
    let folder = tempfile::tempdir().unwrap();
    let mut exec = sh("");
    exec.argv = ["env"].map(str::to_owned).to_vec();
    exec.envs.insert("SECRET".into(), "a b=c".into());
    exec.cwd = Some(folder.path().to_str().unwrap().into());
    let env = text(&output(&agent, exec.clone()).await.stdout);
    let mut names: Vec<_> = env.lines().map(|line| line.split_once('=').unwrap().0).collect();
    names.sort_unstable();
    assert_eq!(names, ["HOME", "LOGNAME", "PATH", "SECRET", "TERM", "USER"], "{env}");
    assert!(env.contains("SECRET=a b=c"));
    exec.argv = ["pwd"].map(str::to_owned).to_vec();
    assert_eq!(text(&output(&agent, exec).await.stdout), folder.path().to_str().unwrap());
}

#[tokio::test]
async fn a_process_has_a_clean_start() {
    let agent = Guest::new().connect().await;
    let out = output(
        &agent,
        sh("ls /proc/self/fd | tr '\\n' ' '; read -r s </proc/$$/stat; set -- $s; echo $1 $5 $6; umask"),
    )
    .await;
    let pid = out.pid;
    // ls has its directory open as 3; nothing of the agent is inherited. It leads its own group and session.
    assert_eq!(text(&out.stdout), format!("0 1 2 3 {pid} {pid} {pid}\n0022"));
    // cat, which has no handlers of its own.
    let status = output(&agent, Exec { argv: vec!["cat".into(), "/proc/self/status".into()], ..sh("") }).await;
    let status = text(&status.stdout);
    let signals: Vec<_> =
        status.lines().filter(|line| line.starts_with("Sig") && line.ends_with(&"0".repeat(16))).collect();
    assert_eq!(signals.len(), 4, "pending, blocked, ignored, caught: {status}");
}

#[tokio::test]
async fn refusals_are_typed() {
    let agent = Guest::new().connect().await;
    let with = |argv: &[&str]| Exec { argv: argv.iter().map(|&arg| arg.to_owned()).collect(), ..sh("") };
    assert_eq!(refusal(&agent, with(&[])).await, FailureKind::Invalid);
    assert_eq!(refusal(&agent, with(&["no-such-program"])).await, FailureKind::ProgramNotFound);
    assert_eq!(refusal(&agent, with(&["/no/such"])).await, FailureKind::ProgramNotFound);
    assert_eq!(refusal(&agent, with(&["/etc/passwd"])).await, FailureKind::NotExecutable);
    let folder = tempfile::tempdir().unwrap();
    let script = |content: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.path().join("script");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    assert_eq!(refusal(&agent, with(&[&script("#!/no/interpreter\n")])).await, FailureKind::NotExecutable);
    assert_eq!(refusal(&agent, with(&[&script("echo hi\n")])).await, FailureKind::NotExecutable);
    assert_eq!(
        refusal(&agent, Exec { cwd: Some("/no/such".into()), ..sh("true") }).await,
        FailureKind::WorkdirNotFound
    );
    assert_eq!(
        refusal(&agent, Exec { user: Some("nobody-at-all".into()), ..sh("true") }).await,
        FailureKind::UnknownUser
    );
    let huge = Exec { envs: [("X".to_owned(), "x".repeat(200_000))].into(), ..sh("true") };
    assert_eq!(
        refusal(&agent, huge).await,
        FailureKind::Invalid,
        "one string of the environment is over the kernel's limit"
    );
}

#[tokio::test]
async fn users_are_taken_as_asked() {
    let agent = Guest::new().connect().await;
    let exec = Exec { user: Some("65534:12345".into()), ..sh("id -u; id -g; id -G; echo $HOME") };
    if nix::unistd::geteuid().is_root() {
        let shown = text(&output(&agent, exec).await.stdout);
        assert!(shown.starts_with("65534\n12345\n12345\n"), "{shown}");
        let plain = Exec { user: Some("54321".into()), ..sh("id -u; id -g; echo $HOME $USER") };
        assert_eq!(text(&output(&agent, plain).await.stdout), "54321\n0\n/ 54321");
    } else {
        // Nobody becomes another user without being root, and it is said so.
        assert_eq!(refusal(&agent, exec).await, FailureKind::Internal);
    }
}

#[tokio::test]
async fn stdin_goes_through_and_ends() {
    let agent = Guest::new().connect().await;
    let mut session = agent.exec(Exec { stdin: true, ..sh("cat; echo end >&2") }).await.unwrap();
    let mut stdin = session.take_stdin().unwrap();
    let total = 3_000_000;
    let write = tokio::spawn(async move {
        for piece in vec![7u8; total].chunks(100_000) {
            stdin.write(piece).await.unwrap();
        }
    });
    let out = session.collect(total + 1).await.unwrap();
    write.await.unwrap();
    assert_eq!((out.stdout.len(), out.stdout.iter().all(|byte| *byte == 7)), (total, true));
    assert_eq!((text(&out.stderr), out.exit.code), ("end".into(), 0));
}

#[tokio::test]
async fn stdin_that_nobody_reads_does_not_hold_its_writer() {
    let agent = Guest::new().connect().await;
    let mut session = agent.exec(Exec { stdin: true, ..sh("exec <&-; sleep 60") }).await.unwrap();
    tokio::time::timeout(SOON, session.write(&vec![0; 2_000_000])).await.unwrap().unwrap();
    let pid = session.pid;
    drop(session);
    gone(pid).await;
}

#[tokio::test]
async fn without_stdin_there_is_nothing_to_read() {
    let agent = Guest::new().connect().await;
    let out = output(&agent, sh("cat; readlink /proc/self/fd/0")).await;
    assert_eq!(text(&out.stdout), "/dev/null");
}

#[tokio::test]
async fn much_output_arrives_whole_and_slow_readers_hold_it_back() {
    let agent = Guest::new().connect().await;
    let mut session = agent.exec(sh("head -c 5000000 /dev/zero")).await.unwrap();
    // Credit is 256 KiB and a pipe holds 64: the process cannot have ended.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(alive(session.pid));
    let mut got = 0;
    while let Some(event) = session.next().await.unwrap() {
        match event {
            ExecEvent::Stdout(bytes) => got += bytes.len(),
            other => assert_eq!(other, ExecEvent::Exit(Exit::default())),
        }
    }
    assert_eq!(got, 5_000_000);
}

#[tokio::test]
async fn a_timeout_ends_the_whole_group() {
    let agent = Guest::new().connect().await;
    // Time enough for the shell to begin.
    let exec = Exec { timeout_ms: Some(1500), ..sh("echo before; sleep 60 & echo $!; wait") };
    let out = tokio::time::timeout(SOON, output(&agent, exec)).await.expect("the group's end");
    assert_eq!(out.exit, Exit { code: 143, signal: Some(15), timed_out: true, ..Exit::default() });
    let shown = text(&out.stdout);
    gone(shown.strip_prefix("before\n").unwrap().parse().unwrap()).await;

    // One that ignores SIGTERM has a second, then none.
    let began = Instant::now();
    let out = output(&agent, Exec { timeout_ms: Some(1500), ..sh("trap '' TERM; while :; do sleep 1; done") }).await;
    assert_eq!(out.exit, Exit { code: 137, signal: Some(9), timed_out: true, ..Exit::default() });
    assert!(began.elapsed() >= Duration::from_millis(2500));
}

#[tokio::test]
async fn a_dropped_session_kills_its_process_group() {
    let agent = Guest::new().connect().await;
    let mut session = agent.exec(sh("sleep 60 & echo $!; wait")).await.unwrap();
    let Some(ExecEvent::Stdout(child)) = session.next().await.unwrap() else { panic!("no output") };
    let (child, pid): (u32, u32) = (text(&child).parse().unwrap(), session.pid);
    assert!(alive(pid) && alive(child));
    drop(session);
    gone(pid).await;
    gone(child).await;
}

#[tokio::test]
async fn a_new_session_ends_the_old_ones_processes_but_no_service() {
    let guest = Guest::new();
    let first = guest.connect().await;
    let service = first.start_service(sh("echo up; exec sleep 60")).await.unwrap();
    let exec = first.exec(sh("exec sleep 60")).await.unwrap();
    let pid = exec.pid;
    first.disconnect().await;
    // Without a new session it lives on: a snapshot is taken while nobody is connected.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(alive(pid));
    let second = guest.connect().await;
    gone(pid).await;
    assert!(alive(service));
    let mut follow = second.attach(service).await.unwrap();
    assert_eq!(follow.next().await.unwrap(), Some(ExecEvent::Stdout("up\n".into())));
    second.kill(service, libc::SIGTERM).await.unwrap();
    let exit = Exit { code: 143, signal: Some(15), ..Exit::default() };
    assert_eq!(follow.next().await.unwrap(), Some(ExecEvent::Exit(exit)));
    assert_eq!(follow.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_background_process_does_not_hold_the_exec() {
    let agent = Guest::new().connect().await;
    let folder = tempfile::tempdir().unwrap();
    let (over, written) = (folder.path().join("over"), folder.path().join("written"));
    // It writes on after the exec is over, and must not die of that.
    let script = format!(
        "(until test -e {}; do sleep 0.05; done; echo late && : >{} && sleep 60) & echo $!; \
         head -c 30000 /dev/zero | tr '\\0' x",
        over.display(),
        written.display()
    );
    let out = tokio::time::timeout(SOON, output(&agent, sh(&script))).await.expect("the exec's end");
    std::fs::write(&over, "").unwrap();
    let shown = text(&out.stdout);
    let (pid, rest) = shown.split_once('\n').unwrap();
    assert_eq!(rest.len(), 30_000);
    let pid = pid.parse().unwrap();
    let until = Instant::now() + SOON;
    while !written.exists() {
        assert!(alive(pid), "ended by SIGPIPE");
        assert!(Instant::now() < until, "it does not write");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(alive(pid), "ended by SIGPIPE");
    agent.kill(pid, libc::SIGKILL).await.unwrap();
}

#[tokio::test]
async fn a_background_process_that_writes_for_ever_does_not_hold_the_exec() {
    let agent = Guest::new().connect().await;
    let run = agent.exec_collect(sh("yes & echo $! >&2"), 1000);
    let out = tokio::time::timeout(SOON, run).await.unwrap().unwrap();
    assert!(out.truncated);
    agent.kill(text(&out.stderr).parse().unwrap(), libc::SIGKILL).await.unwrap();
}

#[tokio::test]
async fn orphans_are_reaped() {
    // As PID 1 is by nature.
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) }, 0);
    let agent = Guest::new().connect().await;
    let out = output(&agent, sh("(sh -c 'echo $$; exec sleep 0.1' &)")).await;
    let orphan: u32 = text(&out.stdout).parse().unwrap();
    let until = Instant::now() + SOON;
    while std::path::Path::new(&format!("/proc/{orphan}")).exists() {
        assert!(Instant::now() < until, "{orphan} is a zombie");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(output(&agent, sh("exit 3")).await.exit.code, 3);
}

#[tokio::test]
async fn services_keep_their_output_and_count_their_starts() {
    let agent = Guest::new().connect().await;
    // It runs until it is told to go on.
    let exec = Exec { stdin: true, ..sh("echo one; echo two >&2; read line; echo three; exit 7") };
    let pid = agent.start_service(exec.clone()).await.unwrap();
    let listed = |list: Vec<nullspace_guest::message::Process>, pid| list.into_iter().find(|p| p.pid == pid);
    let process = listed(agent.processes().await.unwrap(), pid).unwrap();
    assert_eq!((process.starts, process.running), (Some(1), true));
    assert!(process.command.contains("echo one"), "{}", process.command);
    agent.feed_service(pid, b"go on\n", SOON).await.unwrap();
    let out = agent.attach(pid).await.unwrap().collect(100).await.unwrap();
    assert_eq!((text(&out.stdout), text(&out.stderr), out.exit.code), ("one\nthree".into(), "two".into(), 7));
    // Again, when it is long over, and by two at a time.
    let (again, also) = (agent.attach(pid).await.unwrap(), agent.attach(pid).await.unwrap());
    let (again, also) = tokio::join!(again.collect(100), also.collect(100));
    assert_eq!((again.unwrap(), also.unwrap()), (out.clone(), out));
    let second = agent.start_service(exec).await.unwrap();
    assert_eq!(listed(agent.processes().await.unwrap(), second).unwrap().starts, Some(2));
    agent.kill(second, libc::SIGKILL).await.unwrap();
    match agent.attach(999_999).await.unwrap_err() {
        AgentError::Failed(failure) => assert_eq!(failure.kind, FailureKind::NotFound),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_service_that_nobody_follows_is_not_held_back() {
    let agent = Guest::new().connect().await;
    let pid = agent.start_service(sh("head -c 3000000 /dev/zero; echo done >&2")).await.unwrap();
    gone(pid).await;
    let out = agent.attach(pid).await.unwrap().collect(1 << 20).await.unwrap();
    assert_eq!((text(&out.stderr), out.exit.code), ("done".into(), 0));
    assert!((200_000..=256 * 1024).contains(&out.stdout.len()), "{}", out.stdout.len());
}

#[tokio::test]
async fn probes() {
    let agent = Guest::new().connect().await;
    let within = async |check, timeout_ms| agent.probe(Probe { check, timeout_ms }).await.unwrap();
    let attempt = async |check| within(check, 20_000).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(attempt(ProbeCheck::Tcp { port }).await, (true, String::new()));
    // It is connected to and says nothing.
    let silent = within(ProbeCheck::Http { port, path: "/".into() }, 300).await;
    assert_eq!(silent, (false, "timed out".to_owned()));
    drop(listener);
    let (ready, detail) = attempt(ProbeCheck::Tcp { port }).await;
    assert!(!ready && detail.contains("refused"), "{detail}");
    assert_eq!(attempt(ProbeCheck::Command(sh("echo fine"))).await, (true, "fine".to_owned()));
    let failing = sh("echo first; echo 'no database' >&2; exit 3");
    assert_eq!(attempt(ProbeCheck::Command(failing)).await, (false, "exit code 3: no database".to_owned()));
    assert_eq!(within(ProbeCheck::Command(sh("sleep 60")), 300).await, (false, "timed out after 300 ms".to_owned()));
    let bad = Probe { check: ProbeCheck::Http { port, path: "/a b".into() }, timeout_ms: 100 };
    assert!(matches!(agent.probe(bad).await, Err(AgentError::Failed(_))));
}

#[tokio::test]
async fn signals_reach_only_what_may_be_signalled() {
    let agent = Guest::new().connect().await;
    for (pid, signal) in [(1, 9), (0, 9), (u32::MAX, 9), (2, 65), (2, -1)] {
        match agent.kill(pid, signal).await {
            Err(AgentError::Failed(failure)) => assert_eq!(failure.kind, FailureKind::Invalid, "{pid}"),
            other => panic!("{pid}: {other:?}"),
        }
    }
    match agent.kill(i32::MAX as u32, 0).await {
        Err(AgentError::Failed(failure)) => assert_eq!(failure.kind, FailureKind::NotFound),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn without_a_root_everything_says_why() {
    let guest = Guest::on(Err("mount /dev/vda as ext4: Invalid argument".to_owned()));
    let agent = guest.connect().await;
    match agent.exec(sh("true")).await.unwrap_err() {
        AgentError::Failed(failure) => assert!(failure.message.contains("Invalid argument"), "{failure}"),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn many_at_a_time() {
    let agent = Guest::new().connect().await;
    let runs: Vec<_> = (0..60)
        .map(|at| {
            let agent = agent.clone();
            tokio::spawn(async move { (at, output(&agent, sh(&format!("sleep 0.1; echo {at}; exit {at}"))).await) })
        })
        .collect();
    for run in runs {
        let (at, out) = run.await.unwrap();
        assert_eq!((out.exit.code, text(&out.stdout)), (at, at.to_string()));
    }
}

/// Reads a little at a time, slowly at first, and says how much there was of each stream and how it ended.
async fn slowly(mut session: nullspace_guest::host::ExecSession) -> (Vec<u8>, Vec<u8>, Option<Exit>) {
    let (mut out, mut err, mut exit, mut pauses) = (Vec::new(), Vec::new(), None, 0);
    while let Some(event) = tokio::time::timeout(SOON, session.next()).await.unwrap().unwrap() {
        match event {
            ExecEvent::Stdout(bytes) => out.extend_from_slice(&bytes),
            ExecEvent::Stderr(bytes) => err.extend_from_slice(&bytes),
            ExecEvent::Exit(how) => exit = Some(how),
        }
        if pauses < 40 {
            pauses += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    (out, err, exit)
}

#[tokio::test]
async fn a_followed_service_loses_nothing_to_a_slow_reader() {
    let agent = Guest::new().connect().await;
    // Both streams by turns, each line with its number.
    let script = "i=0; while [ $i -lt 20000 ]; do echo $i-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; \
                  echo $i >&2; i=$((i+1)); done; head -c 5000000 /dev/zero; exit 5";
    let session = agent.run_service(sh(script)).await.unwrap();
    let pid = session.pid;
    let (out, err, exit) = slowly(session).await;
    let lines = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().count();
    let zeros = out.iter().filter(|byte| **byte == 0).count();
    assert_eq!((lines(&err), zeros, exit.unwrap().code), (20_000, 5_000_000, 5));
    assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 20_000);
    assert!(String::from_utf8_lossy(&err).lines().enumerate().all(|(at, line)| line == at.to_string()));
    // Later only the end is there, and what is not is counted.
    let late = agent.attach(pid).await.unwrap();
    let (lost_out, lost_err) = late.lost;
    let (rest, rest_err, _) = slowly(late).await;
    assert_eq!(lost_out + rest.len() as u64, out.len() as u64);
    assert_eq!(lost_err + rest_err.len() as u64, err.len() as u64);
}

#[tokio::test]
async fn a_service_goes_on_when_its_follower_leaves_and_is_found_again() {
    let agent = Guest::new().connect().await;
    let script = "echo first; head -c 3000000 /dev/zero; echo last >&2; exec sleep 60";
    let mut session = agent.run_service(sh(script)).await.unwrap();
    let pid = session.pid;
    let Some(ExecEvent::Stdout(bytes)) = session.next().await.unwrap() else { panic!("no output") };
    assert!(bytes.starts_with(b"first\n"));
    // It is held back by a follower that reads no more, and set free when that one leaves.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let probe = agent.output_so_far(pid).await.unwrap();
    let (_, err, _) = slowly(probe).await;
    assert_eq!(text(&err), "");
    drop(session);
    let mut late = agent.attach(pid).await.unwrap();
    let mut err = Vec::new();
    while text(&err) != "last" {
        if let Some(ExecEvent::Stderr(bytes)) = tokio::time::timeout(SOON, late.next()).await.unwrap().unwrap() {
            err.extend_from_slice(&bytes);
        }
    }
    assert!(alive(pid));
    agent.kill(pid, libc::SIGKILL).await.unwrap();
    let exit = loop {
        match tokio::time::timeout(SOON, late.next()).await.unwrap().unwrap() {
            Some(ExecEvent::Exit(exit)) => break exit,
            Some(_) => {}
            None => panic!("no exit"),
        }
    };
    assert_eq!(exit.signal, Some(libc::SIGKILL));
}

#[tokio::test]
async fn services_are_fed_by_one_after_the_other() {
    let agent = Guest::new().connect().await;
    let feed = async |pid, bytes: &[u8]| agent.feed_service(pid, bytes, SOON).await;
    let mut session = agent.run_service(Exec { stdin: true, ..sh("exec cat") }).await.unwrap();
    let pid = session.pid;
    feed(pid, b"one \xff\n").await.unwrap();
    assert_eq!(session.next().await.unwrap(), Some(ExecEvent::Stdout(b"one \xff\n".to_vec().into())));
    // Many at once, larger than the pipe: none is torn apart by another.
    let feeds: Vec<_> = (b'a'..b'i')
        .map(|letter| {
            let agent = agent.clone();
            tokio::spawn(async move { agent.feed_service(pid, &vec![letter; 200_000], SOON).await })
        })
        .collect();
    let reading = async {
        let mut got = Vec::new();
        while got.len() < 1_600_000 {
            if let Some(ExecEvent::Stdout(bytes)) = session.next().await.unwrap() {
                got.extend_from_slice(&bytes);
            }
        }
        got
    };
    let got = tokio::time::timeout(SOON, reading).await.unwrap();
    for feed in feeds {
        feed.await.unwrap().unwrap();
    }
    let runs = got.chunk_by(|a, b| a == b).map(<[u8]>::len).collect::<Vec<_>>();
    assert_eq!(runs, [200_000; 8]);

    let refusal = |result: Result<(), AgentError>| match result {
        Err(AgentError::Failed(failure)) => failure.kind,
        other => panic!("{other:?}"),
    };
    agent.kill(pid, libc::SIGKILL).await.unwrap();
    while session.next().await.unwrap().is_some() {}
    assert_eq!(refusal(feed(pid, b"x").await), FailureKind::StdinClosed);
    assert_eq!(refusal(feed(999_999, b"x").await), FailureKind::NotFound);
    let without = agent.start_service(sh("sleep 60")).await.unwrap();
    assert_eq!(refusal(feed(without, b"x").await), FailureKind::StdinClosed);
    agent.kill(without, libc::SIGKILL).await.unwrap();
    // One that does not read holds nobody up for ever, and not the next either.
    let idle = agent.start_service(Exec { stdin: true, ..sh("sleep 60") }).await.unwrap();
    let began = Instant::now();
    for _ in 0..2 {
        let stuck = agent.feed_service(idle, &vec![0; 300_000], Duration::from_millis(200)).await;
        assert!(matches!(stuck, Err(AgentError::Timeout { .. })), "{stuck:?}");
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    agent.kill(idle, libc::SIGKILL).await.unwrap();
}

#[tokio::test]
async fn a_killed_service_takes_its_group_along() {
    let agent = Guest::new().connect().await;
    let mut session = agent.run_service(sh("sleep 60 & echo $!; wait")).await.unwrap();
    let Some(ExecEvent::Stdout(child)) = session.next().await.unwrap() else { panic!("no output") };
    agent.kill(session.pid, libc::SIGKILL).await.unwrap();
    gone(text(&child).parse().unwrap()).await;
}

#[tokio::test]
async fn a_users_command_can_open_its_own_pipes_anew() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: takes another user on");
        return;
    }
    let agent = Guest::new().connect().await;
    let script = "echo out > /dev/stdout && echo err > /dev/stderr && cat /dev/stdin";
    let exec = Exec { user: Some("4321:4321".into()), cwd: Some("/".into()), stdin: true, ..sh(script) };
    let mut session = agent.exec(exec).await.unwrap();
    let mut stdin = session.take_stdin().unwrap();
    stdin.write(b"in").await.unwrap();
    drop(stdin);
    let out = session.collect(1000).await.unwrap();
    assert_eq!((text(&out.stdout), text(&out.stderr), out.exit.code), ("out\nin".into(), "err".into(), 0));
    // One that takes a user on by itself, as gosu and su-exec do.
    let exec = Exec {
        user: Some("0:0".into()),
        ..sh("exec setpriv --reuid 4321 --clear-groups sh -c 'echo x > /dev/stdout'")
    };
    assert_eq!(text(&output(&agent, exec).await.stdout), "x");
}

#[tokio::test]
async fn a_working_directory_is_made_for_a_command_that_may_have_it() {
    let agent = Guest::new().connect().await;
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("a/b").display().to_string();
    let pwd = |make_cwd| Exec { cwd: Some(missing.clone()), make_cwd, ..sh("pwd") };
    assert_eq!(refusal(&agent, pwd(false)).await, FailureKind::WorkdirNotFound);
    assert_eq!(text(&output(&agent, pwd(true)).await.stdout), missing);
    assert_eq!(text(&output(&agent, pwd(false)).await.stdout), missing);
}

#[tokio::test]
async fn the_use_of_the_machine_is_measured() {
    let agent = Guest::new().connect().await;
    let before = agent.usage().await.unwrap();
    assert!(before.memory_used > 0 && before.memory_used < before.memory_total, "{before:?}");
    assert!(before.disk_used > 0 && before.disk_used <= before.disk_total, "{before:?}");
    let burn = sh("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done");
    assert_eq!(output(&agent, burn).await.exit.code, 0);
    let after = agent.usage().await.unwrap();
    assert!(after.cpu_ms >= before.cpu_ms + 20, "{before:?}, then {after:?}");
}

#[tokio::test]
async fn a_services_stdin_is_closed_behind_its_last_data() {
    let agent = Guest::new().connect().await;
    let mut session = agent.run_service(Exec { stdin: true, ..sh("cat; echo end") }).await.unwrap();
    let pid = session.pid;
    agent.feed_service(pid, b"one ", SOON).await.unwrap();
    // More than the pipe holds: stdin is closed behind all of it.
    let much = vec![b'x'; 300_000];
    let close = async { agent.close_service_stdin(pid, &much, SOON).await };
    let read = async {
        let mut got = Vec::new();
        loop {
            match session.next().await.unwrap() {
                Some(ExecEvent::Stdout(bytes)) => got.extend_from_slice(&bytes),
                Some(ExecEvent::Exit(exit)) => return (got, exit.code),
                other => panic!("{other:?}"),
            }
        }
    };
    let (closed, (got, code)) = tokio::join!(close, read);
    closed.unwrap();
    assert_eq!((got.len(), code), (4 + 300_000 + 4, 0));
    assert!(got.ends_with(b"xend\n"));
    // Without data, and once more when it is over.
    let pid = agent.start_service(Exec { stdin: true, ..sh("cat") }).await.unwrap();
    agent.close_service_stdin(pid, b"", SOON).await.unwrap();
    let out = agent.attach(pid).await.unwrap().collect(10).await.unwrap();
    assert_eq!((out.stdout.len(), out.exit.code), (0, 0));
    let closed = agent.close_service_stdin(pid, b"", SOON).await;
    assert!(
        matches!(&closed, Err(AgentError::Failed(failure)) if failure.kind == FailureKind::StdinClosed),
        "{closed:?}"
    );
}
