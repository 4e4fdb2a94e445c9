//! The fake service's commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::{StreamExt, stream};
use nullspace_api::*;
use nullspace_service::{CommandEvent, Error, FollowedCommand, Result};

use super::live::Live;

/// A piece of the command `much`, and how many there are of them.
pub(crate) const PIECE: usize = 64 << 10;
pub(crate) const PIECES: usize = 160;

/// Counts itself as followed until it is dropped.
struct Followed(Arc<AtomicUsize>);

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Live {
    pub(super) fn run(&self, request: ExecRequest) -> Result<FollowedCommand> {
        self.fake.call(format!("{request:?}"));
        let out = |bytes: &'static [u8]| Ok(CommandEvent::Stdout(Bytes::from_static(bytes)));
        let err = |bytes: &'static [u8]| Ok(CommandEvent::Stderr(Bytes::from_static(bytes)));
        let exit = |code, timed_out| Ok(CommandEvent::Exit { code, timed_out });
        let events = match request.command.as_str() {
            "text" => stream::iter([out(b"a\xe2"), err(b"fault\n"), out(b"\x82\xac\n"), exit(3, false)]).boxed(),
            "binary" => stream::iter([out(b"a\xff\0b"), out(b"\xe2\x82"), exit(0, false)]).boxed(),
            "much" => {
                let made = Arc::clone(&self.fake.made);
                let pieces = stream::iter(0..PIECES).map(move |at| {
                    made.fetch_add(1, Ordering::SeqCst);
                    Ok(CommandEvent::Stdout(vec![b'a' + (at % 26) as u8; PIECE].into()))
                });
                pieces.chain(stream::iter([exit(0, false)])).boxed()
            }
            "late" => stream::iter([exit(143, true)]).boxed(),
            "hang" => stream::iter([out(b"up\n")]).chain(stream::pending()).boxed(),
            "ended" => {
                let gone = Error::new(ErrorResponseCode::SandboxNotFound, "The sandbox has ended.");
                stream::iter([out(b"up\n"), Err(gone)]).boxed()
            }
            _ => {
                let message = "There is no such program.";
                return Err(Error::new(ErrorResponseCode::ExecFailed, message));
            }
        };
        self.fake.followed.fetch_add(1, Ordering::SeqCst);
        let followed = Followed(Arc::clone(&self.fake.followed));
        let events = events.map(move |event| {
            let _ = &followed;
            event
        });
        Ok(FollowedCommand { pid: 42, lost: (0, 0), events: events.boxed() })
    }

    pub(super) fn connect(pid: u32) -> Result<FollowedCommand> {
        if pid != 42 {
            return Err(Error::new(ErrorResponseCode::NotFound, format!("There is no process {pid}.")));
        }
        let out = Ok(CommandEvent::Stdout(Bytes::from_static(b"kept\n")));
        let events = stream::iter([out, Ok(CommandEvent::Exit { code: 0, timed_out: false })]);
        Ok(FollowedCommand { pid, lost: (1000, 0), events: events.boxed() })
    }

    pub(super) fn feed(&self, pid: u32, data: &[u8]) -> Result<()> {
        self.fake.call(format!("stdin of {pid}: {}", String::from_utf8_lossy(data)));
        match pid {
            42 => Ok(()),
            43 => Err(Error::new(ErrorResponseCode::TransitionConflict, "The process has closed its stdin.")),
            _ => Err(Error::new(ErrorResponseCode::NotFound, format!("There is no process {pid}."))),
        }
    }
}
