//! The steps of a build in its machine. `nullspace_definition::steps` says what they are; here their tasks are carried out.
//!
//! ```text
//!   Definition.steps ── lay ──> [unit, unit, …]   each with user, workdir and environment it runs in
//!                                   │
//!      layer_key(parent, unit)      ├─ found: the parent is that layer now                                     (stage)
//!                                   └─ not:   machine over the parent ── tasks (run) ── freeze, capture ── layer
//! ```
//! No process of a step outlives it, and only files of the root are kept.

mod copy;
mod run;
mod stage;
mod trust;

pub(crate) use stage::{Stage, Staged};
