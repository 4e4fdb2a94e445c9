//! A guest that answers anything, at any time, on any channel: the host's calls end within their time limits, keep no more
//! than they were asked to keep, and the connection ends when the guest is silent or breaks the protocol.
//!
//! The clock is tokio's paused one: a minute of silence takes no time.
#![no_main]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nullspace_fuzz::input::Input;
use nullspace_guest::file::FileOp;
use nullspace_guest::frame::{self, Decoder, HEADER_LEN, Kind, MAGIC, MAX_PAYLOAD, Seek};
use nullspace_guest::host::{Agent, AgentError};
use nullspace_guest::message::{AGENT_ABI, AgentInfo, Exec, Probe, ProbeCheck, Restored};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep, timeout};

/// Longest that one input may take, by the paused clock. Every call is bounded by two minutes or by the guest's silence.
const LONGEST: Duration = Duration::from_secs(3600);
/// Most bytes that the host is asked to keep of a stream.
const KEPT: usize = 100_000;

/// What a guest's messages are made of; `#` stands for a byte of the input.
const MESSAGES: &[&str] = &[
    r#"{"is":"done"}"#,
    r##"{"is":"started","pid":#}"##,
    r##"{"is":"attached","pid":1,"lost_stdout":#,"lost_stderr":18446744073709551615}"##,
    r##"{"is":"exit","code":#,"timed_out":false}"##,
    r#"{"is":"processes","processes":[{"pid":1,"ppid":0,"command":"x","running":true}]}"#,
    r#"{"is":"probed","ready":true,"detail":"d"}"#,
    r#"{"is":"grown","bytes":1}"#,
    r##"{"is":"space","free_bytes":#,"free_inodes":1}"##,
    r#"{"is":"failed","kind":"limit","message":"m"}"#,
    r##"{"is":"file","entry":{"path":"/a","kind":"file","size":#,"mode":420,"owner":"r","group":"r","modified_ns":0}}"##,
    r##"{"abi":#,"kernel":"6","boot_id":"b","root_ready":true}"##,
    "{\"path\":\"/a\",\"kind\":\"file\",\"size\":1,\"mode\":420,\"owner\":\"r\",\"group\":\"r\",\"modified_ns\":0}\n",
    "[[[[[[",
];
const KINDS: [Kind; 11] = [
    Kind::Reply,
    Kind::End,
    Kind::Stdout,
    Kind::Stderr,
    Kind::Window,
    Kind::HelloAck,
    Kind::Hello,
    Kind::Open,
    Kind::Stdin,
    Kind::Eof,
    Kind::Reset,
];

/// What the guest has read of the host.
#[derive(Default)]
struct Heard {
    session: AtomicU64,
    channel: AtomicU32,
}

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut input = Input(bytes);
        let (mode, calls) = (input.byte(), input.word());
        let began = Instant::now();
        let (near, far) = tokio::io::duplex(1 << 20);
        let guest = guest(far, mode, input);
        // A guest that has said all does not end the host's side.
        let host = host(near, mode, calls);
        tokio::pin!(guest);
        tokio::pin!(host);
        tokio::select! {
            () = &mut host => {}
            stream = &mut guest => {
                // Its stream stays open, or ends here.
                let open = (mode & 1 != 0).then_some(stream);
                host.await;
                drop(open);
            }
        }
        assert!(began.elapsed() < LONGEST, "{:?}", began.elapsed());
    });
});

async fn host(stream: DuplexStream, mode: u8, calls: u16) {
    let limit = Duration::from_secs(20);
    let connected = if mode & 2 == 0 {
        Agent::connect(stream, limit).await
    } else {
        let restored = Restored {
            hostname: "h".into(),
            machine_id: "0".repeat(32),
            entropy: "AAAA".into(),
            unix_time_ns: 1,
            network: None,
            resume: None,
            trial: false,
        };
        let mut stream = Some(stream);
        let open = || std::future::ready(stream.take().ok_or(AgentError::Closed));
        Agent::connect_restored(open, || restored.clone(), limit).await
    };
    let Ok((agent, info)) = connected else { return };
    assert!(info.is_spoken());
    let call = async |number: u16| {
        let exec = || Exec { argv: vec!["x".into()], timeout_ms: Some(3000), stdin: true, ..Exec::default() };
        match number % 13 {
            0 => {
                if let Ok(output) = agent.exec_collect(exec(), KEPT).await {
                    assert!(output.stdout.len() <= KEPT && output.stderr.len() <= KEPT);
                }
            }
            1 => {
                if let Ok(mut session) = agent.exec(exec()).await {
                    let _ = timeout(limit, session.write(&[7; 300_000])).await;
                    while let Ok(Ok(Some(_))) = timeout(limit, session.next()).await {}
                }
            }
            2 => drop(agent.start_service(exec()).await),
            3 => drop(agent.feed_service(1, &[7; 300_000], limit).await),
            4 => {
                if let Ok(session) = agent.output_so_far(1).await {
                    let _ = timeout(limit, session.collect(KEPT)).await;
                }
            }
            5 => drop(agent.processes().await),
            6 => drop(agent.probe(Probe { check: ProbeCheck::Idle, timeout_ms: 100 }).await),
            7 => {
                if let Ok(mut file) = agent.read_file(None, "/", "a").await {
                    while let Ok(Ok(Some(_))) = timeout(limit, file.next()).await {}
                }
            }
            8 => {
                if let Ok(mut file) = agent.write_file(None, "/", "a").await {
                    let _ = timeout(limit, file.write(&[7; 300_000])).await;
                    let _ = timeout(limit, file.finish()).await;
                }
            }
            9 => drop(timeout(limit, agent.list_files(None, "/", "a", 1)).await),
            10 => drop(agent.file_done(None, "/", FileOp::Remove { path: "a".into() }).await),
            11 => drop(agent.space("/").await),
            _ => drop(agent.freeze().await),
        }
    };
    // Two after each other, and two beside them.
    tokio::join!(
        async {
            call(calls & 15).await;
            call(calls >> 4 & 15).await;
        },
        call(calls >> 8 & 15),
        call(calls >> 12),
    );
    agent.disconnect().await;
    timeout(Duration::from_secs(10), agent.closed()).await.expect("a connection ends when it is asked to");
}

/// Follows the input's script to its end; the stream's two halves are then handed back, still open.
async fn guest(stream: DuplexStream, mode: u8, mut input: Input<'_>) -> impl AsyncRead + AsyncWrite + Unpin {
    let (mut from_host, mut to_host) = tokio::io::split(stream);
    let heard = Heard::default();
    let script = async {
        if mode & 4 == 0 {
            while heard.session.load(Ordering::Relaxed) == 0 {
                sleep(Duration::from_millis(1)).await;
            }
            let info = AgentInfo {
                abi: AGENT_ABI,
                kernel: "6".into(),
                boot_id: "b".into(),
                root_ready: true,
                root_error: None,
                capabilities: (mode & 8 == 0).then(nullspace_guest::capability::of_this_build),
            };
            let info = serde_json::to_vec(&info).expect("it has a form in JSON");
            let mut wire = Vec::new();
            frame::encode_message(heard.session.load(Ordering::Relaxed), 0, Kind::HelloAck, &info, &mut wire);
            to_host.write_all(&wire).await?;
        }
        while !input.0.is_empty() {
            let wire = step(&mut input, &heard).await;
            to_host.write_all(&wire).await?;
        }
        std::io::Result::Ok(())
    };
    let read = async {
        if mode & 8 != 0 {
            // It says things and reads nothing but the first HELLO.
            listen(&mut from_host, &heard, true).await;
            std::future::pending::<()>().await;
        }
        listen(&mut from_host, &heard, false).await;
    };
    tokio::select! {
        _ = script => {}
        () = read => {}
    }
    from_host.unsplit(to_host)
}

async fn listen(from_host: &mut (impl AsyncRead + Unpin), heard: &Heard, once: bool) {
    let mut decoder = Decoder::seeking(Seek::Hello);
    let mut piece = vec![0; MAX_PAYLOAD];
    loop {
        match from_host.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(length) => decoder.feed(&piece[..length]),
        }
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    heard.session.store(frame.session, Ordering::Relaxed);
                    heard.channel.fetch_max(frame.channel, Ordering::Relaxed);
                    if once {
                        return;
                    }
                }
                Ok(None) => break,
                // The host pads every fourth HELLO with zeros, to end a half frame of an older session.
                Err(_) => decoder.seek(Seek::Hello),
            }
        }
    }
}

/// What the guest sends next.
async fn step(input: &mut Input<'_>, heard: &Heard) -> Vec<u8> {
    let session = heard.session.load(Ordering::Relaxed);
    let newest = heard.channel.load(Ordering::Relaxed);
    let mut wire = Vec::new();
    let order = input.byte();
    match order % 8 {
        // Time passes: other tasks run.
        0 => sleep(Duration::from_millis(1 + u64::from(input.byte()).pow(2))).await,
        // Bytes as they are.
        1 => {
            let length = input.byte().into();
            wire.extend_from_slice(input.bytes(length));
        }
        // A header of which any field lies.
        2 => {
            wire.extend_from_slice(&MAGIC.to_le_bytes());
            wire.extend_from_slice(&session.to_le_bytes());
            wire.extend_from_slice(&newest.to_le_bytes());
            wire.resize(HEADER_LEN, 0);
            for _ in 0..1 + input.byte() % 4 {
                let at = usize::from(input.byte()) % HEADER_LEN;
                wire[at] = input.byte();
            }
        }
        // Many of one kind.
        3 => {
            let (kind, count) = (kind(input), input.word());
            let payload = vec![input.byte(); usize::from(input.byte() % 8)];
            for _ in 0..count % 2000 {
                frame::encode(session, newest, kind, &payload, &mut wire);
            }
        }
        // Output, more than there is credit for if it comes often.
        4 => {
            let length = usize::from(input.word()).min(MAX_PAYLOAD);
            let kind = if order & 8 == 0 { Kind::Stdout } else { Kind::Stderr };
            frame::encode(session, newest, kind, &vec![b'o'; length], &mut wire);
        }
        // A message, of this or any session, to this or any channel.
        _ => {
            let kind = kind(input);
            let to = input.byte();
            let channel = match to {
                0..=127 => newest.saturating_sub(u32::from(to % 4)),
                128..=199 => u32::from(to % 8),
                _ => u32::from(input.word()) << 16,
            };
            let session = if order > 240 { session ^ 1 } else { session };
            let message = message(input);
            if order & 64 == 0 {
                frame::encode_message(session, channel, kind, &message, &mut wire);
            } else {
                frame::encode(session, channel, kind, &message[..message.len().min(4)], &mut wire);
            }
        }
    }
    wire
}

fn kind(input: &mut Input<'_>) -> Kind {
    KINDS[usize::from(input.byte()) % KINDS.len()]
}

fn message(input: &mut Input<'_>) -> Vec<u8> {
    let which = input.byte();
    if which >= 240 {
        let length = input.byte().into();
        return input.bytes(length).to_vec();
    }
    let mut text = MESSAGES[usize::from(which) % MESSAGES.len()].to_owned();
    if text.contains('#') {
        text = text.replace('#', &input.byte().to_string());
    }
    text.into_bytes()
}
