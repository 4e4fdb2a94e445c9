//! Errors of the data folder.

/// Errors of the data folder.
///
/// `Display` never repeats its source and never has stored values. A caller of the API may see it, but not the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The request contradicts the stored state. A retry changes nothing.
    #[error("{what}")]
    Conflict {
        /// The reason, for the caller.
        what: String,
    },
    /// A stored value has the wrong form: another version wrote it, or it is damaged.
    #[error("stored data is damaged: {what}")]
    Corrupt {
        /// The file or name, never the value.
        what: String,
    },
    /// A stored file is incomplete: another program damaged or removed it.
    #[error("{what}")]
    Damaged {
        /// The file, and the advice.
        what: String,
    },
    /// The filesystem failed.
    #[error("{context}")]
    Io {
        /// The operation, with the path.
        context: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The object store did not do what was asked of it.
    #[error("{context}")]
    Objects {
        /// The operation, with the object.
        context: String,
        /// The store's error, which says whether it may succeed later.
        #[source]
        source: nullspace_objects::Error,
    },
    /// Another process uses this data directory.
    #[error("the data directory {path} is in use by another nullspace process")]
    DataDirInUse {
        /// The directory.
        path: String,
    },
}

impl DataError {
    /// Whether the same call may succeed later without a change.
    pub fn is_retryable(&self) -> bool {
        self.is_storage_full() || self.is_store_away()
    }

    /// Whether the object store could not be asked, refused, or has no space: nothing is said of the data, and the fault is the
    /// operator's to mend, not the caller's.
    pub fn is_store_away(&self) -> bool {
        use nullspace_objects::Error;
        let Self::Objects { source, .. } = self else { return false };
        source.is_retryable() || matches!(source, Error::Denied { .. } | Error::Stopped)
    }

    /// Whether the disk under the data folder is full. The call may succeed once there is space.
    pub fn is_storage_full(&self) -> bool {
        use std::io::ErrorKind;
        match self {
            Self::Io { source, .. } => matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded),
            _ => false,
        }
    }

    pub(crate) fn conflict(what: impl Into<String>) -> Self {
        Self::Conflict { what: what.into() }
    }

    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into() }
    }
}

impl From<nullspace_chunks::Error> for DataError {
    fn from(error: nullspace_chunks::Error) -> Self {
        use nullspace_chunks::Error;
        match error {
            Error::Io { what, source } => crate::remote::chunk_error(what, source),
            Error::Damaged { .. } | Error::Unknown(_) => Self::Damaged { what: error.to_string() },
            other => Self::Conflict { what: other.to_string() },
        }
    }
}

/// Result with [`DataError`].
pub type Result<T> = std::result::Result<T, DataError>;
