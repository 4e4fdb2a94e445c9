//! A driver without machines, and a guest's agent in memory.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use nullspace_guest::capability::{AGENT_ABI, Capability};
use nullspace_guest::frame::{self, Assembler, Decoder, Kind, Seek};
use nullspace_guest::message::{AgentInfo, Exit, Failure, FailureKind, GuestNetwork, Outcome, Request};
use nullspace_types::EgressPolicy;
use nullspace_vmm::{
    AgentStream, BootSpec, Compatibility, DiskChanges, EndCause, Ended, Network, RestoreSpec, SnapshotSummary, Vm, Vmm,
    VmmError, VmmKind,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;

/// The pid of every command.
pub(super) const PID: u32 = 7;
/// The one port on which nothing listens.
pub(super) const CLOSED_PORT: u16 = 1;
/// The first part of every followed command's output.
pub(super) const BEFORE: &[u8] = b"before ";
/// The rest of it, written once the guest was thawed.
pub(super) const AFTER: &[u8] = b"after";

/// What a test does to a machine, and sees of it.
#[derive(Debug)]
pub(super) struct Script {
    /// The agent keeps its session over a capture.
    pub(super) halts: bool,
    /// Nothing answers new connections any more.
    pub(super) deaf: AtomicBool,
    /// The VMM refuses snapshots and egress policies.
    pub(super) refuses: AtomicBool,
    /// What the next machines end by, before their agents answer.
    pub(super) ends_at_start: Mutex<Option<EndCause>>,
    /// A file that takes all that is left on the disk during the next snapshots: before the machine's files are written, or
    /// after it.
    pub(super) fills: Mutex<Option<(PathBuf, bool)>>,
    /// The VMM enforces egress policies.
    pub(super) polices: AtomicBool,
    /// The machine's network.
    pub(super) network: Mutex<Option<Network>>,
    /// What was asked of VMM and agent, in order.
    pub(super) asked: Mutex<Vec<&'static str>>,
    ended: watch::Sender<Option<Ended>>,
    /// How often the guest was thawed.
    thaws: watch::Sender<u32>,
    connections: AtomicU32,
    /// The stream in use: a session goes on over the newest.
    out: Mutex<Option<UnboundedSender<Vec<u8>>>>,
}

impl Script {
    pub(super) fn new(halts: bool) -> Arc<Script> {
        Arc::new(Script {
            halts,
            deaf: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            ends_at_start: Mutex::default(),
            fills: Mutex::default(),
            polices: AtomicBool::new(true),
            network: Mutex::default(),
            asked: Mutex::default(),
            ended: watch::Sender::new(None),
            thaws: watch::Sender::new(0),
            connections: AtomicU32::new(0),
            out: Mutex::default(),
        })
    }

    fn note(&self, what: &'static str) {
        self.asked.lock().unwrap().push(what);
    }

    /// What was asked since the last time.
    pub(super) fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// Connections that were opened so far.
    pub(super) fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// The machine ends by its guest.
    pub(super) fn power_off(&self) {
        self.ended.send_replace(Some(Ended { cause: EndCause::Guest, how: "powered off".to_owned() }));
    }
}

#[derive(Debug)]
pub(super) struct FakeVmm {
    pub(super) script: Arc<Script>,
    class: Compatibility,
}

impl FakeVmm {
    pub(super) fn new(script: Arc<Script>) -> FakeVmm {
        let class = Compatibility {
            vmm: VmmKind::Qemu,
            vmm_version: "1".to_owned(),
            accelerator: "kvm".to_owned(),
            format: 1,
            guest: String::new(),
            cpu: "cpu".to_owned(),
            agent_abi: AGENT_ABI,
            vmm_format: None,
            cpu_features: None,
        };
        FakeVmm { script, class }
    }

    pub(super) fn summary(&self) -> SnapshotSummary {
        SnapshotSummary {
            compatibility: self.class.clone(),
            vcpus: 1,
            memory_mib: 64,
            disk_bytes: 1 << 20,
            files: vec!["memory".to_owned()],
            touched: Vec::new(),
            halted: false,
        }
    }
}

#[async_trait]
impl Vmm for FakeVmm {
    fn kind(&self) -> VmmKind {
        self.class.vmm
    }

    fn compatibility(&self) -> &Compatibility {
        &self.class
    }

    fn overhead_mib(&self, _: u32) -> u32 {
        0
    }

    fn template_memory_mib(&self) -> u64 {
        0
    }

    fn trim_templates(&self) {}

    fn walls(&self) -> String {
        String::new()
    }

    fn guests_reach_loopback(&self) -> bool {
        false
    }

    fn enforces_egress(&self) -> bool {
        self.script.polices.load(Ordering::Relaxed)
    }

    async fn boot(&self, _: BootSpec) -> Result<Box<dyn Vm>, VmmError> {
        Err(VmmError::Unavailable("it restores only".into()))
    }

    async fn restore(&self, spec: RestoreSpec) -> Result<Box<dyn Vm>, VmmError> {
        assert!(spec.snapshot_dir.join("memory").is_file());
        self.script.note("restore");
        *self.script.network.lock().unwrap() = Some(spec.network.clone());
        let ended = *self.script.ends_at_start.lock().unwrap();
        Ok(Box::new(FakeVm { id: spec.id, script: Arc::clone(&self.script), summary: self.summary(), ended }))
    }
}

struct FakeVm {
    id: String,
    script: Arc<Script>,
    summary: SnapshotSummary,
    ended: Option<EndCause>,
}

#[async_trait]
impl Vm for FakeVm {
    fn id(&self) -> &str {
        &self.id
    }

    fn guest_network(&self) -> Option<GuestNetwork> {
        None
    }

    async fn agent(&self) -> Result<Box<dyn AgentStream>, VmmError> {
        let (host, guest) = tokio::io::duplex(64 << 10);
        if self.ended.is_some() {
            return Ok(Box::new(host));
        }
        self.script.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(serve(guest, Arc::clone(&self.script)));
        Ok(Box::new(host))
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.script.note("pause");
        Ok(())
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.script.note("resume");
        Ok(())
    }

    async fn capture(&self) -> Result<DiskChanges, VmmError> {
        Err(VmmError::Unavailable("it was restored".into()))
    }

    async fn snapshot(&self, dir: &Path) -> Result<SnapshotSummary, VmmError> {
        self.script.note("snapshot");
        if self.script.refuses.load(Ordering::Relaxed) {
            return Err(VmmError::Refused { context: "snapshot".into(), message: "no".into() });
        }
        let bytes: Vec<u8> = (0..32 << 10).map(|_| rand::random::<u8>()).collect();
        let fills = self.script.fills.lock().unwrap().clone();
        if let Some((ballast, _)) = fills.as_ref().filter(|(_, before)| *before) {
            fill(ballast);
        }
        std::fs::write(dir.join("memory"), bytes)
            .map_err(|source| VmmError::Io { context: "write a machine's memory".into(), source })?;
        if let Some((ballast, _)) = fills.as_ref().filter(|(_, before)| !*before) {
            fill(ballast);
        }
        Ok(self.summary.clone())
    }

    async fn exited(&self) -> Ended {
        if let Some(cause) = self.ended {
            return Ended { cause, how: "at its start".to_owned() };
        }
        let mut ended = self.script.ended.subscribe();
        ended.wait_for(Option::is_some).await.unwrap().clone().unwrap()
    }

    fn nameless_bytes(&self) -> u64 {
        0
    }

    async fn set_egress(&self, policy: &EgressPolicy) -> Result<(), VmmError> {
        if self.script.refuses.load(Ordering::Relaxed) {
            return Err(VmmError::Refused { context: "nft".into(), message: "no".into() });
        }
        *self.script.network.lock().unwrap() = Some(Network::Narrowed(policy.clone()));
        Ok(())
    }

    fn console_tail(&self) -> String {
        String::new()
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.script.note("kill");
        Ok(())
    }
}

/// Takes all that is left on a small disk.
pub(super) fn fill(ballast: &Path) {
    let mut file = File::options().append(true).create(true).open(ballast).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
}

fn info(halts: bool) -> AgentInfo {
    let capabilities: BTreeSet<Capability> =
        Capability::ALL.iter().copied().filter(|capability| halts || *capability != Capability::Halt).collect();
    AgentInfo {
        abi: AGENT_ABI,
        kernel: "6".to_owned(),
        boot_id: "b".to_owned(),
        root_ready: true,
        root_error: None,
        capabilities: Some(capabilities),
    }
}

/// One connection to the agent.
async fn serve(stream: DuplexStream, script: Arc<Script>) {
    let (mut from_host, mut to_host) = tokio::io::split(stream);
    let (out, mut queue) = unbounded_channel::<Vec<u8>>();
    *script.out.lock().unwrap() = Some(out);
    tokio::spawn(async move {
        while let Some(wire) = queue.recv().await {
            if to_host.write_all(&wire).await.is_err() {
                return;
            }
        }
    });
    let (mut decoder, mut assembler) = (Decoder::seeking(Seek::Hello), Assembler::default());
    let mut piece = [0; 4096];
    loop {
        let frame = match decoder.next_frame() {
            Ok(Some(frame)) => assembler.push(frame).unwrap(),
            Ok(None) => {
                match from_host.read(&mut piece).await {
                    Ok(0) | Err(_) => return,
                    Ok(len) => decoder.feed(&piece[..len]),
                }
                continue;
            }
            Err(_) => {
                decoder.seek(Seek::Hello);
                continue;
            }
        };
        let Some(frame) = frame else { continue };
        if script.deaf.load(Ordering::Relaxed) {
            continue;
        }
        let peer = Peer { script: Arc::clone(&script), session: frame.session, channel: frame.channel };
        match frame.kind {
            Kind::Hello => peer.send(Kind::HelloAck, &serde_json::to_vec(&info(script.halts)).unwrap()),
            Kind::Open => {
                let request = serde_json::from_slice(&frame.payload).unwrap();
                tokio::spawn(answer(peer, request));
            }
            // Of a connection to a port: what comes goes back.
            Kind::Stdin => peer.send(Kind::Stdout, &frame.payload),
            Kind::Eof => {
                peer.send(Kind::Eof, &[]);
                peer.outcome(Kind::End, &Outcome::Done);
            }
            _ => {}
        }
    }
}

/// A channel as the agent sees it.
struct Peer {
    script: Arc<Script>,
    session: u64,
    channel: u32,
}

impl Peer {
    fn send(&self, kind: Kind, payload: &[u8]) {
        let mut wire = Vec::new();
        frame::encode_message(self.session, self.channel, kind, payload, &mut wire);
        if let Some(out) = &*self.script.out.lock().unwrap() {
            let _ = out.send(wire);
        }
    }

    fn outcome(&self, kind: Kind, outcome: &Outcome) {
        self.send(kind, &serde_json::to_vec(outcome).unwrap());
    }

    async fn follow(&self, thaws: u32) {
        self.send(Kind::Stdout, BEFORE);
        let mut thawed = self.script.thaws.subscribe();
        if thawed.wait_for(|thawed| *thawed > thaws).await.is_ok() {
            self.send(Kind::Stdout, AFTER);
            self.outcome(Kind::End, &Outcome::Exit(Exit::default()));
        }
    }
}

async fn answer(peer: Peer, request: Request) {
    let script = Arc::clone(&peer.script);
    let thaws = *script.thaws.borrow();
    match request {
        Request::Freeze { halt } => {
            script.note(if halt { "halt" } else { "freeze" });
            peer.outcome(Kind::End, &Outcome::Done);
        }
        Request::Thaw { unix_time_ns } => {
            script.note(if unix_time_ns.is_some() { "thaw with a time" } else { "thaw" });
            peer.outcome(Kind::End, &Outcome::Done);
            script.thaws.send_modify(|thaws| *thaws += 1);
        }
        Request::Restored(_) => {
            peer.outcome(Kind::Reply, &Outcome::Done);
            peer.outcome(Kind::End, &Outcome::Done);
        }
        Request::Exec(_) | Request::RunService(_) => {
            peer.outcome(Kind::Reply, &Outcome::Started { pid: PID });
            peer.follow(thaws).await;
        }
        Request::Attach { .. } => {
            script.note("attach");
            peer.outcome(Kind::Reply, &Outcome::Attached { pid: PID, lost_stdout: 0, lost_stderr: 0 });
            peer.follow(thaws).await;
        }
        Request::Dial { port: CLOSED_PORT } => {
            let failure = Failure { kind: FailureKind::ConnectionRefused, message: "Nothing listens.".to_owned() };
            peer.outcome(Kind::End, &Outcome::Failed(failure));
        }
        Request::Dial { .. } => peer.outcome(Kind::Reply, &Outcome::Done),
        _ => peer.outcome(Kind::End, &Outcome::Processes { processes: Vec::new() }),
    }
}
