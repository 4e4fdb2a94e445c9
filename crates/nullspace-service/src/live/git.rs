//! Git repositories in a running sandbox, by the `git` program of its image.

use async_trait::async_trait;
use nullspace_api::{
    GitAddRequest, GitBranchList, GitBranchRequest, GitCheckoutRequest, GitCloneRequest, GitCloneResponse, GitCommit,
    GitCommitRequest, GitCommitResponse, GitStatus, GitSyncRequest, GitSyncResponse,
};

use crate::{Memory, Result};

/// Git repositories in a running sandbox. Each operation runs `git` in the guest as the sandbox's default user, with a time limit
/// and without a terminal.
///
/// # Errors
/// `InvalidRequest` for a request that git would misread. `NotFound` when the path is no repository. `FileError` when the repository
/// does not allow the operation, and when the image has no git. `ExecFailed` when the remote refuses or is not reached.
/// `ExecTimeout` after the time limit.
#[async_trait]
pub trait LiveGit: Send + Sync + 'static {
    /// Clones a repository.
    async fn git_clone(&self, request: GitCloneRequest) -> Result<GitCloneResponse>;

    /// Returns the state of a repository's working tree. It is charged to `memory`.
    async fn git_status(&self, path: &str, memory: &dyn Memory) -> Result<GitStatus>;

    /// Adds files to the index.
    async fn git_add(&self, request: GitAddRequest) -> Result<()>;

    /// Records a commit.
    async fn git_commit(&self, request: GitCommitRequest) -> Result<GitCommitResponse>;

    /// Sends commits to a remote.
    async fn git_push(&self, request: GitSyncRequest) -> Result<GitSyncResponse>;

    /// Fetches commits of a remote, and merges them as the repository's configuration says.
    async fn git_pull(&self, request: GitSyncRequest) -> Result<GitSyncResponse>;

    /// Returns the local branches. They are charged to `memory`.
    async fn git_branches(&self, path: &str, memory: &dyn Memory) -> Result<GitBranchList>;

    /// Creates or deletes a branch.
    async fn git_branch(&self, request: GitBranchRequest) -> Result<()>;

    /// Checks out a branch, tag or commit.
    async fn git_checkout(&self, request: GitCheckoutRequest) -> Result<()>;

    /// Returns the newest `limit` commits, 1 to 1000; `None`: 50. They are charged to `memory`.
    async fn git_log(&self, path: &str, limit: Option<u32>, memory: &dyn Memory) -> Result<Vec<GitCommit>>;
}
