//! Declarative steps: their rules, their Dockerfile, and their running in a build machine.
//!
//! ```text
//!   request ── rules ──> BuildPlan.steps ── units ──> [unit, unit, …]   each with user, workdir and environment it runs in
//!                                                        │
//!      key = H(parent's key, unit, digests of its files) ├─ found: the parent is that layer now
//!                                                        └─ not:   machine over the parent ── run ── freeze, capture ── layer
//! ```
//! Docker's meaning, in a machine instead of a container: what `USER` and `WORKDIR` set holds for the steps that follow,
//! no process of a step outlives it, and only files of the root are kept. Values of steps are arguments and messages of
//! the protocol; a shell sees nothing but the command of a `run`.

mod commands;
mod copy;
mod keys;
mod render;
mod rules;
mod run;
mod sources;
mod stage;
mod trust;
mod units;

use std::borrow::Cow;
use std::collections::BTreeSet;

use nullspace_api::{TemplateCopyItem, TemplateCopyStep, TemplateFileMode, TemplateStep};
use nullspace_store::WantedBlob;

use crate::plan::BuildPlan;

pub(crate) use render::render;
pub(crate) use rules::check;
pub(crate) use sources::named;
pub(crate) use stage::{Stage, Staged};
pub(crate) use units::join;

/// A copy as the one item of a `copy_items`.
pub(crate) fn item(copy: &TemplateCopyStep) -> TemplateCopyItem {
    TemplateCopyItem {
        sources: copy.sources.clone(),
        dst: copy.dst.clone(),
        user: copy.user.clone(),
        mode: copy.mode.clone(),
        force_upload: copy.force_upload,
    }
}

/// The copies of a step, in their order; none of a step that copies nothing.
pub(crate) fn copies(step: &TemplateStep) -> Cow<'_, [TemplateCopyItem]> {
    match step {
        TemplateStep::Copy(copy) => Cow::Owned(vec![item(copy)]),
        TemplateStep::CopyItems(copies) => Cow::Borrowed(&copies.items),
        _ => Cow::Borrowed(&[]),
    }
}

/// The files of a build's context; forced where a step wants them taken anew.
pub(crate) fn wanted_blobs(plan: &BuildPlan) -> Vec<WantedBlob> {
    let mut forced = BTreeSet::new();
    for step in &plan.steps {
        for item in copies(step).iter().filter(|item| item.force_upload == Some(true)) {
            for source in item.sources.iter().flat_map(|source| sources::resolve(&plan.context, source)) {
                forced.extend(source.entries.into_iter().filter_map(|entry| entry.blob));
            }
        }
    }
    let blobs = plan.context.blobs().into_iter();
    blobs.map(|id| WantedBlob { force: forced.contains(&id.to_string()), id }).collect()
}

/// Permission bits that a checked step gives.
fn unit_mode(mode: &TemplateFileMode) -> Option<u32> {
    match mode {
        TemplateFileMode::Number(bits) => Some(*bits),
        TemplateFileMode::Octal(text) => u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8).ok(),
    }
}
