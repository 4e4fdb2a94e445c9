//! What is to be built, as pure values: nothing here reads a file, asks a registry or knows a machine.
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
//! - [`problems`]: what is wrong with a request, and the limits of texts and paths.
//! - [`machine`], [`readiness`], [`runtime`]: the values that a machine is started with.
//! - [`context`]: the files that come with a request.
//! - [`steps`]: declarative steps; one file for each action.
//! - [`dockerfile`]: what a Dockerfile says.
//! - [`definition`]: all of it, as the database keeps it.
//! - [`keys`]: the cache keys.
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

pub mod sandbox;
pub mod validate;

pub use definition::{Definition, PlannedDockerfile, Source};
