//! Files of a sandbox, through its agent: as the sandbox's default user unless told otherwise, relative paths from its working
//! directory. The guest's kernel judges what the user may do; no path here is ever one of this host.

use std::fmt::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use nullspace_api::{ErrorResponseCode, FileInfo, Time};
use nullspace_guest::file::{FileEntry, FileKind, FileOp};
use nullspace_guest::host::AgentError;
use nullspace_guest::message::FailureKind;
use nullspace_service::{ByteStream, FileAt, FileDownload, Files, Memory};
use nullspace_store::Caller;

use super::Live;
use crate::Engine;
use crate::error::{Error, Result};
use crate::failure::chain;

/// Deepest listing.
const MAX_DEPTH: u32 = 32;

#[async_trait]
impl Files for Engine {
    async fn read_file(&self, caller: &Caller, at: FileAt) -> Result<FileDownload> {
        let live = self.live(caller, &at.sandbox_id).await?;
        let reader = live.machine.agent.read_file(live.user(at.user), &live.cwd, &at.path).await.map_err(failed)?;
        let info = shown(reader.entry.clone());
        let content = stream::try_unfold((reader, live, at.sandbox_id), |(mut reader, live, id)| async move {
            let piece = tokio::select! {
                biased;
                piece = reader.next() => piece.map_err(failed)?,
                () = live.ended.cancelled() => return Err(Error::sandbox_not_found(&id)),
            };
            Ok(piece.map(|piece| (piece, (reader, live, id))))
        });
        Ok(FileDownload { info, content: content.boxed() })
    }

    async fn write_file(&self, caller: &Caller, at: FileAt, mut content: ByteStream) -> Result<FileInfo> {
        let live = self.live(caller, &at.sandbox_id).await?;
        let agent = &live.machine.agent;
        let mut writer = agent.write_file(live.user(at.user), &live.cwd, &at.path).await.map_err(failed)?;
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(|error| Error {
                source: Some(Arc::new(error)),
                ..Error::invalid("the content ended before it was whole")
            })?;
            tokio::select! {
                biased;
                written = writer.write(&piece) => written.map_err(failed)?,
                () = live.ended.cancelled() => return Err(Error::sandbox_not_found(&at.sandbox_id)),
            }
        }
        writer.finish().await.map(shown).map_err(failed)
    }

    async fn list_files(&self, caller: &Caller, at: FileAt, depth: u32, memory: &dyn Memory) -> Result<Vec<FileInfo>> {
        if !(1..=MAX_DEPTH).contains(&depth) {
            return Err(Error::invalid(format!("depth is {depth}: it must be 1 to {MAX_DEPTH}")));
        }
        let live = self.live(caller, &at.sandbox_id).await?;
        let mut exhausted = None;
        let may_keep = |bytes| memory.grow(bytes).map_err(|refused| exhausted = Some(refused)).is_ok();
        let agent = &live.machine.agent;
        let listed = agent.list_files_while(live.user(at.user), &live.cwd, &at.path, depth, may_keep).await;
        match exhausted {
            Some(exhausted) => Err(exhausted.into()),
            None => Ok(listed.map_err(failed)?.into_iter().map(shown).collect()),
        }
    }

    async fn file_info(&self, caller: &Caller, at: FileAt) -> Result<FileInfo> {
        let op = FileOp::Info { path: at.path.clone() };
        self.file_entry(caller, at, op).await
    }

    async fn file_exists(&self, caller: &Caller, at: FileAt) -> Result<bool> {
        let live = self.live(caller, &at.sandbox_id).await?;
        let info = live.machine.agent.file_entry(live.user(at.user), &live.cwd, FileOp::Info { path: at.path });
        match info.await {
            Ok(_) => Ok(true),
            Err(AgentError::Failed(failure)) if failure.kind == FailureKind::FileNotFound => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    async fn make_dir(&self, caller: &Caller, at: FileAt) -> Result<()> {
        let op = FileOp::MakeDir { path: at.path.clone() };
        self.file_entry(caller, at, op).await.map(drop)
    }

    async fn rename_file(&self, caller: &Caller, at: FileAt, to: String) -> Result<FileInfo> {
        let op = FileOp::Rename { from: at.path.clone(), to };
        self.file_entry(caller, at, op).await
    }

    async fn remove_file(&self, caller: &Caller, at: FileAt) -> Result<()> {
        let op = FileOp::Remove { path: at.path.clone() };
        self.file_done(caller, at, op).await
    }

    async fn set_file_permissions(&self, caller: &Caller, at: FileAt, permissions: &str) -> Result<()> {
        let octal =
            (1..=5).contains(&permissions.len()) && permissions.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let mode = if octal { u32::from_str_radix(permissions, 8).ok().filter(|mode| *mode <= 0o7777) } else { None };
        let Some(mode) = mode else {
            return Err(Error::invalid(format!("permissions is {permissions:?}: it must be octal, such as 0644")));
        };
        let op = FileOp::SetMode { path: at.path.clone(), mode };
        self.file_done(caller, at, op).await
    }
}

impl Engine {
    async fn file_entry(&self, caller: &Caller, at: FileAt, op: FileOp) -> Result<FileInfo> {
        let live = self.live(caller, &at.sandbox_id).await?;
        let entry = live.machine.agent.file_entry(live.user(at.user), &live.cwd, op).await;
        entry.map(shown).map_err(failed)
    }

    async fn file_done(&self, caller: &Caller, at: FileAt, op: FileOp) -> Result<()> {
        let live = self.live(caller, &at.sandbox_id).await?;
        live.machine.agent.file_done(live.user(at.user), &live.cwd, op).await.map_err(failed)
    }
}

impl Live {
    fn user(&self, asked: Option<String>) -> Option<String> {
        asked.filter(|user| !user.is_empty()).or_else(|| self.runtime.user.clone())
    }
}

/// An entry in the words of the API.
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
