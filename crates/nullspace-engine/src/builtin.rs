//! The built-in template `nullspace/base`: built by the service itself when its tar or the host has changed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use nullspace_api::ErrorResponseCode;
use nullspace_store::{BuildFilter, BuildStatus, NamespaceKind, StoreError, Tag, TemplateName, TemplateRef};
use sha2::{Digest, Sha256};

use crate::Inner;
use crate::error::{Error, Stored, internal, of_store};
use crate::failure::chain;
use crate::import;
use crate::plan::{BuildPlan, MachineSize, RuntimeWish, Source};
use crate::records::column;

/// Name of the template in the namespace `nullspace`.
pub(crate) const BASE: &str = "base";
/// Whose it is, among tenants.
const TENANT: &str = "nullspace";

/// Whether the built-in template is on its way.
#[derive(Debug, Default)]
pub(crate) struct State {
    pending: AtomicBool,
}

impl State {
    /// What to answer when the base template does not resolve: wait, or it will never come.
    pub(crate) fn missing(&self) -> Error {
        if self.pending.load(Ordering::Relaxed) {
            Error {
                retry_after: Some(Duration::from_secs(3)),
                ..Error::new(
                    ErrorResponseCode::FeatureUnavailable,
                    "the built-in template nullspace/base is being built; try again in a moment",
                )
            }
        } else {
            Error::new(
                ErrorResponseCode::TemplateNotFound,
                "there is no built-in template nullspace/base on this host: the operator makes its root with `make base`",
            )
        }
    }
}

/// Starts a build of the base template unless the one there is fits. Failure is logged: everything else works without.
pub(crate) async fn ensure(inner: &Arc<Inner>) {
    let Some(tar) = inner.config.base_tar.clone() else {
        tracing::info!("no tar of the base template: nullspace/base is not offered");
        return;
    };
    inner.base.pending.store(true, Ordering::Relaxed);
    if let Err(error) = ensure_from(inner, &tar).await {
        inner.base.pending.store(false, Ordering::Relaxed);
        tracing::error!(error = %chain(&error), "the base template cannot be built");
    }
}

async fn ensure_from(inner: &Arc<Inner>, tar: &Path) -> Result<(), Error> {
    let now = Timestamp::now();
    let path = tar.to_owned();
    let hashed = tokio::task::spawn_blocking(move || sha256(&path)).await;
    let sha256 = hashed
        .map_err(|error| internal("hash the base tar", &error))?
        .map_err(|error| internal("read the base tar", &error))?;
    let tenant = inner.metadata.ensure_tenant(TENANT, NamespaceKind::System, now).await.stored()?;
    let caller = tenant.caller();
    let name: TemplateName = BASE.parse().map_err(|error| internal("name of the base template", &error))?;
    let reference =
        TemplateRef::Named { namespace: Some(caller.namespace.clone()), name: name.clone(), selector: None };
    match inner.metadata.resolve(&caller, &reference).await {
        Ok(found) => {
            let summary: nullspace_vmm::SnapshotSummary =
                column("artifacts.snapshot", &found.artifact.snapshot).stored()?;
            let fits = summary.compatibility.conflict_with(inner.vmm.compatibility()).is_none();
            if fits && found.artifact.rootfs.key == import::tar_key(&sha256) {
                inner.base.pending.store(false, Ordering::Relaxed);
                return Ok(());
            }
        }
        Err(StoreError::NotFound) => {}
        Err(error) => return Err(of_store(error)),
    }
    for status in [BuildStatus::Waiting, BuildStatus::Building] {
        let filter = BuildFilter { status: Some(status), limit: 100, ..BuildFilter::default() };
        let page = inner.metadata.list_builds(&caller, filter).await.stored()?;
        if page.builds.iter().any(|build| build.definition.0["source"]["sha256"] == sha256.as_str()) {
            return Ok(());
        }
    }
    let plan = BuildPlan {
        source: Source::BaseTar { sha256 },
        steps: Vec::new(),
        context: Default::default(),
        machine: MachineSize { vcpus: 1, memory_mib: 512, internet_access: true, disk_mb: None },
        build_envs: Default::default(),
        start_cmd: None,
        resume_cmd: None,
        runtime: RuntimeWish::default(),
        skip_cache: false,
        authenticated: false,
    };
    let latest = "latest".parse().map_err(|error| internal("tag of the base template", &error))?;
    let build = inner.new_build(name, vec![Tag::default_tag(), latest], plan, None)?;
    inner.accept(&caller, build).await?;
    Ok(())
}

/// SHA-256 of a file, hex.
pub(crate) fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}
