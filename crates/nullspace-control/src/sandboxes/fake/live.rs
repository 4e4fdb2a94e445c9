//! A running sandbox that does nothing.

use std::sync::Arc;

use async_trait::async_trait;
use nullspace_api::{
    CompleteUploadResponse, CreateUploadSessionRequest, ErrorResponseCode, ExecRequest, ExecResponse, FileInfo,
    ProcessInfo, ProcessLogs, UploadSessionInfo,
};
use nullspace_api::{
    GitAddRequest, GitBranchList, GitBranchRequest, GitCheckoutRequest, GitCloneRequest, GitCloneResponse, GitCommit,
    GitCommitRequest, GitCommitResponse, GitStatus, GitSyncRequest, GitSyncResponse,
};
use nullspace_api::{PtySessionInfo, PtyStart, ResizeRequest};
use nullspace_api::{ReplaceInFilesRequest, ReplaceResult, SearchMatch};
use nullspace_service::{
    ByteStream, Depth, Error, FileAt, FileDownload, FilePart, FollowedCommand, LiveCommands, LiveFiles, LiveGit,
    LivePorts, LiveSandbox, LiveSearch, LiveTerminals, LiveUploads, LiveWatches, Memory, PartDownload, PortStream,
    Result, Warned,
};
use nullspace_service::{FollowedTerminal, TerminalAt, UploadPart, WatchedDir};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A running sandbox that does nothing.
pub(super) struct Live;

fn nothing<T>() -> Result<T> {
    Err(Error::not_implemented("there is no machine"))
}

#[async_trait]
impl LiveCommands for Live {
    async fn exec(&self, _: ExecRequest, _: &dyn Memory) -> Result<ExecResponse> {
        nothing()
    }

    async fn run_command(self: Arc<Self>, _: ExecRequest) -> Result<FollowedCommand> {
        nothing()
    }

    async fn connect_command(self: Arc<Self>, _: u32) -> Result<FollowedCommand> {
        nothing()
    }

    async fn send_stdin(&self, _: u32, _: &[u8], _: bool) -> Result<()> {
        nothing()
    }

    async fn list_processes(&self) -> Result<Vec<ProcessInfo>> {
        nothing()
    }

    async fn kill_process(&self, _: u32, _: i32) -> Result<()> {
        nothing()
    }

    async fn process_logs(&self, _: u32) -> Result<ProcessLogs> {
        nothing()
    }
}

#[async_trait]
impl LiveFiles for Live {
    async fn read_file(self: Arc<Self>, _: FileAt) -> Result<FileDownload> {
        nothing()
    }

    async fn read_file_part(self: Arc<Self>, _: FileAt, _: FilePart) -> Result<PartDownload> {
        nothing()
    }

    async fn write_file(&self, _: FileAt, _: ByteStream) -> Result<FileInfo> {
        nothing()
    }

    async fn list_files(&self, _: FileAt, _: Depth, _: &dyn Memory) -> Result<Vec<FileInfo>> {
        nothing()
    }

    async fn file_info(&self, _: FileAt) -> Result<FileInfo> {
        nothing()
    }

    async fn file_exists(&self, _: FileAt) -> Result<bool> {
        nothing()
    }

    async fn make_dir(&self, _: FileAt) -> Result<()> {
        nothing()
    }

    async fn remove_file(&self, _: FileAt) -> Result<()> {
        nothing()
    }

    async fn rename_file(&self, _: FileAt, _: String) -> Result<FileInfo> {
        nothing()
    }

    async fn set_file_permissions(&self, _: FileAt, _: &str) -> Result<()> {
        nothing()
    }
}

#[async_trait]
impl LiveSearch for Live {
    async fn find_in_files(&self, _: FileAt, _: String, _: &dyn Memory) -> Result<Warned<Vec<SearchMatch>>> {
        nothing()
    }

    async fn search_files(&self, _: FileAt, _: String, _: &dyn Memory) -> Result<Warned<Vec<String>>> {
        nothing()
    }

    async fn replace_in_files(&self, _: ReplaceInFilesRequest, _: &dyn Memory) -> Result<ReplaceResult> {
        nothing()
    }
}

#[async_trait]
impl LiveWatches for Live {
    async fn watch_dir(self: Arc<Self>, _: FileAt, _: bool) -> Result<WatchedDir> {
        nothing()
    }
}

#[async_trait]
impl LiveUploads for Live {
    async fn create_upload(&self, _: CreateUploadSessionRequest, _: Option<String>) -> Result<UploadSessionInfo> {
        nothing()
    }

    async fn upload(&self, _: &str) -> Result<UploadSessionInfo> {
        nothing()
    }

    async fn upload_part(&self, _: UploadPart, _: ByteStream) -> Result<UploadSessionInfo> {
        nothing()
    }

    async fn complete_upload(&self, _: &str, _: Option<String>) -> Result<CompleteUploadResponse> {
        nothing()
    }

    async fn abort_upload(&self, _: &str) -> Result<()> {
        nothing()
    }
}

#[async_trait]
impl LiveTerminals for Live {
    async fn open_terminal(self: Arc<Self>, _: PtyStart) -> Result<FollowedTerminal> {
        nothing()
    }

    async fn connect_terminal(self: Arc<Self>, _: TerminalAt) -> Result<FollowedTerminal> {
        nothing()
    }

    async fn type_into_terminal(&self, _: u32, _: &[u8]) -> Result<()> {
        nothing()
    }

    async fn resize_terminal(&self, _: TerminalAt, _: ResizeRequest) -> Result<()> {
        nothing()
    }

    async fn list_terminals(&self) -> Result<Vec<PtySessionInfo>> {
        nothing()
    }

    async fn get_terminal(&self, _: TerminalAt) -> Result<PtySessionInfo> {
        nothing()
    }

    async fn kill_terminal(&self, _: TerminalAt) -> Result<()> {
        nothing()
    }
}

#[async_trait]
impl LivePorts for Live {
    /// Port 8000 answers 200 to every request, 8500 answers 500, 8404 says nothing that is HTTP, and 8999 nothing at all.
    async fn dial(self: Arc<Self>, port: u16) -> Result<PortStream> {
        let answer: &[u8] = match port {
            8000 => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            8500 => b"HTTP/1.1 500 Oops\r\n\r\n",
            8404 => b"220 ready for mail\r\n",
            8999 => b"",
            _ => return Err(Error::new(ErrorResponseCode::NotFound, "nothing listens")),
        };
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        tokio::spawn(async move {
            let mut request = [0; 1 << 10];
            // The test may have gone.
            let _ = theirs.read(&mut request).await;
            if answer.is_empty() {
                let _ = theirs.read(&mut request).await;
            }
            let _ = theirs.write_all(answer).await;
        });
        Ok(Box::new(ours))
    }
}

#[async_trait]
impl LiveGit for Live {
    async fn git_clone(&self, _: GitCloneRequest) -> Result<GitCloneResponse> {
        nothing()
    }

    async fn git_status(&self, _: &str, _: &dyn Memory) -> Result<GitStatus> {
        nothing()
    }

    async fn git_add(&self, _: GitAddRequest) -> Result<()> {
        nothing()
    }

    async fn git_commit(&self, _: GitCommitRequest) -> Result<GitCommitResponse> {
        nothing()
    }

    async fn git_push(&self, _: GitSyncRequest) -> Result<GitSyncResponse> {
        nothing()
    }

    async fn git_pull(&self, _: GitSyncRequest) -> Result<GitSyncResponse> {
        nothing()
    }

    async fn git_branches(&self, _: &str, _: &dyn Memory) -> Result<GitBranchList> {
        nothing()
    }

    async fn git_branch(&self, _: GitBranchRequest) -> Result<()> {
        nothing()
    }

    async fn git_checkout(&self, _: GitCheckoutRequest) -> Result<()> {
        nothing()
    }

    async fn git_log(&self, _: &str, _: Option<u32>, _: &dyn Memory) -> Result<Vec<GitCommit>> {
        nothing()
    }
}

impl LiveSandbox for Live {}
