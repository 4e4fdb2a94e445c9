//! `npm_install`: packages of Node.js by npm.

use nullspace_api::TemplateNpmInstallStep;

use crate::encoder::Encoder;
use crate::shell;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::{Command, Effect, words};

impl Action for TemplateNpmInstallStep {
    fn check(&self, check: &mut Check<'_>) {
        check.packages(&self.packages);
    }

    fn key(&self, key: &mut Encoder, _files: &Files<'_>) {
        let TemplateNpmInstallStep { packages, g } = self;
        key.text("npm_install");
        key.texts(packages);
        key.flag(*g == Some(true));
    }

    fn render(&self) -> Vec<Line> {
        let global = if self.g == Some(true) { "-g " } else { "" };
        Line::run(format!("npm install {global}{}", shell::line(&self.packages)))
    }

    fn effect(&self) -> Effect<'_> {
        let global = (self.g == Some(true)).then(|| "-g".to_owned());
        let arguments = words(&["install"]).into_iter().chain(global).chain(self.packages.clone());
        let npm = Command::new(&[&["npm"]], arguments).env("NPM_CONFIG_UPDATE_NOTIFIER", "false");
        Effect::Tasks(vec![npm.task()])
    }
}
