//! The limit on the work that one Dockerfile's words may cause, and the answer when it is used up.

use std::cell::Cell;

/// The budget of one Dockerfile's variables: characters written and characters compared with patterns. Values that double
/// from line to line would otherwise take any amount of memory.
#[derive(Debug)]
pub(super) struct Budget(Cell<usize>);

impl Default for Budget {
    fn default() -> Self {
        Budget(Cell::new(8 << 20))
    }
}

impl Budget {
    /// Spends so much of it.
    pub(super) fn spend(&self, amount: usize) -> Result<(), Unread> {
        let left = self.0.get().checked_sub(amount);
        self.0.set(left.unwrap_or(0));
        left.map(drop).ok_or(Unread)
    }
}

/// A text that is not a word, or whose meaning only BuildKit knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unread;
