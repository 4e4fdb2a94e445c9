//! Immutable objects: bytes under a name, in a folder or in an S3 store.
//!
//! ```text
//!   caller ── ObjectName, Bytes or File ──> Objects     limits, retries, lengths, parts in memory
//!                                             │
//!                                             ├── folder   work/ ──fsync──> objects/NAME, never replaced
//!                                             ├── S3       one request a call; parts of 8 MiB
//!                                             └── faults   tests: 503, half an answer, delays around either
//! ```
//! An object never changes. A second put of a name succeeds when the stored object has the same length, and is an error
//! otherwise: names are derived from the content, or used once. Callers verify the content of what they read; this crate
//! verifies lengths. [`Cache`] keeps downloaded objects as files of this host.
//!
//! The crate knows nothing of templates, chunks or tenants.
//! `docs/object-store.md` describes the settings.

mod backend;
mod cache;
mod counts;
mod error;
#[cfg(any(test, feature = "faults"))]
mod faults;
mod folder;
mod limits;
mod name;
mod objects;
mod read;
mod s3;
mod stop;
mod upload;

pub use backend::Entry;
pub use cache::{Cache, CacheStats, Cached};
pub use counts::Counts;
pub use error::{Error, Result};
#[cfg(any(test, feature = "faults"))]
pub use faults::Faults;
pub use limits::Limits;
pub use name::{InvalidName, MOST_NAME_BYTES, ObjectName};
pub use objects::{MOST_OBJECT_BYTES, MOST_READ_BYTES, Objects};
pub use s3::{InvalidSetting, S3Credentials, S3Settings};
pub use stop::Stop;
pub use upload::{PART_BYTES, PARTS_IN_MEMORY, PARTS_OF_A_CALL, PartsInMemory};

#[cfg(test)]
mod tests;
