//! The fake service's one sandbox: its commands, its one file and its processes.

mod git;
mod ports;
mod search;
pub(super) mod terminals;
mod uploads;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use nullspace_api::*;
use nullspace_service::{
    ByteStream, Depth, Error, Extent, FileAt, FileDownload, FilePart, FollowedCommand, LiveCommands, LiveFiles,
    LiveSandbox, Memory, PartDownload, Result,
};

use super::{Fake, MUCH};

/// The sandbox, for the caller whose it is.
pub(super) struct Live {
    pub(super) fake: Arc<Fake>,
    pub(super) id: String,
}

impl Live {
    /// Where a file operation works, as it is noted.
    fn shown(&self, at: &FileAt) -> String {
        let FileAt { path, user } = at;
        format!("FileAt {{ sandbox_id: {:?}, path: {path:?}, user: {user:?} }}", self.id)
    }
}

/// One file's content is kept, whatever its name; the other operations are noted.
#[async_trait]
impl LiveCommands for Live {
    async fn exec(&self, request: ExecRequest, memory: &dyn Memory) -> Result<ExecResponse> {
        self.fake.call(format!("{request:?}"));
        match request.command.as_str() {
            "slow" => Err(Error::new(ErrorResponseCode::ExecTimeout, "The command did not end within 30 s.")),
            "missing" => Err(Error::new(ErrorResponseCode::ExecFailed, "There is no `missing`.")),
            "sleep" => {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Ok(ExecResponse { exit_code: 0, stdout: "slept".into(), stderr: String::new(), pid: Some(8) })
            }
            "hang" => std::future::pending().await,
            "much" => {
                memory.grow(MUCH)?;
                Ok(ExecResponse { exit_code: 0, stdout: "\0".repeat(MUCH), stderr: String::new(), pid: Some(9) })
            }
            _ => Ok(ExecResponse { exit_code: 0, stdout: "out\n".into(), stderr: String::new(), pid: Some(7) }),
        }
    }

    async fn run_command(self: Arc<Self>, request: ExecRequest) -> Result<FollowedCommand> {
        self.run(request)
    }

    async fn connect_command(self: Arc<Self>, pid: u32) -> Result<FollowedCommand> {
        Self::connect(pid)
    }

    async fn send_stdin(&self, pid: u32, data: &[u8], close: bool) -> Result<()> {
        self.feed(pid, data)?;
        if close {
            self.fake.call(format!("stdin of {pid} is closed"));
        }
        Ok(())
    }

    async fn list_processes(&self) -> Result<Vec<ProcessInfo>> {
        Ok(vec![ProcessInfo { pid: 7, command: "python3 -m http.server".into(), running: true }])
    }

    async fn kill_process(&self, pid: u32, signal: i32) -> Result<()> {
        self.fake.call(format!("kill_process {} {pid} {signal}", self.id));
        Ok(())
    }

    async fn process_logs(&self, pid: u32) -> Result<ProcessLogs> {
        let text = pid.to_string();
        Ok(ProcessLogs { stdout: text.clone(), stderr: String::new(), output: text, exit_code: None })
    }
}

#[async_trait]
impl LiveFiles for Live {
    async fn read_file(self: Arc<Self>, at: FileAt) -> Result<FileDownload> {
        let content = self.fake.file.lock().unwrap().clone();
        let content = content.ok_or_else(|| Error::new(ErrorResponseCode::NotFound, "no file"))?;
        let pieces: Vec<_> = content.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Ok(FileDownload { info: file(&at.path, content.len()), content: stream::iter(pieces).boxed() })
    }

    async fn read_file_part(self: Arc<Self>, at: FileAt, part: FilePart) -> Result<PartDownload> {
        let path = at.path.clone();
        let mut pieces = self.read_file(at).await?.content;
        let mut whole = Vec::new();
        while let Some(piece) = pieces.next().await {
            whole.extend_from_slice(&piece?);
        }
        let size = whole.len() as u64;
        let (start, length) = match part {
            FilePart::From { start, length } => (start, length.unwrap_or(size).min(size.saturating_sub(start))),
            FilePart::Last { length } => (size.saturating_sub(length), length.min(size)),
        };
        let info = file(&path, whole.len());
        if length == 0 {
            return Ok(PartDownload { info, extent: Extent::Nothing, content: stream::empty().boxed() });
        }
        let part = whole[start as usize..(start + length) as usize].to_vec();
        let content = stream::iter([Ok(Bytes::from(part))]).boxed();
        Ok(PartDownload { info, extent: Extent::Part { start, length }, content })
    }

    async fn write_file(&self, at: FileAt, mut content: ByteStream) -> Result<FileInfo> {
        self.fake.call(format!("write_file {} {:?}", at.path, at.user));
        if at.path.starts_with("/proc") {
            return Err(Error::new(ErrorResponseCode::NotFound, format!("`{}` cannot be written.", at.path)));
        }
        let mut whole = Vec::new();
        while let Some(piece) = content.next().await {
            whole.extend_from_slice(&piece.map_err(|_| Error::invalid("It broke off."))?);
        }
        let info = file(&at.path, whole.len());
        *self.fake.file.lock().unwrap() = Some(whole);
        Ok(info)
    }

    async fn list_files(&self, at: FileAt, depth: Depth, _: &dyn Memory) -> Result<Vec<FileInfo>> {
        self.fake.call(format!("list_files {} {}", self.shown(&at), depth.get()));
        if at.path == "/many" {
            return Ok((0..2000).map(|number| file(&format!("/many/{number}"), number)).collect());
        }
        Ok(vec![file("/a", 1), file("/b", 2)])
    }

    async fn file_info(&self, at: FileAt) -> Result<FileInfo> {
        Ok(file(&at.path, 3))
    }

    async fn file_exists(&self, at: FileAt) -> Result<bool> {
        Ok(at.path == "/here")
    }

    async fn make_dir(&self, at: FileAt) -> Result<()> {
        self.fake.call(format!("make_dir {}", self.shown(&at)));
        Ok(())
    }

    async fn remove_file(&self, at: FileAt) -> Result<()> {
        self.fake.call(format!("remove_file {}", self.shown(&at)));
        Ok(())
    }

    async fn rename_file(&self, at: FileAt, to: String) -> Result<FileInfo> {
        self.fake.call(format!("rename_file {} {to}", self.shown(&at)));
        Ok(file(&to, 3))
    }

    async fn set_file_permissions(&self, _: FileAt, permissions: &str) -> Result<()> {
        let message = format!("`/etc/passwd`: permission denied for {permissions}.");
        Err(Error { forbidden: true, ..Error::new(ErrorResponseCode::FileError, message) })
    }
}

impl LiveSandbox for Live {}

fn file(path: &str, size: usize) -> FileInfo {
    FileInfo {
        name: path.rsplit('/').next().unwrap_or_default().into(),
        path: path.into(),
        is_dir: false,
        size: size as u64,
        kind: "file".into(),
        mode: None,
        permissions: None,
        owner: None,
        group: None,
        modified_time: None,
        symlink_target: None,
    }
}
