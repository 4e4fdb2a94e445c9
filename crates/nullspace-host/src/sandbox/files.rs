//! Files of a sandbox, through its agent: as the sandbox's default user unless the request names another, with relative paths
//! from its working directory. The guest's kernel checks the user's rights. No path here is a path of this host.

use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, stream};
use jiff::Timestamp;
use nullspace_api::{ErrorResponseCode, FileInfo, Time};
use nullspace_definition::sandbox::RESERVED;
use nullspace_guest::file::{FileEntry, FileKind, FileOp, HOME};
use nullspace_guest::host::{AgentError, FileReader};
use nullspace_guest::message::FailureKind;
use nullspace_guest::search::Part;
use nullspace_service::{ByteStream, Depth, Extent, FileAt, FileContent, FileDownload, FilePart, Memory, PartDownload};

use super::live::{Live, Operation};
use nullspace_service::chain;
use nullspace_service::{Error, Result};

/// Opens a regular file for reading.
pub(super) async fn read(live: Arc<Live>, at: FileAt) -> Result<FileDownload> {
    let operation = live.begin().await?;
    let reader = tokio::select! {
        biased;
        reader = async {
            let (user, base) = live.origin(at.user, &at.path);
            operation.read_file(user, base, &at.path).await
        } => reader.map_err(failed)?,
        error = live.stopped(operation.interrupt()) => return Err(error),
    };
    let info = shown(reader.entry.clone());
    Ok(FileDownload { info, content: content(reader, live, operation) })
}

/// Opens a part of a regular file for reading.
pub(super) async fn read_part(live: Arc<Live>, at: FileAt, part: FilePart) -> Result<PartDownload> {
    let operation = live.begin().await?;
    let part = match part {
        FilePart::From { start, length } => Part::From { start, length },
        FilePart::Last { length } => Part::Last { length },
    };
    let opened = tokio::select! {
        biased;
        reader = async {
            let (user, base) = live.origin(at.user.clone(), &at.path);
            operation.read_file_part(user, base, &at.path, part).await
        } => reader.map_err(failed)?,
        error = live.stopped(operation.interrupt()) => return Err(error),
    };
    let Some(reader) = opened else {
        drop(operation);
        let FileDownload { info, content } = read(live, at).await?;
        return Ok(PartDownload { info, extent: Extent::Whole, content });
    };
    let info = shown(reader.entry.clone());
    let Some((start, length)) = part.within(info.size) else {
        return Ok(PartDownload { info, extent: Extent::Nothing, content: stream::empty().boxed() });
    };
    // The guest is hostile, and may change the file meanwhile: not a byte more or less than was announced.
    let mut left = length;
    let pieces = content(reader, live, operation).map(Some).chain(stream::iter([None]));
    let content = pieces.filter_map(move |piece| {
        let checked = match piece {
            Some(Ok(piece)) => match left.checked_sub(piece.len() as u64) {
                Some(rest) => {
                    left = rest;
                    Some(Ok(piece))
                }
                None => Some(Err(changed())),
            },
            Some(Err(error)) => Some(Err(error)),
            None => (left > 0).then(|| Err(changed())),
        };
        std::future::ready(checked)
    });
    Ok(PartDownload { info, extent: Extent::Part { start, length }, content: content.boxed() })
}

fn changed() -> Error {
    Error::new(ErrorResponseCode::FileError, "the file became shorter while it was read; ask again")
}

/// The bytes of a file that is open.
fn content(reader: FileReader, live: Arc<Live>, operation: Operation) -> FileContent {
    let content = stream::try_unfold((reader, live, operation), |(mut reader, live, operation)| async move {
        let piece = tokio::select! {
            biased;
            piece = reader.next() => piece.map_err(failed)?,
            error = live.stopped(operation.interrupt()) => return Err(error),
        };
        Ok(piece.map(|piece| (piece, (reader, live, operation))))
    });
    content.boxed()
}

/// Creates a file or replaces its content; see [`LiveFiles::write_file`](nullspace_service::LiveFiles::write_file).
pub(super) async fn write(live: &Live, at: FileAt, mut content: ByteStream) -> Result<FileInfo> {
    check_reserved(&live.cwd, &at.path)?;
    let written = live.using(|agent| async move {
        let named = at.user.clone().filter(|user| !user.is_empty());
        let (user, base) = live.origin(at.user, &at.path);
        let opened = match named {
            Some(user) => agent.write_own_file(user, base, &at.path).await,
            None => agent.write_file(user, base, &at.path).await,
        };
        let mut writer = opened.map_err(failed)?;
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(|error| Error {
                source: Some(Arc::new(error)),
                ..Error::invalid("the content ended before it was whole")
            })?;
            writer.write(&piece).await.map_err(failed)?;
        }
        writer.finish().await.map(shown).map_err(failed)
    });
    written.await
}

/// The entries of a directory; see [`LiveFiles::list_files`](nullspace_service::LiveFiles::list_files).
pub(super) async fn list(live: &Live, at: FileAt, depth: Depth, memory: &dyn Memory) -> Result<Vec<FileInfo>> {
    let listing = live.using(|agent| async move {
        let mut exhausted = None;
        let may_keep = |bytes| memory.grow(bytes).map_err(|refused| exhausted = Some(refused)).is_ok();
        let (user, base) = live.origin(at.user, &at.path);
        let listed = agent.list_files_while(user, base, &at.path, depth.get(), may_keep).await;
        match exhausted {
            Some(exhausted) => Err(exhausted.into()),
            None => Ok(listed.map_err(failed)?.into_iter().map(shown).collect()),
        }
    });
    listing.await
}

/// Whether the path exists.
pub(super) async fn exists(live: &Live, at: FileAt) -> Result<bool> {
    let asked = live.using(|agent| async move {
        let (user, base) = live.origin(at.user, &at.path);
        match agent.file_entry(user, base, FileOp::Info { path: at.path }).await {
            Ok(_) => Ok(true),
            Err(AgentError::Failed(failure)) if failure.kind == FailureKind::FileNotFound => Ok(false),
            Err(error) => Err(failed(error)),
        }
    });
    asked.await
}

/// Runs an operation that is answered with an entry.
pub(super) async fn entry(live: &Live, at: FileAt, op: impl FnOnce(String) -> FileOp) -> Result<FileInfo> {
    let (user, base) = live.origin(at.user, &at.path);
    let op = op(at.path);
    let entry = live.using(|agent| async move { agent.file_entry(user, base, op).await.map(shown).map_err(failed) });
    entry.await
}

/// As [`entry`], for an operation that changes what is there.
pub(super) async fn change(live: &Live, at: FileAt, op: impl FnOnce(String) -> FileOp) -> Result<FileInfo> {
    check_reserved(&live.cwd, &at.path)?;
    entry(live, at, op).await
}

/// Renames an entry.
pub(super) async fn rename(live: &Live, at: FileAt, to: String) -> Result<FileInfo> {
    check_reserved(&live.cwd, &to)?;
    // The home of a user is asked for only where it is needed: an older agent does not know it.
    let relative = if at.path.starts_with('/') { &to } else { &at.path };
    let (user, base) = live.origin(at.user.clone(), relative);
    check_reserved(&live.cwd, &at.path)?;
    let op = FileOp::Rename { from: at.path, to };
    let entry = live.using(|agent| async move { agent.file_entry(user, base, op).await.map(shown).map_err(failed) });
    entry.await
}

/// Runs an operation without an answer, which changes what is there.
pub(super) async fn done(live: &Live, at: FileAt, op: impl FnOnce(String) -> FileOp) -> Result<()> {
    check_reserved(&live.cwd, &at.path)?;
    let (user, base) = live.origin(at.user, &at.path);
    let op = op(at.path);
    let done = live.using(|agent| async move { agent.file_done(user, base, op).await.map_err(failed) });
    done.await
}

/// Refuses to change what is reserved. It looks at the path's text alone: it keeps callers from accidents, and is no
/// boundary, since the sandbox is theirs.
pub(super) fn check_reserved(cwd: &str, path: &str) -> Result<()> {
    let mut parts = Vec::new();
    let given = Path::new(cwd).join(path);
    for part in given.components() {
        match part {
            Component::ParentDir => {
                parts.pop();
            }
            Component::Normal(part) => parts.push(part),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    let whole = Path::new("/").join(parts.into_iter().collect::<PathBuf>());
    if whole.starts_with(RESERVED) {
        return Err(Error::invalid(format!("{RESERVED} is reserved for the service: use another path")));
    }
    Ok(())
}

/// Parses permission bits in octal.
pub(super) fn mode(permissions: &str) -> Result<u32> {
    let octal = (1..=5).contains(&permissions.len()) && permissions.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mode = if octal { u32::from_str_radix(permissions, 8).ok().filter(|mode| *mode <= 0o7777) } else { None };
    mode.ok_or_else(|| Error::invalid(format!("permissions is {permissions:?}: it must be octal, such as 0644")))
}

impl Live {
    fn user(&self, asked: Option<String>) -> Option<String> {
        asked.filter(|user| !user.is_empty()).or_else(|| self.runtime.user.clone())
    }

    /// Who does a file operation, and where a relative path starts: at the sandbox's working directory, or at the home of a
    /// user whom the request names, when the working directory is only the template's.
    pub(super) fn origin(&self, asked: Option<String>, path: &str) -> (Option<String>, &str) {
        let named = asked.as_deref().is_some_and(|user| !user.is_empty());
        let home = named && !path.starts_with('/') && self.cwd == self.runtime.workdir;
        (self.user(asked), if home { HOME } else { &self.cwd })
    }
}

/// An entry in the terms of the API.
fn shown(entry: FileEntry) -> FileInfo {
    let kind = match entry.kind {
        FileKind::File => "file",
        FileKind::Dir => "dir",
        FileKind::Symlink => "symlink",
        FileKind::Special => "other",
    };
    let name = entry.path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/").to_owned();
    FileInfo {
        name,
        is_dir: entry.kind == FileKind::Dir,
        size: entry.size,
        kind: kind.into(),
        mode: Some(format!("{:04o}", entry.mode)),
        permissions: Some(letters(entry.kind, entry.mode)),
        owner: Some(entry.owner),
        group: Some(entry.group),
        modified_time: Timestamp::from_nanosecond(entry.modified_ns.into()).ok().map(Time::from),
        symlink_target: entry.target,
        path: entry.path,
    }
}

/// Kind and permission bits as `ls -l` shows them.
fn letters(kind: FileKind, mode: u32) -> String {
    let mut text = String::with_capacity(10);
    text.push(match kind {
        FileKind::File => '-',
        FileKind::Dir => 'd',
        FileKind::Symlink => 'l',
        FileKind::Special => '?',
    });
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        let run = match (mode & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
        };
        // Writing to a string cannot fail.
        let _ = write!(text, "{}{}{run}", if bits & 4 != 0 { 'r' } else { '-' }, if bits & 2 != 0 { 'w' } else { '-' });
    }
    text
}

pub(super) fn failed(error: AgentError) -> Error {
    match error {
        AgentError::Failed(failure) => match failure.kind {
            FailureKind::Invalid | FailureKind::UnknownUser | FailureKind::Limit => Error::invalid(failure.message),
            FailureKind::FileNotFound => Error::new(ErrorResponseCode::NotFound, failure.message),
            FailureKind::PermissionDenied => {
                Error { forbidden: true, ..Error::new(ErrorResponseCode::FileError, failure.message) }
            }
            _ => Error::new(ErrorResponseCode::FileError, failure.message),
        },
        AgentError::Lacking { .. } => Error::new(ErrorResponseCode::RebuildRequired, error.to_string()),
        AgentError::Timeout { .. } => {
            Error::new(ErrorResponseCode::ExecTimeout, "the sandbox did not answer in time while it worked on files")
        }
        other => {
            tracing::warn!(error = %chain(&other), "a file operation failed");
            Error::new(ErrorResponseCode::ExecFailed, "the sandbox stopped answering; create a new one")
        }
    }
}

#[cfg(test)]
mod tests {
    use nullspace_guest::capability::Capability;

    use super::*;

    #[test]
    fn what_an_older_agent_lacks_is_for_its_template_to_be_built_again() {
        let error = failed(AgentError::Lacking { capability: Capability::Files, version: 7 });
        assert_eq!(error.code, ErrorResponseCode::RebuildRequired);
        assert!(error.message.contains("cannot work on files: build the template again"), "{}", error.message);
    }

    #[test]
    fn what_is_reserved_is_found_by_its_path() {
        for (cwd, path, fits) in [
            ("/workspace", ".nullspace/x", false),
            ("/workspace", ".nullspace", false),
            ("/srv", "/workspace/./a/../.nullspace//x", false),
            ("/srv", "../workspace/.nullspace", false),
            ("/workspace", ".nullspaceignore", true),
            ("/workspace", "a/.nullspace", true),
            ("/", ".nullspace", true),
        ] {
            assert_eq!(check_reserved(cwd, path).is_ok(), fits, "{cwd} {path}");
        }
    }

    #[test]
    fn entries_are_shown_as_people_know_them() {
        let entry = |path: &str, kind, mode| FileEntry {
            path: path.into(),
            kind,
            size: 3,
            mode,
            owner: "app".into(),
            group: "100".into(),
            modified_ns: 1_700_000_000_123_456_789,
            target: None,
        };
        for (kind, mode, octal, letters) in [
            (FileKind::File, 0o644, "0644", "-rw-r--r--"),
            (FileKind::Dir, 0o1777, "1777", "drwxrwxrwt"),
            (FileKind::File, 0o4755, "4755", "-rwsr-xr-x"),
            (FileKind::File, 0o6640, "6640", "-rwSr-S---"),
            (FileKind::Dir, 0o1000, "1000", "d--------T"),
            (FileKind::Symlink, 0o777, "0777", "lrwxrwxrwx"),
        ] {
            let info = shown(entry("/a/b", kind, mode));
            assert_eq!((info.mode.as_deref(), info.permissions.as_deref()), (Some(octal), Some(letters)));
            assert_eq!((info.name.as_str(), info.path.as_str()), ("b", "/a/b"));
        }
        let root = shown(entry("/", FileKind::Dir, 0o755));
        assert_eq!((root.name.as_str(), root.kind.as_str(), root.is_dir), ("/", "dir", true));
        assert_eq!(root.modified_time.map(|time| time.to_string()).as_deref(), Some("2023-11-14T22:13:20.123456Z"));
    }
}
