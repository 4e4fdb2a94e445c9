//! `make_dir`: a folder, and missing folders above it.

use nullspace_api::TemplateMakeDirStep;

use crate::encoder::Encoder;
use crate::shell::quote;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::copies::{mode_bits, octal};
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::{Effect, Task};

impl Action for TemplateMakeDirStep {
    fn check(&self, check: &mut Check<'_>) {
        check.path("path", &self.path);
        check.mode(self.mode.as_ref());
    }

    fn key(&self, key: &mut Encoder, _files: &Files<'_>) {
        let TemplateMakeDirStep { path, mode } = self;
        key.text("make_dir");
        key.text(path);
        key.optional_number(mode.as_ref().and_then(mode_bits));
    }

    fn render(&self) -> Vec<Line> {
        let path = quote(&self.path);
        match &self.mode {
            None => Line::run(format!("mkdir -p {path}")),
            Some(mode) => Line::run(format!("mkdir -p {path} && chmod {} {path}", octal(mode))),
        }
    }

    fn effect(&self) -> Effect<'_> {
        Effect::Tasks(vec![Task::MakeDir { path: &self.path, mode: self.mode.as_ref().and_then(mode_bits) }])
    }
}
