//! Terminals of the real agent, through the real client.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Guest, SOON};
use nullspace_guest::host::{Agent, AgentError, ExecEvent, ExecSession};
use nullspace_guest::message::{Exec, Exit, FailureKind};
use nullspace_guest::terminal::{MAX_TERMINALS, OpenTerminal, TerminalSize};

fn terminal(argv: &[&str]) -> OpenTerminal {
    OpenTerminal {
        name: "pty_test".into(),
        size: TerminalSize { cols: 97, rows: 41 },
        exec: Exec {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            user: Some(format!("{}:{}", nix::unistd::geteuid(), nix::unistd::getegid())),
            envs: [("PS1".to_owned(), "$ ".to_owned())].into(),
            ..Exec::default()
        },
    }
}

/// Reads until the output ends with a text; returns all of it.
async fn until(session: &mut ExecSession, end: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(end) {
        match tokio::time::timeout(SOON, session.next()).await {
            Ok(Ok(Some(ExecEvent::Stdout(bytes)))) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?} instead of {end:?}, after {seen:?}"),
        }
    }
    seen
}

/// Reads to the end.
async fn rest(session: &mut ExecSession) -> (String, Exit) {
    let mut seen = String::new();
    loop {
        match tokio::time::timeout(SOON, session.next()).await {
            Ok(Ok(Some(ExecEvent::Stdout(bytes)))) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            Ok(Ok(Some(ExecEvent::Exit(exit)))) => return (seen, exit),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
}

async fn type_in(agent: &Agent, session: &ExecSession, keys: &str) {
    agent.feed_service(session.pid, keys.as_bytes(), SOON).await.unwrap();
}

#[tokio::test]
async fn a_shell_has_a_terminal_of_its_size_and_tells_its_exit_code() {
    let agent = Guest::new().connect().await;
    let mut session = agent.open_terminal(terminal(&["/bin/sh"])).await.unwrap();
    type_in(&agent, &session, "stty size; tty; echo $TERM; test -t 0 -a -t 1 -a -t 2 && echo all; exit 3\n").await;
    let (seen, exit) = rest(&mut session).await;
    for expected in ["41 97\r\n", "/dev/pts/", "xterm-256color\r\n", "all\r\n"] {
        assert!(seen.contains(expected), "{expected:?} is not in {seen:?}");
    }
    assert_eq!(exit, Exit { code: 3, ..Exit::default() });
    let terminals = agent.terminals().await.unwrap();
    assert_eq!(terminals.iter().map(|one| (one.pid, one.exit)).collect::<Vec<_>>(), [(session.pid, Some(exit))]);
}

#[tokio::test]
async fn the_users_own_shell_is_run_when_none_is_named() {
    let agent = Guest::new().connect().await;
    let mut session = agent.open_terminal(terminal(&[])).await.unwrap();
    type_in(&agent, &session, "echo \"shell=$SHELL.\"; exit 0\n").await;
    let (seen, exit) = rest(&mut session).await;
    assert!(seen.contains("shell=/"), "{seen:?}");
    assert_eq!(exit.code, 0);
}

#[tokio::test]
async fn control_keys_reach_the_foreground_job() {
    let agent = Guest::new().connect().await;
    let mut session = agent.open_terminal(terminal(&["/bin/sh"])).await.unwrap();
    // The job itself says that it has begun: a shell puts a job into the foreground before it runs its program.
    type_in(&agent, &session, "sh -c 'echo be\"\"gins; exec sleep 1000'; echo \"status $?.\"\n").await;
    until(&mut session, "begins\r\n").await;
    type_in(&agent, &session, "\u{3}").await;
    // An interactive shell drops the rest of the line; the next one shows how the job ended.
    type_in(&agent, &session, "echo \"late''r $?.\"\n").await;
    let seen = until(&mut session, "130.").await;
    assert!(seen.contains("^C"), "{seen:?}");
    type_in(&agent, &session, "exit\n").await;
    rest(&mut session).await;
}

#[tokio::test]
async fn a_new_size_is_told_to_the_foreground_job() {
    let agent = Guest::new().connect().await;
    let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut session = agent.open_terminal(terminal(&["/bin/sh", "-c", script])).await.unwrap();
    until(&mut session, "ready").await;
    agent.resize(session.pid, TerminalSize { cols: 77, rows: 33 }).await.unwrap();
    until(&mut session, "33 77").await;
    assert_eq!(agent.terminals().await.unwrap()[0].size, TerminalSize { cols: 77, rows: 33 });
    for (pid, size, kind) in [
        (session.pid, TerminalSize { cols: 0, rows: 33 }, FailureKind::Invalid),
        (session.pid, TerminalSize { cols: 1001, rows: 33 }, FailureKind::Invalid),
        (1, TerminalSize::DEFAULT, FailureKind::NotFound),
    ] {
        match agent.resize(pid, size).await {
            Err(AgentError::Failed(failure)) => assert_eq!(failure.kind, kind),
            other => panic!("{other:?}"),
        }
    }
    agent.close_terminal(session.pid).await.unwrap();
    let (_, exit) = rest(&mut session).await;
    assert_eq!(exit.signal, Some(1));
}

#[tokio::test]
async fn a_terminal_outlives_its_follower_and_the_session_of_the_host() {
    let guest = Guest::new();
    let agent = guest.connect().await;
    let mut session = agent.open_terminal(terminal(&["/bin/cat"])).await.unwrap();
    let pid = session.pid;
    type_in(&agent, &session, "before\n").await;
    until(&mut session, "before\r\nbefore\r\n").await;
    drop(session);
    agent.feed_service(pid, b"meanwhile\n", SOON).await.unwrap();
    drop(agent);
    let agent = guest.connect().await;
    let found = agent.terminals().await.unwrap();
    assert_eq!((found[0].pid, found[0].name.as_str(), found[0].exit), (pid, "pty_test", None));
    let mut session = agent.attach(pid).await.unwrap();
    until(&mut session, "before\r\nbefore\r\nmeanwhile\r\nmeanwhile\r\n").await;
    // Ctrl-D.
    type_in(&agent, &session, "\u{4}").await;
    assert_eq!(rest(&mut session).await.1.code, 0);
}

#[tokio::test]
async fn a_killed_terminal_takes_all_of_its_session_along() {
    let agent = Guest::new().connect().await;
    // Jobs in groups of their own, and one that ignores the hangup.
    let script =
        "set -m; sleep 1000 & a=$!; trap '' HUP; sleep 1001 & echo \"jobs $a $!.\"; while :; do sleep 0.1; done";
    let mut session = agent.open_terminal(terminal(&["/bin/sh", "-c", script])).await.unwrap();
    let seen = until(&mut session, ".\r\n").await;
    let jobs: Vec<u32> = seen
        .split_once("jobs ")
        .unwrap()
        .1
        .trim()
        .trim_end_matches('.')
        .split(' ')
        .map(|pid| pid.parse().unwrap())
        .collect();
    let began = Instant::now();
    agent.close_terminal(session.pid).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(900), "one ignores SIGHUP");
    for pid in jobs {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    }
    assert_eq!(rest(&mut session).await.1.signal, Some(9));
    // Once more is no error.
    agent.close_terminal(session.pid).await.unwrap();
}

#[tokio::test]
async fn a_process_whose_name_is_no_text_ends_with_its_terminal() {
    let agent = Guest::new().connect().await;
    let script =
        "sh -c 'trap \"\" HUP; printf \"a\\377) b\" > /proc/$$/comm; echo job $$.; while :; do sleep 0.1; done' & wait";
    let mut session = agent.open_terminal(terminal(&["/bin/sh", "-c", script])).await.unwrap();
    let seen = until(&mut session, ".\r\n").await;
    let job = seen.split_once("job ").unwrap().1.trim().trim_end_matches('.').to_owned();
    let stat = || std::fs::read(format!("/proc/{job}/stat")).unwrap_or_default();
    assert!(stat().contains(&0xff), "{:?}", String::from_utf8_lossy(&stat()));
    agent.close_terminal(session.pid).await.unwrap();
    assert!(stat().is_empty() || String::from_utf8_lossy(&stat()).contains(") Z "));
}

#[tokio::test]
async fn output_is_whole_to_its_last_byte_for_a_slow_reader() {
    let agent = Guest::new().connect().await;
    // More than the windows, the ring and the kernel keep, and the session ends behind it.
    let script = "i=0; while [ $i -lt 20000 ]; do echo $i-0123456789012345678901234567890123456789; i=$((i+1)); done";
    let mut session = agent.open_terminal(terminal(&["/bin/sh", "-c", script])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (seen, exit) = rest(&mut session).await;
    assert_eq!(exit.code, 0);
    let numbers: Vec<usize> = seen.lines().map(|line| line.split_once('-').unwrap().0.parse().unwrap()).collect();
    assert!(
        numbers.len() == 20_000 && numbers.iter().enumerate().all(|(at, number)| at == *number),
        "{}",
        numbers.len()
    );
}

#[tokio::test]
async fn input_that_nobody_reads_is_bounded_and_the_terminal_can_be_killed() {
    let agent = Guest::new().connect().await;
    let script = "stty raw -echo; echo ready; exec sleep 1000";
    let mut session = agent.open_terminal(terminal(&["/bin/sh", "-c", script])).await.unwrap();
    until(&mut session, "ready").await;
    let fed = agent.feed_service(session.pid, &vec![b'x'; 1 << 20], Duration::from_secs(1)).await;
    assert!(matches!(fed, Err(AgentError::Timeout { .. })), "{fed:?}");
    agent.close_terminal(session.pid).await.unwrap();
    assert_eq!(rest(&mut session).await.1.signal, Some(1));
    match agent.feed_service(session.pid, b"x", SOON).await {
        Err(AgentError::Failed(failure)) => assert_eq!(failure.kind, FailureKind::StdinClosed),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn terminals_are_few_and_their_places_are_given_back() {
    let agent = Guest::new().connect().await;
    let mut sessions = Vec::new();
    for _ in 0..MAX_TERMINALS {
        sessions.push(agent.open_terminal(terminal(&["/bin/cat"])).await.unwrap());
    }
    match agent.open_terminal(terminal(&["/bin/cat"])).await {
        Err(AgentError::Failed(failure)) => assert_eq!(failure.kind, FailureKind::Limit),
        other => panic!("{other:?}"),
    }
    agent.close_terminal(sessions[0].pid).await.unwrap();
    sessions.push(agent.open_terminal(terminal(&["/bin/cat"])).await.unwrap());
    for session in &sessions {
        agent.close_terminal(session.pid).await.unwrap();
    }
}
