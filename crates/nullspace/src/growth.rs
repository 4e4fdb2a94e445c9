//! The database's tables that grow, for the operator: their sizes, what retention removes next, and the file's free space.

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use nullspace_db::{Due, Expiring, Growth, Retention};

use crate::config::Config;
use crate::serve;

const MIB: f64 = 1_048_576.0;
/// Database pages that one step of `store gc` gives back: 16 MiB.
const PAGES: u32 = 4096;

/// Prints the sizes of the tables and what is due. Works beside a running service.
pub(crate) async fn print(database: &(impl Retention + ?Sized), config: &Config) -> anyhow::Result<()> {
    let now = Timestamp::now();
    let growth = database.growth(serve::retention(config).cutoffs(now)).await.context("measure the database")?;
    for line in lines(&growth, config, now) {
        println!("{line}");
    }
    Ok(())
}

/// Gives all surplus free space of the database's file back. The service must be stopped: a file of an older version is rewritten.
/// Returns the bytes that the file is smaller by.
pub(crate) async fn shrink(database: &(impl Retention + ?Sized)) -> anyhow::Result<u64> {
    let size = async || Ok::<_, anyhow::Error>(database.give_back(0).await.context("measure the database")?.file_bytes);
    let before = size().await?;
    database.allow_give_back(u64::MAX).await.context("rewrite the database so that it can shrink")?;
    while database.give_back(PAGES).await.context("shrink the database")?.given_back > 0 {}
    Ok(before.saturating_sub(size().await?))
}

fn lines(growth: &Growth, config: &Config, now: Timestamp) -> Vec<String> {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / MIB);
    let space = growth.space;
    let mut lines = vec![format!("database          {}, {} of it free", mib(space.file_bytes), mib(space.free_bytes))];
    for table in &growth.tables {
        lines.push(format!("  {:<18} {:>9} rows  {:>11}", table.table, table.rows, mib(table.bytes)));
    }
    lines.push(format!("logs to compress  {} builds", growth.logs_due));
    lines.extend(growth.due.iter().map(|due| {
        let next = next(due, config, now).map(|next| format!(", {next}")).unwrap_or_default();
        format!("retention         {}: {} to remove now, {} later{next}", due.kind, due.now, due.later)
    }));
    lines
}

/// When the next row of a kind is removed.
fn next(due: &Due, config: &Config, now: Timestamp) -> Option<String> {
    let retention = serve::retention(config);
    let kept = match due.kind {
        Expiring::Sandboxes => retention.sandboxes,
        Expiring::Builds | Expiring::Templates => retention.builds,
        Expiring::IdempotencyKeys => retention.idempotency_keys,
        Expiring::Claims => return None,
    };
    let at = due.oldest?.checked_add(SignedDuration::try_from(kept).ok()?).ok()?;
    (due.now == 0 && at > now).then(|| {
        let second = Timestamp::from_second(at.as_second()).unwrap_or(at);
        format!("the next at {second}")
    })
}

#[cfg(test)]
mod tests {
    use nullspace_db::{Space, SqliteStore, TableSize};

    use super::*;

    #[test]
    fn the_operator_reads_rows_sizes_and_what_goes_next() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let ended = Timestamp::from_second(1_699_999_000).unwrap();
        let due = |kind, now, later| Due { kind, now, later, oldest: (later > 0).then_some(ended) };
        let growth = Growth {
            tables: vec![TableSize { table: "builds", rows: 12, bytes: 3 << 19 }],
            space: Space { file_bytes: 8 << 20, free_bytes: 1 << 20, ..Space::default() },
            due: vec![due(Expiring::Builds, 0, 2), due(Expiring::Sandboxes, 3, 1), due(Expiring::Claims, 0, 0)],
            logs_due: 4,
        };
        let config = Config { build_retention_secs: 2000, ..Config::default() };
        assert_eq!(
            lines(&growth, &config, now),
            [
                "database          8.0 MiB, 1.0 MiB of it free",
                "  builds                    12 rows      1.5 MiB",
                "logs to compress  4 builds",
                "retention         builds: 0 to remove now, 2 later, the next at 2023-11-14T22:30:00Z",
                "retention         sandboxes: 3 to remove now, 1 later",
                "retention         claims: 0 to remove now, 0 later",
            ]
        );
    }

    #[tokio::test]
    async fn a_database_without_surplus_keeps_its_size() {
        let dir = tempfile::TempDir::new().unwrap();
        let database = SqliteStore::open(&dir.path().join("nullspace.db")).await.unwrap();
        assert_eq!(shrink(&database).await.unwrap(), 0);
        print(&database, &Config::default()).await.unwrap();
    }
}
