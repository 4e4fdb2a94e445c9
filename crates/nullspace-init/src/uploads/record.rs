//! One upload's files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nullspace_guest::message::{Failure, FailureKind};
use nullspace_guest::upload::{UPLOAD_LIFETIME_SECS, UploadReason, UploadSpec, UploadState, UploadStatus};
use serde::{Deserialize, Serialize};

use super::{Stop, discard, failed, refuse};
use crate::files::failure;

/// Most bytes of an upload's record that are read: a target, a key and the host's words.
const MAX_RECORD: u64 = 1 << 20;

/// How an upload has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub(super) enum Ended {
    Completed { bytes: u64, files: u64 },
    Aborted,
}

/// One upload.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Upload {
    #[serde(skip)]
    folder: PathBuf,
    pub(super) id: String,
    pub(super) spec: UploadSpec,
    pub(super) created_secs: u64,
    pub(super) ended: Option<Ended>,
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_secs()).unwrap_or_default()
}

/// An id is a folder's name: nothing else may be one.
pub(super) fn check_id(id: &str) -> Result<(), Stop> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match id.strip_prefix("up_") {
        Some(rest) if rest.len() == 32 && rest.bytes().all(hex) => Ok(()),
        _ => Err(unknown(id)),
    }
}

fn unknown(id: &str) -> Stop {
    let message = format!("There is no upload `{}` in this sandbox.", id.escape_debug());
    Stop::Failed(Failure { kind: FailureKind::NotFound, message })
}

/// Makes the directory of all uploads, which nobody but this process's user may enter, and checks it.
pub(super) fn make_folder(path: &Path) -> Result<(), Stop> {
    let cannot = |error: io::Error| Stop::from(failure(&error, "The directory cannot be made", path));
    if let Some(above) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(above).map_err(cannot)?;
    }
    make_own(path).map_err(cannot)?;
    check_folder(path)
}

fn make_own(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Refuses a directory of uploads that another user could have filled: what is in it is believed. One that is not there is fine.
pub(super) fn check_folder(path: &Path) -> Result<(), Stop> {
    let own = nix::unistd::geteuid().as_raw();
    let above = path.parent().unwrap_or(Path::new("/"));
    // Whoever may write above it could exchange it.
    for (folder, of_others) in [(above, 0o022), (path, 0o077)] {
        let meta = match fs::symlink_metadata(folder) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failure(&error, "It cannot be looked at", folder).into()),
        };
        if !meta.is_dir() || meta.uid() != own || meta.mode() & of_others != 0 {
            let message = format!(
                "`{}` must be a directory that belongs to uid {own} and has no permission bits of {of_others:03o}: \
                 it keeps uploads. Correct or remove it.",
                folder.display()
            );
            return Err(failed(FailureKind::PermissionDenied, message));
        }
    }
    Ok(())
}

/// Opens a file of an upload: a regular one, not through a link.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

/// Reads a file of an upload, of at most so many bytes.
fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path, OpenOptions::new().read(true))?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Upload {
    /// Writes the files of a new upload.
    pub(super) fn create(within: &Path, id: &str, spec: UploadSpec) -> Result<Upload, Stop> {
        let upload = Upload { folder: within.join(id), id: id.to_owned(), spec, created_secs: now(), ended: None };
        make_own(&upload.folder).map_err(|error| failure(&error, "The directory cannot be made", &upload.folder))?;
        let write = || -> Result<(), Failure> {
            let data = upload.make("data")?;
            data.set_len(upload.spec.bytes)
                .map_err(|error| failure(&error, "It cannot be made", &upload.path("data")))?;
            let parts = upload.make("parts")?;
            parts
                .set_len(u64::from(upload.spec.parts()))
                .map_err(|error| failure(&error, "It cannot be made", &upload.path("parts")))?;
            upload.save()
        };
        match write() {
            Ok(()) => Ok(upload),
            Err(failure) => {
                discard(&upload.folder);
                Err(failure.into())
            }
        }
    }

    /// Reads an upload.
    pub(super) fn read(within: &Path, id: &str) -> Result<Upload, Stop> {
        let folder = within.join(id);
        let text = match read(&folder.join("upload.json"), MAX_RECORD) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown(id)),
            Err(error) => return Err(failure(&error, "It cannot be read", &folder).into()),
        };
        let upload: Upload = serde_json::from_slice(&text)
            .map_err(|error| failed(FailureKind::Internal, format!("Upload {id} is damaged: {error}.")))?;
        Ok(Upload { folder, id: id.to_owned(), ..upload })
    }

    /// All uploads that can be read.
    pub(super) fn all(within: &Path) -> Result<Vec<Upload>, Stop> {
        let entries = match fs::read_dir(within) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failure(&error, "It cannot be listed", within).into()),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter(|name| check_id(name).is_ok()).filter_map(|name| Upload::read(within, &name).ok()).collect())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn make(&self, name: &str) -> Result<File, Failure> {
        let path = self.path(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        open(&path, &mut options).map_err(|error| failure(&error, "It cannot be made", &path))
    }

    fn open(&self, name: &str) -> Result<File, Failure> {
        let path = self.path(name);
        open(&path, OpenOptions::new().read(true).write(true))
            .map_err(|error| failure(&error, "It cannot be opened", &path))
    }

    /// The bytes of the whole.
    pub(super) fn data(&self) -> Result<File, Failure> {
        self.open("data")
    }

    /// Which parts were taken.
    pub(super) fn parts_file(&self) -> Result<File, Failure> {
        self.open("parts")
    }

    fn save(&self) -> Result<(), Failure> {
        // Our own type has string keys and no floats: serialising cannot fail.
        let text = serde_json::to_vec(self).unwrap_or_default();
        let mut file = self.make("upload.json.new")?;
        let path = self.path("upload.json");
        file.write_all(&text)
            .and_then(|()| fs::rename(self.path("upload.json.new"), &path))
            .map_err(|error| failure(&error, "It cannot be written", &path))
    }

    pub(super) fn mark(&self, parts: &File, number: u32, taken: bool) -> Result<(), Failure> {
        parts
            .write_all_at(&[u8::from(taken)], u64::from(number))
            .map_err(|error| failure(&error, "It cannot be written", &self.path("parts")))
    }

    fn taken(&self) -> Result<Vec<u8>, Failure> {
        let path = self.path("parts");
        read(&path, self.spec.parts().into()).map_err(|error| failure(&error, "It cannot be read", &path))
    }

    /// The parts that are missing.
    pub(super) fn missing(&self) -> Result<Vec<u32>, Failure> {
        let taken = self.taken()?;
        let is_missing = |number: &u32| usize::try_from(*number).ok().and_then(|at| taken.get(at)) != Some(&1);
        Ok((0..self.spec.parts()).filter(is_missing).collect())
    }

    pub(super) fn has_expired(&self) -> bool {
        self.ended.is_none() && now() > self.created_secs.saturating_add(UPLOAD_LIFETIME_SECS)
    }

    /// True while parts are taken.
    pub(super) fn is_open(&self) -> bool {
        self.ended.is_none() && !self.has_expired()
    }

    pub(super) fn must_be_open(&self) -> Result<(), Stop> {
        match self.ended {
            Some(Ended::Completed { .. }) => Err(refuse(UploadReason::Completed, "The upload is complete.")),
            Some(Ended::Aborted) => Err(refuse(UploadReason::Aborted, "The upload was aborted: begin another one.")),
            None if self.has_expired() => {
                Err(refuse(UploadReason::Expired, "The upload was not completed in 24 hours: begin another one."))
            }
            None => Ok(()),
        }
    }

    /// Bytes of the disk that it will still take.
    pub(super) fn owed(&self) -> u64 {
        let taken = fs::metadata(self.path("data")).map(|meta| meta.blocks().saturating_mul(512)).unwrap_or_default();
        self.spec.bytes.saturating_sub(taken)
    }

    /// Records the end, and gives its space back.
    pub(super) fn end(&mut self, ended: Ended) -> Result<(), Failure> {
        self.ended = Some(ended);
        self.save()?;
        self.remove_data();
        Ok(())
    }

    /// Whether it still has its data.
    pub(super) fn has_data(&self) -> bool {
        fs::symlink_metadata(self.path("data")).is_ok()
    }

    /// Gives the space of an upload back that has ended.
    pub(super) fn remove_data(&self) {
        discard(&self.path("data"));
    }

    /// Removes all of its files.
    pub(super) fn forget(&self) {
        discard(&self.folder);
    }

    /// How it is now.
    pub(super) fn state(&self) -> Result<UploadState, Stop> {
        let missing = self.missing()?;
        let missing_bytes = missing.iter().filter_map(|number| self.spec.part_bytes(*number)).sum();
        let accepted_bytes = self.spec.bytes.saturating_sub(missing_bytes);
        let changed = |name| fs::metadata(self.path(name)).map(|meta| meta.mtime()).unwrap_or_default();
        let changed = u64::try_from(changed("parts").max(changed("upload.json"))).unwrap_or_default();
        let (mut published_bytes, mut published_files) = (0, 0);
        let status = match self.ended {
            Some(Ended::Completed { bytes, files }) => {
                (published_bytes, published_files) = (bytes, files);
                UploadStatus::Completed
            }
            Some(Ended::Aborted) => UploadStatus::Aborted,
            None if self.has_expired() => UploadStatus::Expired,
            None if missing.is_empty() => UploadStatus::Staged,
            None if accepted_bytes == 0 => UploadStatus::Created,
            None => UploadStatus::Uploading,
        };
        Ok(UploadState {
            id: self.id.clone(),
            spec: self.spec.clone(),
            status,
            accepted_bytes,
            next_part: missing.first().copied(),
            created_secs: self.created_secs,
            updated_secs: changed.max(self.created_secs),
            published_bytes,
            published_files,
        })
    }
}
