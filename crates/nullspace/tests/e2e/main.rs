//! The service as its users meet it: over HTTP, with images from a real registry, in real microVMs.
//!
//! ```text
//!   test ──HTTP──> nullspace serve ──pull──> docker-registry <──push── images made of Debian packages
//!                      └── QEMU or Firecracker ── guest
//! ```
//! The driver is the service's own choice, or `NULLSPACE_VMM`. A test that ends leaves nothing on the host; that is a
//! part of every test (see `fixture::service`). Needs `make guest`, some also `make base`.

// The fixture is test code too, which clippy's exception for tests does not see.
#![allow(clippy::unwrap_used)]

mod fixture;

mod artifacts;
mod bad_input;
mod base;
mod builders;
mod cache;
mod cancel;
mod commands;
mod containers;
mod crash;
mod credentials;
mod deadlines;
mod dockerfiles;
mod downloads;
mod egress;
mod environment;
mod exec;
mod faults;
mod files;
mod git;
mod growth;
mod hosts;
mod images;
mod keys;
mod life;
mod lifecycle;
mod names;
mod network;
mod parents;
mod pauses;
mod ports;
mod postgresql;
mod promotions;
mod queue;
mod readiness;
mod registries;
mod room;
mod s3;
mod sandboxes;
mod searches;
mod shutdown;
mod sockets;
mod spine;
mod ssh;
mod steps;
mod stop;
mod store;
mod tenants;
mod terminals;
mod trees;
mod trial;
mod unique;
mod upgrades;
mod uploads;
mod warm_pools;
