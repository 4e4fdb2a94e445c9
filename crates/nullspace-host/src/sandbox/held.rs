//! The files of a fork: a snapshot that is not stored, in a scratch folder of its own.
//!
//! ```text
//!   fork_sandbox ── Held { files, a place for the first } ── Snapshot.held ──> admit ──> start ──> Live keeps them
//! ```
//! They go with the last handle: that of control, and of each sandbox that was resumed from them.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nullspace_data::Scratch;
use nullspace_host_interface::{HeldFiles, internal};
use nullspace_service::Result;

use crate::admission::Permit;
use crate::disk::Writing;

/// The files of a fork.
#[derive(Debug)]
pub(super) struct Held {
    dir: PathBuf,
    /// The admission of the first sandbox: it was asked for before the capture.
    permit: Mutex<Option<Permit>>,
    /// Before the folder that it counts.
    _writing: Writing,
    _scratch: Scratch,
}

impl HeldFiles for Held {}

/// A handle from control that is no [`Held`] of this process.
#[derive(Debug, thiserror::Error)]
#[error("files of a fork that another host has")]
struct Foreign;

impl Held {
    /// Holds the snapshot in `dir`, which is in `scratch`.
    pub(super) fn new(dir: PathBuf, scratch: Scratch, writing: Writing, permit: Permit) -> Held {
        Held { dir, permit: Mutex::new(Some(permit)), _writing: writing, _scratch: scratch }
    }

    /// The files behind a handle from control.
    pub(super) fn of(handle: &Arc<dyn HeldFiles>) -> Result<Arc<Held>> {
        let any: Arc<dyn Any + Send + Sync> = Arc::clone(handle) as _;
        any.downcast::<Held>().map_err(|_| internal("fork a sandbox", &Foreign))
    }

    /// The folder with the files.
    pub(super) fn path(&self) -> &Path {
        &self.dir
    }

    /// The admission of the first sandbox; `None` for all others.
    pub(super) fn take_permit(&self) -> Option<Permit> {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
