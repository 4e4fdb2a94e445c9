//! Build logs: written by the worker that holds the lease, durable before they are shown, replayed identically, and followed
//! live.
//!
//! ```text
//!  running build ── BuildRecord::append ──> store (offset given, fsynced) ── LogHub::notify ──> followers read on, one for all
//! ```
//! Followers only get entries that were read from the database. A notification only tells them to read again, and they share
//! the reads ([`shared_reads`](super::shared_reads)). Notifications do not reach a follower on another host; it reads again
//! every [`POLL`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use nullspace_api::{ErrorResponseCode, TemplateBuildLogEntry};
use nullspace_db::{Build, Database, DbError, LogEntry, NewLogEntry};
use nullspace_host_interface::LogIds;
use nullspace_types::{BuildId, Caller};
use tokio::sync::watch;

use super::shared_reads::{Source, Tails};
use crate::error::{Error, Result, Stored};

/// Longest wait of a follower for a notification before it reads again.
pub(crate) const POLL: Duration = Duration::from_secs(1);

/// Tells followers in this process that a build's log has grown.
#[derive(Debug, Default)]
pub(crate) struct LogHub {
    builds: Mutex<HashMap<BuildId, watch::Sender<()>>>,
}

impl LogHub {
    /// Wakes the followers of a build, and forgets builds without followers.
    pub(crate) fn notify(&self, build: BuildId) {
        let mut builds = self.builds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = builds.get(&build)
            && sender.send(()).is_err()
        {
            builds.remove(&build);
        }
    }

    /// Returns a follower that hears each notification from now on.
    pub(crate) fn follow(self: &Arc<Self>, build: BuildId) -> Following {
        let mut builds = self.builds.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = builds.entry(build).or_insert_with(|| watch::channel(()).0).subscribe();
        Following { hub: Arc::clone(self), build, changed: Some(changed) }
    }
}

/// A follower of a build. Only builds with followers are kept.
#[derive(Debug)]
pub(crate) struct Following {
    hub: Arc<LogHub>,
    build: BuildId,
    /// `Some` until it is dropped.
    changed: Option<watch::Receiver<()>>,
}

impl Following {
    /// Marks all notifications so far as seen.
    pub(crate) fn look(&mut self) {
        if let Some(changed) = &mut self.changed {
            changed.borrow_and_update();
        }
    }

    /// Waits for a notification after the last [`Following::look`].
    pub(crate) async fn changed(&mut self) {
        if let Some(changed) = &mut self.changed
            && changed.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut builds = self.hub.builds.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: of two that leave at once, one sees that nobody is left.
        self.changed = None;
        if builds.get(&self.build).is_some_and(|sender| sender.receiver_count() == 0) {
            builds.remove(&self.build);
        }
    }
}

/// Ids of a build's log entries.
pub(crate) fn ids(build: &Build) -> LogIds {
    LogIds { build: build.id, artifact: build.artifact_id }
}

/// The entry as the store keeps it.
pub(crate) fn to_store(entry: &TemplateBuildLogEntry, at: Timestamp) -> std::result::Result<NewLogEntry, DbError> {
    let body = serde_json::to_value(entry)
        .map_err(|error| DbError::Corrupt { what: format!("a log entry does not serialise: {error}") })?;
    Ok(NewLogEntry { at, body })
}

/// The entry as the API shows it. Offset, time and ids come from the row and the build, because several builds can share one
/// body: those that end with their deleted template.
pub(crate) fn from_store(stored: LogEntry, ids: LogIds) -> std::result::Result<TemplateBuildLogEntry, DbError> {
    let mut entry: TemplateBuildLogEntry = serde_json::from_value(stored.body)
        .map_err(|error| DbError::Corrupt { what: format!("build_log.entry: {error}") })?;
    entry.build_id = ids.build.to_string();
    entry.template_id = ids.artifact.to_string();
    entry.offset = stored.offset;
    entry.timestamp = stored.at.into();
    Ok(entry)
}

/// The shared reads of build logs.
pub(crate) type LogReads = Tails<BuildId, LogSource>;

/// The source of one caller's reads: a build and its log.
pub(crate) struct LogSource {
    pub(crate) db: Arc<dyn Database>,
    pub(crate) caller: Caller,
    pub(crate) build: BuildId,
}

impl LogSource {
    fn missing(&self) -> Error {
        Error::build_not_found(&self.build.to_string())
    }
}

impl Source for LogSource {
    type Row = Arc<Build>;
    type Entry = TemplateBuildLogEntry;
    type Error = Error;

    async fn row(&self) -> Result<(Arc<Build>, u64)> {
        let read = self.db.build_and_next_offset(&self.caller, self.build).await;
        let (build, end) = read.or_missing(|| self.missing())?;
        Ok((Arc::new(build), end))
    }

    async fn entries(&self, build: &Arc<Build>, from: u64, limit: u32) -> Result<Vec<TemplateBuildLogEntry>> {
        let read = self.db.log_entries(&self.caller, self.build, from, limit).await;
        let stored = read.or_missing(|| self.missing())?;
        let entries = stored.into_iter().map(|entry| from_store(entry, ids(build)));
        entries.collect::<std::result::Result<_, DbError>>().stored()
    }

    fn may_see(&self, build: &Arc<Build>) -> Result<()> {
        if build.tenant == self.caller.tenant { Ok(()) } else { Err(self.missing()) }
    }

    fn is_own(error: &Error) -> bool {
        error.code == ErrorResponseCode::TemplateBuildNotFound
    }

    fn size(entry: &TemplateBuildLogEntry) -> usize {
        // Of the rest of it little is on the heap; what ends a build has more, and comes once.
        size_of::<TemplateBuildLogEntry>() + entry.message.len() + 128
    }
}

#[cfg(test)]
pub(crate) mod compressed;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn followers_are_woken_and_leave_nothing_behind() {
        let hub = Arc::new(LogHub::default());
        let build = BuildId::new();
        let (mut first, second) = (hub.follow(build), hub.follow(build));
        first.look();
        hub.notify(build);
        first.changed().await;
        drop(first);
        assert_eq!(hub.builds.lock().unwrap().len(), 1);
        drop(second);
        // Readers of a thousand logs that nobody writes any more.
        let readers: Vec<_> = (0..1000).map(|_| hub.follow(BuildId::new())).collect();
        assert_eq!(hub.builds.lock().unwrap().len(), 1000);
        drop(readers);
        assert!(hub.builds.lock().unwrap().is_empty());
        hub.notify(build);
        assert!(hub.builds.lock().unwrap().is_empty());
    }

    #[test]
    fn followers_that_leave_at_once_leave_nothing_behind() {
        let hub = Arc::new(LogHub::default());
        let builds = [BuildId::new(), BuildId::new()];
        std::thread::scope(|scope| {
            for at in 0..8 {
                let (hub, build) = (&hub, builds[at % 2]);
                scope.spawn(move || (0..2000).for_each(|_| drop(hub.follow(build))));
            }
        });
        assert!(hub.builds.lock().unwrap().is_empty());
    }
}
