//! Readers of a log get the same answers while it is compressed: through a cache that has read it before, through one that reads
//! on, and through a new one.

use nullspace_api::{TemplateBuildLogKind, TemplateBuildLogLevel};
use nullspace_db::{BuildBackend, FinishError, Leased, NamespaceKind, NewBuild, QueueLimits, SourceType, SqliteStore};
use nullspace_host_interface::entry;
use nullspace_types::ArtifactId;
use serde_json::json;

use super::*;
use crate::builds::shared_reads::{Limit, PAGE, Page};

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

/// A build of an image, to be accepted.
pub(crate) fn new_build() -> NewBuild {
    NewBuild {
        id: BuildId::new(),
        artifact_id: ArtifactId::new(),
        name: "web".parse().unwrap(),
        description: None,
        tags: vec!["default".parse().unwrap()],
        backend: BuildBackend::Native,
        source_type: SourceType::OciImport,
        definition: json!({}).into(),
        build_config: json!({}),
        source_digest: None,
        context_digest: None,
        dockerfile_digest: None,
        triggered_by: None,
        retry_of: None,
        original: None,
        max_attempts: 1,
        claim: None,
        idempotency: None,
        blobs: Vec::new(),
    }
}

/// A failed build with a log of several segments.
pub(crate) async fn failed(db: &dyn Database, caller: &Caller) -> Build {
    let build = new_build();
    let ids = LogIds { build: build.id, artifact: build.artifact_id };
    let said = |kind, text: String, second| {
        to_store(&entry(ids, kind, TemplateBuildLogLevel::Info, text), at(second)).unwrap()
    };
    let limits = QueueLimits { per_tenant: 10, total: 10 };
    let first = said(TemplateBuildLogKind::Start, "accepted".to_owned(), 0);
    db.accept_build(caller, build, first, limits, at(0)).await.unwrap();
    let leased = db.lease_build("w", Duration::from_secs(60), 1, at(1)).await.unwrap();
    let Some(Leased::Run { lease, .. }) = leased else { panic!("nothing to run") };
    for part in 0..30 {
        let lines = (0..40).map(|line| {
            let text = format!("line {part}/{line} {}", "é ".repeat(usize::try_from(line * line % 700).unwrap()));
            said(TemplateBuildLogKind::Message, text, part)
        });
        db.append_log(&lease, lines.collect()).await.unwrap();
    }
    let error = FinishError {
        phase: "build".to_owned(),
        message: "it failed".to_owned(),
        detail: json!({}),
        cache_summary: None,
        entry: said(TemplateBuildLogKind::Error, "it failed".to_owned(), 90),
    };
    db.finish_error(&lease, error, at(90)).await.unwrap()
}

type Answers = Vec<(u64, u64, Vec<TemplateBuildLogEntry>)>;

fn told(from: u64, page: Page<Arc<Build>, TemplateBuildLogEntry>) -> (u64, u64, Vec<TemplateBuildLogEntry>) {
    (from, page.end, page.entries.into_iter().map(Arc::unwrap_or_clone).collect())
}

/// Pages as a status request asks for them, and as followers do, from many offsets.
async fn answers(reads: &LogReads, source: &LogSource) -> Answers {
    let mut answers = Vec::new();
    for from in (0..1300).step_by(111).chain([1201, 1202, u64::MAX]) {
        for bytes in [1, 128 << 10, usize::MAX] {
            let page = reads.read(source.build, source, from, Limit { entries: PAGE, bytes }).await.unwrap();
            answers.push(told(from, page));
        }
    }
    answers
}

/// The whole log as a follower reads it.
async fn replay(reads: &LogReads, source: &LogSource, from: u64) -> Vec<TemplateBuildLogEntry> {
    let mut all: Vec<TemplateBuildLogEntry> = Vec::new();
    loop {
        let next = all.last().map_or(from, |entry| entry.offset + 1);
        let page = reads.read(source.build, source, next, Limit { entries: PAGE, bytes: 128 << 10 }).await.unwrap();
        let (_, end, entries) = told(next, page);
        all.extend(entries);
        if all.last().map_or(from, |entry| entry.offset + 1) >= end {
            return all;
        }
    }
}

#[tokio::test]
async fn readers_with_and_without_a_cache_see_the_same_log_while_it_is_compressed() {
    let dir = tempfile::TempDir::new().unwrap();
    let db: Arc<dyn Database> = Arc::new(SqliteStore::open(&dir.path().join("nullspace.db")).await.unwrap());
    let caller = db.ensure_tenant("acme", NamespaceKind::User, at(0)).await.unwrap().caller();
    let build = failed(&*db, &caller).await;
    let source = LogSource { db: Arc::clone(&db), caller: caller.clone(), build: build.id };
    let warm = LogReads::default();
    let (before, whole) = (answers(&warm, &source).await, replay(&warm, &source, 0).await);
    assert_eq!(whole.len(), 1202);
    assert!(whole.iter().zip(0..).all(|(entry, offset)| entry.offset == offset));
    // Has read the first part, and reads on in segments.
    let halfway = LogReads::default();
    halfway.read(build.id, &source, 0, Limit { entries: 100, bytes: usize::MAX }).await.unwrap();
    let mut steps = 0;
    while let Some(step) = db.compact_log(at(1000)).await.unwrap() {
        steps += 1;
        for (name, reads) in [("warm", &warm), ("half-way", &halfway), ("new", &LogReads::default())] {
            assert!(answers(reads, &source).await == before, "{name}, step {steps}: {step:?}");
            assert!(replay(reads, &source, 0).await == whole, "{name}, step {steps}");
            assert!(replay(reads, &source, 700).await == whole[700..], "{name}, step {steps}");
        }
    }
    assert!(steps > 2, "{steps}");
    // Another tenant finds no such build, whatever is in the cache.
    let other = db.ensure_tenant("other", NamespaceKind::User, at(0)).await.unwrap().caller();
    let other = LogSource { db: Arc::clone(&db), caller: other, build: build.id };
    let refused = warm.read(build.id, &other, 0, Limit { entries: 1, bytes: 1 }).await;
    assert_eq!(refused.unwrap_err().code, ErrorResponseCode::TemplateBuildNotFound);
}
