//! What is over is removed after its time, and nothing that something refers to: against a model of the rules.

use std::collections::{BTreeMap, BTreeSet};

use nullspace_db::{
    Build, BuildFilter, Cutoffs, Expiring, FinishReady, Finished, Idempotency, Inserted, Lease, NewClaim,
    SandboxFilter, SandboxStatus,
};
use nullspace_types::{BuildId, Caller, SandboxId, TemplateId};
use proptest::prelude::*;

use crate::fixture::{Fixture, ROOMY, at, cancel, cases, entry, failure, is_not_found, new_build, new_sandbox, result};

/// Retentions of the model, seconds.
const SANDBOXES: i64 = 50;
const BUILDS: i64 = 100;
/// Rows that one call removes; small, so that several calls are needed.
const BATCH: u32 = 3;

fn cutoffs(now: i64) -> Cutoffs {
    Cutoffs {
        sandboxes: at(now - SANDBOXES),
        builds: at(now - BUILDS),
        idempotency_keys: at(now - 70),
        logs: at(now - 10),
        now: at(now),
    }
}

/// Compresses logs and removes what is over until nothing is left to do. Returns the number of removed rows.
async fn expire(f: &Fixture, now: i64) -> u32 {
    let cutoffs = cutoffs(now);
    while f.store.compact_log(cutoffs.logs).await.unwrap().is_some() {}
    let mut removed = 0;
    loop {
        let mut round = 0;
        for kind in Expiring::ALL.iter().copied() {
            let some = f.store.remove_expired(kind, cutoffs.of(kind), BATCH).await.unwrap();
            assert!(some <= BATCH);
            round += some;
        }
        if round == 0 {
            return removed;
        }
        removed += round;
    }
}

#[derive(Debug, Clone)]
enum Op {
    Ready { name: usize, tag: usize },
    Fail { name: usize },
    Cancel { name: usize },
    Retry { build: prop::sample::Index },
    Child { build: prop::sample::Index },
    EndChild,
    DeleteTemplate { name: usize },
    RemoveTag { name: usize, tag: usize },
    Sandbox { build: prop::sample::Index },
    EndSandbox { sandbox: prop::sample::Index },
    Purge,
    Expire,
    Wait { seconds: i64 },
}

const NAMES: [&str; 3] = ["a", "b", "c"];
const TAGS: [&str; 2] = ["default", "v1"];

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0..NAMES.len(), 0..TAGS.len()).prop_map(|(name, tag)| Op::Ready { name, tag }),
        3 => (0..NAMES.len()).prop_map(|name| Op::Fail { name }),
        2 => (0..NAMES.len()).prop_map(|name| Op::Cancel { name }),
        3 => index().prop_map(|build| Op::Retry { build }),
        2 => index().prop_map(|build| Op::Child { build }),
        2 => Just(Op::EndChild),
        2 => (0..NAMES.len()).prop_map(|name| Op::DeleteTemplate { name }),
        1 => (0..NAMES.len(), 0..TAGS.len()).prop_map(|(name, tag)| Op::RemoveTag { name, tag }),
        4 => index().prop_map(|build| Op::Sandbox { build }),
        4 => index().prop_map(|sandbox| Op::EndSandbox { sandbox }),
        3 => Just(Op::Purge),
        4 => Just(Op::Expire),
        5 => (1..80_i64).prop_map(|seconds| Op::Wait { seconds }),
    ]
}

struct ModelBuild {
    template: TemplateId,
    /// `None` while it runs.
    finished: Option<i64>,
    ready: bool,
    /// Its artifact's state, when it is ready.
    deleted: bool,
    purged: Option<i64>,
    retry_of: Option<BuildId>,
    original: Option<BuildId>,
    /// The build whose artifact it holds while it runs.
    holds: Option<BuildId>,
}

struct ModelSandbox {
    build: BuildId,
    ended: Option<i64>,
}

#[derive(Default)]
struct Model {
    now: i64,
    builds: BTreeMap<BuildId, ModelBuild>,
    /// When they were deleted.
    templates: BTreeMap<TemplateId, Option<i64>>,
    tags: BTreeMap<(TemplateId, usize), BuildId>,
    sandboxes: BTreeMap<SandboxId, ModelSandbox>,
}

impl Model {
    fn is_held(&self, build: BuildId) -> bool {
        self.builds.values().any(|other| other.finished.is_none() && other.holds == Some(build))
    }

    fn is_tagged(&self, build: BuildId) -> bool {
        self.tags.values().any(|target| *target == build)
    }

    fn purge(&mut self) {
        let unused = |id: BuildId, build: &ModelBuild| {
            let live = self.sandboxes.values().any(|sandbox| sandbox.build == id && sandbox.ended.is_none());
            // Artifacts without a tag are kept for no time here.
            build.ready
                && build.purged.is_none()
                && (build.deleted || !self.is_tagged(id))
                && !live
                && !self.is_held(id)
        };
        let unused: Vec<BuildId> =
            self.builds.iter().filter(|(id, build)| unused(**id, build)).map(|(id, _)| *id).collect();
        for id in unused {
            let build = self.builds.get_mut(&id).unwrap();
            (build.deleted, build.purged) = (true, Some(self.now));
        }
    }

    fn expire(&mut self) {
        let now = self.now;
        self.sandboxes.retain(|_, sandbox| sandbox.ended.is_none_or(|ended| ended > now - SANDBOXES));
        loop {
            let over = |build: &ModelBuild| {
                let since = build.finished.filter(|finished| *finished <= now - BUILDS);
                since.is_some() && (!build.ready || build.purged.is_some_and(|purged| purged <= now - BUILDS))
            };
            let referred = |id: BuildId, build: &ModelBuild| {
                let newest = self.builds.iter().rev().find(|(_, other)| other.template == build.template);
                self.is_tagged(id)
                    || self.is_held(id)
                    || self.sandboxes.values().any(|sandbox| sandbox.build == id)
                    || (self.templates[&build.template].is_none()
                        && newest.unwrap().0 == &id
                        && self.tags.keys().any(|(template, _)| *template == build.template))
            };
            let gone = self.builds.iter().find(|(id, build)| over(build) && !referred(**id, build)).map(|(id, _)| *id);
            let Some(gone) = gone else { break };
            self.builds.remove(&gone);
            for retry in self.builds.values_mut() {
                retry.retry_of = retry.retry_of.filter(|of| *of != gone);
                retry.original = retry.original.filter(|of| *of != gone);
            }
        }
        let used: BTreeSet<TemplateId> = self.builds.values().map(|build| build.template).collect();
        self.templates.retain(|id, deleted| used.contains(id) || deleted.is_some_and(|deleted| deleted > now - BUILDS));
    }
}

struct Run {
    f: Fixture,
    caller: Caller,
    child: Option<Lease>,
    model: Model,
}

impl Run {
    /// Accepts a build and begins it.
    async fn begin(&mut self, name: usize, tag: usize, retry: Option<(BuildId, BuildId)>) -> (Lease, Build) {
        let mut asked = new_build(NAMES[name], &[TAGS[tag]]);
        (asked.retry_of, asked.original) = retry.unzip();
        let now = at(self.model.now);
        let build = self.f.store.accept_build(&self.caller, asked, entry("start"), ROOMY, now).await.unwrap();
        self.model.templates.entry(build.template).or_default();
        self.model.builds.insert(
            build.id,
            ModelBuild {
                template: build.template,
                finished: None,
                ready: false,
                deleted: false,
                purged: None,
                retry_of: build.retry_of,
                original: build.original,
                holds: None,
            },
        );
        let (lease, leased) = self.f.run("w", now).await;
        assert_eq!(leased.id, build.id);
        (lease, build)
    }

    async fn fail(&mut self, lease: &Lease) {
        self.f.store.finish_error(lease, failure(), at(self.model.now)).await.unwrap();
        self.model.builds.get_mut(&lease.build).unwrap().finished = Some(self.model.now);
    }

    fn chosen(&self, build: prop::sample::Index) -> Option<BuildId> {
        let ids: Vec<BuildId> = self.model.builds.keys().copied().collect();
        (!ids.is_empty()).then(|| *build.get(&ids))
    }

    async fn apply(&mut self, op: Op) {
        let now = self.model.now;
        match op {
            Op::Wait { seconds } => self.model.now += seconds,
            Op::Ready { name, tag } => {
                let (lease, build) = self.begin(name, tag, None).await;
                self.f.rootfs(&lease).await;
                let finished = FinishReady { retention_expires_at: Some(at(now)), ..result() };
                let done = self.f.store.finish_ready(&lease, finished, at(now)).await.unwrap();
                assert!(matches!(done, Finished::Ready(_)));
                let entry = self.model.builds.get_mut(&build.id).unwrap();
                (entry.ready, entry.finished) = (true, Some(now));
                self.model.tags.insert((build.template, tag), build.id);
            }
            Op::Fail { name } => {
                let (lease, _) = self.begin(name, 0, None).await;
                self.fail(&lease).await;
            }
            Op::Cancel { name } => {
                let (lease, build) = self.begin(name, 0, None).await;
                self.f.store.request_cancel(&self.caller, build.id, cancel("x"), at(now)).await.unwrap();
                self.f.store.finish_cancelled(&lease, entry("cancelled"), at(now)).await.unwrap();
                self.model.builds.get_mut(&build.id).unwrap().finished = Some(now);
            }
            Op::Retry { build } => {
                let Some(id) = self.chosen(build) else { return };
                let earlier = self.f.store.get_build(&self.caller, id).await.unwrap();
                let name = NAMES.iter().position(|name| *name == earlier.name.as_str()).unwrap();
                let (lease, _) = self.begin(name, 0, Some((id, earlier.original.unwrap_or(id)))).await;
                self.fail(&lease).await;
            }
            Op::Child { build } => {
                let Some(id) = self.chosen(build).filter(|_| self.child.is_none()) else { return };
                let parent = &self.model.builds[&id];
                if !parent.ready || parent.deleted {
                    return;
                }
                let artifact = self.f.store.get_build(&self.caller, id).await.unwrap().artifact_id;
                let (lease, child) = self.begin(2, 0, None).await;
                self.f.store.hold_artifact(&lease, artifact).await.unwrap();
                self.model.builds.get_mut(&child.id).unwrap().holds = Some(id);
                // Nobody else gets it while the test takes its time.
                let week = std::time::Duration::from_secs(7 * 86_400);
                self.f.store.heartbeat(&lease, week, at(now)).await.unwrap();
                self.child = Some(lease);
            }
            Op::EndChild => {
                if let Some(lease) = self.child.take() {
                    self.fail(&lease).await;
                }
            }
            Op::DeleteTemplate { name } => {
                if let Some(lease) = self.child.take() {
                    self.fail(&lease).await;
                }
                if self.f.delete(&self.caller, NAMES[name], at(now)).await.is_err() {
                    return;
                }
                let rows = self.f.query("SELECT id FROM templates WHERE deleted_at IS NOT NULL").await;
                for id in rows.iter().map(|id| id.parse::<TemplateId>().unwrap()) {
                    self.model.templates.get_mut(&id).unwrap().get_or_insert(now);
                    self.model.tags.retain(|(template, _), _| *template != id);
                    let own = self.model.builds.values_mut().filter(|build| build.template == id && build.ready);
                    own.for_each(|build| build.deleted = true);
                }
            }
            Op::RemoveTag { name, tag } => {
                let reference = NAMES[name].parse().unwrap();
                let tag_name = TAGS[tag].parse().unwrap();
                if self.f.store.remove_tag(&self.caller, &reference, &tag_name).await.is_ok() {
                    let live = self.f.store.standing(&self.caller, &reference).await.unwrap().template.id;
                    self.model.tags.remove(&(live, tag)).unwrap();
                }
            }
            Op::Sandbox { build } => {
                let Some(id) = self.chosen(build) else { return };
                let artifact = self.f.store.get_build(&self.caller, id).await.unwrap().artifact_id;
                let asked = new_sandbox(artifact);
                let sandbox = asked.id;
                let answer = self.f.store.insert_sandbox(&self.caller, asked, at(now)).await;
                let build = &self.model.builds[&id];
                assert_eq!(answer.is_ok(), build.ready && !build.deleted);
                if answer.is_ok() {
                    self.model.sandboxes.insert(sandbox, ModelSandbox { build: id, ended: None });
                }
            }
            Op::EndSandbox { sandbox } => {
                let live = self.model.sandboxes.iter_mut().filter(|(_, sandbox)| sandbox.ended.is_none());
                let mut live: Vec<_> = live.collect();
                if live.is_empty() {
                    return;
                }
                let chosen = sandbox.index(live.len());
                let (id, sandbox) = &mut live[chosen];
                sandbox.ended = Some(now);
                self.f.store.set_sandbox_status(**id, SandboxStatus::Destroyed, None, at(now)).await.unwrap();
            }
            Op::Purge => {
                for unused in self.f.store.collectable_artifacts(at(now), 1000).await.unwrap() {
                    assert!(self.f.store.purge_artifact(unused.id, at(now)).await.unwrap());
                }
                self.model.purge();
            }
            Op::Expire => {
                let before: BTreeSet<BuildId> = self.model.builds.keys().copied().collect();
                expire(&self.f, now).await;
                self.model.expire();
                self.compare().await;
                for gone in before.difference(&self.model.builds.keys().copied().collect()) {
                    assert!(is_not_found(&self.f.store.get_build(&self.caller, *gone).await));
                    assert!(is_not_found(&self.f.store.log_entries(&self.caller, *gone, 0, 10).await));
                }
            }
        }
    }

    async fn compare(&self) {
        let ids = async |sql| -> BTreeSet<String> { self.f.query(sql).await.into_iter().collect() };
        let builds: BTreeSet<String> = self.model.builds.keys().map(ToString::to_string).collect();
        assert_eq!(ids("SELECT id FROM builds").await, builds);
        let ready = self.model.builds.iter().filter(|(_, build)| build.ready).map(|(id, _)| id.to_string());
        assert_eq!(ids("SELECT build_id FROM artifacts").await, ready.collect());
        assert_eq!(ids("SELECT build_id FROM build_log UNION SELECT build_id FROM build_log_segments").await, builds);
        let templates = self.model.templates.keys().map(ToString::to_string).collect();
        assert_eq!(ids("SELECT id FROM templates").await, templates);
        let sandboxes = self.model.sandboxes.keys().map(ToString::to_string).collect();
        assert_eq!(ids("SELECT id FROM sandboxes").await, sandboxes);
        assert!(self.f.broken_references().await.is_empty());
        for (id, model) in &self.model.builds {
            let log = self.f.messages(&self.caller, *id).await;
            assert_eq!(log[0], "start");
            let build = self.f.store.get_build(&self.caller, *id).await.unwrap();
            assert_eq!((build.retry_of, build.original), (model.retry_of, model.original));
        }
        for (reference, standing) in [("a", 0), ("b", 1), ("c", 2)] {
            let found = self.f.store.standing(&self.caller, &reference.parse().unwrap()).await;
            if let Ok(found) = found {
                assert_eq!(found.template.name.as_str(), NAMES[standing]);
                assert!(found.newest.is_some(), "a template without its newest build");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(24), ..ProptestConfig::default() })]

    #[test]
    fn what_is_over_goes_and_what_is_referred_to_stays(ops in prop::collection::vec(op(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let f = Fixture::new().await;
            let caller = f.tenant("acme").await;
            let mut run = Run { f, caller, child: None, model: Model::default() };
            for op in ops {
                run.apply(op).await;
            }
            run.model.now += 2 * BUILDS;
            run.apply(Op::Expire).await;
        });
    }
}

#[tokio::test]
async fn an_idempotency_key_is_answered_until_its_time_is_over_and_is_free_then() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let key = |digest: &str| Some(Idempotency { key: "k".to_owned(), request_digest: digest.to_owned() });
    let build = |digest: &str| {
        let mut asked = new_build("web", &["default"]);
        asked.idempotency = key(digest);
        asked
    };
    let first = f.accept_with(&caller, build("one")).await;
    // An unfinished build keeps its key for ever.
    expire(&f, 10_000).await;
    assert_eq!(f.accept_with(&caller, build("one")).await.id, first.id);
    let (lease, _) = f.run("w", at(1)).await;
    f.rootfs(&lease).await;
    assert!(matches!(f.store.finish_ready(&lease, result(), at(10)).await.unwrap(), Finished::Ready(_)));
    let mut asked = new_sandbox(first.artifact_id);
    asked.idempotency = key("one");
    let sandbox = asked.id;
    f.store.insert_sandbox(&caller, asked.clone(), at(10)).await.unwrap();
    f.store.set_sandbox_status(sandbox, SandboxStatus::Destroyed, None, at(20)).await.unwrap();
    expire(&f, 69).await;
    assert_eq!(f.accept_with(&caller, build("one")).await.id, first.id);
    let other = f.store.accept_build(&caller, build("two"), entry("start"), ROOMY, at(69)).await;
    assert!(crate::fixture::is_conflict(&other));
    let again = f.store.insert_sandbox(&caller, asked.clone(), at(69)).await;
    assert!(matches!(again, Ok(Inserted::Repeated(repeated)) if repeated.id == sandbox));
    expire(&f, 80).await;
    assert_ne!(f.accept_with(&caller, build("two")).await.id, first.id);
    asked.id = SandboxId::new();
    assert!(matches!(f.store.insert_sandbox(&caller, asked, at(80)).await, Ok(Inserted::New(_))));
    assert!(f.store.get_build(&caller, first.id).await.is_ok(), "its row stays");
}

#[tokio::test]
async fn claims_go_when_they_expire() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    for (name, expires) in [("soon", 10), ("later", 90)] {
        let token = nullspace_db::ClaimToken::generate().hash();
        let claim = NewClaim { name: name.parse().unwrap(), token, expires_at: at(expires) };
        f.store.reserve_name(&caller, claim, at(0)).await.unwrap();
    }
    assert_eq!(expire(&f, 9).await, 0);
    assert_eq!(expire(&f, 10).await, 1);
    assert_eq!(f.query("SELECT name FROM name_claims").await, ["later"]);
}

#[tokio::test]
async fn a_removed_row_is_not_found_and_lists_go_on_without_it() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let mut builds = Vec::new();
    for _ in 0..5 {
        f.accept(&caller, "web").await;
        let (lease, _) = f.run("w", at(1)).await;
        builds.push(f.store.finish_error(&lease, failure(), at(1)).await.unwrap().id);
    }
    let ready = f.ready(&caller, "app", &["default"], at(1)).await;
    let mut sandboxes = Vec::new();
    for _ in 0..4 {
        let asked = new_sandbox(ready.artifact_id);
        sandboxes.push(asked.id);
        f.store.insert_sandbox(&caller, asked, at(2)).await.unwrap();
    }
    for ended in &sandboxes[..3] {
        f.store.set_sandbox_status(*ended, SandboxStatus::Error, Some("x"), at(3)).await.unwrap();
    }
    let page = |after| BuildFilter { after, limit: 2, ..BuildFilter::default() };
    let first = f.store.list_builds(&caller, page(None)).await.unwrap();
    assert_eq!(first.next, Some(builds[4]));
    assert_eq!(expire(&f, 1000).await, 8);
    let next = f.store.list_builds(&caller, page(first.next)).await.unwrap();
    assert_eq!((next.builds.len(), next.next), (0, None));
    assert_eq!(f.query("SELECT name FROM templates").await, ["app"], "a name without a usable build is free again");
    for gone in &builds {
        assert!(is_not_found(&f.store.get_build(&caller, *gone).await));
        assert!(is_not_found(&f.store.request_cancel(&caller, *gone, cancel("x"), at(1000)).await));
        let mut retry = new_build("web", &["default"]);
        retry.retry_of = Some(*gone);
        assert!(is_not_found(&f.store.accept_build(&caller, retry, entry("start"), ROOMY, at(1000)).await));
    }
    for gone in &sandboxes[..3] {
        assert!(is_not_found(&f.store.get_sandbox(&caller, *gone).await));
        let late = f.store.set_sandbox_status(*gone, SandboxStatus::Error, None, at(1000)).await;
        assert!(is_not_found(&late));
    }
    let filter = SandboxFilter { limit: 10, ..SandboxFilter::default() };
    assert_eq!(f.store.list_sandboxes(&caller, filter).await.unwrap().len(), 1);
}

/// A retry of the newest build, again and again: each one refers to the one before and to the first.
#[tokio::test]
async fn a_chain_of_retries_ends_from_its_old_end_while_it_grows() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let mut chain: Vec<Build> = Vec::new();
    for number in 0..12_i64 {
        let now = number * 40;
        let mut asked = new_build("web", &["default"]);
        if let Some(last) = chain.last() {
            let last = f.store.get_build(&caller, last.id).await.unwrap();
            (asked.retry_of, asked.original) = (Some(last.id), Some(last.original.unwrap_or(last.id)));
        }
        f.store.accept_build(&caller, asked, entry("start"), ROOMY, at(now)).await.unwrap();
        let (lease, _) = f.run("w", at(now)).await;
        chain.push(f.store.finish_error(&lease, failure(), at(now)).await.unwrap());
        expire(&f, now).await;
        let left = f.query("SELECT id FROM builds ORDER BY id").await;
        // Those of the last 100 seconds.
        let expected = &chain[chain.len().saturating_sub(3)..];
        assert_eq!(left, expected.iter().map(|build| build.id.to_string()).collect::<Vec<_>>());
    }
    let oldest = f.store.get_build(&caller, chain[9].id).await.unwrap();
    assert_eq!((oldest.retry_of, oldest.original), (None, None), "what it repeated is gone");
    let next = f.store.get_build(&caller, chain[10].id).await.unwrap();
    assert_eq!(next.retry_of, Some(oldest.id));
    assert_eq!(expire(&f, 10_000).await, 3);
    assert!(f.query("SELECT id FROM templates").await.is_empty());
    // The name can be taken anew.
    f.accept(&caller, "web").await;
}

/// Nothing but a tag makes a template stay: its newest build fails, and the build before is the one that the tag names.
#[tokio::test]
async fn a_template_with_a_tag_keeps_its_newest_build_and_one_without_goes_with_its_last() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let ready = f.ready(&caller, "web", &["default"], at(1)).await;
    let mut failed = Vec::new();
    for name in ["web", "web", "other"] {
        f.accept(&caller, name).await;
        let (lease, _) = f.run("w", at(2)).await;
        failed.push(f.store.finish_error(&lease, failure(), at(2)).await.unwrap().id);
    }
    assert_eq!(expire(&f, 1000).await, 2);
    let left = f.query("SELECT id FROM builds ORDER BY id").await;
    assert_eq!(left, [ready.id.to_string(), failed[1].to_string()]);
    assert_eq!(f.query("SELECT name FROM templates").await, ["web"]);
    // Untagged, its artifact is collected, and then nothing is left of it.
    f.store.remove_tag(&caller, &"web".parse().unwrap(), &"default".parse().unwrap()).await.unwrap();
    assert_eq!(expire(&f, 1000).await, 1, "the failed one");
    assert_eq!(f.query("SELECT id FROM builds").await, [ready.id.to_string()], "its artifact is there");
    for unused in f.store.collectable_artifacts(at(2000), 10).await.unwrap() {
        assert!(f.store.purge_artifact(unused.id, at(2000)).await.unwrap());
    }
    assert_eq!(expire(&f, 5000).await, 1);
    assert!(f.query("SELECT id FROM templates").await.is_empty());
}

#[tokio::test]
async fn files_of_a_removed_build_are_this_databases_until_the_next_start() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let old = f.ready(&caller, "web", &["default"], at(1)).await;
    f.delete(&caller, "web", at(2)).await.unwrap();
    assert!(f.store.purge_artifact(old.artifact_id, at(3)).await.unwrap());
    assert_eq!(expire(&f, 1000).await, 2, "the build and its template");
    let asked = [old.artifact_id].into();
    assert_eq!(f.store.allotted(&asked).await.unwrap(), asked);
    f.store.forget_removed().await.unwrap();
    assert!(f.store.allotted(&asked).await.unwrap().is_empty());
}

#[tokio::test]
async fn growth_says_how_large_tables_are_and_what_goes_next() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    for end in [1, 5, 950] {
        f.accept(&caller, "web").await;
        let (lease, _) = f.run("w", at(end)).await;
        f.store.finish_error(&lease, failure(), at(end)).await.unwrap();
    }
    f.accept(&caller, "web").await;
    let growth = f.store.growth(cutoffs(1000)).await.unwrap();
    let table = |name: &str| growth.tables.iter().find(|table| table.table == name).unwrap();
    assert_eq!((table("builds").rows, table("build_log").rows, table("sandboxes").rows), (4, 7, 0));
    assert!(growth.tables.iter().all(|table| table.bytes >= 4096), "{:?}", growth.tables);
    let sum: u64 = growth.tables.iter().map(|table| table.bytes).sum();
    assert!(sum < growth.space.file_bytes, "{growth:?}");
    assert_eq!(growth.logs_due, 3);
    let due = |growth: &nullspace_db::Growth, kind| *growth.due.iter().find(|due| due.kind == kind).unwrap();
    assert_eq!(due(&growth, Expiring::Builds).now, 0, "their logs are compressed first");
    while f.store.compact_log(at(1000)).await.unwrap().is_some() {}
    let growth = f.store.growth(cutoffs(1000)).await.unwrap();
    let builds = due(&growth, Expiring::Builds);
    assert_eq!((builds.now, builds.later, builds.oldest, growth.logs_due), (2, 1, Some(at(1)), 0));
    assert_eq!(expire(&f, 1000).await, 2);
    let builds = due(&f.store.growth(cutoffs(1000)).await.unwrap(), Expiring::Builds);
    assert_eq!((builds.now, builds.later, builds.oldest), (0, 1, Some(at(950))));
}
