//! Runs `ip` and `nft` with text on stdin, bounded in time, in the calling thread's network namespace.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::VmmError;

const LIMIT: Duration = Duration::from_secs(10);
const MAX_TEXT: u64 = 4 << 10;

/// The two programs, found once.
#[derive(Debug, Clone)]
pub(super) struct Commands {
    ip: PathBuf,
    nft: PathBuf,
}

impl Commands {
    pub(super) fn find() -> Result<Self, VmmError> {
        Ok(Self { ip: find("ip", "iproute2")?, nft: find("nft", "nftables")? })
    }

    /// `ip -batch -`: one command a line; stops at the first that fails.
    pub(super) fn ip(&self, script: &str) -> Result<(), VmmError> {
        run(Command::new(&self.ip).args(["-batch", "-"]), script, "ip").map(drop)
    }

    /// Runs `ip` as [`Self::ip`] does, but continues after lines that fail: for removals.
    pub(super) fn ip_force(&self, script: &str) -> Result<(), VmmError> {
        run(Command::new(&self.ip).args(["-force", "-batch", "-"]), script, "ip").map(drop)
    }

    /// `nft -f -`: the whole script as one transaction.
    pub(super) fn nft(&self, script: &str) -> Result<(), VmmError> {
        run(Command::new(&self.nft).args(["-f", "-"]), script, "nft").map(drop)
    }
}

/// Finds a program of the system.
pub(super) fn find(name: &str, package: &str) -> Result<PathBuf, VmmError> {
    // A service's PATH may lack the sbin folders; these are where Debian, Fedora and Alpine put them.
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .iter()
        .map(|dir| PathBuf::from(dir).join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| VmmError::Unavailable(format!("`{name}` is not installed; install the package {package}")))
}

/// Runs a program with text on stdin; what it prints.
pub(super) fn run(command: &mut Command, script: &str, name: &str) -> Result<String, VmmError> {
    let io = |what: &str| {
        let context = format!("{what} `{name}`");
        move |source| VmmError::Io { context, source }
    };
    let mut child = command
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io("start"))?;
    let written = match child.stdin.take() {
        // It reads while we write, and prints less than a pipe holds.
        Some(mut stdin) => stdin.write_all(script.as_bytes()),
        None => Ok(()),
    };
    let started = Instant::now();
    let status = loop {
        match child.try_wait().map_err(io("wait for"))? {
            Some(status) => break status,
            None if started.elapsed() > LIMIT => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(VmmError::Timeout { what: format!("`{name}`"), limit_ms: LIMIT.as_millis() as u64 });
            }
            None => std::thread::sleep(Duration::from_micros(300)),
        }
    };
    if !status.success() {
        return Err(VmmError::Refused { context: format!("`{name}` failed"), message: text_of(child.stderr.take()) });
    }
    written.map_err(io("write to"))?;
    Ok(text_of(child.stdout.take()))
}

fn text_of(source: Option<impl Read>) -> String {
    let mut text = Vec::new();
    if let Some(source) = source {
        let _ = source.take(MAX_TEXT).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}
