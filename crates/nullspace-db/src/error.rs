//! Errors of the database.

/// Why the database did not do what was asked.
///
/// `Display` never repeats its source and never holds stored values: it may be shown to the caller of the API, the
/// source may not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// There is no such thing, or it is another tenant's: the two are the same on purpose.
    #[error("not found")]
    NotFound,
    /// What was asked contradicts what is there; asking again changes nothing.
    #[error("{what}")]
    Conflict {
        /// A sentence for the caller.
        what: String,
    },
    /// A queue is as long as it may be; later there will be room again.
    #[error("{what}: the limit is {limit}")]
    LimitReached {
        /// What there is too much of.
        what: &'static str,
        /// How many there may be.
        limit: u32,
    },
    /// The worker no longer holds this build: another has taken it, or it ended. It must stop and write nothing more.
    #[error("the lease on this build was lost")]
    LeaseLost,
    /// The database is down, busy for too long, or out of space. Retryable.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// The database refused a statement: a fault of ours, not of the caller. Not retryable.
    #[error("the database refused an operation")]
    Database(#[source] sqlx::Error),
    /// The tables could not be brought to this version's shape.
    #[error("the database could not be migrated")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// Something stored does not read as what it must be: written by another version, or damaged.
    #[error("stored data is damaged: {what}")]
    Corrupt {
        /// Which table and column; never the value.
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
}

impl DbError {
    /// Whether the same call may succeed later without anything being changed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::LimitReached { .. }) || self.is_storage_full()
    }

    /// Whether the disk under the database has no room left. What failed may succeed once there is room.
    pub fn is_storage_full(&self) -> bool {
        use std::io::ErrorKind;
        match self {
            Self::Io { source, .. } => matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded),
            Self::Unavailable(error) | Self::Database(error) => crate::sqlite::is_full(error),
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

impl From<nullspace_types::InvalidBlobId> for DbError {
    fn from(_: nullspace_types::InvalidBlobId) -> Self {
        Self::corrupt("name of a blob")
    }
}

/// Short form used throughout the crate.
pub type Result<T> = std::result::Result<T, DbError>;
