//! Whether the database and the data folder are one store, by the id that both have.
//!
//! ```text
//!   folder     database
//!   -          -           no id yet: both get one                ┐
//!   X begun    -           a first start was interrupted: go on   ├ settle, when nothing is lost or foreign
//!   X begun    X           likewise                               ┘
//!   X          X           one store
//!   X          - or Y      the database is another one, or a copy from before it had an id   ┐
//!   X begun    Y           likewise                                                          ├ the service does not start
//!   -          X           the folder is another one, or its volume is not mounted           ┘
//! ```
//! [`settle`] writes the folder's file (`begun`), then the database, then the file without `begun`. A crash in between leaves
//! one of the first three states. No crash leaves one of the others, so in those nothing is guessed: they are the operator's to
//! resolve, with `nullspace store repair`.

use std::path::PathBuf;

use anyhow::Context;
use jiff::Timestamp;
use nullspace_data::{ArtifactStore, StoreMark};
use nullspace_db::Health;
use nullspace_types::StoreId;
use serde_json::Value;

use crate::object_identity::{self, ObjectIdentity};

/// The setting in the database.
const SETTING: &str = "store_id";

/// What the ids say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Both have this id.
    One(StoreId),
    /// No id, or this one in a first start that was interrupted.
    Unsettled(Option<StoreId>),
    /// They are not one store.
    Differ {
        /// The data folder.
        root: PathBuf,
        /// Its id.
        folder: Option<StoreId>,
        /// The database's id.
        database: Option<StoreId>,
    },
}

impl Default for Identity {
    fn default() -> Self {
        Identity::Unsettled(None)
    }
}

impl Identity {
    /// The sentence on two ids that differ, which says which is where.
    pub(crate) fn fault(&self) -> Option<String> {
        let Identity::Differ { root, folder, database } = self else { return None };
        let named =
            |id: &Option<StoreId>| id.map_or_else(|| "no store id".to_owned(), |id| format!("the store id {id}"));
        Some(format!(
            "the data folder {} and the database are not one store: the folder has {} (its file store), the database has {}",
            root.display(),
            named(folder),
            named(database)
        ))
    }

    /// The store's id, as far as the two have one: the database's, else the folder's.
    pub(crate) fn id(&self) -> Option<StoreId> {
        match self {
            Identity::One(id) => Some(*id),
            Identity::Unsettled(begun) => *begun,
            Identity::Differ { folder, database, .. } => database.or(*folder),
        }
    }

    fn of(root: PathBuf, folder: Option<StoreMark>, database: Option<StoreId>) -> Identity {
        match (folder, database) {
            (None, None) => Identity::Unsettled(None),
            (Some(mark), None) if !mark.settled => Identity::Unsettled(Some(mark.id)),
            (Some(mark), Some(id)) if mark.id == id => {
                if mark.settled {
                    Identity::One(id)
                } else {
                    Identity::Unsettled(Some(id))
                }
            }
            (folder, database) => Identity::Differ { root, folder: folder.map(|mark| mark.id), database },
        }
    }
}

/// Reads both ids.
pub(crate) async fn look<D: Health + ?Sized>(files: &ArtifactStore, database: &D) -> anyhow::Result<Identity> {
    let folder = files.store_mark().context("read the store id of the data folder")?;
    let stored = database.get_setting(SETTING).await.context("read the store id of the database")?;
    let database = match stored {
        None => None,
        Some(Value::String(text)) => Some(text.parse::<StoreId>().context("the database's setting store_id")?),
        Some(_) => anyhow::bail!("the database's setting store_id is not a text"),
    };
    Ok(Identity::of(files.root().to_owned(), folder, database))
}

/// Gives both, and an object store that is new, the id that an unsettled store lacks. Changes nothing in another state. Nothing may
/// be lost or foreign.
pub(crate) async fn settle<D: Health + ?Sized>(
    files: &ArtifactStore,
    database: &D,
    identity: &Identity,
    objects: &ObjectIdentity,
    now: Timestamp,
) -> anyhow::Result<()> {
    let id = match identity {
        Identity::Differ { .. } => return Ok(()),
        Identity::One(id) => return object_identity::settle(files, objects, *id).await,
        Identity::Unsettled(begun) => begun.unwrap_or_else(StoreId::new),
    };
    if *identity == Identity::Unsettled(None) {
        write(files, StoreMark { id, settled: false })?;
    }
    // Before the database: after a crash in between, the folder's `begun` id is the object store's.
    object_identity::settle(files, objects, id).await?;
    put(database, id, now).await?;
    write(files, StoreMark { id, settled: true })?;
    tracing::info!(store = %id, "database and data folder have an id now");
    Ok(())
}

/// Makes all one store, by the operator's will: the database's id counts, or the folder's when the database has none.
pub(crate) async fn unite<D: Health + ?Sized>(
    files: &ArtifactStore,
    database: &D,
    identity: &Identity,
    objects: &ObjectIdentity,
    now: Timestamp,
) -> anyhow::Result<()> {
    match identity {
        Identity::Differ { database: Some(id), .. } => write(files, StoreMark { id: *id, settled: true })?,
        Identity::Differ { folder: Some(id), .. } => put(database, *id, now).await?,
        // Without an id, the object store gets the new one below.
        _ => settle(files, database, identity, &ObjectIdentity::None, now).await?,
    }
    match look(files, database).await? {
        Identity::One(id) => object_identity::unite(files, objects, id).await,
        _ => anyhow::bail!("the store ids of database and data folder changed meanwhile: is a service running?"),
    }
}

fn write(files: &ArtifactStore, mark: StoreMark) -> anyhow::Result<()> {
    files.put_store_mark(mark).context("write the store id of the data folder")
}

async fn put<D: Health + ?Sized>(database: &D, id: StoreId, now: Timestamp) -> anyhow::Result<()> {
    database
        .put_setting(SETTING, &Value::String(id.to_string()), now)
        .await
        .context("write the store id of the database")
}

#[cfg(test)]
mod tests {
    use nullspace_db::SqliteStore;
    use tempfile::TempDir;

    use super::*;

    struct Store {
        dir: TempDir,
        files: ArtifactStore,
        database: SqliteStore,
    }

    impl Store {
        async fn new() -> Store {
            let dir = TempDir::new().unwrap();
            let files = ArtifactStore::open(dir.path()).unwrap();
            let database = SqliteStore::open(&dir.path().join("nullspace.db")).await.unwrap();
            Store { dir, files, database }
        }

        async fn look(&self) -> Identity {
            look(&self.files, &self.database).await.unwrap()
        }

        async fn objects(&self) -> ObjectIdentity {
            object_identity::look(&self.files, self.look().await.id()).await.unwrap()
        }

        async fn settle(&self) -> StoreId {
            settle(&self.files, &self.database, &self.look().await, &self.objects().await, Timestamp::UNIX_EPOCH)
                .await
                .unwrap();
            let Identity::One(id) = self.look().await else { panic!("not settled") };
            id
        }
    }

    #[tokio::test]
    async fn a_first_start_gives_both_an_id_wherever_it_is_interrupted() {
        let store = Store::new().await;
        assert_eq!(store.look().await, Identity::Unsettled(None));
        let id = StoreId::new();
        // After the first write.
        store.files.put_store_mark(StoreMark { id, settled: false }).unwrap();
        assert_eq!(store.look().await, Identity::Unsettled(Some(id)));
        assert_eq!(store.settle().await, id);
        // After the second.
        store.files.put_store_mark(StoreMark { id, settled: false }).unwrap();
        assert_eq!(store.look().await, Identity::Unsettled(Some(id)));
        assert_eq!(store.settle().await, id);
        assert_eq!(store.settle().await, id, "it stays");
        assert_eq!(store.look().await.fault(), None);
    }

    #[tokio::test]
    async fn a_folder_and_a_database_of_two_stores_are_told_and_changed_only_by_the_operator() {
        let (one, other) = (Store::new().await, Store::new().await);
        let (id, another) = (one.settle().await, other.settle().await);
        let fault = |found: &Identity| found.fault().unwrap();

        // Another store's folder, mounted in this one's place.
        let found = look(&other.files, &one.database).await.unwrap();
        let said = fault(&found);
        assert!(said.contains(&format!("the folder has the store id {another}")), "{said}");
        assert!(said.contains(&format!("the database has the store id {id}")), "{said}");
        assert!(said.contains(&other.dir.path().display().to_string()), "{said}");
        settle(&other.files, &one.database, &found, &ObjectIdentity::None, Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(look(&other.files, &one.database).await.unwrap(), found, "no start changes that");
        // A first start of another store was interrupted there.
        other.files.put_store_mark(StoreMark { id: another, settled: false }).unwrap();
        assert_eq!(look(&other.files, &one.database).await.unwrap(), found);
        unite(&other.files, &one.database, &found, &ObjectIdentity::None, Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(look(&other.files, &one.database).await.unwrap(), Identity::One(id));

        // A folder without an id, and a database without one.
        let new = Store::new().await;
        let found = look(&new.files, &one.database).await.unwrap();
        assert!(fault(&found).contains("the folder has no store id"), "{found:?}");
        let found = look(&one.files, &new.database).await.unwrap();
        assert!(fault(&found).contains("the database has no store id"), "{found:?}");
        unite(&one.files, &new.database, &found, &ObjectIdentity::None, Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(look(&one.files, &new.database).await.unwrap(), Identity::One(id));
    }
}
