//! Services: processes that outlive channels and sessions. They are the template's start command, and commands whose
//! followers may disconnect and come back.

mod service;
mod terminal;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nullspace_guest::message::{Exec, Exit, Failure, FailureKind, Outcome};
use nullspace_guest::terminal::{MAX_TERMINALS, TerminalSize};

use self::service::{Recorder, Screen, Service};
use crate::process::prepare::prepare;
use crate::process::pty::Pty;
use crate::process::reaper::Reaper;
use crate::process::spawn::{spawn, spawn_on};
use crate::process::supervise::supervise;
use crate::session::Channel;
use crate::wake::Wake;

/// Most services that are remembered. The one that ended first is forgotten for a new one.
const MAX_SERVICES: usize = 64;

/// The services of this guest by pid.
#[derive(Debug, Default)]
pub(crate) struct Services(Mutex<BTreeMap<u32, Arc<Service>>>);

fn limit(message: String) -> Failure {
    Failure { kind: FailureKind::Limit, message }
}

impl Services {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Service>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, pid: u32) -> Result<Arc<Service>, Failure> {
        self.lock().get(&pid).cloned().ok_or_else(|| {
            let message = format!("No service with pid {pid} was started in this guest.");
            Failure { kind: FailureKind::NotFound, message }
        })
    }

    /// Starts a service. Answers its pid.
    pub(crate) fn start(&self, exec: Exec) -> Result<u32, Failure> {
        self.begin(exec, None, |_| ()).map(|(pid, ())| pid)
    }

    /// Starts a service and sends all of its output to `channel`.
    pub(crate) fn run(&self, exec: Exec, channel: &Arc<Channel>) -> Outcome {
        self.run_with(exec, None, channel)
    }

    fn run_with(&self, exec: Exec, terminal: Option<(String, TerminalSize)>, channel: &Arc<Channel>) -> Outcome {
        match self.begin(exec, terminal, |service| service.follow(channel)) {
            Ok((pid, place)) => {
                channel.reply(&Outcome::Started { pid });
                place.send_output(true)
            }
            Err(failure) => Outcome::Failed(failure),
        }
    }

    /// Starts a service, with a terminal of this name and size. `before` is called before its output is read.
    fn begin<T>(
        &self,
        exec: Exec,
        terminal: Option<(String, TerminalSize)>,
        before: impl FnOnce(&Arc<Service>) -> T,
    ) -> Result<(u32, T), Failure> {
        let plan = prepare(&exec)?;
        let mut services = self.lock();
        if services.len() >= MAX_SERVICES {
            let ended = services.iter().filter_map(|(pid, service)| Some((service.ended()?, *pid))).min();
            let Some((_, pid)) = ended else {
                return Err(limit(format!("{MAX_SERVICES} services run in this guest already.")));
            };
            services.remove(&pid);
        }
        let open = services.values().filter(|service| service.screen.is_some() && service.runs()).count();
        if terminal.is_some() && open >= MAX_TERMINALS {
            return Err(limit(format!("{MAX_TERMINALS} terminals are open in this sandbox already: close one.")));
        }
        let earlier = services.values().filter(|service| service.exec == exec).map(|service| service.starts).max();
        let starts = earlier.unwrap_or(0).saturating_add(1);
        let (timeout, stdin) = (exec.timeout_ms.map(Duration::from_millis), exec.stdin);
        let wake = Wake::new().map_err(|error| limit(format!("No service can be made: {error}.")))?;
        let (child, screen) = match terminal {
            None => (spawn(&plan, stdin)?, None),
            Some((name, size)) => {
                let pty = Pty::open(size, &plan.account)
                    .map_err(|error| limit(format!("No terminal can be opened: {error}.")))?;
                let child = spawn_on(&plan, &pty)?;
                (child, Some(Screen::new(name, pty.master, size)))
            }
        };
        let service = Service::new(exec, starts, wake, child.watch.clone(), screen);
        let pid = child.watch.shown();
        let made = before(&service);
        let (followed, watch) = (service.clone(), child.watch.clone());
        let thread = std::thread::Builder::new().name(format!("service-{pid}")).spawn(move || {
            let exit = supervise(child, timeout, &mut Recorder(&followed));
            let killed = Exit { code: 137, signal: Some(libc::SIGKILL), timed_out: true, ..Exit::default() };
            followed.end(exit.unwrap_or(killed));
        });
        if let Err(error) = thread {
            Reaper::get().signal_group(&watch, libc::SIGKILL, false);
            return Err(limit(format!("The service cannot be watched: {error}.")));
        }
        services.insert(pid, service);
        Ok((pid, made))
    }

    /// Number of starts of the service of this pid; `None` for other processes.
    pub(crate) fn starts(&self, pid: u32) -> Option<u32> {
        let service = self.find(pid).ok()?;
        // An ended service's number may belong to another process by now.
        service.ended().is_none().then_some(service.starts)
    }

    /// Sends a signal to a running service and its process group; false when the pid is not one.
    pub(crate) fn signal(&self, pid: u32, signal: i32) -> bool {
        self.find(pid).is_ok_and(|service| service.signal(signal))
    }

    /// Sends a service's kept output to `channel`, with `follow` also new output until the service or the channel ends.
    pub(crate) fn output(&self, pid: u32, follow: bool, channel: &Arc<Channel>) -> Outcome {
        let service = match self.find(pid) {
            Ok(service) => service,
            Err(failure) => return Outcome::Failed(failure),
        };
        let place = service.follow(channel);
        let (lost_stdout, lost_stderr) = service.lost();
        channel.reply(&Outcome::Attached { pid, lost_stdout, lost_stderr });
        place.send_output(follow)
    }

    /// Writes the data of `channel` to a service's stdin. `close`: closes it behind them.
    pub(crate) fn input(&self, pid: u32, close: bool, channel: &Arc<Channel>) -> Outcome {
        match self.find(pid) {
            Ok(service) => service.take_input(close, channel),
            Err(failure) => Outcome::Failed(failure),
        }
    }
}
