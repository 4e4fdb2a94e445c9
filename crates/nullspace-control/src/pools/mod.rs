//! Warm pools: machines of a template that are resumed ahead, so that a create has nothing to wait for but its identity.
//!
//! ```text
//!   request ──> requests ── row: what a pool should be ──┐
//!                                                        v
//!                    keep: each second, and when woken ── plan ──┬── spares to make ──> host: prepare_spare ──> ready
//!                                                                └── spares to end  ──> host: end_spare
//!   create ──> checkout ── a ready spare ──> start ──> host: admit_sandbox takes it        ^
//!                 └─ none: wait, then cold (`prefer`) or refused (`require`) ── a miss ────┘ more are kept for a while
//! ```
//! | file | idea |
//! |---|---|
//! | `spec` | what a pool's owner asks for, and its rules |
//! | `requests` | the operations of the API |
//! | `wire` | a pool as the API shows it |
//! | `stock` | the spares of a pool in this process, and the plan of what is to be made and ended |
//! | `keep` | the task that carries the plan out |
//! | `checkout` | the choice of a create |
//!
//! A spare is in no table: it dies with its host, and nothing is lost. A checked out spare is a sandbox like any other, and does not
//! come back.

mod checkout;
mod keep;
mod requests;
mod spec;
mod stock;
mod wire;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nullspace_db::WarmPoolLimits;
use nullspace_types::WarmPoolId;
use tokio::sync::{Notify, Semaphore};

pub(crate) use self::checkout::{Checkout, refuse_for_snapshot};
pub(crate) use self::keep::keep;
use self::stock::Stock;
use crate::Inner;

/// Most pools of one tenant.
const POOLS: u32 = 20;
/// Spares that are made at once. A start by a request is not one of them.
const MAKING: usize = 2;

/// The pools of this process.
#[derive(Debug)]
pub(crate) struct State {
    stocks: Mutex<HashMap<WarmPoolId, Stock>>,
    /// Wakes the keeper.
    wake: Notify,
    /// Wakes those that wait for a spare.
    ready: Notify,
    making: Semaphore,
}

impl Default for State {
    fn default() -> State {
        State { stocks: Mutex::default(), wake: Notify::new(), ready: Notify::new(), making: Semaphore::new(MAKING) }
    }
}

impl State {
    fn stocks(&self) -> MutexGuard<'_, HashMap<WarmPoolId, Stock>> {
        self.stocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn warm_limits(&self) -> WarmPoolLimits {
        WarmPoolLimits { pools: POOLS, ready: self.config.life.warm_per_tenant }
    }
}
