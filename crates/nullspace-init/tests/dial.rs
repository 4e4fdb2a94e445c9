//! Connections to ports: the real agent and the real client over a socket pair, and servers on the loopback of this machine.

// clippy.toml lets tests unwrap, and does not count their helpers.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use common::{Guest, SOON};
use nullspace_guest::frame::{DIAL_WINDOW, MAX_CHANNELS, MAX_DIALLED};
use nullspace_guest::host::{Agent, AgentError, Dialled};
use nullspace_guest::message::{DIAL_LIMIT_MS, Exec, Failure, FailureKind};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A connection, and the server's end of it.
async fn connected(agent: &Agent) -> (Dialled, TcpStream) {
    let (listener, port) = listener().await;
    let (dialled, accepted) = tokio::join!(agent.dial(port), listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

/// Writes until the way to a server that does not read is full: the agent has served others ten times, and has taken nothing.
async fn fill(agent: &Agent, dialled: &mut Dialled) {
    let (mut filled, mut turns) = (0, 0);
    while turns < 10 {
        tokio::select! {
            biased;
            written = dialled.write(&[0; 4096]) => {
                filled += written.unwrap();
                turns = 0;
            }
            _ = connected(agent) => turns += 1,
        }
        assert!(filled < 64 << 20, "it was all taken by nobody");
    }
}

/// A server that sends back what it reads, on any number of connections.
async fn echo_server() -> u16 {
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    port
}

async fn refusal(agent: &Agent, port: u16) -> Failure {
    match agent.dial(port).await {
        Err(AgentError::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

async fn echo(dialled: &mut Dialled, bytes: &[u8]) {
    dialled.write_all(bytes).await.unwrap();
    let mut back = vec![0; bytes.len()];
    tokio::time::timeout(SOON, dialled.read_exact(&mut back)).await.unwrap().unwrap();
    assert!(back == bytes);
}

/// Resident memory of this process, KiB: agent, client and servers.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_direction_ends_on_its_own() {
    let agent = Guest::new().connect().await;
    // The host ends first.
    let (mut dialled, mut server) = connected(&agent).await;
    dialled.write_all(b"request").await.unwrap();
    dialled.shutdown().await.unwrap();
    let mut request = Vec::new();
    server.read_to_end(&mut request).await.unwrap();
    assert_eq!(request, b"request");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answer = Vec::new();
    tokio::time::timeout(SOON, dialled.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"answer");
    assert_eq!(dialled.write_all(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);

    // The server ends first, and still reads.
    let (mut dialled, mut server) = connected(&agent).await;
    server.write_all(b"greeting").await.unwrap();
    server.shutdown().await.unwrap();
    let mut greeting = Vec::new();
    tokio::time::timeout(SOON, dialled.read_to_end(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(greeting, b"greeting");
    dialled.write_all(&[7; 300_000]).await.unwrap_or_else(|error| panic!("{error}"));
    dialled.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, server.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest == [7; 300_000]);
}

#[tokio::test]
async fn a_port_without_a_server_is_refused_and_one_on_ipv6_is_found() {
    let agent = Guest::new().connect().await;
    let (unused, port) = listener().await;
    drop(unused);
    let began = Instant::now();
    let failure = refusal(&agent, port).await;
    assert_eq!(failure.kind, FailureKind::ConnectionRefused, "{failure:?}");
    assert!(failure.message.contains(&port.to_string()), "{failure:?}");
    assert!(began.elapsed().as_millis() < u128::from(DIAL_LIMIT_MS), "it was not waited for");
    assert_eq!(refusal(&agent, 0).await.kind, FailureKind::Invalid);
    match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await {
        Ok(listener) => {
            let port = listener.local_addr().unwrap().port();
            let (dialled, accepted) = tokio::join!(agent.dial(port), listener.accept());
            let (mut dialled, (mut server, _)) = (dialled.unwrap(), accepted.unwrap());
            server.write_all(b"six").await.unwrap();
            let mut said = [0; 3];
            dialled.read_exact(&mut said).await.unwrap();
            assert_eq!(&said, b"six");
        }
        Err(error) => eprintln!("skipped: no IPv6 here: {error}"),
    }
}

#[tokio::test]
async fn a_unix_socket_is_reached_by_its_path() {
    let agent = Guest::new().connect().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    let shown = path.to_str().unwrap();
    let refusal = async |path: &str| match agent.dial_socket(path).await {
        Err(AgentError::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    };
    let absent = refusal(shown).await;
    assert_eq!(absent.kind, FailureKind::ConnectionRefused, "{absent:?}");
    assert!(absent.message.contains(shown), "{absent:?}");
    let listener = UnixListener::bind(&path).unwrap();
    let (dialled, accepted) = tokio::join!(agent.dial_socket(shown), listener.accept());
    let (mut dialled, (mut server, _)) = (dialled.unwrap(), accepted.unwrap());
    // More than the credit, both ways; each direction ends on its own.
    let sent = vec![7; 4 * DIAL_WINDOW as usize];
    tokio::join!(
        async {
            let (mut from, mut to) = server.split();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
            to.shutdown().await.unwrap();
        },
        async {
            let (mut from, mut to) = tokio::io::split(&mut dialled);
            let writing = async {
                to.write_all(&sent).await.unwrap();
                to.shutdown().await.unwrap();
            };
            let mut came = Vec::new();
            let ((), read) = tokio::join!(writing, from.read_to_end(&mut came));
            read.unwrap();
            assert!(came == sent);
        }
    );
    // A socket that nobody listens on any more, and what is no path of one.
    drop(listener);
    assert_eq!(refusal(shown).await.kind, FailureKind::ConnectionRefused);
    for wrong in ["", "engine.sock", "\0abstract"] {
        assert_eq!(refusal(wrong).await.kind, FailureKind::Invalid, "{wrong:?}");
    }
    assert_eq!(refusal(&format!("/{}", "x".repeat(200))).await.kind, FailureKind::Internal);
}

#[tokio::test]
async fn a_server_that_accepts_nothing_is_given_up_in_time() {
    let agent = Guest::new().connect().await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let listener = socket.listen(0).unwrap();
    let port = listener.local_addr().unwrap().port();
    // Its queue is full with these.
    let mut queued = Vec::new();
    while let Ok(stream) = tokio::time::timeout(SOON / 60, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await {
        queued.push(stream.unwrap());
        assert!(queued.len() < 100);
    }
    let began = Instant::now();
    let failure = refusal(&agent, port).await;
    assert_eq!(failure.kind, FailureKind::ConnectionTimedOut, "{failure:?}");
    let took = began.elapsed().as_millis();
    assert!((u128::from(DIAL_LIMIT_MS)..2 * u128::from(DIAL_LIMIT_MS)).contains(&took), "{took} ms");
}

#[tokio::test]
async fn what_breaks_off_is_told_to_the_other_side() {
    let agent = Guest::new().connect().await;
    // The server resets.
    let (mut dialled, server) = connected(&agent).await;
    server.set_zero_linger().unwrap();
    drop(server);
    let read = tokio::time::timeout(SOON, dialled.read(&mut [0; 8])).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(dialled.write_all(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);

    // The server leaves without reading, in the middle of an upload.
    let (mut dialled, mut server) = connected(&agent).await;
    server.write_all(b"no").await.unwrap();
    tokio::time::sleep(SOON / 100).await;
    let written = async {
        loop {
            if let Err(error) = dialled.write_all(&[0; 4096]).await {
                return error.kind();
            }
        }
    };
    let (written, ()) = tokio::join!(tokio::time::timeout(SOON, written), async {
        tokio::time::sleep(SOON / 100).await;
        drop(server);
    });
    assert_eq!(written.unwrap(), ErrorKind::BrokenPipe);
    let mut answer = Vec::new();
    let read = dialled.read_to_end(&mut answer).await;
    assert_eq!((answer.as_slice(), read.unwrap_err().kind()), (&b"no"[..], ErrorKind::ConnectionReset));

    // The host drops it: the server hears of it, and does not take a part for the whole.
    let (dialled, mut server) = connected(&agent).await;
    drop(dialled);
    let mut rest = Vec::new();
    assert_eq!(tokio::time::timeout(SOON, server.read_to_end(&mut rest)).await.unwrap().unwrap(), 0);
    let (mut dialled, mut server) = connected(&agent).await;
    fill(&agent, &mut dialled).await;
    drop(dialled);
    // The server reads nothing before the agent has heard of it: it would make room for all that waits.
    for _ in 0..10 {
        connected(&agent).await;
    }
    let read = tokio::time::timeout(SOON, server.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);

    // The next session of a host ends those of the one before.
    let guest = Guest::new();
    let agent = guest.connect().await;
    let (mut dialled, mut server) = connected(&agent).await;
    let _next = guest.connect().await;
    assert_eq!(tokio::time::timeout(SOON, server.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    agent.disconnect().await;
    assert_eq!(dialled.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
}

#[tokio::test]
async fn who_does_not_read_holds_up_nobody_else() {
    let agent = Guest::new().connect().await;
    let port = echo_server().await;
    // A server that reads nothing: the writer waits, with no more under way than its credit and the sockets' buffers.
    let (mut deaf, server) = connected(&agent).await;
    let stuck = tokio::spawn(async move { deaf.write_all(&vec![0; 64 << 20]).await });
    // A host that reads nothing of a server that writes without end.
    let (unread, mut flood) = connected(&agent).await;
    let flooding = tokio::spawn(async move {
        let mut sent = 0u64;
        while flood.write_all(&[1; 10_000]).await.is_ok() {
            sent += 10_000;
        }
        sent
    });
    let mut other = agent.dial(port).await.unwrap();
    for _ in 0..20 {
        echo(&mut other, &[9; 50_000]).await;
    }
    let out = agent.exec_collect(Exec { argv: vec!["true".into()], ..Exec::default() }, 10).await;
    assert!(out.is_ok() || !nix::unistd::geteuid().is_root(), "{out:?}");
    assert!(!stuck.is_finished() && !flooding.is_finished());
    drop((server, unread));
    assert!(tokio::time::timeout(SOON, stuck).await.unwrap().unwrap().is_err());
    let sent = tokio::time::timeout(SOON, flooding).await.unwrap().unwrap();
    assert!(sent >= u64::from(DIAL_WINDOW) / 2, "{sent}");
}

#[tokio::test]
async fn two_hundred_are_held_next_to_operations_and_the_limit_is_their_own() {
    let agent = Guest::new().connect().await;
    let port = echo_server().await;
    echo(&mut agent.dial(port).await.unwrap(), b"the threads are there").await;
    // Without what a server of many tasks takes.
    let before = resident();
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(connected(&agent).await);
    }
    println!("200 idle connections, at both ends of the session: {} KiB", resident().saturating_sub(before));
    drop(idle);
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(agent.dial(port).await.unwrap());
    }
    for dialled in &mut held {
        echo(dialled, &[3; 1000]).await;
    }
    while held.len() < MAX_DIALLED {
        held.push(agent.dial(port).await.unwrap());
    }
    let failure = refusal(&agent, port).await;
    assert_eq!(failure.kind, FailureKind::Limit, "{failure:?}");
    // Commands do not count.
    let user = Some(format!("{}:{}", nix::unistd::geteuid(), nix::unistd::getegid()));
    let mut commands = Vec::new();
    for _ in 0..MAX_CHANNELS / 2 {
        let argv = vec!["sleep".to_owned(), "60".to_owned()];
        commands.push(agent.exec(Exec { argv, user: user.clone(), ..Exec::default() }).await.unwrap());
    }
    drop(commands);
    held.truncate(1);
    echo(&mut agent.dial(port).await.unwrap(), b"there is a place again").await;
    echo(&mut held[0], b"the first goes on").await;
}

#[tokio::test]
async fn many_at_a_time_get_their_own_bytes() {
    let agent = Guest::new().connect().await;
    let port = echo_server().await;
    let clients = (0u8..40).map(|number| {
        let agent = agent.clone();
        tokio::spawn(async move {
            let mut dialled = agent.dial(port).await.unwrap();
            for round in 0u8..10 {
                echo(&mut dialled, &vec![number ^ round; 3000 + 997 * usize::from(number)]).await;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the sizes of writes and reads are, the stream that comes back is the one that was sent.
    #[test]
    fn a_stream_arrives_whole_in_pieces_of_any_size(
        writes in prop::collection::vec(1usize..150_000, 1..12),
        read in 1usize..100_000,
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let agent = Guest::new().connect().await;
            let dialled = agent.dial(echo_server().await).await.unwrap();
            let total: usize = writes.iter().sum();
            let byte = |at: usize| (seed.wrapping_mul(at as u64 | 1) >> 32) as u8;
            let sent: Vec<u8> = (0..total).map(byte).collect();
            let (mut from, mut to) = tokio::io::split(dialled);
            let write = async {
                let mut at = 0;
                for len in writes {
                    to.write_all(&sent[at..at + len]).await.unwrap();
                    at += len;
                }
                to.shutdown().await.unwrap();
            };
            let collect = async {
                let (mut all, mut piece) = (Vec::new(), vec![0; read]);
                loop {
                    match from.read(&mut piece).await.unwrap() {
                        0 => return all,
                        len => all.extend_from_slice(&piece[..len]),
                    }
                }
            };
            let both = async { tokio::join!(write, collect) };
            let ((), all) = tokio::time::timeout(2 * SOON, both).await.unwrap();
            assert!(all == sent, "{} of {total} bytes", all.len());
        });
    }
}
