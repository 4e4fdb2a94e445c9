//! `user`: the user of the following steps.

use nullspace_api::TemplateUserStep;

use crate::encoder::Encoder;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::Effect;

impl Action for TemplateUserStep {
    fn check(&self, check: &mut Check<'_>) {
        check.user(Some(&self.user));
    }

    fn key(&self, _key: &mut Encoder, _files: &Files<'_>) {
        // In the state of the units that follow.
        let TemplateUserStep { user: _ } = self;
    }

    fn render(&self) -> Vec<Line> {
        vec![Line { instruction: "USER", arguments: self.user.clone() }]
    }

    fn effect(&self) -> Effect<'_> {
        Effect::User(&self.user)
    }
}
