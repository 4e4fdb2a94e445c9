//! A build's steps between its root image and its start command: what is known already, and the running of the rest.
//!
//! ```text
//!   root image ── look_up: known layers, one after the other ──┬─ all known: a finished artifact of the same key?
//!                                                              └─ else: a machine over the last known one
//!   run: each unit that is left ── freeze ── capture ── thaw ── layer ──> the machine goes on to the start command
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use nullspace_api::{
    TemplateBuildCacheSummary, TemplateBuildLogEntry, TemplateBuildLogEntryCacheKind as CacheKind,
    TemplateBuildLogEntryCacheReason as CacheReason, TemplateBuildLogEntryCacheStatus as CacheStatus,
    TemplateBuildLogLevel, TemplateFailurePhase as Phase,
};
use nullspace_store::{Artifact, Build, Lease};

use super::run::{Runner, place, shown};
use super::trust::Trust;
use super::units::{At, Laid, Unit, lay};
use super::{copies, keys, sources};
use crate::Inner;
use crate::failure::BuildFailure;
use crate::layers;
use crate::logs::{BuildLog, Place};
use crate::machine::Machine;
use crate::pipeline::{Error, whole};
use crate::plan::{BuildPlan, Runtime};
use crate::prepare::Prepared;

/// A machine gives its changes away so often; the last steps of a longer build have their layers.
const MOST_LAYERS: usize = 60;

/// One build at its steps.
pub(crate) struct Stage<'a> {
    pub(crate) inner: &'a Arc<Inner>,
    pub(crate) build: &'a Build,
    pub(crate) lease: &'a Lease,
    pub(crate) plan: &'a BuildPlan,
    pub(crate) log: &'a BuildLog,
}

/// The steps, laid out and looked up.
pub(crate) struct Staged<'a> {
    laid: Laid<'a>,
    /// The first unit that is not known; all are when there is none of that number.
    from: usize,
    /// Variables of the steps.
    envs: BTreeMap<String, String>,
    generations: HashMap<String, u64>,
    /// What sandboxes start with.
    pub(crate) runtime: Runtime,
}

impl Staged<'_> {
    /// Whether steps have to be run.
    pub(crate) fn is_known(&self) -> bool {
        self.from >= self.laid.units.len()
    }
}

impl<'a> Stage<'a> {
    /// Lays the steps out and finds the layers that are there: `prepared` stands on the last of them then.
    pub(crate) async fn look_up(&self, prepared: &mut Prepared) -> Result<Staged<'a>, Error> {
        let begin = At { user: prepared.runtime.user.clone(), workdir: prepared.runtime.workdir.clone() };
        let laid = lay(&self.plan.steps, begin);
        let mut runtime = prepared.runtime.clone();
        runtime.user = laid.end.user.clone();
        if runtime.workdir != laid.end.workdir {
            runtime.set_workdir(&laid.end.workdir);
        }
        let (start, resume) = (self.plan.start_cmd.as_deref(), self.plan.resume_cmd.as_deref());
        let runtime = runtime.with(start, resume, &self.plan.runtime);
        let mut envs = runtime.envs.clone();
        envs.extend(self.plan.build_envs.clone());
        let held =
            if self.plan.context.is_empty() { Vec::new() } else { self.inner.metadata.held_blobs(self.lease).await? };
        let generations = held.into_iter().map(|blob| (blob.id.to_string(), blob.generation)).collect();
        let mut staged = Staged { laid, from: 0, envs, generations, runtime };
        let mut entries = Vec::new();
        while let Some(unit) = staged.laid.units.get(staged.from) {
            let place = self.begin(&staged, unit, &mut prepared.cache, &mut entries);
            if self.not_asked(unit).is_some() {
                break;
            }
            let key = keys::layer(&self.ground(&staged, prepared), &prepared.rootfs.key, unit);
            let Some(found) = self.inner.metadata.find_layer(self.lease, &key, Timestamp::now()).await? else { break };
            prepared.cache.layer_hits += 1;
            self.inner.metrics.lookup("layer", "hit");
            entries.push(self.log.cache_entry(place, CacheKind::Layer, CacheStatus::Hit, None, &key, "Cache hit"));
            prepared.rootfs = found;
            staged.from += 1;
        }
        if staged.is_known() {
            entries.extend(self.passed(&staged.laid, &staged.laid.passed));
        }
        self.log.append(entries).await?;
        Ok(staged)
    }

    /// A finished artifact of the same key, to be used as it is, and the key.
    pub(crate) async fn finished(
        &self,
        staged: &Staged<'_>,
        prepared: &mut Prepared,
    ) -> Result<Option<(Artifact, String)>, Error> {
        let boundary = staged.laid.boundary.then_some(CacheReason::BuilderCacheBoundary);
        let not_asked = if self.plan.skip_cache { Some(CacheReason::WholeBuildSkipCache) } else { boundary };
        let key = self.final_key(staged, prepared);
        let found = match not_asked {
            None if staged.is_known() => self.inner.metadata.find_final(self.lease, &key).await?,
            _ => None,
        };
        // Something else may have removed its files: then it is made anew.
        let found = match found {
            Some(artifact) if !self.inner.files.artifact_dir(&artifact.folder)?.is_dir() => {
                tracing::error!(artifact = %artifact.id, "the files of an artifact are missing");
                None
            }
            found => found,
        };
        let cache = &mut prepared.cache;
        let (status, reason, message) = match (&found, not_asked) {
            (Some(_), _) => {
                cache.final_artifact_hits += 1;
                (CacheStatus::Hit, None, "Finished artifact reused: nothing has changed")
            }
            (None, Some(reason)) => {
                cache.final_artifact_bypasses += 1;
                (CacheStatus::Bypass, Some(reason), "Finished artifacts are not asked for")
            }
            (None, None) => {
                cache.final_artifact_misses += 1;
                (CacheStatus::Miss, Some(CacheReason::MissingOrIncompatible), "No finished artifact of this definition")
            }
        };
        self.inner.metrics.lookup("final_artifact", shown_status(status));
        self.log.cache("finalize", CacheKind::FinalArtifact, status, reason, &key, message).await?;
        Ok(found.map(|artifact| (artifact, key)))
    }

    /// The key of what this build makes, once its root image is known.
    pub(crate) fn final_key(&self, staged: &Staged<'_>, prepared: &Prepared) -> String {
        keys::artifact(
            self.build.tenant,
            &prepared.rootfs.key,
            &staged.runtime,
            &self.plan.build_envs,
            &self.plan.machine,
            prepared.disk_bytes,
            self.inner.vmm.compatibility(),
        )
    }

    /// Runs what is left in the machine, a layer after each; the machine is then as after its boot, on the last one.
    pub(crate) async fn run(
        &self,
        staged: &Staged<'_>,
        machine: &Machine,
        prepared: &mut Prepared,
    ) -> Result<(), Error> {
        let units = staged.laid.units.get(staged.from..).unwrap_or_default();
        let mut runner = Runner {
            inner: self.inner,
            tenant: self.build.tenant,
            vm: machine.vm.as_ref(),
            agent: &machine.agent,
            log: self.log,
            context: &self.plan.context,
            envs: &staged.envs,
            trust: Trust::new(self.inner.config.extra_ca_pem.as_deref().filter(|_| self.plan.machine.internet_access)),
            total: staged.laid.total,
            disk_bytes: prepared.disk_bytes,
        };
        for (number, unit) in units.iter().enumerate() {
            let mut entries = Vec::new();
            // The first was announced when it was looked up.
            let place = if number == 0 {
                place(unit.index, staged.laid.total)
            } else {
                self.begin(staged, unit, &mut prepared.cache, &mut entries)
            };
            let key = keys::layer(&self.ground(staged, prepared), &prepared.rootfs.key, unit);
            entries.push(self.not_known(unit, place, &key, &mut prepared.cache));
            self.log.append(entries).await?;

            let began = Instant::now();
            runner.run(unit).await?;
            let took = began.elapsed();
            if units.len() - number <= MOST_LAYERS {
                self.keep(machine, unit, &key, prepared).await?;
                prepared.cache.layer_stores += 1;
                let message =
                    format!("Done in {} ms, layer stored after {} ms", took.as_millis(), began.elapsed().as_millis());
                self.log.cache(place, CacheKind::Layer, CacheStatus::Stored, None, &key, message).await?;
            } else {
                self.log.say(place, format!("Done in {} ms", took.as_millis())).await?;
            }
        }
        self.log.append(self.passed(&staged.laid, &staged.laid.passed)).await?;
        let agent = |error| BuildFailure::agent(Phase::BuildStep, &error);
        runner.trust.remove(&machine.agent).await.map_err(agent)?;
        machine.agent.end_processes(true).await.map_err(agent)?;
        Ok(())
    }

    /// Makes a layer of what the machine has written; `prepared` stands on it then.
    async fn keep(&self, machine: &Machine, unit: &Unit<'_>, key: &str, prepared: &mut Prepared) -> Result<(), Error> {
        let agent = |error| BuildFailure::agent(Phase::BuildStep, &error).at_step(unit.index);
        machine.agent.freeze().await.map_err(agent)?;
        let captured = machine.vm.capture().await;
        let changes = captured.map_err(|error| BuildFailure::machine(Phase::BuildStep, &error).at_step(unit.index))?;
        whole(machine, Phase::BuildStep).map_err(|failure| failure.at_step(unit.index))?;
        machine.agent.thaw().await.map_err(agent)?;
        let image = keys::image(key, &self.build.id.to_string(), self.lease.epoch);
        let layer = layers::Layer { parent: &prepared.rootfs, key: &image, layer_key: key, changes };
        prepared.rootfs = layers::store(self.inner, self.lease, layer).await?;
        Ok(())
    }

    fn ground<'s>(&'s self, staged: &'s Staged<'_>, prepared: &Prepared) -> keys::Ground<'s> {
        let host = self.inner.vmm.compatibility();
        keys::Ground {
            tenant: self.build.tenant,
            disk_bytes: prepared.disk_bytes,
            envs: &staged.envs,
            network: self.plan.machine.internet_access,
            guest: &host.guest,
            agent_abi: host.agent_abi,
            context: &self.plan.context,
            generations: &staged.generations,
        }
    }

    /// Announces a unit, the steps before it that only changed the state, and the files it copies.
    fn begin(
        &self,
        staged: &Staged<'_>,
        unit: &Unit<'_>,
        cache: &mut TemplateBuildCacheSummary,
        entries: &mut Vec<TemplateBuildLogEntry>,
    ) -> Place {
        let place = place(unit.index, staged.laid.total);
        entries.extend(self.passed(&staged.laid, &unit.passed));
        if let Some(step) = unit.step {
            let line = format!("Step {}/{}: {}", unit.index, staged.laid.total, shown(step));
            entries.push(self.log.message(place, TemplateBuildLogLevel::Info, line));
            self.files(place, step, cache, entries);
        }
        place
    }

    /// What is said of a copy's files: they are in the store, by an upload or with the request.
    fn files(
        &self,
        place: Place,
        step: &nullspace_api::TemplateStep,
        cache: &mut TemplateBuildCacheSummary,
        entries: &mut Vec<TemplateBuildLogEntry>,
    ) {
        let inline: HashSet<&String> =
            self.plan.context.0.values().filter(|entry| entry.inline).filter_map(|entry| entry.blob.as_ref()).collect();
        for item in copies(step).iter() {
            let (mut known, mut stored) = (0, 0);
            for source in item.sources.iter().flat_map(|source| sources::resolve(&self.plan.context, source)) {
                let blobs = source.entries.iter().filter_map(|entry| entry.blob.as_ref());
                let (with_request, uploaded): (Vec<_>, Vec<_>) = blobs.partition(|blob| inline.contains(blob));
                known += uploaded.len() as u64;
                stored += with_request.len() as u64;
            }
            let forced = item.force_upload == Some(true);
            let subject = item.sources.join(" ");
            let mut say = |count: u64, status: CacheStatus, reason, what: &str| {
                self.inner.metrics.lookup("file_blob", shown_status(status));
                let message = format!("{count} {}: {what}", if count == 1 { "file" } else { "files" });
                entries.push(self.log.cache_entry(place, CacheKind::FileBlob, status, reason, &subject, message));
            };
            if known > 0 && forced {
                cache.file_blob_bypasses += known;
                say(known, CacheStatus::Bypass, Some(CacheReason::ForceUpload), "re-uploaded (force_upload)");
            } else if known > 0 {
                cache.file_blob_hits += known;
                say(known, CacheStatus::Hit, None, "uploaded earlier");
            }
            if stored > 0 {
                cache.file_blob_stores += stored;
                say(stored, CacheStatus::Stored, None, "sent with the request");
            }
        }
    }

    /// Steps that only changed the state.
    fn passed(&self, laid: &Laid<'_>, passed: &[(u32, &nullspace_api::TemplateStep)]) -> Vec<TemplateBuildLogEntry> {
        let entry = |(index, step): &(u32, &nullspace_api::TemplateStep)| {
            let line = format!("Step {index}/{}: {}", laid.total, shown(step));
            self.log.message(place(*index, laid.total), TemplateBuildLogLevel::Info, line)
        };
        passed.iter().map(entry).collect()
    }

    /// Why the cache is not asked for a unit.
    fn not_asked(&self, unit: &Unit<'_>) -> Option<CacheReason> {
        match (self.plan.skip_cache, unit.behind_boundary) {
            (true, _) => Some(CacheReason::WholeBuildSkipCache),
            (false, true) => Some(CacheReason::BuilderCacheBoundary),
            (false, false) => None,
        }
    }

    /// The entry of a unit that has to be run.
    fn not_known(
        &self,
        unit: &Unit<'_>,
        place: Place,
        key: &str,
        cache: &mut TemplateBuildCacheSummary,
    ) -> TemplateBuildLogEntry {
        let (status, reason, message) = match self.not_asked(unit) {
            Some(reason) => {
                cache.layer_bypasses += 1;
                let message = match self.plan.skip_cache {
                    true => "Cache bypassed (skip_cache)",
                    false => "Cache bypassed (after a skip_cache step)",
                };
                (CacheStatus::Bypass, reason, message)
            }
            None => {
                cache.layer_misses += 1;
                (CacheStatus::Miss, CacheReason::MissingOrIncompatible, "Cache miss")
            }
        };
        self.inner.metrics.lookup("layer", shown_status(status));
        self.log.cache_entry(place, CacheKind::Layer, status, Some(reason), key, message)
    }
}

fn shown_status(status: CacheStatus) -> &'static str {
    match status {
        CacheStatus::Bypass => "bypass",
        CacheStatus::Hit => "hit",
        CacheStatus::Miss => "miss",
        CacheStatus::Stored => "stored",
    }
}
