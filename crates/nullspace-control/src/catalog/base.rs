//! The built-in template `nullspace/base`. The service builds it when its tar or the host has changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use nullspace_api::ErrorResponseCode;
use nullspace_db::{BuildFilter, BuildStatus, DbError, NamespaceKind};
use nullspace_definition::machine::MachineSize;
use nullspace_definition::{Definition, Source};
use nullspace_host_interface::{BaseRoot, Unfit};
use nullspace_types::{Tag, TemplateName, TemplateRef};

use crate::Inner;
use crate::error::{Error, Stored, internal, of_store};
use nullspace_service::chain;

/// Name of the template in the namespace `nullspace`.
pub(crate) const BASE: &str = "base";
/// The tenant that owns it.
const TENANT: &str = "nullspace";

/// State of the built-in template.
#[derive(Debug, Default)]
pub(crate) struct State {
    pending: AtomicBool,
}

impl State {
    /// The error when the base template does not resolve: it is being built, or this host cannot build it.
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

/// Starts a build of the base template unless the stored one fits. A failure is only logged.
pub(crate) async fn ensure(inner: &Arc<Inner>) {
    inner.base.pending.store(true, Ordering::Relaxed);
    let root = match inner.host.base().await {
        Ok(Some(root)) => root,
        Ok(None) => {
            inner.base.pending.store(false, Ordering::Relaxed);
            tracing::info!("no tar of the base template: nullspace/base is not offered");
            return;
        }
        Err(error) => {
            inner.base.pending.store(false, Ordering::Relaxed);
            tracing::error!(%error, "the base template cannot be built");
            return;
        }
    };
    if let Err(error) = ensure_from(inner, root).await {
        inner.base.pending.store(false, Ordering::Relaxed);
        tracing::error!(error = %chain(&error), "the base template cannot be built");
    }
}

async fn ensure_from(inner: &Arc<Inner>, root: BaseRoot) -> Result<(), Error> {
    let now = Timestamp::now();
    let BaseRoot { sha256, key } = root;
    let tenant = inner.db.ensure_tenant(TENANT, NamespaceKind::System, now).await.stored()?;
    let caller = tenant.caller();
    let name: TemplateName = BASE.parse().map_err(|error| internal("name of the base template", &error))?;
    let reference =
        TemplateRef::Named { namespace: Some(caller.namespace.clone()), name: name.clone(), selector: None };
    match inner.db.resolve(&caller, &reference).await {
        Ok(found) => {
            let fits = match inner.host.judge(&found.artifact.snapshot) {
                Ok(_) => true,
                Err(Unfit::Incompatible(_)) => false,
                Err(error @ Unfit::Corrupt(_)) => return Err(internal("read the base template", &error)),
            };
            if fits && found.artifact.rootfs.key == key {
                inner.base.pending.store(false, Ordering::Relaxed);
                return Ok(());
            }
        }
        Err(DbError::NotFound) => {}
        Err(error) => return Err(of_store(error)),
    }
    for status in [BuildStatus::Waiting, BuildStatus::Building] {
        let filter = BuildFilter { status: Some(status), limit: 100, ..BuildFilter::default() };
        let page = inner.db.list_builds(&caller, filter).await.stored()?;
        if page.builds.iter().any(|build| build.definition.0["source"]["sha256"] == sha256.as_str()) {
            return Ok(());
        }
    }
    let machine = MachineSize { vcpus: 1, memory_mib: 512, internet_access: true, disk_mb: None };
    let plan = Definition::of_source(Source::BaseTar { sha256 }, machine);
    let latest = "latest".parse().map_err(|error| internal("tag of the base template", &error))?;
    let build = inner.new_build(name, vec![Tag::default_tag(), latest], plan, None)?;
    inner.accept(&caller, build).await?;
    Ok(())
}
