//! Uses of grants: counted in memory, written in batches, and ended when their grant is over.
//!
//! ```text
//!   enter ──begin──> use ── bytes, failures ──> counts ──every 5 s──> the grant's row
//!                     ^ ended: revoked by this process, expired (looked for every second), or over in the database (every 2 s):
//!                       its key has ended, or another process has revoked it
//! ```
//! A killed service loses the counts of its last seconds.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nullspace_db::GrantUse;
use nullspace_service::{PortCount, chain};
use nullspace_types::GrantId;
use tokio_util::sync::CancellationToken;

use crate::Inner;

/// Time between two looks for grants that have expired.
const LOOK: Duration = Duration::from_secs(1);
/// Looks between two questions to the database which grants in use are over, two writes of counts, and two removals of old grants.
const ASK: u32 = 2;
const WRITE: u32 = 5;
const REMOVE: u32 = 600;
/// Time for which a grant is kept after it expired.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
/// Grants that one transaction removes, and most transactions of one removal.
const ROWS: u32 = 500;
const STEPS: u32 = 100;

/// What a grant is used for now.
struct Use {
    grant: GrantId,
    expires_at: Timestamp,
    over: CancellationToken,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    rest: Mutex<Rest>,
}

/// Counts beside the bytes.
#[derive(Default)]
struct Rest {
    http_requests: u64,
    websockets: u64,
    used: Option<(Timestamp, Timestamp)>,
    last_error: Option<(String, Timestamp)>,
}

/// Counts that were taken, with the end of their grant.
#[derive(Debug)]
struct Taken {
    counts: GrantUse,
    expires_at: Timestamp,
}

/// One request or WebSocket that a grant let in.
pub(super) struct Counted(Arc<Use>);

impl Counted {
    /// Cancelled when the grant is over.
    pub(super) fn over(&self) -> CancellationToken {
        self.0.over.clone()
    }
}

impl PortCount for Counted {
    fn bytes(&self, from_client: u64, to_client: u64) {
        self.0.bytes_in.fetch_add(from_client, Ordering::Relaxed);
        self.0.bytes_out.fetch_add(to_client, Ordering::Relaxed);
    }

    fn failed(&self, code: &'static str) {
        self.0.rest().last_error = Some((code.to_owned(), Timestamp::now()));
    }
}

impl Use {
    fn new(grant: GrantId, expires_at: Timestamp) -> Use {
        Use {
            grant,
            expires_at,
            over: CancellationToken::new(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            rest: Mutex::default(),
        }
    }

    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was counted since the last time. `None`: nothing.
    fn take(&self) -> Option<GrantUse> {
        let rest = std::mem::take(&mut *self.rest());
        let used = GrantUse {
            grant: self.grant,
            http_requests: rest.http_requests,
            websockets: rest.websockets,
            bytes_in: self.bytes_in.swap(0, Ordering::Relaxed),
            bytes_out: self.bytes_out.swap(0, Ordering::Relaxed),
            used: rest.used,
            last_error: rest.last_error,
        };
        let nothing = used.used.is_none() && used.last_error.is_none() && used.bytes_in == 0 && used.bytes_out == 0;
        (!nothing).then_some(used)
    }

    /// Puts back what could not be written.
    fn put_back(&self, used: GrantUse) {
        self.bytes_in.fetch_add(used.bytes_in, Ordering::Relaxed);
        self.bytes_out.fetch_add(used.bytes_out, Ordering::Relaxed);
        let mut rest = self.rest();
        rest.http_requests += used.http_requests;
        rest.websockets += used.websockets;
        rest.used = match (used.used, rest.used) {
            (Some((first, _)), Some((_, last))) => Some((first, last)),
            (before, since) => since.or(before),
        };
        rest.last_error = rest.last_error.take().or(used.last_error);
    }
}

/// The grants in use, and those whose counts are not written yet. There are at most as many as active grants.
#[derive(Default)]
pub(super) struct Uses(Mutex<HashMap<GrantId, Arc<Use>>>);

impl Uses {
    fn all(&self) -> MutexGuard<'_, HashMap<GrantId, Arc<Use>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request or WebSocket that a grant lets in.
    pub(super) fn begin(&self, grant: GrantId, expires_at: Timestamp, websocket: bool, now: Timestamp) -> Counted {
        let used = Arc::clone(self.all().entry(grant).or_insert_with(|| Arc::new(Use::new(grant, expires_at))));
        {
            let mut rest = used.rest();
            let count = if websocket { &mut rest.websockets } else { &mut rest.http_requests };
            *count += 1;
            rest.used = Some((rest.used.map_or(now, |(first, _)| first), now));
        }
        Counted(used)
    }

    /// Ends what a revoked grant let in.
    pub(super) fn end(&self, grant: GrantId) {
        if let Some(used) = self.all().get(&grant) {
            used.over.cancel();
        }
    }

    /// Ends what expired grants let in.
    fn expire(&self, now: Timestamp) {
        for used in self.all().values().filter(|used| used.expires_at <= now) {
            used.over.cancel();
        }
    }

    /// The grants in use that are not over yet.
    fn in_use(&self) -> Vec<GrantId> {
        let all = self.all();
        let used = all.values().filter(|used| Arc::strong_count(used) > 1 && !used.over.is_cancelled());
        used.map(|used| used.grant).collect()
    }

    /// Takes all counts. Grants that nothing uses any more are forgotten.
    fn take(&self) -> Vec<Taken> {
        let mut taken = Vec::new();
        self.all().retain(|_, used| {
            // Nobody else can begin or count under this lock when there is no other holder.
            let is_used = Arc::strong_count(used) > 1;
            taken.extend(used.take().map(|counts| Taken { counts, expires_at: used.expires_at }));
            is_used
        });
        taken
    }

    fn put_back(&self, taken: Vec<Taken>) {
        let mut all = self.all();
        for Taken { counts, expires_at } in taken {
            // The next use of this grant joins it, and ends with it.
            let kept = all.entry(counts.grant).or_insert_with(|| Arc::new(Use::new(counts.grant, expires_at)));
            kept.put_back(counts);
        }
    }
}

impl Inner {
    /// Writes what grants were used for.
    pub(crate) async fn write_grant_uses(&self) {
        let taken = self.sandboxes.ports.uses.take();
        if taken.is_empty() {
            return;
        }
        let counts: Vec<GrantUse> = taken.iter().map(|taken| taken.counts.clone()).collect();
        if let Err(error) = self.db.count_grants(&counts, Timestamp::now()).await {
            tracing::warn!(error = %chain(&error), "uses of preview URLs are not recorded yet");
            self.sandboxes.ports.uses.put_back(taken);
        }
    }

    /// Lets no grant in, and none go on, that a key's end has ended.
    pub(crate) async fn end_grants_of_ended_keys(&self) {
        self.sandboxes.ports.tokens.forget_all();
        self.end_uses(Timestamp::now()).await;
    }

    /// Ends the uses of grants that are over in the database.
    async fn end_uses(&self, now: Timestamp) {
        let uses = &self.sandboxes.ports.uses;
        let mut asked = uses.in_use();
        if asked.is_empty() {
            return;
        }
        match self.db.grants_in_force(&asked, now).await {
            Ok(good) => {
                let good: HashSet<GrantId> = good.into_iter().collect();
                asked.retain(|grant| !good.contains(grant));
                asked.into_iter().for_each(|grant| uses.end(grant));
            }
            // They end at their time whatever the database says.
            Err(error) => tracing::warn!(error = %chain(&error), "it is not known which preview URLs in use are over"),
        }
    }

    async fn remove_old_grants(&self, now: Timestamp) {
        let before = now.checked_sub(KEPT).unwrap_or(Timestamp::MIN);
        for _ in 0..STEPS {
            match self.db.remove_grants(before, ROWS).await {
                Ok(ROWS) => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "expired preview URLs are not removed yet");
                    return;
                }
            }
        }
    }
}

/// Ends uses of expired grants, writes counts and removes old grants, until the service stops.
pub(crate) async fn keep(inner: Arc<Inner>) {
    for look in 0_u32.. {
        tokio::select! {
            () = inner.shutdown.cancelled() => break,
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = Timestamp::now();
        inner.sandboxes.ports.uses.expire(now);
        if look % ASK == 0 {
            inner.end_uses(now).await;
        }
        if look % WRITE == 0 {
            inner.write_grant_uses().await;
        }
        if look % REMOVE == 0 {
            inner.remove_old_grants(now).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    #[test]
    fn uses_are_counted_taken_once_and_put_back() {
        let uses = Uses::default();
        let grant = GrantId::new();
        let first = uses.begin(grant, at(100), false, at(1));
        let second = uses.begin(grant, at(100), true, at(3));
        first.bytes(10, 100);
        second.bytes(1, 2);
        second.failed("port_not_listening");
        let taken = uses.take();
        let [Taken { counts: used, .. }] = taken.as_slice() else { panic!("{taken:?}") };
        assert_eq!((used.grant, used.http_requests, used.websockets), (grant, 1, 1));
        assert_eq!((used.bytes_in, used.bytes_out, used.used), (11, 102, Some((at(1), at(3)))));
        assert_eq!(used.last_error.as_ref().unwrap().0, "port_not_listening");
        assert!(uses.take().is_empty() && uses.all().len() == 1, "what is in use stays");
        second.bytes(0, 5);
        let third = uses.begin(grant, at(100), false, at(9));
        uses.put_back(taken);
        drop((first, second, third));
        let again = uses.take();
        let used = &again[0].counts;
        assert_eq!((used.http_requests, used.websockets, used.bytes_out), (2, 1, 107));
        assert_eq!(used.used, Some((at(1), at(9))));
        assert!(uses.all().is_empty(), "nothing uses it");
        // It is written later, though nothing uses it any more.
        uses.put_back(again);
        assert_eq!(uses.take().len(), 1);
        assert!(uses.all().is_empty());
    }

    #[test]
    fn a_grant_whose_counts_were_put_back_still_expires() {
        let uses = Uses::default();
        let grant = GrantId::new();
        drop(uses.begin(grant, at(100), false, at(1)));
        uses.put_back(uses.take());
        let later = uses.begin(grant, at(100), true, at(50));
        uses.expire(at(99));
        assert!(!later.over().is_cancelled());
        uses.expire(at(100));
        assert!(later.over().is_cancelled());
        assert!(uses.in_use().is_empty(), "it is over");
    }

    #[test]
    fn what_a_grant_let_in_ends_with_it() {
        let uses = Uses::default();
        let (one, other) = (GrantId::new(), GrantId::new());
        let first = uses.begin(one, at(100), false, at(1));
        let second = uses.begin(other, at(50), true, at(1));
        uses.expire(at(49));
        assert!(!first.over().is_cancelled() && !second.over().is_cancelled());
        uses.expire(at(50));
        assert!(!first.over().is_cancelled() && second.over().is_cancelled());
        uses.end(one);
        uses.end(GrantId::new());
        assert!(first.over().is_cancelled());
    }
}
