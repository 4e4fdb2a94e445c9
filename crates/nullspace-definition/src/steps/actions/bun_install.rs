//! `bun_install`: packages of Node.js by Bun.

use nullspace_api::TemplateBunInstallStep;

use crate::encoder::Encoder;
use crate::shell;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::{Command, Effect, words};

impl Action for TemplateBunInstallStep {
    fn check(&self, check: &mut Check<'_>) {
        check.packages(&self.packages);
    }

    fn key(&self, key: &mut Encoder, _files: &Files<'_>) {
        let TemplateBunInstallStep { packages, g } = self;
        key.text("bun_install");
        key.texts(packages);
        key.flag(*g == Some(true));
    }

    fn render(&self) -> Vec<Line> {
        let global = if self.g == Some(true) { "--global " } else { "" };
        Line::run(format!("bun add {global}{}", shell::line(&self.packages)))
    }

    fn effect(&self) -> Effect<'_> {
        let global = (self.g == Some(true)).then(|| "--global".to_owned());
        let arguments = words(&["add"]).into_iter().chain(global).chain(self.packages.clone());
        Effect::Tasks(vec![Command::new(&[&["bun"]], arguments).task()])
    }
}
