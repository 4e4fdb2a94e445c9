//! A build's steps between its root image and its start command: finds known layers, and runs the rest.
//!
//! ```text
//!   root image ── look_up: known layers, one after the other ──┬─ all known: a finished artifact of the same key?
//!                                                              └─ else: a machine over the last known one
//!   run: each unit that is left ── freeze ── capture ── thaw ── layer ──> the machine goes on to the start command
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use nullspace_api::{
    TemplateBuildLogEntry, TemplateBuildLogEntryCacheReason as CacheReason, TemplateBuildLogLevel,
    TemplateFailurePhase as Phase, TemplateStep,
};
use nullspace_definition::keys::{self, Finished, Ground};
use nullspace_definition::runtime::Runtime;
use nullspace_definition::steps::{self, At, Laid, Unit, lay, shown};
use nullspace_host_interface::{CacheKind, FinishedArtifact, Place};
use nullspace_vmm::Compatibility;

use super::run::{Runner, place};
use super::trust::Trust;
use crate::build::cache::Answer;
use crate::build::phases::whole;
use crate::build::prepare::Prepared;
use crate::build::{Attempt, Error, layers};
use crate::failures;
use crate::machine::Machine;

/// Most layers that one machine makes. In a longer build only the last steps get layers.
const MOST_LAYERS: usize = 60;

/// One build in its step phase.
pub(crate) struct Stage<'a> {
    pub(crate) attempt: &'a Attempt,
}

/// The steps, laid out and looked up.
pub(crate) struct Staged<'a> {
    laid: Laid<'a>,
    /// Index of the first unit without a known layer; the number of units when all are known.
    from: usize,
    /// Variables of the steps.
    envs: BTreeMap<String, String>,
    generations: HashMap<String, u64>,
    /// The runtime settings of sandboxes.
    pub(crate) runtime: Runtime,
}

impl Staged<'_> {
    /// Whether all steps have known layers.
    pub(crate) fn is_known(&self) -> bool {
        self.from >= self.laid.units.len()
    }
}

impl<'a> Stage<'a> {
    /// Lays the steps out and finds their stored layers. `prepared` then names the last one.
    pub(crate) async fn look_up(&self, prepared: &mut Prepared) -> Result<Staged<'a>, Error> {
        let begin = At { user: prepared.runtime.user.clone(), workdir: prepared.runtime.workdir.clone() };
        let laid = lay(&self.attempt.job.definition.steps, begin);
        let mut runtime = prepared.runtime.clone();
        runtime.user = laid.end.user.clone();
        if runtime.workdir != laid.end.workdir {
            runtime.set_workdir(&laid.end.workdir);
        }
        let runtime = self.attempt.job.definition.runtime(runtime);
        let envs = self.attempt.job.definition.step_envs(&runtime);
        let held = if self.attempt.job.definition.context.is_empty() {
            Vec::new()
        } else {
            self.attempt.record.held_files().await?
        };
        let generations = held.into_iter().map(|file| (file.id.to_string(), file.generation)).collect();
        let mut staged = Staged { laid, from: 0, envs, generations, runtime };
        let mut entries = Vec::new();
        while let Some(unit) = staged.laid.units.get(staged.from) {
            let place = self.begin(&staged, unit, &mut entries);
            if self.not_asked(unit).is_some() {
                break;
            }
            let key =
                self.attempt.job.definition.layer_key(&self.ground(&staged, prepared), &prepared.rootfs.key, unit);
            let Some(found) = self.attempt.record.find_layer(&key).await? else { break };
            entries.push(self.attempt.cache.note(place, CacheKind::Layer, Answer::Hit, 1, &key, "Cache hit"));
            prepared.rootfs = found;
            staged.from += 1;
        }
        if staged.is_known() {
            entries.extend(self.passed(&staged.laid, &staged.laid.passed));
        }
        self.attempt.log.append(entries).await?;
        Ok(staged)
    }

    /// A finished artifact of the same key that can be reused, and the key.
    pub(crate) async fn finished(
        &self,
        staged: &Staged<'_>,
        prepared: &Prepared,
    ) -> Result<Option<(FinishedArtifact, String)>, Error> {
        let boundary = staged.laid.boundary.then_some(CacheReason::BuilderCacheBoundary);
        let not_asked =
            if self.attempt.job.definition.skip_cache { Some(CacheReason::WholeBuildSkipCache) } else { boundary };
        let key = self.final_key(staged, prepared);
        let found = match not_asked {
            None if staged.is_known() => self.attempt.record.find_final(&key).await?,
            _ => None,
        };
        // Something else may have removed its files: then it is made anew.
        let found = match found {
            Some(artifact)
                if !self.attempt.builder.files.has_snapshot(&artifact.folder, artifact.streams.as_ref())? =>
            {
                tracing::error!(artifact = %artifact.id, "the files of an artifact are missing");
                None
            }
            found => found,
        };
        let (answer, message) = match (&found, not_asked) {
            (Some(_), _) => (Answer::Hit, "Finished artifact reused: nothing has changed"),
            (None, Some(reason)) => (Answer::Bypass(reason), "Finished artifacts: cache bypassed"),
            (None, None) => (Answer::Miss, "No finished artifact of this definition"),
        };
        self.attempt.cache.say("finalize", CacheKind::FinalArtifact, answer, &key, message).await?;
        Ok(found.map(|artifact| (artifact, key)))
    }

    /// The key of this build's artifact, once its root image is known.
    pub(crate) fn final_key(&self, staged: &Staged<'_>, prepared: &Prepared) -> String {
        self.attempt.job.definition.artifact_key(&Finished {
            tenant: self.attempt.job.tenant,
            root: &prepared.rootfs.key,
            runtime: &staged.runtime,
            disk_bytes: prepared.disk_bytes,
            host: &class_text(self.attempt.builder.machines.vmm.compatibility()),
        })
    }

    /// Runs the remaining units in the machine, with a layer after each. The machine then continues on the last layer.
    pub(crate) async fn run(
        &self,
        staged: &Staged<'_>,
        machine: &Machine,
        prepared: &mut Prepared,
    ) -> Result<(), Error> {
        let units = staged.laid.units.get(staged.from..).unwrap_or_default();
        let mut runner = Runner {
            builder: &self.attempt.builder,
            tenant: self.attempt.job.tenant,
            vm: machine.vm.as_ref(),
            agent: &machine.agent,
            log: &self.attempt.log,
            context: &self.attempt.job.definition.context,
            envs: &staged.envs,
            trust: Trust::new(
                self.attempt
                    .builder
                    .settings
                    .extra_ca_pem
                    .as_deref()
                    .filter(|_| self.attempt.job.definition.machine.internet_access),
            ),
            total: staged.laid.total,
            disk_bytes: prepared.disk_bytes,
        };
        for (number, unit) in units.iter().enumerate() {
            let mut entries = Vec::new();
            // The first was announced when it was looked up.
            let place =
                if number == 0 { place(unit.index, staged.laid.total) } else { self.begin(staged, unit, &mut entries) };
            let key = self.attempt.job.definition.layer_key(&self.ground(staged, prepared), &prepared.rootfs.key, unit);
            entries.push(self.not_known(unit, place, &key));
            self.attempt.log.append(entries).await?;

            let began = Instant::now();
            runner.run(unit).await?;
            let took = began.elapsed();
            if units.len() - number <= MOST_LAYERS {
                self.keep(machine, unit, &key, prepared).await?;
                let message =
                    format!("Done in {} ms, layer stored after {} ms", took.as_millis(), began.elapsed().as_millis());
                self.attempt.cache.say(place, CacheKind::Layer, Answer::Stored, &key, message).await?;
            } else {
                self.attempt.log.say(place, format!("Done in {} ms", took.as_millis())).await?;
            }
        }
        self.attempt.log.append(self.passed(&staged.laid, &staged.laid.passed)).await?;
        let agent = |error| failures::agent(Phase::BuildStep, &error);
        runner.trust.remove(&machine.agent).await.map_err(agent)?;
        machine.agent.end_processes(true).await.map_err(agent)?;
        Ok(())
    }

    /// Makes a layer of the machine's writes. `prepared` then names it.
    async fn keep(&self, machine: &Machine, unit: &Unit<'_>, key: &str, prepared: &mut Prepared) -> Result<(), Error> {
        let agent = |error| failures::agent(Phase::BuildStep, &error).at_step(unit.index);
        machine.agent.freeze().await.map_err(agent)?;
        let captured = machine.vm.capture().await;
        let changes = captured.map_err(|error| failures::machine(Phase::BuildStep, &error).at_step(unit.index))?;
        whole(machine, Phase::BuildStep).map_err(|failure| failure.at_step(unit.index))?;
        machine.agent.thaw().await.map_err(agent)?;
        let image = keys::image_key(key, &self.attempt.job.build.to_string(), self.attempt.job.epoch);
        let layer = layers::Layer { parent: &prepared.rootfs, key: &image, layer_key: key, changes };
        prepared.rootfs = layers::store(&self.attempt.builder.files, self.attempt.record.as_ref(), layer).await?;
        Ok(())
    }

    fn ground<'s>(&'s self, staged: &'s Staged<'_>, prepared: &Prepared) -> Ground<'s> {
        let host = self.attempt.builder.machines.vmm.compatibility();
        Ground {
            tenant: self.attempt.job.tenant,
            disk_bytes: prepared.disk_bytes,
            envs: &staged.envs,
            guest: &host.guest,
            agent_abi: host.agent_abi,
            generations: &staged.generations,
        }
    }

    /// Announces a unit, the steps before it that only changed the state, and the files it copies.
    fn begin(&self, staged: &Staged<'_>, unit: &Unit<'_>, entries: &mut Vec<TemplateBuildLogEntry>) -> Place {
        let place = place(unit.index, staged.laid.total);
        entries.extend(self.passed(&staged.laid, &unit.passed));
        if let Some(step) = unit.step {
            let line = format!("Step {}/{}: {}", unit.index, staged.laid.total, shown(step));
            entries.push(self.attempt.log.message(place, TemplateBuildLogLevel::Info, line));
            self.files(place, step, entries);
        }
        place
    }

    /// Adds the log entries for a copy's files: they are in the store, by an upload or with the request.
    fn files(&self, place: Place, step: &TemplateStep, entries: &mut Vec<TemplateBuildLogEntry>) {
        let inline: HashSet<&String> = self
            .attempt
            .job
            .definition
            .context
            .0
            .values()
            .filter(|entry| entry.inline)
            .filter_map(|entry| entry.blob.as_ref())
            .collect();
        for item in steps::copies(step) {
            let (mut known, mut stored) = (0, 0);
            for source in
                item.sources.iter().flat_map(|source| steps::resolve(&self.attempt.job.definition.context, source))
            {
                let blobs = source.entries.iter().filter_map(|entry| entry.blob.as_ref());
                let (with_request, uploaded): (Vec<_>, Vec<_>) = blobs.partition(|blob| inline.contains(blob));
                known += uploaded.len() as u64;
                stored += with_request.len() as u64;
            }
            let forced = item.force_upload;
            let subject = item.sources.join(" ");
            let mut say = |count: u64, answer, what: &str| {
                let message = format!("{count} {}: {what}", if count == 1 { "file" } else { "files" });
                entries.push(self.attempt.cache.note(place, CacheKind::FileBlob, answer, count, &subject, message));
            };
            if known > 0 && forced {
                say(known, Answer::Bypass(CacheReason::ForceUpload), "re-uploaded (force_upload)");
            } else if known > 0 {
                say(known, Answer::Hit, "uploaded earlier");
            }
            if stored > 0 {
                say(stored, Answer::Stored, "sent with the request");
            }
        }
    }

    /// Steps that only changed the state.
    fn passed(&self, laid: &Laid<'_>, passed: &[(u32, &TemplateStep)]) -> Vec<TemplateBuildLogEntry> {
        let entry = |(index, step): &(u32, &TemplateStep)| {
            let line = format!("Step {index}/{}: {}", laid.total, shown(step));
            self.attempt.log.message(place(*index, laid.total), TemplateBuildLogLevel::Info, line)
        };
        passed.iter().map(entry).collect()
    }

    /// The reason for which a unit bypasses the cache.
    fn not_asked(&self, unit: &Unit<'_>) -> Option<CacheReason> {
        match (self.attempt.job.definition.skip_cache, unit.behind_boundary) {
            (true, _) => Some(CacheReason::WholeBuildSkipCache),
            (false, true) => Some(CacheReason::BuilderCacheBoundary),
            (false, false) => None,
        }
    }

    /// The entry of a unit that has to be run.
    fn not_known(&self, unit: &Unit<'_>, place: Place, key: &str) -> TemplateBuildLogEntry {
        let (answer, message) = match self.not_asked(unit) {
            Some(reason @ CacheReason::WholeBuildSkipCache) => (Answer::Bypass(reason), "Cache bypassed (skip_cache)"),
            Some(reason) => (Answer::Bypass(reason), "Cache bypassed (after a skip_cache step)"),
            None => (Answer::Miss, "Cache miss"),
        };
        self.attempt.cache.note(place, CacheKind::Layer, answer, 1, key, message)
    }
}

/// A compatibility class as a part of an artifact's key: the JSON of our own struct, with all fields in a fixed order.
fn class_text(class: &Compatibility) -> String {
    serde_json::to_string(class).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use nullspace_vmm::{CpuFeatures, VmmKind};

    use super::*;

    #[test]
    fn every_property_of_a_host_counts_in_an_artifacts_key() {
        let host = Compatibility {
            vmm: VmmKind::Qemu,
            vmm_version: "7".into(),
            accelerator: "tcg".into(),
            format: 1,
            guest: "guest".into(),
            cpu: "tcg".into(),
            agent_abi: 3,
            vmm_format: None,
            cpu_features: None,
        };
        // As earlier versions wrote it: their keys are still found.
        let written = r#"{"vmm":"qemu","vmm_version":"7","accelerator":"tcg","format":1,"guest":"guest","cpu":"tcg","agent_abi":3}"#;
        assert_eq!(class_text(&host), written);
        let features = CpuFeatures { vendor: "v".into(), flags: ["avx".to_owned()].into() };
        let hosts = [
            Compatibility { vmm: VmmKind::Firecracker, ..host.clone() },
            Compatibility { vmm_version: "8".into(), ..host.clone() },
            Compatibility { accelerator: "kvm".into(), ..host.clone() },
            Compatibility { format: 2, ..host.clone() },
            Compatibility { guest: "other".into(), ..host.clone() },
            Compatibility { cpu: "other".into(), ..host.clone() },
            Compatibility { agent_abi: 4, ..host.clone() },
            Compatibility { vmm_format: Some("6.0.0".into()), ..host.clone() },
            Compatibility { cpu_features: Some(features), ..host.clone() },
            host,
        ];
        assert_eq!(hosts.iter().map(class_text).collect::<HashSet<_>>().len(), hosts.len());
    }
}
