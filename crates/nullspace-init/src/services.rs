//! Processes that outlive channels and sessions: the template's start command.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nullspace_guest::frame::Kind;
use nullspace_guest::message::{Exec, Exit, Failure, FailureKind, Outcome};
use std::os::fd::AsFd;

use crate::process::prepare::prepare;
use crate::process::spawn::spawn;
use crate::process::supervise::{Wiring, supervise};
use crate::ring::Ring;
use crate::session::Channel;

/// Services known at a time; ended ones make room for new ones.
const MAX_SERVICES: usize = 64;

/// The services of this guest by pid.
#[derive(Debug, Default)]
pub(crate) struct Services(Mutex<BTreeMap<u32, Arc<Service>>>);

#[derive(Debug)]
struct Service {
    exec: Exec,
    /// 1 for the first start of this very command.
    starts: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ring: Ring,
    exit: Option<Exit>,
    followers: Vec<Weak<Channel>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Services {
    /// Starts one; answers its pid.
    pub(crate) fn start(&self, exec: Exec) -> Result<u32, Failure> {
        let plan = prepare(&exec)?;
        let mut services = lock(&self.0);
        if services.len() >= MAX_SERVICES {
            let ended = services.iter().find(|(_, service)| lock(&service.state).exit.is_some()).map(|(pid, _)| *pid);
            let Some(pid) = ended else {
                let message = format!("{MAX_SERVICES} services run in this guest already.");
                return Err(Failure { kind: FailureKind::Limit, message });
            };
            services.remove(&pid);
        }
        let child = spawn(&plan, false)?;
        let pid = u32::try_from(child.watch.pid()).unwrap_or_default();
        let earlier = services.values().filter(|service| service.exec == exec).map(|service| service.starts).max();
        let timeout = exec.timeout_ms.map(Duration::from_millis);
        let starts = earlier.unwrap_or(0).saturating_add(1);
        let service = Arc::new(Service { exec, starts, state: Mutex::default() });
        let followed = service.clone();
        let watch = child.watch.clone();
        let thread = std::thread::Builder::new().name(format!("service-{pid}")).spawn(move || {
            let exit = supervise(child, timeout, &mut Recorder(&followed));
            let killed = Exit { code: 137, signal: Some(libc::SIGKILL), timed_out: true };
            let mut state = lock(&followed.state);
            state.exit = Some(exit.unwrap_or(killed));
            state.wake_followers();
        });
        if let Err(error) = thread {
            crate::process::reaper::Reaper::get().signal_group(&watch, libc::SIGKILL, false);
            let message = format!("The service cannot be watched: {error}.");
            return Err(Failure { kind: FailureKind::Limit, message });
        }
        services.insert(pid, service);
        Ok(pid)
    }

    /// How often the service of this pid was started; `None` for other processes.
    pub(crate) fn starts(&self, pid: u32) -> Option<u32> {
        let service = lock(&self.0).get(&pid).cloned()?;
        // An ended service's number may belong to another process by now.
        let running = lock(&service.state).exit.is_none();
        running.then_some(service.starts)
    }

    /// Sends a service's output to `channel`: all that is kept, with `follow` also what comes until the service or the
    /// channel ends.
    pub(crate) fn output(&self, pid: u32, follow: bool, channel: &Arc<Channel>) -> Outcome {
        let Some(service) = lock(&self.0).get(&pid).cloned() else {
            let message = format!("No service with pid {pid} was started in this guest.");
            return Outcome::Failed(Failure { kind: FailureKind::NotFound, message });
        };
        lock(&service.state).followers.push(Arc::downgrade(channel));
        channel.reply(&Outcome::Started { pid });
        let mut position = 0;
        loop {
            if channel.is_reset() {
                return Outcome::Done;
            }
            {
                let state = lock(&service.state);
                let room = channel.room();
                match state.ring.read(position, room.max(1)) {
                    Some((kind, bytes, next)) if room > 0 => {
                        channel.output(kind, bytes);
                        position = next;
                        continue;
                    }
                    // There is more, and no credit for it.
                    Some(_) => {}
                    None => {
                        if let Some(exit) = state.exit {
                            return Outcome::Exit(exit);
                        }
                        if !follow {
                            return Outcome::Done;
                        }
                    }
                }
            }
            // Woken by output, exit, credit and reset alike.
            let _ = poll(&mut [PollFd::new(channel.wake().as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
            channel.wake().clear();
        }
    }
}

impl State {
    fn wake_followers(&mut self) {
        self.followers.retain(|follower| match follower.upgrade() {
            Some(channel) => {
                channel.wake().set();
                true
            }
            None => false,
        });
    }
}

struct Recorder<'a>(&'a Service);

impl Wiring for Recorder<'_> {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn output(&mut self, kind: Kind, bytes: &[u8]) {
        let mut state = lock(&self.0.state);
        state.ring.push(kind, bytes);
        state.wake_followers();
    }
}
