//! What a build is looked at for before anything is prepared, and what its request is told again once its source is known.

use std::collections::BTreeSet;

use jiff::Timestamp;
use nullspace_api::{
    TemplateBuildConfig, TemplateBuildLogLevel, TemplateFailureDetailCode, TemplateFailurePhase as Phase,
};
use nullspace_store::{Build, Lease};
use serde_json::json;

use crate::Inner;
use crate::failure::{BuildFailure, reason};
use crate::logs::BuildLog;
use crate::pipeline::Error;
use crate::plan::{BuildPlan, Source};
use crate::prepare::Prepared;
use crate::records::column;

/// Paths that are named in one message.
const MAX_NAMED: usize = 10;

/// Ends a build whose context has files that nobody uploaded: such a build is accepted, since its request may have been
/// sent in good faith, and fails before its first phase.
pub(crate) async fn context(inner: &Inner, lease: &Lease, plan: &BuildPlan) -> Result<(), Error> {
    if plan.context.is_empty() {
        return Ok(());
    }
    let held: BTreeSet<String> =
        inner.metadata.held_blobs(lease).await?.into_iter().map(|blob| blob.id.to_string()).collect();
    let lacks = |id: &String| !held.contains(id);
    let unknown: Vec<(&String, &String)> = plan
        .context
        .0
        .iter()
        .filter_map(|(path, entry)| Some((path, entry.blob.as_ref().filter(|id| lacks(id))?)))
        .collect();
    let Some((path, id)) = unknown.first() else { return Ok(()) };
    let named: Vec<String> = unknown
        .iter()
        .take(MAX_NAMED)
        .map(|(path, id)| format!("'{}' ({})", path.escape_debug(), id.escape_debug()))
        .collect();
    let message = format!("files of the build context were never uploaded: {}", named.join(", "));
    let advice =
        "Ask POST /v1/templates/blobs/preflight which files to upload, upload them, and send the request again.";
    let mut failure = BuildFailure::user(Phase::Preflight, reason::UNKNOWN_BLOB, message, advice)
        .with("path", path.as_str())
        .with("blob_id", id.as_str())
        .with("count", unknown.len());
    failure.code = TemplateFailureDetailCode::FileUploadError;
    Err(failure.into())
}

/// What the disk of this size is larger than was asked for, if it is.
pub(crate) fn larger_disk(asked_mib: Option<u32>, bytes: u64, from: &str) -> Option<String> {
    let asked = asked_mib.filter(|mib| u64::from(*mib) << 20 < bytes)?;
    Some(format!(
        "disk_mb is {asked}, and the disk has {} MiB as {from} has: a disk can grow, and not shrink",
        bytes >> 20
    ))
}

/// Says, and keeps in the build's row, what the disk has when that is more than was asked for.
pub(crate) async fn disk(
    inner: &Inner,
    build: &Build,
    lease: &Lease,
    plan: &BuildPlan,
    prepared: &Prepared,
    log: &BuildLog,
) -> Result<(), Error> {
    let from = match &plan.source {
        Source::Image { reference } | Source::Template { reference, .. } => reference.as_str(),
        Source::Dockerfile(_) => "the Dockerfile's image",
        Source::BaseTar { .. } => "the base",
    };
    let Some(warning) = larger_disk(plan.machine.disk_mb, prepared.disk_bytes, from) else { return Ok(()) };
    let mut config: TemplateBuildConfig = column("builds.build_config", &build.build_config)?;
    config.disk_mb = u32::try_from(prepared.disk_bytes >> 20).ok();
    inner.metadata.set_build_config(lease, json!(config), Timestamp::now()).await?;
    log.append(vec![log.message("prepare", TemplateBuildLogLevel::Warn, warning)]).await?;
    Ok(())
}
