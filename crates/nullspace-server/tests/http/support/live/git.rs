//! Git repositories in a running sandbox: the fake's. It notes what it is asked.

use async_trait::async_trait;
use nullspace_api::*;
use nullspace_service::{Error, LiveGit, Memory, Result};

use super::Live;

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

impl Live {
    /// Notes a call. There is no repository at `/none`, no git in the sandbox for `/bare`, and the remote of `/refused` refuses.
    fn git(&self, path: &str, call: String) -> Result<()> {
        self.fake.call(call);
        match path {
            "/none" => Err(Error::new(ErrorResponseCode::NotFound, "there is no git repository at this path")),
            "/bare" => Err(Error::new(ErrorResponseCode::FileError, "git is not installed: apt_install")),
            "/refused" => Err(Error::new(ErrorResponseCode::ExecFailed, "the remote refuses the credentials")),
            "/slow" => Err(Error::new(ErrorResponseCode::ExecTimeout, "git took too long")),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl LiveGit for Live {
    async fn git_clone(&self, request: GitCloneRequest) -> Result<GitCloneResponse> {
        self.git(&request.path, format!("{request:?}"))?;
        Ok(GitCloneResponse { path: request.path })
    }

    async fn git_status(&self, path: &str, _: &dyn Memory) -> Result<GitStatus> {
        self.git(path, format!("git_status {path}"))?;
        let changed = GitChangedFile {
            path: "a".into(),
            status: "renamed".into(),
            staged: true,
            unstaged: false,
            original_path: Some("b".into()),
        };
        Ok(GitStatus {
            detached: false,
            clean: false,
            changed: vec![changed],
            branch: Some("main".into()),
            ahead: Some(1),
            behind: None,
        })
    }

    async fn git_add(&self, request: GitAddRequest) -> Result<()> {
        self.git(&request.path, format!("{request:?}"))
    }

    async fn git_commit(&self, request: GitCommitRequest) -> Result<GitCommitResponse> {
        self.git(&request.path, format!("{request:?}"))?;
        Ok(GitCommitResponse { sha: SHA.into() })
    }

    async fn git_push(&self, request: GitSyncRequest) -> Result<GitSyncResponse> {
        self.git(&request.path, format!("push {request:?}"))?;
        Ok(GitSyncResponse { summary: "pushed".into() })
    }

    async fn git_pull(&self, request: GitSyncRequest) -> Result<GitSyncResponse> {
        self.git(&request.path, format!("pull {request:?}"))?;
        Ok(GitSyncResponse { summary: "pulled".into() })
    }

    async fn git_branches(&self, path: &str, _: &dyn Memory) -> Result<GitBranchList> {
        self.git(path, format!("git_branches {path}"))?;
        Ok(GitBranchList { branches: vec!["main".into()], current: None })
    }

    async fn git_branch(&self, request: GitBranchRequest) -> Result<()> {
        self.git(&request.path, format!("{request:?}"))
    }

    async fn git_checkout(&self, request: GitCheckoutRequest) -> Result<()> {
        self.git(&request.path, format!("{request:?}"))
    }

    async fn git_log(&self, path: &str, limit: Option<u32>, _: &dyn Memory) -> Result<Vec<GitCommit>> {
        self.git(path, format!("git_log {path} {limit:?}"))?;
        Ok(vec![GitCommit {
            sha: SHA.into(),
            author_name: "A".into(),
            author_email: "a@b".into(),
            date: "2026-01-02T03:04:05+01:00".into(),
            message: "one".into(),
        }])
    }
}
