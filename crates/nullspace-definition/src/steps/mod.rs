//! Declarative steps: their rules, what each does in a machine, and how each reads as a Dockerfile.
//!
//! ```text
//!   actions/<action>.rs: check · key · render · effect        one file for each action, listed in actions/mod.rs
//!        ▲
//!   request ── check ──> Definition.steps ── lay ──> [unit, unit, …]   each with the state that it runs in
//!                                                       └─ effect ──> [task, task, …]   for whoever has a machine
//! ```
//! Docker's meaning, in a machine instead of a container: what `USER` and `WORKDIR` set holds for the steps that follow.
//! Values of steps are arguments and paths; a shell sees nothing but the command of a `run`.

mod action;
mod actions;
mod checks;
mod copies;
mod sources;
mod task;
mod units;

use std::collections::BTreeSet;

use nullspace_api::TemplateStep;
use nullspace_types::BlobId;

use crate::context::{Context, PlannedContext};
use crate::patterns::is_pattern;
use crate::problems::Wrong;

pub(crate) use action::Files;
pub use action::Line;
pub use copies::Copy;
pub use sources::{CopySource, SourceEntry, resolve};
pub use task::{Command, Effect, Task};
pub use units::{At, Folder, Laid, Unit, join, lay};

use self::action::Action;
use self::checks::Check;
use crate::encoder::Encoder;

/// Steps of one request.
const MAX_STEPS: usize = 1_000;
/// Patterns among the sources of one request: each is compared with every entry of the context.
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

/// The lines of a Dockerfile that say what a step does, for people and for comparing; none for a cache boundary. Nothing is
/// ever built from their text.
pub fn render(step: &TemplateStep) -> Vec<Line> {
    actions::of(step).render()
}

/// A step as its line in the log shows it, at most 2,000 bytes and an ellipsis: without credentials.
pub fn shown(step: &TemplateStep) -> String {
    let mut text = actions::of(step).shown();
    if let Some((cut, _)) = text.char_indices().find(|(at, _)| *at >= MAX_SHOWN) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// What a step does.
pub fn effect(step: &TemplateStep) -> Effect<'_> {
    actions::of(step).effect()
}

/// The copies of a step, in their order; none of a step that copies nothing.
pub fn copies(step: &TemplateStep) -> Vec<Copy<'_>> {
    let Effect::Tasks(tasks) = effect(step) else { return Vec::new() };
    let copy = |task| if let Task::Copy(copy) = task { Some(copy) } else { None };
    tasks.into_iter().filter_map(copy).collect()
}

/// The files that a step wants to be uploaded again.
pub fn forced_blobs(steps: &[TemplateStep], context: &PlannedContext) -> BTreeSet<BlobId> {
    let copies = steps.iter().flat_map(copies).filter(|copy| copy.force_upload);
    let sources = copies.flat_map(|copy| copy.sources).flat_map(|source| resolve(context, source));
    sources.flat_map(|source| source.entries).filter_map(|entry| entry.blob?.parse().ok()).collect()
}

/// Adds what a unit's step does to the key of its layer.
pub(crate) fn encode(step: &TemplateStep, key: &mut Encoder, files: &Files<'_>) {
    actions::of(step).key(key, files);
}

#[cfg(test)]
mod tests;
