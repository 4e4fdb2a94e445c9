//! Settings, counters and the state of the database itself.

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::Row;

use super::{
    Store,
    rows::{self, Reader},
};
use crate::{Counters, DbError, Health, Result};

#[async_trait]
impl Health for Store {
    async fn get_setting(&self, key: &str) -> Result<Option<serde_json::Value>> {
        sqlx::query_scalar("SELECT value FROM settings WHERE key = $1")
            .bind(key)
            .fetch_optional(&self.readers)
            .await?
            .map(|text: String| rows::parse_json(&text, "settings.value"))
            .transpose()
    }

    async fn put_setting(&self, key: &str, value: &serde_json::Value, now: Timestamp) -> Result<()> {
        let put = sqlx::query(
            "INSERT INTO settings (key, value, updated_at) VALUES ($1, $2, $3)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
        );
        self.run(put.bind(key).bind(value.to_string()).bind(now.as_microsecond())).await?;
        Ok(())
    }

    async fn counters(&self) -> Result<Counters> {
        counters(self).await
    }

    async fn ping(&self, now: Timestamp) -> Result<()> {
        sqlx::query("SELECT 1").execute(&self.readers).await?;
        self.put_setting("last_ping", &serde_json::json!(now.as_second()), now).await
    }

    async fn close(&self) {
        self.readers.close().await;
        // Last, so that SQLite folds the journal into the file.
        self.writer.close().await;
    }
}

pub(super) async fn counters(store: &Store) -> Result<Counters> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM builds WHERE finished_at IS NULL AND status = 'waiting'),
                (SELECT count(*) FROM builds WHERE finished_at IS NULL AND status = 'building'),
                (SELECT count(*) FROM sandboxes WHERE ended_at IS NULL),
                (SELECT min(queued_at) FROM builds WHERE finished_at IS NULL AND status = 'waiting') AS oldest_waiting",
    )
    .fetch_one(&store.readers)
    .await?;
    let count = |index: usize| -> Result<u64> {
        u64::try_from(row.try_get::<i64, _>(index)?).map_err(|_| DbError::corrupt("a count"))
    };
    Ok(Counters {
        builds_waiting: count(0)?,
        oldest_waiting: Reader(&row).optional_time("oldest_waiting")?,
        builds_building: count(1)?,
        sandboxes_live: count(2)?,
    })
}
