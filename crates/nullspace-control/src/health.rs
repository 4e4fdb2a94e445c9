//! Questions of operators: readiness, information about the service, and metrics.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::ErrorResponseCode;
use nullspace_host_interface::{HostInfo, ObjectStoreState};
use nullspace_service::{Health, chain};
use tokio::sync::Mutex;

use crate::Control;
use crate::error::{Error, Result};

/// Time for which a probe's result is used again.
const FRESH: Duration = Duration::from_secs(2);
/// Time limit of a probe's write. A slower database is not ready.
const PROBE: Duration = Duration::from_secs(5);

/// The last probe's result and time.
#[derive(Debug)]
pub(crate) struct Probed {
    at: Instant,
    found: Result<()>,
}

/// The cached state of the database.
#[derive(Debug, Default)]
pub(crate) struct State {
    probed: Mutex<Option<Probed>>,
}

#[async_trait]
impl Health for Control {
    async fn details(&self) -> Vec<String> {
        let HostInfo { vmm, version, accelerator, walls } = self.inner.host.info();
        let (used, limit) = self.inner.host.admitted();
        let mut lines = vec![
            format!("machines: {vmm} {version}, accelerator {accelerator}"),
            format!("walls: {walls}"),
            format!(
                "admitted: {} of {} MiB, {} of {} vCPUs",
                used.memory_mib, limit.memory_mib, used.vcpus, limit.vcpus
            ),
        ];
        lines.extend(self.inner.host.object_store().await.map(
            |ObjectStoreState { location, failure }| match failure {
                None => format!("object store: {location}: answers"),
                Some(why) => format!("object store: {location}: cannot be used: {why}"),
            },
        ));
        lines
    }

    async fn metrics(&self) -> Result<String> {
        self.inner.metrics_page().await
    }

    async fn ready(&self) -> Result<()> {
        if self.inner.shutdown.is_cancelled() {
            return Err(Error::new(ErrorResponseCode::FeatureUnavailable, "the service is stopping"));
        }
        // One asks at a time, and what it finds out serves those who waited: a thousand probes are one write.
        let mut probed = self.inner.health.probed.lock().await;
        if let Some(last) = &*probed
            && last.at.elapsed() < FRESH
        {
            return last.found.clone();
        }
        let found = match tokio::time::timeout(PROBE, self.inner.db.ping(Timestamp::now())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("it did not take a write within {} s", PROBE.as_secs())),
        };
        let found = found.map_err(|error| {
            tracing::error!(error, "the database takes no writes");
            Error::new(ErrorResponseCode::DatabaseError, "the database takes no writes now")
        });
        *probed = Some(Probed { at: Instant::now(), found: found.clone() });
        found
    }
}
