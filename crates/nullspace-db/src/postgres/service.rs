//! The lock of the one service that works on a database.
//!
//! ```text
//!   service ──one connection──> session advisory lock of the schema      ends with the connection, however the service ends
//!      └── `lost`: asks every few seconds; takes it again after the server was away; ends when another service has it
//! ```
//! A command that works beside a running service does not take it.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};

use super::PostgresStore;
use crate::{DbError, Result};

/// Time between two looks at the connection.
const LOOK: Duration = Duration::from_secs(2);
/// Longest wait for one answer of the server.
const ANSWER: Duration = Duration::from_secs(10);
/// Attempts to take a lock back that another connection has: the server may not have noticed yet that our own earlier one is gone.
const ATTEMPTS: u32 = 20;

/// The lock. Dropped, it is free.
pub struct ServiceLock {
    options: PgConnectOptions,
    connection: PgConnection,
}

impl std::fmt::Debug for ServiceLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceLock").finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Takes the lock of the one service on this database.
    ///
    /// # Errors
    /// [`DbError::Conflict`] when another service has it.
    pub async fn lock_for_service(&self) -> Result<ServiceLock> {
        let options = self.options.clone();
        let connection = take(&options).await?.ok_or_else(taken)?;
        Ok(ServiceLock { options, connection })
    }
}

impl ServiceLock {
    /// Keeps the lock, also when the server restarts. Returns when another service has taken it meanwhile: this one must end.
    pub async fn lost(mut self) -> DbError {
        loop {
            tokio::time::sleep(LOOK).await;
            if matches!(tokio::time::timeout(ANSWER, self.connection.ping()).await, Ok(Ok(()))) {
                continue;
            }
            tracing::warn!("the connection that has the database's service lock is lost: it is taken again");
            let mut attempts = 0;
            self.connection = loop {
                match take(&self.options).await {
                    Ok(Some(connection)) => break connection,
                    Ok(None) if attempts == ATTEMPTS => return taken(),
                    Ok(None) => attempts += 1,
                    // The server is away: nobody can have the lock.
                    Err(_) => attempts = 0,
                }
                tokio::time::sleep(LOOK).await;
            };
            tracing::info!("this service has the database's service lock again");
        }
    }
}

fn taken() -> DbError {
    DbError::conflict("another service works on this database")
}

/// A connection that has the lock; `None` when another has it.
async fn take(options: &PgConnectOptions) -> Result<Option<PgConnection>> {
    let attempt = async {
        let mut connection = options.connect().await?;
        let is_ours: bool = sqlx::query_scalar(
            "SELECT pg_try_advisory_lock(hashtextextended('nullspace service ' || current_schema(), 0))",
        )
        .fetch_one(&mut connection)
        .await?;
        Ok::<_, sqlx::Error>(is_ours.then_some(connection))
    };
    match tokio::time::timeout(ANSWER, attempt).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(sqlx::Error::PoolTimedOut.into()),
    }
}
