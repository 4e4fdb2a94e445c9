//! One client: its authentication, its channels, and what it asks of them.
//!
//! ```text
//!   none ──────────────────────────> refused, with the method that there is: publickey
//!   key without a certificate ─────> refused
//!   certificate ── judge ── login ──> channels: session, direct-tcpip to the sandbox itself; all others are refused
//! ```

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use nullspace_api::{Envs, ExecRequest, PtyStart, ResizeRequest};
use nullspace_service::{SshEntered, SshLogin, chain};
use russh::keys::ssh_key::{Certificate, Fingerprint};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, Session};
use russh::{Channel, ChannelId, ChannelOpenFailure, Error, MethodKind, MethodSet, Pty, Sig};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::authority::judge;
use crate::flow::{Counted, Flow};
use crate::forward::{forward, is_inside};
use crate::gate::Gate;
use crate::places::Place;
use crate::program::{Input, LONGEST_COMMAND, Output, Program, Session as Seat};
use crate::standing::{Standing, Standings};

/// Most variables of a channel, and longest name and value of one, bytes.
const VARIABLES: usize = 16;
const LONGEST_VARIABLE: usize = 256;
/// Longest command line, bytes: what Linux takes as one argument.
const LONGEST_LINE: usize = 128 << 10;
/// Largest side of a terminal.
const LARGEST_SIDE: u32 = 1000;
/// Runs the image's sftp server, wherever distributions put it.
const SFTP: &str = "for server in /usr/lib/openssh/sftp-server /usr/libexec/openssh/sftp-server /usr/lib/ssh/sftp-server \
     /usr/libexec/sftp-server /usr/lib/sftp-server /usr/libexec/ssh/sftp-server; do [ -x \"$server\" ] && exec \"$server\"; done; \
     echo 'nullspace: the sandbox has no sftp server: install one (Debian: openssh-sftp-server), or use scp -O' >&2; exit 127";

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) gate: Arc<dyn Gate>,
    pub(crate) signer: Fingerprint,
    pub(crate) channels: usize,
    pub(crate) standings: Arc<Standings>,
}

/// The state of a connection, for whoever supervises it.
#[derive(Default)]
pub(crate) struct Phase {
    /// The login that was let in, as long as the connection.
    pub(crate) admitted: Option<Arc<Admitted>>,
    /// Channels that are open.
    pub(crate) channels: usize,
}

/// A login that was let in.
pub(crate) struct Admitted {
    pub(crate) standing: Standing,
    pub(crate) entered: Arc<SshEntered>,
}

/// The handler of one client.
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    pub(crate) peer: SocketAddr,
    pub(crate) flow: Arc<Flow>,
    /// Cancelled when the connection ends.
    pub(crate) ended: CancellationToken,
    pub(crate) place: Arc<Mutex<Place>>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) slots: HashMap<ChannelId, Slot>,
}

/// A channel.
pub(crate) struct Slot {
    inputs: mpsc::UnboundedSender<Counted<Input>>,
    ended: CancellationToken,
    /// A session in which nothing runs yet.
    idle: Option<Idle>,
}

struct Idle {
    seat: Seat,
    open: Open,
    envs: Envs,
    terminal: Option<(String, Option<ResizeRequest>)>,
}

/// Counts an open channel.
struct Open(watch::Sender<Phase>);

impl Open {
    fn begin(phase: &watch::Sender<Phase>) -> Self {
        phase.send_modify(|phase| phase.channels += 1);
        Self(phase.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|phase| phase.channels = phase.channels.saturating_sub(1));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

fn refused() -> Auth {
    Auth::Reject { proceed_with_methods: Some(MethodSet::from(&[MethodKind::PublicKey][..])), partial_success: false }
}

/// A terminal's size. A client may not know one: 0.
fn size(cols: u32, rows: u32) -> Option<ResizeRequest> {
    (cols > 0 && rows > 0).then(|| ResizeRequest { cols: cols.min(LARGEST_SIDE), rows: rows.min(LARGEST_SIDE) })
}

/// The number of a signal, as Linux has it.
fn number(signal: &Sig) -> Option<i32> {
    Some(match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        Sig::Custom(_) => return None,
    })
}

/// Variables that a client may set: the language of its user.
fn may_set(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    plain && name.len() <= LONGEST_VARIABLE && (name == "LANG" || name.starts_with("LC_"))
}

impl Connection {
    fn admitted(&self) -> Option<Arc<Admitted>> {
        self.phase.borrow().admitted.clone()
    }

    async fn login(&self, user: &str, certificate: &Certificate) -> Option<Admitted> {
        let shared = &self.shared;
        let (sandbox, access) = match judge(certificate, &shared.signer, user, SystemTime::now()) {
            Ok(judged) => judged,
            Err(why) => {
                tracing::debug!(peer = %self.peer, %why, "an SSH certificate is refused");
                return None;
            }
        };
        // Registered first: an end of the access between the login and now would be missed.
        let standing = shared.standings.begin(access);
        let entered = match shared.gate.login(SshLogin { sandbox, access }).await {
            Ok(entered) => entered,
            Err(error) => {
                tracing::info!(peer = %self.peer, sandbox_id = %sandbox, %access, cause = chain(&error), "an SSH login is refused");
                return None;
            }
        };
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if entered.sandbox != sandbox || !place.authenticate(sandbox, entered.caller.tenant) {
            tracing::info!(peer = %self.peer, sandbox_id = %sandbox, "an SSH login is refused: too many connections of the sandbox or its tenant");
            return None;
        }
        tracing::info!(peer = %self.peer, sandbox_id = %sandbox, %access, "an SSH login");
        Some(Admitted { standing, entered: Arc::new(entered) })
    }

    /// Makes the place of a new channel. `None` when there are too many.
    fn seat(&mut self, channel: Channel<Msg>) -> Option<(Seat, Open)> {
        // Those whose program or connection has ended, and that their client has not closed yet.
        self.slots.retain(|_, slot| !slot.inputs.is_closed());
        let admitted = self.admitted()?;
        if self.slots.len() >= self.shared.channels {
            return None;
        }
        let (id, (_, channel)) = (channel.id(), channel.split());
        let (sender, inputs) = mpsc::unbounded_channel();
        let ended = self.ended.child_token();
        self.slots.insert(id, Slot { inputs: sender, ended: ended.clone(), idle: None });
        let seat = Seat {
            gate: Arc::clone(&self.shared.gate),
            entered: Arc::clone(&admitted.entered),
            output: Output { channel, flow: Arc::clone(&self.flow) },
            inputs,
            ended,
        };
        Some((seat, Open::begin(&self.phase)))
    }

    fn input(&self, id: ChannelId, input: Input) {
        if let Some(slot) = self.slots.get(&id) {
            let bytes = input.len();
            // Nobody takes it any more: then it is dropped, and counted no longer.
            let _ = slot.inputs.send(self.flow.count(input, bytes));
        }
    }

    fn idle(&mut self, id: ChannelId) -> Option<&mut Idle> {
        self.slots.get_mut(&id)?.idle.as_mut()
    }

    /// Starts a program in a session in which nothing runs yet, and answers the client.
    fn start(
        &mut self,
        id: ChannelId,
        session: &mut Session,
        program: impl FnOnce(&Idle) -> Option<Program>,
    ) -> Result<(), Error> {
        let started = self.slots.get_mut(&id).and_then(|slot| {
            let program = program(slot.idle.as_ref()?)?;
            slot.idle.take().map(|idle| (idle, program))
        });
        let Some((Idle { seat, open, .. }, program)) = started else { return session.channel_failure(id) };
        session.channel_success(id)?;
        tokio::spawn(async move {
            seat.run(program).await;
            drop(open);
        });
        Ok(())
    }

    fn user(&self) -> Option<String> {
        self.admitted()?.entered.user.clone()
    }
}

/// The terminal of a session, with this program or the user's shell.
fn terminal(idle: &Idle, line: Option<&str>, user: Option<String>) -> Option<Program> {
    let (term, size) = idle.terminal.as_ref()?;
    let mut envs = idle.envs.clone();
    if !term.is_empty() {
        envs.insert("TERM".to_owned(), term.clone());
    }
    Some(Program::Terminal(PtyStart {
        cols: size.map(|size| size.cols),
        rows: size.map(|size| size.rows),
        command: line.map(|_| "sh".to_owned()),
        args: line.map(|line| vec!["-c".to_owned(), line.to_owned()]),
        envs: Some(envs),
        user,
        ..PtyStart::default()
    }))
}

/// A command line without a terminal.
fn command(idle: &Idle, line: &str, user: Option<String>) -> Program {
    Program::Command(ExecRequest {
        command: line.to_owned(),
        shell: Some(true),
        timeout_secs: Some(LONGEST_COMMAND),
        envs: Some(idle.envs.clone()),
        user,
        ..ExecRequest::default()
    })
}

impl Handler for Connection {
    type Error = Error;

    async fn auth_none(&mut self, _: &str) -> Result<Auth, Error> {
        Ok(refused())
    }

    async fn auth_publickey(&mut self, _: &str, _: russh::server::VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        Ok(refused())
    }

    async fn auth_openssh_certificate(&mut self, user: &str, certificate: &Certificate) -> Result<Auth, Error> {
        let Some(admitted) = self.login(user, certificate).await else { return Ok(refused()) };
        self.phase.send_modify(|phase| phase.admitted = Some(Arc::new(admitted)));
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        let id = channel.id();
        match self.seat(channel) {
            Some((seat, open)) => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.idle = Some(Idle { seat, open, envs: Envs::default(), terminal: None });
                }
                reply.accept().await;
            }
            None => reply.reject(ChannelOpenFailure::ResourceShortage).await,
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        let port = u16::try_from(port).ok().filter(|port| *port > 0 && is_inside(host));
        let Some(port) = port else {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        match self.seat(channel) {
            Some((seat, open)) => {
                tokio::spawn(async move {
                    forward(seat, port, reply).await;
                    drop(open);
                });
            }
            None => reply.reject(ChannelOpenFailure::ResourceShortage).await,
        }
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _: &mut Session) -> Result<(), Error> {
        self.slots.remove(&channel);
        Ok(())
    }

    async fn channel_eof(&mut self, channel: ChannelId, _: &mut Session) -> Result<(), Error> {
        self.input(channel, Input::Eof);
        Ok(())
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], _: &mut Session) -> Result<(), Error> {
        self.input(channel, Input::Data(Bytes::copy_from_slice(data)));
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Error> {
        let plain = term.len() <= LONGEST_VARIABLE && term.bytes().all(|byte| byte.is_ascii_graphic());
        match self.idle(channel) {
            Some(idle) if plain => {
                idle.terminal = Some((term.to_owned(), size(cols, rows)));
                session.channel_success(channel)
            }
            _ => session.channel_failure(channel),
        }
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        let fits = may_set(name) && value.len() <= LONGEST_VARIABLE && !value.contains('\0');
        match self.idle(channel) {
            Some(idle) if fits && idle.envs.len() < VARIABLES => {
                idle.envs.insert(name.to_owned(), value.to_owned());
                session.channel_success(channel)
            }
            _ => session.channel_failure(channel),
        }
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Error> {
        let user = self.user();
        self.start(channel, session, |idle| {
            Some(terminal(idle, None, user.clone()).unwrap_or_else(|| command(idle, "exec sh", user)))
        })
    }

    async fn exec_request(&mut self, channel: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Error> {
        let line = std::str::from_utf8(data).ok().filter(|line| line.len() <= LONGEST_LINE && !line.contains('\0'));
        let Some(line) = line else { return session.channel_failure(channel) };
        let user = self.user();
        self.start(channel, session, |idle| {
            Some(terminal(idle, Some(line), user.clone()).unwrap_or_else(|| command(idle, line, user)))
        })
    }

    async fn subsystem_request(&mut self, channel: ChannelId, name: &str, session: &mut Session) -> Result<(), Error> {
        let user = self.user();
        let is_sftp = name == "sftp";
        self.start(channel, session, |idle| is_sftp.then(|| command(idle, SFTP, user)))
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &mut Session,
    ) -> Result<(), Error> {
        if let Some(size) = size(cols, rows) {
            match self.idle(channel) {
                Some(Idle { terminal: Some((_, known)), .. }) => *known = Some(size),
                Some(_) => {}
                None => self.input(channel, Input::Resize(size)),
            }
        }
        Ok(())
    }

    async fn signal(&mut self, channel: ChannelId, signal: Sig, _: &mut Session) -> Result<(), Error> {
        if let Some(number) = number(&signal) {
            self.input(channel, Input::Signal(number));
        }
        Ok(())
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_failure(channel)
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_client_sets_its_language_and_nothing_else() {
        for name in ["LANG", "LC_ALL", "LC_TIME"] {
            assert!(may_set(name), "{name}");
        }
        for name in ["PATH", "LD_PRELOAD", "LANGUAGE", "LC_=\n", "", "TERM", "BASH_ENV"] {
            assert!(!may_set(name), "{name}");
        }
    }

    #[test]
    fn a_size_that_is_not_known_is_none_and_a_large_one_is_cut() {
        assert_eq!(size(0, 24), None);
        assert_eq!(size(80, 24), Some(ResizeRequest { cols: 80, rows: 24 }));
        assert_eq!(size(u32::MAX, 1), Some(ResizeRequest { cols: 1000, rows: 1 }));
    }
}
