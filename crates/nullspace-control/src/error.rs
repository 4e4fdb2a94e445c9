//! How the store's errors, and faults of our own, become the service's [`Error`].

use std::time::Duration;

use nullspace_api::ErrorResponseCode;
use nullspace_db::DbError;
use nullspace_host_interface::{HostError, storage_full};
use nullspace_service::chain;
pub(crate) use nullspace_service::{Error, Result};

/// A fault of the service: logged whole, shown without internals.
pub(crate) fn internal(what: &str, error: &dyn std::error::Error) -> Error {
    tracing::error!(error = %chain(error), "{what}");
    Error::new(ErrorResponseCode::InternalError, "the service failed at its own work; its log has this request's id")
}

/// What the store answers, with the service's error.
pub(crate) trait Stored<T> {
    /// For calls where nothing can be missing.
    fn stored(self) -> Result<T>;

    /// [`DbError::NotFound`] becomes `missing`.
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

/// The service's error for one of the store's where nothing can be missing.
pub(crate) fn of_store(error: DbError) -> Error {
    match error {
        DbError::NotFound => Error::new(ErrorResponseCode::NotFound, "not found"),
        DbError::Conflict { what } => Error::new(ErrorResponseCode::TransitionConflict, what),
        DbError::LimitReached { .. } => Error {
            retry_after: Some(Duration::from_secs(5)),
            ..Error::new(ErrorResponseCode::RateLimitExceeded, error.to_string())
        },
        full if full.is_storage_full() => {
            tracing::warn!(error = %chain(&full), "refused: the disk under the data folder has no room");
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

/// The service's error for one of a host's.
pub(crate) fn of_host(error: HostError) -> Error {
    if error.is_storage_full() {
        tracing::warn!(%error, "refused: the disk under the data folder has no room");
        return storage_full(None);
    }
    internal("host", &error)
}
