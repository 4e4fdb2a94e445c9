//! Processes of the guest: prepared, started, watched, reaped.
//!
//! ```text
//!  Exec --prepare--> Plan --spawn--> Child --supervise--> Exit
//!                      |               |        ^  output, stdin, timeout
//!   users, PATH, env   |   error pipe  |        |
//!                      +--- clone -----+     reaper: the one thread that waits for children
//! ```
//!
//! Not `std::process`: its error path waits for the child itself and would race with the reaper, which has to wait for
//! everything because PID 1 inherits orphans.

pub(crate) mod handle;
pub(crate) mod list;
pub(crate) mod memory;
pub(crate) mod namespace;
pub(crate) mod prepare;
pub(crate) mod pty;
pub(crate) mod reaper;
pub(crate) mod sink;
pub(crate) mod spawn;
pub(crate) mod supervise;
pub(crate) mod tail;
