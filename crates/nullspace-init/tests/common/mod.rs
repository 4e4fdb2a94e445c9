//! The real agent and the real client over a socket pair, in this process.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::reboot::RebootMode;
use nullspace_guest::host::Agent;
use nullspace_init::{Ground, Stream, StreamKind, serve};

/// Bound of what takes milliseconds on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// One agent, and as many connections to it as a test wants.
pub(crate) struct Guest(pub(crate) Arc<nullspace_init::Agent>);

impl Guest {
    pub(crate) fn new() -> Guest {
        Guest::on(Ok("/dev/null".to_owned()))
    }

    pub(crate) fn on(root: Result<String, String>) -> Guest {
        Guest(nullspace_init::Agent::new(Ground { root, off: RebootMode::RB_POWER_OFF }))
    }

    #[allow(dead_code, reason = "not every test has uploads")]
    pub(crate) fn with_uploads_in(folder: std::path::PathBuf) -> Guest {
        let ground = Ground { root: Ok("/dev/null".to_owned()), off: RebootMode::RB_POWER_OFF };
        Guest(nullspace_init::Agent::that_keeps_uploads_in(folder, ground))
    }

    pub(crate) async fn connect(&self) -> Agent {
        let (host, guest) = UnixStream::pair().unwrap();
        let stream = Arc::new(Stream::new(guest.into(), StreamKind::Connection).unwrap());
        let agent = self.0.clone();
        std::thread::spawn(move || serve(&agent, &stream));
        host.set_nonblocking(true).unwrap();
        let host = tokio::net::UnixStream::from_std(host).unwrap();
        Agent::connect(host, SOON).await.unwrap().0
    }
}
