//! Entries of a build's log: made on the host, stored by control.

use jiff::Timestamp;
use nullspace_api::{TemplateBuildLogEntry, TemplateBuildLogKind, TemplateBuildLogLevel};
use nullspace_types::{ArtifactId, BuildId};

/// Ids in every entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogIds {
    /// The build.
    pub build: BuildId,
    /// Its artifact.
    pub artifact: ArtifactId,
}

/// An entry's place in a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The phase.
    pub phase: &'static str,
    /// The step's number, from 1, and the number of steps.
    pub step: Option<(u32, u32)>,
}

impl From<&'static str> for Place {
    fn from(phase: &'static str) -> Place {
        Place { phase, step: None }
    }
}

/// An entry with a kind, a level and a message only. Control gives it its offset and time when it is stored.
pub fn entry(
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
