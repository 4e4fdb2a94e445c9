//! Accounting of caches: one call counts an answer in the build's summary and the metrics, and makes its log entry.

use std::sync::{Arc, Mutex, PoisonError};

use nullspace_api::{
    TemplateBuildCacheSummary, TemplateBuildLogEntry, TemplateBuildLogEntryCacheReason as CacheReason,
    TemplateBuildLogEntryCacheStatus as CacheStatus, TemplateBuildLogKind, TemplateBuildLogLevel,
};
use nullspace_host_interface::{BuildRecord, CacheKind, CacheLookup, Place, RecordError};

use super::log::BuildLog;

/// A cache's answer, or an addition to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The cache has it.
    Hit,
    /// The cache does not have it, or nothing compatible.
    Miss,
    /// The cache was bypassed for this reason.
    Bypass(CacheReason),
    /// It was added to the cache.
    Stored,
}

impl Answer {
    fn status(self) -> CacheStatus {
        match self {
            Answer::Hit => CacheStatus::Hit,
            Answer::Miss => CacheStatus::Miss,
            Answer::Bypass(_) => CacheStatus::Bypass,
            Answer::Stored => CacheStatus::Stored,
        }
    }

    fn reason(self) -> Option<CacheReason> {
        match self {
            Answer::Miss => Some(CacheReason::MissingOrIncompatible),
            Answer::Bypass(reason) => Some(reason),
            Answer::Hit | Answer::Stored => None,
        }
    }
}

/// The caches' answers to one attempt of a build.
pub(crate) struct CacheBook {
    log: BuildLog,
    record: Arc<dyn BuildRecord>,
    summary: Mutex<TemplateBuildCacheSummary>,
}

impl CacheBook {
    pub(crate) fn new(log: BuildLog, record: Arc<dyn BuildRecord>) -> CacheBook {
        CacheBook { log, record, summary: Mutex::default() }
    }

    /// The answers so far.
    pub(crate) fn summary(&self) -> TemplateBuildCacheSummary {
        *self.summary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answer about `count` things of this kind. Returns its log entry, which is not appended yet.
    pub(crate) fn note(
        &self,
        place: impl Into<Place>,
        kind: CacheKind,
        answer: Answer,
        count: u64,
        subject: &str,
        message: impl Into<String>,
    ) -> TemplateBuildLogEntry {
        self.add(kind, answer, count);
        TemplateBuildLogEntry {
            kind: TemplateBuildLogKind::Cache,
            cache_kind: Some(kind),
            cache_status: Some(answer.status()),
            cache_reason: answer.reason(),
            cache_subject: Some(subject.to_owned()),
            ..self.log.message(place, TemplateBuildLogLevel::Info, message)
        }
    }

    /// Counts one answer without a log entry of its own: the end of a build says that its artifact is stored.
    pub(crate) fn count(&self, kind: CacheKind, answer: Answer) {
        self.add(kind, answer, 1);
    }

    fn add(&self, kind: CacheKind, answer: Answer, count: u64) {
        let mut summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        *counter(&mut summary, kind, answer) += count;
        drop(summary);
        self.record.looked_up(CacheLookup { kind, status: answer.status() });
    }

    /// Counts one answer and appends its entry.
    pub(crate) async fn say(
        &self,
        place: impl Into<Place>,
        kind: CacheKind,
        answer: Answer,
        subject: &str,
        message: impl Into<String>,
    ) -> Result<(), RecordError> {
        let entry = self.note(place, kind, answer, 1, subject, message);
        self.log.append(vec![entry]).await
    }
}

/// The summary's counter of this answer.
fn counter(summary: &mut TemplateBuildCacheSummary, kind: CacheKind, answer: Answer) -> &mut u64 {
    match (kind, answer) {
        (CacheKind::Layer, Answer::Hit) => &mut summary.layer_hits,
        (CacheKind::Layer, Answer::Miss) => &mut summary.layer_misses,
        (CacheKind::Layer, Answer::Bypass(_)) => &mut summary.layer_bypasses,
        (CacheKind::Layer, Answer::Stored) => &mut summary.layer_stores,
        (CacheKind::FinalArtifact, Answer::Hit) => &mut summary.final_artifact_hits,
        (CacheKind::FinalArtifact, Answer::Miss) => &mut summary.final_artifact_misses,
        (CacheKind::FinalArtifact, Answer::Bypass(_)) => &mut summary.final_artifact_bypasses,
        (CacheKind::FinalArtifact, Answer::Stored) => &mut summary.final_artifact_stores,
        (CacheKind::FileBlob, Answer::Hit) => &mut summary.file_blob_hits,
        (CacheKind::FileBlob, Answer::Miss) => &mut summary.file_blob_misses,
        (CacheKind::FileBlob, Answer::Bypass(_)) => &mut summary.file_blob_bypasses,
        (CacheKind::FileBlob, Answer::Stored) => &mut summary.file_blob_stores,
    }
}
