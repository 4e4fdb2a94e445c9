//! `rename`: moves a file or folder to another path.

use nullspace_api::TemplateRenameStep;

use crate::encoder::Encoder;
use crate::shell::quote;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::{Effect, Task};

impl Action for TemplateRenameStep {
    fn check(&self, check: &mut Check<'_>) {
        check.path("src", &self.src);
        check.path("dst", &self.dst);
    }

    fn key(&self, key: &mut Encoder, _files: &Files<'_>) {
        // `force` is in no key: what is at the new path is replaced with it and without.
        let TemplateRenameStep { src, dst, force: _ } = self;
        key.text("rename");
        key.text(src);
        key.text(dst);
    }

    fn render(&self) -> Vec<Line> {
        let force = if self.force == Some(true) { "-f " } else { "" };
        Line::run(format!("mv {force}{} {}", quote(&self.src), quote(&self.dst)))
    }

    fn effect(&self) -> Effect<'_> {
        Effect::Tasks(vec![Task::Rename { from: &self.src, to: &self.dst }])
    }
}
