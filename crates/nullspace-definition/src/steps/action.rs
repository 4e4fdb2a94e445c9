//! The trait of actions: rules, part of a cache key, Dockerfile form, and effect.

use super::checks::Check;
use super::files::Files;
use super::line::Line;
use super::task::Effect;
use crate::encoder::Encoder;

/// An action, implemented by its wire type in the file of its name.
pub(super) trait Action {
    /// Checks the action's values.
    fn check(&self, check: &mut Check<'_>);

    /// Adds every value that the layer depends on to its key. Implementations name all fields of the wire type, each as a
    /// part or with the reason why it is not one.
    fn key(&self, key: &mut Encoder, files: &Files<'_>);

    /// The action as lines of a Dockerfile.
    fn render(&self) -> Vec<Line>;

    /// The effect of the action.
    fn effect(&self) -> Effect<'_>;

    /// The action as one line of the log, without credentials.
    fn shown(&self) -> String {
        let lines = self.render();
        lines.iter().map(|line| format!("{} {}", line.instruction, line.arguments)).collect::<Vec<_>>().join("; ")
    }
}
