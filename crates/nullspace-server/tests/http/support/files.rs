//! The fake service's one file, and its processes.

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use nullspace_api::*;
use nullspace_service::{ByteStream, Caller, Error, FileAt, FileDownload, Files, Memory, Processes, Result};

use super::{Fake, SANDBOX};

/// One file's content is kept, whatever its name; the other operations are noted.
#[async_trait]
impl Files for Fake {
    async fn read_file(&self, caller: &Caller, at: FileAt) -> Result<FileDownload> {
        Self::own(caller, &at.sandbox_id, SANDBOX, ErrorResponseCode::SandboxNotFound)?;
        let content = self.file.lock().unwrap().clone();
        let content = content.ok_or_else(|| Error::new(ErrorResponseCode::NotFound, "no file"))?;
        let pieces: Vec<_> = content.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Ok(FileDownload { info: file(&at.path, content.len()), content: stream::iter(pieces).boxed() })
    }

    async fn write_file(&self, caller: &Caller, at: FileAt, mut content: ByteStream) -> Result<FileInfo> {
        Self::own(caller, &at.sandbox_id, SANDBOX, ErrorResponseCode::SandboxNotFound)?;
        self.call(format!("write_file {} {:?}", at.path, at.user));
        let mut whole = Vec::new();
        while let Some(piece) = content.next().await {
            whole.extend_from_slice(&piece.map_err(|_| Error::invalid("It broke off."))?);
        }
        let info = file(&at.path, whole.len());
        *self.file.lock().unwrap() = Some(whole);
        Ok(info)
    }

    async fn list_files(&self, _: &Caller, at: FileAt, depth: u32, _: &dyn Memory) -> Result<Vec<FileInfo>> {
        self.call(format!("list_files {at:?} {depth}"));
        Ok(vec![file("/a", 1), file("/b", 2)])
    }

    async fn file_info(&self, _: &Caller, at: FileAt) -> Result<FileInfo> {
        Ok(file(&at.path, 3))
    }

    async fn file_exists(&self, _: &Caller, at: FileAt) -> Result<bool> {
        Ok(at.path == "/here")
    }

    async fn make_dir(&self, _: &Caller, at: FileAt) -> Result<()> {
        self.call(format!("make_dir {at:?}"));
        Ok(())
    }

    async fn remove_file(&self, _: &Caller, at: FileAt) -> Result<()> {
        self.call(format!("remove_file {at:?}"));
        Ok(())
    }

    async fn rename_file(&self, _: &Caller, at: FileAt, to: String) -> Result<FileInfo> {
        self.call(format!("rename_file {at:?} {to}"));
        Ok(file(&to, 3))
    }

    async fn set_file_permissions(&self, _: &Caller, _: FileAt, permissions: &str) -> Result<()> {
        let message = format!("`/etc/passwd`: permission denied for {permissions}.");
        Err(Error { forbidden: true, ..Error::new(ErrorResponseCode::FileError, message) })
    }
}

#[async_trait]
impl Processes for Fake {
    async fn list_processes(&self, caller: &Caller, id: &str) -> Result<Vec<ProcessInfo>> {
        Self::own(caller, id, SANDBOX, ErrorResponseCode::SandboxNotFound)?;
        Ok(vec![ProcessInfo { pid: 7, command: "python3 -m http.server".into(), running: true }])
    }

    async fn kill_process(&self, _: &Caller, id: &str, pid: u32) -> Result<()> {
        self.call(format!("kill_process {id} {pid}"));
        Ok(())
    }

    async fn process_logs(&self, _: &Caller, _: &str, pid: u32) -> Result<ProcessLogs> {
        let text = pid.to_string();
        Ok(ProcessLogs { stdout: text.clone(), stderr: String::new(), output: text, exit_code: None })
    }
}

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
