//! Readers of hostile bytes, for the fuzz targets in `fuzz/`: the functions behind them are private.
//!
//! ```text
//!   overlay's tables ── read_overlay ──> DiskChanges        answer's bytes ── firecracker_answer ──> FirecrackerAnswer
//! ```
//! Only with the feature `fuzzing`.

use std::fs::File;
use std::io;
use std::time::Duration;

use crate::{DiskChanges, firecracker, qcow2};

/// Writes an empty overlay of a disk of `size` bytes into an empty file.
///
/// # Errors
/// The file's, and [`io::ErrorKind::InvalidInput`] for a size that is no disk's.
pub fn create_overlay(file: &File, size: u64) -> io::Result<()> {
    qcow2::create(file, size)
}

/// Reads what an overlay of a disk of `size` bytes holds.
///
/// # Errors
/// The file's, and [`io::ErrorKind::InvalidData`] for a damaged overlay.
pub fn read_overlay(file: File, size: u64) -> io::Result<DiskChanges> {
    let parts = qcow2::allocated(&file, size)?;
    Ok(DiskChanges::new(size, parts, file))
}

/// An answer of Firecracker's API, as the driver reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirecrackerAnswer {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// The text that an error made of this answer would have.
    pub fault: String,
}

/// Reads `answer` as Firecracker's answer to a request; its bytes arrive in pieces of `piece` bytes (at least 1), then the
/// stream ends.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a malformed or too long answer, [`io::ErrorKind::UnexpectedEof`] for a cut one.
///
/// # Panics
/// When reading waits for more than the stream's end.
pub fn firecracker_answer(answer: &[u8], piece: usize) -> io::Result<FirecrackerAnswer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let read = firecracker::read_any(answer, piece);
    let read = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), read).await });
    let (status, body, fault) = read.expect("nothing is left to wait for")?;
    Ok(FirecrackerAnswer { status, body: body.to_vec(), fault })
}
