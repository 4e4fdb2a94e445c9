//! Dockerfile builds: BuildKit runs the Dockerfile, and our importer makes a root image from its archive.
//!
//! ```text
//!   plan, blobs, secrets ── Job ──> Pool: one BuildKit after another, until one builds; or the tenant's builder machine,
//!                                      │        and a new one if that is lost
//!                                      │ events ──> the build's log (log)     failures ──> the user's terms (answer)
//!                                      v
//!                       archive ── diff ids ── key ── root image there? ── no: import, publish ──> Prepared
//! ```
//! Steps of a Dockerfile run in BuildKit's containers. With builder machines ([`crate::builder`]) these are inside a microVM of
//! the tenant. Otherwise their isolation is the operator's choice of BuildKit, and its cache is separated by tenant where its
//! protocol allows it (contexts, cache mounts).

mod answer;
mod log;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use nullspace_api::{ErrorResponseCode, RequestSecrets, TemplateBuildLogLevel, TemplateFailurePhase as Phase};
use nullspace_buildkit::{BuildKit, Job, Login, Output, Source, Tree};
use nullspace_data::Scratch;
use nullspace_definition::PlannedDockerfile;
use nullspace_definition::context::PlannedEntry;
use nullspace_definition::dockerfile::{Host, elsewhere, registry_named};
use nullspace_host_interface::{BuildFailure, reason};
use nullspace_oci::layout::{Layout, LocalImage};
use nullspace_oci::platform::Platform;
use nullspace_service::{Error as ApiError, Result as ApiResult, chain};
use nullspace_types::{Blob, TenantId};
use tokio::sync::mpsc;

use super::import::{self, RootKey};
use super::prepare::Prepared;
use super::{Attempt, Error, image};
use crate::builder::{Builders, Lease};
use crate::failures;

/// Time for which a BuildKit that answered counts as reachable.
const FRESH: Duration = Duration::from_secs(10);
/// Largest archive of an image, bytes, when the request names no disk.
const ARCHIVE: u64 = 64 << 30;
/// Most registries and hosts of URLs that a Dockerfile may name.
const MAX_HOSTS: usize = 256;
/// Files of a context that are looked for, or downloaded, at a time.
const FILES: usize = 8;
/// Events that are buffered before the log.
const EVENTS: usize = 256;
/// The error text on a host without BuildKit.
const INSTALL: &str = "Dockerfile builds need BuildKit, and this service reaches none: the operator can make the root of builder \
    machines (make builder), or install Docker (Debian: apt-get install docker.io) or buildkitd and set `buildkit` to docker, \
    unix:///path or tcp://host:port";
/// Tries of a build on builder machines: the second is on a new one.
const MACHINES: usize = 2;

/// The BuildKits of this service.
pub(crate) struct Pool {
    kits: Vec<Arc<BuildKit>>,
    /// Used instead of `kits`.
    pub(crate) builders: Option<Arc<Builders>>,
    /// Repository of this service's images on a Docker Engine while they are fetched. No other service uses it.
    repository: String,
    /// Time of the last answer.
    answered: Mutex<Option<Instant>>,
}

impl Pool {
    /// A pool. `host` and `data` name this service: two services never share both.
    pub(crate) fn new(kits: Vec<BuildKit>, builders: Option<Arc<Builders>>, host: &str, data: &Path) -> Pool {
        let data = data.canonicalize().unwrap_or_else(|_| data.to_owned());
        let who = blake3::hash(format!("{host} {}", data.display()).as_bytes()).to_hex();
        let repository = format!("nullspace-build-{}", who.get(..16).unwrap_or(&who));
        let kits = kits.into_iter().map(Arc::new).collect();
        Pool { kits, builders, repository, answered: Mutex::default() }
    }

    /// Returns an error that says what to install or to set when no BuildKit answers, or no builder machine fits.
    pub(crate) async fn ensure_there(&self) -> ApiResult<()> {
        if let Some(builders) = &self.builders {
            let refused = |why| Err(ApiError::new(ErrorResponseCode::FeatureUnavailable, why));
            return builders.never().map_or(Ok(()), refused);
        }
        let answered = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        if answered.is_some_and(|at| at.elapsed() < FRESH) {
            return Ok(());
        }
        for kit in &self.kits {
            match kit.about().await {
                Ok(_) => {
                    *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                    return Ok(());
                }
                Err(error) => tracing::warn!(error = %chain(&error), "a BuildKit does not answer"),
            }
        }
        Err(ApiError::new(ErrorResponseCode::FeatureUnavailable, INSTALL))
    }

    /// Ends an idle builder machine, of this tenant or of any. False when there is none.
    pub(crate) async fn make_room(&self, of: Option<TenantId>) -> bool {
        match &self.builders {
            Some(builders) => builders.make_room(of).await,
            None => false,
        }
    }

    /// Removes images that builds of a killed process left on Docker Engines.
    pub(crate) async fn sweep(&self) {
        for kit in &self.kits {
            if let Err(error) = kit.sweep(&self.repository).await {
                tracing::debug!(%error, endpoint = %kit.endpoint(), "images of an earlier run could not be removed");
            }
        }
    }
}

impl Attempt {
    /// Builds the Dockerfile and imports the result.
    pub(crate) async fn dockerfile(&self, dockerfile: &PlannedDockerfile) -> Result<Prepared, Error> {
        let secrets = self.secrets()?;
        self.allowed(dockerfile).await?;
        let logins = self.logins(dockerfile, &secrets).await?;
        let context = self.context().await?;
        let archive = self.built(dockerfile, &secrets, logins, context).await?;

        let image = blocking(move || opened(archive)).await?;
        let digest = image.config_digest.to_string();
        self.record.set_source_digest(&digest).await?;
        let content = image.layers.iter().fold(0_u64, |sum, layer| {
            // A plain tar is as large as what is in it; a compressed one holds some times as much.
            let times = if layer.compression == nullspace_oci::manifest::Compression::None { 1 } else { 5 };
            sum.saturating_add(layer.size.saturating_mul(times))
        });
        let disk_bytes = import::disk_bytes(self.job.definition.machine.disk_mb, content / 5);
        let diff_ids: Vec<&str> = image.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let key = RootKey::of_layers(&diff_ids, disk_bytes, self.job.tenant);
        let (runtime, metadata) = (image::runtime(&image.config), image::metadata(&image.config));
        let rootfs = self
            .rootfs(&key, &digest, disk_bytes, |target, _| {
                let lines = import::Lines::new(self.log.clone(), &self.scope.tasks);
                image::import_local(image, target, lines)
            })
            .await?;
        self.prepared(rootfs, disk_bytes, runtime, Some(metadata))
    }

    /// Checks the registries and URLs that the Dockerfile's text names.
    async fn allowed(&self, dockerfile: &PlannedDockerfile) -> Result<(), BuildFailure> {
        let hosts = elsewhere(&dockerfile.text, &self.args(dockerfile));
        if hosts.len() > MAX_HOSTS {
            let message = format!("the Dockerfile names {} registries and hosts of URLs", hosts.len());
            let advice = format!("Use at most {MAX_HOSTS}.");
            return Err(BuildFailure::user(Phase::Prepare, reason::DOCKERFILE_INVALID, message, advice));
        }
        for (host, line) in hosts {
            let admitted = match &host {
                Host::Registry(registry) => self.builder.registry.admits_registry(registry).await,
                Host::Url(url) => self.builder.registry.admits(url).await,
            };
            admitted.map_err(|error| {
                let message = format!("line {line} of the Dockerfile: {error}");
                BuildFailure::user(Phase::Prepare, reason::ADDRESS_NOT_ALLOWED, message, image::LIST_IT)
                    .with("line", line)
            })?;
        }
        Ok(())
    }

    /// Build arguments: the request's, on top of its build-time variables.
    fn args(&self, dockerfile: &PlannedDockerfile) -> BTreeMap<String, String> {
        let mut args = self.job.definition.build_envs.clone();
        args.extend(dockerfile.args.clone());
        args
    }

    /// The files of the context, as paths that are valid while the build's folder exists.
    async fn context(&self) -> Result<Tree, Error> {
        let scratch = self.scope.scratch(&self.builder.files, &self.builder.disk)?;
        let context = &self.job.definition.context.0;
        let found: Vec<BoxFuture<'_, _>> =
            context.iter().map(|(path, entry)| self.source(&scratch, path, entry).boxed()).collect();
        let mut found = stream::iter(found).buffered(FILES);
        let mut tree = Tree::default();
        for (path, entry) in context {
            let Some(source) = found.try_next().await? else { break };
            let added = match source {
                None => tree.directory(path, entry.mode),
                Some(source) => tree.file(path, entry.mode, source),
            };
            added.map_err(|error| BuildFailure::internal(Phase::Prepare, &error))?;
        }
        Ok(tree)
    }

    /// The bytes of an entry of the context; `None` for a folder.
    async fn source(
        &self,
        scratch: &Scratch,
        path: &str,
        entry: &PlannedEntry,
    ) -> Result<Option<Source>, BuildFailure> {
        let named = entry.blob_id().transpose();
        let Some(id) = named.map_err(|error| BuildFailure::internal(Phase::Prepare, &error))? else { return Ok(None) };
        let bytes = id.bytes();
        let file = self.builder.files.blob_file(&Blob { tenant: self.job.tenant, id }, scratch).await;
        let file = file.map_err(|error| failures::context_file(Phase::Prepare, path, &error))?;
        let path = file.ok_or_else(|| failures::missing_file(path))?;
        Ok(Some(Source::File { path, bytes }))
    }

    /// Logins by registry. Cloud identities become passwords here, because BuildKit does not support them.
    async fn logins(
        &self,
        dockerfile: &PlannedDockerfile,
        secrets: &RequestSecrets,
    ) -> Result<BTreeMap<String, Login>, BuildFailure> {
        let base = dockerfile.base_registry.as_deref().zip(secrets.base_image_auth.as_ref());
        let others = secrets.registry_auth.iter().map(|entry| (entry.registry.as_str(), &entry.auth));
        // The host's serve whoever brings none, as they do when images are imported.
        let host = self.builder.registry.host_logins().map(|(registry, username, password)| {
            (registry.to_owned(), Login { username: username.to_owned(), password: password.clone() })
        });
        let mut logins: BTreeMap<String, Login> = host.collect();
        for (registry, auth) in others.chain(base) {
            let registry = registry_named(registry);
            let credentials = image::credentials(Some(auth.clone()));
            let login = self.builder.registry.login(registry, &credentials).await;
            if let Some((username, password)) = login.map_err(|error| image::refused(&error))? {
                logins.insert(registry.to_owned(), Login { username, password });
            }
        }
        Ok(logins)
    }

    /// The tenant's builder machine.
    async fn builder_machine(&self, builders: &Arc<Builders>) -> Result<Lease, Error> {
        let tenant = self.job.tenant;
        if builders.runs(tenant) {
            return Ok(builders.lease(tenant).await?);
        }
        self.log.say("prepare", "Starting the builder machine").await?;
        let began = Instant::now();
        let lease = builders.lease(tenant).await?;
        self.log.say("prepare", format!("Builder machine ready after {} ms", began.elapsed().as_millis())).await?;
        Ok(lease)
    }

    /// Ends a builder machine and removes its disk, also when this future is dropped.
    async fn discard(&self, lease: Lease, why: &'static str) -> Result<(), BuildFailure> {
        let discarding = self.scope.tasks.spawn(lease.discard(why));
        discarding.await.map_err(|error| BuildFailure::internal(Phase::Prepare, &error))
    }

    /// Builds on one of the BuildKits. Returns the archive's file.
    async fn built(
        &self,
        dockerfile: &PlannedDockerfile,
        secrets: &RequestSecrets,
        logins: BTreeMap<String, Login>,
        context: Tree,
    ) -> Result<PathBuf, Error> {
        let platform = Platform::host().ok_or_else(|| {
            BuildFailure::internal(Phase::Prepare, &format!("no OCI platform for {}", std::env::consts::ARCH))
        })?;
        let scratch = self.scope.scratch(&self.builder.files, &self.builder.disk)?;
        // What it takes is BuildKit's to say, later.
        let _room = self.builder.disk.room(0)?;
        let (filename, text) =
            folder(dockerfile, &context).map_err(|error| BuildFailure::internal(Phase::Prepare, &error))?;
        let tenant = self.job.tenant.to_string();
        let context_key = format!("{tenant} {}", self.job.context_digest.as_deref().unwrap_or("empty"));
        let mut job = Job {
            id: String::new(),
            context_key: blake3::hash(context_key.as_bytes()).to_hex().to_string(),
            context: Arc::new(context),
            dockerfile: Arc::new(text),
            filename,
            args: self.args(dockerfile),
            target: dockerfile.target.clone(),
            platform: platform.to_string(),
            no_cache: self.job.definition.skip_cache,
            network: self.job.definition.machine.internet_access,
            cache_namespace: blake3::hash(tenant.as_bytes()).to_hex().chars().take(32).collect(),
            secrets: secrets
                .build_secrets
                .iter()
                .map(|secret| (secret.id.clone(), secret.value.expose().to_owned().into()))
                .collect(),
            logins,
            output: Output::Image,
            archive: PathBuf::new(),
            archive_limit: self
                .job
                .definition
                .machine
                .disk_mb
                .map_or(ARCHIVE, |mib| (u64::from(mib) << 20).saturating_mul(2)),
            repository: self.builder.buildkits.repository.clone(),
        };
        let mut lost = false;
        let pool = &self.builder.buildkits;
        let tries = if pool.builders.is_some() { MACHINES } else { pool.kits.len() };
        for number in 0..tries {
            let lease = match &pool.builders {
                Some(builders) => Some(self.builder_machine(builders).await?),
                None => None,
            };
            let Some(kit) = lease.as_ref().map(Lease::kit).or_else(|| pool.kits.get(number).cloned()) else { break };
            job.id = format!("{}-{}-{number}", self.job.build.uuid().as_simple(), self.job.attempt);
            job.archive = scratch.path().join(format!("image-{number}.tar"));
            self.log.say("prepare", "Building the Dockerfile with BuildKit").await?;
            let (events, seen) = mpsc::channel(EVENTS);
            // A task of the scope's: when this future is dropped, the scope still waits for BuildKit to let go. It keeps the
            // builder machine meanwhile.
            let building = self.scope.tasks.spawn({
                let (job, cancel) = (Arc::new(job.clone()), self.scope.cancel.clone());
                async move { (kit.build(job, events, &cancel).await, lease) }
            });
            let mut log = log::Writer::new(&self.log, &self.cache, secrets, self.job.definition.skip_cache);
            log.follow(seen).await?;
            let (built, lease) = building.await.map_err(|error| BuildFailure::internal(Phase::Prepare, &error))?;
            let error = match built {
                Ok(_) => return Ok(job.archive),
                Err(error) => error,
            };
            let full = answer::ran_full(&error, &log.last_lines());
            let message = if matches!(error, nullspace_buildkit::Error::Unavailable { .. }) {
                tracing::warn!(error = %chain(&error), "a BuildKit was lost");
                lost = true;
                "BuildKit is unreachable or closed the connection"
            } else if number + 1 < tries && is_worn_out(lease.as_ref(), &error, full).await {
                "The disk of the builder machine is full"
            } else if let Some(lease) = lease.filter(|_| full) {
                let failure = answer::too_large(&error, &log, lease.disk_mib());
                self.discard(lease, "The disk of the builder machine is full").await?;
                return Err(failure.into());
            } else {
                return Err(answer::failure(&error, &log).into());
            };
            let entry = self.log.message("prepare", TemplateBuildLogLevel::Warn, message);
            self.log.append(vec![entry]).await?;
            if let Some(lease) = lease {
                let entry =
                    self.log.message("prepare", TemplateBuildLogLevel::Warn, "The builder machine is made anew");
                self.log.append(vec![entry]).await?;
                self.discard(lease, message).await?;
            }
        }
        let message = if lost {
            "no BuildKit could build the Dockerfile: each was unreachable or closed the connection"
        } else {
            "this service has no BuildKit"
        };
        let mut failure = BuildFailure::infrastructure(Phase::Prepare, reason::BUILDKIT_UNAVAILABLE, message);
        failure.suggested_action = "Try again; if it persists, tell the operator to look at BuildKit.".to_owned();
        Err(failure.into())
    }
}

/// Whether a builder machine has failed a build because images and cache of other ones fill its disk. `full`: it ran full.
async fn is_worn_out(lease: Option<&Lease>, error: &nullspace_buildkit::Error, full: bool) -> bool {
    use nullspace_buildkit::Error::{Failed, NotExported};
    match lease {
        Some(lease) if matches!(error, Failed(_) | NotExported { .. }) => {
            lease.had_others() && (full || lease.is_full().await)
        }
        _ => false,
    }
}

/// The folder with only the Dockerfile and its ignore file, as `docker build -f` sends it, and the Dockerfile's name in it.
fn folder(dockerfile: &PlannedDockerfile, context: &Tree) -> Result<(String, Tree), nullspace_buildkit::InvalidPath> {
    let name = dockerfile.path.rsplit('/').next().unwrap_or(&dockerfile.path).to_owned();
    let mut tree = Tree::default();
    tree.file(&name, None, Source::Memory(dockerfile.text.clone().into()))?;
    if let Some(source) = context.get(&format!("{}.dockerignore", dockerfile.path)) {
        tree.file(&format!("{name}.dockerignore"), None, source.clone())?;
    }
    Ok((name, tree))
}

fn opened(archive: PathBuf) -> Result<LocalImage, BuildFailure> {
    let platform = Platform::host().ok_or_else(|| {
        BuildFailure::internal(Phase::Prepare, &format!("no OCI platform for {}", std::env::consts::ARCH))
    })?;
    let layout = Layout::open(&archive).map_err(|error| import::invalid(&error))?;
    layout.resolve(platform, None).map_err(|error| import::invalid(&error))
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, BuildFailure> + Send + 'static,
) -> Result<T, BuildFailure> {
    let done = tokio::task::spawn_blocking(job).await;
    done.unwrap_or_else(|error| Err(BuildFailure::internal(Phase::Prepare, &error)))
}
