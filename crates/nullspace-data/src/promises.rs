//! Reservations of disk space: their sum, and the rest of each.

use std::sync::{Arc, Mutex, PoisonError};

use crate::Result;

/// The sum of all reservations, bytes.
#[derive(Debug, Default)]
pub(crate) struct Promised(Mutex<u64>);

impl Promised {
    /// Reserves `bytes` if `fits` returns no error for the sum of all other reservations.
    pub(crate) fn promise(self: &Arc<Self>, bytes: u64, fits: impl FnOnce(u64) -> Result<()>) -> Result<Room> {
        let mut sum = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fits(*sum)?;
        *sum = sum.saturating_add(bytes);
        Ok(Room { promised: Arc::clone(self), left: bytes })
    }
}

/// Reserved space. Dropping it releases the unused rest.
#[derive(Debug)]
pub struct Room {
    promised: Arc<Promised>,
    left: u64,
}

impl Room {
    /// Reports that so many bytes of it are written: they now count as used on the disk.
    pub fn used(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.left -= bytes;
        let mut sum = self.promised.0.lock().unwrap_or_else(PoisonError::into_inner);
        *sum = sum.saturating_sub(bytes);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.used(self.left);
    }
}
