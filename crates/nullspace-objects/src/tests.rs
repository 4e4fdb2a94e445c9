//! Tests: one suite for every kind of store, and what each kind has of its own.

mod cache;
mod conformance;
mod faults;
mod folder;
mod hostile;
mod mock;
mod seaweedfs;
mod weed;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::ObjectName;

fn name(text: &str) -> ObjectName {
    text.parse().unwrap()
}

/// Bytes that differ at every offset and for every seed.
fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(bytes);
    content
}

/// An unnamed file with this content.
fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

/// The content of a file from its first byte.
fn read(file: &File) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut content = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut content, 0).unwrap();
    content
}

/// Waits until a folder of drafts is empty. Who stops an upload or goes away does not wait for the last write of a part, which
/// then lets go of the draft.
async fn emptied(work: &Path) {
    let began = Instant::now();
    loop {
        let left: Vec<_> = fs::read_dir(work).unwrap().map(|entry| entry.unwrap().path()).collect();
        if left.is_empty() {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{left:?} remains");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
