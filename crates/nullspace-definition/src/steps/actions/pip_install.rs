//! `pip_install`: packages of Python.

use nullspace_api::TemplatePipInstallStep;

use crate::encoder::Encoder;
use crate::shell;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::{Command, Effect, words};

impl Action for TemplatePipInstallStep {
    fn check(&self, check: &mut Check<'_>) {
        check.packages(&self.packages);
    }

    fn key(&self, key: &mut Encoder, _files: &Files<'_>) {
        let TemplatePipInstallStep { packages, g } = self;
        key.text("pip_install");
        key.texts(packages);
        key.flag(*g != Some(false));
    }

    fn render(&self) -> Vec<Line> {
        let user = if self.g == Some(false) { "--user " } else { "" };
        Line::run(format!("pip install {user}--no-cache-dir {}", shell::line(&self.packages)))
    }

    fn effect(&self) -> Effect<'_> {
        let mut arguments = words(&["install", "--no-cache-dir"]);
        if self.g == Some(false) {
            arguments.push("--user".to_owned());
        }
        arguments.extend(self.packages.clone());
        let pip = Command::new(&[&["pip"], &["pip3"], &["python3", "-m", "pip"]], arguments)
            // The template is the environment: Debian's pip asks for another one otherwise.
            .env("PIP_BREAK_SYSTEM_PACKAGES", "1")
            .env("PIP_ROOT_USER_ACTION", "ignore")
            .env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        Effect::Tasks(vec![pip.task()])
    }
}
