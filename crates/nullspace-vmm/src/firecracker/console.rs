//! The last lines of a VMM's output: the guest's serial console and the VMM's own messages. The guest decides how much
//! that is, so only the end is kept.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

const KEPT: usize = 16 << 10;

/// Reads until every writer is gone. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Console(Arc<Mutex<VecDeque<u8>>>);

impl Console {
    /// A console and the end to write to. Call it in a tokio runtime.
    pub(super) fn new() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
        let mut receiver = Receiver::from_owned_fd(read)?;
        let console = Self::default();
        let kept = console.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(read @ 1..) = receiver.read(&mut buffer).await {
                kept.keep(buffer.get(..read).unwrap_or_default());
            }
        });
        Ok((console, write))
    }

    fn keep(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        kept.extend(bytes);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }

    /// What is kept, without control characters other than line ends.
    pub(super) fn tail(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let bytes: Vec<u8> = kept.iter().copied().collect();
        String::from_utf8_lossy(&bytes).chars().filter(|c| *c == '\n' || !c.is_control()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn only_the_end_is_kept_and_it_is_plain_text() {
        let (console, write) = Console::new().unwrap();
        let mut write = std::fs::File::from(write);
        let writer = tokio::task::spawn_blocking(move || {
            write.write_all(&vec![b'x'; 200_000]).unwrap();
            write.write_all(b"\x1b[31mlast\r\nline\xff").unwrap();
        });
        writer.await.unwrap();
        let end = "[31mlast\nline\u{fffd}";
        while !console.tail().ends_with(end) {
            tokio::task::yield_now().await;
        }
        assert!(console.tail().len() <= KEPT + 4);
    }
}
