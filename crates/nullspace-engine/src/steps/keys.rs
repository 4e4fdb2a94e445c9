//! Cache keys of layers and of finished artifacts.
//!
//! A key is BLAKE3 over parts, each behind its length, lists behind their count and options behind a flag: two different
//! inputs never give the same bytes. What is in it is everything that the result depends on and the service knows.

use std::collections::{BTreeMap, HashMap};

use nullspace_api::{TemplateFileMode, TemplateStep};
use nullspace_store::TenantId;
use nullspace_vmm::Compatibility;

use super::sources::{self, Source};
use super::units::Unit;
use super::{copies, unit_mode};
use crate::context::PlannedContext;
use crate::plan::{MachineSize, Runtime};

/// Version of how steps are run; raise it when the same step would leave something else behind.
const EXECUTOR: &str = "1";

/// Encodes parts so that where one ends is never in doubt.
struct Encoder(blake3::Hasher);

impl Encoder {
    fn new(kind: &str) -> Encoder {
        let mut encoder = Encoder(blake3::Hasher::new());
        encoder.text(kind);
        encoder
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn count(&mut self, count: usize) {
        self.number(u64::try_from(count).unwrap_or(u64::MAX));
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text.as_bytes());
    }

    fn flag(&mut self, flag: bool) {
        self.0.update(&[u8::from(flag)]);
    }

    fn option(&mut self, text: Option<&str>) {
        self.flag(text.is_some());
        if let Some(text) = text {
            self.text(text);
        }
    }

    fn optional_number(&mut self, number: Option<u32>) {
        self.flag(number.is_some());
        self.number(number.unwrap_or_default().into());
    }

    fn texts(&mut self, texts: &[String]) {
        self.count(texts.len());
        texts.iter().for_each(|text| self.text(text));
    }

    fn map(&mut self, map: &BTreeMap<String, String>) {
        self.count(map.len());
        for (key, value) in map {
            self.text(key);
            self.text(value);
        }
    }

    fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// What every layer of a build has in common.
#[derive(Debug, Clone)]
pub(crate) struct Ground<'b> {
    pub(crate) tenant: TenantId,
    /// Disk of the machine, bytes.
    pub(crate) disk_bytes: u64,
    /// Variables of the build.
    pub(crate) envs: &'b BTreeMap<String, String>,
    /// Whether the network is on.
    pub(crate) network: bool,
    /// The guest's kernel and agent.
    pub(crate) guest: &'b str,
    /// ABI of the agent.
    pub(crate) agent_abi: u32,
    pub(crate) context: &'b PlannedContext,
    /// Generations of the context's files by blob id; 0 when not in here.
    pub(crate) generations: &'b HashMap<String, u64>,
}

/// The key of what `unit` leaves behind over the root image `parent`.
pub(crate) fn layer(ground: &Ground<'_>, parent: &str, unit: &Unit<'_>) -> String {
    let mut key = Encoder::new("layer");
    key.text(EXECUTOR);
    key.text(&ground.tenant.to_string());
    key.text(parent);
    key.number(ground.disk_bytes);
    key.map(ground.envs);
    key.flag(ground.network);
    key.text(ground.guest);
    key.number(ground.agent_abi.into());
    key.option(unit.at.user.as_deref());
    key.text(&unit.at.workdir);
    key.count(unit.folders.len());
    for folder in &unit.folders {
        key.text(&folder.path);
        key.option(folder.owner.as_deref());
    }
    key.flag(unit.step.is_some());
    if let Some(step) = unit.step {
        encode(&mut key, step, ground);
    }
    key.finish()
}

fn mode(mode: Option<&TemplateFileMode>) -> Option<u32> {
    mode.and_then(unit_mode)
}

fn encode(key: &mut Encoder, step: &TemplateStep, ground: &Ground<'_>) {
    match step {
        TemplateStep::Run(run) => {
            key.text("run");
            key.text(&run.command);
            key.option(run.user.as_deref());
        }
        TemplateStep::Copy(_) | TemplateStep::CopyItems(_) => {
            // One copy means the same as a list with it alone.
            key.text("copy");
            let items = copies(step);
            key.count(items.len());
            for item in items.iter() {
                key.text(&item.dst);
                key.option(item.user.as_deref());
                key.optional_number(mode(item.mode.as_ref()));
                let found: Vec<Source> =
                    item.sources.iter().flat_map(|source| sources::resolve(ground.context, source)).collect();
                key.count(found.len());
                found.iter().for_each(|source| files(key, source, ground));
            }
        }
        TemplateStep::AptInstall(install) => {
            key.text("apt_install");
            key.texts(&install.packages);
        }
        TemplateStep::PipInstall(install) => {
            key.text("pip_install");
            key.texts(&install.packages);
            key.flag(install.g != Some(false));
        }
        TemplateStep::NpmInstall(install) => {
            key.text("npm_install");
            key.texts(&install.packages);
            key.flag(install.g == Some(true));
        }
        TemplateStep::BunInstall(install) => {
            key.text("bun_install");
            key.texts(&install.packages);
            key.flag(install.g == Some(true));
        }
        TemplateStep::GitClone(clone) => {
            key.text("git_clone");
            key.text(&clone.url);
            key.option(clone.path.as_deref());
            key.option(clone.branch.as_deref());
            key.optional_number(clone.depth);
        }
        TemplateStep::MakeDir(make) => {
            key.text("make_dir");
            key.text(&make.path);
            key.optional_number(mode(make.mode.as_ref()));
        }
        TemplateStep::MakeSymlink(link) => {
            key.text("make_symlink");
            key.text(&link.target);
            key.text(&link.path);
        }
        TemplateStep::Remove(remove) => {
            key.text("remove");
            key.text(&remove.path);
            key.flag(remove.recursive == Some(true));
            key.flag(remove.force == Some(true));
        }
        TemplateStep::Rename(rename) => {
            key.text("rename");
            key.text(&rename.src);
            key.text(&rename.dst);
        }
        // Not units: they are in the state of those that follow.
        TemplateStep::Workdir(_) | TemplateStep::User(_) | TemplateStep::SkipCache(_) => {}
    }
}

fn files(key: &mut Encoder, source: &Source, ground: &Ground<'_>) {
    key.option(source.name.as_deref());
    key.count(source.entries.len());
    for entry in &source.entries {
        key.text(&entry.path);
        key.number(entry.mode.into());
        key.option(entry.blob.as_deref());
        let generation = entry.blob.as_ref().and_then(|blob| ground.generations.get(blob));
        key.number(generation.copied().unwrap_or_default());
    }
}

/// A root image's own key: new each time a unit runs, since two runs leave two trees.
pub(crate) fn image(layer: &str, build: &str, epoch: u64) -> String {
    let mut key = Encoder::new("layer image");
    key.text(layer);
    key.text(build);
    key.number(epoch);
    key.finish()
}

/// The key of a finished artifact over the root image `root`.
pub(crate) fn artifact(
    tenant: TenantId,
    root: &str,
    runtime: &Runtime,
    build_envs: &BTreeMap<String, String>,
    machine: &MachineSize,
    disk_bytes: u64,
    host: &Compatibility,
) -> String {
    let mut key = Encoder::new("artifact");
    key.text(EXECUTOR);
    key.text(&tenant.to_string());
    key.text(root);
    // Structs of ours: their JSON has its fields in one order and says where each ends.
    for part in [serde_json::to_string(runtime), serde_json::to_string(machine), serde_json::to_string(host)] {
        key.text(&part.unwrap_or_default());
    }
    key.map(build_envs);
    key.number(disk_bytes);
    key.finish()
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
