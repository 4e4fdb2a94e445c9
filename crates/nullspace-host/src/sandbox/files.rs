//! Files of a sandbox, through its agent: as the sandbox's default user unless the request names another, with relative paths
//! from its working directory. The guest's kernel checks the user's rights. No path here is a path of this host.

use std::fmt::Write as _;
use std::sync::Arc;

use futures::{StreamExt, stream};
use jiff::Timestamp;
use nullspace_api::{ErrorResponseCode, FileInfo, Time};
use nullspace_guest::file::{FileEntry, FileKind, FileOp};
use nullspace_guest::host::AgentError;
use nullspace_guest::message::FailureKind;
use nullspace_service::{ByteStream, Depth, FileAt, FileDownload, Memory};

use super::live::Live;
use nullspace_service::chain;
use nullspace_service::{Error, Result};

/// Opens a regular file for reading.
pub(super) async fn read(live: Arc<Live>, at: FileAt) -> Result<FileDownload> {
    let reader = live.agent()?.read_file(live.user(at.user), &live.cwd, &at.path).await.map_err(failed)?;
    let info = shown(reader.entry.clone());
    let content = stream::try_unfold((reader, live), |(mut reader, live)| async move {
        let piece = tokio::select! {
            biased;
            piece = reader.next() => piece.map_err(failed)?,
            () = live.ended.cancelled() => return Err(live.gone()),
        };
        Ok(piece.map(|piece| (piece, (reader, live))))
    });
    Ok(FileDownload { info, content: content.boxed() })
}

/// Creates a file or replaces its content; see [`LiveSandbox::write_file`](nullspace_service::LiveSandbox::write_file).
pub(super) async fn write(live: &Live, at: FileAt, mut content: ByteStream) -> Result<FileInfo> {
    let mut writer = live.agent()?.write_file(live.user(at.user), &live.cwd, &at.path).await.map_err(failed)?;
    while let Some(piece) = content.next().await {
        let piece = piece.map_err(|error| Error {
            source: Some(Arc::new(error)),
            ..Error::invalid("the content ended before it was whole")
        })?;
        tokio::select! {
            biased;
            written = writer.write(&piece) => written.map_err(failed)?,
            () = live.ended.cancelled() => return Err(live.gone()),
        }
    }
    writer.finish().await.map(shown).map_err(failed)
}

/// The entries of a directory; see [`LiveSandbox::list_files`](nullspace_service::LiveSandbox::list_files).
pub(super) async fn list(live: &Live, at: FileAt, depth: Depth, memory: &dyn Memory) -> Result<Vec<FileInfo>> {
    let mut exhausted = None;
    let may_keep = |bytes| memory.grow(bytes).map_err(|refused| exhausted = Some(refused)).is_ok();
    let agent = live.agent()?;
    let listed = agent.list_files_while(live.user(at.user), &live.cwd, &at.path, depth.get(), may_keep).await;
    match exhausted {
        Some(exhausted) => Err(exhausted.into()),
        None => Ok(listed.map_err(failed)?.into_iter().map(shown).collect()),
    }
}

/// Whether the path exists.
pub(super) async fn exists(live: &Live, at: FileAt) -> Result<bool> {
    let info = live.agent()?.file_entry(live.user(at.user), &live.cwd, FileOp::Info { path: at.path });
    match info.await {
        Ok(_) => Ok(true),
        Err(AgentError::Failed(failure)) if failure.kind == FailureKind::FileNotFound => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// Runs an operation that is answered with an entry.
pub(super) async fn entry(live: &Live, user: Option<String>, op: FileOp) -> Result<FileInfo> {
    let entry = live.agent()?.file_entry(live.user(user), &live.cwd, op).await;
    entry.map(shown).map_err(failed)
}

/// Runs an operation without an answer.
pub(super) async fn done(live: &Live, user: Option<String>, op: FileOp) -> Result<()> {
    live.agent()?.file_done(live.user(user), &live.cwd, op).await.map_err(failed)
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

fn failed(error: AgentError) -> Error {
    match error {
        AgentError::Failed(failure) => match failure.kind {
            FailureKind::Invalid | FailureKind::UnknownUser | FailureKind::Limit => Error::invalid(failure.message),
            FailureKind::FileNotFound => Error::new(ErrorResponseCode::NotFound, failure.message),
            FailureKind::PermissionDenied => {
                Error { forbidden: true, ..Error::new(ErrorResponseCode::FileError, failure.message) }
            }
            _ => Error::new(ErrorResponseCode::FileError, failure.message),
        },
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
    use super::*;

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
