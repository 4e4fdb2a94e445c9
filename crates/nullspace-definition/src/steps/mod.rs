//! Declarative steps: their rules, their effect in a machine, and their form as a Dockerfile.
//!
//! ```text
//!   actions/<action>.rs: check · key · render · effect        one file for each action, listed in actions/mod.rs
//!        ▲
//!   request ── check ──> Definition.steps ── lay ──> [unit, unit, …]   each with the state that it runs in
//!                                                       └─ effect ──> [task, task, …]   for the host's executor
//! ```
//! Steps have Docker's meaning, in a machine instead of a container: `USER` and `WORKDIR` hold for the following steps.
//! Values of steps are arguments and paths. Only the command of a `run` is passed to a shell.

mod action;
mod actions;
mod checks;
mod copies;
mod files;
mod line;
mod sources;
mod task;
mod units;

use std::collections::BTreeSet;

use nullspace_api::TemplateStep;
use nullspace_types::BlobId;

use crate::context::{Context, PlannedContext};
use crate::patterns::is_pattern;
use crate::problems::Wrong;

pub use copies::Copy;
pub(crate) use files::Files;
pub use line::Line;
pub use sources::{CopySource, SourceEntry, resolve};
pub use task::{Command, Effect, Task};
pub use units::{At, Folder, Laid, Unit, join, lay};

use self::action::Action;
use self::checks::Check;
use crate::encoder::Encoder;

/// Most steps of one request.
const MAX_STEPS: usize = 1_000;
/// Most patterns among the sources of one request. Each is compared with every entry of the context.
const MAX_PATTERNS: usize = 100;
/// The longest description of a step in the log, bytes.
const MAX_SHOWN: usize = 2_000;

/// Checks every step of a request.
pub fn check(steps: &[TemplateStep], context: &Context, wrong: &mut Wrong) {
    if steps.len() > MAX_STEPS {
        wrong.say("steps", format_args!("has more than {MAX_STEPS} entries"));
        return;
    }
    let patterns_of = |copy: Copy<'_>| copy.sources.iter().filter(|source| is_pattern(source)).count();
    let patterns: usize = steps.iter().flat_map(copies).map(patterns_of).sum();
    if patterns > MAX_PATTERNS {
        wrong.say("steps", format_args!("has more than {MAX_PATTERNS} patterns among its sources"));
        return;
    }
    for (index, step) in steps.iter().enumerate() {
        actions::of(step).check(&mut Check::new(format!("steps[{index}]"), context, wrong));
    }
}

/// A step as lines of a Dockerfile, for people and for comparison; none for a cache boundary. They are never built.
pub fn render(step: &TemplateStep) -> Vec<Line> {
    actions::of(step).render()
}

/// A step's line in the log, at most 2,000 bytes and an ellipsis, without credentials.
pub fn shown(step: &TemplateStep) -> String {
    let mut text = actions::of(step).shown();
    if let Some((cut, _)) = text.char_indices().find(|(at, _)| *at >= MAX_SHOWN) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// The effect of a step.
pub fn effect(step: &TemplateStep) -> Effect<'_> {
    actions::of(step).effect()
}

/// The copies of a step, in order. Empty for a step without copies.
pub fn copies(step: &TemplateStep) -> Vec<Copy<'_>> {
    let Effect::Tasks(tasks) = effect(step) else { return Vec::new() };
    let copy = |task| if let Task::Copy(copy) = task { Some(copy) } else { None };
    tasks.into_iter().filter_map(copy).collect()
}

/// The files that a step wants to have uploaded again.
pub fn forced_blobs(steps: &[TemplateStep], context: &PlannedContext) -> BTreeSet<BlobId> {
    let copies = steps.iter().flat_map(copies).filter(|copy| copy.force_upload);
    let sources = copies.flat_map(|copy| copy.sources).flat_map(|source| resolve(context, source));
    sources.flat_map(|source| source.entries).filter_map(|entry| entry.blob?.parse().ok()).collect()
}

/// Adds the effect of a unit's step to the key of its layer.
pub(crate) fn encode(step: &TemplateStep, key: &mut Encoder, files: &Files<'_>) {
    actions::of(step).key(key, files);
}

#[cfg(test)]
mod tests;
