//! Readiness attempts.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nullspace_guest::frame::Kind;
use nullspace_guest::message::{Exec, Failure, FailureKind, Outcome, Probe, ProbeCheck};

use crate::process::prepare::prepare;
use crate::process::spawn::spawn;
use crate::process::supervise::{Unfinished, Wiring, supervise};
use crate::session::Channel;
use crate::wake::Wake;

/// Bytes read of an HTTP answer: its status line.
const STATUS_LINE: u64 = 1024;
/// Bytes kept of the end of a command's output, for its last line.
const TAIL: usize = 1024;
/// Characters of that line in the answer.
const SHOWN: usize = 300;

/// Makes one attempt.
pub(crate) fn probe(probe: Probe, channel: &Channel) -> Outcome {
    let limit = Duration::from_millis(probe.timeout_ms);
    let until = Instant::now().checked_add(limit);
    let result = match probe.check {
        ProbeCheck::Tcp { port } => connect(port, until).map(|_| String::new()).map_err(|error| error.to_string()),
        ProbeCheck::Http { port, path } => {
            if !path.starts_with('/') || path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
                let message = format!("`{}` is no path for an HTTP request.", path.escape_debug());
                return Outcome::Failed(Failure { kind: FailureKind::Invalid, message });
            }
            http(port, &path, until)
        }
        ProbeCheck::Command(exec) => match command(exec, limit, channel) {
            Ok(result) => result,
            Err(failure) => return Outcome::Failed(failure),
        },
    };
    match result {
        Ok(detail) => Outcome::Probed { ready: true, detail },
        Err(detail) => Outcome::Probed { ready: false, detail },
    }
}

fn left(until: Option<Instant>) -> io::Result<Duration> {
    let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
    if left.is_zero() { Err(io::Error::new(io::ErrorKind::TimedOut, "timed out")) } else { Ok(left) }
}

/// 127.0.0.1, then ::1; the first one's error when both fail, since that is where most servers are expected.
fn connect(port: u16, until: Option<Instant>) -> io::Result<TcpStream> {
    let to = |ip: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(ip, port), left(until)?);
    to(Ipv4Addr::LOCALHOST.into()).or_else(|first| to(Ipv6Addr::LOCALHOST.into()).map_err(|_| first))
}

fn http(port: u16, path: &str, until: Option<Instant>) -> Result<String, String> {
    let status_line = || -> io::Result<Vec<u8>> {
        let mut stream = connect(port, until)?;
        stream.set_write_timeout(Some(left(until)?))?;
        // HTTP/1.0: the server closes, and needs no chunking.
        let request = format!(
            "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: nullspace-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let mut line = Vec::new();
        let mut piece = [0; 256];
        while !line.contains(&b'\n') && (line.len() as u64) < STATUS_LINE {
            stream.set_read_timeout(Some(left(until)?))?;
            match stream.read(&mut piece)? {
                0 => break,
                len => line.extend_from_slice(&piece[..len]),
            }
        }
        Ok(line)
    };
    let line = status_line().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "timed out".to_owned(),
        _ => error.to_string(),
    })?;
    match status(&line) {
        Some(code @ 200..=399) => Ok(format!("HTTP {code}")),
        Some(code) => Err(format!("HTTP {code}")),
        None => Err("the answer is not HTTP".to_owned()),
    }
}

/// The code of `HTTP/1.1 200 OK`.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let rest = line.strip_prefix(b"HTTP/1.")?;
    let code = rest.get(2..5).filter(|_| rest.get(1) == Some(&b' '))?;
    std::str::from_utf8(code).ok()?.parse().ok().filter(|code| (100..600).contains(code))
}

/// The command's answer, or why it cannot be run at all.
fn command(exec: Exec, limit: Duration, channel: &Channel) -> Result<Result<String, String>, Failure> {
    let limit = exec.timeout_ms.map_or(limit, |own| limit.min(Duration::from_millis(own)));
    let child = spawn(&prepare(&exec)?, false)?;
    let mut tail = Tail { bytes: Vec::new(), channel };
    Ok(match supervise(child, Some(limit), &mut tail) {
        Ok(exit) if exit.timed_out => Err(format!("timed out after {} ms", limit.as_millis())),
        Ok(exit) if exit.code == 0 => Ok(tail.last_line()),
        Ok(exit) => {
            let line = tail.last_line();
            let separator = if line.is_empty() { "" } else { ": " };
            Err(format!("exit code {}{separator}{line}", exit.code))
        }
        Err(Unfinished::Cancelled) => Err("cancelled".to_owned()),
        Err(Unfinished::Stuck) => Err("the command cannot be killed".to_owned()),
    })
}

struct Tail<'a> {
    bytes: Vec<u8>,
    channel: &'a Channel,
}

impl Tail<'_> {
    fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        line.chars().take(SHOWN).collect()
    }
}

impl Wiring for Tail<'_> {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn output(&mut self, _: Kind, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let old = self.bytes.len().saturating_sub(TAIL);
        self.bytes.drain(..old);
    }

    fn cancelled(&self) -> bool {
        self.channel.is_reset()
    }

    fn wake(&self) -> Option<&Wake> {
        Some(self.channel.wake())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn status_lines() {
        let cases: [(&[u8], Option<u16>); 8] = [
            (b"HTTP/1.1 200 OK\r\n", Some(200)),
            (b"HTTP/1.0 404 Not Found\r\nX: HTTP/1.1 200", Some(404)),
            (b"HTTP/1.1 503", Some(503)),
            (b"HTTP/1.1 20", None),
            (b"HTTP/1.1 999 ?", None),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", None),
            (b"", None),
            (b"\n\nHTTP/1.1 200 OK", None),
        ];
        for (answer, expected) in cases {
            assert_eq!(status(answer), expected, "{}", String::from_utf8_lossy(answer));
        }
    }

    fn soon() -> Option<Instant> {
        Instant::now().checked_add(Duration::from_millis(300))
    }

    #[test]
    fn http_needs_an_answer_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let mut silent = Vec::new();
            for answer in ["HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 500 Oops\r\n\r\n", "hello\n", ""] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 512];
                let len = stream.read(&mut request).unwrap();
                assert!(request[..len].starts_with(b"GET /ready?x=1 HTTP/1.0\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
                if answer.is_empty() {
                    silent.push(stream);
                }
            }
            silent
        });
        let attempt = || http(port, "/ready?x=1", soon());
        assert_eq!(attempt(), Ok("HTTP 204".to_owned()));
        assert_eq!(attempt(), Err("HTTP 500".to_owned()));
        assert_eq!(attempt(), Err("the answer is not HTTP".to_owned()));
        assert_eq!(attempt(), Err("timed out".to_owned()));
        server.join().unwrap();
    }

    #[test]
    fn both_loopbacks_are_tried_and_the_first_error_told() {
        let six = TcpListener::bind("[::1]:0").unwrap();
        assert!(connect(six.local_addr().unwrap().port(), soon()).is_ok());
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert_eq!(connect(free, soon()).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
