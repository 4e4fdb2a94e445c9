//! The database of the settings: a file in the data folder, or a PostgreSQL server.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use nullspace_db::{Database, Health as _, PostgresStore, ServiceLock, SqliteStore};
use secrecy::{ExposeSecret as _, SecretString};

use crate::config::Config;
use crate::segments::StoredSegments;
use crate::serve;

/// File name of the database in the data folder.
const FILE: &str = "nullspace.db";

/// Opens the database, made and migrated if needed. None is made beside files that belonged to another. Without the place of log
/// segments, it cannot read logs that are compressed.
pub(crate) async fn open(config: &Config) -> anyhow::Result<Arc<dyn Database>> {
    match &config.database {
        None => Ok(Arc::new(open_file(config, None).await?)),
        Some(url) => Ok(Arc::new(connect(url, None).await?)),
    }
}

/// Opens the database that a service has used; makes no file.
pub(crate) async fn open_existing(config: &Config) -> anyhow::Result<Arc<dyn Database>> {
    // A database that is missing beside its files has an error of its own.
    if config.database.is_none() && !config.data_dir.join(FILE).is_file() && stored(config)?.is_empty() {
        bail!("there is no data folder of a service at {}: give --data-dir", config.data_dir.display());
    }
    open(config).await
}

/// Opens the database for a service, which must be the only one: of a file, the data folder's lock sees to that.
pub(crate) async fn open_for_service(
    config: &Config,
    segments: Arc<StoredSegments>,
) -> anyhow::Result<(Arc<dyn Database>, Option<ServiceLock>)> {
    let Some(url) = &config.database else { return Ok((Arc::new(open_file(config, Some(segments)).await?), None)) };
    let store = connect(url, Some(segments)).await?;
    let lock = store.lock_for_service().await.context("lock the PostgreSQL database (setting database)")?;
    Ok((Arc::new(store), Some(lock)))
}

/// Ends when another service has the database. Never for a file.
pub(crate) async fn lost(lock: Option<ServiceLock>) -> anyhow::Error {
    match lock {
        Some(lock) => anyhow::Error::from(lock.lost().await),
        None => std::future::pending().await,
    }
}

async fn connect(url: &SecretString, segments: Option<Arc<StoredSegments>>) -> anyhow::Result<PostgresStore> {
    let opened = match segments {
        None => PostgresStore::open(url.expose_secret()).await,
        Some(segments) => PostgresStore::open_with(url.expose_secret(), segments).await,
    };
    opened.context("open the PostgreSQL database (setting database)")
}

async fn open_file(config: &Config, segments: Option<Arc<StoredSegments>>) -> anyhow::Result<SqliteStore> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("make the data folder {}", config.data_dir.display()))?;
    let path = config.data_dir.join(FILE);
    // One that is empty was made by something that died at once, or is what a failed copy left.
    let is_there = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > 0);
    if !is_there {
        let stored = stored(config)?;
        if !stored.is_empty() {
            bail!(
                "the database {} is missing, and the files that it names are there: {}. Nothing was changed. Restore the \
                 database (or mount what holds it) and start again; or, to give those files up, move them away",
                path.display(),
                stored.join(", ")
            );
        }
    }
    let opened = match segments {
        None => SqliteStore::open(&path).await,
        Some(segments) => SqliteStore::open_with(&path, segments).await,
    };
    opened.with_context(|| format!("open the database {}", path.display()))
}

/// What shows that the data folder belongs to a database: stored files, and the id of a store whose database has it too.
fn stored(config: &Config) -> anyhow::Result<Vec<String>> {
    let context = "look at the data folder";
    let mut stored = nullspace_data::stored_without_database(&config.data_dir).context(context)?;
    // Volumes of the data folder may not be mounted: then the id is all that is left to see.
    if let Some(mark) = nullspace_data::store_mark(&config.data_dir).context(context)?.filter(|mark| mark.settled) {
        stored.push(format!("store ({})", mark.id));
    }
    Ok(stored)
}

/// Makes or migrates the tables of the PostgreSQL database of the settings.
pub(crate) async fn migrate(config: &Config) -> anyhow::Result<ExitCode> {
    let store = connect(configured(config)?, None).await?;
    store.close().await;
    println!("The PostgreSQL database has the tables of this version.");
    Ok(ExitCode::SUCCESS)
}

/// Moves the rows of the data folder's file to the PostgreSQL database of the settings, which must be empty.
pub(crate) async fn copy(config: &Config) -> anyhow::Result<ExitCode> {
    let url = configured(config)?;
    let path = config.data_dir.join(FILE);
    if std::fs::metadata(&path).map_or(0, |file| file.len()) == 0 {
        bail!("there is no database {}: give --data-dir", path.display());
    }
    // No service works on the folder meanwhile.
    let files = serve::open_files(config).await?;
    let target = connect(url, None).await?;
    let lock = target.lock_for_service().await.context("lock the PostgreSQL database (setting database)")?;
    let source = open_file(config, None).await?;
    let copied = nullspace_db::copy(&source, &target).await.context("copy the database")?;
    source.close().await;
    target.close().await;
    drop(lock);
    // A start without the setting must not go on with rows that are old by then.
    let aside = config.data_dir.join(format!("{FILE}.copied"));
    std::fs::rename(&path, &aside).with_context(|| format!("rename {} to {}", path.display(), aside.display()))?;
    drop(files);
    println!(
        "{} rows of {} tables are in the PostgreSQL database; {} is kept.",
        copied.rows,
        copied.tables,
        aside.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn configured(config: &Config) -> anyhow::Result<&SecretString> {
    config.database.as_ref().context("the setting database is missing: it is the URL of a PostgreSQL database")
}
