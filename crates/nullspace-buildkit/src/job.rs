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

/// Form of a build's result.
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
    /// A name that is unique on this BuildKit: lower-case letters, digits and dashes.
    pub id: String,
    /// Results from the context are reused only by jobs with this key. It should be a digest of the context's owner and
    /// content.
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
    /// True: no step is reused.
    pub no_cache: bool,
    /// Whether steps have a network.
    pub network: bool,
    /// Steps of builds that differ in this share neither results nor cache mounts. Letters and digits, at most 40.
    pub cache_namespace: String,
    /// Secrets by id.
    pub secrets: BTreeMap<String, SecretString>,
    /// Logins by registry, as image references name it (`docker.io`).
    pub logins: BTreeMap<String, Login>,
    /// Form of the result.
    pub output: Output,
    /// Path of the archive, which must not exist.
    pub archive: PathBuf,
    /// Most bytes of that archive.
    pub archive_limit: u64,
    /// Name that an image has on a Docker Engine until it is saved: `repository`, without a tag.
    pub repository: String,
}
