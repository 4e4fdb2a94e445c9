//! Readiness attempts.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nullspace_guest::message::{Exec, Failure, FailureKind, Outcome, Probe, ProbeCheck};

use crate::process::prepare::prepare;
use crate::process::spawn::spawn;
use crate::process::supervise::{Unfinished, supervise};
use crate::process::tail::Tail;
use crate::session::Channel;

/// Bytes read of an HTTP answer: its status line, and what informational answers may come before it.
const MAX_ANSWER: usize = 16 * 1024;

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
        ProbeCheck::Idle => idle(limit),
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
    let answer = || -> io::Result<Option<u16>> {
        let mut stream = connect(port, until)?;
        stream.set_write_timeout(Some(left(until)?))?;
        // 1.1, since there are servers that refuse 1.0. Only the status is read, so chunks are no matter.
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: nullspace-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let mut head = Vec::new();
        let mut piece = [0; 1024];
        loop {
            match status(&head) {
                Status::Final(code) => return Ok(Some(code)),
                Status::None => return Ok(None),
                Status::Unfinished if head.len() >= MAX_ANSWER => return Ok(None),
                Status::Unfinished => {}
            }
            stream.set_read_timeout(Some(left(until)?))?;
            match stream.read(&mut piece)? {
                // The line of a server that ends without a line end counts.
                0 => {
                    head.extend_from_slice(b"\r\n");
                    return Ok(if let Status::Final(code) = status(&head) { Some(code) } else { None });
                }
                len => head.extend_from_slice(piece.get(..len).unwrap_or_default()),
            }
        }
    };
    let code = answer().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "timed out".to_owned(),
        _ => error.to_string(),
    })?;
    match code {
        Some(code @ 200..=399) => Ok(format!("HTTP {code}")),
        Some(code) => Err(format!("HTTP {code}")),
        None => Err("the answer is not HTTP".to_owned()),
    }
}

/// The state of an incomplete answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    /// More has to come.
    Unfinished,
    /// The code of the answer proper.
    Final(u16),
    /// This is no HTTP.
    None,
}

/// The code of `HTTP/1.1 200 OK`; answers of the kind 1xx and their fields are passed over, but for 101, which is final.
fn status(answer: &[u8]) -> Status {
    let mut rest = answer;
    loop {
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            let begins = b"HTTP/1.";
            let so_far = rest.get(..begins.len()).unwrap_or(rest);
            return if begins.starts_with(so_far) { Status::Unfinished } else { Status::None };
        };
        let code = rest.get(..end).and_then(|line| {
            let rest = line.strip_prefix(b"HTTP/1.")?;
            let code = rest.get(2..5).filter(|_| rest.get(1) == Some(&b' '))?;
            std::str::from_utf8(code).ok()?.parse::<u16>().ok().filter(|code| (100..600).contains(code))
        });
        match code {
            None => return Status::None,
            Some(code @ (101 | 200..)) => return Status::Final(code),
            Some(_) => {
                let blank = [&b"\r\n\r\n"[..], b"\n\n"];
                let over = blank.iter().filter_map(|blank| {
                    Some(rest.windows(blank.len()).position(|window| window == *blank)? + blank.len())
                });
                match over.min() {
                    Some(over) => rest = rest.get(over..).unwrap_or_default(),
                    None => return Status::Unfinished,
                }
            }
        }
    }
}

/// The command's answer, or why it cannot be run at all.
fn command(exec: Exec, limit: Duration, channel: &Channel) -> Result<Result<String, String>, Failure> {
    let limit = exec.timeout_ms.map_or(limit, |own| limit.min(Duration::from_millis(own)));
    let child = spawn(&prepare(&exec)?, false)?;
    let mut tail = Tail::new(Some(channel));
    Ok(match supervise(child, Some(limit), &mut tail) {
        Ok(exit) if exit.timed_out => Err(format!("timed out after {} ms", limit.as_millis())),
        Ok(exit) if exit.code == 0 => Ok(tail.last_line()),
        Ok(exit) => {
            let line = tail.last_line();
            let separator = if line.is_empty() { "" } else { ": " };
            let memory = if exit.out_of_memory { " (the machine's memory ran out)" } else { "" };
            Err(format!("exit code {}{memory}{separator}{line}", exit.code))
        }
        Err(Unfinished::Cancelled) => Err("cancelled".to_owned()),
        Err(Unfinished::Stuck) => Err("the command cannot be killed".to_owned()),
    })
}

/// Looks at the processors' times before and after `span`.
fn idle(span: Duration) -> Result<String, String> {
    let look = || std::fs::read_to_string("/proc/stat").ok().as_deref().and_then(times);
    let before = look().ok_or("the processors' times cannot be read")?;
    std::thread::sleep(span);
    let after = look().ok_or("the processors' times cannot be read")?;
    let (idle, all) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    let percent = idle.saturating_mul(100).checked_div(all).unwrap_or(100);
    let text = format!("the processors were idle for {percent} % of {} ms", span.as_millis());
    if percent >= 90 { Ok(text) } else { Err(text) }
}

/// Of the line `cpu` of `/proc/stat` (`man 5 proc_stat`): ticks in which there was nothing to do, and all ticks. Waiting for
/// the disk is something to do.
fn times(stat: &str) -> Option<(u64, u64)> {
    let fields = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    // user nice system idle iowait irq softirq steal; what follows is part of user and nice already.
    let ticks: Vec<u64> = fields.split_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
    Some((*ticks.get(3)?, ticks.iter().fold(0, |sum, tick| sum.saturating_add(*tick))))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn status_lines() {
        let cases: [(&[u8], Status); 14] = [
            (b"HTTP/1.1 200 OK\r\n", Status::Final(200)),
            (b"HTTP/1.0 404 Not Found\r\nX: HTTP/1.1 200", Status::Final(404)),
            (b"HTTP/1.1 426 Upgrade Required\n", Status::Final(426)),
            (b"HTTP/1.1 503", Status::Unfinished),
            (b"HTT", Status::Unfinished),
            (b"", Status::Unfinished),
            (b"HTTP/1.1 20\n", Status::None),
            (b"HTTP/1.1 999 ?\n", Status::None),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", Status::None),
            (b"SSH", Status::None),
            (b"\n\nHTTP/1.1 200 OK", Status::None),
            (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 204 No Content\r\n", Status::Final(204)),
            (b"HTTP/1.1 100 Continue\r\n\r\n", Status::Unfinished),
            (b"HTTP/1.1 101 Switching Protocols\r\n", Status::Final(101)),
        ];
        for (answer, expected) in cases {
            assert_eq!(status(answer), expected, "{}", String::from_utf8_lossy(answer));
        }
    }

    #[test]
    fn idle_is_the_fourth_of_eight_times() {
        assert_eq!(times("cpu  1 2 3 40 5 6 7 8 900 900\ncpu0 1 1 1 1\n"), Some((40, 72)));
        assert_eq!(times("cpu0 1 2 3 40\ncpu  1 2 3 4\n"), Some((4, 10)));
        assert_eq!(times("cpu  1 2 x 4\n"), None);
        assert_eq!(times(""), None);
    }

    fn soon() -> Option<Instant> {
        Instant::now().checked_add(Duration::from_secs(20))
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
                assert!(request[..len].starts_with(b"GET /ready?x=1 HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
                if answer.is_empty() {
                    silent.push(stream);
                }
            }
            silent
        });
        let within = |deadline| http(port, "/ready?x=1", deadline);
        let attempt = || within(soon());
        assert_eq!(attempt(), Ok("HTTP 204".to_owned()));
        assert_eq!(attempt(), Err("HTTP 500".to_owned()));
        assert_eq!(attempt(), Err("the answer is not HTTP".to_owned()));
        assert_eq!(within(Instant::now().checked_add(Duration::from_millis(500))), Err("timed out".to_owned()));
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
