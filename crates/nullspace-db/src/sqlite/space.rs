//! The size of the database's file.
//!
//! SQLite reuses the pages of removed rows and never gives them back by itself. The file is made with `auto_vacuum` as
//! `INCREMENTAL`: `PRAGMA incremental_vacuum(N)` moves N pages from the file's end into free ones, in one transaction, and the
//! next checkpoint cuts the file. A file of an older version must be rewritten once for that, by `VACUUM`.
//!
//! | measured on a file of 125 MiB, three quarters of it free | |
//! |---|---|
//! | `VACUUM` | writers wait for 0.9 to 3.7 s: 30 ms for each MiB that stays |
//! | `incremental_vacuum(256)` | writers wait for at most 56 ms (both cores busy) for each MiB that goes, as often as is needed |

use sqlx::{AssertSqlSafe, Executor, Row};

use super::SqliteStore;
use crate::{DbError, Result, Space};

/// Free bytes that are kept for the next rows, at least.
const KEEP_BYTES: u64 = 4 << 20;
/// Of the whole file, this part is kept free.
const KEEP_PART: u64 = 8;
/// Value of `PRAGMA auto_vacuum` with which pages can be given back.
const INCREMENTAL: i64 = 2;

/// Pages of the file.
struct Pages {
    page_bytes: u64,
    all: u64,
    free: u64,
}

impl Pages {
    fn surplus(&self) -> u64 {
        let keep = (KEEP_BYTES / self.page_bytes.max(1)).max(self.all / KEEP_PART);
        self.free.saturating_sub(keep)
    }

    fn space(&self, given_back: u64) -> Space {
        let bytes = |pages: u64| pages.saturating_mul(self.page_bytes);
        Space {
            file_bytes: bytes(self.all),
            free_bytes: bytes(self.free),
            given_back: bytes(given_back),
            surplus_bytes: bytes(self.surplus()),
        }
    }
}

async fn pages<'c>(connection: impl Executor<'c, Database = sqlx::Sqlite>) -> Result<Pages> {
    let row = sqlx::query(
        "SELECT (SELECT page_size FROM pragma_page_size), (SELECT page_count FROM pragma_page_count),
                (SELECT freelist_count FROM pragma_freelist_count)",
    )
    .fetch_one(connection)
    .await?;
    let number = |index: usize| -> Result<u64> {
        u64::try_from(row.try_get::<i64, _>(index)?).map_err(|_| DbError::corrupt("the database file"))
    };
    Ok(Pages { page_bytes: number(0)?, all: number(1)?, free: number(2)? })
}

pub(super) async fn measure(store: &SqliteStore) -> Result<Space> {
    Ok(pages(&store.readers).await?.space(0))
}

pub(super) async fn give_back(store: &SqliteStore, most: u32) -> Result<Space> {
    let before = pages(&store.readers).await?;
    let wanted = before.surplus().min(u64::from(most));
    if wanted == 0 || !is_incremental(store).await? {
        return Ok(before.space(0));
    }
    // Each step of this statement moves one page: all of its rows are taken.
    let vacuum = format!("PRAGMA incremental_vacuum({wanted})");
    sqlx::query(AssertSqlSafe(vacuum)).fetch_all(&store.writer).await?;
    let after = pages(&store.writer).await?;
    if after.surplus() == 0 {
        // The file is cut when the journal is folded into it. Readers of an older moment put it off, and nothing waits for them.
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_all(&store.writer).await?;
    }
    Ok(after.space(before.all.saturating_sub(after.all)))
}

async fn is_incremental(store: &SqliteStore) -> Result<bool> {
    let mut connection = store.readers.acquire().await?;
    // A connection notices a rewrite by another one when it reads the file; the pragma alone does not.
    sqlx::query("SELECT 1 FROM sqlite_schema LIMIT 1").fetch_optional(&mut *connection).await?;
    let mode: i64 = sqlx::query_scalar("PRAGMA auto_vacuum").fetch_one(&mut *connection).await?;
    Ok(mode == INCREMENTAL)
}

pub(super) async fn allow_give_back(store: &SqliteStore, limit_bytes: u64) -> Result<bool> {
    if is_incremental(store).await? {
        return Ok(true);
    }
    if measure(store).await?.file_bytes > limit_bytes {
        return Ok(false);
    }
    let mut connection = store.writer.acquire().await?;
    sqlx::query("PRAGMA auto_vacuum = INCREMENTAL").execute(&mut *connection).await?;
    sqlx::query("VACUUM").execute(&mut *connection).await?;
    drop(connection);
    is_incremental(store).await
}

#[cfg(test)]
mod tests;
