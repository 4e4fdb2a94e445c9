//! Fork: a running sandbox is cloned with its processes. The source goes on.
//!
//! ```text
//!   source ──capture──> files that only this process has ──start──> a new sandbox, with an id and a network of its own
//!      └── goes on
//! ```
//! Nothing is stored: the captured files go when the clone has them, or when its start fails.

use std::time::Instant;

use nullspace_api::LifecycleOperation;
use nullspace_db::{Idempotency, Sandbox};
use nullspace_types::{Caller, SandboxId};

use super::resume::TURN;
use super::spec::Config;
use super::start::{Begun, Origin, Start};
use crate::Inner;
use crate::error::{Error, Result};
use crate::lifecycle::Event;

impl Inner {
    /// Clones a running sandbox. Returns when the clone can be used.
    pub(super) async fn fork(
        &self,
        caller: &Caller,
        source: SandboxId,
        idempotency: Option<Idempotency>,
    ) -> Result<Sandbox> {
        self.not_stopping()?;
        let began = Instant::now();
        self.running_of(caller, source).await?;
        // Only the capture is a transition of the source: clones start side by side. Several forks at once take turns. A change of
        // the source's settings takes a turn too, so the clone has those of its capture.
        let turn = self.sandboxes.transitions.begin_within(source, "forked", TURN).await?;
        let sandbox = self.running_of(caller, source).await?;
        let config = Config::stored(&sandbox.config)?;
        let envs = self.envs_of(&sandbox)?;
        let id = SandboxId::new();
        let event = Event::requested(caller.tenant, LifecycleOperation::Fork)
            .sandbox(id)
            .source(source)
            .target(id)
            .reason("api")
            .detail("timeout_action", config.at_timeout.word());
        let captured = self.host.fork_sandbox(source).await;
        drop(turn);
        let snapshot = captured.inspect_err(|error| {
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
            idempotency,
            event,
            missing: Error::sandbox_not_found(&source.to_string()),
        };
        let begun = self.start_sandbox(start).await?;
        if let Begun::New(clone) = &begun {
            let ms = began.elapsed().as_millis();
            tracing::info!(sandbox_id = %clone.id, source_id = %source, ms, capture_ms, "sandbox is forked");
        }
        Ok(begun.sandbox().clone())
    }
}
