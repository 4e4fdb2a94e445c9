//! The client against a scripted agent. The real agent is tested with this client in `nullspace-init`.

mod dial;
mod halt;

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::capability::of_this_build;
use crate::frame::{self, Assembler, Decoder, Frame, INITIAL_WINDOW, Kind, MAX_CHANNELS, MAX_PAYLOAD, Seek};
use crate::message::Exit;

const SOON: Duration = Duration::from_secs(10);

struct FakeAgent {
    stream: DuplexStream,
    decoder: Decoder,
    assembler: Assembler,
    session: u64,
}

impl FakeAgent {
    fn new(stream: DuplexStream) -> FakeAgent {
        FakeAgent { stream, decoder: Decoder::seeking(Seek::Hello), assembler: Assembler::default(), session: 0 }
    }

    /// The next whole message or data frame; `None` when the host has closed.
    async fn frame(&mut self) -> Option<Frame> {
        let mut piece = [0; 4096];
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => {
                    if let Some(frame) = self.assembler.push(frame).unwrap() {
                        return Some(frame);
                    }
                    continue;
                }
                Ok(None) => {}
                Err(_) => {
                    self.decoder.seek(Seek::Hello);
                    continue;
                }
            }
            match self.stream.read(&mut piece).await.unwrap() {
                0 => return None,
                len => self.decoder.feed(&piece[..len]),
            }
        }
    }

    async fn expect(&mut self, kind: Kind) -> Frame {
        loop {
            let frame = self.frame().await.unwrap();
            // HELLO may come again while the host waits.
            if frame.kind == kind {
                return frame;
            }
            assert_eq!(frame.kind, Kind::Hello, "expected {kind:?}");
        }
    }

    async fn send(&mut self, channel: u32, kind: Kind, payload: &[u8]) {
        let mut wire = Vec::new();
        frame::encode_message(self.session, channel, kind, payload, &mut wire);
        self.stream.write_all(&wire).await.unwrap();
    }

    async fn outcome(&mut self, channel: u32, kind: Kind, outcome: &Outcome) {
        self.send(channel, kind, &serde_json::to_vec(outcome).unwrap()).await;
    }

    async fn acknowledge(&mut self, abi: u32) {
        self.acknowledge_as(AgentInfo { abi, ..info() }).await;
    }

    async fn acknowledge_as(&mut self, info: AgentInfo) {
        self.session = self.expect(Kind::Hello).await.session;
        self.send(0, Kind::HelloAck, &serde_json::to_vec(&info).unwrap()).await;
    }

    async fn start(&mut self, pid: u32) -> u32 {
        let channel = self.expect(Kind::Open).await.channel;
        self.outcome(channel, Kind::Reply, &Outcome::Started { pid }).await;
        channel
    }
}

async fn pair() -> (Agent, FakeAgent) {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let mut fake = FakeAgent::new(guest);
    let (connected, ()) = tokio::join!(Agent::connect(host, SOON), fake.acknowledge(AGENT_ABI));
    (connected.unwrap().0, fake)
}

fn shell() -> Exec {
    Exec { argv: vec!["sh".into()], ..Exec::default() }
}

#[tokio::test]
async fn a_session_begins_behind_remains_of_an_older_one() {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let mut fake = FakeAgent::new(guest);
    fake.session = 1;
    fake.send(4, Kind::Stdout, &[7; 1000]).await;
    fake.stream.write_all(&frame::MAGIC.to_le_bytes()).await.unwrap();
    let (connected, ()) = tokio::join!(Agent::connect(host, SOON), fake.acknowledge(AGENT_ABI));
    assert!(connected.unwrap().1.root_ready);
}

#[tokio::test(start_paused = true)]
async fn hello_is_repeated_and_fills_a_half_read_frame() {
    let (host, mut guest) = tokio::io::duplex(256 * 1024);
    // The agent was caught by a snapshot behind the header of a frame of 64 KiB.
    let mut half = Vec::new();
    frame::encode(1, 1, Kind::Stdin, &vec![0; MAX_PAYLOAD], &mut half);
    half.truncate(frame::HEADER_LEN + 10);
    let mut fake = {
        let (unused, _) = tokio::io::duplex(1);
        let mut fake = FakeAgent::new(unused);
        fake.decoder = Decoder::default();
        fake.decoder.feed(&half);
        std::mem::swap(&mut fake.stream, &mut guest);
        fake
    };
    let serve = async {
        // The pad completes the old frame.
        assert_eq!(fake.frame().await.unwrap().kind, Kind::Stdin);
        fake.acknowledge(AGENT_ABI).await;
    };
    let (connected, ()) = tokio::join!(Agent::connect(host, SOON), serve);
    connected.unwrap();
}

/// The agent takes an OPEN with a lower number than it has seen for a repetition, and does not answer it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn channels_are_opened_in_the_order_of_their_numbers_by_however_many_tasks() {
    const TASKS: u32 = 8;
    const ROUNDS: u32 = 2_000;
    let (agent, mut fake) = pair().await;
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let agent = agent.clone();
            tokio::spawn(async move {
                for _ in 0..ROUNDS {
                    agent.thaw().await.unwrap();
                }
            })
        })
        .collect();
    let mut last = 0;
    for _ in 0..TASKS * ROUNDS {
        let channel = fake.expect(Kind::Open).await.channel;
        assert!(channel > last, "{channel} after {last}");
        last = channel;
        fake.outcome(channel, Kind::End, &Outcome::Done).await;
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_stays_away_is_a_timeout() {
    let (host, _guest) = tokio::io::duplex(16);
    let error = Agent::connect(host, Duration::from_millis(900)).await.unwrap_err();
    assert_eq!(error, AgentError::Timeout { what: "hello", limit_ms: 900 });
}

#[tokio::test]
async fn every_version_of_the_range_is_spoken_and_another_is_named() {
    for abi in OLDEST_AGENT_ABI - 1..=AGENT_ABI + 1 {
        let (host, guest) = tokio::io::duplex(64 * 1024);
        let mut fake = FakeAgent::new(guest);
        let (connected, ()) = tokio::join!(Agent::connect(host, SOON), fake.acknowledge(abi));
        match connected {
            Ok((agent, told)) => {
                assert_eq!((agent.info(), (OLDEST_AGENT_ABI..=AGENT_ABI).contains(&abi)), (told, true))
            }
            Err(error) => {
                assert_eq!(error, AgentError::Abi { found: abi });
                assert!(!(OLDEST_AGENT_ABI..=AGENT_ABI).contains(&abi), "{abi}");
                let text = format!("has interface version {abi}, this host speaks {OLDEST_AGENT_ABI} to {AGENT_ABI}");
                assert!(error.to_string().contains(&text), "{error}");
            }
        }
    }
}

/// The whole conversation with an agent of version 6: its identity, an operation, and one that it does not know.
#[tokio::test]
async fn an_agent_of_version_6_is_served_and_not_asked_for_what_it_does_not_know() {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let mut fake = FakeAgent::new(guest);
    let serve = async {
        let hello = fake.frame().await.unwrap();
        let open = fake.frame().await.unwrap();
        fake.session = hello.session;
        // As version 6 wrote it.
        let old = br#"{"abi":6,"kernel":"6","boot_id":"b","root_ready":true}"#;
        fake.send(0, Kind::HelloAck, old).await;
        fake.outcome(open.channel, Kind::End, &Outcome::Done).await;
        let processes = fake.expect(Kind::Open).await;
        fake.outcome(processes.channel, Kind::End, &Outcome::Processes { processes: Vec::new() }).await;
        // The trial never comes; the next operation does.
        let thaw = fake.expect(Kind::Open).await;
        assert_eq!(serde_json::from_slice::<Request>(&thaw.payload).unwrap(), Request::Thaw { unix_time_ns: None });
        fake.outcome(thaw.channel, Kind::End, &Outcome::Done).await;
    };
    let mut hosts = vec![host];
    let open = || std::future::ready(hosts.pop().ok_or(AgentError::Closed));
    let ask = async {
        let (agent, told) = Agent::connect_restored(open, identity, SOON).await.unwrap();
        assert_eq!((told.abi, told.capabilities), (6, None));
        assert_eq!(agent.processes().await.unwrap(), []);
        let refused = agent.restored(Restored { trial: true, ..identity() }).await.unwrap_err();
        assert_eq!(refused, AgentError::Lacking { capability: Capability::Trial, version: 6 });
        let text = "this template's agent is older (interface version 6) and cannot be restored in trial: build the template again";
        assert_eq!(refused.to_string(), text);
        agent.thaw().await.unwrap();
    };
    tokio::join!(serve, ask);
}

#[tokio::test]
async fn a_trial_is_only_asked_of_an_agent_that_has_told_that_it_knows_it() {
    for knows in [true, false] {
        let (host, guest) = tokio::io::duplex(64 * 1024);
        let mut fake = FakeAgent::new(guest);
        let serve = async {
            let mut told = info();
            if !knows {
                told.capabilities.as_mut().unwrap().remove(&Capability::Trial);
            }
            // HELLO comes alone: nothing is behind it that the agent may not understand.
            fake.acknowledge_as(told).await;
            match fake.frame().await {
                Some(open) => {
                    assert!(knows && open.kind == Kind::Open, "{open:?}");
                    fake.outcome(open.channel, Kind::End, &Outcome::Done).await;
                }
                None => assert!(!knows, "the host closed"),
            }
        };
        let mut hosts = vec![host];
        let open = || std::future::ready(hosts.pop().ok_or(AgentError::Closed));
        let trial = || Restored { trial: true, ..identity() };
        let (connected, ()) = tokio::join!(Agent::connect_restored(open, trial, SOON), serve);
        match connected {
            Ok(_) => assert!(knows),
            Err(error) => {
                assert_eq!(error, AgentError::Lacking { capability: Capability::Trial, version: AGENT_ABI });
                assert!(!knows);
            }
        }
    }
}

/// Each kind of request: to an agent without its capability none is sent, and each answer is immediate.
#[tokio::test(start_paused = true)]
async fn an_operation_that_the_agent_lacks_is_a_typed_error_at_once() {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let mut fake = FakeAgent::new(guest);
    let bare = AgentInfo { capabilities: Some([Capability::Freeze].into()), ..info() };
    let (connected, ()) = tokio::join!(Agent::connect(host, SOON), fake.acknowledge_as(bare));
    let (agent, _) = connected.unwrap();
    let began = tokio::time::Instant::now();
    let lacking = |result: Result<(), AgentError>| match result {
        Err(AgentError::Lacking { capability, version: AGENT_ABI }) => capability,
        other => panic!("{other:?}"),
    };
    let op = crate::file::FileOp::Info { path: "/".into() };
    let lacked = [
        lacking(agent.exec(shell()).await.map(drop)),
        lacking(agent.exec_collect(shell(), 1).await.map(drop)),
        lacking(agent.start_service(shell()).await.map(drop)),
        lacking(agent.attach(1).await.map(drop)),
        lacking(agent.run_service(shell()).await.map(drop)),
        lacking(agent.feed_service(1, b"x", SOON).await),
        lacking(agent.processes().await.map(drop)),
        lacking(agent.kill(1, 9).await),
        lacking(agent.file_entry(None, "/", op).await.map(drop)),
        lacking(agent.read_file(None, "/", "x").await.map(drop)),
        lacking(agent.grow_root().await.map(drop)),
        lacking(agent.end_processes(true).await),
        lacking(agent.restored(identity()).await),
        lacking(agent.usage().await.map(drop)),
        lacking(agent.halt().await),
        lacking(agent.shutdown().await),
    ];
    assert_eq!(lacked.iter().collect::<std::collections::BTreeSet<_>>().len(), 13, "{lacked:?}");
    assert_eq!(began.elapsed(), Duration::ZERO);
    let thaw = async {
        let open = fake.expect(Kind::Open).await;
        assert_eq!(serde_json::from_slice::<Request>(&open.payload).unwrap(), Request::Thaw { unix_time_ns: None });
        fake.outcome(open.channel, Kind::End, &Outcome::Done).await;
    };
    let (thawed, ()) = tokio::join!(agent.thaw(), thaw);
    thawed.unwrap();
}

fn info() -> AgentInfo {
    AgentInfo {
        abi: AGENT_ABI,
        kernel: "6".into(),
        boot_id: "b".into(),
        root_ready: true,
        root_error: None,
        capabilities: Some(of_this_build()),
    }
}

fn identity() -> Restored {
    Restored {
        hostname: "sb".into(),
        machine_id: "0".repeat(32),
        entropy: String::new(),
        unix_time_ns: 1,
        network: None,
        resume: None,
        trial: false,
    }
}

#[tokio::test]
async fn restored_travels_with_hello() {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let mut fake = FakeAgent::new(guest);
    let serve = async {
        let hello = fake.frame().await.unwrap();
        // Nothing was answered yet, and the request is here already.
        let open = fake.frame().await.unwrap();
        assert_eq!((hello.kind, open.kind), (Kind::Hello, Kind::Open));
        fake.session = hello.session;
        fake.send(0, Kind::HelloAck, &serde_json::to_vec(&info()).unwrap()).await;
        fake.outcome(open.channel, Kind::End, &Outcome::Done).await;
    };
    let mut hosts = vec![host];
    let open = || std::future::ready(hosts.pop().ok_or(AgentError::Closed));
    let (connected, ()) = tokio::join!(Agent::connect_restored(open, identity, SOON), serve);
    connected.unwrap();
}

/// Hooks have a time of their own, which begins when the guest has its identity.
#[tokio::test(start_paused = true)]
async fn resume_hooks_may_take_longer_than_the_identity() {
    let slow = Duration::from_millis(RESUME_LIMIT_MS);
    assert!(slow > SOON, "the case needs hooks that outlast the wait for the identity");
    for (hooks, expected) in [
        (Outcome::Done, Ok(())),
        (
            Outcome::Failed(Failure { kind: FailureKind::Resume, message: "The hook failed.".into() }),
            Err(AgentError::Failed(Failure { kind: FailureKind::Resume, message: "The hook failed.".into() })),
        ),
    ] {
        let (host, guest) = tokio::io::duplex(64 * 1024);
        let mut fake = FakeAgent::new(guest);
        let serve = async {
            let hello = fake.frame().await.unwrap();
            let open = fake.frame().await.unwrap();
            fake.session = hello.session;
            fake.send(0, Kind::HelloAck, &serde_json::to_vec(&info()).unwrap()).await;
            fake.outcome(open.channel, Kind::Reply, &Outcome::Done).await;
            tokio::time::sleep(slow).await;
            fake.outcome(open.channel, Kind::End, &hooks).await;
        };
        let mut hosts = vec![host];
        let open = || std::future::ready(hosts.pop().ok_or(AgentError::Closed));
        let (connected, ()) = tokio::join!(Agent::connect_restored(open, identity, SOON), serve);
        assert_eq!(connected.map(drop), expected);
    }
}

#[tokio::test]
async fn a_reset_around_the_greeting_begins_a_restored_guests_session_anew() {
    let streams: Vec<_> = (0..4).map(|_| tokio::io::duplex(64 * 1024)).collect();
    let (mut hosts, guests): (Vec<_>, Vec<_>) = streams.into_iter().rev().unzip();
    let serve = async {
        for (reset, guest) in guests.into_iter().rev().enumerate() {
            let mut fake = FakeAgent::new(guest);
            if reset == 0 {
                // Before the guest has read a byte.
                continue;
            }
            let hello = fake.frame().await.unwrap();
            let open = fake.frame().await.unwrap();
            fake.session = hello.session;
            if reset == 1 {
                // Before it has answered.
                continue;
            }
            fake.send(0, Kind::HelloAck, &serde_json::to_vec(&info()).unwrap()).await;
            if reset == 2 {
                // Behind its greeting.
                continue;
            }
            fake.outcome(open.channel, Kind::End, &Outcome::Done).await;
        }
    };
    let open = || std::future::ready(hosts.pop().ok_or(AgentError::Protocol("no more streams".into())));
    let (connected, ()) = tokio::join!(Agent::connect_restored(open, identity, SOON), serve);
    connected.unwrap();
}

#[tokio::test]
async fn a_restored_guest_that_always_hangs_up_is_given_up() {
    let mut opened = 0;
    let open = || {
        opened += 1;
        std::future::ready(Ok::<_, AgentError>(tokio::io::duplex(64).0))
    };
    let error = Agent::connect_restored(open, identity, SOON).await.unwrap_err();
    assert_eq!((error, opened), (AgentError::Closed, 6));
}

#[tokio::test]
async fn events_come_in_order_and_credit_goes_back() {
    let (agent, mut fake) = pair().await;
    let total = 3 * INITIAL_WINDOW as usize;
    let serve = async {
        let channel = fake.start(42).await;
        let (mut credit, mut sent) = (INITIAL_WINDOW, 0);
        while sent < total {
            let part = frame::affordable(credit).min(total - sent);
            if part == 0 {
                let window = fake.expect(Kind::Window).await;
                credit += window.window().unwrap();
                continue;
            }
            credit -= frame::cost(part);
            fake.send(channel, Kind::Stdout, &vec![1; part]).await;
            sent += part;
        }
        fake.send(channel, Kind::Stderr, b"done").await;
        fake.outcome(channel, Kind::End, &Outcome::Exit(Exit { code: 3, ..Exit::default() })).await;
        fake
    };
    let (output, _fake) = tokio::join!(agent.exec_collect(shell(), 1000), serve);
    let output = output.unwrap();
    assert_eq!((output.pid, output.exit.code, output.truncated), (42, 3, true));
    assert_eq!((output.stdout.len(), &output.stderr[..]), (1000, &b"done"[..]));
}

#[tokio::test]
async fn output_beyond_the_credit_ends_the_connection() {
    let (agent, mut fake) = pair().await;
    let (session, channel) = tokio::join!(agent.exec(shell()), fake.start(1));
    let _session = session.unwrap();
    let flood = async {
        let mut wire = Vec::new();
        frame::encode(fake.session, channel, Kind::Stdout, &[], &mut wire);
        // Empty frames: without a cost of their own they would pile up for ever.
        for _ in 0..=INITIAL_WINDOW / frame::FRAME_COST {
            if fake.stream.write_all(&wire).await.is_err() {
                break;
            }
        }
    };
    let (error, ()) = tokio::join!(agent.closed(), flood);
    assert!(matches!(error, AgentError::Protocol(_)), "{error}");
}

#[tokio::test]
async fn a_dropped_session_is_reset_even_when_its_stdin_lives_on() {
    let (agent, mut fake) = pair().await;
    let (session, channel) = tokio::join!(agent.exec(Exec { stdin: true, ..shell() }), fake.start(1));
    let mut session = session.unwrap();
    let mut stdin = session.take_stdin().unwrap();
    stdin.write(b"hi").await.unwrap();
    assert_eq!(&fake.expect(Kind::Stdin).await.payload[..], b"hi");
    drop(session);
    assert_eq!(fake.expect(Kind::Reset).await.channel, channel);
    assert_eq!(stdin.write(b"x").await, Err(AgentError::Closed));
}

#[tokio::test]
async fn stdin_waits_for_credit() {
    let (agent, mut fake) = pair().await;
    let (session, channel) = tokio::join!(agent.exec(Exec { stdin: true, ..shell() }), fake.start(1));
    let mut session = session.unwrap();
    let total = 2 * INITIAL_WINDOW as usize;
    let write = async {
        session.write(&vec![5; total]).await.unwrap();
        session.close_stdin();
    };
    let serve = async {
        let (mut credit, mut got) = (INITIAL_WINDOW, 0);
        loop {
            let frame = fake.frame().await.unwrap();
            if frame.kind == Kind::Eof {
                return got;
            }
            assert_eq!(frame.kind, Kind::Stdin);
            got += frame.payload.len();
            let cost = frame::cost(frame.payload.len());
            credit = credit.checked_sub(cost).expect("the host overdrew its credit");
            let mut wire = Vec::new();
            frame::encode_window(fake.session, channel, cost, &mut wire);
            fake.stream.write_all(&wire).await.unwrap();
            credit += cost;
        }
    };
    let ((), got) = tokio::join!(write, serve);
    assert_eq!(got, total);
}

#[tokio::test]
async fn a_lost_stream_ends_what_waits() {
    let (agent, mut fake) = pair().await;
    let serve = async {
        fake.expect(Kind::Open).await;
        drop(fake);
    };
    let (answer, ()) = tokio::join!(agent.freeze(), serve);
    assert_eq!(answer, Err(AgentError::Closed));
    assert_eq!(agent.closed().await, AgentError::Closed);
    assert_eq!(agent.thaw().await, Err(AgentError::Closed));
}

#[tokio::test]
async fn disconnect_sends_what_is_queued_and_closes() {
    let (agent, mut fake) = pair().await;
    let (session, _) = tokio::join!(agent.exec(shell()), fake.start(1));
    drop(session);
    agent.disconnect().await;
    assert_eq!(fake.frame().await.map(|f| f.kind), Some(Kind::Reset));
    assert_eq!(fake.frame().await, None);
}

#[tokio::test]
async fn the_last_handle_closes_the_stream() {
    let (agent, mut fake) = pair().await;
    let clone = agent.clone();
    let (session, _) = tokio::join!(agent.exec(shell()), fake.start(1));
    drop((agent, clone));
    let session = session.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), fake.frame()).await.is_err(), "closed under a session");
    drop(session);
    assert_eq!(fake.frame().await.map(|f| f.kind), Some(Kind::Reset));
    assert_eq!(fake.frame().await, None);
}

#[tokio::test]
async fn failures_and_limits_are_typed() {
    let (agent, mut fake) = pair().await;
    let failure = Failure { kind: FailureKind::UnknownUser, message: "User bob is not in the image.".into() };
    let serve = async {
        let channel = fake.expect(Kind::Open).await.channel;
        fake.outcome(channel, Kind::End, &Outcome::Failed(failure.clone())).await;
    };
    let (answer, ()) = tokio::join!(agent.exec(shell()), serve);
    assert_eq!(answer.unwrap_err(), AgentError::Failed(failure.clone()));

    let mut open = Vec::new();
    for pid in 1..=MAX_CHANNELS as u32 {
        let (session, _) = tokio::join!(agent.exec(shell()), fake.start(pid));
        open.push(session.unwrap());
    }
    match agent.exec(shell()).await.unwrap_err() {
        AgentError::Failed(Failure { kind, .. }) => assert_eq!(kind, FailureKind::Limit),
        other => panic!("{other}"),
    }
    let huge = Exec { argv: vec!["x".repeat(2 * frame::MAX_MESSAGE)], ..Exec::default() };
    drop(open);
    match agent.start_service(huge).await.unwrap_err() {
        AgentError::Failed(Failure { kind, .. }) => assert_eq!(kind, FailureKind::Invalid),
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_falls_silent_is_given_up_and_what_waits_ends() {
    let (agent, mut fake) = pair().await;
    let began = tokio::time::Instant::now();
    // It reads and never answers: halted machines do not even read, which makes no difference.
    let serve = async { while fake.frame().await.is_some() {} };
    let (answer, closed, ()) = tokio::join!(agent.freeze(), agent.closed(), serve);
    assert_eq!((answer, closed), (Err(AgentError::Silent { secs: 30 }), AgentError::Silent { secs: 30 }));
    assert!(began.elapsed() <= Duration::from_secs(35), "{:?}", began.elapsed());
    assert!(matches!(agent.thaw().await, Err(AgentError::Silent { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_slow_guest_that_answers_now_and_then_is_kept() {
    let (agent, mut fake) = pair().await;
    let serve = async {
        let mut heartbeats = 0;
        while let Some(frame) = fake.frame().await {
            assert_eq!(frame.kind, Kind::Hello);
            heartbeats += 1;
            // Four of five come to nothing.
            if heartbeats % 5 == 0 {
                fake.send(0, Kind::HelloAck, &serde_json::to_vec(&info()).unwrap()).await;
            }
        }
        heartbeats
    };
    let hour = async {
        // Between two heartbeats: at 3600 s the fifth of a round is due, and its answer would meet a closed stream or not.
        tokio::time::sleep(Duration::from_secs(3602)).await;
        agent.disconnect().await;
        agent.closed().await
    };
    let (heartbeats, closed) = tokio::join!(serve, hour);
    assert_eq!(closed, AgentError::Closed);
    assert!((500..=720).contains(&heartbeats), "{heartbeats}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_talks_is_not_asked() {
    let (agent, mut fake) = pair().await;
    let serve = async {
        let channel = fake.start(1).await;
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            fake.send(channel, Kind::Stdout, b"tick").await;
        }
        fake.outcome(channel, Kind::End, &Outcome::Exit(Exit::default())).await;
        // All that came meanwhile.
        let more = tokio::time::timeout(Duration::from_secs(1), fake.frame()).await;
        assert!(more.is_err(), "{more:?}");
    };
    let (output, ()) = tokio::join!(agent.exec_collect(shell(), 1000), serve);
    assert_eq!(output.unwrap().stdout.len(), 240);
}

#[tokio::test]
async fn frames_that_nobody_asked_for_end_the_connection() {
    // Acknowledgements without end, another session's frames, and credit for a channel that sends nothing.
    for kind in [Kind::HelloAck, Kind::Stdout, Kind::Window] {
        let (agent, mut fake) = pair().await;
        let (session, channel) = tokio::join!(agent.exec(shell()), fake.start(1));
        let _session = session.unwrap();
        let (session, channel) = match kind {
            Kind::HelloAck => (fake.session, 0),
            Kind::Stdout => (fake.session ^ 1, channel),
            _ => (fake.session, channel),
        };
        let mut wire = Vec::new();
        match kind {
            Kind::Window => frame::encode_window(session, channel, 1, &mut wire),
            _ => frame::encode(session, channel, kind, &[b' '; 1000], &mut wire),
        }
        let flood = async { while fake.stream.write_all(&wire).await.is_ok() {} };
        let both = async { tokio::join!(agent.closed(), flood) };
        let (error, ()) = tokio::time::timeout(SOON, both).await.unwrap();
        assert!(matches!(&error, AgentError::Protocol(why) if why.contains("nobody asked")), "{kind:?}: {error}");
    }
}
