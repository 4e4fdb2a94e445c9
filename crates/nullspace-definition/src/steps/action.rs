//! What every action of a step has: its rules, its part of a cache key, its Dockerfile form, and its effect.

use std::collections::HashMap;

use nullspace_api::JsonObject;
use serde_json::json;

use super::checks::Check;
use super::sources::CopySource;
use super::task::Effect;
use crate::context::PlannedContext;
use crate::encoder::Encoder;

/// An action, implemented by its wire type in the file of its name.
pub(super) trait Action {
    /// Checks the action's values.
    fn check(&self, check: &mut Check<'_>);

    /// Adds to a layer's key every value that the layer depends on. Implementations name all fields of the wire type, each
    /// as a part or with the reason why it is none.
    fn key(&self, key: &mut Encoder, files: &Files<'_>);

    /// The action as lines of a Dockerfile.
    fn render(&self) -> Vec<Line>;

    /// What the action does.
    fn effect(&self) -> Effect<'_>;

    /// The action as one line of the log, without credentials.
    fn shown(&self) -> String {
        let lines = self.render();
        lines.iter().map(|line| format!("{} {}", line.instruction, line.arguments)).collect::<Vec<_>>().join("; ")
    }
}

/// One line of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The keyword.
    pub instruction: &'static str,
    /// What follows it.
    pub arguments: String,
}

impl Line {
    /// As `build_steps` shows it.
    pub fn shown(&self) -> JsonObject {
        let mut object = JsonObject::new();
        object.insert("instruction".to_owned(), json!(self.instruction));
        object.insert("arguments".to_owned(), json!(self.arguments));
        object
    }

    /// One `RUN` line.
    pub(super) fn run(arguments: String) -> Vec<Line> {
        vec![Line { instruction: "RUN", arguments }]
    }
}

/// The files that a build's steps can copy.
pub(crate) struct Files<'b> {
    /// The build context.
    pub(crate) context: &'b PlannedContext,
    /// Generations of its files by blob id; 0 for a file that is not in here.
    pub(crate) generations: &'b HashMap<String, u64>,
}

impl Files<'_> {
    /// Adds a copy's source: its name, and the path, mode and content of all that is in it.
    pub(super) fn encode(&self, key: &mut Encoder, source: &CopySource) {
        key.option(source.name.as_deref());
        key.count(source.entries.len());
        for entry in &source.entries {
            key.text(&entry.path);
            key.number(entry.mode.into());
            key.option(entry.blob.as_deref());
            let generation = entry.blob.as_ref().and_then(|blob| self.generations.get(blob));
            key.number(generation.copied().unwrap_or_default());
        }
    }
}
