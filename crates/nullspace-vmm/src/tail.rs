//! The last bytes of an endless output, in bounded memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Keeps the last bytes that were written to it. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Tail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    limit: usize,
}

impl Tail {
    /// Keeps at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: Arc::default(), limit }
    }

    /// Reads `source` to its end in a task of its own, so that the writer never waits.
    pub(crate) fn follow(&self, mut source: impl AsyncRead + Send + Unpin + 'static) {
        let tail = self.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(count) = source.read(&mut buffer).await {
                if count == 0 {
                    break;
                }
                tail.push(&buffer[..count]);
            }
        });
    }

    fn push(&self, new: &[u8]) {
        let new = &new[new.len().saturating_sub(self.limit)..];
        let mut bytes = self.lock();
        let excess = (bytes.len() + new.len()).saturating_sub(self.limit);
        bytes.drain(..excess);
        bytes.extend(new);
    }

    /// Returns the kept bytes as text without control characters, from the first whole line if output was cut off.
    pub(crate) fn text(&self) -> String {
        let bytes = self.lock();
        let (mut first, mut second) = bytes.as_slices();
        if bytes.len() == self.limit
            && let Some(end) = bytes.iter().position(|byte| *byte == b'\n')
            && end + 1 < bytes.len()
        {
            let from_second = (end + 1).saturating_sub(first.len());
            first = &first[(end + 1).min(first.len())..];
            second = &second[from_second..];
        }
        let joined = [first, second].concat();
        drop(bytes);
        let shown = String::from_utf8_lossy(&joined);
        shown.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cut_line_and_terminal_escapes_are_left_out() {
        let tail = Tail::new(24);
        tail.push(b"first line\r\nsec");
        assert_eq!(tail.text(), "first line\nsec");
        tail.push(b"ond \x1b[31mline\n");
        assert_eq!(tail.text(), "second [31mline\n");
    }

    proptest! {
        #[test]
        fn the_end_is_kept_whatever_the_pieces(pieces in prop::collection::vec(prop::collection::vec(b'a'..=b'z', 0..50), 0..20)) {
            let tail = Tail::new(64);
            for piece in &pieces {
                tail.push(piece);
            }
            let all = pieces.concat();
            prop_assert_eq!(tail.text().into_bytes(), &all[all.len().saturating_sub(64)..]);
        }
    }
}
