//! Connections to the database without a broken transaction.
//!
//! SQLite rolls a transaction back by itself when the disk is full or fails, memory runs out, or a statement says so
//! (<https://www.sqlite.org/lang_transaction.html>, "Response To Errors Within A Transaction"). sqlx counts transactions
//! without asking SQLite. Its own rollback then fails, and the count stays: every later `BEGIN` on that connection is
//! refused. So a connection returns to its pool only when its count is zero. Otherwise it is closed, and the pool opens
//! another.

use std::pin::Pin;

use sqlx::{Connection, SqliteConnection, sqlite::SqlitePoolOptions};

use super::WAIT;

/// A pool of so many connections.
pub(super) fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(WAIT)
        // Nothing of them wears out, and while the disk is full no other may come in their place.
        .idle_timeout(None)
        .max_lifetime(None)
        .after_release(|connection, _| known_good(connection))
}

fn known_good(connection: &mut SqliteConnection) -> Pin<Box<dyn Future<Output = sqlx::Result<bool>> + Send + '_>> {
    Box::pin(async move {
        // Answered after the rollback of a transaction that was dropped.
        connection.ping().await?;
        let good = !connection.is_in_transaction();
        if !good {
            tracing::warn!("SQLite rolled a transaction back by itself: its connection is closed and another opened");
        }
        Ok(good)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use serde_json::json;

    use super::super::SqliteStore;
    use crate::{DbError, Health, NamespaceKind, Tenants};

    async fn opened() -> (tempfile::TempDir, SqliteStore) {
        let dir = tempfile::TempDir::new().unwrap();
        let store = SqliteStore::open(&dir.path().join("nullspace.db")).await.unwrap();
        (dir, store)
    }

    /// Takes the writer's room away, as a full disk does: a page more is SQLITE_FULL.
    async fn fill(store: &SqliteStore) {
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&store.writer).await.unwrap();
        let limit = format!("PRAGMA max_page_count = {pages}");
        sqlx::query(sqlx::AssertSqlSafe(limit)).execute(&store.writer).await.unwrap();
    }

    async fn make_room(store: &SqliteStore) {
        sqlx::query("PRAGMA max_page_count = 1073741823").execute(&store.writer).await.unwrap();
    }

    async fn writes_work(store: &SqliteStore, why: &str) {
        let tenant = store.ensure_tenant("later", NamespaceKind::User, Timestamp::UNIX_EPOCH).await;
        tenant.unwrap_or_else(|error| panic!("after {why}: {error:?}"));
        store.put_setting("later", &json!(why), Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(store.get_setting("later").await.unwrap(), Some(json!(why)));
    }

    #[tokio::test]
    async fn writes_work_again_as_soon_as_there_is_room() {
        let (_dir, store) = opened().await;
        for round in 0..3 {
            fill(&store).await;
            let long = json!("x".repeat(1 << 20));
            let single = store.put_setting("long", &long, Timestamp::UNIX_EPOCH).await.unwrap_err();
            let mut tx = store.write().await.unwrap();
            sqlx::query("INSERT INTO settings (key, value, updated_at) VALUES ('small', '1', 0)")
                .execute(&mut *tx)
                .await
                .unwrap();
            let within = sqlx::query("UPDATE settings SET value = ? WHERE key = 'small'")
                .bind(long.to_string())
                .execute(&mut *tx)
                .await;
            let within = DbError::from(within.unwrap_err());
            drop(tx);
            for error in [single, within] {
                assert!(error.is_storage_full() && error.is_retryable(), "round {round}: {error:?}");
            }
            make_room(&store).await;
            assert_eq!(store.get_setting("small").await.unwrap(), None, "half of a transaction is there");
            writes_work(&store, &format!("round {round}")).await;
        }
    }

    #[tokio::test]
    async fn a_transaction_that_ended_by_itself_spoils_no_other() {
        let (_dir, store) = opened().await;
        sqlx::raw_sql(
            "CREATE TRIGGER gives_up BEFORE INSERT ON settings WHEN new.key = 'fatal'
             BEGIN SELECT raise(ROLLBACK, 'rolled back'); END",
        )
        .execute(&store.writer)
        .await
        .unwrap();
        let fatal = "INSERT INTO settings (key, value, updated_at) VALUES ('fatal', '1', 0)";
        // What SQLite does by itself on a failing disk (IOERR, NOMEM), said by hand; and by a statement.
        for statement in ["ROLLBACK", "COMMIT", fatal] {
            let mut tx = store.write().await.unwrap();
            let done = sqlx::raw_sql(statement).execute(&mut *tx).await;
            assert_eq!(done.is_err(), statement == fatal, "{statement}");
            // Whoever goes on sees an error, not half of a success.
            let committed = tx.commit().await;
            assert!(committed.is_err(), "{statement}: there was nothing to commit");
            writes_work(&store, statement).await;
            let mut tx = store.write().await.unwrap();
            let _ = sqlx::raw_sql(statement).execute(&mut *tx).await;
            drop(tx);
            writes_work(&store, statement).await;
        }
    }

    #[tokio::test]
    async fn a_write_that_nobody_waits_for_any_more_spoils_no_other() {
        let (_dir, store) = opened().await;
        for micros in (0..3000).step_by(20) {
            let write = store.ensure_tenant("given up", NamespaceKind::User, Timestamp::UNIX_EPOCH);
            let _ = tokio::time::timeout(Duration::from_micros(micros), write).await;
            let _ = tokio::time::timeout(Duration::from_micros(micros), async {
                let tx = store.write().await?;
                tx.commit().await?;
                Ok::<_, DbError>(())
            })
            .await;
        }
        writes_work(&store, "futures that were dropped").await;
    }
}
