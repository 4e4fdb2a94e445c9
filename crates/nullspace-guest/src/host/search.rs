//! Searching in the guest's files, and replacing in them, seen from the host.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::files::{LISTING_COST, lines};
use super::link::OpenChannel;
use super::{Agent, AgentError};
use crate::file::FileOp;
use crate::message::Outcome;
use crate::search::{FoundLine, MAX_FILES, MAX_LINES, MAX_NAMES, Replace, Replaced, Searched, SkippedFile};

/// Bound of a wait for the next piece of an answer: a search tells nothing while it finds nothing.
const SEARCHING: Duration = Duration::from_secs(crate::search::MAX_SECS + 30);
/// Bound of a whole search: its answer also has to arrive.
const SEARCHED: Duration = Duration::from_secs(2 * crate::search::MAX_SECS + 60);
/// Bound of a replacement: a thousand files of a slow disk.
const REPLACING: Duration = Duration::from_secs(300);
/// Most bytes that say which files were skipped by a replacement.
const MAX_SKIPPED: usize = 4 * 1024 * 1024;

impl Agent {
    /// Searches the files below `path`, or the one file, for lines that match a regular expression. `may_keep` is asked as
    /// in [`Agent::list_files_while`].
    ///
    /// # Errors
    /// The agent's reason; [`AgentError::Lacking`] of an older agent.
    pub async fn find_lines(
        &self,
        user: Option<String>,
        cwd: &str,
        path: String,
        pattern: String,
        may_keep: impl FnMut(usize) -> bool,
    ) -> Result<(Vec<FoundLine>, Searched), AgentError> {
        let channel = self.file_channel(user, cwd, FileOp::FindLines { path, pattern })?;
        found(&channel, "find_lines", MAX_LINES, may_keep).await
    }

    /// Searches below `path` for entries whose names match a glob. `may_keep` is asked as in [`Agent::list_files_while`].
    ///
    /// # Errors
    /// As [`Agent::find_lines`].
    pub async fn find_names(
        &self,
        user: Option<String>,
        cwd: &str,
        path: String,
        pattern: String,
        may_keep: impl FnMut(usize) -> bool,
    ) -> Result<(Vec<String>, Searched), AgentError> {
        let channel = self.file_channel(user, cwd, FileOp::FindNames { path, pattern })?;
        found(&channel, "find_names", MAX_NAMES, may_keep).await
    }

    /// Replaces matches of a regular expression in files, and returns those in which it could not: at most [`MAX_FILES`] and some
    /// 4 MiB. `may_keep` is asked as in [`Agent::list_files_while`].
    ///
    /// # Errors
    /// As [`Agent::find_lines`]. With some of them, matches may have been replaced.
    pub async fn replace(
        &self,
        user: Option<String>,
        cwd: &str,
        replace: Replace,
        mut may_keep: impl FnMut(usize) -> bool,
    ) -> Result<(Vec<SkippedFile>, Replaced), AgentError> {
        let channel = self.file_channel(user, cwd, FileOp::Replace(replace))?;
        let mut cost = 0;
        let may_keep = |more| {
            cost += more;
            cost <= LISTING_COST * MAX_SKIPPED && may_keep(more)
        };
        match answer(&channel, "replace", (REPLACING, REPLACING), MAX_FILES, may_keep).await? {
            (skipped, Outcome::Replaced { replaced }) => Ok((skipped, replaced)),
            (_, other) => Err(AgentError::unexpected("replace", &other)),
        }
    }
}

/// Reads what a search has found, at most so many.
async fn found<T: DeserializeOwned>(
    channel: &OpenChannel,
    what: &'static str,
    most: usize,
    may_keep: impl FnMut(usize) -> bool,
) -> Result<(Vec<T>, Searched), AgentError> {
    match answer(channel, what, (SEARCHING, SEARCHED), most, may_keep).await? {
        (found, Outcome::Searched { searched }) => Ok((found, searched)),
        (_, other) => Err(AgentError::unexpected(what, &other)),
    }
}

/// Reads an answer of at most so many lines. The guest may be hostile: `each` bounds the wait for a piece of it, `whole` that for
/// all of it.
async fn answer<T: DeserializeOwned>(
    channel: &OpenChannel,
    what: &'static str,
    (each, whole): (Duration, Duration),
    most: usize,
    may_keep: impl FnMut(usize) -> bool,
) -> Result<(Vec<T>, Outcome), AgentError> {
    tokio::time::timeout(whole, lines(channel, what, each, most, may_keep))
        .await
        .map_err(|_| AgentError::timeout(what, whole))?
}
