//! Fork: a running sandbox is cloned with its processes. The source goes on.
//!
//! ```text
//!   fork ──> wait for the source's turn ──capture──> files that only this process has ──start──> a new sandbox, with an id
//!   fork ──┘ together: one capture for all that wait     └── the source goes on   └──start──> …  and a network of its own
//! ```
//! Nothing is stored: the captured files go when all clones have them, or when their starts fail. A fork that is asked for while a
//! capture runs waits for the next one: what it clones is never older than its request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use nullspace_api::LifecycleOperation;
use nullspace_db::{Idempotency, Sandbox};
use nullspace_host_interface::Snapshot;
use nullspace_types::{Caller, SandboxId};

use super::resume::TURN;
use super::spec::Config;
use super::start::{Begun, Origin, Start};
use crate::Inner;
use crate::error::{Error, Result};
use crate::lifecycle::Event;

/// The captures for which forks wait, by their source.
#[derive(Debug, Default)]
pub(super) struct Captures(Mutex<HashMap<SandboxId, WeakShared<Capturing>>>);

type Capturing = BoxFuture<'static, Result<Arc<Captured>>>;

/// A capture of a sandbox.
#[derive(Debug)]
struct Captured {
    /// Its settings then.
    sandbox: Sandbox,
    snapshot: Result<Snapshot>,
}

impl Captures {
    /// The capture that waits for the source's turn, or a new one.
    fn join(&self, source: SandboxId, new: impl FnOnce() -> Capturing) -> Shared<Capturing> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waits) = waiting.get(&source).and_then(WeakShared::upgrade) {
            return waits;
        }
        // Those that nobody waits for any more.
        waiting.retain(|_, capture| capture.upgrade().is_some());
        let capture = new().shared();
        waiting.extend(capture.downgrade().map(|weak| (source, weak)));
        capture
    }

    /// Number of forks that wait for the next capture of a sandbox.
    #[cfg(test)]
    pub(super) fn waiting(&self, source: SandboxId) -> usize {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The one that is looked at is another handle.
        let capture = waiting.get(&source).and_then(WeakShared::upgrade);
        capture.and_then(|capture| capture.strong_count()).map_or(0, |handles| handles - 1)
    }

    /// It waits no more: who comes now makes another one.
    fn begun(&self, source: SandboxId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&source);
    }
}

impl Inner {
    /// Clones a running sandbox. Returns when the clone can be used.
    pub(super) async fn fork(
        self: &Arc<Self>,
        caller: &Caller,
        source: SandboxId,
        idempotency: Option<Idempotency>,
    ) -> Result<Sandbox> {
        self.not_stopping()?;
        let began = Instant::now();
        self.running_of(caller, source).await?;
        let capture = self.sandboxes.captures.join(source, || {
            let (inner, caller) = (Arc::clone(self), caller.clone());
            async move { inner.capture(&caller, source).await.map(Arc::new) }.boxed()
        });
        let captured = capture.await?;
        let sandbox = &captured.sandbox;
        let config = Config { warm_pool: None, ..Config::stored(&sandbox.config)? };
        let envs = self.envs_of(sandbox)?;
        let id = SandboxId::new();
        let event = Event::requested(caller.tenant, LifecycleOperation::Fork)
            .sandbox(id)
            .source(source)
            .target(id)
            .reason("api")
            .detail("timeout_action", config.at_timeout.word());
        let snapshot = captured.snapshot.clone().inspect_err(|error| {
            self.lifecycle.record(event.clone());
            self.lifecycle.record(event.clone().now_failed(error));
        })?;
        let capture_ms = began.elapsed().as_millis();
        let start = Start {
            caller,
            id,
            snapshot,
            artifact: sandbox.artifact,
            template_ref: sandbox.template_ref.clone(),
            config,
            envs,
            metadata: sandbox.metadata.clone(),
            origin: Origin::Fork(source),
            spare: None,
            warm_pool: None,
            idempotency,
            event,
            missing: Error::sandbox_not_found(&source.to_string()),
        };
        // The files go with the last of those that share them.
        drop(captured);
        let begun = self.start_sandbox(start).await?;
        if let Begun::New(clone) = &begun {
            let ms = began.elapsed().as_millis();
            tracing::info!(sandbox_id = %clone.id, source_id = %source, ms, capture_ms, "sandbox is forked");
        }
        Ok(begun.sandbox().clone())
    }

    /// Captures a sandbox in its turn. A change of its settings takes a turn too, so these are those of the capture.
    async fn capture(&self, caller: &Caller, source: SandboxId) -> Result<Captured> {
        let turn = self.sandboxes.transitions.begin_within(source, "forked", TURN).await;
        self.sandboxes.captures.begun(source);
        let _turn = turn?;
        let sandbox = self.running_of(caller, source).await?;
        let snapshot = self.host.fork_sandbox(source).await;
        Ok(Captured { sandbox, snapshot })
    }
}
