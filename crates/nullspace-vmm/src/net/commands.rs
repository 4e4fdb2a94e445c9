//! Runs `ip` and `nft` with text on stdin, bounded in time, in the calling thread's network namespace.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::VmmError;

const LIMIT: Duration = Duration::from_secs(10);
const ERROR_TEXT: u64 = 4 << 10;

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
        run(Command::new(&self.ip).args(["-batch", "-"]), script, "ip")
    }

    /// As [`Self::ip`], going on past lines that fail: for removals.
    pub(super) fn ip_force(&self, script: &str) -> Result<(), VmmError> {
        run(Command::new(&self.ip).args(["-force", "-batch", "-"]), script, "ip")
    }

    /// `nft -f -`: the whole script as one transaction.
    pub(super) fn nft(&self, script: &str) -> Result<(), VmmError> {
        run(Command::new(&self.nft).args(["-f", "-"]), script, "nft")
    }
}

fn find(name: &str, package: &str) -> Result<PathBuf, VmmError> {
    // A service's PATH may lack the sbin folders; these are where Debian, Fedora and Alpine put them.
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .iter()
        .map(|dir| PathBuf::from(dir).join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| VmmError::Unavailable(format!("`{name}` is not installed; install the package {package}")))
}

fn run(command: &mut Command, script: &str, name: &str) -> Result<(), VmmError> {
    let io = |what: &str| {
        let context = format!("{what} `{name}`");
        move |source| VmmError::Io { context, source }
    };
    let mut child = command
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io("start"))?;
    let written = match child.stdin.take() {
        // Our scripts are smaller than a pipe, so this does not block.
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
    let mut text = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(ERROR_TEXT).read_to_end(&mut text);
    }
    if !status.success() {
        return Err(VmmError::Refused {
            context: format!("`{name}` failed"),
            message: String::from_utf8_lossy(&text).trim().to_owned(),
        });
    }
    written.map_err(io("write to"))
}
