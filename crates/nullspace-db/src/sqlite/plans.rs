//! The plans that SQLite makes of statements whose shape depends on the request.

use jiff::Timestamp;
use nullspace_types::{Caller, SandboxId, SnapshotId, TenantId};
use sqlx::{Execute, Row};
use uuid::Uuid;

use super::{SqliteStore, events::listing};
use crate::EventFilter;

/// Every kind of listing is found by an index, whatever else it asks.
#[tokio::test]
async fn no_listing_reads_the_whole_table() {
    let dir = tempfile::TempDir::new().unwrap();
    let store = SqliteStore::open(&dir.path().join("nullspace.db")).await.unwrap();
    let caller = Caller { tenant: TenantId::new(), namespace: "acme".to_owned(), key: None, read_only: false };
    let sandbox = Some(SandboxId::new());
    let rest = EventFilter {
        operation: Some("create".to_owned()),
        status: Some("succeeded".to_owned()),
        from: Some(Timestamp::UNIX_EPOCH),
        to: Some(Timestamp::UNIX_EPOCH),
        after: Some(Uuid::now_v7()),
        ascending: true,
        limit: 10,
        ..EventFilter::default()
    };
    for (filter, index) in [
        (EventFilter::default(), "events_tenant"),
        (EventFilter { sandbox, ..EventFilter::default() }, "events_sandbox"),
        (EventFilter { snapshot: Some(SnapshotId::new()), ..EventFilter::default() }, "events_snapshot"),
        (EventFilter { source: sandbox, ..EventFilter::default() }, "events_source"),
        (EventFilter { target: sandbox, ..EventFilter::default() }, "events_target"),
        (EventFilter { about: sandbox, ..EventFilter::default() }, "sqlite_autoindex_events_1"),
        (EventFilter { about: sandbox, source: sandbox, ..EventFilter::default() }, "sqlite_autoindex_events_1"),
    ] {
        let more = EventFilter {
            about: filter.about,
            sandbox: filter.sandbox,
            snapshot: filter.snapshot,
            source: filter.source,
            target: filter.target,
            ..rest.clone()
        };
        for filter in [filter, more] {
            let mut query = listing(&caller, &filter);
            let sql = format!("EXPLAIN QUERY PLAN {}", query.build().sql().as_str());
            let plan = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&store.readers).await.unwrap();
            let plan: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
            assert!(plan[0].contains(index), "{plan:?}");
            assert!(!plan.iter().any(|step| step.starts_with("SCAN")), "{plan:?}");
        }
    }
}
