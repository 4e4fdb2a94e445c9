//! The description of one build.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use secrecy::SecretString;

use crate::tree::Tree;

/// A login for one registry.
#[derive(Debug, Clone)]
pub struct Login {
    /// Name of the account.
    pub username: String,
    /// Its password or token.
    pub password: SecretString,
}

/// What a build is to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// The archive of an image.
    Image,
    /// The tar of an image's files, without its configuration.
    Files,
}

/// One build. `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct Job {
    /// A name that no other build of this BuildKit has: lower-case letters, digits and dashes.
    pub id: String,
    /// What is made of the context is reused only by jobs with this key; it should be a digest of whose context it is
    /// and what is in it.
    pub context_key: String,
    /// Files for COPY, ADD and bind mounts.
    pub context: Arc<Tree>,
    /// The Dockerfile, and its own ignore file (`<name>.dockerignore`) when there is one.
    pub dockerfile: Arc<Tree>,
    /// Path of the Dockerfile in [`dockerfile`](Self::dockerfile).
    pub filename: String,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Stage to build; `None` is the last.
    pub target: Option<String>,
    /// `linux/amd64` and the like.
    pub platform: String,
    /// Reuse no step.
    pub no_cache: bool,
    /// Whether steps have a network.
    pub network: bool,
    /// Steps of builds that differ in this share neither results nor cache mounts. Letters and digits, at most 40.
    pub cache_namespace: String,
    /// Secrets by id.
    pub secrets: BTreeMap<String, SecretString>,
    /// Logins by registry, as image references name it (`docker.io`).
    pub logins: BTreeMap<String, Login>,
    /// What is wanted of it.
    pub output: Output,
    /// Where the archive goes: a file that is not there yet.
    pub archive: PathBuf,
    /// Most bytes of that archive.
    pub archive_limit: u64,
    /// Name that an image has on a Docker Engine until it is saved: `repository`, without a tag.
    pub repository: String,
}
