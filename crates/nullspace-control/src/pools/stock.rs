//! The spares of one pool in this process, and the plan of what is to be made and ended.
//!
//! ```text
//!            ┌── making ──> ready ──┬── taken by a create
//!   plan ────┤                      ├── too old, of another version, too many: ended
//!            └── nothing, while a failure is not long enough ago
//! ```

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nullspace_api::TemplateWarmPoolDegradedReason as Reason;
use nullspace_types::{ArtifactId, SpareId};

/// Time after a failure, before the next try; it doubles with each further one, up to the second.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// A spare that is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) id: SpareId,
    pub(super) artifact: ArtifactId,
    pub(super) made: Instant,
}

/// What a pool should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Want {
    /// False: nothing.
    pub(super) enabled: bool,
    pub(super) artifact: ArtifactId,
    pub(super) min_ready: u32,
    pub(super) max_ready: u32,
    pub(super) idle: Duration,
    pub(super) stale: Duration,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) end: Vec<SpareId>,
    pub(super) make: u32,
}

/// The spares of one pool.
#[derive(Debug, Default)]
pub(super) struct Stock {
    /// Oldest first.
    pub(super) ready: VecDeque<Ready>,
    pub(super) making: u32,
    /// Being ended.
    pub(super) ending: u32,
    pub(super) failed: u32,
    pub(super) expired: u32,
    /// Ended because of a newer version.
    pub(super) released: u32,
    /// Spares beyond `min_ready` that creates have lacked lately.
    more: u32,
    last_checkout: Option<Instant>,
    failures: u32,
    rests_until: Option<Instant>,
    pub(super) degraded: Option<Reason>,
    pub(super) compared_at: Option<Timestamp>,
}

impl Stock {
    /// Plans, and takes what is to be ended from the ready ones. `running`: the spares that the host had at `now` or later.
    pub(super) fn plan(&mut self, want: Want, running: &HashSet<SpareId>, now: Instant) -> Plan {
        let before = self.ready.len();
        self.ready.retain(|spare| spare.made >= now || running.contains(&spare.id));
        // The host has ended them, for room or because their machines failed.
        self.failed = self.failed.saturating_add(count(before - self.ready.len()));
        if self.last_checkout.is_none_or(|at| now.duration_since(at) >= want.idle) {
            self.more = 0;
        }
        let target = self.target(want);
        let mut end: Vec<SpareId> = Vec::new();
        let (mut released, mut expired) = (0, 0);
        self.ready.retain(|spare| {
            let (other, old) = (spare.artifact != want.artifact, now.duration_since(spare.made) >= want.stale);
            released += u32::from(want.enabled && other);
            expired += u32::from(want.enabled && !other && old);
            let stays = want.enabled && !other && !old;
            if !stays {
                end.push(spare.id);
            }
            stays
        });
        self.released = self.released.saturating_add(released);
        self.expired = self.expired.saturating_add(expired);
        while count(self.ready.len()) > target {
            end.extend(self.ready.pop_front().map(|spare| spare.id));
        }
        if !want.enabled {
            (self.failures, self.rests_until, self.degraded) = (0, None, None);
        }
        let rests = self.rests_until.is_some_and(|until| now < until);
        let have = count(self.ready.len()).saturating_add(self.making);
        let make = if rests { 0 } else { target.saturating_sub(have) };
        self.making += make;
        self.ending += count(end.len());
        Plan { end, make }
    }

    /// How many should be ready.
    pub(super) fn target(&self, want: Want) -> u32 {
        if want.enabled { want.min_ready.saturating_add(self.more).min(want.max_ready) } else { 0 }
    }

    /// A spare is made.
    pub(super) fn made(&mut self, spare: Ready) {
        self.making = self.making.saturating_sub(1);
        (self.failures, self.rests_until, self.degraded) = (0, None, None);
        self.ready.push_back(spare);
    }

    /// A spare could not be made.
    pub(super) fn not_made(&mut self, why: Reason, now: Instant) {
        self.making = self.making.saturating_sub(1);
        self.failed = self.failed.saturating_add(1);
        let rest = FIRST_REST.saturating_mul(1 << self.failures.min(10)).min(LONGEST_REST);
        self.failures = self.failures.saturating_add(1);
        self.rests_until = Some(now + rest);
        self.degraded = Some(why);
    }

    /// The template cannot be found, so that nothing is made.
    pub(super) fn is_without_template(&mut self) {
        self.degraded = Some(Reason::TemplateBuildUnavailable);
    }

    /// So many were ended.
    pub(super) fn ended(&mut self, number: usize) {
        self.ending = self.ending.saturating_sub(count(number));
    }

    /// Takes the oldest spare of an artifact.
    pub(super) fn take(&mut self, artifact: ArtifactId, now: Instant) -> Option<SpareId> {
        let at = self.ready.iter().position(|spare| spare.artifact == artifact)?;
        self.last_checkout = Some(now);
        self.ready.remove(at).map(|spare| spare.id)
    }

    /// A create has found none: more are kept until nothing is checked out for a while.
    pub(super) fn missed(&mut self, now: Instant) {
        self.last_checkout = Some(now);
        self.more = self.more.saturating_add(1).min(super::spec::MOST);
    }

    /// Why a create gets none now.
    pub(super) fn lack(&self) -> String {
        match self.degraded {
            Some(reason) => format!("it has none ready: {}", word(reason)),
            None => format!("it has none ready, and {} being made", self.making),
        }
    }
}

/// The word of the API.
fn word(reason: Reason) -> String {
    serde_json::to_value(reason).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn want(artifact: ArtifactId) -> Want {
        let (idle, stale) = (Duration::from_secs(60), Duration::from_secs(600));
        Want { enabled: true, artifact, min_ready: 2, max_ready: 4, idle, stale }
    }

    /// Carries a plan out: everything is made at once.
    fn carry_out(stock: &mut Stock, plan: &Plan, artifact: ArtifactId, running: &mut HashSet<SpareId>, now: Instant) {
        for id in &plan.end {
            assert!(running.remove(id), "ended twice, or never made");
        }
        stock.ended(plan.end.len());
        for _ in 0..plan.make {
            let id = SpareId::new();
            running.insert(id);
            stock.made(Ready { id, artifact, made: now });
        }
    }

    #[test]
    fn it_fills_refills_grows_with_misses_and_shrinks_when_nobody_comes() {
        let (artifact, mut now) = (ArtifactId::new(), Instant::now());
        let (mut stock, mut running, want) = (Stock::default(), HashSet::new(), want(artifact));
        let plan = stock.plan(want, &running, now);
        assert_eq!((plan.make, stock.making), (2, 2));
        carry_out(&mut stock, &plan, artifact, &mut running, now);
        assert_eq!(stock.plan(want, &running, now), Plan::default());

        let taken = [stock.take(artifact, now).unwrap(), stock.take(artifact, now).unwrap()];
        taken.iter().for_each(|id| assert!(running.remove(id)));
        assert_eq!(stock.take(artifact, now), None);
        (0..9).for_each(|_| stock.missed(now));
        let plan = stock.plan(want, &running, now);
        assert_eq!(plan.make, 4, "up to max_ready");
        carry_out(&mut stock, &plan, artifact, &mut running, now);
        now += want.idle;
        let plan = stock.plan(want, &running, now);
        assert_eq!((plan.end.len(), plan.make), (2, 0));
        carry_out(&mut stock, &plan, artifact, &mut running, now);
        assert_eq!((stock.ready.len(), stock.ending, stock.failed), (2, 0, 0));
    }

    #[test]
    fn spares_that_are_old_lost_or_of_another_version_are_replaced() {
        let (artifact, newer, mut now) = (ArtifactId::new(), ArtifactId::new(), Instant::now());
        let (mut stock, mut running) = (Stock::default(), HashSet::new());
        let plan = stock.plan(want(artifact), &running, now);
        carry_out(&mut stock, &plan, artifact, &mut running, now);
        running.clear();
        assert_eq!(stock.plan(want(artifact), &running, now), Plan::default(), "made while the host was asked");
        now += Duration::from_millis(1);
        let plan = stock.plan(want(artifact), &running, now);
        assert_eq!((plan.end.len(), plan.make, stock.failed), (0, 2, 2));
        carry_out(&mut stock, &plan, artifact, &mut running, now);
        now += Duration::from_secs(600);
        let plan = stock.plan(want(artifact), &running, now);
        assert_eq!((plan.end.len(), plan.make, stock.expired), (2, 2, 2));
        carry_out(&mut stock, &plan, artifact, &mut running, now);
        let plan = stock.plan(want(newer), &running, now);
        assert_eq!((plan.end.len(), plan.make, stock.released), (2, 2, 2));
        assert_eq!(stock.take(artifact, now), None, "never one of the version before");
        let off = Want { enabled: false, ..want(newer) };
        carry_out(&mut stock, &plan, newer, &mut running, now);
        assert_eq!(stock.plan(off, &running, now).end.len(), 2);
    }

    #[test]
    fn failures_rest_longer_each_time_and_a_success_ends_that() {
        let (artifact, mut now) = (ArtifactId::new(), Instant::now());
        let (mut stock, running) = (Stock::default(), HashSet::new());
        let mut rests = Vec::new();
        for _ in 0..9 {
            assert_eq!(stock.plan(want(artifact), &running, now).make, 2);
            stock.not_made(Reason::NoEligibleHosts, now);
            stock.making = 0;
            let began = now;
            while stock.plan(want(artifact), &running, now).make == 0 {
                now += Duration::from_secs(1);
            }
            stock.making = 0;
            rests.push(now.duration_since(began).as_secs());
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(stock.lack().contains("no_eligible_hosts"));
        stock.made(Ready { id: SpareId::new(), artifact, made: now });
        assert_eq!((stock.degraded, stock.rests_until), (None, None));
    }

    proptest! {
        /// Whatever happens: never more than `max_ready`, none ended that is not there, none taken twice, and the counts add up.
        #[test]
        fn a_stock_keeps_its_bounds(steps in prop::collection::vec((0u8..7, 0u32..5, 0u64..400), 1..80)) {
            let artifacts = [ArtifactId::new(), ArtifactId::new()];
            let (mut stock, mut running, mut now) = (Stock::default(), HashSet::new(), Instant::now());
            let mut want = want(artifacts[0]);
            let mut making = 0;
            for (what, number, seconds) in steps {
                now += Duration::from_secs(seconds);
                match what {
                    0 => {
                        let plan = stock.plan(want, &running, now);
                        for id in &plan.end {
                            prop_assert!(running.remove(id));
                        }
                        stock.ended(plan.end.len());
                        making += plan.make;
                        prop_assert!(want.enabled || plan.make == 0);
                    }
                    1 if making > 0 => {
                        making -= 1;
                        let id = SpareId::new();
                        running.insert(id);
                        stock.made(Ready { id, artifact: want.artifact, made: now });
                    }
                    2 if making > 0 => {
                        making -= 1;
                        stock.not_made(Reason::QuotaExceeded, now);
                    }
                    3 => match stock.take(want.artifact, now) {
                        Some(id) => prop_assert!(running.remove(&id), "not running, or taken twice"),
                        None => stock.missed(now),
                    },
                    4 => want.artifact = artifacts[number as usize % 2],
                    5 => want.enabled = number > 0,
                    6 => {
                        want.min_ready = number;
                        want.max_ready = number + 1;
                    }
                    _ => {}
                }
                prop_assert_eq!(stock.making, making);
                prop_assert_eq!(stock.ending, 0);
                // Those on their way when it was made smaller are ended by the next plan.
                prop_assert!(stock.target(want) <= want.max_ready);
            }
            let plan = stock.plan(Want { enabled: false, ..want }, &running, now);
            prop_assert_eq!(plan.end.into_iter().collect::<HashSet<_>>(), running);
            prop_assert_eq!(stock.ready.len(), 0);
        }
    }
}
