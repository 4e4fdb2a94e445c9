//! Cancellation of running calls.

use tokio_util::sync::CancellationToken;

use crate::{Error, Result};

/// Stops running calls early, with [`Error::Stopped`]. Cheap to clone: clones stop together.
#[derive(Debug, Clone, Default)]
pub struct Stop(CancellationToken);

impl Stop {
    /// A value that nothing has stopped yet.
    #[must_use]
    pub fn new() -> Stop {
        Stop::default()
    }

    /// Stops the calls with this value, for good.
    pub fn stop(&self) {
        self.0.cancel();
    }

    /// Whether [`Stop::stop`] was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns when [`Stop::stop`] is called.
    pub async fn stopped(&self) {
        self.0.cancelled().await;
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_stopped() { Err(Error::Stopped) } else { Ok(()) }
    }
}
