//! The life of sandboxes against a model of a few lines: whatever is asked in whatever order, both answer the same.

use std::collections::{BTreeMap, BTreeSet};

use nullspace_db::{DbError, NewSandbox, Recorded, SandboxStatus, SnapshotKind};
use nullspace_types::{ArtifactId, Caller, SandboxId, SnapshotId};
use proptest::prelude::*;

use crate::fixture::{Fixture, at, cases, is_conflict, new_sandbox, new_snapshot};

#[derive(Debug, Clone)]
enum Op {
    Create,
    CreateFrom { snapshot: prop::sample::Index },
    Fork { sandbox: prop::sample::Index },
    Run { sandbox: prop::sample::Index },
    End { sandbox: prop::sample::Index, failed: bool },
    Record { sandbox: prop::sample::Index, pause: bool },
    Resume { snapshot: prop::sample::Index, sandbox: prop::sample::Index },
    Continue { sandbox: prop::sample::Index },
    Mark { sandbox: prop::sample::Index },
    DeleteSnapshot { snapshot: prop::sample::Index },
    RemoveFiles,
    Restart,
    DeleteTemplate,
    Collect,
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        3 => Just(Op::Create),
        4 => index().prop_map(|snapshot| Op::CreateFrom { snapshot }),
        1 => index().prop_map(|sandbox| Op::Fork { sandbox }),
        6 => index().prop_map(|sandbox| Op::Run { sandbox }),
        3 => (index(), any::<bool>()).prop_map(|(sandbox, failed)| Op::End { sandbox, failed }),
        6 => (index(), any::<bool>()).prop_map(|(sandbox, pause)| Op::Record { sandbox, pause }),
        6 => (index(), index()).prop_map(|(snapshot, sandbox)| Op::Resume { snapshot, sandbox }),
        2 => index().prop_map(|sandbox| Op::Continue { sandbox }),
        2 => index().prop_map(|sandbox| Op::Mark { sandbox }),
        2 => index().prop_map(|snapshot| Op::DeleteSnapshot { snapshot }),
        2 => Just(Op::RemoveFiles),
        1 => Just(Op::Restart),
        1 => Just(Op::DeleteTemplate),
        1 => Just(Op::Collect),
    ]
}

struct ModelSandbox {
    status: SandboxStatus,
    snapshot: Option<SnapshotId>,
    continues: bool,
}

struct ModelSnapshot {
    kind: SnapshotKind,
    sandbox: SandboxId,
    folder: String,
    over: bool,
}

struct Run {
    f: Fixture,
    caller: Caller,
    artifact: ArtifactId,
    now: i64,
    template: bool,
    collected: bool,
    sandboxes: BTreeMap<SandboxId, ModelSandbox>,
    /// Also those whose row is gone.
    snapshots: BTreeMap<SnapshotId, ModelSnapshot>,
    removed: BTreeSet<SnapshotId>,
}

fn agrees<T: std::fmt::Debug>(answer: &Result<T, DbError>, expected: bool) {
    assert!(answer.is_ok() == expected && (expected || is_conflict(answer)), "{answer:?}, expected {expected}");
}

impl Run {
    fn sandbox(&self, index: prop::sample::Index) -> Option<SandboxId> {
        let ids: Vec<SandboxId> = self.sandboxes.keys().copied().collect();
        (!ids.is_empty()).then(|| *index.get(&ids))
    }

    /// Any snapshot that has a row.
    fn snapshot(&self, index: prop::sample::Index) -> Option<SnapshotId> {
        let ids: Vec<SnapshotId> = self.snapshots.keys().filter(|id| !self.removed.contains(id)).copied().collect();
        (!ids.is_empty()).then(|| *index.get(&ids))
    }

    fn end(&mut self, id: SandboxId, status: SandboxStatus) {
        let sandbox = self.sandboxes.get_mut(&id).unwrap();
        if sandbox.status == SandboxStatus::Paused {
            self.snapshots.get_mut(&sandbox.snapshot.unwrap()).unwrap().over = true;
        }
        (sandbox.status, sandbox.continues) = (status, false);
    }

    async fn insert(&mut self, asked: NewSandbox, expected: bool) {
        let (id, snapshot) = (asked.id, asked.from_snapshot);
        let answer = self.f.store.insert_sandbox(&self.caller, asked, at(self.now)).await;
        let not_found = matches!(answer, Err(DbError::NotFound));
        assert!(answer.is_ok() == expected && (expected || not_found), "{answer:?}, expected {expected}");
        if expected {
            self.sandboxes.insert(id, ModelSandbox { status: SandboxStatus::Creating, snapshot, continues: false });
        }
    }

    async fn apply(&mut self, op: Op) {
        self.now += 1;
        let now = at(self.now);
        match op {
            Op::Create => self.insert(new_sandbox(self.artifact), self.template).await,
            Op::CreateFrom { snapshot } => {
                let Some(id) = self.snapshot(snapshot) else { return };
                let there = !self.snapshots[&id].over;
                let asked = NewSandbox { from_snapshot: Some(id), ..new_sandbox(self.artifact) };
                self.insert(asked, there).await;
            }
            Op::Fork { sandbox } => {
                let Some(id) = self.sandbox(sandbox) else { return };
                let asked = NewSandbox { forked_from: Some(id), ..new_sandbox(self.artifact) };
                self.insert(asked, !self.collected).await;
            }
            Op::Run { sandbox } => {
                let Some(id) = self.sandbox(sandbox) else { return };
                let answer = self.f.store.set_sandbox_status(id, SandboxStatus::Running, None, now).await;
                let model = self.sandboxes.get_mut(&id).unwrap();
                let expected = matches!(model.status, SandboxStatus::Creating | SandboxStatus::Running);
                agrees(&answer, expected);
                if expected {
                    model.status = SandboxStatus::Running;
                }
            }
            Op::End { sandbox, failed } => {
                let Some(id) = self.sandbox(sandbox) else { return };
                let status = if failed { SandboxStatus::Error } else { SandboxStatus::Destroyed };
                let answer = self.f.store.set_sandbox_status(id, status, Some("x"), now).await;
                let expected = !self.sandboxes[&id].status.is_final();
                agrees(&answer, expected);
                if expected {
                    self.end(id, status);
                }
            }
            Op::Record { sandbox, pause } => {
                let Some(id) = self.sandbox(sandbox) else { return };
                let kind = if pause { SnapshotKind::Pause } else { SnapshotKind::Kept };
                let answer = self.f.store.record_snapshot(new_snapshot(id, kind), None, now).await;
                let model = self.sandboxes.get_mut(&id).unwrap();
                agrees(&answer, model.status == SandboxStatus::Running);
                let Ok(Recorded::New(made)) = answer else { return };
                self.snapshots.insert(made.id, ModelSnapshot { kind, sandbox: id, folder: made.folder, over: false });
                if pause {
                    (model.status, model.snapshot) = (SandboxStatus::Paused, Some(made.id));
                }
            }
            Op::Resume { snapshot, sandbox } => {
                let (Some(snapshot), Some(id)) = (self.snapshot(snapshot), self.sandbox(sandbox)) else { return };
                let answer = self.f.store.resume_paused(snapshot, id, None, now).await;
                let (stored, new) = (&self.snapshots[&snapshot], &self.sandboxes[&id]);
                let expected = stored.kind == SnapshotKind::Pause
                    && !stored.over
                    && new.status == SandboxStatus::Creating
                    && new.snapshot == Some(snapshot);
                agrees(&answer, expected);
                if expected {
                    let paused = stored.sandbox;
                    self.end(paused, SandboxStatus::Destroyed);
                    self.sandboxes.get_mut(&id).unwrap().status = SandboxStatus::Running;
                }
            }
            Op::Continue { sandbox } => {
                let Some(id) = self.sandbox(sandbox) else { return };
                let answer = self.f.store.continue_paused(id, None, now).await;
                let model = self.sandboxes.get_mut(&id).unwrap();
                let expected = model.status == SandboxStatus::Paused;
                agrees(&answer, expected);
                if expected {
                    (model.status, model.continues) = (SandboxStatus::Running, false);
                    self.snapshots.get_mut(&model.snapshot.unwrap()).unwrap().over = true;
                }
            }
            Op::Mark { sandbox } => {
                let Some(id) = self.sandbox(sandbox) else { return };
                let answer = self.f.store.mark_to_continue(id, Some(1)).await;
                let model = self.sandboxes.get_mut(&id).unwrap();
                agrees(&answer, model.status == SandboxStatus::Paused);
                model.continues |= answer.is_ok();
            }
            Op::DeleteSnapshot { snapshot } => {
                let Some(id) = self.snapshot(snapshot) else { return };
                let answer = self.f.store.delete_snapshot(&self.caller, id, now).await;
                let model = self.snapshots.get_mut(&id).unwrap();
                if model.over {
                    assert!(matches!(answer, Err(DbError::NotFound)), "{answer:?}");
                } else {
                    agrees(&answer, model.kind == SnapshotKind::Kept);
                    model.over |= answer.is_ok();
                }
            }
            Op::RemoveFiles => {
                for (id, folder) in self.f.store.snapshots_to_remove(at(self.now + 1), 1000).await.unwrap() {
                    let model = &self.snapshots[&id];
                    assert!(model.over && model.folder == folder, "files of a snapshot that is not over");
                    let starting =
                        |one: &ModelSandbox| one.status == SandboxStatus::Creating && one.snapshot == Some(id);
                    assert!(!self.sandboxes.values().any(starting), "a sandbox starts from it");
                    self.f.store.snapshot_removed(id).await.unwrap();
                    self.removed.insert(id);
                }
            }
            Op::Restart => {
                let ended = self.f.store.end_sandboxes_of_host("host-1", SandboxStatus::Error, "lost", now).await;
                let without_machine: Vec<SandboxId> = self
                    .sandboxes
                    .iter()
                    .filter(|(_, one)| matches!(one.status, SandboxStatus::Creating | SandboxStatus::Running))
                    .map(|(id, _)| *id)
                    .collect();
                let expected = without_machine.iter().map(|id| (*id, self.caller.tenant)).collect();
                assert_eq!(BTreeSet::from_iter(ended.unwrap()), expected);
                for id in without_machine {
                    self.end(id, SandboxStatus::Error);
                }
            }
            Op::DeleteTemplate => {
                let deleted = self.f.delete(&self.caller, "web", now).await;
                assert_eq!(deleted.is_ok(), self.template);
                self.template = false;
            }
            Op::Collect => {
                let unused = self.f.store.collectable_artifacts(now, 10).await.unwrap();
                let used = self.sandboxes.values().any(|one| !one.status.is_final())
                    || self.snapshots.keys().any(|id| !self.removed.contains(id));
                assert_eq!(unused.len(), usize::from(!self.template && !used && !self.collected));
                for one in unused {
                    assert!(self.f.store.purge_artifact(one.id, now).await.unwrap());
                    self.collected = true;
                }
            }
        }
    }

    async fn compare(&self) {
        for (id, model) in &self.sandboxes {
            let found = self.f.store.get_sandbox(&self.caller, *id).await.unwrap();
            assert_eq!((found.status, found.snapshot), (model.status, model.snapshot));
            assert_eq!(found.ended_at.is_some(), model.status.is_final());
        }
        let mut folders = BTreeSet::new();
        for (id, model) in &self.snapshots {
            let found = self.f.store.get_snapshot(&self.caller, *id).await;
            assert_eq!(found.is_ok(), !model.over, "{id}");
            if !self.removed.contains(id) {
                folders.insert(model.folder.clone());
            }
            // A paused sandbox always has its snapshot, and such a snapshot its sandbox.
            let holder = &self.sandboxes[&model.sandbox];
            let stored = holder.status == SandboxStatus::Paused && holder.snapshot == Some(*id);
            assert_eq!(stored, model.kind == SnapshotKind::Pause && !model.over);
        }
        if !self.collected {
            folders.insert(self.f.store.get_artifact(self.artifact).await.unwrap().folder);
        }
        let known: BTreeSet<String> = self.f.store.known_files().await.unwrap().artifacts.into_keys().collect();
        assert_eq!(known, folders);
        let marked: BTreeSet<SandboxId> =
            self.f.store.to_continue("host-1").await.unwrap().into_iter().map(|(sandbox, _)| sandbox.id).collect();
        let expected = self.sandboxes.iter().filter(|(_, one)| one.continues).map(|(id, _)| *id);
        assert_eq!(marked, expected.collect());
        assert!(self.f.broken_references().await.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(32), ..ProptestConfig::default() })]

    #[test]
    fn sandboxes_and_their_snapshots_do_what_their_model_does(ops in prop::collection::vec(op(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let f = Fixture::new().await;
            let caller = f.tenant("acme").await;
            let artifact = f.ready(&caller, "web", &["default"], at(1)).await.artifact_id;
            let mut run = Run {
                f,
                caller,
                artifact,
                now: 10,
                template: true,
                collected: false,
                sandboxes: BTreeMap::new(),
                snapshots: BTreeMap::new(),
                removed: BTreeSet::new(),
            };
            for op in ops {
                run.apply(op).await;
            }
            run.compare().await;
        });
    }
}
