//! A program of a sandbox behind a channel: a shell with a terminal, a command, or the sftp server.
//!
//! ```text
//!   input of the channel ──> stdin or terminal ──> program ──> stdout, stderr ──> channel
//!                                                    └── exit ──> exit status, end of file, close
//! ```
//! A client that closes the channel or goes away ends the program: a command gets SIGHUP, a terminal's session is ended. A program
//! that reads nothing for 30 seconds while input waits is ended as well.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use nullspace_api::{ErrorResponseCode, ExecRequest, PtyStart, ResizeRequest};
use nullspace_service::{CommandEvent, Error, FollowedCommand, FollowedTerminal, SshEntered, TerminalEvent, chain};
use russh::ChannelWriteHalf;
use russh::server::Msg;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::flow::{Counted, Flow};
use crate::gate::{Gate, Inside};

/// Time limit of a command, seconds: the most that a sandbox allows.
pub(crate) const LONGEST_COMMAND: u64 = 3600;
/// Most bytes of input that are given on at once.
const AT_ONCE: usize = 64 << 10;
/// Time limit for the end of a program whose client has left.
const ENDING: Duration = Duration::from_secs(15);
/// Exit status of a program that could not be started or followed, as OpenSSH's client has it for its own failures.
const FAILED: u32 = 255;
/// stderr, as a kind of extended data.
const STDERR: u32 = 1;
const SIGHUP: i32 = 1;

/// What a client sends into a channel.
#[derive(Debug)]
pub(crate) enum Input {
    Data(Bytes),
    Eof,
    Resize(ResizeRequest),
    Signal(i32),
}

impl Input {
    pub(crate) fn len(&self) -> usize {
        match self {
            Input::Data(bytes) => bytes.len(),
            _ => 0,
        }
    }
}

/// The input of a channel. It is bounded by the connection's flow.
pub(crate) type Inputs = mpsc::UnboundedReceiver<Counted<Input>>;

/// The output of a channel.
pub(crate) struct Output {
    pub(crate) channel: ChannelWriteHalf<Msg>,
    pub(crate) flow: Arc<Flow>,
}

/// The client is gone.
pub(crate) struct Gone;

impl Output {
    /// Sends bytes as soon as the client takes them.
    pub(crate) async fn stdout(&self, bytes: Bytes) -> Result<(), Gone> {
        let _waits = self.flow.output();
        self.channel.data_bytes(bytes).await.map_err(|_| Gone)
    }

    async fn stderr(&self, bytes: Bytes) -> Result<(), Gone> {
        let _waits = self.flow.output();
        self.channel.extended_data_bytes(STDERR, bytes).await.map_err(|_| Gone)
    }

    /// Ends the direction to the client.
    pub(crate) async fn eof(&self) -> Result<(), Gone> {
        self.channel.eof().await.map_err(|_| Gone)
    }

    /// Closes the channel.
    pub(crate) async fn close(&self) -> Result<(), Gone> {
        self.channel.close().await.map_err(|_| Gone)
    }

    async fn exit(&self, status: u32) -> Result<(), Gone> {
        self.channel.exit_status(status).await.map_err(|_| Gone)?;
        self.eof().await?;
        self.close().await
    }

    /// Tells a failure of the service on stderr, and closes the channel.
    async fn fail(&self, error: &Error) -> Result<(), Gone> {
        log(error);
        self.stderr(format!("nullspace: {}\r\n", error.message).into()).await?;
        self.exit(FAILED).await
    }
}

fn log(error: &Error) {
    if error.source.is_some() {
        tracing::warn!(cause = chain(error), "an SSH session failed");
    }
}

/// What is needed besides the program.
pub(crate) struct Session {
    pub(crate) gate: Arc<dyn Gate>,
    pub(crate) entered: Arc<SshEntered>,
    pub(crate) output: Output,
    pub(crate) inputs: Inputs,
    /// Cancelled when the channel is closed, or its connection ends.
    pub(crate) ended: CancellationToken,
}

/// A program to run.
pub(crate) enum Program {
    Command(ExecRequest),
    Terminal(PtyStart),
}

/// How a program ended.
enum End {
    Exit(i32),
    Failed(Error),
    /// The client has left.
    Left,
}

/// A program that runs.
struct Running {
    inside: Arc<dyn Inside>,
    pid: u32,
    has_terminal: bool,
}

impl Session {
    /// Runs a program until it or its channel ends.
    pub(crate) async fn run(self, program: Program) {
        let Session { gate, entered, output, inputs, ended } = self;
        let program = async {
            let inside = gate.sandbox(&entered).await?;
            Ok::<_, Error>(match program {
                Program::Command(request) => {
                    let FollowedCommand { pid, events, .. } = inside.run(request).await?;
                    let events = events.map(|event| {
                        Ok(match event? {
                            CommandEvent::Stdout(bytes) => Event::Stdout(bytes),
                            CommandEvent::Stderr(bytes) => Event::Stderr(bytes),
                            CommandEvent::Exit { code, timed_out } => Event::Exit { code, timed_out },
                        })
                    });
                    (Running { inside, pid, has_terminal: false }, events.boxed())
                }
                Program::Terminal(start) => {
                    let FollowedTerminal { session, events, .. } = inside.open_terminal(start).await?;
                    let events = events.map(|event| {
                        Ok(match event? {
                            TerminalEvent::Output(bytes) => Event::Stdout(bytes),
                            TerminalEvent::Exit { code } => Event::Exit { code, timed_out: false },
                        })
                    });
                    (Running { inside, pid: session.pid, has_terminal: true }, events.boxed())
                }
            })
        };
        let started = tokio::select! {
            biased;
            () = ended.cancelled() => return,
            started = program => started,
        };
        let (running, events) = match started {
            Ok(started) => started,
            Err(error) => {
                tokio::select! {
                    () = ended.cancelled() => {}
                    _ = output.fail(&error) => {}
                }
                return;
            }
        };
        let end = tokio::select! {
            biased;
            () = ended.cancelled() => End::Left,
            end = tell(events, &output) => end,
            end = running.feed(inputs) => end,
        };
        let closing = async {
            match &end {
                End::Exit(code) => output.exit(u32::try_from(*code).unwrap_or(FAILED)).await,
                End::Failed(error) => output.fail(error).await,
                End::Left => Ok(()),
            }
        };
        tokio::select! {
            () = ended.cancelled() => {}
            _ = closing => {}
        }
        if !matches!(end, End::Exit(_)) {
            running.end().await;
        }
    }
}

/// An event of a program.
enum Event {
    Stdout(Bytes),
    Stderr(Bytes),
    Exit { code: i32, timed_out: bool },
}

/// Gives the output to the client, until the program ends.
async fn tell(
    mut events: futures::stream::BoxStream<'static, nullspace_service::Result<Event>>,
    output: &Output,
) -> End {
    while let Some(event) = events.next().await {
        let told = match event {
            Ok(Event::Stdout(bytes)) => output.stdout(bytes).await,
            Ok(Event::Stderr(bytes)) => output.stderr(bytes).await,
            Ok(Event::Exit { code, timed_out }) => {
                if timed_out {
                    let text =
                        format!("nullspace: the command ran for {LONGEST_COMMAND} s, the most without a terminal\r\n");
                    let _ = output.stderr(text.into()).await;
                }
                return End::Exit(code);
            }
            Err(error) => return End::Failed(error),
        };
        if told.is_err() {
            return End::Left;
        }
    }
    End::Left
}

impl Running {
    /// Gives the client's input to the program. Returns when that cannot go on; the end of the program is told elsewhere.
    async fn feed(&self, mut inputs: Inputs) -> End {
        let mut open = true;
        let mut next = None;
        loop {
            let input = match next.take() {
                Some(input) => input,
                None => match inputs.recv().await {
                    Some(input) => input,
                    // The channel is closed: `ended` says so.
                    None => return std::future::pending().await,
                },
            };
            let Counted { item, .. } = &input;
            let given = match item {
                Input::Data(_) if !open => Ok(()),
                Input::Data(bytes) => {
                    let mut held = Vec::new();
                    let mut data = BytesMut::from(&bytes[..]);
                    while data.len() < AT_ONCE && next.is_none() {
                        match inputs.try_recv() {
                            Ok(more) => match &more.item {
                                Input::Data(bytes) => {
                                    data.extend_from_slice(bytes);
                                    held.push(more);
                                }
                                _ => next = Some(more),
                            },
                            Err(_) => break,
                        }
                    }
                    match self.has_terminal {
                        true => self.inside.type_into(self.pid, &data).await,
                        false => self.inside.send_stdin(self.pid, &data, false).await,
                    }
                }
                Input::Eof if self.has_terminal => Ok(()),
                Input::Eof => {
                    open = false;
                    self.inside.send_stdin(self.pid, &[], true).await
                }
                Input::Resize(size) if self.has_terminal => self.inside.resize(self.pid, *size).await,
                Input::Resize(_) => Ok(()),
                Input::Signal(signal) => self.inside.signal(self.pid, *signal).await,
            };
            match given {
                Ok(()) => {}
                // Nobody reads it, and more would wait for ever.
                Err(error) if error.code == ErrorResponseCode::ExecTimeout => return End::Failed(error),
                // The program has ended, or has closed its stdin: its output says how it ends.
                Err(error) => {
                    log(&error);
                    open = self.has_terminal && open;
                }
            }
        }
    }

    /// Ends a program whose client has left.
    async fn end(&self) {
        let ending = async {
            match self.has_terminal {
                true => self.inside.end_terminal(self.pid).await,
                false => self.inside.signal(self.pid, SIGHUP).await,
            }
        };
        match tokio::time::timeout(ENDING, ending).await {
            Ok(Ok(())) => {}
            // It has ended meanwhile, or its sandbox has.
            Ok(Err(error)) => tracing::debug!(cause = chain(&error), "a program of an SSH session is not ended"),
            Err(_) => tracing::warn!(pid = self.pid, "a program of an SSH session has not ended in time"),
        }
    }
}
