//! Searching in many files of a running sandbox, and replacing what was found.

use async_trait::async_trait;
use nullspace_api::{ReplaceInFilesRequest, ReplaceResult, SearchMatch};

use crate::{FileAt, Memory, Result, Warned};

/// Searching in many files of a running sandbox, and replacing what was found. All of it is done as the request's user, and
/// within limits: a search that meets one answers what it has found, with a warning that there may be more.
#[async_trait]
pub trait LiveSearch: Send + Sync + 'static {
    /// Returns the lines below a directory, or of one file, that match a regular expression, in the order of paths. They are
    /// charged to `memory`.
    async fn find_in_files(&self, at: FileAt, pattern: String, memory: &dyn Memory)
    -> Result<Warned<Vec<SearchMatch>>>;

    /// Returns the paths below a directory whose names match a glob, in order. They are charged to `memory`.
    async fn search_files(&self, at: FileAt, pattern: String, memory: &dyn Memory) -> Result<Warned<Vec<String>>>;

    /// Replaces the matches of a regular expression in files, in place. A file in which that is not possible is named in the
    /// result, and the others are changed. The result is charged to `memory`; one that exceeds it is an error, and files may have
    /// been changed.
    async fn replace_in_files(&self, request: ReplaceInFilesRequest, memory: &dyn Memory) -> Result<ReplaceResult>;
}
