//! A halted session, against a scripted agent.

use super::*;

/// Halts the session of `agent`; answers the channel's number.
async fn halted(agent: &Agent, fake: &mut FakeAgent) -> u32 {
    let serve = async {
        let open = fake.expect(Kind::Open).await;
        let request: Request = serde_json::from_slice(&open.payload).unwrap();
        assert_eq!(request, Request::Freeze { halt: true });
        fake.outcome(open.channel, Kind::End, &Outcome::Done).await;
        open.channel
    };
    let (halted, channel) = tokio::join!(agent.halt(), serve);
    halted.unwrap();
    channel
}

/// Serves one OPEN of this request.
async fn serve(fake: &mut FakeAgent, request: &Request, outcome: &Outcome) -> u32 {
    let open = fake.expect(Kind::Open).await;
    assert_eq!(&serde_json::from_slice::<Request>(&open.payload).unwrap(), request);
    fake.outcome(open.channel, Kind::End, outcome).await;
    open.channel
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_until_the_thaw_and_then_all_in_its_order() {
    let (agent, mut fake) = pair().await;
    let channel = halted(&agent, &mut fake).await;
    let asker = agent.clone();
    let asked = tokio::spawn(async move { asker.usage().await });
    let silence = tokio::time::timeout(Duration::from_secs(15), fake.frame()).await;
    assert!(silence.is_err(), "{silence:?}");
    let usage = Outcome::Usage { usage: Usage::default() };
    let script = async {
        let first = serve(&mut fake, &Request::Usage, &usage).await;
        let second = serve(&mut fake, &Request::Thaw { unix_time_ns: None }, &Outcome::Done).await;
        assert!(channel < first && first < second);
    };
    let (thawed, ()) = tokio::join!(agent.thaw(), script);
    thawed.unwrap();
    asked.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_stands_still_for_long_is_not_taken_for_a_dead_one() {
    let (agent, mut fake) = pair().await;
    halted(&agent, &mut fake).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let (thawed, _) =
        tokio::join!(agent.thaw(), serve(&mut fake, &Request::Thaw { unix_time_ns: None }, &Outcome::Done));
    thawed.unwrap();
    // From then on it has to answer again.
    assert!(matches!(agent.closed().await, AgentError::Silent { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_halted_session_waits_for_its_next_stream_and_not_for_ever() {
    let (agent, mut fake) = pair().await;
    halted(&agent, &mut fake).await;
    let session = fake.session;
    drop(fake);
    tokio::time::sleep(REJOIN_LIMIT / 2).await;
    assert_eq!(agent.thaw().await, Err(AgentError::Closed));

    let (host, guest) = tokio::io::duplex(64 * 1024);
    let mut fake = FakeAgent::new(guest);
    let script = async {
        for _ in 0..2 {
            fake.acknowledge(AGENT_ABI).await;
            assert_eq!(fake.session, session, "the session is the same");
        }
    };
    let mut streams = vec![host];
    let open = || std::future::ready(streams.pop().ok_or(AgentError::Closed));
    let (rejoined, ()) = tokio::join!(agent.rejoin(open, SOON), script);
    rejoined.unwrap();
    let (thawed, _) =
        tokio::join!(agent.thaw(), serve(&mut fake, &Request::Thaw { unix_time_ns: None }, &Outcome::Done));
    thawed.unwrap();

    halted(&agent, &mut fake).await;
    drop(fake);
    let began = tokio::time::Instant::now();
    assert_eq!(agent.closed().await, AgentError::Closed);
    assert!(began.elapsed() >= REJOIN_LIMIT && began.elapsed() < REJOIN_LIMIT + SOON);
    let open = || std::future::ready(Err::<DuplexStream, _>(AgentError::Closed));
    assert_eq!(agent.rejoin(open, SOON).await, Err(AgentError::Closed));
    assert_eq!(agent.usage().await, Err(AgentError::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_answer_the_next_stream_is_a_timeout_and_may_be_asked_again() {
    let (agent, mut fake) = pair().await;
    halted(&agent, &mut fake).await;
    let mut guests = Vec::new();
    for _ in 0..2 {
        let open = || {
            let (host, guest) = tokio::io::duplex(64 * 1024);
            guests.push(guest);
            std::future::ready(Ok::<_, AgentError>(host))
        };
        let limit = Duration::from_secs(2);
        assert_eq!(agent.rejoin(open, limit).await, Err(AgentError::Timeout { what: "hello", limit_ms: 2000 }));
    }
    assert_eq!(guests.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_reset_again_and_again_is_given_up() {
    let (agent, mut fake) = pair().await;
    halted(&agent, &mut fake).await;
    let mut opened = 0;
    let open = || {
        opened += 1;
        std::future::ready(Ok::<_, AgentError>(tokio::io::duplex(16).0))
    };
    assert_eq!(agent.rejoin(open, SOON).await, Err(AgentError::Closed));
    assert_eq!(opened, 1 + MAX_RESETS);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_lost_before_the_answer_ends_the_session() {
    let (agent, mut fake) = pair().await;
    let lost = async {
        fake.expect(Kind::Open).await;
        drop(fake);
    };
    let (halted, ()) = tokio::join!(agent.halt(), lost);
    assert_eq!(halted, Err(AgentError::Closed));
    assert_eq!(agent.closed().await, AgentError::Closed);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_the_end_of_a_halt_is_bounded() {
    let (agent, mut fake) = pair().await;
    halted(&agent, &mut fake).await;
    // Requests of a MiB each, given up at once: what they would have sent waits all the same.
    let large = Exec { argv: vec!["x".repeat(1000 << 10)], ..Exec::default() };
    for _ in 0..60 {
        let _ = tokio::time::timeout(Duration::from_millis(1), agent.exec(large.clone())).await;
    }
    assert!(matches!(agent.closed().await, AgentError::Protocol(_)));
}
