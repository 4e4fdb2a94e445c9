//! Options of accepted connections.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

/// Sets the options of an accepted connection: what is written is sent at once, and a peer that leaves sent bytes unacknowledged, or
/// takes nothing, for this time is disconnected.
///
/// # Errors
/// When the peer is gone already.
pub fn prepare(stream: &TcpStream, stalled_peer: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    let millis = u32::try_from(stalled_peer.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(stream, millis)?;
    Ok(())
}
