//! The choice of a create that names a warm pool.
//!
//! ```text
//!   bypass ────────────────────────────────────────────────> cold          bypassed
//!   poolable, enabled, of the same build ── ready ─────────> a spare       ready_instance
//!   anything else ── prefer ───────────────────────────────> cold          cold_create
//!                 └─ require ──────────────────────────────> warm_pool_unavailable
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use nullspace_api::{
    CreateSandboxRequest, ErrorResponseCode as Code, LifecycleConfigOnTimeout, SandboxTimeoutAction,
    WarmPoolCheckoutMode as Mode, WarmPoolCheckoutResult, WarmPoolCheckoutResultSource as From,
};
use nullspace_db::{WarmPool, WarmPoolState};
use nullspace_types::{ArtifactId, Caller, SpareId, WarmPoolId};
use tokio::time::timeout_at;

use super::spec::Spec;
use crate::Inner;
use crate::catalog::wire::column;
use crate::error::{Error, Result, Stored};

/// Longest wait for a spare, milliseconds.
const LONGEST_WAIT: u64 = 60_000;
/// Time after which a create that requires a spare should be tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A create's use of a warm pool.
pub(crate) struct Checkout {
    pool: Option<(WarmPoolId, Arc<str>)>,
    mode: Mode,
    /// Why no spare can be taken at all.
    unfit: Option<String>,
    until: Instant,
}

impl Checkout {
    /// The pool whose machine was taken, for the sandbox's row.
    pub(crate) fn pool(&self, taken: Option<SpareId>) -> Option<WarmPoolId> {
        taken.and(self.pool.as_ref()).map(|(id, _)| *id)
    }

    /// What the sandbox says of it.
    pub(crate) fn result(&self, taken: Option<SpareId>) -> WarmPoolCheckoutResult {
        let source = match (self.mode, taken) {
            (Mode::Bypass, _) => From::Bypassed,
            (_, Some(_)) => From::ReadyInstance,
            (_, None) => From::ColdCreate,
        };
        WarmPoolCheckoutResult {
            source,
            hit: taken.is_some(),
            id: self.pool.as_ref().map(|(id, _)| id.to_string()),
            mode: Some(self.mode),
        }
    }

    /// The template of the pool, for a create that names none.
    pub(crate) fn template(&self) -> Option<&str> {
        self.pool.as_ref().map(|(_, template)| template.as_ref())
    }
}

impl Inner {
    /// Reads the use of a warm pool from a create. `None`: it names none.
    pub(crate) async fn checkout(&self, caller: &Caller, request: &CreateSandboxRequest) -> Result<Option<Checkout>> {
        let Some(asked) = &request.warm_pool else { return Ok(None) };
        let wait = asked.wait_ms.unwrap_or_default();
        if wait > LONGEST_WAIT {
            return Err(Error::invalid(format!("warm_pool.wait_ms must be at most {LONGEST_WAIT}")));
        }
        let until = Instant::now() + Duration::from_millis(wait);
        let Some(id) = &asked.id else {
            return match asked.mode {
                Some(Mode::Bypass) => Ok(Some(Checkout { pool: None, mode: Mode::Bypass, unfit: None, until })),
                _ => Err(Error::invalid("warm_pool.id is needed, unless warm_pool.mode is bypass")),
            };
        };
        let row = self.pool_of(caller, id).await?;
        let spec: Spec = column("warm_pools.spec", &row.spec).stored()?;
        let mode = asked.mode.unwrap_or(spec.checkout_policy);
        let unfit = match row.state {
            WarmPoolState::Enabled => {
                not_poolable(request).map(|field| format!("it has no machines for creates with {field}"))
            }
            state => Some(format!("it is {state}")),
        };
        Ok(Some(Checkout { pool: Some((row.id, spec.reference()?.into())), mode, unfit, until }))
    }

    /// Takes a spare of this artifact, waiting as long as the create does. `None`: it is made without one.
    ///
    /// # Errors
    /// `warm_pool_unavailable` for a create that requires one.
    pub(crate) async fn take_spare(
        &self,
        caller: &Caller,
        checkout: &Checkout,
        artifact: ArtifactId,
    ) -> Result<Option<SpareId>> {
        let (Some((pool, _)), false) = (&checkout.pool, checkout.mode == Mode::Bypass) else { return Ok(None) };
        let why = match &checkout.unfit {
            Some(why) => why.clone(),
            None => match self.wait_for_spare(caller, *pool, artifact, checkout.until).await? {
                Ok(spare) => return Ok(Some(spare)),
                Err(why) => why,
            },
        };
        if checkout.mode == Mode::Require {
            let retry_after = checkout.unfit.is_none().then_some(RETRY_AFTER);
            let message = format!("warm pool {pool} has no machine for this create: {why}");
            return Err(Error { retry_after, ..Error::new(Code::WarmPoolUnavailable, message) });
        }
        tracing::debug!(%pool, why, "a create is cold");
        Ok(None)
    }

    /// A spare, or why there is none.
    async fn wait_for_spare(
        &self,
        caller: &Caller,
        pool: WarmPoolId,
        artifact: ArtifactId,
        until: Instant,
    ) -> Result<std::result::Result<SpareId, String>> {
        let row: WarmPool = self.pool_of(caller, &pool.to_string()).await?;
        if row.artifact != artifact {
            return Ok(Err("its machines are of another build of the template, or of another template".to_owned()));
        }
        let mut missed = false;
        loop {
            // Before the look: what becomes ready after it wakes.
            let ready = self.pools.ready.notified();
            tokio::pin!(ready);
            ready.as_mut().enable();
            {
                let mut stocks = self.pools.stocks();
                let stock = stocks.entry(pool).or_default();
                if let Some(spare) = stock.take(artifact, Instant::now()) {
                    drop(stocks);
                    self.pools.wake.notify_one();
                    return Ok(Ok(spare));
                }
                if !missed {
                    missed = true;
                    stock.missed(Instant::now());
                    self.pools.wake.notify_one();
                }
                if Instant::now() >= until {
                    return Ok(Err(stock.lack()));
                }
            }
            // Over: one last look.
            let _ = timeout_at(until.into(), ready).await;
        }
    }
}

/// The field of a create that a machine without identity is not ready for.
fn not_poolable(request: &CreateSandboxRequest) -> Option<&'static str> {
    let keeps = request.lifecycle.as_ref().and_then(|lifecycle| lifecycle.on_timeout);
    [
        ("envs", request.envs.as_ref().is_some_and(|envs| !envs.0.is_empty())),
        ("volumes", request.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty())),
        ("cwd", request.cwd.is_some()),
        ("desktop", request.desktop.is_some()),
        ("internet_access false", request.internet_access == Some(false)),
        ("network", request.network.is_some()),
        ("timeout_action hibernate", request.timeout_action == Some(SandboxTimeoutAction::Hibernate)),
        ("lifecycle.on_timeout pause", keeps == Some(LifecycleConfigOnTimeout::Pause)),
        ("auto_resume", request.auto_resume == Some(true)),
    ]
    .into_iter()
    .find_map(|(field, given)| given.then_some(field))
}

/// Refuses or passes a create from a snapshot that names a warm pool: pools have machines of templates alone.
pub(crate) fn refuse_for_snapshot(request: &CreateSandboxRequest) -> Result<()> {
    match request.warm_pool.as_ref().and_then(|asked| asked.mode) {
        Some(Mode::Require) => {
            let message = "a warm pool has machines of a template: a create from a snapshot takes none";
            Err(Error::new(Code::WarmPoolUnavailable, message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_machine_without_identity_is_not_ready_for() {
        let field = |request: serde_json::Value| not_poolable(&serde_json::from_value(request).unwrap());
        for fits in [
            json!({}),
            json!({"template": "web", "timeout_ms": 5, "metadata": {"a": 1}, "envs": {}, "volumes": [], "ephemeral": true,
                "internet_access": true, "timeout_action": "destroy", "auto_resume": false, "vcpus": 1,
                "lifecycle": {"on_timeout": "destroy"}, "inactivity_timeout_ms": 5000}),
        ] {
            assert_eq!(field(fits.clone()), None, "{fits}");
        }
        for (unfit, named) in [
            (json!({"envs": {"A": "1"}}), "envs"),
            (json!({"cwd": "/srv"}), "cwd"),
            (json!({"internet_access": false}), "internet_access false"),
            (json!({"network": {"allow_public_traffic": true}}), "network"),
            (json!({"timeout_action": "hibernate"}), "timeout_action hibernate"),
            (json!({"lifecycle": {"on_timeout": "pause"}}), "lifecycle.on_timeout pause"),
            (json!({"auto_resume": true}), "auto_resume"),
        ] {
            assert_eq!(field(unfit), Some(named));
        }
    }
}
