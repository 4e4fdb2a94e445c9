//! Space on the host's disk: refuses new work when it is short, and ends the largest writer when it runs out.
//!
//! ```text
//!   free   ───────────────│ reserve │──────────────│ line │──────── 0
//!   begins  anything       nothing new               nothing new
//!   runs    everything     everything; unused raw    the machine or build that has
//!                          images and cached image   written most since is ended
//!                          layers make room
//! ```
//! Disks of machines are thin: together they can be larger than the host's disk, and a guest's writes are seen only when they
//! are made. The reserve leaves space for the database, logs and the ends of builds meanwhile.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nullspace_api::{ErrorResponseCode, TemplateFailurePhase};
use nullspace_data::{ArtifactStore, DataError, Room, Space};
use nullspace_service::{Error, chain};
use tokio_util::sync::CancellationToken;

use crate::failures::{of_data, refused};

/// Default reserve, bytes. On small disks it is a share of the disk.
const RESERVE: u64 = 512 << 20;
/// That share.
const SHARE: u64 = 16;
/// Time between two checks of the disk. A guest can write some hundred MiB meanwhile.
const LOOK: Duration = Duration::from_millis(250);
/// Time between two measurements of the writers while nothing is short.
const MEASURE: Duration = Duration::from_secs(10);
/// Time between two removals of unused raw root images.
const MAKE_ROOM: Duration = Duration::from_secs(10);
/// Time for an ended writer to release its space, before the next one is ended.
const ENDING: Duration = Duration::from_secs(5);
/// Bytes written since space became short, below which a writer is not ended.
const WRITES_MUCH: u64 = 1 << 20;
/// The disk under the data folder.
pub(crate) struct Disk {
    files: ArtifactStore,
    /// Bytes that must stay free when new work begins.
    reserve: u64,
    state: Arc<Mutex<State>>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Folders of running work.
    writers: HashMap<u64, Writer>,
    /// Time at which the disk was last below its line.
    last_short: Option<Instant>,
}

/// Returns the bytes in files that no folder shows.
type Nameless = Arc<dyn Fn() -> u64 + Send + Sync>;

#[derive(Clone)]
struct Writer {
    folder: PathBuf,
    /// Counts a machine's overlay, which has no name.
    nameless: Option<Nameless>,
    overran: CancellationToken,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// A writer into a folder of `work/`. Dropping it removes it from the check.
#[derive(Debug)]
pub(crate) struct Writing {
    state: Arc<Mutex<State>>,
    id: u64,
    /// Cancelled when this writer must end, because the disk runs full and it has written most.
    pub(crate) overran: CancellationToken,
}

impl Writing {
    /// Adds the bytes of `nameless` to those of the folder. It is called from a thread that may block.
    pub(crate) fn count(&self, nameless: impl Fn() -> u64 + Send + Sync + 'static) {
        if let Some(writer) = lock(&self.state).writers.get_mut(&self.id) {
            writer.nameless = Some(Arc::new(nameless));
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        lock(&self.state).writers.remove(&self.id);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reserve on a file system of this size.
fn default_reserve(total: u64) -> u64 {
    RESERVE.min(total / SHARE)
}

impl Disk {
    /// A disk with the operator's reserve in bytes, or the default for the filesystem under `files`.
    pub(crate) fn new(files: ArtifactStore, reserve: Option<u64>) -> Disk {
        // A file system that cannot be measured is refused at the first promise, not here.
        let default = || files.space().map_or(RESERVE, |space| default_reserve(space.total));
        let reserve = reserve.unwrap_or_else(default);
        Disk { files, reserve, state: Arc::default(), next: AtomicU64::new(0) }
    }

    /// Free bytes below which the disk counts as full.
    fn line(&self) -> u64 {
        self.reserve / 2
    }

    /// Registers a writer into this folder. `overran` is cancelled if it has to end.
    pub(crate) fn enter(&self, folder: &Path, overran: CancellationToken) -> Writing {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let writer = Writer { folder: folder.to_owned(), nameless: None, overran: overran.clone() };
        lock(&self.state).writers.insert(id, writer);
        Writing { state: Arc::clone(&self.state), id, overran }
    }

    /// Whether the disk counted as full at any time since `began`.
    fn was_short(&self, began: Instant) -> bool {
        lock(&self.state).last_short.is_some_and(|last| last >= began)
    }

    fn writers(&self) -> Vec<(u64, Writer)> {
        lock(&self.state).writers.iter().map(|(id, writer)| (*id, writer.clone())).collect()
    }
}

impl Disk {
    /// Reserves space on the disk, beside the reserve and other reservations.
    pub(crate) fn room(&self, bytes: u64) -> Result<Room, DataError> {
        self.files.promise(bytes, self.reserve)
    }

    /// Refuses a request that would begin work for which the disk has too little space.
    pub(crate) fn ensure_room(&self, bytes: u64, phase: Option<TemplateFailurePhase>) -> Result<Room, Error> {
        self.room(bytes).map_err(|error| refused(&error, phase))
    }

    /// Refuses a machine's disk that is larger than an empty host could hold.
    pub(crate) fn ensure_possible(&self, disk_mb: u32) -> Result<(), Error> {
        let asked = u64::from(disk_mb);
        let Space { total, .. } = self.files.space().map_err(of_data)?;
        let most = total.saturating_sub(self.reserve) >> 20;
        if asked <= most {
            return Ok(());
        }
        let message = format!("build_config.disk_mb is {asked}: the disk of this host has {most} MiB for everything");
        Err(Error::new(ErrorResponseCode::CapacityExceeded, message))
    }

    /// Whether the disk counted as full at any time since `began`, or does now.
    pub(crate) fn was_full(&self, began: Instant) -> bool {
        self.was_short(began) || self.files.space().is_ok_and(|space| space.free < self.line())
    }

    /// Free bytes, and how many must stay free, for the metrics.
    pub(crate) fn free_and_reserve(&self) -> Result<(u64, u64), DataError> {
        Ok((self.files.space()?.free, self.reserve))
    }
}

/// Checks the disk until the service stops.
pub(crate) async fn watch(disk: Arc<Disk>, shutdown: CancellationToken) {
    let mut shortage = Shortage::default();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        match disk.files.space() {
            Ok(space) => shortage.look(&disk, space.free).await,
            Err(error) => tracing::error!(error = %chain(&error), "the disk cannot be measured"),
        }
    }
}

/// What the checks of the disk remember.
#[derive(Debug, Default)]
struct Shortage {
    /// It is said that the disk is below its reserve.
    said: bool,
    /// Free bytes when the disk was last above its reserve.
    free_before: Option<u64>,
    /// Bytes of each writer when they were last measured above the line.
    before: HashMap<u64, u64>,
    /// When they were measured above the reserve.
    measured: Option<Instant>,
    made_room: Option<Instant>,
    /// The writer that was ended last, and when.
    ended: Option<(u64, Instant)>,
}

impl Shortage {
    async fn look(&mut self, disk: &Disk, free: u64) {
        let (reserve, line) = (disk.reserve, disk.line());
        if free >= reserve {
            if std::mem::take(&mut self.said) {
                tracing::info!(free_mib = free >> 20, "the disk under the data folder has space again");
            }
            (self.free_before, self.made_room, self.ended) = (Some(free), None, None);
            if self.measured.is_none_or(|last| last.elapsed() >= MEASURE) {
                self.measured = Some(Instant::now());
                self.before = sizes(measured(disk).await);
            }
            return;
        }
        if !self.said {
            self.said = true;
            let (free, reserve) = (free >> 20, reserve >> 20);
            tracing::warn!(
                "the disk under the data folder has {free} MiB free, less than {reserve} MiB: new work is refused"
            );
        }
        if self.made_room.is_none_or(|last| last.elapsed() >= MAKE_ROOM) {
            self.made_room = Some(Instant::now());
            if let Err(error) = disk.files.drop_raw_rootfs().await {
                tracing::warn!(error = %chain(&error), "unused raw root images cannot be removed");
            }
            if let Err(error) = disk.files.drop_image_layers().await {
                tracing::warn!(error = %chain(&error), "unused image layers cannot be removed");
            }
            if let Err(error) = disk.files.drop_cached_blobs().await {
                tracing::warn!(error = %chain(&error), "cached uploaded files cannot be removed");
            }
        }
        let measured = measured(disk).await;
        if free >= line {
            for (id, _, bytes) in measured {
                self.before.entry(id).or_insert(bytes);
            }
            return;
        }
        lock(&disk.state).last_short = Some(Instant::now());
        if let Some(free_before) = self.free_before.take()
            && !may_have_taken(&self.before, &measured, free_before.saturating_sub(free))
        {
            tracing::warn!("the disk is nearly full, and no sandbox or build of this host has filled it");
            self.before = sizes(measured);
            return;
        }
        let still_ending =
            |(id, at): (u64, Instant)| at.elapsed() < ENDING && measured.iter().any(|found| found.0 == id);
        if self.ended.is_some_and(still_ending) {
            return;
        }
        if let Some((id, writer, bytes)) = worst(&self.before, measured) {
            let folder = writer.folder.display();
            tracing::warn!(%folder, mib = bytes >> 20, "the disk is nearly full: ending the largest recent writer");
            writer.overran.cancel();
            self.ended = Some((id, Instant::now()));
        }
    }
}

fn sizes(measured: Vec<(u64, Writer, u64)>) -> HashMap<u64, u64> {
    measured.into_iter().map(|(id, _, bytes)| (id, bytes)).collect()
}

/// Bytes that a writer has written since it was measured; all of them when it is new.
fn growth(before: &HashMap<u64, u64>, id: u64, bytes: u64) -> u64 {
    bytes.saturating_sub(before.get(&id).copied().unwrap_or(0))
}

/// The writer that has grown most. `None` when none has grown much.
fn worst(before: &HashMap<u64, u64>, now: Vec<(u64, Writer, u64)>) -> Option<(u64, Writer, u64)> {
    let worst = now.into_iter().max_by_key(|(id, _, bytes)| (growth(before, *id, *bytes), *bytes))?;
    (growth(before, worst.0, worst.2) >= WRITES_MUCH).then_some(worst)
}

/// Whether the writers together can have taken most of what the disk has lost since it was above its reserve.
fn may_have_taken(before: &HashMap<u64, u64>, now: &[(u64, Writer, u64)], lost: u64) -> bool {
    let grown = now.iter().map(|(id, _, bytes)| growth(before, *id, *bytes));
    grown.fold(0, u64::saturating_add) >= lost / 2
}

async fn measured(disk: &Disk) -> Vec<(u64, Writer, u64)> {
    let writers = disk.writers();
    tokio::task::spawn_blocking(move || measure(writers)).await.unwrap_or_default()
}

/// Bytes on the disk in each writer's folder and in its files without a name. Blocks.
fn measure(writers: Vec<(u64, Writer)>) -> Vec<(u64, Writer, u64)> {
    let bytes = |writer: &Writer| {
        let nameless = writer.nameless.as_ref().map_or(0, |nameless| nameless());
        stored(&writer.folder).saturating_add(nameless)
    };
    writers.into_iter().map(|(id, writer)| (id, writer.clone(), bytes(&writer))).collect()
}

/// Bytes of a path. Files may disappear during the count; they count nothing.
pub(crate) fn stored(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let own = metadata.blocks().saturating_mul(512);
    if !metadata.is_dir() {
        return own;
    }
    let Ok(entries) = fs::read_dir(path) else { return own };
    entries.flatten().map(|entry| stored(&entry.path())).fold(own, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer() -> Writer {
        Writer { folder: PathBuf::new(), nameless: None, overran: CancellationToken::new() }
    }

    #[test]
    fn a_small_disk_has_a_small_reserve() {
        assert_eq!(default_reserve(1 << 40), 512 << 20);
        assert_eq!(default_reserve(1_400 << 20), (1_400 << 20) / 16);
    }

    #[test]
    fn who_has_grown_most_of_late_is_ended_and_nobody_when_nobody_grows() {
        let gib = 1u64 << 30;
        let now =
            |sizes: [u64; 3]| sizes.into_iter().zip(1..).map(|(bytes, id)| (id, writer(), bytes)).collect::<Vec<_>>();
        let before = HashMap::from([(1, 5 * gib), (2, gib), (3, 0)]);
        let ended = |sizes| worst(&before, now(sizes)).map(|(id, ..)| id);
        // The largest has not written anything since.
        assert_eq!(ended([5 * gib, 2 * gib, gib / 2]), Some(2));
        assert_eq!(ended([5 * gib, gib, 4096]), None, "something else fills the disk");
        // All within one look: who has most.
        assert_eq!(worst(&HashMap::new(), now([5 * gib, gib, 0])).map(|(id, ..)| id), Some(1));
        assert!(worst(&before, Vec::new()).is_none());
    }

    #[test]
    fn a_disk_that_fills_at_once_ends_writers_only_when_they_can_have_filled_it() {
        let mib = 1u64 << 20;
        let writers =
            |sizes: &[u64]| sizes.iter().zip(1..).map(|(bytes, id)| (id, writer(), bytes * mib)).collect::<Vec<_>>();
        let taken = |before: &[u64], now: &[u64]| may_have_taken(&sizes(writers(before)), &writers(now), 690 * mib);
        assert!(!taken(&[], &[36, 4]), "somebody else has");
        assert!(!taken(&[], &[]));
        assert!(taken(&[], &[36, 400]));
        assert!(taken(&[], &[200, 200]), "both together");
        assert!(!taken(&[36, 4000], &[36, 4010]), "it had them before");
        assert!(taken(&[36, 4000], &[36, 4400]));
    }

    #[test]
    fn a_disk_larger_than_the_hosts_is_refused_and_one_of_the_hosts_size_is_not() {
        let data = tempfile::TempDir::new().unwrap();
        let files = ArtifactStore::open(data.path()).unwrap();
        let total = files.space().unwrap().total;
        for reserve in [0, total / 2] {
            let disk = Disk::new(files.clone(), Some(reserve));
            let most = u32::try_from((total - reserve) >> 20).unwrap_or(u32::MAX);
            disk.ensure_possible(1).unwrap();
            disk.ensure_possible(most).unwrap();
            // A host with a disk of 4 PiB has room for all that can be asked.
            if let Some(more) = most.checked_add(1) {
                let refused = disk.ensure_possible(more).unwrap_err();
                assert_eq!(refused.code, ErrorResponseCode::CapacityExceeded);
                let said = format!("disk_mb is {more}: the disk of this host has {most} MiB");
                assert!(refused.message.contains(&said), "{refused:?}");
                assert!(refused.retry_after.is_none(), "waiting does not help: {refused:?}");
            }
        }
        assert!(Disk::new(files, Some(u64::MAX)).ensure_possible(1).is_err(), "the reserve is all there is");
    }

    #[test]
    fn a_folder_is_measured_by_what_it_takes() {
        let dir = tempfile::TempDir::new().unwrap();
        let data = tempfile::TempDir::new().unwrap();
        let disk = Disk::new(ArtifactStore::open(data.path()).unwrap(), Some(1 << 20));
        let token = CancellationToken::new();
        let writing = disk.enter(dir.path(), token.clone());
        fs::create_dir(dir.path().join("deep")).unwrap();
        fs::write(dir.path().join("deep/disk"), vec![1; 1 << 20]).unwrap();
        fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 40).unwrap();
        let measured = measure(disk.writers());
        assert!((1 << 20..2 << 20).contains(&measured[0].2), "{}", measured[0].2);
        writing.count(|| 5 << 20);
        assert_eq!(measure(disk.writers())[0].2, measured[0].2 + (5 << 20));
        drop(writing);
        assert!(disk.writers().is_empty() && !token.is_cancelled());
        assert!(!disk.was_short(Instant::now()));
    }
}
