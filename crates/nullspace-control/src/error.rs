//! Errors of the database and internal faults, as the service's [`Error`].

use std::time::Duration;

use nullspace_api::ErrorResponseCode;
use nullspace_db::DbError;
pub(crate) use nullspace_host_interface::internal;
use nullspace_host_interface::{HostError, storage_full};
use nullspace_service::chain;
pub(crate) use nullspace_service::{Error, Result};

/// Converts the database's errors to the service's.
pub(crate) trait Stored<T> {
    /// Converts the error of a call in which nothing can be missing.
    fn stored(self) -> Result<T>;

    /// Converts the error; [`DbError::NotFound`] becomes `missing`.
    fn or_missing(self, missing: impl FnOnce() -> Error) -> Result<T>;
}

impl<T> Stored<T> for std::result::Result<T, DbError> {
    fn stored(self) -> Result<T> {
        self.map_err(of_store)
    }

    fn or_missing(self, missing: impl FnOnce() -> Error) -> Result<T> {
        self.map_err(|error| match error {
            DbError::NotFound => missing(),
            other => of_store(other),
        })
    }
}

/// The service's error for an error of the database in a call in which nothing can be missing.
pub(crate) fn of_store(error: DbError) -> Error {
    match error {
        DbError::NotFound => Error::new(ErrorResponseCode::NotFound, "not found"),
        DbError::Conflict { what } => Error::new(ErrorResponseCode::TransitionConflict, what),
        DbError::LimitReached { .. } => Error {
            retry_after: Some(Duration::from_secs(5)),
            ..Error::new(ErrorResponseCode::RateLimitExceeded, error.to_string())
        },
        full if full.is_storage_full() => {
            tracing::debug!(error = %chain(&full), "refused: the disk under the data folder has no room");
            storage_full(None)
        }
        DbError::Unavailable(_) => {
            tracing::error!(error = %chain(&error), "the database is not available");
            Error {
                retry_after: Some(Duration::from_secs(2)),
                ..Error::new(ErrorResponseCode::DatabaseError, "the database is not available; try again")
            }
        }
        other => internal("store", &other),
    }
}

/// The service's error for an error of the host.
pub(crate) fn of_host(error: HostError) -> Error {
    if error.is_storage_full() {
        tracing::debug!(%error, "refused: the disk under the data folder has no room");
        return storage_full(None);
    }
    internal("host", &error)
}
