//! A reader that discards the remaining output of a process.
//!
//! A process that an exec left in the background (`server &`) may still hold the exec's stdout. Closing our end would end
//! it with SIGPIPE at its next line; so the end is kept here, and what comes is read and forgotten.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::wake::Wake;

/// Pipes kept at a time; more than this many left-behind writers have to live with a closed pipe.
const MAX_PIPES: usize = 256;

struct Sink {
    wake: Wake,
    arrived: Mutex<Vec<OwnedFd>>,
}

/// Keeps reading a pipe until its last writer has closed it.
pub(crate) fn drain(pipe: OwnedFd) {
    static SINK: OnceLock<Option<Arc<Sink>>> = OnceLock::new();
    let sink = SINK.get_or_init(|| {
        let sink = Arc::new(Sink { wake: Wake::new().ok()?, arrived: Mutex::default() });
        let run = sink.clone();
        std::thread::Builder::new().name("sink".into()).spawn(move || run.run()).ok()?;
        Some(sink)
    });
    if let Some(sink) = sink {
        sink.arrived.lock().unwrap_or_else(PoisonError::into_inner).push(pipe);
        sink.wake.set();
    }
}

impl Sink {
    fn run(&self) {
        let mut pipes: Vec<OwnedFd> = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let mut waits: Vec<PollFd<'_>> =
                pipes.iter().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
            waits.push(PollFd::new(self.wake.as_fd(), PollFlags::POLLIN));
            let polled = poll(&mut waits, PollTimeout::NONE);
            let ready: Vec<bool> = waits.iter().map(|wait| wait.any().unwrap_or(false)).collect();
            drop(waits);
            if polled.is_err() {
                continue;
            }
            let mut at = 0;
            pipes.retain(|pipe| {
                let readable = ready.get(at).copied().unwrap_or(false);
                at += 1;
                !readable || !matches!(nix::unistd::read(pipe, &mut buffer), Ok(0))
            });
            self.wake.clear();
            pipes.append(&mut self.arrived.lock().unwrap_or_else(PoisonError::into_inner));
            pipes.truncate(MAX_PIPES);
        }
    }
}
