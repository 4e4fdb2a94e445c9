//! `workdir`: the working directory of the following steps.

use nullspace_api::TemplateWorkdirStep;

use crate::encoder::Encoder;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::Effect;

impl Action for TemplateWorkdirStep {
    fn check(&self, check: &mut Check<'_>) {
        check.path("path", &self.path);
    }

    fn key(&self, _key: &mut Encoder, _files: &Files<'_>) {
        // In the state and the folders of the units that follow.
        let TemplateWorkdirStep { path: _ } = self;
    }

    fn render(&self) -> Vec<Line> {
        vec![Line { instruction: "WORKDIR", arguments: self.path.clone() }]
    }

    fn effect(&self) -> Effect<'_> {
        Effect::Workdir(&self.path)
    }
}
