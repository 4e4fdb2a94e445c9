//! What every implementation of [`Database`](nullspace_db::Database) promises, through its ports. Nothing here names a
//! database except [`fixture`].

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cancel;
mod collection;
mod finish;
mod fixture;
mod model;
mod names;
mod queue;
mod sandboxes;
mod steps;
mod templates;
mod tenants;
