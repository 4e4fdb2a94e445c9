//! `make_symlink`: a symbolic link.

use nullspace_api::TemplateMakeSymlinkStep;

use crate::encoder::Encoder;
use crate::shell::quote;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::{Effect, Task};

impl Action for TemplateMakeSymlinkStep {
    fn check(&self, check: &mut Check<'_>) {
        check.path("target", &self.target);
        check.path("path", &self.path);
    }

    fn key(&self, key: &mut Encoder, _files: &Files<'_>) {
        let TemplateMakeSymlinkStep { target, path } = self;
        key.text("make_symlink");
        key.text(target);
        key.text(path);
    }

    fn render(&self) -> Vec<Line> {
        Line::run(format!("ln -s {} {}", quote(&self.target), quote(&self.path)))
    }

    fn effect(&self) -> Effect<'_> {
        Effect::Tasks(vec![Task::MakeSymlink { target: &self.target, path: &self.path }])
    }
}
