//! Connections to ports against a scripted agent: what an honest one sends, and what a hostile one might.

use super::*;
use crate::frame::{DIAL_PIECE, DIAL_WINDOW, MAX_DIALLED};

async fn dialled(agent: &Agent, fake: &mut FakeAgent) -> (Dialled, u32) {
    let open = async {
        let opened = fake.expect(Kind::Open).await;
        assert_eq!(opened.payload, r#"{"op":"dial","port":80}"#);
        fake.outcome(opened.channel, Kind::Reply, &Outcome::Done).await;
        opened.channel
    };
    let (dialled, channel) = tokio::join!(agent.dial(80), open);
    (dialled.unwrap(), channel)
}

#[tokio::test]
async fn each_direction_ends_by_a_frame_of_its_own() {
    let (agent, mut fake) = pair().await;
    let (mut stream, channel) = dialled(&agent, &mut fake).await;
    fake.send(channel, Kind::Stdout, b"all").await;
    fake.send(channel, Kind::Eof, b"").await;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"all");
    stream.write_all(b"still").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(fake.expect(Kind::Stdin).await.payload, &b"still"[..]);
    assert_eq!(fake.expect(Kind::Eof).await.channel, channel);
    fake.outcome(channel, Kind::End, &Outcome::Done).await;
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    // A dropped one is reset, unless it was over: what comes behind its end is read before that.
    let (next, channel) = dialled(&agent, &mut fake).await;
    drop(stream);
    drop(next);
    assert_eq!(fake.expect(Kind::Reset).await.channel, channel);
}

#[tokio::test]
async fn a_writer_waits_for_credit_and_more_than_the_credit_is_a_breach() {
    let (agent, mut fake) = pair().await;
    let (mut stream, channel) = dialled(&agent, &mut fake).await;
    let writing = tokio::spawn(async move {
        stream.write_all(&vec![0; 200_000]).await.unwrap();
        stream
    });
    let (mut came, mut spent) = (0, 0);
    while spent + frame::cost(DIAL_PIECE) <= DIAL_WINDOW {
        let piece = fake.expect(Kind::Stdin).await.payload;
        assert!(piece.len() <= DIAL_PIECE);
        (came, spent) = (came + piece.len(), spent + frame::cost(piece.len()));
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!writing.is_finished());
    while came < 200_000 {
        fake.send(channel, Kind::Window, &DIAL_WINDOW.to_le_bytes()).await;
        came += fake.expect(Kind::Stdin).await.payload.len();
    }
    let _stream = writing.await.unwrap();
    for _ in 0..=DIAL_WINDOW / frame::cost(DIAL_PIECE) {
        fake.send(channel, Kind::Stdout, &[0; DIAL_PIECE]).await;
    }
    let closed = tokio::time::timeout(SOON, agent.closed()).await.unwrap();
    assert!(matches!(&closed, AgentError::Protocol(why) if why.contains("credit")), "{closed:?}");
}

#[tokio::test]
async fn an_end_of_output_is_for_connections_and_comes_once() {
    for (kinds, why) in [
        (&[Kind::Eof, Kind::Eof][..], "second end"),
        (&[Kind::Eof, Kind::Stdout][..], "behind its end"),
        (&[Kind::Reset][..], "Reset from a guest"),
    ] {
        let (agent, mut fake) = pair().await;
        let (_stream, channel) = dialled(&agent, &mut fake).await;
        for kind in kinds {
            fake.send(channel, *kind, b"").await;
        }
        let closed = tokio::time::timeout(SOON, agent.closed()).await.unwrap();
        assert!(matches!(&closed, AgentError::Protocol(said) if said.contains(why)), "{closed:?}");
    }
    let (agent, mut fake) = pair().await;
    let (_session, channel) = tokio::join!(agent.exec(shell()), fake.start(1));
    fake.send(channel, Kind::Eof, b"").await;
    let closed = tokio::time::timeout(SOON, agent.closed()).await.unwrap();
    assert!(matches!(&closed, AgentError::Protocol(said) if said.contains("Eof from a guest")), "{closed:?}");
}

#[tokio::test]
async fn connections_have_a_limit_of_their_own_and_a_failure_ends_the_reader() {
    let (agent, mut fake) = pair().await;
    let mut streams = Vec::new();
    let mut channels = Vec::new();
    for _ in 0..MAX_DIALLED {
        let (stream, channel) = dialled(&agent, &mut fake).await;
        streams.push(stream);
        channels.push(channel);
    }
    match agent.dial(80).await.unwrap_err() {
        AgentError::Failed(Failure { kind, .. }) => assert_eq!(kind, FailureKind::Limit),
        other => panic!("{other:?}"),
    }
    let (exec, _) = tokio::join!(agent.exec(shell()), fake.start(1));
    assert!(exec.is_ok(), "operations are counted apart");
    let failure = Failure { kind: FailureKind::ConnectionReset, message: "It broke.".to_owned() };
    fake.send(channels[0], Kind::Stdout, b"part").await;
    fake.outcome(channels[0], Kind::End, &Outcome::Failed(failure)).await;
    let mut part = Vec::new();
    let error = streams[0].read_to_end(&mut part).await.unwrap_err();
    assert_eq!((part.as_slice(), error.kind()), (&b"part"[..], std::io::ErrorKind::ConnectionReset));
    let _again = dialled(&agent, &mut fake).await;
}

#[tokio::test]
async fn an_agent_that_cannot_dial_is_not_asked() {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let mut fake = FakeAgent::new(guest);
    let mut older = info();
    older.capabilities = Some([Capability::Exec].into());
    let (connected, ()) = tokio::join!(Agent::connect(host, SOON), fake.acknowledge_as(older));
    let agent = connected.unwrap().0;
    let refused = agent.dial(80).await.unwrap_err();
    assert!(matches!(refused, AgentError::Lacking { capability: Capability::Dial, .. }), "{refused:?}");
    let refused = agent.dial_socket("/run/x.sock").await.unwrap_err();
    assert!(matches!(refused, AgentError::Lacking { capability: Capability::DialSocket, .. }), "{refused:?}");
}
