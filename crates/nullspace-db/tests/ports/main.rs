//! What every implementation of [`Database`](nullspace_db::Database) promises, through its ports. Nothing here names a
//! database except [`fixture`]: each test runs on SQLite, and [`on_postgres`] runs them all on PostgreSQL.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cancel;
mod collection;
mod concurrency;
mod events;
mod finish;
mod fixture;
mod grants;
mod keys;
mod life;
mod logs;
mod model;
mod names;
mod on_postgres;
mod promotions;
mod queue;
mod retention;
mod sandboxes;
#[path = "../server/mod.rs"]
mod server;
mod snapshots;
mod ssh;
mod steps;
mod templates;
mod tenants;
mod warm_pools;
mod webhooks;
