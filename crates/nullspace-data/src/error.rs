//! Errors of the data folder.

/// Why the data folder did not do what was asked.
///
/// `Display` never repeats its source and never holds stored values: it may be shown to the caller of the API, the
/// source may not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// What was asked contradicts what is there; asking again changes nothing.
    #[error("{what}")]
    Conflict {
        /// A sentence for the caller.
        what: String,
    },
    /// Something stored does not read as what it must be: written by another version, or damaged.
    #[error("stored data is damaged: {what}")]
    Corrupt {
        /// Which file or name; never the value.
        what: String,
    },
    /// A file that was stored cannot be read whole any more: something else damaged or removed it.
    #[error("{what}")]
    Damaged {
        /// What, and what to do about it.
        what: String,
    },
    /// The file system refused.
    #[error("{context}")]
    Io {
        /// What was tried, with the path.
        context: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Another process uses this data directory.
    #[error("the data directory {path} is in use by another nullspace process")]
    DataDirInUse {
        /// The directory.
        path: String,
    },
}

impl DataError {
    /// Whether the same call may succeed later without anything being changed.
    pub fn is_retryable(&self) -> bool {
        self.is_storage_full()
    }

    /// Whether the disk under the data folder has no room left. What failed may succeed once there is room.
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
            Error::Io { what, source } => Self::Io { context: what, source },
            Error::Damaged { .. } | Error::Unknown(_) => Self::Damaged { what: error.to_string() },
            other => Self::Conflict { what: other.to_string() },
        }
    }
}

/// Short form used throughout the crate.
pub type Result<T> = std::result::Result<T, DataError>;
