//! `run`: a line for a shell.

use nullspace_api::TemplateRunStep;

use crate::encoder::Encoder;
use crate::shell::quote;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::{Command, Effect, Task, words};

impl Action for TemplateRunStep {
    fn check(&self, check: &mut Check<'_>) {
        check.filled("command", &self.command);
        check.user(self.user.as_deref());
    }

    fn key(&self, key: &mut Encoder, _files: &Files<'_>) {
        let TemplateRunStep { command, user } = self;
        key.text("run");
        key.text(command);
        key.option(user.as_deref());
    }

    fn render(&self) -> Vec<Line> {
        match &self.user {
            None => Line::run(self.command.clone()),
            Some(user) => Line::run(format!("su -s /bin/sh -c {} {}", quote(&self.command), quote(user))),
        }
    }

    fn effect(&self) -> Effect<'_> {
        let arguments = words(&["-c"]).into_iter().chain([self.command.clone()]);
        let command = Command::new(&[&["/bin/sh"]], arguments);
        Effect::Tasks(vec![Task::Run { command, user: self.user.as_deref() }])
    }

    fn shown(&self) -> String {
        // The Dockerfile form is a line for a shell.
        match &self.user {
            None => format!("RUN {}", self.command),
            Some(user) => format!("RUN {} (as {user})", self.command),
        }
    }
}
