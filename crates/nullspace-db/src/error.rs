//! Errors of the database.

use sqlx::{error::DatabaseError, postgres::PgDatabaseError, sqlite::SqliteError};

/// Errors of the database.
///
/// `Display` never repeats its source and never has stored values. A caller of the API may see it, but not the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// It does not exist, or it is another tenant's. The two are the same on purpose.
    #[error("not found")]
    NotFound,
    /// The request contradicts the stored state. A retry changes nothing.
    #[error("{what}")]
    Conflict {
        /// The reason, for the caller.
        what: String,
    },
    /// A limit is reached. It may be free again later.
    #[error("{what}: the limit is {limit}")]
    LimitReached {
        /// The limited thing.
        what: &'static str,
        /// The limit.
        limit: u32,
    },
    /// The worker no longer holds this build: another has taken it, or it has ended. The worker must stop and write nothing
    /// more.
    #[error("the lease on this build was lost")]
    LeaseLost,
    /// The database is down, busy for too long, or out of space. Retryable.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// The database refused a statement: an internal fault, not retryable.
    #[error("the database refused an operation")]
    Database(#[source] sqlx::Error),
    /// The migration to this version's tables failed.
    #[error("the database could not be migrated")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A stored value has the wrong form: another version wrote it, or it is damaged.
    #[error("stored data is damaged: {what}")]
    Corrupt {
        /// The table and column, never the value.
        what: String,
    },
    /// The place of log segments, which is not the database, does not answer or refuses. Retryable.
    #[error("build logs are not available: the store of their older parts does not answer")]
    SegmentsUnavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The filesystem failed.
    #[error("{context}")]
    Io {
        /// The operation, with the path.
        context: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl DbError {
    /// Whether the same call may succeed later without a change.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::SegmentsUnavailable(_) | Self::LimitReached { .. })
            || self.is_storage_full()
    }

    /// Whether the disk under the database is full. The call may succeed once there is space.
    pub fn is_storage_full(&self) -> bool {
        use std::io::ErrorKind;
        match self {
            Self::Io { source, .. } => matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded),
            Self::Unavailable(error) | Self::Database(error) => is_full(error),
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

/// What a database's refusal of a statement means for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is down, busy, or out of space.
    Unavailable,
    /// A stored value or a file is damaged.
    Corrupt(&'static str),
    /// It cannot store a value of the request.
    Value,
    /// A fault of this service.
    Internal,
}

fn refusal(error: &dyn DatabaseError) -> Refusal {
    if let Some(error) = error.try_downcast_ref::<SqliteError>() {
        crate::sqlite::refusal(error)
    } else if let Some(error) = error.try_downcast_ref::<PgDatabaseError>() {
        crate::postgres::refusal(error)
    } else {
        Refusal::Internal
    }
}

fn is_full(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    error.try_downcast_ref::<SqliteError>().is_some_and(crate::sqlite::is_full)
        || error.try_downcast_ref::<PgDatabaseError>().is_some_and(crate::postgres::is_full)
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::BeginFailed => Self::Unavailable(error),
            sqlx::Error::ColumnDecode { index, .. } => Self::corrupt(format!("column {index}")),
            sqlx::Error::Database(refused) => match refusal(refused.as_ref()) {
                Refusal::Unavailable => Self::Unavailable(error),
                Refusal::Corrupt(what) => Self::corrupt(what),
                Refusal::Value => Self::conflict("a text has a character that the database cannot store"),
                Refusal::Internal => Self::Database(error),
            },
            _ => Self::Database(error),
        }
    }
}

impl From<nullspace_types::InvalidBlobId> for DbError {
    fn from(_: nullspace_types::InvalidBlobId) -> Self {
        Self::corrupt("name of a blob")
    }
}

/// Result with [`DbError`].
pub type Result<T> = std::result::Result<T, DbError>;
