//! Uploads in parts: kept on the guest's disk until they are whole, then published.
//!
//! ```text
//!   Create ──> <folder>/<id>/ upload.json   how it was begun, and how it ended
//!                             parts         one byte for each part: 1 when it was taken
//!                             data          sparse, as long as the whole
//!   Part n ──> data, at the part's place; then its byte        parts in parallel
//!   Complete ─> checksum ──> file:    renamed to its target     as the upload's user
//!                        └─> archive: checked whole, extracted
//! ```
//! All of it are files of root that the guest's other users cannot read. They are in each snapshot of the sandbox. So an upload
//! goes on after a restart of the service, a pause or a fork, in whichever sandbox has its files.

mod extract;
mod publish;
mod record;
mod tar;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nullspace_guest::message::{Failure, FailureKind, Outcome};
use nullspace_guest::upload::{
    MAX_STAGED_BYTES, MAX_UPLOAD_BYTES, MAX_UPLOADS, PART_BYTES, UploadCall, UploadOp, UploadReason, UploadRefusal,
    UploadSpec, UploadState, UploadStatus,
};
use sha2::{Digest, Sha256};

use self::record::{Ended, Upload};
use crate::files::{failure, place};
use crate::session::Channel;
use crate::user_thread;

/// Longest wait for another operation on the same upload.
const TURN: Duration = Duration::from_secs(45);
/// Uploads that are remembered, ended ones too. Ended ones are forgotten, the oldest first.
const MAX_REMEMBERED: usize = 64;
/// Space of the disk that uploads leave free, bytes.
const LEFT_FREE: u64 = 16 << 20;
/// Depth to which a directory that is removed is given permissions first.
const MAX_OPENED_UP: usize = 256;
/// Bytes that are hashed or copied at a time.
const PIECE: usize = 256 * 1024;

/// Why an operation ended without its answer.
#[derive(Debug)]
enum Stop {
    Failed(Failure),
    Refused(UploadRefusal),
    /// Nobody waits for the answer.
    Cancelled,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        match failure.kind {
            FailureKind::DiskFull => refuse(UploadReason::NoSpace, failure.message),
            _ => Stop::Failed(failure),
        }
    }
}

fn refuse(reason: UploadReason, message: impl Into<String>) -> Stop {
    Stop::Refused(UploadRefusal { reason, message: message.into(), path: None, part: None })
}

fn refuse_part(reason: UploadReason, part: u32, message: impl Into<String>) -> Stop {
    Stop::Refused(UploadRefusal { reason, message: message.into(), path: None, part: Some(part) })
}

fn refuse_path(reason: UploadReason, path: &Path, message: impl Into<String>) -> Stop {
    let path = Some(path.to_string_lossy().into_owned());
    Stop::Refused(UploadRefusal { reason, message: message.into(), path, part: None })
}

fn failed(kind: FailureKind, message: impl Into<String>) -> Stop {
    Failure { kind, message: message.into() }.into()
}

/// The uploads of this guest.
#[derive(Debug)]
pub(crate) struct Uploads {
    folder: PathBuf,
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    used: HashMap<String, Use>,
    /// An upload is being created: one at a time, so that limits hold.
    creating: bool,
}

/// The operations that are under way on one upload.
#[derive(Debug, Default)]
struct Use {
    parts: HashSet<u32>,
    /// It is being completed or aborted.
    ending: bool,
}

/// What an operation on an upload takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Take {
    Part(u32),
    Ending,
}

/// A turn of an operation. Dropping it lets the next one begin.
struct Turn<'a> {
    uploads: &'a Uploads,
    id: &'a str,
    take: Take,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut table = self.uploads.lock();
        if let Some(used) = table.used.get_mut(self.id) {
            match self.take {
                Take::Part(number) => {
                    used.parts.remove(&number);
                }
                Take::Ending => used.ending = false,
            }
            if used.parts.is_empty() && !used.ending {
                table.used.remove(self.id);
            }
        }
        drop(table);
        self.uploads.changed.notify_all();
    }
}

struct Creating<'a>(&'a Uploads);

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.0.lock().creating = false;
        self.0.changed.notify_all();
    }
}

impl Uploads {
    /// Uploads within a folder, which is made when it is needed.
    pub(crate) fn within(folder: PathBuf) -> Uploads {
        Uploads { folder, table: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `free` says so, then lets it `take`.
    fn wait(&self, free: impl Fn(&Table) -> bool, take: impl FnOnce(&mut Table)) -> Result<(), Stop> {
        let until = Instant::now() + TURN;
        let mut table = self.lock();
        while !free(&table) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message = "Another operation on this upload takes long: try again when it has ended.";
                return Err(failed(FailureKind::Limit, message));
            }
            table = self.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        take(&mut table);
        Ok(())
    }

    fn turn<'a>(&'a self, id: &'a str, take: Take) -> Result<Turn<'a>, Stop> {
        let free = |table: &Table| match (table.used.get(id), take) {
            (None, _) => true,
            (Some(used), Take::Part(number)) => !used.ending && !used.parts.contains(&number),
            (Some(used), Take::Ending) => !used.ending && used.parts.is_empty(),
        };
        self.wait(free, |table| {
            let used = table.used.entry(id.to_owned()).or_default();
            match take {
                Take::Part(number) => {
                    used.parts.insert(number);
                }
                Take::Ending => used.ending = true,
            }
        })?;
        Ok(Turn { uploads: self, id, take })
    }

    /// Does it; data comes over the channel, the answer is returned.
    pub(crate) fn serve(&self, call: UploadCall, channel: &Channel) -> Outcome {
        let UploadCall { id, action } = call;
        let done = record::check_id(&id).and_then(|()| match action {
            UploadOp::Create(spec) => self.create(&id, spec),
            UploadOp::Look => self.find(&id).and_then(|upload| self.state(&upload)),
            UploadOp::Part { number } => self.part(&id, number, channel),
            UploadOp::Complete { sha256 } => self.complete(&id, sha256.as_deref()),
            UploadOp::Abort => self.abort(&id),
        });
        match done {
            Ok(state) => Outcome::Upload { state: Box::new(state) },
            Err(Stop::Refused(refusal)) => Outcome::UploadRefused(refusal),
            Err(Stop::Failed(failure)) => Outcome::Failed(failure),
            Err(Stop::Cancelled) => Outcome::Done,
        }
    }

    fn find(&self, id: &str) -> Result<Upload, Stop> {
        record::check_folder(&self.folder)?;
        let upload = Upload::read(&self.folder, id)?;
        expire(&upload);
        Ok(upload)
    }

    fn state(&self, upload: &Upload) -> Result<UploadState, Stop> {
        let ending = self.lock().used.get(&upload.id).is_some_and(|used| used.ending);
        let mut state = upload.state()?;
        if ending && state.status == UploadStatus::Staged {
            state.status = UploadStatus::Completing;
        }
        Ok(state)
    }

    fn create(&self, id: &str, spec: UploadSpec) -> Result<UploadState, Stop> {
        let _creating = {
            self.wait(|table| !table.creating, |table| table.creating = true)?;
            Creating(self)
        };
        let account = user_thread::account(spec.user.as_deref())?;
        let target = place(Some(spec.cwd.as_deref().unwrap_or(&account.home)), &spec.target)?;
        let target = target.to_str().map(str::to_owned);
        let target = target.ok_or_else(|| failed(FailureKind::Invalid, "The target is not UTF-8."))?;
        let spec = UploadSpec { target, cwd: None, ..spec };
        if spec.bytes > MAX_UPLOAD_BYTES {
            let message = format!("{} bytes are more than an upload may have, {MAX_UPLOAD_BYTES}.", spec.bytes);
            return Err(refuse(UploadReason::TooLarge, message));
        }
        let all = self.all()?;
        if let Some(key) = &spec.key
            && let Some(same) = all.iter().find(|upload| upload.spec.key.as_ref() == Some(key))
        {
            return self.state(same);
        }
        let open: Vec<&Upload> = all.iter().filter(|upload| upload.is_open()).collect();
        if open.len() >= MAX_UPLOADS {
            let message =
                format!("{MAX_UPLOADS} uploads to this sandbox are not complete: complete or abort one first.");
            return Err(failed(FailureKind::Limit, message));
        }
        let staged: u64 = open.iter().map(|upload| upload.spec.bytes).fold(0, u64::saturating_add);
        if staged.saturating_add(spec.bytes) > MAX_STAGED_BYTES {
            let message = format!(
                "With the uploads that are not complete, {} bytes are more than a sandbox takes, {MAX_STAGED_BYTES}.",
                spec.bytes
            );
            return Err(refuse(UploadReason::TooLarge, message));
        }
        let target = Path::new(&spec.target);
        user_thread::run(&account, || publish::check_target(&spec, target).map(drop))?;
        record::make_folder(&self.folder)?;
        let owed: u64 = open.iter().map(|upload| upload.owed()).fold(0, u64::saturating_add);
        let stat = nix::sys::statvfs::statvfs(&self.folder)
            .map_err(|error| failure(&error.into(), "Its filesystem cannot be looked at", &self.folder))?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        if spec.bytes.saturating_add(owed).saturating_add(LEFT_FREE) > free {
            let message = format!(
                "The sandbox's disk has {free} bytes free, of which other uploads will take {owed}: too few for {} bytes. \
                 build_config.disk_mb of the template sets its size.",
                spec.bytes
            );
            return Err(refuse(UploadReason::NoSpace, message));
        }
        let ended = all.iter().filter(|upload| !upload.is_open());
        for upload in ended.take((all.len() + 1).saturating_sub(MAX_REMEMBERED)) {
            upload.forget();
        }
        let upload = Upload::create(&self.folder, id, spec)?;
        self.state(&upload)
    }

    /// All uploads, the oldest first. What has expired gives its space back.
    fn all(&self) -> Result<Vec<Upload>, Stop> {
        record::check_folder(&self.folder)?;
        let mut all = Upload::all(&self.folder)?;
        all.iter().for_each(expire);
        all.sort_by_key(|upload| upload.created_secs);
        Ok(all)
    }

    fn part(&self, id: &str, number: u32, channel: &Channel) -> Result<UploadState, Stop> {
        let _turn = self.turn(id, Take::Part(number))?;
        let upload = self.find(id)?;
        upload.must_be_open()?;
        let Some(expected) = upload.spec.part_bytes(number) else {
            let message = format!("There is no part {number}: the upload has {}.", upload.spec.parts());
            return Err(refuse_part(UploadReason::NoSuchPart, number, message));
        };
        let (data, parts) = (upload.data()?, upload.parts_file()?);
        // A part that is written again is missing meanwhile: it may break off.
        upload.mark(&parts, number, false)?;
        channel.reply(&Outcome::Done);
        let mut written = 0;
        loop {
            let bytes = receive(channel)?;
            if bytes.is_empty() {
                break;
            }
            let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            if len > expected - written {
                let message = format!("Part {number} is longer than {expected} bytes.");
                return Err(refuse_part(UploadReason::PartSize, number, message));
            }
            data.write_all_at(&bytes, u64::from(number) * PART_BYTES + written)
                .map_err(|error| failure(&error, "A part cannot be written", &upload.path("data")))?;
            written += len;
        }
        if written < expected {
            let message = format!("Part {number} has {written} bytes; it must have {expected}.");
            return Err(refuse_part(UploadReason::PartSize, number, message));
        }
        upload.mark(&parts, number, true)?;
        self.state(&upload)
    }

    fn complete(&self, id: &str, sha256: Option<&str>) -> Result<UploadState, Stop> {
        let _turn = self.turn(id, Take::Ending)?;
        let mut upload = self.find(id)?;
        if let Some(Ended::Completed { .. }) = upload.ended {
            return upload.state();
        }
        upload.must_be_open()?;
        let missing = upload.missing()?;
        if let Some(first) = missing.first() {
            let message =
                format!("{} of {} parts are missing, the first is {first}.", missing.len(), upload.spec.parts());
            return Err(refuse_part(UploadReason::MissingParts, *first, message));
        }
        let data = upload.data()?;
        let wanted: Vec<&str> = [sha256, upload.spec.sha256.as_deref()].into_iter().flatten().collect();
        if !wanted.is_empty() {
            let found = checksum(&data).map_err(|error| failure(&error, "It cannot be read", &upload.path("data")))?;
            if let Some(other) = wanted.iter().find(|wanted| !wanted.eq_ignore_ascii_case(&found)) {
                let message =
                    format!("The whole has the SHA-256 {found}, not {other}: send the parts that differ again.");
                return Err(refuse(UploadReason::Checksum, message));
            }
        }
        let (bytes, files) = publish::publish(&upload, &data)?;
        upload.end(Ended::Completed { bytes, files })?;
        upload.state()
    }

    fn abort(&self, id: &str) -> Result<UploadState, Stop> {
        let _turn = self.turn(id, Take::Ending)?;
        let mut upload = self.find(id)?;
        match upload.ended {
            Some(Ended::Completed { .. }) => {
                return Err(refuse(UploadReason::Completed, "The upload is complete: remove its target instead."));
            }
            Some(Ended::Aborted) => {}
            None => {
                publish::sweep(&upload);
                upload.end(Ended::Aborted)?;
            }
        }
        upload.state()
    }
}

/// Gives the space back of an upload that has expired, and removes what a publication of it has left.
fn expire(upload: &Upload) {
    if upload.has_expired() && upload.has_data() {
        publish::sweep(upload);
        upload.remove_data();
    }
}

/// The next bytes that the host sends; none at the end.
fn receive(channel: &Channel) -> Result<bytes::Bytes, Stop> {
    loop {
        channel.wake().clear();
        if channel.is_reset() {
            return Err(Stop::Cancelled);
        }
        match channel.stdin() {
            Ok(Some(bytes)) => {
                channel.consumed(bytes.len());
                if !bytes.is_empty() {
                    return Ok(bytes);
                }
            }
            Ok(None) => {
                let mut wake = [PollFd::new(channel.wake().as_fd(), PollFlags::POLLIN)];
                // Interrupted or not, it is looked at again.
                let _ = poll(&mut wake, PollTimeout::NONE);
            }
            Err(_over) => return Ok(bytes::Bytes::new()),
        }
    }
}

fn checksum(mut file: &File) -> io::Result<String> {
    use io::Seek as _;
    file.rewind()?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; PIECE]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => hash.update(buffer.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    file.rewind()?;
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in hash.finalize() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// Removes a file or a directory with what is in it, and does not mind when it is gone.
fn discard(path: &Path) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if !meta.is_dir() {
        let _ = fs::remove_file(path);
    } else if fs::remove_dir_all(path).is_err() {
        // Nothing can be removed from a directory without permissions, not even by its owner.
        open_up(path, MAX_OPENED_UP);
        let _ = fs::remove_dir_all(path);
    }
}

/// Gives the owner all permissions on a directory and on those below it, as far as the calling thread's user may.
fn open_up(path: &Path, depth: usize) {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let _ = fchmodat(AT_FDCWD, path, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink);
    let (Ok(folder), Some(depth)) = (openat(AT_FDCWD, path, flags, Mode::empty()), depth.checked_sub(1)) else {
        return;
    };
    for entry in fs::read_dir(publish::within(&folder, Path::new(""))).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&publish::within(&folder, Path::new(&entry.file_name())), depth);
        }
    }
}
