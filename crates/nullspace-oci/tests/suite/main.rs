//! Tests of the crate from outside: archives, merges and registries made here, nothing from a network.

#![allow(missing_docs)]
// A helper that fails is a test that fails.
#![allow(clippy::unwrap_used)]

mod docker_registry;
mod import;
mod layer_cache;
mod layout;
mod merge_cases;
mod merge_model;
mod registry;
mod registry_auth;
mod support;
mod tar_reader;
mod umoci;
