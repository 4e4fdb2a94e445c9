//! Git repositories of a sandbox.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Secret;

/// Credentials for one git operation. They live as long as it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GitAuth {
    /// How the remote asks for them.
    pub kind: GitAuthKind,
    /// Of `https`: the user's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Of `https`: the password or token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Password, write_only)]
    pub password: Option<Secret>,
    /// Of `ssh`: the private key, as its file has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Password, write_only)]
    pub private_key: Option<Secret>,
    /// Of `ssh`: the passphrase of an encrypted key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Password, write_only)]
    pub passphrase: Option<Secret>,
}

/// Kind of credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GitAuthKind {
    /// User name and password, for `https://` and `http://` remotes.
    Https,
    /// A private key, for `ssh://` and `user@host:path` remotes.
    Ssh,
}

/// Clone a repository.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GitCloneRequest {
    /// URL of the repository, without credentials in it.
    pub url: String,
    /// Where to: missing, or an empty directory. A relative one starts at the sandbox's working directory.
    pub path: String,
    /// Branch or tag to check out; the remote's default branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Only so many commits of history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// Credentials of the remote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<GitAuth>,
}

/// A repository that was cloned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitCloneResponse {
    /// Where it is.
    pub path: String,
}

/// Add files to the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitAddRequest {
    /// The repository.
    pub path: String,
    /// Paths in it; everything that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<String>>,
}

/// Record a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitCommitRequest {
    /// The repository.
    pub path: String,
    /// Its message.
    pub message: String,
    /// Add everything that changed first. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_all: Option<bool>,
    /// Add these paths first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<String>>,
    /// Author and committer, with `author_email`; the repository's configured user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author_name: Option<String>,
    /// With `author_name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author_email: Option<String>,
}

/// A commit that was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitCommitResponse {
    /// Its hash.
    pub sha: String,
}

/// Push or pull.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GitSyncRequest {
    /// The repository.
    pub path: String,
    /// Name or URL of the remote; `origin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// The branch; what the repository's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Remember the remote branch as the branch's upstream. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_upstream: Option<bool>,
    /// Credentials of the remote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<GitAuth>,
}

/// What git said about a push or pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitSyncResponse {
    /// The end of git's output.
    pub summary: String,
}

/// Create or delete a branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitBranchRequest {
    /// The repository.
    pub path: String,
    /// The branch.
    pub name: String,
    /// Default `create`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<GitBranchRequestAction>,
    /// Move a branch that exists, or delete one that is not merged. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
}

/// What to do with a branch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GitBranchRequestAction {
    /// Create it at the current commit, without checking it out.
    #[default]
    Create,
    /// Delete it.
    Delete,
}

/// The branches of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitBranchList {
    /// The local branches, by name.
    pub branches: Vec<String>,
    /// The branch that is checked out, also one without a commit yet; absent for a detached HEAD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
}

/// Check out a branch, tag or commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitCheckoutRequest {
    /// The repository.
    pub path: String,
    /// Branch, tag or commit.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Create the branch first. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<bool>,
}

/// An operation that answers nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitOkResponse {
    /// True.
    pub ok: bool,
}

/// The state of a repository's working tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitStatus {
    /// True: no branch is checked out.
    pub detached: bool,
    /// True: nothing has changed, and nothing is untracked.
    pub clean: bool,
    /// What has changed.
    pub changed: Vec<GitChangedFile>,
    /// The branch that is checked out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Commits that the upstream branch does not have; absent without an upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u64>,
    /// Commits that only the upstream branch has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<u64>,
}

/// A path that has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitChangedFile {
    /// Path in the repository. An untracked directory is one entry, and ends with `/`.
    pub path: String,
    /// `modified`, `type_changed`, `added`, `deleted`, `renamed`, `copied`, `conflicted` or `untracked`: of the index, if it is
    /// staged, else of the working tree.
    pub status: String,
    /// Whether the index has a change.
    pub staged: bool,
    /// Whether the working tree has a change that the index lacks.
    pub unstaged: bool,
    /// Where a renamed or copied path comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_path: Option<String>,
}

/// The newest commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitLogResponse200 {
    /// Newest first.
    pub commits: Vec<GitCommit>,
}

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitCommit {
    /// Its hash.
    pub sha: String,
    /// Who wrote it.
    pub author_name: String,
    /// The author's address.
    pub author_email: String,
    /// When, by the author's clock: ISO 8601 with the author's offset.
    pub date: String,
    /// Its message, whole.
    pub message: String,
}
