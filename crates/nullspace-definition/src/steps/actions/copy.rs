//! `copy`: files of the build context into the machine.

use nullspace_api::TemplateCopyStep;

use crate::encoder::Encoder;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::copies::{self, Copy};
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::{Effect, Task};

impl Action for TemplateCopyStep {
    fn check(&self, check: &mut Check<'_>) {
        check.copy(&Copy::of_step(self));
    }

    fn key(&self, key: &mut Encoder, files: &Files<'_>) {
        copies::encode(&[Copy::of_step(self)], key, files);
    }

    fn render(&self) -> Vec<Line> {
        vec![Copy::of_step(self).line()]
    }

    fn effect(&self) -> Effect<'_> {
        Effect::Tasks(vec![Task::Copy(Copy::of_step(self))])
    }
}
