//! The SSH server: connections accepted, counted, supervised and ended.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use nullspace_service::{Sandboxes, SshAccesses};
use russh::keys::ssh_key::Algorithm;
use russh::server::{Config, run_stream};
use russh::{Disconnect, MethodKind, MethodSet, Preferred, SshId, kex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::authority::SshKeys;
use crate::connection::{Connection, Phase, Shared};
use crate::flow::{Flow, Total, Transport};
use crate::gate::{Gate, OfService};
use crate::places::{Place, Places};
use crate::settings::SshLimits;
use crate::standing::Standings;

/// Time after a failure to accept in which nothing is accepted.
const REST: Duration = Duration::from_millis(100);
/// Time for which a connection that is ended is still told why.
const FAREWELL: Duration = Duration::from_millis(500);
/// Delay of a refusal. There is nothing to guess: it only slows down a client that loops.
const REFUSAL: Duration = Duration::from_millis(50);
/// Bytes that a client may send before it hears that more is taken, and of one packet.
const WINDOW: u32 = 1 << 20;
const PACKET: u32 = 32 << 10;
/// Messages of a connection's channels that wait for the client.
const MESSAGES: usize = 16;
/// Messages of a client to a channel that wait in the library: none is taken from there.
const UNUSED: usize = 1;
/// Keepalives without an answer after which a connection ends.
const UNANSWERED: usize = 3;
/// Bytes that the kernel keeps of a client's input. [`Flow`] relies on it being small.
const RECEIVE_BUFFER: usize = 256 << 10;

/// What clients may use. Without the groups of large integers, whose exchange costs the server much before any authentication.
const EXCHANGES: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];

/// Serves SSH until `stop`. Returns when all connections have ended.
pub async fn serve<S: SshAccesses + Sandboxes>(
    listener: TcpListener,
    service: Arc<S>,
    keys: SshKeys,
    limits: SshLimits,
    stop: CancellationToken,
) {
    serve_gate(listener, Arc::new(OfService(service)), keys, limits, stop).await;
}

fn config(keys: &SshKeys, limits: &SshLimits) -> Config {
    Config {
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-nullspace")),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REFUSAL,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![keys.host().clone()],
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: UNUSED,
        event_buffer_size: MESSAGES,
        preferred: Preferred {
            kex: Cow::Borrowed(EXCHANGES),
            key: Cow::Borrowed(&[Algorithm::Ed25519]),
            ..Preferred::DEFAULT
        },
        max_auth_attempts: limits.attempts,
        inactivity_timeout: Some(limits.idle),
        keepalive_interval: Some(limits.keepalive),
        keepalive_max: UNANSWERED,
        ..Config::default()
    }
}

pub(crate) async fn serve_gate(
    listener: TcpListener,
    gate: Arc<dyn Gate>,
    keys: SshKeys,
    limits: SshLimits,
    stop: CancellationToken,
) {
    let config = Arc::new(config(&keys, &limits));
    let standings = Arc::<Standings>::default();
    let shared = Arc::new(Shared {
        gate: Arc::clone(&gate),
        signer: keys.signer(),
        channels: limits.channels,
        standings: Arc::clone(&standings),
    });
    let (places, total) = (Places::new(limits.clone()), Arc::<Total>::default());
    let mut connections = JoinSet::new();
    let watching = standings.watch(&*gate, limits.check);
    tokio::pin!(watching);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            () = &mut watching => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an SSH connection");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        // Without a place, it is closed at once: nothing can be said before the key exchange.
        let Some(place) = places.enter(peer.ip()) else { continue };
        let serving = One {
            config: Arc::clone(&config),
            shared: Arc::clone(&shared),
            limits: limits.clone(),
            flow: Flow::new(Arc::clone(&total)),
            stop: stop.clone(),
        };
        connections.spawn(serving.serve(socket, peer, place));
    }
    while connections.join_next().await.is_some() {}
}

/// One connection.
struct One {
    config: Arc<Config>,
    shared: Arc<Shared>,
    limits: SshLimits,
    flow: Arc<Flow>,
    stop: CancellationToken,
}

impl One {
    async fn serve(self, socket: TcpStream, peer: SocketAddr, place: Place) {
        // Failures only cost speed or memory.
        let _ = socket.set_nodelay(true);
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER);
        let ended = CancellationToken::new();
        // Whatever ends this function ends the programs and forwarded ports.
        let _ends = ended.clone().drop_guard();
        let (phase, phases) = watch::channel(Phase::default());
        let handler = Connection {
            shared: Arc::clone(&self.shared),
            peer,
            flow: Arc::clone(&self.flow),
            ended: ended.clone(),
            place: Arc::new(Mutex::new(place)),
            phase,
            slots: HashMap::new(),
        };
        let transport = Transport::new(socket, Arc::clone(&self.flow));
        let supervised = self.supervise(phases);
        tokio::pin!(supervised);
        let starting = run_stream(Arc::clone(&self.config), transport, handler);
        let session = tokio::select! {
            started = starting => started,
            _ = &mut supervised => return,
        };
        let mut session = match session {
            Ok(session) => session,
            Err(error) => {
                tracing::debug!(%peer, %error, "an SSH connection did not begin");
                return;
            }
        };
        let handle = session.handle();
        let why = tokio::select! {
            done = &mut session => {
                if let Err(error) = done {
                    tracing::debug!(%peer, %error, "an SSH connection ended");
                }
                return;
            }
            why = &mut supervised => why,
        };
        tracing::debug!(%peer, why, "an SSH connection is ended");
        // Programs and ports end first: nothing more is written into the queue that the farewell goes through.
        ended.cancel();
        let farewell = async {
            let _ = handle.disconnect(Disconnect::ByApplication, why.to_owned(), String::new()).await;
            let _ = (&mut session).await;
        };
        if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
            self.flow.cut();
            let _ = session.await;
        }
    }

    /// Returns when the connection has to end, with the reason.
    async fn supervise(&self, mut phases: watch::Receiver<Phase>) -> &'static str {
        let authenticated = async {
            let admitted = phases.wait_for(|phase| phase.admitted.is_some()).await.ok()?.admitted.clone();
            // It keeps its access registered as long as it is supervised.
            admitted
        };
        let admitted = tokio::select! {
            () = self.stop.cancelled() => return "the service stops",
            admitted = tokio::time::timeout(self.limits.authentication, authenticated) => match admitted {
                Ok(Some(admitted)) => admitted,
                Ok(None) => return std::future::pending().await,
                Err(_) => return "no valid certificate in time",
            },
        };
        let left = admitted.entered.expires_at.duration_since(Timestamp::now());
        let left = Duration::try_from(left).unwrap_or(Duration::ZERO);
        let idle = async {
            loop {
                if phases.wait_for(|phase| phase.channels == 0).await.is_err() {
                    return std::future::pending().await;
                }
                if tokio::time::timeout(self.limits.idle, phases.wait_for(|phase| phase.channels > 0)).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => "the service stops",
            () = admitted.standing.over().cancelled() => "the access is over",
            () = tokio::time::sleep(left) => "the access has expired",
            () = idle => "no channel for a long time",
        }
    }
}
