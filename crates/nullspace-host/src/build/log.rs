//! The build's log on the host's side: control makes each entry durable before a call returns.

use std::sync::Arc;

use nullspace_api::{TemplateBuildLogEntry, TemplateBuildLogKind, TemplateBuildLogLevel};
use nullspace_host_interface::{BuildRecord, LogIds, Place, RecordError, entry};

/// Writes the log of one attempt. Cheap to clone.
#[derive(Clone)]
pub(crate) struct BuildLog {
    record: Arc<dyn BuildRecord>,
    ids: LogIds,
}

impl BuildLog {
    pub(crate) fn new(record: Arc<dyn BuildRecord>, ids: LogIds) -> BuildLog {
        BuildLog { record, ids }
    }

    /// Appends entries in their order; returns when they are durable.
    pub(crate) async fn append(&self, entries: Vec<TemplateBuildLogEntry>) -> Result<(), RecordError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.record.append(entries).await
    }

    /// Appends one line about `place`.
    pub(crate) async fn say(&self, place: impl Into<Place>, message: impl Into<String>) -> Result<(), RecordError> {
        self.append(vec![self.message(place, TemplateBuildLogLevel::Info, message)]).await
    }

    /// Makes a `message` entry, not appended yet.
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
}
