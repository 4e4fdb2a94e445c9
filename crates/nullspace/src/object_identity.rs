//! Whether the object store belongs to the database and the data folder: by the id that all three have.
//!
//! ```text
//!   settings    data folder     object `store`
//!   no store    not attached    -                 the folder has everything
//!   no store    attached        -                 detached: right when the folder has everything again
//!   a store     not attached    none, empty       new: it gets the id when nothing is lost
//!   a store     any             the same id       one store
//!   a store     any             another id        another service's                         ┐
//!   a store     attached        none              emptied, or the wrong bucket or prefix    ├ the service does not start
//!   a store     not attached    none, has packs   somebody else's, or half deleted          ┘
//! ```
//! *Attached* is what the data folder's file `object_store` says: packs, uploaded files and logs may be in the object store alone.

use nullspace_data::{ArtifactStore, DataError, attached_store, object_store_id};
use nullspace_types::StoreId;

use anyhow::Context;

/// What the object store's id says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum ObjectIdentity {
    /// The settings have no object store, and the folder had none.
    #[default]
    None,
    /// The settings have no object store, and the folder's data has been kept in this one.
    Detached(String),
    /// It has no id and holds nothing of a store.
    New(String),
    /// It has the store's id.
    One,
    /// It must not be used.
    Differ(String),
}

impl ObjectIdentity {
    /// The sentence on an object store that must not be used.
    pub(crate) fn fault(&self) -> Option<String> {
        match self {
            ObjectIdentity::Differ(why) => Some(why.clone()),
            _ => None,
        }
    }
}

/// Reads the object store's id and the folder's note. `expected` is the id of database and folder, if they have one.
pub(crate) async fn look(files: &ArtifactStore, expected: Option<StoreId>) -> anyhow::Result<ObjectIdentity> {
    let attached = attached_store(files.root()).context("read which object store the data folder has")?;
    let Some(objects) = files.objects() else {
        return Ok(attached.map_or(ObjectIdentity::None, ObjectIdentity::Detached));
    };
    let location = objects.location().to_owned();
    let found = match object_store_id(objects).await {
        Err(DataError::Corrupt { .. }) => {
            let why = format!("the object store ({location}) has an object `store` that is no store id");
            return Ok(ObjectIdentity::Differ(why));
        }
        read => read.context("read the store id of the object store")?,
    };
    Ok(match (found, attached) {
        (Some(id), _) if Some(id) == expected => ObjectIdentity::One,
        (Some(id), _) => {
            let ours = expected.map_or_else(|| "no store id".to_owned(), |id| format!("the store id {id}"));
            ObjectIdentity::Differ(format!(
                "the object store ({location}) belongs to another store: it has the store id {id} (its object `store`), the \
                 database and the data folder have {ours}; are s3_bucket, s3_prefix and data_dir right?"
            ))
        }
        (None, Some(earlier)) => {
            let earlier = if earlier == location { String::new() } else { format!(", until now in {earlier}") };
            ObjectIdentity::Differ(format!(
                "the object store ({location}) has no store id (object `store`), and the data folder's packs, uploads and logs are \
                 kept in an object store{earlier}: s3_bucket or s3_prefix is not the right one, or the bucket was emptied"
            ))
        }
        (None, None) => {
            let stats = files.object_usage().map(|usage| usage.packs).unwrap_or_default();
            if stats.packs + stats.manifests > 0 {
                ObjectIdentity::Differ(format!(
                    "the object store ({location}) has no store id (object `store`), and has {} packs and {} manifests that are not \
                     this store's: choose another s3_prefix",
                    stats.packs, stats.manifests
                ))
            } else {
                ObjectIdentity::New(location)
            }
        }
    })
}

/// Gives a new object store the id, and notes in the folder that it is in use, or no longer. Nothing may be lost. Changes nothing
/// when the object store must not be used.
pub(crate) async fn settle(files: &ArtifactStore, identity: &ObjectIdentity, id: StoreId) -> anyhow::Result<()> {
    match identity {
        ObjectIdentity::None | ObjectIdentity::Differ(_) => Ok(()),
        ObjectIdentity::Detached(location) => {
            files.put_attached_store(None).context("note that the data folder has no object store")?;
            tracing::info!("the data folder has everything and does without its object store from now on: {location}");
            Ok(())
        }
        ObjectIdentity::New(location) => {
            files.put_object_store_id(id, false).await.context("write the store id of the object store")?;
            tracing::info!(store = %id, "the object store is new and has the store's id now: {location}");
            attach(files, identity)
        }
        ObjectIdentity::One => attach(files, identity),
    }
}

/// Notes in the folder that its data is in the object store, if it is one with it.
pub(crate) fn attach(files: &ArtifactStore, identity: &ObjectIdentity) -> anyhow::Result<()> {
    let (ObjectIdentity::One | ObjectIdentity::New(_), Some(objects)) = (identity, files.objects()) else {
        return Ok(());
    };
    files.put_attached_store(Some(objects.location())).context("note which object store the data folder has")
}

/// Makes the object store this store's, by the operator's will: it gets the id, whatever it has.
pub(crate) async fn unite(files: &ArtifactStore, identity: &ObjectIdentity, id: StoreId) -> anyhow::Result<()> {
    if identity.fault().is_none() {
        return settle(files, identity, id).await;
    }
    files.put_object_store_id(id, true).await.context("write the store id of the object store")?;
    attach(files, &ObjectIdentity::One)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use jiff::Timestamp;
    use nullspace_data::{ObjectSettings, OpenSettings, PublishedArtifact};
    use nullspace_db::SqliteStore;
    use nullspace_objects::Objects;
    use nullspace_types::{ArtifactId, KnownFiles};
    use tempfile::TempDir;

    use super::*;
    use crate::identity::{self, Identity};
    use crate::survey::survey;

    async fn open(dir: &TempDir, store: Option<&Path>) -> ArtifactStore {
        let objects = store.map(|store| ObjectSettings {
            objects: Objects::folder(store).unwrap(),
            cache_bytes: 0,
            grace: Duration::ZERO,
        });
        let (dir, settings) = (dir.path().to_owned(), OpenSettings { objects, ..OpenSettings::default() });
        let opened = tokio::task::spawn_blocking(move || ArtifactStore::open_with(&dir, settings));
        opened.await.unwrap().unwrap()
    }

    async fn database(dir: &TempDir) -> SqliteStore {
        SqliteStore::open(&dir.path().join("nullspace.db")).await.unwrap()
    }

    /// What a start does, or why it refuses.
    async fn start(files: &ArtifactStore, database: &SqliteStore) -> Result<StoreId, String> {
        let found = survey(files, database).await.unwrap();
        if let Some(refusal) = found.refusal() {
            return Err(refusal);
        }
        let now = Timestamp::UNIX_EPOCH;
        identity::settle(files, database, &found.identity, &found.objects, now).await.unwrap();
        match identity::look(files, database).await.unwrap() {
            Identity::One(id) => Ok(id),
            other => panic!("not settled: {other:?}"),
        }
    }

    async fn publish(files: &ArtifactStore) -> PublishedArtifact {
        let scratch = files.scratch().unwrap();
        let dir = scratch.path().join("snapshot");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("memory"), vec![7; 100_000]).unwrap();
        files.publish_artifact(&dir, ArtifactId::new(), Vec::new()).await.unwrap()
    }

    #[tokio::test]
    async fn a_new_store_gets_the_id_and_another_services_is_refused() {
        let (dir, other, bucket) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
        let (ours, theirs) = (database(&dir).await, database(&other).await);
        let files = open(&dir, Some(bucket.path())).await;
        let location = files.objects().unwrap().location().to_owned();
        let id = start(&files, &ours).await.unwrap();
        assert_eq!(object_store_id(files.objects().unwrap()).await.unwrap(), Some(id));
        assert_eq!(attached_store(dir.path()).unwrap(), Some(location.clone()));
        assert_eq!(start(&files, &ours).await, Ok(id), "it stays");

        // Another service with the same bucket and prefix: new, and with an id of its own.
        let others = open(&other, Some(bucket.path())).await;
        let refusal = start(&others, &theirs).await.unwrap_err();
        for part in [&location, &format!("store id {id}"), "no store id", "s3_prefix", "store repair"] {
            assert!(refusal.contains(part), "{part}: {refusal}");
        }
        drop(others);
        let alone = open(&other, None).await;
        let another = start(&alone, &theirs).await.unwrap();
        drop(alone);
        let others = open(&other, Some(bucket.path())).await;
        let refusal = start(&others, &theirs).await.unwrap_err();
        assert!(refusal.contains(&id.to_string()) && refusal.contains(&another.to_string()), "{refusal}");
        // Nothing was changed, and by the operator's will it is that one's.
        assert_eq!(start(&files, &ours).await, Ok(id));
        let found = survey(&others, &theirs).await.unwrap();
        identity::unite(&others, &theirs, &found.identity, &found.objects, Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(start(&others, &theirs).await, Ok(another));
        assert!(start(&files, &ours).await.unwrap_err().contains(&another.to_string()));
    }

    #[tokio::test]
    async fn a_first_start_that_ended_after_the_object_store_had_the_id_goes_on() {
        let (dir, bucket) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (files, database) = (open(&dir, Some(bucket.path())).await, database(&dir).await);
        let id = StoreId::new();
        files.put_store_mark(nullspace_data::StoreMark { id, settled: false }).unwrap();
        files.put_object_store_id(id, false).await.unwrap();
        assert_eq!(start(&files, &database).await, Ok(id));
    }

    #[tokio::test]
    async fn an_emptied_bucket_and_a_wrong_prefix_are_told_with_their_place() {
        let (dir, bucket, wrong) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
        let database = database(&dir).await;
        let files = open(&dir, Some(bucket.path())).await;
        let (id, made) = (start(&files, &database).await.unwrap(), publish(&files).await);
        drop(files);
        let files = open(&dir, Some(wrong.path())).await;
        let refusal = start(&files, &database).await.unwrap_err();
        let place = wrong.path().display().to_string();
        for part in [&*place, &bucket.path().display().to_string(), "s3_prefix", "emptied", "Nothing was changed"] {
            assert!(refusal.contains(part), "{part}: {refusal}");
        }
        drop(files);
        // Somebody else's packs, without an id.
        fs::remove_file(bucket.path().join("objects/store")).unwrap();
        let new = TempDir::new().unwrap();
        let strange = open(&new, Some(bucket.path())).await;
        let refusal = start(&strange, &self::database(&new).await).await.unwrap_err();
        assert!(refusal.contains("1 packs and 1 manifests"), "{refusal}");
        drop(strange);
        let files = open(&dir, Some(bucket.path())).await;
        assert!(start(&files, &database).await.is_err());
        // Restored, all is well, and what was in it is there.
        files.put_object_store_id(id, false).await.unwrap();
        assert_eq!(start(&files, &database).await, Ok(id));
        assert!(files.has_snapshot(&made.folder, Some(&made.streams)).unwrap());
    }

    #[tokio::test]
    async fn a_folder_does_without_its_store_only_when_it_has_everything() {
        let (dir, bucket) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let files = open(&dir, Some(bucket.path())).await;
        let made = publish(&files).await;
        let known = KnownFiles {
            artifacts: [(made.folder.clone(), Some(made.streams.clone()))].into(),
            ..KnownFiles::default()
        };
        files.put_attached_store(Some("S3 bucket old")).unwrap();
        drop(files);
        let alone = open(&dir, None).await;
        // The manifest is there, and the pack that it needs is not.
        assert_eq!(alone.incomplete_images(&known).await.unwrap().len(), 1);
        let found = look(&alone, None).await.unwrap();
        assert_eq!(found, ObjectIdentity::Detached("S3 bucket old".to_owned()));
        settle(&alone, &found, StoreId::new()).await.unwrap();
        assert_eq!(look(&alone, None).await.unwrap(), ObjectIdentity::None);
    }
}
