//! What PostgreSQL alone can do to a service: a server that goes away, other versions, other services, addresses with passwords.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../server/mod.rs"]
mod server;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nullspace_db::{DbError, Health, Keys, NamespaceKind, PostgresStore, Retention, SqliteStore, Tenants};
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection, Row};

use server::{PASSWORD, Postgres};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
/// What must happen by itself may take so long on a busy machine.
const SETTLE: Duration = Duration::from_secs(90);

async fn admin(server: &Postgres, statement: &'static str) {
    let mut connection = PgConnection::connect(&server.url("postgres")).await.unwrap();
    connection.execute(sqlx::raw_sql(statement)).await.unwrap();
    connection.close().await.unwrap();
}

/// An error and all its causes, as a log may have them.
fn told(error: &DbError) -> String {
    let mut text = format!("{error:?} {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(" {error}");
        cause = error.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_away_is_said_to_be_unavailable_and_serves_again_when_it_is_back() {
    let Some(mut server) = Postgres::start() else { return };
    let store = PostgresStore::open(&server.url("postgres")).await.unwrap();
    let lock = store.lock_for_service().await.unwrap();
    let lost = tokio::spawn(lock.lost());
    store.put_setting("kept", &json!(1), NOW).await.unwrap();
    server.stop();
    let refused = tokio::join!(store.ping(NOW), async { store.get_setting("kept").await.map(|_| ()) }, async {
        store.ensure_tenant("while away", NamespaceKind::User, NOW).await.map(|_| ())
    },);
    for error in [refused.0, refused.1, refused.2].map(Result::unwrap_err) {
        assert!(matches!(error, DbError::Unavailable(_)) && error.is_retryable(), "{error:?}");
        assert!(!error.is_storage_full(), "{error:?}");
    }
    server.run();
    let began = Instant::now();
    while let Err(error) = store.ping(NOW).await {
        assert!(matches!(error, DbError::Unavailable(_)) && began.elapsed() < SETTLE, "{error:?}");
    }
    assert_eq!(store.get_setting("kept").await.unwrap(), Some(json!(1)));
    store.ensure_tenant("afterwards", NamespaceKind::User, NOW).await.unwrap();
    assert_eq!(store.list_tenants().await.unwrap().len(), 1);
    // The service that was there has the lock again, and nobody else gets it.
    let second = PostgresStore::open(&server.url("postgres")).await.unwrap();
    let began = Instant::now();
    while let Ok(stolen) = second.lock_for_service().await {
        drop(stolen);
        assert!(began.elapsed() < SETTLE, "the lock was not taken again");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(!lost.is_finished());
    lost.abort();
    let _ = lost.await;
    let began = Instant::now();
    while second.lock_for_service().await.is_err() {
        assert!(began.elapsed() < SETTLE, "a service that has ended has the lock");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Broken connections alone, as behind a firewall that forgets them.
    admin(
        &server,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid() AND datname = 'postgres'",
    )
    .await;
    let began = Instant::now();
    while let Err(error) = store.ping(NOW).await {
        assert!(matches!(error, DbError::Unavailable(_)) && began.elapsed() < SETTLE, "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_opened_by_its_version_and_served_by_one_service() {
    let Some(server) = Postgres::start() else { return };
    let url = server.url("postgres");
    // A look makes nothing.
    let about = PostgresStore::about(&url).await.unwrap();
    assert!(about.starts_with("PostgreSQL 1") && about.contains(", database postgres, "), "{about}");
    assert!(columns_of_postgres(&server).await.is_empty());
    let store = PostgresStore::open(&url).await.unwrap();
    // One service; commands beside it work.
    let lock = store.lock_for_service().await.unwrap();
    let second = PostgresStore::open(&url).await.unwrap();
    let refused = second.lock_for_service().await.unwrap_err();
    assert!(matches!(&refused, DbError::Conflict { what } if what.contains("another service")), "{refused:?}");
    second.ensure_tenant("by a command", NamespaceKind::User, NOW).await.unwrap();
    drop(lock);
    // What the promise "when it returns `Ok`, the change survives the loss of power" rests on, whatever the server's defaults.
    admin(
        &server,
        "ALTER ROLE nullspace SET synchronous_commit = off;
         ALTER DATABASE postgres SET default_transaction_isolation = serializable;
         ALTER DATABASE postgres SET default_transaction_read_only = on;",
    )
    .await;
    let third = PostgresStore::open(&url).await.unwrap();
    admin(
        &server,
        "BEGIN READ WRITE;
         CREATE TABLE seen (what TEXT);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO seen VALUES (current_setting('synchronous_commit') || ', ' || current_setting('transaction_isolation'));
             RETURN new;
         END $$;
         CREATE TRIGGER note BEFORE INSERT ON settings FOR EACH ROW EXECUTE FUNCTION note();
         COMMIT;",
    )
    .await;
    third.put_setting("durable", &json!(1), NOW).await.unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let seen: Vec<String> = sqlx::query_scalar("SELECT what FROM seen").fetch_all(&mut connection).await.unwrap();
    assert_eq!(seen, ["on, read committed"]);
    // A text that the server cannot store is the request's fault.
    let zero = store.ensure_tenant("a", NamespaceKind::User, NOW).await.unwrap();
    let key = nullspace_db::NewKey::generate();
    let spec = nullspace_db::KeySpec { label: Some("a\0b".to_owned()), ..nullspace_db::KeySpec::default() };
    let refused = store.create_key(zero.id, &key, spec, None, NOW).await.unwrap_err();
    assert!(matches!(refused, DbError::Conflict { .. }), "{refused:?}");
    let space = store.give_back(0).await.unwrap();
    assert!(space.file_bytes > 1 << 20 && space.given_back == 0, "{space:?}");
    // A newer version's tables are refused, and nothing of them is changed.
    admin(&server, "BEGIN READ WRITE; INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'from the future', true, '\\x00', 0); COMMIT;")
        .await;
    let refused = PostgresStore::open(&url).await;
    assert!(matches!(refused, Err(DbError::Migrate(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_error_and_no_log_of_the_server_has_the_password() {
    let Some(server) = Postgres::start_with("scram-sha-256") else { return };
    let url = server.url("postgres");
    server.sql("ALTER SYSTEM SET log_statement = 'all'").unwrap();
    server.sql("SELECT pg_reload_conf()").unwrap();
    let store = PostgresStore::open(&url).await.unwrap();
    assert!(!format!("{store:?}").contains(PASSWORD));
    let wrong = url.replace(PASSWORD, "canary-wrong-secret");
    let missing = server.url("no_such_database");
    let nobody = "postgres://nullspace:canary-wrong-secret@127.0.0.1:1/postgres".to_owned();
    for url in [wrong, missing, nobody] {
        let error = PostgresStore::open(&url).await.unwrap_err();
        let told = told(&error);
        assert!(!told.contains(PASSWORD) && !told.contains("canary"), "{told}");
    }
    assert!(!server.log().contains("canary"));
}

/// Tables and columns, as `table.column`.
async fn columns_of_postgres(server: &Postgres) -> BTreeMap<String, String> {
    let mut connection = PgConnection::connect(&server.url("postgres")).await.unwrap();
    let columns = sqlx::query(
        "SELECT table_name || '.' || column_name, data_type || ' ' || is_nullable || coalesce(' ' || collation_name, '')
         FROM information_schema.columns WHERE table_schema = current_schema() AND table_name != '_sqlx_migrations'",
    );
    let rows = columns.fetch_all(&mut connection).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Both databases have the same tables, columns and indexes; texts are compared by their bytes on both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tables_are_those_of_sqlite() {
    let Some(server) = Postgres::start() else { return };
    PostgresStore::open(&server.url("postgres")).await.unwrap();
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("nullspace.db");
    SqliteStore::open(&path).await.unwrap().close().await;
    let mut file = sqlx::SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    let columns = sqlx::query(
        "SELECT m.name || '.' || c.name, c.type, c.\"notnull\" FROM sqlite_schema m JOIN pragma_table_info(m.name) c
         WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' AND m.name != '_sqlx_migrations'",
    );
    let expected: BTreeMap<String, String> = columns
        .fetch_all(&mut file)
        .await
        .unwrap()
        .iter()
        .map(|row| {
            let nullable = if row.get::<i64, _>(2) == 0 { "YES" } else { "NO" };
            let kind = match row.get::<&str, _>(1) {
                "TEXT" => format!("text {nullable} C"),
                "INTEGER" => format!("bigint {nullable}"),
                "BLOB" => format!("bytea {nullable}"),
                other => panic!("no column is {other}"),
            };
            (row.get(0), kind)
        })
        .collect();
    assert_eq!(columns_of_postgres(&server).await, expected);
    let named = "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY name";
    let named: Vec<String> = sqlx::query_scalar(named).fetch_all(&mut file).await.unwrap();
    let mut connection = PgConnection::connect(&server.url("postgres")).await.unwrap();
    let made = "SELECT CAST(indexname AS TEXT) FROM pg_indexes WHERE schemaname = current_schema() ORDER BY 1";
    let made: Vec<String> = sqlx::query_scalar(made).fetch_all(&mut connection).await.unwrap();
    let missing: Vec<_> = named.iter().filter(|index| !made.contains(index)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
