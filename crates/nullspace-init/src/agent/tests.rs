//! A session that goes on over another stream, with the real client. Here the processes do not stand still: they write all the
//! time, which is harder.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::reboot::RebootMode;
use nullspace_guest::host::{Agent as Host, AgentError, ExecEvent, ExecSession};
use nullspace_guest::message::Exit;

use super::*;
use crate::connection::serve;
use crate::stream::{Stream, StreamKind};

const SOON: Duration = Duration::from_secs(30);

struct Guest(Arc<Agent>);

impl Guest {
    fn new(halting: Halting) -> Guest {
        let ground = Ground { root: Ok("/dev/null".to_owned()), off: RebootMode::RB_POWER_OFF };
        Guest(Agent::that_halts(ground, halting))
    }

    /// A stream to the agent, and the agent's end of it.
    fn stream(&self) -> (tokio::net::UnixStream, Arc<Stream>) {
        let (host, guest) = UnixStream::pair().unwrap();
        let stream = Arc::new(Stream::new(guest.into(), StreamKind::Connection).unwrap());
        let (agent, served) = (self.0.clone(), stream.clone());
        std::thread::spawn(move || serve(&agent, &served));
        host.set_nonblocking(true).unwrap();
        (tokio::net::UnixStream::from_std(host).unwrap(), stream)
    }

    async fn connect(&self) -> (Host, Arc<Stream>) {
        let (host, guest) = self.stream();
        (Host::connect(host, SOON).await.unwrap().0, guest)
    }
}

fn halts() -> Result<Vec<Severed>, Failure> {
    Ok(Vec::new())
}

const AS_IF: Halting = Halting { halt: halts, thaw: || Ok(()) };

fn sh(script: &str) -> Exec {
    Exec {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        user: Some(format!("{}:{}", nix::unistd::geteuid(), nix::unistd::getegid())),
        ..Exec::default()
    }
}

/// Counts to 200 000, one number a line: more than the windows and the rings hold.
fn counter() -> Exec {
    sh("i=0; while [ $i -lt 200000 ]; do echo $i; i=$((i+1)); done; exit 7")
}

/// Follows to the end, and checks that each number comes once, in its place.
async fn counts(mut session: ExecSession) -> (usize, Exit) {
    let (mut line, mut expected) = (Vec::new(), 0usize);
    loop {
        match tokio::time::timeout(SOON, session.next()).await.expect("it stands still").unwrap() {
            Some(ExecEvent::Stdout(bytes)) => {
                for byte in bytes {
                    if byte == b'\n' {
                        assert_eq!(String::from_utf8_lossy(&line), expected.to_string());
                        (line, expected) = (Vec::new(), expected + 1);
                    } else {
                        line.push(byte);
                    }
                }
            }
            Some(ExecEvent::Stderr(bytes)) => panic!("{bytes:?}"),
            Some(ExecEvent::Exit(exit)) => return (expected, exit),
            None => panic!("no exit"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_over_captures_with_and_without_another_stream() {
    let guest = Guest::new(AS_IF);
    let (host, mut stream) = guest.connect().await;
    let command = tokio::spawn(counts(host.exec(counter()).await.unwrap()));
    let service = tokio::spawn(counts(host.run_service(counter()).await.unwrap()));
    let mut echo = host.exec(Exec { stdin: true, ..sh("cat") }).await.unwrap();
    for round in 0..9 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        host.halt().await.unwrap();
        let again = host.halt().await;
        assert!(matches!(again, Err(AgentError::Failed(_))), "{again:?}");
        // Begun now, done when the guest goes on.
        let (asker, line) = (host.clone(), format!("{round}\n"));
        let asked = tokio::spawn(async move { asker.usage().await });
        echo.write(line.as_bytes()).await.unwrap();
        match round % 3 {
            // The stream stays.
            0 => {}
            // It is closed by the host.
            1 => {
                host.part().await.unwrap();
                let closed = host.thaw().await;
                assert_eq!(closed, Err(AgentError::Closed), "there is no stream");
            }
            // It is lost.
            _ => stream.shut_down(),
        }
        assert!(!asked.is_finished());
        if round % 3 != 0 {
            let opens = AtomicUsize::new(0);
            let mut current = None;
            let open = || {
                let (to, of) = guest.stream();
                // The first of each round is reset at once, as a vsock is.
                if opens.fetch_add(1, Ordering::Relaxed) == 0 {
                    of.shut_down();
                } else {
                    current = Some(of);
                }
                std::future::ready(Ok::<_, AgentError>(to))
            };
            host.rejoin(open, SOON).await.unwrap();
            assert_eq!(opens.load(Ordering::Relaxed), 2);
            stream = current.unwrap();
        }
        host.thaw().await.unwrap();
        asked.await.unwrap().unwrap();
        let mut answer = Vec::new();
        while answer.len() < line.len() {
            match echo.next().await.unwrap().unwrap() {
                ExecEvent::Stdout(bytes) => answer.extend_from_slice(&bytes),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(answer, line.as_bytes());
    }
    for counted in [command, service] {
        let (lines, exit) = counted.await.unwrap();
        assert_eq!((lines, exit.code), (200_000, 7));
    }
}

#[tokio::test]
async fn only_a_halted_session_goes_on_over_another_stream() {
    let guest = Guest::new(AS_IF);
    let (host, stream) = guest.connect().await;
    let open = || std::future::ready(Ok::<_, AgentError>(guest.stream().0));
    assert_eq!(host.rejoin(open, SOON).await, Err(AgentError::Closed));
    assert_eq!(host.part().await, Err(AgentError::Closed));
    host.usage().await.unwrap();
    stream.shut_down();
    assert_eq!(host.closed().await, AgentError::Closed);
    assert_eq!(host.rejoin(open, SOON).await, Err(AgentError::Closed));
}

#[tokio::test]
async fn a_new_session_takes_a_halted_guest_over() {
    let guest = Guest::new(AS_IF);
    let (host, _stream) = guest.connect().await;
    let mut session = host.exec(sh("echo $$; exec sleep 1000")).await.unwrap();
    assert!(matches!(session.next().await.unwrap(), Some(ExecEvent::Stdout(_))));
    host.halt().await.unwrap();
    let (other, _other_stream) = guest.connect().await;
    // As in a sandbox that was resumed from the snapshot: what the old session ran ends.
    let until = std::time::Instant::now() + SOON;
    while other.processes().await.unwrap().iter().any(|process| process.pid == session.pid && process.running) {
        assert!(std::time::Instant::now() < until, "it runs on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    other.thaw().await.unwrap();
}

#[tokio::test]
async fn a_halt_that_fails_stops_nothing() {
    let refuses = || Err(Failure { kind: FailureKind::Internal, message: "No.".to_owned() });
    let guest = Guest::new(Halting { halt: refuses, thaw: || Ok(()) });
    let (host, _stream) = guest.connect().await;
    let failed = host.halt().await.unwrap_err();
    assert_eq!(failed.to_string(), "No.");
    host.usage().await.unwrap();
}

#[tokio::test]
async fn a_halt_that_is_no_longer_wanted_is_undone() {
    static THAWED: AtomicUsize = AtomicUsize::new(0);
    let slow = || {
        std::thread::sleep(Duration::from_millis(300));
        Ok(Vec::new())
    };
    let counted = || {
        THAWED.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let guest = Guest::new(Halting { halt: slow, thaw: counted });
    let (host, _stream) = guest.connect().await;
    let given_up = tokio::time::timeout(Duration::from_millis(50), host.halt()).await;
    assert!(given_up.is_err());
    host.usage().await.unwrap();
    let until = std::time::Instant::now() + SOON;
    while THAWED.load(Ordering::Relaxed) == 0 {
        assert!(std::time::Instant::now() < until, "the guest stands still");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
