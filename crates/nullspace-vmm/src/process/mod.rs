//! Child processes that own nothing and never outlive the service. Both drivers start their VMMs here.
//!
//! ```text
//!   launch() -> [thread vmm-spawner] child.rs: clone --- child: walls, then exec
//!                                      |
//!   Process <- [task] life.rs: the pidfd is readable: reap, then drop what the child's life held (uid, network, memory)
//! ```
//!
//! A [`Launch`] (`launch.rs`) describes a child completely; `child.rs` holds the steps between clone and exec, and their order.
//! A child gets `/dev/null` as stdin, a bounded log as stdout and stderr, an empty environment, and of our descriptors
//! only those it was meant to have.
//!
//! The kernel kills a child when the thread that cloned it ends (`PR_SET_PDEATHSIG` is bound to the thread, not to the
//! process): hence one thread clones them all and lives as long as the service. A service killed with SIGKILL leaves no
//! child behind. The kernel clears that signal when a process changes its uid: a child that drops root by itself sets it
//! afterwards, and Firecracker's jailer, which cannot, runs below a PID 1 that stays root (`firecracker/jail.rs`).

mod child;
mod launch;
mod life;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{OnceLock, mpsc};

use tokio::sync::oneshot;

pub(crate) use self::launch::{Bind, Confinement, Identity, Launch, Namespaces};
pub(crate) use self::life::Process;
use self::life::{Held, Started};

/// The failed start gives back what the child was to hold.
type Outcome = Result<Started, (io::Error, Held)>;
type Request = (Launch, Held, oneshot::Sender<Outcome>);

/// Starts a program. `held` is dropped when the process is gone, and not before. Call it in a tokio runtime.
pub(crate) async fn launch<G: Send + 'static>(launch: Launch, held: G) -> io::Result<Process> {
    let ended = || io::Error::other("the spawning thread has ended");
    let (reply, answer) = oneshot::channel();
    spawner().send((launch, Box::new(held), reply)).map_err(|_| ended())?;
    match answer.await.map_err(|_| ended())? {
        Ok(started) => started.supervise(),
        Err((error, held)) => {
            // Removing control groups and folders blocks.
            let _ = tokio::task::spawn_blocking(move || drop(held)).await;
            Err(error)
        }
    }
}

fn spawner() -> &'static mpsc::Sender<Request> {
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        let run = move || {
            for (launch, held, reply) in requests {
                let outcome = match child::start(&launch) {
                    Ok(child) => Ok(Started { child, _held: held }),
                    Err(error) => Err((error, held)),
                };
                // When nobody waits any more, the reply is dropped: that ends the child, then frees what it held.
                let _ = reply.send(outcome);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("vmm-spawner".into()).spawn(run) {
            // The sender then has no receiver: every launch fails and says so.
            tracing::error!(%error, "the thread that starts virtual machines could not be started");
        }
        sender
    })
}
