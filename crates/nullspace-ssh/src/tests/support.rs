//! A server, its gate and sandbox, and the `ssh` of this host.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use nullspace_api::{ErrorResponseCode, ExecRequest, PtySessionInfo, PtyStart, ResizeRequest};
use nullspace_service::{
    Caller, CommandEvent, Error, FollowedCommand, FollowedTerminal, PortStream, Result, SshCertificates, SshEntered,
    SshLogin, SshWanted, TerminalEvent,
};
use nullspace_types::{SandboxId, SshAccessId, TenantId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{ChildStdin, Command};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::authority::{Authority, SshKeys};
use crate::gate::{Gate, Inside};
use crate::server::serve_gate;
use crate::settings::{SshLimits, SshSettings};

/// Longest run of a client.
const PATIENCE: Duration = Duration::from_secs(60);

/// Keys of a server, other ones in each process.
pub(crate) fn keys() -> SshKeys {
    static KEYS: OnceLock<SshKeys> = OnceLock::new();
    let made = || SshKeys::parse(&SshKeys::generate().unwrap(), &SshKeys::generate().unwrap()).unwrap();
    KEYS.get_or_init(made).clone()
}

/// Accesses, and the sandbox behind all of them.
#[derive(Default)]
pub(super) struct Fake {
    accesses: Mutex<HashMap<SshAccessId, SshEntered>>,
    pub(super) inside: Arc<Host>,
}

impl Fake {
    pub(super) fn revoke(&self, access: SshAccessId) {
        self.accesses.lock().unwrap().remove(&access);
    }
}

#[async_trait]
impl Gate for Fake {
    async fn login(&self, login: SshLogin) -> Result<SshEntered> {
        let found = self.accesses.lock().unwrap().get(&login.access).cloned();
        found
            .filter(|entered| entered.sandbox == login.sandbox)
            .ok_or_else(|| Error::sandbox_not_found(&login.sandbox.to_string()))
    }

    async fn in_force(&self, accesses: &[SshAccessId]) -> Result<Vec<SshAccessId>> {
        let known = self.accesses.lock().unwrap();
        Ok(accesses.iter().copied().filter(|access| known.contains_key(access)).collect())
    }

    async fn sandbox(&self, _: &SshEntered) -> Result<Arc<dyn Inside>> {
        Ok(Arc::clone(&self.inside) as Arc<dyn Inside>)
    }
}

/// A sandbox whose programs run on this host. Its terminals are no shells: they tell what happens to them.
#[derive(Default)]
pub(super) struct Host {
    /// What was asked for, in order.
    pub(super) calls: Arc<Mutex<Vec<String>>>,
    stdins: Mutex<HashMap<u32, Arc<tokio::sync::Mutex<Option<ChildStdin>>>>>,
    terminals: Mutex<HashMap<u32, mpsc::Sender<TerminalEvent>>>,
}

impl Host {
    fn call(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    pub(super) fn called(&self, call: &str) -> bool {
        self.calls.lock().unwrap().iter().any(|made| made.contains(call))
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, to: mpsc::Sender<CommandEvent>, event: fn(Bytes) -> CommandEvent) {
    let mut buffer = vec![0; 32 << 10];
    while let Ok(read) = from.read(&mut buffer).await {
        if read == 0 || to.send(event(Bytes::copy_from_slice(&buffer[..read]))).await.is_err() {
            return;
        }
    }
}

fn stream<T: Send + 'static>(events: mpsc::Receiver<T>) -> futures::stream::BoxStream<'static, Result<T>> {
    futures::stream::unfold(events, |mut events| async move { events.recv().await.map(|event| (Ok(event), events)) })
        .boxed()
}

#[async_trait]
impl Inside for Host {
    async fn run(&self, request: ExecRequest) -> Result<FollowedCommand> {
        self.call(format!("run {} user {:?}", request.command, request.user));
        assert_eq!(request.shell, Some(true));
        let mut child = Command::new("sh")
            .args(["-c", &request.command])
            .envs(request.envs.unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let pid = child.id().unwrap();
        let stdin = Arc::new(tokio::sync::Mutex::new(child.stdin.take()));
        self.stdins.lock().unwrap().insert(pid, stdin);
        // Few, as a sandbox's: a program waits for its reader.
        let (sender, events) = mpsc::channel(4);
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        tokio::spawn(async move {
            tokio::join!(
                pump(out, sender.clone(), CommandEvent::Stdout),
                pump(err, sender.clone(), CommandEvent::Stderr)
            );
            let status = child.wait().await.unwrap();
            let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0);
            let code = status.code().unwrap_or(128 + signal);
            let _ = sender.send(CommandEvent::Exit { code, timed_out: false }).await;
        });
        Ok(FollowedCommand { pid, lost: (0, 0), events: stream(events) })
    }

    async fn send_stdin(&self, pid: u32, data: &[u8], close: bool) -> Result<()> {
        let stdin = Arc::clone(&self.stdins.lock().unwrap()[&pid]);
        let mut stdin = stdin.lock().await;
        let gone = || Error::new(ErrorResponseCode::TransitionConflict, "it has ended");
        if let Some(pipe) = stdin.as_mut() {
            pipe.write_all(data).await.map_err(|_| gone())?;
        }
        if close {
            stdin.take();
        }
        Ok(())
    }

    async fn signal(&self, pid: u32, signal: i32) -> Result<()> {
        self.call(format!("signal {signal}"));
        let group = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
        let _ = rustix::process::kill_process_group(group, signal);
        Ok(())
    }

    async fn open_terminal(&self, request: PtyStart) -> Result<FollowedTerminal> {
        let PtyStart { cols, rows, command, args, envs, user, .. } = request;
        let envs = envs.unwrap_or_default();
        self.call(format!("terminal {cols:?} {rows:?} {command:?} {args:?} {:?} user {user:?}", envs.get("TERM")));
        let (sender, events) = mpsc::channel(16);
        sender.send(TerminalEvent::Output("ready\r\n".into())).await.unwrap();
        self.terminals.lock().unwrap().insert(7, sender);
        let session =
            PtySessionInfo { session_id: "pty_1".into(), pid: 7, cols: 80, rows: 24, exec_id: "pty_1".into() };
        Ok(FollowedTerminal { session, lost: 0, events: stream(events) })
    }

    async fn type_into(&self, pid: u32, data: &[u8]) -> Result<()> {
        let terminal = self.terminals.lock().unwrap()[&pid].clone();
        let text = String::from_utf8_lossy(data).into_owned();
        for line in text.split_inclusive('\n') {
            let line = line.trim_end();
            let event = match line.strip_prefix("exit ") {
                Some(code) => TerminalEvent::Exit { code: code.parse().unwrap() },
                None => TerminalEvent::Output(format!("typed:{line}\r\n").into()),
            };
            let _ = terminal.send(event).await;
        }
        Ok(())
    }

    async fn resize(&self, _: u32, size: ResizeRequest) -> Result<()> {
        self.call(format!("resize {}x{}", size.cols, size.rows));
        Ok(())
    }

    async fn end_terminal(&self, pid: u32) -> Result<()> {
        self.call(format!("end terminal {pid}"));
        Ok(())
    }

    async fn dial(&self, port: u16) -> Result<PortStream> {
        self.call(format!("dial {port}"));
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(_) => Err(Error::new(ErrorResponseCode::NotFound, "nothing listens there")),
        }
    }
}

/// A server with a client's folder: `key`, `key-cert.pub` beside it, and `known_hosts`.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) fake: Arc<Fake>,
    pub(super) sandbox: SandboxId,
    pub(super) access: SshAccessId,
    folder: tempfile::TempDir,
    _stop: DropGuard,
}

impl Server {
    /// A server, and a client with an access that holds for an hour.
    pub(super) async fn start() -> Server {
        Server::with(SshLimits { check: Duration::from_millis(100), ..SshLimits::default() }).await
    }

    pub(super) async fn with(limits: SshLimits) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (fake, stop) = (Arc::<Fake>::default(), CancellationToken::new());
        let serving = serve_gate(listener, Arc::clone(&fake) as Arc<dyn Gate>, keys(), limits, stop.clone());
        tokio::spawn(serving);
        let folder = tempfile::TempDir::new().unwrap();
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(folder.path().join("key"))
            .status()
            .await
            .expect("ssh-keygen of the package openssh-client");
        assert!(made.success());
        let mut server = Server {
            address,
            fake,
            sandbox: SandboxId::new(),
            access: SshAccessId::new(),
            folder,
            _stop: stop.drop_guard(),
        };
        server.grant(keys(), 3600);
        server
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Gives the client a new access with a certificate of these keys, for so many seconds.
    pub(super) fn grant(&mut self, keys: SshKeys, seconds: i64) {
        self.access = SshAccessId::new();
        let now = Timestamp::now();
        let expires_at = now + SignedDuration::from_secs(seconds);
        let settings = SshSettings { host: "127.0.0.1".into(), port: self.address.port() };
        let public_key = std::fs::read_to_string(self.path("key.pub")).unwrap();
        let wanted = SshWanted { public_key: &public_key, sandbox: self.sandbox, access: self.access, now, expires_at };
        let made = Authority::new(keys, settings).certify(wanted).unwrap();
        std::fs::write(self.path("key-cert.pub"), made.certificate).unwrap();
        let known = format!("[{}]:{} {}\n", made.host, made.port, made.host_key);
        if !self.path("known_hosts").exists() {
            std::fs::write(self.path("known_hosts"), known).unwrap();
        }
        let caller = Caller { tenant: TenantId::new(), namespace: "me".into(), key: None, read_only: false };
        let entered = SshEntered { sandbox: self.sandbox, caller, user: Some("dev".into()), expires_at };
        self.fake.accesses.lock().unwrap().insert(self.access, entered);
    }

    /// The options of a client, as the published client gives them.
    pub(super) fn options(&self) -> Vec<String> {
        let known = format!("UserKnownHostsFile={}", self.path("known_hosts").display());
        let options = ["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", &known];
        let mut options: Vec<String> = options.map(str::to_owned).into();
        options.extend(["-i".to_owned(), self.path("key").display().to_string()]);
        options
    }

    /// A client that logs in to this sandbox.
    pub(super) fn ssh_as(&self, user: &str, options: &[&str], words: &[&str]) -> Command {
        let mut client = Command::new("ssh");
        client.args(self.options()).args(["-p", &self.address.port().to_string()]).args(options);
        client.arg(format!("{user}@127.0.0.1")).args(words);
        client.env_remove("SSH_AUTH_SOCK").env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        client
    }

    pub(super) fn ssh(&self, options: &[&str], words: &[&str]) -> Command {
        self.ssh_as(&self.sandbox.to_string(), options, words)
    }
}

/// Runs a client to its end, with this input.
pub(super) async fn output(mut client: Command, input: &[u8]) -> Output {
    let mut child = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // Fails when the client ends without reading it.
    let feeding = tokio::spawn(async move {
        let _ = stdin.write_all(&input).await;
    });
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("the client hangs").unwrap();
    feeding.abort();
    output
}

/// Waits until something holds, for a bounded time.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..400 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it never came: {what}");
}
