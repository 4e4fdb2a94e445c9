//! The keeper of all pools: compares their spares with what their rows say, and has the host make and end some.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nullspace_api::{ErrorResponseCode as Code, TemplateWarmPoolDegradedReason as Reason};
use nullspace_db::{DbError, WarmPool, WarmPoolState};
use nullspace_host_interface::SpareSpec;
use nullspace_service::chain;
use nullspace_types::{Caller, SpareId, WarmPoolId};

use super::spec::{Identity, Spec, Version};
use super::stock::{Ready, Want};
use crate::Inner;
use crate::catalog::templates::template_snapshot;
use crate::catalog::wire::column;
use crate::error::{Error, Result, Stored, internal};

/// Time between two comparisons, with and without pools.
const OFTEN: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(60);
/// Time between two looks at the tags that pools follow.
const TAGS: Duration = Duration::from_secs(5);
/// Time between two removals of pools that were deleted, and most of one.
const FORGET: Duration = Duration::from_secs(3600);
const BATCH: u32 = 100;

/// Keeps the pools until the service stops. Their spares end with the host.
pub(crate) async fn keep(inner: Arc<Inner>) {
    let (mut tags, mut forgot): (Option<Instant>, Option<Instant>) = (None, None);
    loop {
        let look = tags.is_none_or(|last| last.elapsed() >= TAGS);
        if look {
            tags = Some(Instant::now());
        }
        let pools = match inner.keep_pools(look).await {
            Ok(pools) => pools,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "warm pools are not kept: the database does not answer");
                1
            }
        };
        if forgot.is_none_or(|last| last.elapsed() >= FORGET) {
            forgot = Some(Instant::now());
            inner.forget_pools().await;
        }
        tokio::select! {
            () = inner.shutdown.cancelled() => return,
            () = inner.pools.wake.notified() => tags = None,
            () = tokio::time::sleep(if pools > 0 { OFTEN } else { SELDOM }) => {}
        }
    }
}

impl Inner {
    /// Compares all pools once. `look`: also at the tags that they follow. Returns their number.
    pub(super) async fn keep_pools(self: &Arc<Self>, look: bool) -> std::result::Result<usize, DbError> {
        let rows = self.db.warm_pools().await?;
        let known = rows.iter().map(|row| row.id).collect();
        self.end_stocks_but(&known).await;
        if rows.is_empty() {
            return Ok(0);
        }
        // Before the host is asked: what is made meanwhile is not among its answer.
        let asked = Instant::now();
        let running: HashSet<SpareId> = self.host.spares().await.into_iter().collect();
        let number = rows.len();
        for row in rows {
            if let Err(error) = self.keep_pool(row, &running, asked, look).await {
                tracing::warn!(%error, "a warm pool is not kept");
            }
        }
        Ok(number)
    }

    async fn keep_pool(
        self: &Arc<Self>,
        row: WarmPool,
        running: &HashSet<SpareId>,
        asked: Instant,
        look: bool,
    ) -> Result<()> {
        let spec: Spec = column("warm_pools.spec", &row.spec).stored()?;
        let enabled = row.state == WarmPoolState::Enabled;
        let row = if enabled && look && spec.tracks() { self.follow_tag(row, &spec).await? } else { row };
        let want = want(&row, &spec);
        let plan = {
            let mut stocks = self.pools.stocks();
            let stock = stocks.entry(row.id).or_default();
            stock.compared_at = Some(Timestamp::now());
            stock.plan(want, running, asked)
        };
        for _ in 0..plan.make {
            self.tasks.spawn(make(Arc::clone(self), row.clone()));
        }
        if !plan.end.is_empty() {
            let (inner, pool) = (Arc::clone(self), row.id);
            self.tasks.spawn(async move {
                for id in &plan.end {
                    inner.host.end_spare(*id).await;
                }
                if let Some(stock) = inner.pools.stocks().get_mut(&pool) {
                    stock.ended(plan.end.len());
                }
            });
        }
        Ok(())
    }

    /// Moves a pool to the build that its tag points to now.
    async fn follow_tag(&self, row: WarmPool, spec: &Spec) -> Result<WarmPool> {
        let version: Version = column("warm_pools.version", &row.version).stored()?;
        let now = match self.identity(&row, spec).await {
            Ok(now) => now,
            Err(error) if matches!(error.code, Code::TemplateNotFound | Code::RebuildRequired) => {
                self.pools.stocks().entry(row.id).or_default().is_without_template();
                return Ok(row);
            }
            Err(error) => return Err(error),
        };
        let Some(next) = version.after(now) else { return Ok(row) };
        let artifact = next.now.artifact;
        tracing::info!(pool = %row.id, generation = next.generation, %artifact, "a warm pool moves with its tag");
        let moved = WarmPool { artifact, version: serde_json::json!(next), ..row.clone() };
        match self.db.change_warm_pool(moved, row.updated_at, self.warm_limits(), Timestamp::now()).await {
            // The next comparison looks again.
            Err(DbError::Conflict { .. } | DbError::LimitReached { .. }) => Ok(row),
            changed => changed.stored(),
        }
    }

    /// The build that a pool's reference means now, for its owner.
    pub(super) async fn identity(&self, row: &WarmPool, spec: &Spec) -> Result<Identity> {
        let owner = Caller { tenant: row.tenant, namespace: spec.namespace.clone(), key: None, read_only: false };
        let found = self.resolve(&owner, &spec.reference()?).await?;
        Ok(Identity {
            template: found.template.canonical_ref(),
            build: found.artifact.build,
            artifact: found.artifact.id,
        })
    }

    /// Ends the spares of pools that are not among these.
    async fn end_stocks_but(&self, known: &HashSet<WarmPoolId>) {
        let gone: Vec<SpareId> = {
            let mut stocks = self.pools.stocks();
            let gone = stocks.iter_mut().filter(|(id, _)| !known.contains(id));
            let gone = gone.flat_map(|(_, stock)| stock.ready.drain(..)).map(|spare| spare.id).collect();
            // Those that are being made find their pool gone.
            stocks.retain(|id, _| known.contains(id));
            gone
        };
        for id in gone {
            self.host.end_spare(id).await;
        }
    }

    async fn forget_pools(&self) {
        let age = SignedDuration::try_from(self.config.retention.sandboxes).unwrap_or(SignedDuration::MAX);
        let before = Timestamp::now().checked_sub(age).unwrap_or(Timestamp::MIN);
        if let Err(error) = self.db.forget_warm_pools(before, BATCH).await {
            tracing::warn!(error = %chain(&error), "deleted warm pools stay for now");
        }
    }

    /// Resumes one spare for a pool.
    async fn prepare(&self, row: &WarmPool, id: SpareId) -> Result<()> {
        let gone = || Error::new(Code::TemplateNotFound, "the template of this warm pool was deleted");
        let snapshot = template_snapshot(self.db.get_artifact(row.artifact).await.or_missing(gone)?)?;
        if let Err(unfit) = self.host.judge(&snapshot.summary) {
            return Err(Error::new(Code::IncompatibleSnapshot, unfit.to_string()));
        }
        self.host.prepare_spare(SpareSpec { id, tenant: row.tenant, snapshot }).await
    }
}

/// What a pool should have now.
pub(super) fn want(row: &WarmPool, spec: &Spec) -> Want {
    Want {
        enabled: row.state == WarmPoolState::Enabled,
        artifact: row.artifact,
        min_ready: spec.min_ready,
        max_ready: spec.max_ready,
        idle: Duration::from_secs(spec.idle_timeout_seconds.into()),
        stale: Duration::from_secs(spec.stale_after_seconds.into()),
    }
}

/// Makes a spare, and puts it into its pool's stock.
async fn make(inner: Arc<Inner>, row: WarmPool) {
    let id = SpareId::new();
    let made = tokio::select! {
        biased;
        () = inner.shutdown.cancelled() => Err(internal_stop()),
        made = async {
            let _turn = inner.pools.making.acquire().await.map_err(|error| internal("make a spare", &error))?;
            // It may have been enough meanwhile: the next comparison ends what is too much.
            inner.prepare(&row, id).await
        } => made,
    };
    let kept = {
        let mut stocks = inner.pools.stocks();
        match (stocks.get_mut(&row.id), &made) {
            (Some(stock), Ok(())) => {
                stock.made(Ready { id, artifact: row.artifact, made: Instant::now() });
                true
            }
            (Some(stock), Err(error)) => {
                stock.not_made(reason(error), Instant::now());
                false
            }
            (None, _) => false,
        }
    };
    match made {
        Ok(()) if kept => inner.pools.ready.notify_waiters(),
        Ok(()) => inner.host.end_spare(id).await,
        Err(_) if inner.shutdown.is_cancelled() => {}
        Err(error) => tracing::info!(pool = %row.id, %error, "a spare of a warm pool is not made"),
    }
}

fn internal_stop() -> Error {
    Error::new(Code::FeatureUnavailable, "the service is stopping")
}

/// Why a pool has too few spares.
fn reason(error: &Error) -> Reason {
    match error.code {
        Code::CapacityExceeded | Code::FeatureUnavailable | Code::NoEligibleRuntimeHost => Reason::NoEligibleHosts,
        Code::QuotaExceeded => Reason::QuotaExceeded,
        Code::TemplateNotFound => Reason::TemplateBuildUnavailable,
        Code::RebuildRequired | Code::IncompatibleSnapshot => Reason::ArtifactNotReady,
        _ => Reason::ArtifactPrewarmFailed,
    }
}
