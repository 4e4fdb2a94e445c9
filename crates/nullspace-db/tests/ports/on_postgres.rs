//! The tests beside these on a real PostgreSQL server, each on a schema of its own; and the copy of a database to one.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use nullspace_db::{
    Catalog as _, Expiring, KeySpec, Leased, NewKey, NewSandbox, NewSshAccess, PostgresStore, Queue as _,
    SandboxStatus, SnapshotKind, SqliteStore, WantedBlob, Webhook,
};
use nullspace_types::{BlobId, Caller, SshAccessId, TemplateRef};
use sqlx::{AssertSqlSafe, Connection, Database, Executor, PgConnection, Row};
use uuid::Uuid;

use crate::fixture::{
    DATABASE, DATABASE_FILES, Fixture, TTL, at, entry, failure, is_conflict, new_build, new_sandbox, new_snapshot,
};
use crate::server::Postgres;

/// Without `NULLSPACE_TEST_LONG`, one in so many of the tests runs, and all of `concurrency`: each makes a hundred tables and indexes.
const ONE_IN: usize = 5;

/// The names of the tests beside these.
fn beside() -> Vec<String> {
    let list = Command::new(std::env::current_exe().unwrap()).args(["--list", "--format", "terse"]).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let names =
        list.lines().filter_map(|line| line.strip_suffix(": test")).filter(|name| !name.starts_with("on_postgres::"));
    names.map(ToOwned::to_owned).collect()
}

#[test]
fn every_port_does_on_postgresql_what_it_does_on_sqlite() {
    let Some(server) = Postgres::start() else { return };
    let (concurrent, others): (Vec<_>, Vec<_>) =
        beside().into_iter().partition(|name| name.starts_with("concurrency::"));
    assert!(!concurrent.is_empty() && others.len() > 100, "{concurrent:?} {others:?}");
    let one_in = if std::env::var_os("NULLSPACE_TEST_LONG").is_some() { 1 } else { ONE_IN };
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--test-threads", "4"])
        .args(concurrent.iter().chain(others.iter().step_by(one_in)))
        .env(DATABASE, server.url("postgres"))
        .env(DATABASE_FILES, server.data())
        .stdin(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "on PostgreSQL, a test failed");
}

/// Every row of every table as a text, by the name of the table.
async fn rows<DB>(connection: &mut DB::Connection, columns: &[(String, String)]) -> BTreeMap<String, Vec<String>>
where
    DB: Database,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    for<'r> String: sqlx::Decode<'r, DB>,
    String: sqlx::Type<DB>,
    usize: sqlx::ColumnIndex<DB::Row>,
    <DB as Database>::Arguments: sqlx::IntoArguments<DB>,
{
    let mut found = BTreeMap::new();
    for (table, expression) in columns {
        let select = AssertSqlSafe(format!("SELECT {expression} FROM {table}"));
        let rows = sqlx::query::<DB>(select).fetch_all(&mut *connection).await.unwrap();
        let mut rows: Vec<String> = rows.iter().map(|row| row.get::<String, _>(0)).collect();
        rows.sort();
        found.insert(table.clone(), rows);
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_database_has_every_row_and_goes_on() {
    let Some(server) = Postgres::start() else { return };
    let url = server.url("postgres");
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    f.system().await;
    let artifact = f.ready(&caller, "web", &["default", "stable"], at(1)).await.artifact_id;
    let from: TemplateRef = "web".parse().unwrap();
    f.store.rename_template(&caller, &from, &"app".parse().unwrap(), at(2)).await.unwrap();
    let key = f.store.create_key(caller.tenant, &NewKey::generate(), KeySpec::default(), None, at(2)).await.unwrap();
    let webhook = Webhook {
        id: Uuid::now_v7(),
        tenant: caller.tenant,
        url: "https://example.com".to_owned(),
        operations: vec!["create".to_owned()],
        sealed_secret: vec![0, 255],
        enabled: true,
        created_at: at(2),
        updated_at: at(2),
        last: None,
    };
    f.store.insert_webhook(webhook, 4).await.unwrap();
    let asked = NewSandbox { sealed_envs: Some(vec![1, 0, 2]), ..new_sandbox(artifact) };
    f.store.insert_sandbox(&caller, asked.clone(), at(3)).await.unwrap();
    f.store.set_sandbox_status(asked.id, SandboxStatus::Running, None, at(3)).await.unwrap();
    f.store.record_snapshot(new_snapshot(asked.id, SnapshotKind::Kept), None, at(4)).await.unwrap();
    let with_key = Caller { key: Some(key.id), ..caller.clone() };
    let access = NewSshAccess { id: SshAccessId::new(), sandbox: asked.id, user: None, expires_at: at(100) };
    f.store.insert_ssh_access(&with_key, access, 4, at(4)).await.unwrap();
    // Builds of which one is removed, one is repeated with a file of its context and waits, and whose logs are compressed.
    f.accept(&caller, "app").await;
    let (lease, _) = f.run("w", at(5)).await;
    f.store.finish_error(&lease, failure(), at(5)).await.unwrap();
    let failed = f.accept(&caller, "app").await;
    let (lease, _) = f.run("w", at(6)).await;
    f.store.append_log(&lease, vec![entry("\u{e9} \"quoted\" \\u0000")]).await.unwrap();
    f.store.finish_error(&lease, failure(), at(6)).await.unwrap();
    while f.store.compact_log(at(50)).await.unwrap().is_some() {}
    let blob = BlobId::new(&"ab".repeat(32), 7).unwrap();
    f.store.put_blob(&caller, &blob, 100, at(6)).await.unwrap();
    let mut retry = new_build("app", &["default"]);
    retry.retry_of = Some(failed.id);
    retry.blobs = vec![WantedBlob { id: blob, force: true }];
    f.accept_with(&caller, retry).await;
    assert_eq!(f.store.remove_expired(Expiring::Builds, at(5), 10).await.unwrap(), 1);
    let address = f.address();
    let mut file = sqlx::SqliteConnection::connect(&format!("sqlite://{address}")).await.unwrap();
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name != '_sqlx_migrations'";
    let mut columns = Vec::new();
    for table in sqlx::query_scalar::<_, String>(tables).fetch_all(&mut file).await.unwrap() {
        let named = sqlx::query("SELECT name, type FROM pragma_table_info($1) ORDER BY name").bind(table.clone());
        let named = named.fetch_all(&mut file).await.unwrap();
        let texts: Vec<String> = named
            .iter()
            .map(|row| {
                let column = row.get::<String, _>(0);
                match row.get::<&str, _>(1) {
                    "BLOB" => format!("CASE WHEN \"{column}\" IS NULL THEN 'NULL' ELSE hex(\"{column}\") END"),
                    _ => format!("coalesce(CAST(\"{column}\" AS TEXT), 'NULL')"),
                }
            })
            .collect();
        columns.push((table, texts.join(" || ' | ' || ")));
    }
    let sqlite = SqliteStore::open(Path::new(&address)).await.unwrap();
    let target = PostgresStore::open(&url).await.unwrap();
    let copied = nullspace_db::copy(&sqlite, &target).await.unwrap();
    let before = rows::<sqlx::Sqlite>(&mut file, &columns).await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let after = rows::<sqlx::Postgres>(&mut connection, &columns).await;
    for (table, rows) in &before {
        assert_eq!(&after[table], rows, "{table}");
    }
    assert_eq!((copied.tables, copied.rows), (columns.len(), before.values().map(|rows| rows.len() as u64).sum()));
    for table in
        ["builds", "build_log", "build_log_segments", "blob_holds", "removed_artifacts", "snapshots", "ssh_accesses"]
    {
        assert!(!before[table].is_empty(), "{table}: nothing to copy");
    }
    // It is the same service that goes on.
    assert_eq!(target.resolve(&caller, &from).await.unwrap(), f.resolve(&caller, "web").await.unwrap());
    let leased = target.lease_build("w", TTL, u32::MAX, at(7)).await.unwrap();
    assert!(matches!(leased, Some(Leased::Run { build, .. }) if build.retry_of == Some(failed.id)));
    // Never into a database that is in use.
    let again = nullspace_db::copy(&sqlite, &target).await;
    assert!(is_conflict(&again), "{again:?}");
}
