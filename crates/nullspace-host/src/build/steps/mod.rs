//! The steps of a build, carried out in its machine. `nullspace_definition::steps` defines their tasks.
//!
//! ```text
//!   Definition.steps ── lay ──> [unit, unit, …]   each with user, workdir and environment it runs in
//!                                   │
//!      layer_key(parent, unit)      ├─ found: the parent is that layer now                                     (stage)
//!                                   └─ not:   machine over the parent ── tasks (run) ── freeze, capture ── layer
//! ```
//! Processes of a step end with it, and only files of the root filesystem are kept.

mod copy;
mod run;
mod stage;
mod trust;

pub(crate) use stage::{Stage, Staged};
