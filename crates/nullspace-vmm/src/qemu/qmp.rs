//! QEMU's machine protocol over a socket that QEMU inherited.
//!
//! Commands are answered in the order in which they were sent, so that several can be on their way at once: those of a
//! start are in the socket before QEMU runs. Events that matter are folded into [`Observed`]; the rest are read and
//! dropped, because an unread socket would pile them up in QEMU.
//!
//! QEMU may be in a guest's hands: a line is at most [`MAX_LINE`] long, and no number or text of it is trusted.
//!
//! Protocol: QEMU's `docs/interop/qmp-spec.txt`.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};

use crate::VmmError;

/// Longest line taken from QEMU. Its greeting has 200 bytes, `query-migrate` a kilobyte.
const MAX_LINE: u64 = 256 * 1024;

/// Events that QEMU has reported so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Observed {
    /// Number of migrations, in or out, that have ended.
    pub(super) migrations: u64,
    /// True when the last of them was completed.
    pub(super) migrated: bool,
    /// Reason of the `SHUTDOWN` event: `guest-reset`, `guest-shutdown`, `host-qmp-quit`…
    pub(super) shutdown: Option<String>,
    /// True when a write of a disk has failed for want of room on the host.
    pub(super) no_room: bool,
    /// True when the socket ended: QEMU is gone, or broke the protocol.
    pub(super) closed: bool,
}

#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<QmpError>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, Deserialize)]
struct QmpError {
    desc: String,
}

type Answer = Result<Value, String>;
type Waiting = Arc<Mutex<Option<VecDeque<oneshot::Sender<Answer>>>>>;

/// The host's end of a monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    /// Held while a command is written and its place in the queue taken.
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    /// `None` once the socket has ended.
    waiting: Waiting,
    observed: watch::Receiver<Observed>,
}

/// A command on its way.
#[derive(Debug)]
pub(super) struct Pending {
    command: &'static str,
    answer: oneshot::Receiver<Answer>,
}

impl Qmp {
    /// Takes our end of the socket and begins with the handshake. QEMU need not run yet.
    pub(super) async fn begin(socket: StdUnixStream) -> Result<(Self, Pending), VmmError> {
        let stream = socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket));
        let (reader, writer) = stream.map_err(|source| io_error("qmp_capabilities", source))?.into_split();
        let (sender, observed) = watch::channel(Observed::default());
        let waiting: Waiting = Arc::new(Mutex::new(Some(VecDeque::new())));
        let task_waiting = waiting.clone();
        tokio::spawn(async move {
            if let Err(error) = read(reader, &task_waiting, &sender).await {
                tracing::warn!(%error, "QEMU broke the machine protocol");
            }
            // Dropping the senders tells all who wait.
            task_waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
            sender.send_modify(|observed| observed.closed = true);
        });
        let qmp = Self { writer: tokio::sync::Mutex::new(writer), waiting, observed };
        let hello = qmp.send("qmp_capabilities", Value::Null, None).await?;
        Ok((qmp, hello))
    }

    /// Sends a command, with a descriptor when it takes one (`getfd`), and returns without waiting for the answer.
    pub(super) async fn send(
        &self,
        command: &'static str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Pending, VmmError> {
        let mut message = json!({ "execute": command });
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(b'\n');
        let mut writer = self.writer.lock().await;
        let (sender, answer) = oneshot::channel();
        match self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiting) => waiting.push_back(sender),
            None => return Err(ended(command)),
        }
        let written = async {
            let sent = match fd {
                Some(fd) => send_with(&writer, &bytes, fd).await?,
                None => 0,
            };
            writer.write_all(&bytes[sent..]).await
        };
        match written.await {
            Ok(()) => Ok(Pending { command, answer }),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ended(command)),
            Err(source) => Err(io_error(command, source)),
        }
    }

    /// Sends a command and waits for its answer.
    pub(super) async fn execute(
        &self,
        command: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, VmmError> {
        let run = async { self.send(command, arguments, None).await?.answer().await };
        tokio::time::timeout(limit, run).await.unwrap_or_else(|_| Err(timed_out(command, limit)))
    }

    /// Waits until what QEMU told by itself meets `condition`. An error when QEMU ends before.
    pub(super) async fn observe(&self, condition: impl Fn(&Observed) -> bool) -> Result<Observed, VmmError> {
        let mut observed = self.observed.clone();
        let seen = observed.wait_for(|observed| condition(observed) || observed.closed).await;
        match seen.as_deref() {
            Ok(seen) if condition(seen) => Ok(seen.clone()),
            _ => Err(ended("waiting for an event")),
        }
    }

    /// Returns the events that QEMU has reported so far.
    pub(super) fn observed(&self) -> Observed {
        self.observed.borrow().clone()
    }

    /// Resolves when QEMU's end is closed: everything that it had to tell has been read.
    pub(super) async fn closed(&self) {
        let _ = self.observed.clone().wait_for(|observed| observed.closed).await;
    }
}

impl Pending {
    /// The answer; an error when QEMU refuses or ends. Callers bound the wait.
    pub(super) async fn answer(self) -> Result<Value, VmmError> {
        match self.answer.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(message)) => Err(VmmError::Refused { context: format!("QEMU: {}", self.command), message }),
            Err(_) => Err(ended(self.command)),
        }
    }
}

/// The first part of a message together with a descriptor; returns how many bytes went with it.
async fn send_with(writer: &OwnedWriteHalf, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let stream: &UnixStream = writer.as_ref();
    loop {
        stream.writable().await?;
        let attempt = stream.try_io(Interest::WRITABLE, || {
            let fds = [fd];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&fds));
            Ok(rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
        });
        match attempt {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

async fn read(reader: OwnedReadHalf, waiting: &Waiting, observed: &watch::Sender<Observed>) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            // The end, or a line that is too long.
            return if line.len() as u64 == MAX_LINE { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) };
        }
        let parsed: Line = serde_json::from_slice(&line)?;
        let answer = match parsed {
            Line { event: Some(event), data, .. } => {
                note_event(&event, &data, observed);
                continue;
            }
            Line { error: Some(error), .. } => Err(error.desc),
            Line { result: Some(value), .. } => Ok(value),
            _ => continue, // the greeting
        };
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(VecDeque::pop_front);
        // A caller that gave up has dropped its end; an answer nobody asked for is dropped too.
        if let Some(next) = next {
            let _ = next.send(answer);
        }
    }
}

fn note_event(event: &str, data: &Value, observed: &watch::Sender<Observed>) {
    let text = |key: &str| data[key].as_str().map(|text| text.chars().take(64).collect::<String>());
    match event {
        "MIGRATION" => {
            let status = text("status").unwrap_or_default();
            if matches!(status.as_str(), "completed" | "failed" | "cancelled") {
                observed.send_modify(|observed| {
                    observed.migrations = observed.migrations.wrapping_add(1);
                    observed.migrated = status == "completed";
                });
            }
        }
        // Disks report errors to their guests (`werror=report`); which of them are for want of room is told here.
        "BLOCK_IO_ERROR" if data["nospace"] == true => {
            tracing::warn!(
                device = text("qom-path").or_else(|| text("device")),
                "the host's disk is full: a machine's write was lost"
            );
            observed.send_modify(|observed| observed.no_room = true);
        }
        "SHUTDOWN" => observed.send_modify(|observed| observed.shutdown = text("reason")),
        _ => tracing::trace!(event, "QEMU event"),
    }
}

fn ended(command: &str) -> VmmError {
    VmmError::Exited(format!("QEMU closed its monitor ({command})"))
}

fn io_error(command: &str, source: io::Error) -> VmmError {
    VmmError::Io { context: format!("send {command} to QEMU"), source }
}

pub(super) fn timed_out(what: &str, limit: Duration) -> VmmError {
    VmmError::Timeout { what: format!("QEMU: {what}"), limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader as StdBufReader, Write};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// A monitor and QEMU's end of it, the handshake's command still unread.
    async fn pair() -> (Qmp, Pending, StdUnixStream) {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let (qmp, hello) = Qmp::begin(ours).await.unwrap();
        (qmp, hello, theirs)
    }

    #[tokio::test]
    async fn answers_come_in_order_with_events_between() {
        let (qmp, hello, mut theirs) = pair().await;
        let stop = qmp.send("stop", Value::Null, None).await.unwrap();
        theirs
            .write_all(
                b"{\"QMP\": {\"version\": {}}}\n{\"return\": {}}\n{\"event\": \"MIGRATION\", \"data\": {\"status\": \"active\"}}\n{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\n\
                  {\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n",
            )
            .unwrap();
        assert_eq!(hello.answer().await.unwrap(), json!({}));
        let error = stop.answer().await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU: stop: no");
        let seen = qmp.observe(|observed| observed.migrations > 0).await.unwrap();
        assert_eq!((seen.migrations, seen.migrated), (1, true));
        let sent: Vec<String> = StdBufReader::new(theirs).lines().take(2).map(Result::unwrap).collect();
        assert_eq!(sent, ["{\"execute\":\"qmp_capabilities\"}", "{\"execute\":\"stop\"}"]);
    }

    #[tokio::test]
    async fn a_write_that_had_no_room_is_noted_and_no_other_fault_is() {
        let (qmp, hello, mut theirs) = pair().await;
        let event = |nospace| {
            let data = json!({"device": "", "node-name": "top", "operation": "write", "action": "report",
                "nospace": nospace, "reason": "…"});
            format!("{}\n", json!({"event": "BLOCK_IO_ERROR", "data": data}))
        };
        theirs.write_all((event(false) + "{\"return\": {}}\n").as_bytes()).unwrap();
        hello.answer().await.unwrap();
        assert!(!qmp.observed().no_room);
        let stop = qmp.send("stop", Value::Null, None).await.unwrap();
        theirs.write_all((event(true) + &event(false) + "{\"return\": {}}\n").as_bytes()).unwrap();
        stop.answer().await.unwrap();
        assert!(qmp.observed().no_room, "what came before an answer is known with it");
    }

    #[tokio::test]
    async fn a_descriptor_travels_with_its_command() {
        let (qmp, _hello, theirs) = pair().await;
        let file = tempfile::tempfile().unwrap();
        use std::os::fd::AsFd;
        let _getfd = qmp.send("getfd", Value::Null, Some(file.as_fd())).await.unwrap();
        theirs.set_read_timeout(Some(LIMIT)).unwrap();
        let (mut taken, mut text) = (0, Vec::new());
        while !text.ends_with(b"getfd\"}\n") {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [0; 4096];
            let flags = rustix::net::RecvFlags::empty();
            let got =
                rustix::net::recvmsg(&theirs, &mut [io::IoSliceMut::new(&mut bytes)], &mut control, flags).unwrap();
            text.extend(&bytes[..got.bytes]);
            taken += control.drain().count();
        }
        assert_eq!(taken, 1);
    }

    #[tokio::test]
    async fn an_end_or_nonsense_fails_all_who_wait_and_all_who_come() {
        for last_words in [&b""[..], b"nonsense\n", b"{\"return\": {}", &[b'x'; MAX_LINE as usize + 1]] {
            let (qmp, hello, mut theirs) = pair().await;
            let writer = std::thread::spawn(move || {
                let _ = theirs.write_all(last_words);
                theirs
            });
            if last_words.is_empty() || last_words.starts_with(b"{") {
                drop(writer.join().unwrap());
            }
            let error = hello.answer().await.unwrap_err();
            assert!(matches!(error, VmmError::Exited(_)), "{error}");
            qmp.closed().await;
            assert!(qmp.observe(|observed| observed.migrations > 0).await.is_err());
            assert!(matches!(qmp.execute("stop", Value::Null, LIMIT).await, Err(VmmError::Exited(_))));
        }
    }

    #[tokio::test]
    async fn a_monitor_that_does_not_answer_is_given_up() {
        let (qmp, _hello, _theirs) = pair().await;
        let error = qmp.execute("stop", Value::Null, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU: stop took longer than 20 ms");
    }
}
