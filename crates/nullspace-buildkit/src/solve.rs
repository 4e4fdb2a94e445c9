//! One build from a job to an archive.
//!
//! ```text
//!   connect ─ session ─┬─ Solve ──────────────> answer ─> [save from the engine] ─> archive
//!                      ├─ Status ─> Board ────> events
//!                      └─ the session's answers (files, secrets, logins, archive)
//! ```
//! To cancel a build is to drop the call of Solve. Status ends when BuildKit has stopped the build. The end is awaited, so
//! that no step of a cancelled build runs on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::buildkit::v1::{
    CacheOptions, Exporter, ListWorkersRequest, SolveRequest, StatusRequest, StatusResponse,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::connect::{Connector, Dial, Tls};
use crate::endpoint::Endpoint;
use crate::engine::Images;
use crate::error::Error;
use crate::failure::Failure;
use crate::job::{Job, Output};
use crate::progress::{Board, Event};
use crate::session::{self, Archives};

/// Time limit from the end of a solve to the end of its status. BuildKit ends a cancelled step's processes within it.
const SETTLE: Duration = Duration::from_secs(15);
/// Time limit of requests that need no work.
const ASK: Duration = Duration::from_secs(10);
/// Time limit to remove an image from an engine.
const REMOVE: Duration = Duration::from_secs(60);
/// First major version of the Docker Engine that sends images as archives.
const ARCHIVES: u32 = 23;

/// One BuildKit.
#[derive(Debug)]
pub struct BuildKit {
    connector: Connector,
    /// True once it has shown that it cannot send archives.
    no_archives: AtomicBool,
    /// True where steps with a network have that of BuildKit's host.
    host_network: bool,
}

/// A BuildKit's information about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its kind and version, as far as it tells.
    pub version: String,
    /// Platforms that it builds for.
    pub platforms: Vec<String>,
}

/// Form of a build's archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// The tar of an OCI image layout.
    Oci,
    /// The form of `docker save`.
    Docker,
    /// The files alone.
    Files,
}

impl BuildKit {
    /// A BuildKit without a connection. Without `tls`, the connection to a TCP endpoint is not encrypted.
    pub fn new(endpoint: Endpoint, tls: Option<Tls>) -> BuildKit {
        BuildKit { connector: Connector::new(endpoint, tls), no_archives: AtomicBool::new(false), host_network: false }
    }

    /// A BuildKit in a machine of its own. Its streams are opened by `dial`, each within `patience`; `endpoint` says what answers
    /// there, and names it in errors. Steps that have a network have the machine's: nothing else lives in it.
    pub fn in_machine(endpoint: Endpoint, dial: Arc<dyn Dial>, patience: Duration) -> BuildKit {
        let connector = Connector { endpoint, tls: None, through: Some(dial), patience };
        BuildKit { connector, no_archives: AtomicBool::new(false), host_network: true }
    }

    /// Its endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.connector.endpoint
    }

    fn unavailable(&self, what: impl std::fmt::Display) -> Error {
        Error::Unavailable { endpoint: self.endpoint().to_string(), what: what.to_string() }
    }

    /// Asks for its version and platforms.
    pub async fn about(&self) -> Result<About, Error> {
        let asked = async {
            let cannot = |error: std::io::Error| self.unavailable(format!("cannot be reached: {error}"));
            let mut control = self.connector.control().await.map_err(cannot)?;
            let workers = control.list_workers(ListWorkersRequest::default()).await;
            let workers = workers.map_err(|status| self.unavailable(refusal(&status)))?.into_inner().record;
            let platforms = workers.iter().flat_map(|worker| &worker.platforms);
            let platforms = platforms.map(|platform| format!("{}/{}", platform.os, platform.architecture)).collect();
            let version = match self.endpoint() {
                Endpoint::Docker(_) => {
                    let version = Images(&self.connector).version().await.map_err(cannot)?;
                    // It is not tried in vain.
                    if major(&version).is_some_and(|major| major < ARCHIVES) {
                        self.no_archives.store(true, Ordering::Relaxed);
                    }
                    format!("Docker Engine {version}")
                }
                _ => match workers.iter().find_map(|worker| worker.buildkit_version.as_ref()) {
                    Some(version) => format!("BuildKit {}", version.version),
                    None => "BuildKit".to_owned(),
                },
            };
            Ok(About { version, platforms })
        };
        let ask = ASK.max(self.connector.patience);
        let limit = |_| self.unavailable(format!("does not answer within {} s", ask.as_secs()));
        tokio::time::timeout(ask, asked).await.map_err(limit)?
    }

    /// Removes images that jobs of this repository left on an engine when their process was killed. Do not call it while a
    /// job runs.
    pub async fn sweep(&self, repository: &str) -> std::io::Result<()> {
        if let Endpoint::Docker(_) = self.endpoint() {
            let images = Images(&self.connector);
            for name in images.named(repository).await? {
                images.remove(&name).await?;
            }
        }
        Ok(())
    }

    /// Builds, and writes the image's archive to the job's file. Sends events meanwhile. Without a receiver the events stop,
    /// and the build goes on. When cancelled, it returns after BuildKit has stopped.
    pub async fn build(
        &self,
        job: Arc<Job>,
        events: mpsc::Sender<Event>,
        cancel: &CancellationToken,
    ) -> Result<Archive, Error> {
        let docker = matches!(self.endpoint(), Endpoint::Docker(_)) && job.output == Output::Image;
        if !(docker && self.no_archives.load(Ordering::Relaxed)) {
            let archives = Arc::new(Archives::new(job.archive.clone(), job.archive_limit));
            let (exporter, form): ((&str, &[(&str, &str)]), _) = match job.output {
                Output::Image => (("oci", &[("tar", "true"), ("compression", "uncompressed")]), Archive::Oci),
                Output::Files => (("tar", &[]), Archive::Files),
            };
            let solved = self.solve(&job, exporter, &archives, &events, cancel).await;
            match solved {
                Err(Error::Failed(failure)) if docker && lacks_exporter(&failure.message) => {
                    self.no_archives.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(archives.take_fault().unwrap_or(error)),
                Ok(()) if archives.is_whole() => return Ok(form),
                Ok(()) => {
                    return Err(archives.take_fault().unwrap_or_else(|| self.unavailable("sent no image")));
                }
            }
        }
        let name = format!("{}:{}", job.repository, job.id);
        let archives = Arc::new(Archives::new(job.archive.clone(), job.archive_limit));
        let images = Images(&self.connector);
        let solved = self.solve(&job, ("moby", &[("name", &name)]), &archives, &events, cancel).await;
        let saved = match solved {
            Err(error) => Err(error),
            Ok(()) => tokio::select! {
                biased;
                () = cancel.cancelled() => Err(Error::Cancelled),
                saved = images.save(&name, &archives) => saved,
            },
        };
        // Whatever became of it: a build that was cancelled may have named its image a moment before.
        match tokio::time::timeout(REMOVE, images.remove(&name)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, name, "an image could not be removed from the Docker Engine"),
            Err(_) => tracing::warn!(name, "an image could not be removed from the Docker Engine in time"),
        }
        saved.map(|()| Archive::Docker)
    }

    async fn solve(
        &self,
        job: &Arc<Job>,
        exporter: (&str, &[(&str, &str)]),
        archives: &Arc<Archives>,
        events: &mpsc::Sender<Event>,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let cannot = |error: std::io::Error| self.unavailable(format!("cannot be reached: {error}"));
        // BuildKit must not know a second try by the name of the first.
        let reference = format!("{}-{}", job.id, uuid::Uuid::new_v4().simple());
        let session = uuid::Uuid::new_v4().simple().to_string();
        let mut control = self.connector.control().await.map_err(cannot)?;
        let connected = self.connector.session(&mut control, &session, &job.context_key).await;
        let (io, moving) = connected.map_err(cannot)?;
        let serving = session::serve(io, Arc::clone(job), Arc::clone(archives));

        let request = request(job, exporter, &reference, &session, self.host_network);
        let mut asking = control.clone();
        // Its drop ends the call, and BuildKit the build.
        let mut solving = Some(Box::pin(async move { asking.solve(request).await.map(drop) }));
        let mut watching = Watching::new(control, reference);
        let (mut serving, mut moving) = (Box::pin(serving), moving);
        let mut outcome: Option<Result<(), Error>> = None;
        let mut board = Board::default();
        let mut deadline = Box::pin(tokio::time::sleep(SETTLE));
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled(), if outcome.is_none() => {
                    solving = None;
                    outcome = Some(Err(Error::Cancelled));
                    deadline.as_mut().reset(tokio::time::Instant::now() + SETTLE);
                }
                message = watching.next() => match message {
                    Some(message) => {
                        for event in board.apply(message) {
                            // Nobody listens: the build is what matters.
                            let _ = events.send(event).await;
                        }
                    }
                    // The answer may still be on its way.
                    None if outcome.is_some() => break,
                    None => {}
                },
                solved = async { match solving.as_mut() { Some(solving) => solving.await, None => std::future::pending().await } } => {
                    solving = None;
                    outcome = Some(solved.map_err(|status| self.refused(&status)));
                    if watching.is_over() {
                        break;
                    }
                    deadline.as_mut().reset(tokio::time::Instant::now() + SETTLE);
                }
                ended = &mut serving => {
                    if outcome.is_none() {
                        let why = ended.err().map(|error| format!(": {error}")).unwrap_or_default();
                        outcome = Some(Err(self.unavailable(format!("closed the session of the build{why}"))));
                    }
                    break;
                }
                () = &mut moving => moving = Box::pin(std::future::pending()),
                () = &mut deadline, if outcome.is_some() => {
                    tracing::warn!(endpoint = %self.endpoint(), "BuildKit does not say that a build is over");
                    break;
                }
            }
        }
        match outcome {
            Some(Err(Error::Failed(mut failure))) => {
                failure.step = board.failed();
                Err(Error::Failed(failure))
            }
            Some(outcome) => outcome,
            None => Err(self.unavailable("ended the build without a word")),
        }
    }

    /// The error of a refused solve: the build's failure, or BuildKit's.
    fn refused(&self, status: &Status) -> Error {
        let gone = match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Unimplemented | Code::ResourceExhausted => true,
            // A transport's end is told as one of these, with a source that a server's answer has not.
            Code::Unknown | Code::Internal | Code::Cancelled => std::error::Error::source(status).is_some(),
            _ => false,
        };
        let text = status.message();
        if gone
            || ["no active session", "failed to get session", "error reading from server", "transport is closing"]
                .iter()
                .any(|lost| text.contains(lost))
        {
            return self.unavailable(refusal(status));
        }
        Error::Failed(Failure::read(text, None))
    }
}

/// The first number of a version.
fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

fn refusal(status: &Status) -> String {
    let text: String = status.message().chars().take(300).collect();
    format!("stopped answering ({}: {text})", status.code())
}

/// `exporter "oci" could not be found`
fn lacks_exporter(text: &str) -> bool {
    text.contains("exporter") && text.contains("could not be found")
}

/// The status of one solve, message after message.
struct Watching {
    control: ControlClient<Channel>,
    reference: String,
    state: Watch,
}

enum Watch {
    Asking,
    Reading(Box<Streaming<StatusResponse>>),
    Over,
}

impl Watching {
    fn new(control: ControlClient<Channel>, reference: String) -> Watching {
        Watching { control, reference, state: Watch::Asking }
    }

    fn is_over(&self) -> bool {
        matches!(self.state, Watch::Over)
    }

    /// Returns the next message, `None` when BuildKit no longer knows the build, and never returns after that.
    async fn next(&mut self) -> Option<StatusResponse> {
        loop {
            match &mut self.state {
                Watch::Asking => {
                    let request = StatusRequest { r#ref: self.reference.clone() };
                    match self.control.clone().status(request).await {
                        Ok(stream) => self.state = Watch::Reading(Box::new(stream.into_inner())),
                        Err(status) => {
                            tracing::debug!(%status, "no status of a build");
                            self.state = Watch::Over;
                            return None;
                        }
                    }
                }
                Watch::Reading(stream) => match stream.message().await {
                    Ok(Some(message)) => return Some(message),
                    Ok(None) | Err(_) => {
                        self.state = Watch::Over;
                        return None;
                    }
                },
                Watch::Over => std::future::pending::<()>().await,
            }
        }
    }
}

fn request(
    job: &Job,
    exporter: (&str, &[(&str, &str)]),
    reference: &str,
    session: &str,
    host_network: bool,
) -> SolveRequest {
    let mut attrs: HashMap<String, String> = HashMap::new();
    for (name, value) in &job.args {
        attrs.insert(format!("build-arg:{name}"), value.clone());
    }
    let mut set = |name: &str, value: &str| attrs.insert(name.to_owned(), value.to_owned());
    set("filename", &job.filename);
    set("platform", &job.platform);
    // Images of the engine itself are its owner's, not for whoever writes FROM.
    set("image-resolve-mode", "pull");
    set("build-arg:BUILDKIT_CACHE_MOUNT_NS", &job.cache_namespace);
    // BuildKit keys a step by what it runs and not by the secrets it ran with: somebody else's result must not be found. A
    // line in the steps' /etc/hosts, which no image keeps, is a part of the key in every version.
    set("add-hosts", &format!("{}.cache.invalid=127.0.0.1", job.cache_namespace));
    if let Some(target) = &job.target {
        set("target", target);
    }
    if job.no_cache {
        set("no-cache", "");
    }
    let mut entitlements = Vec::new();
    if !job.network {
        set("force-network-mode", "none");
    } else if host_network {
        set("force-network-mode", "host");
        entitlements.push("network.host".to_owned());
    }
    let (kind, options) = exporter;
    let options: HashMap<String, String> =
        options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    SolveRequest {
        r#ref: reference.to_owned(),
        session: session.to_owned(),
        frontend: "dockerfile.v0".to_owned(),
        frontend_attrs: attrs,
        // Old servers read these two, new ones the list.
        exporter_deprecated: kind.to_owned(),
        exporter_attrs_deprecated: options.clone(),
        exporters: vec![Exporter { r#type: kind.to_owned(), attrs: options }],
        cache: Some(CacheOptions::default()),
        entitlements,
        ..SolveRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn steps_have_the_network_of_a_machine_only_where_nothing_else_lives_in_it() {
        let mut job = Job {
            id: "1".into(),
            context_key: "k".into(),
            context: Arc::default(),
            dockerfile: Arc::default(),
            filename: "Dockerfile".into(),
            args: BTreeMap::new(),
            target: None,
            platform: "linux/amd64".into(),
            no_cache: false,
            network: true,
            cache_namespace: "n".into(),
            secrets: BTreeMap::new(),
            logins: BTreeMap::new(),
            output: Output::Image,
            archive: PathBuf::new(),
            archive_limit: 1,
            repository: "r".into(),
        };
        for (network, in_machine, mode, granted) in [
            (true, true, Some("host"), true),
            (true, false, None, false),
            (false, true, Some("none"), false),
            (false, false, Some("none"), false),
        ] {
            job.network = network;
            let request = request(&job, ("oci", &[]), "reference", "session", in_machine);
            assert_eq!(request.frontend_attrs.get("force-network-mode").map(String::as_str), mode);
            assert_eq!(request.entitlements, Vec::from_iter(granted.then_some("network.host")));
        }
    }
}
