//! Errors of the database and internal faults, as the service's [`Error`].

use std::time::Duration;

use nullspace_api::ErrorResponseCode;
use nullspace_db::DbError;
pub(crate) use nullspace_host_interface::internal;
use nullspace_host_interface::{HostError, storage_full, store_away};
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
        DbError::SegmentsUnavailable(_) => {
            tracing::error!(error = %chain(&error), "parts of a build's log are not available");
            store_away(None)
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
    if let HostError::StoreAway(_) = error {
        tracing::error!(%error, "refused: the object store is away");
        return store_away(None);
    }
    internal("host", &error)
}

#[cfg(test)]
mod tests {
    use std::io::{Error as IoError, ErrorKind};

    use super::*;

    fn io(source: IoError) -> DbError {
        DbError::Io { context: "write the database".into(), source }
    }

    #[test]
    fn a_full_disk_of_the_database_or_the_host_is_told_to_callers_as_such() {
        for number in [28 /* ENOSPC */, 122 /* EDQUOT */] {
            for error in [
                of_store(io(IoError::from_raw_os_error(number))),
                of_host(HostError::StorageFull("write a pack: No space left on device".into())),
            ] {
                assert_eq!(error.code, ErrorResponseCode::CapacityExceeded, "{error:?}");
                assert!(error.retry_after.is_some() && error.message.contains("disk"), "{error:?}");
                assert!(!error.message.contains("pack") && !error.message.contains("database"), "{error:?}");
            }
        }
        assert_eq!(of_store(io(ErrorKind::PermissionDenied.into())).code, ErrorResponseCode::InternalError);
        assert_eq!(of_host(HostError::Failed("no".into())).code, ErrorResponseCode::InternalError);
    }
}
