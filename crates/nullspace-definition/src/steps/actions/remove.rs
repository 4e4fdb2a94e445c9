//! `remove`: removes a file or folder.

use nullspace_api::TemplateRemoveStep;

use crate::encoder::Encoder;
use crate::shell::quote;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::{Effect, Task};

impl Action for TemplateRemoveStep {
    fn check(&self, check: &mut Check<'_>) {
        check.path("path", &self.path);
        if self.path.split('/').all(|part| part.is_empty() || part == ".") && self.path.starts_with('/') {
            check.say("path", "is the whole root: name what is to go");
        }
    }

    fn key(&self, key: &mut Encoder, _files: &Files<'_>) {
        let TemplateRemoveStep { path, recursive, force } = self;
        key.text("remove");
        key.text(path);
        key.flag(*recursive == Some(true));
        key.flag(*force == Some(true));
    }

    fn render(&self) -> Vec<Line> {
        let flags = match (self.recursive.unwrap_or(false), self.force.unwrap_or(false)) {
            (false, false) => "",
            (true, false) => "-r ",
            (false, true) => "-f ",
            (true, true) => "-rf ",
        };
        Line::run(format!("rm {flags}{}", quote(&self.path)))
    }

    fn effect(&self) -> Effect<'_> {
        let (recursive, force) = (self.recursive == Some(true), self.force == Some(true));
        Effect::Tasks(vec![Task::Remove { path: &self.path, recursive, force }])
    }
}
