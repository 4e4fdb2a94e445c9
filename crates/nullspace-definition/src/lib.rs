//! Definitions of builds, as pure values: no file is read here, no registry is asked, and no machine is known.
//!
//! ```text
//!   request ── validate ──> Valid ── its source found ──> Definition ── kept with the build ──> a worker, anywhere
//!                │                                           │
//!                └ every problem at once                     ├─ steps: units, and what each does in a machine
//!                  (problems, context, steps, dockerfile)    └─ keys: of each layer and of the finished artifact
//! ```
//!
//! Each module uses only those above it:
//!
//! - [`problems`]: problems of a request, and limits of texts and paths.
//! - [`machine`], [`readiness`], [`runtime`]: the values that a machine is started with.
//! - [`context`]: the files that come with a request.
//! - [`steps`]: declarative steps; one file for each action.
//! - [`dockerfile`]: the outline of a Dockerfile.
//! - [`definition`]: the whole definition, as the database stores it.
//! - [`keys`]: the cache keys.
//! - [`egress`]: the egress policies of requests.
//! - [`validate`], [`sandbox`]: the rules of requests.

pub mod problems;

mod patterns;
mod shell;

pub mod machine;
pub mod readiness;
pub mod runtime;

pub mod context;

mod encoder;

pub mod steps;

pub mod dockerfile;

pub mod definition;

pub mod keys;

pub mod egress;
pub mod sandbox;
pub mod validate;

pub use definition::{Definition, PlannedDockerfile, Source};
