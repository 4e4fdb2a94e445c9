//! The queue against a model of a few lines: whatever is asked in whatever order, both answer the same.

use std::{collections::BTreeMap, time::Duration};

use nullspace_db::{Build, BuildStatus, DbError, Finished, Lease, Leased, Release};
use nullspace_types::{BuildId, Caller};
use proptest::prelude::*;

use crate::fixture::{Fixture, TTL, at, cancel, cases, entry, failure, new_build, result};

const TENANTS: usize = 3;
const MAX_ATTEMPTS: u32 = 2;

#[derive(Debug, Clone)]
enum Op {
    Accept { tenant: usize },
    Lease { owner: usize },
    Heartbeat { lease: prop::sample::Index },
    Append { lease: prop::sample::Index, entries: usize },
    HandBack { lease: prop::sample::Index },
    RetryAfter { lease: prop::sample::Index, seconds: i64 },
    FinishReady { lease: prop::sample::Index },
    FinishError { lease: prop::sample::Index },
    FinishCancelled { lease: prop::sample::Index },
    Cancel { build: prop::sample::Index },
    Wait { seconds: i64 },
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0..TENANTS).prop_map(|tenant| Op::Accept { tenant }),
        6 => (0..2_usize).prop_map(|owner| Op::Lease { owner }),
        3 => index().prop_map(|lease| Op::Heartbeat { lease }),
        3 => (index(), 0..4_usize).prop_map(|(lease, entries)| Op::Append { lease, entries }),
        1 => index().prop_map(|lease| Op::HandBack { lease }),
        1 => (index(), 1..60_i64).prop_map(|(lease, seconds)| Op::RetryAfter { lease, seconds }),
        1 => index().prop_map(|lease| Op::FinishReady { lease }),
        1 => index().prop_map(|lease| Op::FinishError { lease }),
        1 => index().prop_map(|lease| Op::FinishCancelled { lease }),
        2 => index().prop_map(|build| Op::Cancel { build }),
        3 => (1..40_i64).prop_map(|seconds| Op::Wait { seconds }),
    ]
}

struct ModelBuild {
    tenant: usize,
    status: BuildStatus,
    attempt: u32,
    not_before: i64,
    lease: Option<(Lease, i64)>,
    cancel_requested: bool,
    log: Vec<String>,
}

#[derive(Default)]
struct Model {
    now: i64,
    /// In the order of acceptance.
    builds: Vec<(BuildId, ModelBuild)>,
    /// When each tenant was served last, as a count of leases.
    served: BTreeMap<usize, u64>,
    leases: u64,
}

impl Model {
    fn running(&self, tenant: usize) -> usize {
        let live = |build: &ModelBuild| build.lease.as_ref().is_some_and(|(_, expires)| *expires > self.now);
        self.builds.iter().filter(|(_, build)| build.tenant == tenant && live(build)).count()
    }

    /// Index of the build that must be leased now.
    fn next(&self) -> Option<usize> {
        let ready = |build: &ModelBuild| match build.status {
            BuildStatus::Waiting => build.not_before <= self.now,
            BuildStatus::Building => build.lease.as_ref().is_some_and(|(_, expires)| *expires <= self.now),
            _ => false,
        };
        (0..self.builds.len()).filter(|index| ready(&self.builds[*index].1)).min_by_key(|index| {
            let tenant = self.builds[*index].1.tenant;
            (self.running(tenant), self.served.get(&tenant).copied().unwrap_or(0), *index)
        })
    }

    /// The build that this lease holds.
    fn held(&mut self, lease: &Lease) -> Option<&mut ModelBuild> {
        let (_, build) = self.builds.iter_mut().find(|(id, _)| *id == lease.build)?;
        build.lease.as_ref().is_some_and(|(held, _)| held == lease).then_some(build)
    }
}

/// Every lease ever given, so that stale ones are tried, too.
struct Run {
    f: Fixture,
    callers: Vec<Caller>,
    leases: Vec<Lease>,
    model: Model,
}

fn end(build: &mut ModelBuild, status: BuildStatus, message: &str) {
    build.status = status;
    build.lease = None;
    build.log.push(message.to_owned());
}

fn lost<T: std::fmt::Debug>(answer: Result<T, DbError>) {
    assert!(matches!(answer, Err(DbError::LeaseLost)), "{answer:?}");
}

impl Run {
    fn lease(&self, index: prop::sample::Index) -> Option<Lease> {
        (!self.leases.is_empty()).then(|| index.get(&self.leases).clone())
    }

    async fn apply(&mut self, op: Op) {
        let now = self.model.now;
        match op {
            Op::Wait { seconds } => self.model.now += seconds,
            Op::Accept { tenant } => {
                let mut asked = new_build("web", &["default"]);
                asked.max_attempts = MAX_ATTEMPTS;
                let build = self.f.accept_with(&self.callers[tenant], asked).await;
                self.model.builds.push((
                    build.id,
                    ModelBuild {
                        tenant,
                        status: BuildStatus::Waiting,
                        attempt: 0,
                        not_before: i64::MIN,
                        lease: None,
                        cancel_requested: false,
                        log: vec!["start".to_owned()],
                    },
                ));
            }
            Op::Lease { owner } => self.take(&format!("w{owner}")).await,
            Op::Heartbeat { lease } => {
                let Some(lease) = self.lease(lease) else { return };
                let answer = self.f.store.heartbeat(&lease, TTL, at(now)).await;
                let Some(build) = self.model.held(&lease) else { return lost(answer) };
                assert_eq!(answer.unwrap().cancel_requested, build.cancel_requested);
                let (_, expires) = build.lease.as_mut().unwrap();
                *expires = (*expires).max(now + 30);
            }
            Op::Append { lease, entries } => {
                let Some(lease) = self.lease(lease) else { return };
                let texts: Vec<_> = (0..entries).map(|i| format!("{now}/{i}")).collect();
                let answer = self.f.store.append_log(&lease, texts.iter().map(|text| entry(text)).collect()).await;
                let Some(build) = self.model.held(&lease) else { return lost(answer) };
                assert_eq!(answer.unwrap(), build.log.len() as u64);
                build.log.extend(texts);
            }
            Op::HandBack { lease } => {
                let Some(lease) = self.lease(lease) else { return };
                let answer = self.f.store.release_build(&lease, Release::HandBack, vec![], at(now)).await;
                let Some(build) = self.model.held(&lease) else { return lost(answer) };
                answer.unwrap();
                (build.status, build.lease, build.attempt) = (BuildStatus::Waiting, None, build.attempt - 1);
                build.not_before = i64::MIN;
            }
            Op::RetryAfter { lease, seconds } => {
                let Some(lease) = self.lease(lease) else { return };
                let how = Release::RetryAfter(Duration::from_secs(seconds.unsigned_abs()));
                let answer = self.f.store.release_build(&lease, how, vec![entry("retry")], at(now)).await;
                let Some(build) = self.model.held(&lease) else { return lost(answer) };
                if build.attempt == MAX_ATTEMPTS {
                    assert!(matches!(answer, Err(DbError::Conflict { .. })));
                    return;
                }
                answer.unwrap();
                (build.status, build.lease, build.not_before) = (BuildStatus::Waiting, None, now + seconds);
                build.log.push("retry".to_owned());
            }
            Op::FinishReady { lease } => {
                let Some(lease) = self.lease(lease) else { return };
                let recorded = self.f.store.put_rootfs(&lease, crate::fixture::rootfs("a"), at(now)).await;
                let answer = self.f.store.finish_ready(&lease, result(), at(now)).await;
                let Some(build) = self.model.held(&lease) else { return lost(answer) };
                recorded.unwrap();
                if build.cancel_requested {
                    assert_eq!(answer.unwrap(), Finished::CancelRequested);
                } else {
                    assert!(matches!(answer.unwrap(), Finished::Ready(_)));
                    end(build, BuildStatus::Ready, "end");
                }
            }
            Op::FinishError { lease } => {
                let Some(lease) = self.lease(lease) else { return };
                let answer = self.f.store.finish_error(&lease, failure(), at(now)).await;
                let Some(build) = self.model.held(&lease) else { return lost(answer) };
                answer.unwrap();
                end(build, BuildStatus::Error, "error");
            }
            Op::FinishCancelled { lease } => {
                let Some(lease) = self.lease(lease) else { return };
                let answer = self.f.store.finish_cancelled(&lease, entry("cancelled"), at(now)).await;
                let Some(build) = self.model.held(&lease) else { return lost(answer) };
                answer.unwrap();
                end(build, BuildStatus::Cancelled, "cancelled");
            }
            Op::Cancel { build } => {
                if self.model.builds.is_empty() {
                    return;
                }
                let chosen = build.index(self.model.builds.len());
                let (id, build) = &mut self.model.builds[chosen];
                let caller = &self.callers[build.tenant];
                let outcome = self.f.store.request_cancel(caller, *id, cancel("x"), at(now)).await.unwrap();
                assert_eq!(outcome.ended_now, build.status == BuildStatus::Waiting);
                if !build.status.is_final() {
                    build.cancel_requested = true;
                }
                if build.status == BuildStatus::Waiting {
                    end(build, BuildStatus::Cancelled, "cancelled");
                }
            }
        }
    }

    async fn take(&mut self, owner: &str) {
        let now = self.model.now;
        let leased = self.f.store.lease_build(owner, TTL, u32::MAX, at(now)).await.unwrap();
        let Some(next) = self.model.next() else {
            assert_eq!(leased, None);
            return;
        };
        let (lease, got, spent): (Lease, Box<Build>, bool) = match leased {
            Some(Leased::Run { lease, build }) => (lease, build, false),
            Some(Leased::Spent { lease, build }) => (lease, build, true),
            None => panic!("a build is waiting and none was leased"),
        };
        let (id, build) = &mut self.model.builds[next];
        assert_eq!((got.id, lease.build), (*id, *id), "not the one whose turn it is");
        assert_eq!(spent, build.status == BuildStatus::Building && build.attempt == MAX_ATTEMPTS);
        if !spent {
            build.attempt += 1;
        }
        assert_eq!((got.status, got.attempt), (BuildStatus::Building, build.attempt));
        assert_eq!(got.cancel_requested_at.is_some(), build.cancel_requested);
        assert!(!self.leases.contains(&lease), "a lease was given twice");
        (build.status, build.lease) = (BuildStatus::Building, Some((lease.clone(), now + 30)));
        self.model.leases += 1;
        self.model.served.insert(build.tenant, self.model.leases);
        self.leases.push(lease);
    }

    async fn compare(&self) {
        let mut waiting = 0;
        for (id, expected) in &self.model.builds {
            let caller = &self.callers[expected.tenant];
            let build = self.f.store.get_build(caller, *id).await.unwrap();
            assert_eq!((build.status, build.attempt), (expected.status, expected.attempt));
            assert_eq!(build.finished_at.is_some(), build.status.is_final());
            assert_eq!(build.artifact.is_some(), build.status == BuildStatus::Ready);
            assert_eq!(self.f.messages(caller, *id).await, expected.log);
            waiting += u64::from(build.status == BuildStatus::Waiting);
        }
        assert_eq!(self.f.store.counters().await.unwrap().builds_waiting, waiting);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(48), ..ProptestConfig::default() })]

    #[test]
    fn the_queue_does_what_its_model_does(ops in prop::collection::vec(op(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let f = Fixture::new().await;
            let mut callers = Vec::new();
            for tenant in 0..TENANTS {
                callers.push(f.tenant(&format!("t{tenant}")).await);
            }
            let mut run = Run { f, callers, leases: Vec::new(), model: Model::default() };
            for op in ops {
                run.apply(op).await;
            }
            run.compare().await;
        });
    }
}
