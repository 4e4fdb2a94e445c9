//! Whether database and folders belong together, before anything is removed from either.
//!
//! ```text
//!   the database names it, the disk has it not   lost      a volume that is not mounted, or really gone
//!   the disk has it, no build ever was to make it  foreign   the database is another one, or an older copy
//!   the disk has it, a build was to make it        left over by a crash: the sweep removes it
//! ```
//! What cannot be seen may come back. So a service does not start when everything of one kind is lost or anything is
//! foreign, forgets nothing by itself, and removes nothing of a database that it cannot see. `nullspace store accept-loss`
//! is how an operator says that something will not come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    ArtifactId, ArtifactStore, Blob, KnownFiles, Metadata, Result, StoreError, TenantId,
    artifacts::{ARTIFACTS, BLOBS, ROOTFS, artifact_of, io_error, read_dir, remove},
    images::CHUNKS,
};

/// What database and folders say of each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Named by the database, and not there.
    pub lost: KnownFiles,
    /// The same, of uploaded files.
    pub lost_blobs: BTreeSet<Blob>,
    /// Names, relative to the data directory, of what this database has nothing to do with.
    pub foreign: BTreeSet<String>,
    /// Sentences on kinds of which all that is named is lost.
    pub all_lost: Vec<String>,
}

impl Survey {
    /// Why the service must not start; `None` when it may.
    pub fn refusal(&self) -> Option<String> {
        let mut faults = self.all_lost.clone();
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
                 `nullspace store accept-loss`",
                faults.join("; ")
            )
        })
    }

    /// Whether anything at all is lost or foreign.
    pub fn is_clean(&self) -> bool {
        *self == Survey::default()
    }
}

/// Compares the two, and changes neither. For the start of a service, or beside none.
pub async fn survey(files: &ArtifactStore, metadata: &dyn Metadata) -> Result<Survey> {
    let known = metadata.known_files().await?;
    let blobs = metadata.known_blobs().await?;
    let tenants: BTreeSet<TenantId> = metadata.list_tenants().await?.into_iter().map(|tenant| tenant.id).collect();
    let store = files.clone();
    let (mut survey, strangers) = files.blocking(move |root| look(&store, root, &known, &blobs, &tenants)).await?;
    let allotted = metadata.allotted(&strangers.keys().copied().collect()).await?;
    survey.foreign.extend(strangers.into_iter().filter(|(id, _)| !allotted.contains(id)).flat_map(|(_, names)| names));
    Ok(survey)
}

/// Folders that the database does not name, by the artifact that each was made for.
type Strangers = BTreeMap<ArtifactId, Vec<String>>;

fn look(
    store: &ArtifactStore,
    root: &Path,
    known: &KnownFiles,
    blobs: &BTreeSet<Blob>,
    tenants: &BTreeSet<TenantId>,
) -> Result<(Survey, Strangers)> {
    let mut survey = Survey::default();
    let mut strangers = Strangers::new();
    let there: BTreeSet<String> = names(&root.join(ARTIFACTS))?;
    for name in there.difference(&known.artifacts) {
        if let Some(id) = artifact_of(name) {
            strangers.entry(id).or_default().push(format!("{ARTIFACTS}/{name}"));
        }
    }
    survey.lost.artifacts = known.artifacts.difference(&there).cloned().collect();

    let raw = names(&root.join(ROOTFS))?;
    let is_there = |file: &String, manifest: &Option<String>| {
        raw.contains(file) || manifest.as_deref().and_then(|id| store.images().stored(id)).is_some()
    };
    let lost = known.rootfs.iter().filter(|(file, manifest)| !is_there(file, manifest));
    survey.lost.rootfs = lost.map(|(file, manifest)| (file.clone(), manifest.clone())).collect();

    for folder in names(&root.join(BLOBS))? {
        if folder.parse::<TenantId>().is_ok_and(|tenant| !tenants.contains(&tenant)) {
            survey.foreign.insert(format!("{BLOBS}/{folder}"));
        }
    }
    survey.lost_blobs = blobs.iter().filter(|blob| !store.blob_path(blob).exists()).cloned().collect();

    let mut say = |what: &str, folder: &str, named: usize, lost: usize| {
        if named > 0 && named == lost {
            let folder = root.join(folder);
            survey
                .all_lost
                .push(format!("the database names {named} {what}, and none of them is in {}", folder.display()));
        }
    };
    say("snapshots", ARTIFACTS, known.artifacts.len(), survey.lost.artifacts.len());
    say("root images", CHUNKS, known.rootfs.len(), survey.lost.rootfs.len());
    say("uploaded files", BLOBS, blobs.len(), survey.lost_blobs.len());
    Ok((survey, strangers))
}

fn names(dir: &Path) -> Result<BTreeSet<String>> {
    let paths = read_dir(dir)?;
    Ok(paths.iter().filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
}

/// What is stored in a data directory that has no database, as `folder/` with a count; empty for a new one. A new database
/// beside such files would make all of them nobody's.
///
/// # Errors
/// [`StoreError::Io`] when a folder that is there cannot be read.
pub fn stored_without_database(data_dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for folder in [ARTIFACTS.to_owned(), format!("{CHUNKS}/packs"), ROOTFS.to_owned(), BLOBS.to_owned()] {
        let path = data_dir.join(&folder);
        let count = match fs::read_dir(&path) {
            Ok(entries) => entries.count(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        if count > 0 {
            found.push(format!("{folder}/ ({count})"));
        }
    }
    Ok(found)
}

impl ArtifactStore {
    /// Removes what a [`survey`] found to be another database's.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] for a name that no survey gives.
    pub async fn remove_foreign(&self, foreign: &BTreeSet<String>) -> Result<()> {
        let foreign = foreign.clone();
        self.blocking(move |root| {
            for name in &foreign {
                let path: Option<PathBuf> = match name.split_once('/') {
                    Some((ARTIFACTS, folder)) if artifact_of(folder).is_some() => Some(root.join(name)),
                    Some((BLOBS, tenant)) if tenant.parse::<TenantId>().is_ok() => Some(root.join(name)),
                    _ => None,
                };
                remove(&path.ok_or_else(|| StoreError::conflict(format!("{name} is nothing that a survey finds")))?)?;
            }
            Ok(())
        })
        .await
    }
}
