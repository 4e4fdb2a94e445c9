//! The list of actions. A new action is a file here, and a line and an arm in this file.

mod apt_install;
mod bun_install;
mod copy;
mod copy_items;
mod git_clone;
mod make_dir;
mod make_symlink;
mod npm_install;
mod pip_install;
mod remove;
mod rename;
mod run;
mod skip_cache;
mod user;
mod workdir;

use nullspace_api::TemplateStep;

use super::Action;

/// The action of a step.
pub(super) fn of(step: &TemplateStep) -> &dyn Action {
    match step {
        TemplateStep::Run(step) => step,
        TemplateStep::Copy(step) => step,
        TemplateStep::CopyItems(step) => step,
        TemplateStep::AptInstall(step) => step,
        TemplateStep::PipInstall(step) => step,
        TemplateStep::NpmInstall(step) => step,
        TemplateStep::BunInstall(step) => step,
        TemplateStep::GitClone(step) => step,
        TemplateStep::Workdir(step) => step,
        TemplateStep::User(step) => step,
        TemplateStep::MakeDir(step) => step,
        TemplateStep::MakeSymlink(step) => step,
        TemplateStep::Remove(step) => step,
        TemplateStep::Rename(step) => step,
        TemplateStep::SkipCache(step) => step,
    }
}
