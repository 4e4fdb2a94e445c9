//! Unprivileged uids, one for each machine that runs.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// A range of uids (and gids of the same numbers) that nothing else on this host uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    /// The first uid. The default lies above what `useradd`, containers and systemd give out by themselves.
    pub uid_base: u32,
    /// How many, and so how many machines may run at a time.
    pub count: u32,
}

impl Default for RunAs {
    fn default() -> Self {
        Self { uid_base: 7_000_000, count: 4096 }
    }
}

/// Hands out uids of a range.
#[derive(Debug)]
pub(crate) struct Uids {
    range: RunAs,
    taken: Mutex<BTreeSet<u32>>,
}

impl Uids {
    pub(crate) fn new(range: RunAs) -> Arc<Self> {
        Arc::new(Self { range, taken: Mutex::default() })
    }

    /// A uid that no living machine has; `None` when all are taken.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Uid> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let end = self.range.uid_base.saturating_add(self.range.count);
        // 0 is root and the last number means "no uid": never given out, whatever the range says.
        let free = (self.range.uid_base.max(1)..end).find(|uid| !taken.contains(uid))?;
        taken.insert(free);
        Some(Uid { uid: free, owner: self.clone() })
    }
}

/// A uid in use; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Uid {
    uid: u32,
    owner: Arc<Uids>,
}

impl Uid {
    pub(crate) fn number(&self) -> u32 {
        self.uid
    }
}

impl Drop for Uid {
    fn drop(&mut self) {
        self.owner.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_given_to_one_machine_at_a_time() {
        let uids = Uids::new(RunAs { uid_base: 100, count: 2 });
        let (first, second) = (uids.take().unwrap(), uids.take().unwrap());
        assert_eq!((first.number(), second.number()), (100, 101));
        assert!(uids.take().is_none());
        drop(first);
        assert_eq!(uids.take().unwrap().number(), 100);
    }

    #[test]
    fn root_is_never_given_out() {
        assert_eq!(Uids::new(RunAs { uid_base: 0, count: 2 }).take().unwrap().number(), 1);
        assert!(Uids::new(RunAs { uid_base: u32::MAX, count: 2 }).take().is_none());
    }
}
