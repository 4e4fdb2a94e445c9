//! The log of a build: written once by the worker that holds the lease, durable before anyone sees it, replayed
//! identically for ever, followed live.
//!
//! ```text
//!  worker ── BuildLog::write ──> store (offset given, fsynced) ── LogHub::notify ──> followers read on, one for all
//! ```
//! Followers never get an entry that was not read from the store: a notification only says "look again", and what one of
//! them has read the others share ([`tails`](crate::tails)). A follower on another host, which no notification reaches,
//! looks again every [`POLL`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use nullspace_api::{
    ErrorResponseCode, TemplateBuildLogEntry, TemplateBuildLogEntryCacheKind, TemplateBuildLogEntryCacheReason,
    TemplateBuildLogEntryCacheStatus, TemplateBuildLogKind, TemplateBuildLogLevel,
};
use nullspace_store::{ArtifactId, Build, BuildId, Caller, Lease, LogEntry, Metadata, NewLogEntry, StoreError};
use tokio::sync::watch;

use crate::error::{Error, Result, Stored};
use crate::tails::{Source, Tails};

/// How long a follower waits for a notification before it looks again anyway.
pub(crate) const POLL: Duration = Duration::from_secs(1);

/// Tells followers in this process that a build's log has grown.
#[derive(Debug, Default)]
pub(crate) struct LogHub {
    builds: Mutex<HashMap<BuildId, watch::Sender<()>>>,
}

impl LogHub {
    /// Wakes the followers of a build and forgets builds that nobody follows.
    pub(crate) fn notify(&self, build: BuildId) {
        let mut builds = self.builds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = builds.get(&build)
            && sender.send(()).is_err()
        {
            builds.remove(&build);
        }
    }

    /// Hears each notification from now on.
    pub(crate) fn follow(self: &Arc<Self>, build: BuildId) -> Following {
        let mut builds = self.builds.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = builds.entry(build).or_insert_with(|| watch::channel(()).0).subscribe();
        Following { hub: Arc::clone(self), build, changed: Some(changed) }
    }
}

/// A follower of a build. Of a build without one nothing is kept: one that is over is never notified again.
#[derive(Debug)]
pub(crate) struct Following {
    hub: Arc<LogHub>,
    build: BuildId,
    /// Always there until it is dropped.
    changed: Option<watch::Receiver<()>>,
}

impl Following {
    /// What comes before this is known.
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

/// Ids that every entry repeats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogIds {
    pub(crate) build: BuildId,
    pub(crate) artifact: ArtifactId,
}

impl From<&Build> for LogIds {
    fn from(build: &Build) -> Self {
        LogIds { build: build.id, artifact: build.artifact_id }
    }
}

/// An entry with nothing but a kind, a level and a message. Offset and time are the store's to give.
pub(crate) fn entry(
    ids: LogIds,
    kind: TemplateBuildLogKind,
    level: TemplateBuildLogLevel,
    message: impl Into<String>,
) -> TemplateBuildLogEntry {
    TemplateBuildLogEntry {
        build_id: ids.build.to_string(),
        template_id: ids.artifact.to_string(),
        offset: 0,
        timestamp: Timestamp::UNIX_EPOCH.into(),
        kind,
        level,
        message: message.into(),
        error_detail: None,
        result: None,
        result_metadata: None,
        phase: None,
        step_index: None,
        total_steps: None,
        attempt: None,
        max_attempts: None,
        cache_kind: None,
        cache_status: None,
        cache_reason: None,
        cache_subject: None,
    }
}

/// The entry as the store keeps it.
pub(crate) fn to_store(entry: &TemplateBuildLogEntry, at: Timestamp) -> std::result::Result<NewLogEntry, StoreError> {
    let body = serde_json::to_value(entry)
        .map_err(|error| StoreError::Corrupt { what: format!("a log entry does not serialise: {error}") })?;
    Ok(NewLogEntry { at, body })
}

/// The entry as the API shows it. Offset, time and ids are the store's and the build's own: one body may stand in the logs
/// of several builds (those that end with their deleted template).
pub(crate) fn from_store(stored: LogEntry, ids: LogIds) -> std::result::Result<TemplateBuildLogEntry, StoreError> {
    let mut entry: TemplateBuildLogEntry = serde_json::from_value(stored.body)
        .map_err(|error| StoreError::Corrupt { what: format!("build_log.entry: {error}") })?;
    entry.build_id = ids.build.to_string();
    entry.template_id = ids.artifact.to_string();
    entry.offset = stored.offset;
    entry.timestamp = stored.at.into();
    Ok(entry)
}

/// What the readers of builds share.
pub(crate) type LogTails = Tails<BuildId, LogSource>;

/// A build and its log, for one caller.
pub(crate) struct LogSource {
    pub(crate) metadata: Arc<dyn Metadata>,
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
        let read = self.metadata.build_and_next_offset(&self.caller, self.build).await;
        let (build, end) = read.or_missing(|| self.missing())?;
        Ok((Arc::new(build), end))
    }

    async fn entries(&self, build: &Arc<Build>, from: u64, limit: u32) -> Result<Vec<TemplateBuildLogEntry>> {
        let read = self.metadata.log_entries(&self.caller, self.build, from, limit).await;
        let stored = read.or_missing(|| self.missing())?;
        let entries = stored.into_iter().map(|entry| from_store(entry, build.as_ref().into()));
        entries.collect::<std::result::Result<_, StoreError>>().stored()
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

/// Where in a build an entry belongs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The phase.
    pub(crate) phase: &'static str,
    /// Which of the steps, from 1, and how many there are.
    pub(crate) step: Option<(u32, u32)>,
}

impl From<&'static str> for Place {
    fn from(phase: &'static str) -> Place {
        Place { phase, step: None }
    }
}

/// The pen of the worker that holds the lease.
#[derive(Clone)]
pub(crate) struct BuildLog {
    metadata: Arc<dyn Metadata>,
    hub: Arc<LogHub>,
    lease: Lease,
    ids: LogIds,
}

impl BuildLog {
    pub(crate) fn new(metadata: Arc<dyn Metadata>, hub: Arc<LogHub>, lease: Lease, build: &Build) -> Self {
        BuildLog { metadata, hub, lease, ids: build.into() }
    }

    /// Appends entries in their order; returns when they are durable.
    pub(crate) async fn append(&self, entries: Vec<TemplateBuildLogEntry>) -> std::result::Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let now = Timestamp::now();
        let entries = entries.iter().map(|entry| to_store(entry, now)).collect::<std::result::Result<Vec<_>, _>>()?;
        self.metadata.append_log(&self.lease, entries).await?;
        self.hub.notify(self.ids.build);
        Ok(())
    }

    /// One line about what the build is doing in `phase`.
    pub(crate) async fn say(
        &self,
        place: impl Into<Place>,
        message: impl Into<String>,
    ) -> std::result::Result<(), StoreError> {
        self.append(vec![self.message(place, TemplateBuildLogLevel::Info, message)]).await
    }

    /// A `message` entry, not appended yet.
    pub(crate) fn message(
        &self,
        place: impl Into<Place>,
        level: TemplateBuildLogLevel,
        message: impl Into<String>,
    ) -> TemplateBuildLogEntry {
        let place = place.into();
        TemplateBuildLogEntry {
            phase: Some(place.phase.to_owned()),
            step_index: place.step.map(|(index, _)| index),
            total_steps: place.step.map(|(_, total)| total),
            ..entry(self.ids, TemplateBuildLogKind::Message, level, message)
        }
    }

    /// A cache lookup's or store's entry.
    pub(crate) async fn cache(
        &self,
        place: impl Into<Place>,
        kind: TemplateBuildLogEntryCacheKind,
        status: TemplateBuildLogEntryCacheStatus,
        reason: Option<TemplateBuildLogEntryCacheReason>,
        subject: &str,
        message: impl Into<String>,
    ) -> std::result::Result<(), StoreError> {
        self.append(vec![self.cache_entry(place, kind, status, reason, subject, message)]).await
    }

    /// The same, not appended yet.
    pub(crate) fn cache_entry(
        &self,
        place: impl Into<Place>,
        kind: TemplateBuildLogEntryCacheKind,
        status: TemplateBuildLogEntryCacheStatus,
        reason: Option<TemplateBuildLogEntryCacheReason>,
        subject: &str,
        message: impl Into<String>,
    ) -> TemplateBuildLogEntry {
        TemplateBuildLogEntry {
            kind: TemplateBuildLogKind::Cache,
            cache_kind: Some(kind),
            cache_status: Some(status),
            cache_reason: reason,
            cache_subject: Some(subject.to_owned()),
            ..self.message(place, TemplateBuildLogLevel::Info, message)
        }
    }
}

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
