//! OCI images: resolving references, an image's runtime settings, and errors of registries in the user's terms.

use std::path::PathBuf;
use std::sync::Arc;

use nullspace_api::{
    TemplateBaseImageAuth, TemplateFailureDetailCode, TemplateFailurePhase as Phase, TemplateOciHealthcheckMetadata,
    TemplateOciImageMetadata,
};
use nullspace_definition::problems::MAX_TEXT;
use nullspace_definition::readiness::{Readiness, Timing};
use nullspace_definition::runtime::{DEFAULT_WORKDIR, Runtime, StartCommand};
use nullspace_host_interface::{BuildFailure, reason};
use nullspace_image_ref::Reference;
use nullspace_oci::config::{Healthcheck, ImageConfig};
use nullspace_oci::import::{ImportError, ImportOptions, LayerCache, Progress};
use nullspace_oci::layout::LocalImage;
use nullspace_oci::platform::Platform;
use nullspace_oci::registry::{Credentials, Registry, RegistryError, Repository, ResolvedImage};
use nullspace_rootfs::Written;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::image_layers::ImageLayers;
use super::import::{self, Proof, Target};

/// The image that a reference resolves to, with access to its layers.
#[derive(Clone)]
pub(crate) struct Image {
    repository: Repository,
    resolved: ResolvedImage,
}

impl Image {
    /// Digest of the index or manifest that the reference named.
    pub(crate) fn digest(&self) -> String {
        self.resolved.digest.to_string()
    }

    /// Digest of the manifest for this host's platform.
    pub(crate) fn manifest_digest(&self) -> String {
        self.resolved.manifest_digest.to_string()
    }

    /// The proof that the repository gives this image to clients without credentials.
    pub(crate) fn public_proof(&self) -> Proof {
        let reference = &self.resolved.reference;
        let (registry, repository) = (reference.registry().to_owned(), reference.repository().to_owned());
        Proof::Public { registry, repository }
    }

    /// Host of the registry, and path in it.
    pub(crate) fn repository(&self) -> (&str, &str) {
        (self.resolved.reference.registry(), self.resolved.reference.repository())
    }

    /// Length of all layers. Those that are here already are not downloaded.
    pub(crate) fn compressed_bytes(&self) -> u64 {
        self.resolved.layers_size()
    }

    pub(crate) fn config(&self) -> &ImageConfig {
        &self.resolved.config
    }
}

/// Resolves the reference at the registry.
pub(crate) async fn resolve(
    registry: &Registry,
    reference: &Reference,
    auth: Option<TemplateBaseImageAuth>,
) -> Result<Image, BuildFailure> {
    let credentials = credentials(auth);
    let platform = Platform::host().ok_or_else(|| {
        BuildFailure::internal(Phase::Prepare, &format!("no OCI platform for {}", std::env::consts::ARCH))
    })?;
    let repository = registry.repository(reference, credentials).map_err(|error| refused(&error))?;
    let resolved = repository.resolve(platform).await.map_err(|error| refused(&error))?;
    Ok(Image { repository, resolved })
}

/// Credentials as the registry client takes them.
pub(crate) fn credentials(auth: Option<TemplateBaseImageAuth>) -> Credentials {
    match auth {
        None => Credentials::Anonymous,
        Some(TemplateBaseImageAuth::Basic(basic)) => {
            Credentials::Basic { username: basic.username, password: basic.password.into() }
        }
        Some(TemplateBaseImageAuth::AwsEcr(identity)) => Credentials::AwsEcr {
            access_key_id: identity.access_key_id,
            secret_access_key: identity.secret_access_key.into(),
            region: identity.region,
            session_token: identity.session_token.map(Into::into),
        },
        Some(TemplateBaseImageAuth::GcpArtifactRegistry(account)) => {
            Credentials::GcpServiceAccount { key_file: account.service_account_json.0.into() }
        }
    }
}

/// Gets the layers from the cache or the registry, verifies and merges them into an ext4 image. Blobs that come before their
/// turn wait in `spool`.
pub(crate) async fn import(
    image: Image,
    target: Target,
    spool: PathBuf,
    layers: ImageLayers,
    lines: import::Lines,
) -> Result<Written, BuildFailure> {
    let cache: Option<Arc<dyn LayerCache>> = Some(Arc::new(layers));
    let options = ImportOptions { cache, ..options(target.cancel.clone(), Some(spool), lines) };
    let (sink, writing) = target.begin()?;
    let imported = nullspace_oci::import::import(&image.repository, &image.resolved, sink, options).await;
    let merged = imported.map(|imported| imported.tree).map_err(|error| failed(&error));
    writing.finish(merged).await
}

/// Merges the layers of an image on this host into an ext4 image.
pub(crate) async fn import_local(
    image: LocalImage,
    target: Target,
    lines: import::Lines,
) -> Result<Written, BuildFailure> {
    let options = options(target.cancel.clone(), None, lines);
    let (sink, writing) = target.begin()?;
    let imported = tokio::task::spawn_blocking(move || {
        let imported = nullspace_oci::import::import_local(&image, sink, &options);
        imported.map(|imported| imported.tree).map_err(|error| failed(&error))
    });
    let merged = imported.await.unwrap_or_else(|error| Err(BuildFailure::internal(Phase::Prepare, &error)));
    writing.finish(merged).await
}

fn options(cancel: CancellationToken, spool: Option<PathBuf>, lines: import::Lines) -> ImportOptions {
    ImportOptions {
        cancel,
        spool_directory: spool,
        progress: Arc::new(move |progress| match progress {
            Progress::Started { layers, bytes } => {
                lines.say(|| format!("Importing {layers} layers, {} MiB", bytes >> 20))
            }
            Progress::Downloaded { bytes, total } => {
                lines.say(|| format!("Downloaded {} of {} MiB", bytes >> 20, total >> 20));
            }
            Progress::LayerFetched { digest, bytes, cached: true } => {
                lines.tell(format!("Image layer {digest}: already here ({bytes} bytes)"));
            }
            Progress::LayerFetched { digest, bytes, cached: false } => {
                lines.tell(format!("Image layer {digest}: downloaded {bytes} bytes"));
            }
            Progress::LayerDone { done, layers, uncompressed, .. } => {
                lines.say(|| format!("Merged layer {done} of {layers} ({} MiB unpacked)", uncompressed >> 20));
            }
        }),
        ..ImportOptions::default()
    }
}

/// The advice about a host that the service does not connect to.
pub(crate) const LIST_IT: &str =
    "Check the host's name; ask the operator to list a registry of a private network in private_registries.";

/// A registry's refusal in the user's terms.
pub(crate) fn refused(error: &RegistryError) -> BuildFailure {
    let message = error.to_string();
    let mut failure = match error.decisive() {
        RegistryError::Unauthorized { .. } => BuildFailure {
            code: TemplateFailureDetailCode::Unauthorized,
            ..BuildFailure::user(
                Phase::Auth,
                reason::REGISTRY_UNAUTHORIZED,
                message,
                "Check the image's name and give base_image_auth with credentials that may pull it.",
            )
        },
        RegistryError::NotFound { .. } => BuildFailure::user(
            Phase::Prepare,
            reason::IMAGE_NOT_FOUND,
            message,
            "Check the image's name and tag, and that it was pushed.",
        ),
        RegistryError::NotAllowed { .. } => {
            BuildFailure::user(Phase::Prepare, reason::ADDRESS_NOT_ALLOWED, message, LIST_IT)
        }
        RegistryError::UnsupportedPlatform { wanted, available } => BuildFailure::user(
            Phase::Prepare,
            reason::UNSUPPORTED_PLATFORM,
            message,
            format!("Push an image for {wanted}."),
        )
        .with("wanted", wanted.as_str())
        .with("available", json!(available)),
        RegistryError::RateLimited { .. }
        | RegistryError::Unreachable { .. }
        | RegistryError::Interrupted { .. }
        | RegistryError::Status { .. } => BuildFailure::user(
            Phase::Prepare,
            reason::REGISTRY_UNAVAILABLE,
            message,
            "Check that the registry is up and reachable from the service's host, then build again.",
        ),
        RegistryError::Setup(_) => BuildFailure::internal(Phase::Prepare, error),
        _ => BuildFailure::user(
            Phase::Prepare,
            reason::INVALID_IMAGE,
            message,
            "Push the image again, or use another tool.",
        ),
    };
    failure.retryable = error.is_retryable();
    failure
}

/// An import's error in the user's terms.
fn failed(error: &ImportError) -> BuildFailure {
    match error {
        ImportError::Registry(error) => refused(error),
        ImportError::Layer { source, .. } => import::layer_failed(source, error),
        ImportError::Cancelled => {
            BuildFailure::infrastructure(Phase::Interrupted, reason::INTERNAL, "the import was stopped")
        }
        ImportError::Io(_) => BuildFailure::own(Phase::Prepare, error),
        ImportError::Stream { .. } => import::invalid(error),
    }
}

/// The label of an image that names its resume command.
pub(crate) const RESUME_LABEL: &str = "dev.nullspace.resume_cmd";

/// Whether a line can be a shell's argument.
fn usable(line: &str) -> bool {
    !line.trim().is_empty() && !line.contains('\0') && line.len() <= MAX_TEXT
}

/// The image's runtime settings. Malformed variables are skipped, as the contract says.
pub(crate) fn runtime(config: &ImageConfig) -> Runtime {
    let run = &config.config;
    let envs = run.env.iter().filter_map(|text| text.split_once('='));
    let envs = envs.filter(|(key, value)| !key.is_empty() && !key.contains('\0') && !value.contains('\0'));
    let absolute = run.working_dir.starts_with('/') && !run.working_dir.contains('\0');
    let start = StartCommand::of_image(run.entrypoint.as_deref().unwrap_or(&[]), run.cmd.as_deref().unwrap_or(&[]));
    Runtime {
        envs: envs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        user: Some(run.user.clone()).filter(|user| !user.is_empty()),
        workdir: if absolute { run.working_dir.clone() } else { DEFAULT_WORKDIR.to_owned() },
        start: start.map(|start| StartCommand { dir: (!absolute).then(|| "/".to_owned()), ..start }),
        readiness: run.healthcheck.as_ref().and_then(mapped),
        resume: run.labels.get(RESUME_LABEL).filter(|line| usable(line)).cloned(),
    }
}

/// The image's metadata for the API.
pub(crate) fn metadata(config: &ImageConfig) -> TemplateOciImageMetadata {
    let run = &config.config;
    TemplateOciImageMetadata {
        labels: run.labels.clone(),
        exposed_ports: run.exposed_ports.clone(),
        volumes: run.volumes.clone(),
        healthcheck: run.healthcheck.as_ref().map(|check| TemplateOciHealthcheckMetadata {
            test: check.test.clone(),
            interval_ns: positive(check.interval),
            timeout_ns: positive(check.timeout),
            start_period_ns: positive(check.start_period),
            retries: positive(check.retries).and_then(|retries| u32::try_from(retries).ok()),
            mapped_readiness: mapped(check).as_ref().map(Readiness::shown),
        }),
    }
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|&value| value > 0)
}

/// Converts a shell or exec healthcheck to command readiness. Docker gives up after `retries` failures in a row, `interval`
/// apart, without those of the start period. The command is tried for as long here, with shorter pauses, because a build
/// waits for it.
fn mapped(check: &Healthcheck) -> Option<Readiness> {
    let (kind, rest) = check.test.split_first()?;
    let (command, argv) = match (kind.as_str(), rest) {
        ("CMD-SHELL", [line]) => (line.clone(), Vec::new()),
        ("CMD", argv) => {
            let check = StartCommand::of_image(argv, &[])?;
            (check.shown, check.argv)
        }
        _ => return None,
    };
    const NS: u64 = 1_000_000_000;
    let or = |value, default: u64| positive(value).unwrap_or(default * NS);
    let tries = positive(check.retries).unwrap_or(3).min(100);
    let each = or(check.interval, 30).saturating_add(or(check.timeout, 30));
    let timing = Timing {
        timeout_secs: each.saturating_mul(tries).div_ceil(NS).clamp(1, 3600),
        interval_ms: (or(check.interval, 30) / 1_000_000).clamp(100, Timing::default().interval_ms),
        startup_grace_secs: positive(check.start_period).unwrap_or(0).div_ceil(NS).min(3600),
    };
    let attempt_secs = Some(or(check.timeout, 30).div_ceil(NS).clamp(1, 3600));
    Some(Readiness::Command { command, argv, attempt_secs, timing })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> ImageConfig {
        ImageConfig::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn an_images_config_becomes_the_runtime() {
        let runtime = runtime(&config(
            r#"{"config": {"Env": ["PATH=/bin", "malformed", "=x", "A=b=c"], "User": "app:1000", "WorkingDir": "/srv",
                "Entrypoint": ["/serve"], "Cmd": ["--port", "80 81"]}}"#,
        ));
        let envs: Vec<_> = runtime.envs.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(envs, ["A=b=c", "PATH=/bin"]);
        assert_eq!((runtime.user.as_deref(), runtime.workdir.as_str()), (Some("app:1000"), "/srv"));
        let start = runtime.start.unwrap();
        assert_eq!((start.shown.as_str(), start.dir, start.first), ("/serve --port '80 81'", None, true));
    }

    #[test]
    fn an_image_without_a_working_directory_starts_its_own_command_in_the_root() {
        for dir in ["", r#", "WorkingDir": """#, r#", "WorkingDir": "relative""#] {
            let runtime = runtime(&config(&format!(r#"{{"config": {{"Cmd": ["./app"]{dir}}}}}"#)));
            assert_eq!(runtime.workdir, DEFAULT_WORKDIR, "of exec and files");
            assert_eq!(runtime.start.unwrap().dir.as_deref(), Some("/"));
        }
    }

    #[test]
    fn a_label_names_the_resume_command() {
        let of = |labels: &str| runtime(&config(&format!(r#"{{"config": {{"Labels": {labels}}}}}"#))).resume;
        assert_eq!(of(r#"{"dev.nullspace.resume_cmd": "kill -HUP 1"}"#).as_deref(), Some("kill -HUP 1"));
        for none in [r#"{"dev.nullspace.resume_cmd": " "}"#, r#"{"dev.nullspace.resume_cmd": "a\u0000b"}"#, "{}"] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn an_image_that_says_nothing_gets_the_defaults() {
        assert_eq!(runtime(&config("{}")), Runtime::default());
    }

    #[test]
    fn healthchecks_map_where_they_can_run() {
        let of = |test: &str| {
            let json =
                format!(r#"{{"config": {{"Healthcheck": {{"Test": {test}, "Interval": 1000000000, "Retries": 2}}}}}}"#);
            runtime(&config(&json)).readiness
        };
        let Some(Readiness::Command { command, argv, attempt_secs, timing }) =
            of(r#"["CMD", "curl", "-f", "http://x/a b"]"#)
        else {
            panic!()
        };
        assert_eq!(attempt_secs, Some(30), "Docker's default");
        assert_eq!(
            (command.as_str(), argv.as_slice()),
            ("curl -f 'http://x/a b'", &["curl", "-f", "http://x/a b"].map(str::to_owned)[..])
        );
        assert_eq!((timing.timeout_secs, timing.interval_ms, timing.startup_grace_secs), (62, 500, 0));
        let Some(Readiness::Command { command, argv, .. }) = of(r#"["CMD-SHELL", "true && x"]"#) else { panic!() };
        assert!(command == "true && x" && argv.is_empty());
        for none in [r#"["NONE"]"#, "[]", r#"["CMD"]"#, r#"["CMD-SHELL"]"#, r#"["OTHER", "x"]"#] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
