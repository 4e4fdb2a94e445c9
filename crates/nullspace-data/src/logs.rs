//! Segments of finished builds' logs: small objects with names that are used once.
//!
//! ```text
//!   without an object store    work/ ──flush, rename──> logs/<2 digits>/<32 digits>
//!   with one                   object logs/<2 digits>/<32 digits>       (older ones here are read, and uploaded later)
//! ```
//! The database names a segment after it is stored, and forgets it before it is removed. So a crash leaves segments without a
//! name, never a name without its segment: [`LogSegments::sweep`] removes them after a day. This module neither reads nor checks
//! the contents: the reader's checksum finds damage.

use std::{
    collections::HashSet,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use nullspace_objects::{Error, ObjectName, Objects, Stop};
use uuid::Uuid;

use crate::{
    ArtifactStore, DataError, Result,
    blobs::{ORPHAN_AGE, UPLOADS_AT_ONCE, UploadedFiles, is_gone, listed, of_objects, remove_objects},
    folders::{io_error, make_dir, read_dir, sync_dir},
    names::{LOGS, WORK},
};

/// Longest segment, bytes. One is some 256 KiB before its compression, unless its only entry is longer.
const MOST_BYTES: u64 = 64 << 20;

/// The name of a segment: a random number, used once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName(u128);

impl SegmentName {
    fn new() -> SegmentName {
        SegmentName(Uuid::new_v4().as_u128())
    }

    /// The name below `logs/`, of the file and of the object.
    fn below(self) -> String {
        let digits = self.to_string();
        format!("{}/{digits}", digits.get(..2).unwrap_or_default())
    }

    fn object(self) -> Result<ObjectName> {
        ObjectName::parse(&format!("{LOGS}/{}", self.below())).map_err(|_| DataError::corrupt("name of a log segment"))
    }

    /// The segment with this name below `logs/`.
    fn of(below: &str) -> Option<SegmentName> {
        let (_, digits) = below.split_once('/')?;
        digits.parse().ok().filter(|name: &SegmentName| name.below() == below)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A text is no name of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a log segment is 32 lower-case hexadecimal digits")]
pub struct InvalidSegmentName;

impl FromStr for SegmentName {
    type Err = InvalidSegmentName;

    fn from_str(text: &str) -> std::result::Result<SegmentName, InvalidSegmentName> {
        let name = u128::from_str_radix(text, 16).map(SegmentName).map_err(|_| InvalidSegmentName)?;
        // Only the one text that it is shown as: no signs, no capitals.
        if name.to_string() == text { Ok(name) } else { Err(InvalidSegmentName) }
    }
}

/// The segments of a data folder, and of its object store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LogSegments {
    root: PathBuf,
    objects: Option<Objects>,
    /// Stops uploads.
    stop: Stop,
    /// Keeps the data folder's lock. `None` beside a running service, for reading.
    _store: Option<ArtifactStore>,
}

impl ArtifactStore {
    /// The segments of logs.
    pub fn logs(&self) -> LogSegments {
        LogSegments {
            root: self.root().to_owned(),
            objects: self.objects().cloned(),
            stop: self.stop().clone(),
            _store: Some(self.clone()),
        }
    }
}

impl LogSegments {
    /// The segments of a data folder that a running service may have: only to look for them.
    pub fn look_at(data_dir: &Path, objects: Option<Objects>) -> LogSegments {
        LogSegments { root: data_dir.to_owned(), objects, stop: Stop::new(), _store: None }
    }

    fn path(&self, name: SegmentName) -> PathBuf {
        self.root.join(LOGS).join(name.below())
    }

    /// Stores a segment durably under a new name, which it returns.
    ///
    /// # Errors
    /// [`DataError::Conflict`] for more than 64 MiB; [`DataError::Objects`] when the object store does not take it;
    /// [`DataError::Io`].
    pub async fn put(&self, bytes: Vec<u8>) -> Result<SegmentName> {
        if bytes.len() as u64 > MOST_BYTES {
            return Err(DataError::conflict(format!("a log segment has at most {} MiB", MOST_BYTES >> 20)));
        }
        let name = SegmentName::new();
        if let Some(objects) = &self.objects {
            objects.put(&name.object()?, Bytes::from(bytes)).await.map_err(of_objects("store a log segment"))?;
            return Ok(name);
        }
        let (root, to) = (self.root.clone(), self.path(name));
        self.blocking(move || {
            let from = root.join(WORK).join(format!("log-{name}"));
            let written = write(&root, &from, &to, &bytes);
            if written.is_err() {
                let _ = fs::remove_file(&from);
            }
            written
        })
        .await?;
        Ok(name)
    }

    /// Returns the bytes of a segment.
    ///
    /// # Errors
    /// [`DataError::Damaged`] when there is none; [`DataError::Objects`] when the object store does not give it;
    /// [`DataError::Io`].
    pub async fn get(&self, name: SegmentName) -> Result<Vec<u8>> {
        let lost = || DataError::Damaged { what: format!("the segment {name} of a build's log is missing") };
        let path = self.path(name);
        let read = self.blocking(move || {
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                opened => opened.map_err(io_error("open", &path))?,
            };
            let mut bytes = Vec::new();
            file.take(MOST_BYTES).read_to_end(&mut bytes).map_err(io_error("read", &path))?;
            Ok(Some(bytes))
        });
        if let Some(bytes) = read.await? {
            return Ok(bytes);
        }
        let Some(objects) = &self.objects else { return Err(lost()) };
        match objects.get(&name.object()?, MOST_BYTES).await {
            Ok(bytes) => Ok(bytes.into()),
            Err(Error::NotFound { .. }) => Err(lost()),
            Err(error) => Err(of_objects("read a log segment")(error)),
        }
    }

    /// Removes a segment that the database has forgotten; nothing when there is none.
    ///
    /// # Errors
    /// [`DataError::Io`] or [`DataError::Objects`] when it may still be there. A later sweep removes it.
    pub async fn remove(&self, name: SegmentName) -> Result<()> {
        let path = self.path(name);
        self.blocking(move || remove_file(&path)).await?;
        let Some(objects) = &self.objects else { return Ok(()) };
        objects.delete(&name.object()?).await.map_err(of_objects("remove a log segment"))
    }

    /// Lists the segments that are older than a day: here, and in the object store. Those of them that the database does not name
    /// *afterwards* are orphans, see [`Self::sweep`].
    ///
    /// # Errors
    /// [`DataError::Objects`] when the object store does not list what it has; [`DataError::Io`].
    pub async fn old(&self) -> Result<HashSet<SegmentName>> {
        let mut found: HashSet<SegmentName> =
            self.files().await?.into_iter().filter(is_old).map(|(name, _)| name).collect();
        if let Some(objects) = &self.objects {
            let listed = listed(objects, LOGS).await?;
            let names =
                listed.iter().filter(|(.., age)| *age > ORPHAN_AGE).filter_map(|(below, ..)| SegmentName::of(below));
            found.extend(names);
        }
        Ok(found)
    }

    /// Removes orphans: segments of [`Self::old`] that the database was asked for since, and does not name. Returns how many.
    ///
    /// # Errors
    /// [`DataError::Io`] when a file cannot be removed. An object that cannot be removed stays for the next sweep.
    pub async fn sweep(&self, orphans: HashSet<SegmentName>) -> Result<u64> {
        let names: Vec<String> = orphans.iter().map(|name| name.below()).collect();
        let paths: Vec<PathBuf> = orphans.iter().map(|name| self.path(*name)).collect();
        let here = self.blocking(move || {
            paths.iter().try_for_each(|path| remove_file(path))?;
            Ok(paths.len() as u64)
        });
        let here = here.await?;
        let Some(objects) = &self.objects else { return Ok(here) };
        Ok(remove_objects(objects, LOGS, names).await)
    }

    /// Returns those of the segments that are neither here nor in the object store.
    ///
    /// # Errors
    /// [`DataError::Objects`] when the object store does not list what it has; [`DataError::Io`].
    pub async fn missing(&self, mut names: HashSet<SegmentName>) -> Result<HashSet<SegmentName>> {
        for (name, _) in self.files().await? {
            names.remove(&name);
        }
        if let Some(objects) = self.objects.as_ref().filter(|_| !names.is_empty()) {
            for (below, ..) in listed(objects, LOGS).await? {
                SegmentName::of(&below).map(|name| names.remove(&name));
            }
        }
        Ok(names)
    }

    /// Uploads the segments of the data folder, which are of the time before the object store, and removes them here. Nothing
    /// without an object store. After an error, the next call goes on with the rest.
    ///
    /// # Errors
    /// The first failure: [`DataError::Objects`] when the object store does not take one; [`DataError::Io`].
    pub async fn upload_missing(&self) -> Result<UploadedFiles> {
        let Some(objects) = &self.objects else { return Ok(UploadedFiles::default()) };
        let uploads = stream::iter(self.files().await?).map(|(name, _)| Ok(name)).map_ok(|name| async move {
            let path = self.path(name);
            let opened = self.blocking(move || File::open(&path).map_err(io_error("open", &path)));
            let file = match opened.await {
                // Removed meanwhile, with its row.
                Err(error) if is_gone(&error) => return Ok(None),
                opened => opened?,
            };
            let stored = objects.put_file(&name.object()?, file, &self.stop).await;
            let bytes = stored.map_err(of_objects("store a log segment"))?;
            let path = self.path(name);
            self.blocking(move || remove_file(&path)).await?;
            Ok::<Option<u64>, DataError>(Some(bytes))
        });
        let uploads = uploads.try_buffer_unordered(UPLOADS_AT_ONCE).try_filter_map(|bytes| async move { Ok(bytes) });
        uploads.try_fold(UploadedFiles::default(), |all, bytes| async move { Ok(all.and(bytes)) }).await
    }

    /// The segments that are files here, and how old they are.
    async fn files(&self) -> Result<Vec<(SegmentName, Duration)>> {
        let root = self.root.join(LOGS);
        self.blocking(move || {
            let (mut found, now) = (Vec::new(), SystemTime::now());
            for folder in entries(&root)? {
                let Some(first) = folder.file_name().and_then(|name| name.to_str()) else { continue };
                for file in entries(&folder)? {
                    let digits = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                    let Some(name) = SegmentName::of(&format!("{first}/{digits}")) else { continue };
                    let modified = fs::symlink_metadata(&file).and_then(|metadata| metadata.modified());
                    let age = modified.ok().and_then(|at| now.duration_since(at).ok());
                    found.push((name, age.unwrap_or_default()));
                }
            }
            Ok(found)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(&self, job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        tokio::task::spawn_blocking(job).await.map_err(|error| DataError::Io {
            context: "run a job on the blocking pool".to_owned(),
            source: io::Error::other(error),
        })?
    }
}

fn is_old((_, age): &(SegmentName, Duration)) -> bool {
    *age > ORPHAN_AGE
}

/// What is in a folder; nothing when there is no such folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match read_dir(folder) {
        Err(DataError::Io { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(Vec::new())
        }
        read => read,
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Writes a file in `work/`, and gives it its name. It is durable when this returns.
fn write(root: &Path, from: &Path, to: &Path, bytes: &[u8]) -> Result<()> {
    let mut file =
        OpenOptions::new().create_new(true).write(true).mode(0o600).open(from).map_err(io_error("make", from))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io_error("write", from))?;
    let Some(folder) = to.parent() else { return Err(DataError::corrupt("name of a log segment")) };
    if !folder.is_dir() {
        make_dir(folder)?;
        sync_dir(&root.join(LOGS))?;
        sync_dir(root)?;
    }
    fs::rename(from, to).map_err(io_error("publish", to))?;
    sync_dir(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use nullspace_objects::{Faults, Limits};
    use tempfile::TempDir;

    use super::*;
    use crate::{ObjectSettings, OpenSettings};

    fn objects(dir: &TempDir) -> Objects {
        Objects::folder(&dir.path().join("objects")).unwrap()
    }

    async fn opened(dir: &TempDir, objects: Option<Objects>) -> ArtifactStore {
        let root = dir.path().join("data");
        let objects =
            objects.map(|objects| ObjectSettings { objects, cache_bytes: 1 << 20, grace: Duration::from_secs(60) });
        let settings = OpenSettings { objects, ..OpenSettings::default() };
        tokio::task::spawn_blocking(move || ArtifactStore::open_with(&root, settings)).await.unwrap().unwrap()
    }

    fn age(logs: &LogSegments, name: SegmentName) {
        let file = File::options().write(true).open(logs.path(name)).unwrap();
        file.set_modified(SystemTime::now() - ORPHAN_AGE - Duration::from_secs(60)).unwrap();
    }

    #[tokio::test]
    async fn a_segment_is_a_file_until_it_is_removed() {
        let dir = TempDir::new().unwrap();
        let store = opened(&dir, None).await;
        let logs = store.logs();
        let (one, two) = (logs.put(b"one".to_vec()).await.unwrap(), logs.put(vec![]).await.unwrap());
        assert_eq!((logs.get(one).await.unwrap(), logs.get(two).await.unwrap()), (b"one".to_vec(), vec![]));
        assert_eq!(fs::metadata(logs.path(one)).unwrap().mode() & 0o777, 0o600);
        let beside = LogSegments::look_at(store.root(), None);
        assert!(beside.missing([one, two].into()).await.unwrap().is_empty());
        logs.remove(one).await.unwrap();
        logs.remove(one).await.unwrap();
        assert!(matches!(logs.get(one).await, Err(DataError::Damaged { .. })));
        assert_eq!(beside.missing([one, two].into()).await.unwrap(), [one].into());
        let long = vec![0; usize::try_from(MOST_BYTES).unwrap() + 1];
        assert!(matches!(logs.put(long).await, Err(DataError::Conflict { .. })));
        assert!(read_dir(&store.root().join(WORK)).unwrap().is_empty());
    }

    #[tokio::test]
    async fn only_old_segments_without_a_row_are_swept() {
        let dir = TempDir::new().unwrap();
        let store = opened(&dir, None).await;
        let logs = store.logs();
        assert!(logs.old().await.unwrap().is_empty(), "there is no folder yet");
        let [named, young, orphan] = [b"named", b"young", b"orpha"].map(|text| text.to_vec());
        let (named, young, orphan) =
            (logs.put(named).await.unwrap(), logs.put(young).await.unwrap(), logs.put(orphan).await.unwrap());
        for name in [named, orphan] {
            age(&logs, name);
        }
        let stray = store.root().join(LOGS).join("notes");
        fs::write(&stray, "x").unwrap();
        let mut old = logs.old().await.unwrap();
        assert_eq!(old, [named, orphan].into());
        old.remove(&named);
        assert_eq!(logs.sweep(old).await.unwrap(), 1);
        assert!(logs.get(named).await.is_ok() && logs.get(young).await.is_ok() && stray.exists());
        assert!(logs.get(orphan).await.is_err());
    }

    #[tokio::test]
    async fn segments_from_before_the_store_are_read_and_uploaded_also_after_a_failure() {
        let dir = TempDir::new().unwrap();
        let before = opened(&dir, None).await.logs();
        let mut names = Vec::new();
        for number in 0..10_u8 {
            names.push(before.put(vec![number; 1000]).await.unwrap());
        }
        drop(before);
        let (pause, faults) = (Duration::from_millis(1), Faults::new(7));
        let limits = Limits { attempts: 2, backoff: pause, longest_backoff: pause, ..Limits::default() };
        let faulty = Objects::faulty(&objects(&dir).with_limits(limits), faults.clone());
        let store = opened(&dir, Some(faulty)).await;
        let logs = store.logs();
        faults.set_down(true);
        assert!(logs.upload_missing().await.unwrap_err().is_store_away());
        assert!(logs.put(vec![1]).await.unwrap_err().is_store_away());
        for (number, name) in (0..).zip(&names) {
            assert_eq!(logs.get(*name).await.unwrap(), vec![number; 1000], "what is here is read");
        }
        faults.set_down(false);
        assert_eq!(logs.upload_missing().await.unwrap(), UploadedFiles { files: 10, bytes: 10_000 });
        assert_eq!(logs.upload_missing().await.unwrap(), UploadedFiles::default());
        assert!(logs.files().await.unwrap().is_empty());
        let new = logs.put(b"new".to_vec()).await.unwrap();
        assert!(logs.missing(names.iter().copied().chain([new]).collect()).await.unwrap().is_empty());
        for (number, name) in (0..).zip(&names) {
            assert_eq!(logs.get(*name).await.unwrap(), vec![number; 1000]);
        }
        assert!(logs.old().await.unwrap().is_empty(), "all are young");
        logs.remove(new).await.unwrap();
        assert!(matches!(logs.get(new).await, Err(DataError::Damaged { .. })));
        faults.set_down(true);
        assert!(logs.get(names[0]).await.unwrap_err().is_store_away());
        assert!(logs.old().await.is_err() && logs.missing([names[0]].into()).await.is_err());
    }

    #[test]
    fn only_the_names_that_are_given_are_names() {
        let name = SegmentName::new();
        assert_eq!(name.to_string().parse(), Ok(name));
        assert_eq!(SegmentName::of(&name.below()), Some(name));
        let digits = "0a".repeat(16);
        assert!(digits.parse::<SegmentName>().is_ok());
        let wrong = [
            String::new(),
            "../../../host".to_owned(),
            "0A".repeat(16),
            format!("+{}", &digits[1..]),
            digits[1..].to_owned(),
            format!("{digits}0"),
        ];
        for text in wrong {
            assert_eq!(text.parse::<SegmentName>(), Err(InvalidSegmentName), "{text}");
        }
        assert_eq!(SegmentName::of(&format!("ff/{digits}")), None);
    }
}
