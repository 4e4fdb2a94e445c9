//! A sandbox whose machine stands still, and which is captured.

use async_trait::async_trait;
use nullspace_host_interface::{Captured, FrozenSandbox};
use nullspace_service::{Result, chain};

use super::actors::Actors;
use super::transition::Transition;

/// A frozen sandbox. Dropping it lets the machine go on.
pub(super) struct Frozen {
    /// `None` once it is decided.
    transition: Option<Transition>,
    captured: Captured,
}

impl Frozen {
    pub(super) fn new(transition: Transition, captured: Captured) -> Frozen {
        Frozen { transition: Some(transition), captured }
    }
}

#[async_trait]
impl FrozenSandbox for Frozen {
    fn captured(&self) -> &Captured {
        &self.captured
    }

    async fn end(mut self: Box<Self>) {
        let Some(transition) = self.transition.take() else { return };
        transition.end().await;
    }

    async fn go_on(mut self: Box<Self>, may_be_named: bool) -> Result<()> {
        let Some(mut transition) = self.transition.take() else { return Ok(()) };
        let gone_on = transition.go_on().await;
        if !may_be_named {
            discard(&transition.actors, &self.captured.folder).await;
        }
        gone_on.map(drop)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let Some(mut transition) = self.transition.take() else { return };
        let (actors, folder) = (transition.actors.clone(), self.captured.folder.clone());
        actors.clone().tasks.spawn(async move {
            if let Err(error) = transition.go_on().await {
                tracing::warn!(sandbox_id = %transition.live.id, error = %error.message, "sandbox did not go on");
            }
            discard(&actors, &folder).await;
        });
    }
}

/// Removes the files of a snapshot that nothing names.
pub(super) async fn discard(actors: &Actors, folder: &str) {
    if let Err(error) = actors.files.remove_artifact(folder).await {
        tracing::warn!(error = %chain(&error), folder, "a snapshot without a name could not be removed");
    }
}
