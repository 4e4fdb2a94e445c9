//! `apt_install`: packages of Debian and Ubuntu.

use nullspace_api::TemplateAptInstallStep;

use crate::encoder::Encoder;
use crate::shell;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::{Command, Effect, Task, words};

/// Package lists are large and soon outdated, and the next step that needs them fetches them again.
const LISTS: &str = "/var/lib/apt/lists";

impl Action for TemplateAptInstallStep {
    fn check(&self, check: &mut Check<'_>) {
        check.packages(&self.packages);
    }

    fn key(&self, key: &mut Encoder, _files: &Files<'_>) {
        let TemplateAptInstallStep { packages } = self;
        key.text("apt_install");
        key.texts(packages);
    }

    fn render(&self) -> Vec<Line> {
        let packages = shell::line(&self.packages);
        Line::run(format!("apt-get update && apt-get install -y {packages} && rm -rf {LISTS}/*"))
    }

    fn effect(&self) -> Effect<'_> {
        let apt = |arguments: Vec<String>| {
            Command::new(&[&["apt-get"]], arguments).env("DEBIAN_FRONTEND", "noninteractive").task()
        };
        let mut install = words(&["install", "-y"]);
        install.extend(self.packages.clone());
        Effect::Tasks(vec![apt(words(&["update"])), apt(install), Task::Empty { path: LISTS }])
    }
}
