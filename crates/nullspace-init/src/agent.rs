//! The agent's requests and their dispatch.
//!
//! The reader thread of a connection passes frames in. Requests that change the guest's identity run on that thread, so they
//! are complete before the host's next request (the first exec after a restore). Every other request has a thread of its own
//! and ends its channel. A panic in it ends only that channel.

#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nullspace_guest::capability;
use nullspace_guest::frame::{Frame, Kind};
use nullspace_guest::message::{
    AGENT_ABI, AgentInfo, Configure, Exec, Failure, FailureKind, GuestNetwork, KILL_AFTER_MS, Outcome, Request,
    Restored,
};

use crate::dial::Goal;
use crate::halt::Halting;
use crate::outbox::Outbox;
use crate::process::supervise::{Unfinished, Wiring, supervise};
use crate::process::{handle::Handle, list, namespace, prepare::prepare, spawn::spawn};
use crate::services::Services;
use crate::session::{Channel, Opened, Session, StdinOver};
use crate::severed::Severed;
use crate::uploads::Uploads;
use crate::wake::Wake;
use crate::{
    dial, files, filesystem, generation, halt, identity, leftovers, log, modules, network, probe, resume, severed,
    shutdown, usage, watch, workers,
};

/// Time limit of the last answer before the power is switched off.
const FAREWELL: Duration = Duration::from_millis(500);

/// Folder of uploads that are not complete, on the guest's root: see [`Uploads`].
const UPLOADS: &str = "/var/lib/nullspace/uploads";

/// The machine below the agent.
#[derive(Debug, Clone)]
pub struct Ground {
    /// The root's block device if it is mounted, else the error.
    pub root: Result<String, String>,
    /// How this machine is switched off: some have no power button and end on a reboot.
    pub off: nix::sys::reboot::RebootMode,
}

/// The agent: one for the machine's life, across connections and sessions.
#[derive(Debug)]
pub struct Agent {
    ground: Ground,
    /// Gathered once: all of it is the same for the machine's life, and the answer to HELLO is waited for.
    info: AgentInfo,
    services: Services,
    session: Mutex<Option<Arc<Session>>>,
    network: Mutex<Option<GuestNetwork>>,
    /// The name of the boot: what processes from before a snapshot took for theirs.
    first_name: Mutex<Option<String>>,
    /// Connections to other machines that a halted snapshot has; `None` when the guest is not halted.
    halted: Mutex<Option<Vec<Severed>>>,
    halting: Halting,
    uploads: Uploads,
    /// The last restore and what came of it.
    restored: Mutex<Option<(Restored, Result<(), Failure>)>>,
}

fn failed(kind: FailureKind, message: impl Into<String>) -> Outcome {
    Outcome::Failed(Failure { kind, message: message.into() })
}

fn done(result: Result<(), Failure>) -> Outcome {
    result.map_or_else(Outcome::Failed, |()| Outcome::Done)
}

fn internal<T>(what: &str, result: std::io::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| Failure { kind: FailureKind::Internal, message: format!("{what}: {error}.") })
}

impl Agent {
    /// An agent without a session.
    pub fn new(ground: Ground) -> Arc<Agent> {
        Agent::that_keeps_uploads_in(PathBuf::from(UPLOADS), ground)
    }

    /// As [`Agent::new`], with a folder of its own for uploads.
    pub fn that_keeps_uploads_in(uploads: PathBuf, ground: Ground) -> Arc<Agent> {
        Agent::with(ground, Halting::OF_A_GUEST, uploads)
    }

    #[cfg(test)]
    fn that_halts(ground: Ground, halting: Halting) -> Arc<Agent> {
        Agent::with(ground, halting, PathBuf::from(UPLOADS))
    }

    fn with(ground: Ground, halting: Halting, uploads: PathBuf) -> Arc<Agent> {
        let proc = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let info = AgentInfo {
            abi: AGENT_ABI,
            kernel: proc("/proc/sys/kernel/osrelease"),
            boot_id: proc("/proc/sys/kernel/random/boot_id"),
            root_ready: ground.root.is_ok(),
            root_error: ground.root.clone().err(),
            capabilities: Some(capability::of_this_build()),
        };
        #[cfg(feature = "disguise")]
        let info = crate::disguise::wear(info);
        Arc::new(Agent {
            ground,
            info,
            services: Services::default(),
            session: Mutex::default(),
            network: Mutex::default(),
            first_name: Mutex::default(),
            halted: Mutex::default(),
            halting,
            uploads: Uploads::within(uploads),
            restored: Mutex::default(),
        })
    }

    /// HELLO: ends the session before, unless it is a repetition, and acknowledges.
    pub(crate) fn hello(&self, id: u64, outbox: &Arc<Outbox>) -> Arc<Session> {
        let mut current = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let session = match current.as_ref() {
            Some(session) if session.id() == id => {
                session.hello(outbox);
                session.clone()
            }
            _ => {
                if let Some(old) = current.take() {
                    old.end();
                }
                current.insert(Session::begin(id, outbox.clone())).clone()
            }
        };
        session.acknowledge(&self.info);
        session
    }

    /// A whole message or data frame of the current session.
    pub(crate) fn take(self: &Arc<Agent>, session: &Arc<Session>, frame: &Frame) {
        session.go_on();
        if frame.kind != Kind::Open {
            return session.take(frame);
        }
        let request = serde_json::from_slice::<Request>(&frame.payload);
        // Without a thread for connections it is refused as an operation is.
        let place = request.as_ref().ok().filter(|request| request.dials());
        let place = place.and_then(|_| dial::place().ok());
        let Opened::Channel(channel) = session.open(frame.channel, place) else { return };
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                let message = format!("The agent does not understand the request: {error}.");
                return channel.end(&failed(FailureKind::Invalid, message));
            }
        };
        // Without a disguise it can do all that it understands.
        #[cfg(feature = "disguise")]
        if !self.info.can(request.needs()) {
            let message = format!("The agent does not understand the request: it cannot {}.", request.needs());
            return channel.end(&failed(FailureKind::Invalid, message));
        }
        if let Err(why) = &self.ground.root
            && !matches!(request, Request::Shutdown)
        {
            let message = format!("The root filesystem is not mounted: {why}.");
            return channel.end(&failed(FailureKind::Internal, message));
        }
        match request {
            Request::Dial { port } => return dial::begin(Goal::Port(port), &channel),
            Request::DialSocket { path } => return dial::begin(Goal::Socket(path), &channel),
            _ => {}
        }
        if matches!(request, Request::Configure(_) | Request::Restored(_)) {
            return self.serve(request, &channel);
        }
        let (agent, served) = (self.clone(), channel.clone());
        if let Err(error) = workers::run(move || agent.serve(request, &served)) {
            channel.end(&failed(FailureKind::Limit, format!("The agent can start no thread: {error}.")));
        }
    }

    fn serve(&self, request: Request, channel: &Arc<Channel>) {
        let halts = matches!(request, Request::Freeze { halt: true });
        // The state that threads share is behind locks whose holders leave it whole.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.outcome(request, channel)))
            .unwrap_or_else(|_| failed(FailureKind::Internal, "The agent failed while it served this request."));
        if !halts || outcome != Outcome::Done {
            return channel.end(&outcome);
        }
        if !channel.end_and_halt(&outcome)
            && let Err(failure) = self.thaw(None)
        {
            log::problem(format_args!("a halt that is no longer wanted: {failure}"));
        }
    }

    fn outcome(&self, request: Request, channel: &Arc<Channel>) -> Outcome {
        match request {
            Request::Configure(configure) => done(self.configure(&configure)),
            Request::Restored(restored) => done(self.restored_once(restored, channel)),
            Request::Exec(exec) => run(&exec, channel),
            Request::StartService(exec) => match self.services.start(exec) {
                Ok(pid) => {
                    channel.reply(&Outcome::Started { pid });
                    Outcome::Started { pid }
                }
                Err(failure) => Outcome::Failed(failure),
            },
            Request::RunService(exec) => self.services.run(exec, channel),
            Request::FeedService { pid, close } => self.services.input(pid, close, channel),
            Request::OpenTerminal(open) => self.services.open_terminal(open, channel),
            Request::Terminals => Outcome::Terminals { terminals: self.services.terminals() },
            Request::Resize { pid, size } => done(self.services.resize(pid, size)),
            Request::CloseTerminal { pid } => done(self.services.close_terminal(pid)),
            Request::Attach { pid, follow } => self.services.output(pid, follow, channel),
            Request::Processes => match list::processes(|pid| self.services.starts(pid)) {
                Ok(processes) => Outcome::Processes { processes },
                Err(error) => failed(FailureKind::Internal, format!("The processes cannot be listed: {error}.")),
            },
            Request::Kill { pid, signal } => {
                if (0..=64).contains(&signal) && self.services.signal(pid, signal) {
                    return Outcome::Done;
                }
                kill(pid, signal)
            }
            Request::File(call) => files::serve(&call, channel),
            Request::Probe(probe) => probe::probe(probe, channel),
            Request::Freeze { halt: false } => {
                let frozen = filesystem::write_out().and_then(|()| filesystem::freeze());
                done(internal("The root filesystem cannot be frozen", frozen))
            }
            Request::Freeze { halt: true } => done(self.halt()),
            Request::Thaw { unix_time_ns } => done(self.thaw(unix_time_ns)),
            Request::GrowRoot => match self.ground.root.as_deref().map(filesystem::grow) {
                Ok(Ok(bytes)) => Outcome::Grown { bytes },
                Ok(Err(error)) => {
                    failed(FailureKind::Internal, format!("The root filesystem cannot be grown: {error}."))
                }
                Err(why) => failed(FailureKind::Internal, why),
            },
            Request::EndProcesses { drop_caches } => done(leftovers::clear(drop_caches)),
            // `take` gives it to the thread of all connections.
            Request::Dial { .. } | Request::DialSocket { .. } => {
                failed(FailureKind::Internal, "A connection came to a thread that serves none.")
            }
            Request::Watch(call) => watch::serve(&call, channel),
            Request::Upload(call) => self.uploads.serve(call, channel),
            Request::Usage => match usage::measure() {
                Ok(usage) => Outcome::Usage { usage },
                Err(error) => failed(FailureKind::Internal, format!("The use of the machine cannot be read: {error}.")),
            },
            Request::Shutdown => {
                channel.end(&Outcome::Done);
                channel.flush(FAREWELL);
                shutdown::power_off(self.ground.off)
            }
        }
    }

    fn halt(&self) -> Result<(), Failure> {
        let mut halted = self.halted.lock().unwrap_or_else(PoisonError::into_inner);
        *halted = Some((self.halting.halt)()?);
        Ok(())
    }

    fn thaw(&self, unix_time_ns: Option<u64>) -> Result<(), Failure> {
        unix_time_ns.map_or(Ok(()), identity::set_clock)?;
        let mut halted = self.halted.lock().unwrap_or_else(PoisonError::into_inner);
        (self.halting.thaw)()?;
        *halted = None;
        Ok(())
    }

    fn configure(&self, configure: &Configure) -> Result<(), Failure> {
        identity::check_hostname(&configure.hostname)?;
        configure.network.as_ref().map_or(Ok(()), network::check)?;
        identity::set_clock(configure.unix_time_ns)?;
        identity::set_hostname(&configure.hostname, None)?;
        *self.first_name.lock().unwrap_or_else(PoisonError::into_inner) = Some(configure.hostname.clone());
        modules::offer();
        identity::ensure_machine_id(&self.info.boot_id)?;
        if let Some(user) = &configure.imported_user {
            identity::ensure_account(user)?;
        }
        self.set_network(configure.network.as_ref())
    }

    /// Does what a restore needs, and answers a repetition of the request with what came of the first. A second connection
    /// that asks meanwhile waits.
    fn restored_once(&self, restored: Restored, channel: &Channel) -> Result<(), Failure> {
        let mut last = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, result)) = last.as_ref()
            && *before == restored
        {
            return result.clone();
        }
        let result = self.restored(&restored).and_then(|()| {
            channel.reply(&Outcome::Done);
            if restored.trial { Ok(()) } else { resume::run(restored.resume.as_ref()) }
        });
        *last = Some((restored, result.clone()));
        result
    }

    fn restored(&self, restored: &Restored) -> Result<(), Failure> {
        let entropy = identity::check(restored)?;
        restored.network.as_ref().map_or(Ok(()), network::check)?;
        // Randomness and time before the thaw: from then on processes that waited to write go on.
        identity::reseed(&entropy)?;
        identity::set_clock(restored.unix_time_ns)?;
        let mut halted = self.halted.lock().unwrap_or_else(PoisonError::into_inner);
        internal("The root filesystem cannot be thawed", filesystem::thaw())?;
        let first = self.first_name.lock().unwrap_or_else(PoisonError::into_inner).clone();
        identity::set_hostname(&restored.hostname, first.as_deref())?;
        identity::set_machine_id(&restored.machine_id)?;
        self.set_network(restored.network.as_ref())?;
        modules::offer();
        // Those of a snapshot that was not halted are looked for now.
        let severed = halted.take().map_or_else(severed::find, Ok);
        severed::reset(&internal("The connections cannot be listed", severed)?);
        // Behind all of that: who watches it may count on the above.
        internal("The generation cannot be written", generation::renew())?;
        internal("The processes cannot go on", halt::go_on())
    }

    fn set_network(&self, wanted: Option<&GuestNetwork>) -> Result<(), Failure> {
        let mut current = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(wanted) = wanted.filter(|wanted| current.as_ref() != Some(wanted)) else { return Ok(()) };
        network::configure(wanted)?;
        identity::set_resolver(wanted)?;
        *current = Some(wanted.clone());
        Ok(())
    }
}

fn kill(pid: u32, signal: i32) -> Outcome {
    let gone = || failed(FailureKind::NotFound, format!("No process {pid} runs in this guest."));
    let within = namespace::current();
    let target = within.as_ref().map_or(Some(pid), |namespace| namespace.outside(pid));
    let Some(target) = target else { return gone() };
    let number = match i32::try_from(target) {
        Ok(number) if number > 1 && (0..=64).contains(&signal) => number,
        _ => return failed(FailureKind::Invalid, format!("Signal {signal} cannot be sent to process {pid}.")),
    };
    let sent = Handle::open(number).and_then(|process| match process {
        // By now the number may be another process's.
        Some(process) if within.is_none_or(|namespace| namespace.inside(target) == Some(pid)) => process.signal(signal),
        _ => Ok(false),
    });
    match sent {
        Ok(true) => Outcome::Done,
        Ok(false) => gone(),
        Err(error) => failed(FailureKind::Internal, format!("Process {pid} cannot be signalled: {error}.")),
    }
}

fn run(exec: &Exec, channel: &Channel) -> Outcome {
    let child = match prepare(exec).and_then(|plan| spawn(&plan, exec.stdin)) {
        Ok(child) => child,
        Err(failure) => return Outcome::Failed(failure),
    };
    channel.reply(&Outcome::Started { pid: child.watch.shown() });
    match supervise(child, exec.timeout_ms.map(Duration::from_millis), &mut OnChannel(channel)) {
        Ok(exit) => Outcome::Exit(exit),
        Err(Unfinished::Cancelled) => Outcome::Done,
        Err(Unfinished::Stuck) => {
            let message = format!("The process did not end within {KILL_AFTER_MS} ms and does not end by SIGKILL.");
            failed(FailureKind::Internal, message)
        }
    }
}

/// A process wired to its channel.
struct OnChannel<'a>(&'a Channel);

impl Wiring for OnChannel<'_> {
    fn room(&self) -> usize {
        self.0.room()
    }

    fn output(&mut self, kind: Kind, bytes: &[u8]) {
        self.0.output(kind, bytes);
    }

    fn stdin(&mut self) -> Result<Option<bytes::Bytes>, StdinOver> {
        self.0.stdin()
    }

    fn consumed(&mut self, len: usize) {
        self.0.consumed(len);
    }

    fn cancelled(&self) -> bool {
        self.0.is_reset()
    }

    fn wake(&self) -> Option<&Wake> {
        Some(self.0.wake())
    }
}
