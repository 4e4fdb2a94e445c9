//! Whether database and folders belong together, before anything is removed from either.
//!
//! ```text
//!   their store ids differ                         differ    a folder or a database in another's place (see `identity`)
//!   the database names it, the disk has it not   lost      a volume that is not mounted, or really gone
//!   the disk has it, no build ever was to make it  foreign   the database is another one, or an older copy
//!   the disk has it, a build was to make it        left over by a crash: the sweep removes it
//! ```
//! What cannot be seen may come back. So a service does not start when the ids differ, when everything of one kind is lost,
//! anything is foreign, or the file is missing whose keys decrypt the database's secrets (see `sealing`). It forgets nothing by itself, and removes nothing of a database that it cannot see. With
//! `nullspace store repair` an operator says that something will not come back.

use std::collections::{BTreeSet, HashSet};

use anyhow::Context;
use nullspace_data::{ArtifactStore, Inventory, SegmentName, artifact_of};
use nullspace_db::Database;
use nullspace_types::{ArtifactId, Blob, KnownFiles, TenantId};

use crate::identity::{self, Identity};
use crate::object_identity::{self, ObjectIdentity};
use crate::sealing::{self, Sealing};
use crate::segments;

/// The database's half of the comparison.
#[derive(Debug, Clone, Default)]
struct Named {
    files: KnownFiles,
    blobs: BTreeSet<Blob>,
    tenants: BTreeSet<TenantId>,
    /// Number of parts of logs whose bytes are not in the database.
    segments: usize,
    /// Those of them that are nowhere.
    lost_segments: HashSet<SegmentName>,
    /// Artifacts that the folder has and `files` has not, and that a build was to make.
    allotted: BTreeSet<ArtifactId>,
}

/// What database and folders say of each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// What their store ids say.
    pub(crate) identity: Identity,
    /// What the object store's id says.
    pub(crate) objects: ObjectIdentity,
    /// Named by the database, and not there.
    pub(crate) lost: KnownFiles,
    /// The same, of uploaded files.
    pub(crate) lost_blobs: BTreeSet<Blob>,
    /// The same, of parts of builds' logs.
    pub(crate) lost_segments: HashSet<SegmentName>,
    /// Secrets of the database that do not decrypt.
    pub(crate) sealing: Sealing,
    /// Names, relative to the data directory, of what this database has nothing to do with.
    pub(crate) foreign: BTreeSet<String>,
    /// Sentences on kinds of which all that is named is lost.
    pub(crate) all_lost: Vec<String>,
}

impl Survey {
    /// Why the service must not start; `None` when it may.
    pub(crate) fn refusal(&self) -> Option<String> {
        let ids = self.identity.fault().into_iter().chain(self.objects.fault()).chain(self.stranded());
        let ids = ids.chain(self.sealing.fault());
        let mut faults: Vec<String> = ids.chain(self.all_lost.iter().cloned()).collect();
        if let Some(first) = self.foreign.first() {
            faults.push(format!(
                "{} folders or files (the first is {first}) were made with another database than this one, or with a newer \
                 copy of it",
                self.foreign.len()
            ));
        }
        (!faults.is_empty()).then(|| {
            format!(
                "{}. Nothing was changed. Mount or restore what is missing and start again; or, to go on without it, see \
                 `nullspace store repair`, which lists before it changes anything",
                faults.join("; ")
            )
        })
    }

    /// The sentence on lost files while the object store changes: what is missing is then in the other place.
    fn stranded(&self) -> Option<String> {
        let files = self.lost.artifacts.len() + self.lost.rootfs.len();
        let lost = files + self.lost_blobs.len() + self.lost_segments.len();
        match &self.objects {
            ObjectIdentity::Detached(location) if lost > 0 => Some(format!(
                "{lost} of the snapshots, root images, uploaded files and parts of logs that the database names are only in the object store in \
                 which this data folder has kept them ({location}), and s3_bucket is not set: set the s3_… settings again, or \
                 bring everything into the data folder with them and `nullspace store fetch`"
            )),
            ObjectIdentity::New(location) if lost > 0 => Some(format!(
                "{lost} of the snapshots, root images, uploaded files and parts of logs that the database names are missing, and the object store \
                 ({location}) is new and has none of them: is s3_prefix the right one?"
            )),
            _ => None,
        }
    }

    /// Whether nothing at all is lost or foreign, and all are one store or may become one.
    pub(crate) fn is_clean(&self) -> bool {
        let Survey { identity, objects, lost, lost_blobs, lost_segments, sealing, foreign, all_lost } = self;
        identity.fault().is_none()
            && objects.fault().is_none()
            && *lost == KnownFiles::default()
            && lost_blobs.is_empty()
            && lost_segments.is_empty()
            && sealing.fault().is_none()
            && foreign.is_empty()
            && all_lost.is_empty()
    }
}

/// Compares the two, and changes neither. For the start of a service, or beside none.
///
/// # Errors
/// When the database or a folder cannot be read.
pub(crate) async fn survey(files: &ArtifactStore, database: &dyn Database) -> anyhow::Result<Survey> {
    let mut named = Named {
        files: database.known_files().await.context("list what is known")?,
        blobs: database.known_blobs().await.context("list uploaded files")?,
        tenants: database.list_tenants().await.context("list tenants")?.into_iter().map(|tenant| tenant.id).collect(),
        segments: database.segments_elsewhere().await.context("list the parts of logs")?.len(),
        lost_segments: segments::missing(&files.logs(), database).await?,
        allotted: BTreeSet::new(),
    };
    let sealing = sealing::look(files, database).await?;
    let identity = identity::look(files, database).await?;
    let objects = object_identity::look(files, identity.id()).await?;
    let mut there = files.inventory().await.context("look at the data folder")?;
    if let ObjectIdentity::Detached(_) = objects {
        // The folder has all manifests, and perhaps not the packs.
        let incomplete = files.incomplete_images(&named.files).await.context("look for the chunks of all images")?;
        for id in incomplete {
            there.manifests.remove(&id);
        }
    }
    let unnamed = there.artifacts.iter().filter(|name| !named.files.artifacts.contains_key(*name));
    let unnamed = unnamed.filter_map(|name| artifact_of(name)).collect();
    named.allotted = database.allotted(&unnamed).await.context("ask which builds made them")?;
    let location = files.objects().map(|objects| objects.location().to_owned());
    Ok(Survey { identity, objects, sealing, ..compare(&there, &named, location.as_deref()) })
}

/// `location` is the object store's.
fn compare(there: &Inventory, named: &Named, location: Option<&str>) -> Survey {
    let mut survey = Survey::default();
    for name in there.artifacts.iter().filter(|name| !named.files.artifacts.contains_key(*name)) {
        if artifact_of(name).is_some_and(|id| !named.allotted.contains(&id)) {
            survey.foreign.insert(format!("{}/{name}", Inventory::ARTIFACTS));
        }
    }
    for folder in there.blobs.keys() {
        if folder.parse::<TenantId>().is_ok_and(|tenant| !named.tenants.contains(&tenant)) {
            survey.foreign.insert(format!("{}/{folder}", Inventory::BLOBS));
        }
    }
    let lost = named.files.artifacts.iter().filter(|(name, streams)| !there.has_artifact(name, streams.as_ref()));
    survey.lost.artifacts = lost.map(|(name, streams)| (name.clone(), streams.clone())).collect();
    let lost = named.files.rootfs.iter().filter(|(file, manifest)| !there.has_rootfs(file, manifest.as_deref()));
    survey.lost.rootfs = lost.map(|(file, manifest)| (file.clone(), manifest.clone())).collect();
    survey.lost_blobs = named.blobs.iter().filter(|blob| !there.has_blob(blob)).cloned().collect();
    survey.lost_segments.clone_from(&named.lost_segments);

    let of_chunks = named.files.artifacts.values().any(Option::is_some);
    let snapshots = if of_chunks { Inventory::CHUNKS } else { Inventory::ARTIFACTS };
    let mut say = |what: &str, folder: &str, named: usize, lost: usize| {
        if named > 0 && named == lost {
            let folder = there.root.join(folder);
            let store = location.map(|location| format!(" or the object store ({location})")).unwrap_or_default();
            survey
                .all_lost
                .push(format!("the database names {named} {what}, and none of them is in {}{store}", folder.display()));
        }
    };
    say("snapshots", snapshots, named.files.artifacts.len(), survey.lost.artifacts.len());
    say("root images", Inventory::CHUNKS, named.files.rootfs.len(), survey.lost.rootfs.len());
    say("uploaded files", Inventory::BLOBS, named.blobs.len(), survey.lost_blobs.len());
    say("parts of logs", Inventory::LOGS, named.segments, named.lost_segments.len());
    survey
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use nullspace_types::BlobId;
    use tempfile::TempDir;

    use super::*;

    /// A snapshot, a root image and an uploaded file that are there, and the database's half of them.
    fn stored(files: &ArtifactStore) -> Named {
        let mut named = Named::default();
        let folder = format!("{}.{}", ArtifactId::new(), "a".repeat(32));
        fs::create_dir(files.root().join("artifacts").join(&folder)).unwrap();
        named.files.artifacts.insert(folder, None);
        let file = format!("{}.ext4", "b".repeat(32));
        fs::write(files.root().join("rootfs").join(&file), "image").unwrap();
        named.files.rootfs.insert(file, None);
        let blob = Blob { tenant: TenantId::new(), id: BlobId::new(&"a".repeat(64), 1).unwrap() };
        let blobs = files.root().join("blobs").join(blob.tenant.to_string());
        fs::create_dir(&blobs).unwrap();
        fs::write(blobs.join(blob.id.sha256()), "x").unwrap();
        named.tenants.insert(blob.tenant);
        named.blobs.insert(blob);
        named
    }

    async fn compared(files: &ArtifactStore, named: &Named) -> Survey {
        compare(&files.inventory().await.unwrap(), named, None)
    }

    /// Every name under the folder.
    fn all(dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.display().to_string());
            if path.is_dir() {
                found.extend(all(&path));
            }
        }
        found.sort();
        found
    }

    #[tokio::test]
    async fn a_volume_that_is_not_mounted_is_no_reason_to_forget() {
        let dir = TempDir::new().unwrap();
        let files = ArtifactStore::open(dir.path()).unwrap();
        assert!(compared(&files, &Named::default()).await.is_clean(), "nothing is stored yet");
        let named = stored(&files);
        assert!(compared(&files, &named).await.is_clean());
        for (folder, what) in [("artifacts", "1 snapshots"), ("rootfs", "1 root images"), ("blobs", "1 uploaded files")]
        {
            let (mounted, elsewhere) = (dir.path().join(folder), dir.path().join("elsewhere"));
            fs::rename(&mounted, &elsewhere).unwrap();
            fs::create_dir(&mounted).unwrap();
            let refusal = compared(&files, &named).await.refusal().unwrap();
            assert!(refusal.contains(&format!("the database names {what}, and none of them is in")), "{refusal}");
            assert!(refusal.contains("store repair"), "{refusal}");
            fs::remove_dir(&mounted).unwrap();
            fs::rename(&elsewhere, &mounted).unwrap();
            assert!(compared(&files, &named).await.is_clean(), "mounted again, all is well");
        }
    }

    #[tokio::test]
    async fn logs_that_are_not_mounted_stop_the_start_and_one_lost_part_does_not() {
        let dir = TempDir::new().unwrap();
        let files = ArtifactStore::open(dir.path()).unwrap();
        let lost: SegmentName = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let named = Named { segments: 1, lost_segments: [lost].into(), ..stored(&files) };
        let refusal = compared(&files, &named).await.refusal().unwrap();
        assert!(refusal.contains("names 1 parts of logs, and none of them is in"), "{refusal}");
        assert!(refusal.contains(&dir.path().join("logs").display().to_string()), "{refusal}");
        let found = compared(&files, &Named { segments: 2, ..named }).await;
        assert_eq!((found.refusal(), found.is_clean()), (None, false));
        assert_eq!(found.lost_segments, [lost].into());
    }

    #[test]
    fn what_is_lost_while_the_object_store_changes_is_in_the_other_place() {
        let lost = KnownFiles { artifacts: [("folder".to_owned(), None)].into(), ..KnownFiles::default() };
        for (objects, named) in [
            (ObjectIdentity::Detached("S3 bucket a".to_owned()), "store fetch"),
            (ObjectIdentity::New("S3 bucket a".to_owned()), "s3_prefix"),
        ] {
            let nothing = Survey { objects: objects.clone(), ..Survey::default() };
            assert_eq!((nothing.refusal(), nothing.is_clean()), (None, true), "{objects:?}");
            let refusal = Survey { lost: lost.clone(), ..nothing }.refusal().unwrap();
            assert!(refusal.contains("1 of the snapshots") && refusal.contains("S3 bucket a"), "{refusal}");
            assert!(refusal.contains(named), "{refusal}");
        }
        let one = Survey { lost, objects: ObjectIdentity::One, ..Survey::default() };
        assert_eq!((one.refusal(), one.is_clean()), (None, false), "a start does not wait for one that is lost");
    }

    #[tokio::test]
    async fn one_of_many_that_is_lost_is_named_and_stops_nothing() {
        let dir = TempDir::new().unwrap();
        let files = ArtifactStore::open(dir.path()).unwrap();
        let mut named = stored(&files);
        let lost = format!("{}.{}", ArtifactId::new(), "c".repeat(32));
        named.files.artifacts.insert(lost.clone(), None);
        let found = compared(&files, &named).await;
        assert_eq!(found.refusal(), None);
        assert_eq!(found.lost, KnownFiles { artifacts: [(lost, None)].into(), ..KnownFiles::default() });
        assert!(found.lost_blobs.is_empty() && !found.is_clean());
    }

    #[tokio::test]
    async fn what_another_database_names_is_not_taken_for_the_leftovers_of_a_crash() {
        let dir = TempDir::new().unwrap();
        let files = ArtifactStore::open(dir.path()).unwrap();
        let mut named = stored(&files);
        // A crash after publishing: a build was to make it.
        let unnamed = ArtifactId::new();
        let left = format!("{unnamed}.{}", "b".repeat(32));
        fs::create_dir(dir.path().join("artifacts").join(&left)).unwrap();
        named.allotted.insert(unnamed);
        assert!(compared(&files, &named).await.is_clean());
        assert_eq!(files.sweep(named.files.clone()).await.unwrap().removed, [format!("artifacts/{left}")]);

        // The same folders beside a new, empty database.
        let before = all(dir.path());
        let found = compared(&files, &Named::default()).await;
        assert_eq!(found.lost, KnownFiles::default());
        let (folder, _) = named.files.artifacts.first_key_value().unwrap();
        let tenant = named.tenants.first().unwrap();
        assert_eq!(found.foreign, [format!("artifacts/{folder}"), format!("blobs/{tenant}")].into());
        let refusal = found.refusal().unwrap();
        assert!(refusal.contains("2 folders or files") && refusal.contains("another database"), "{refusal}");
        assert_eq!(all(dir.path()), before, "a survey changes nothing");
        // Only what a survey names can be removed so.
        for name in ["nullspace.db", "artifacts/..", "chunks/packs", "/etc/passwd", "blobs/../host"] {
            assert!(files.remove_foreign(&[name.to_owned()].into()).await.is_err(), "{name}");
        }
        files.remove_foreign(&found.foreign).await.unwrap();
        assert_eq!(compared(&files, &Named::default()).await, Survey::default());
    }
}
