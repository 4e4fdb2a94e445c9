//! Pauses, snapshots and forks as wholes. Each runs in a task of its own, to its end, whether or not anybody waits for it.
//!
//! ```text
//!   freeze     capture ── keep ──> Frozen ── end | go_on        published later, see `storage`
//!   snapshot   capture ── goes on ── publish ──> Captured
//!   fork       admit ── capture ── goes on ──> Snapshot { held }
//! ```

use std::sync::Arc;

use jiff::Timestamp;
use nullspace_host_interface::{Captured, Snapshot, internal};
use nullspace_service::{Error, Result};
use nullspace_types::{SandboxId, Streams};
use serde_json::json;
use tokio::sync::oneshot;

use super::actors::Actors;
use super::frozen::{Frozen, discard};
use super::gate::Why;
use super::held::Held;
use super::transition::{Files, Transition};

/// Freezes a running sandbox and captures it; with `idle_since`, only while nothing has used it since then.
pub(super) async fn freeze(actors: &Arc<Actors>, id: SandboxId, idle_since: Option<Timestamp>) -> Result<Frozen> {
    let mut transition = Transition::begin(actors, id, Why::Pause)?;
    let freezing = actors.tasks.spawn(async move {
        if let Some(since) = idle_since {
            transition.close_if_idle(since)?;
        }
        let files = transition.capture().await?;
        match transition.keep(files).await {
            Ok(captured) => Ok(Frozen::new(transition, captured)),
            Err(error) => {
                transition.go_on().await?;
                Err(error)
            }
        }
    });
    freezing.await.map_err(|error| internal("pause a sandbox", &error))?
}

/// Stores a snapshot of a running sandbox, which goes on.
pub(super) async fn snapshot(actors: &Arc<Actors>, id: SandboxId, similar: Vec<Streams>) -> Result<Captured> {
    let mut transition = Transition::begin(actors, id, Why::Snapshot)?;
    let (told, taken) = oneshot::channel();
    actors.tasks.spawn(async move {
        let taking = async {
            let files = transition.capture().await?;
            let frozen = transition.go_on().await?;
            transition.publish(files, similar, frozen).await
        };
        // Nobody is there to name it.
        if let Err(Ok(captured)) = told.send(taking.await) {
            discard(&transition.actors, &captured.folder).await;
        }
    });
    taken.await.map_err(|error| internal("take a snapshot of a sandbox", &error))?
}

/// Captures a running sandbox, which goes on, without storing it.
pub(super) async fn fork(actors: &Arc<Actors>, id: SandboxId) -> Result<Snapshot> {
    let mut transition = Transition::begin(actors, id, Why::Snapshot)?;
    let live = Arc::clone(&transition.live);
    // Before anything stands still: a full host refuses a fork at once.
    let permit = actors.admit(live.tenant, live.size.memory_mib, live.size.vcpus)?;
    let forking = actors.tasks.spawn(async move {
        let files = transition.capture().await?;
        let frozen_ms = transition.go_on().await?.as_millis();
        tracing::info!(sandbox_id = %id, frozen_ms, bytes = files.bytes, "sandbox is captured for a fork");
        Ok::<Files, Error>(files)
    });
    let files = forking.await.map_err(|error| internal("fork a sandbox", &error))??;
    let Files { dir, scratch, writing, summary, .. } = files;
    Ok(Snapshot {
        artifact: live.artifact,
        folder: String::new(),
        streams: None,
        rootfs: live.rootfs.clone(),
        summary: json!(summary),
        runtime: live.runtime.clone(),
        held: Some(Arc::new(Held::new(dir, scratch, writing, permit))),
    })
}
