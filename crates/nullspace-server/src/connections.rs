//! Connection limits: by address and for the server, and which connection is closed for a new one.
//!
//! ```text
//!   new connection ──> its address has room? ── no ──> close that address's longest idle one ── none idle ──┐
//!                      the server has room?  ── no ──> close the longest idle one of all     ── none idle ──┤
//!                            │ yes                                                                          v
//!                            v                                       the reserve: operators' routes, or a refusal
//!                          served
//! ```
//! A connection is *idle* until a request on it has a valid key, and again when that request's answer is sent. Connections
//! without a valid key are closed first, so they cannot displace others. The reserve is for `/healthz`, `/readyz` and
//! `/metrics`, which answer when all other places are taken. Any other request on it is refused with a body that gives the
//! reason. Within the reserve, too, the longest idle connection is closed for a new one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use nullspace_api::ErrorResponseCode;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::config::ConnectionLimits;
use crate::error::Refusal;

/// The reason for which a connection is in the reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The limit of its address is reached, and all of its connections are in use.
    Peer,
    /// The limit of the server is reached, and all connections are in use.
    Server,
}

impl From<Full> for Refusal {
    fn from(full: Full) -> Self {
        match full {
            Full::Peer => Refusal::new(
                StatusCode::TOO_MANY_REQUESTS,
                ErrorResponseCode::RateLimitExceeded,
                "Too many connections from this address are in use: close some first.",
            ),
            Full::Server => Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorResponseCode::FeatureUnavailable,
                "All of the service's connections are in use: try again.",
            )
            .with_retry_after(std::time::Duration::from_secs(1)),
        }
    }
}

/// The connections of one listener.
#[derive(Debug)]
pub(crate) struct Connections {
    max: usize,
    per_peer: usize,
    reserve: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// Rises with each connection and each time that a connection becomes idle. The lowest has been idle longest.
    clock: u64,
    entries: HashMap<u64, Entry>,
    peers: HashMap<IpAddr, usize>,
    reserved: usize,
}

#[derive(Debug)]
struct Entry {
    peer: IpAddr,
    reserved: bool,
    /// Number of requests that keep it from being closed.
    busy: usize,
    idle_since: u64,
    close: CancellationToken,
}

/// A connection's place. Dropping the last clone releases it.
#[derive(Debug, Clone)]
pub(crate) struct Seat(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    connections: Arc<Connections>,
    id: u64,
    reserved: Option<Full>,
    close: CancellationToken,
}

/// Keeps a connection from being closed for others.
#[derive(Debug)]
pub(crate) struct Busy(Seat);

/// The network of an address: addresses that one user can have in large numbers count as one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Connections {
    pub(crate) fn new(limits: &ConnectionLimits) -> Arc<Self> {
        let (max, per_peer, reserve) = (limits.max_connections, limits.per_peer, limits.reserve);
        Arc::new(Self { max, per_peer, reserve, open: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a new connection; `None` when even the reserve is full.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let peer = network(address);
        let mut open = self.lock();
        let mut full = None;
        if open.peers.get(&peer).is_some_and(|count| *count >= self.per_peer)
            && !open.close_idle(|entry| entry.peer == peer && !entry.reserved)
        {
            full = Some(Full::Peer);
        }
        if full.is_none()
            && open.entries.len().saturating_sub(open.reserved) >= self.max
            && !open.close_idle(|entry| !entry.reserved)
        {
            full = Some(Full::Server);
        }
        if full.is_some() && open.reserved >= self.reserve && !open.close_idle(|entry| entry.reserved) {
            return None;
        }
        open.clock += 1;
        let id = open.clock;
        let close = CancellationToken::new();
        let entry = Entry { peer, reserved: full.is_some(), busy: 0, idle_since: id, close: close.clone() };
        open.entries.insert(id, entry);
        if full.is_some() {
            open.reserved += 1;
        } else {
            *open.peers.entry(peer).or_insert(0) += 1;
        }
        drop(open);
        Some(Seat(Arc::new(Taken { connections: Arc::clone(self), id, reserved: full, close })))
    }
}

impl Open {
    /// Closes the longest idle one of these; false when none is idle.
    fn close_idle(&mut self, which: impl Fn(&Entry) -> bool) -> bool {
        let idle = self.entries.iter().filter(|(_, entry)| entry.busy == 0 && which(entry));
        let Some(id) = idle.min_by_key(|(_, entry)| entry.idle_since).map(|(id, _)| *id) else { return false };
        self.remove(id);
        true
    }

    fn remove(&mut self, id: u64) {
        let Some(entry) = self.entries.remove(&id) else { return };
        entry.close.cancel();
        if entry.reserved {
            self.reserved = self.reserved.saturating_sub(1);
        } else if let Some(count) = self.peers.get_mut(&entry.peer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.peers.remove(&entry.peer);
            }
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.connections.lock().remove(self.id);
    }
}

impl Seat {
    /// The reason for which the connection is in the reserve.
    pub(crate) fn reserved(&self) -> Option<Full> {
        self.0.reserved
    }

    /// Resolves when the connection is closed for another.
    pub(crate) fn closed(&self) -> WaitForCancellationFuture<'_> {
        self.0.close.cancelled()
    }

    /// Keeps the connection's place, even after the connection (for a WebSocket, which is no HTTP connection any more).
    pub(crate) fn busy(&self) -> Busy {
        if let Some(entry) = self.0.connections.lock().entries.get_mut(&self.0.id) {
            entry.busy += 1;
        }
        Busy(self.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let taken = &self.0.0;
        let mut open = taken.connections.lock();
        open.clock += 1;
        let now = open.clock;
        if let Some(entry) = open.entries.get_mut(&taken.id) {
            entry.busy = entry.busy.saturating_sub(1);
            entry.idle_since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn connections(max_connections: usize, per_peer: usize, reserve: usize) -> Arc<Connections> {
        Connections::new(&ConnectionLimits { max_connections, per_peer, reserve, ..ConnectionLimits::default() })
    }

    fn is_closed(seat: &Seat) -> bool {
        seat.0.close.is_cancelled()
    }

    #[test]
    fn the_longest_idle_connection_makes_room_and_a_busy_one_does_not() {
        let connections = connections(2, 2, 1);
        let (first, second) = (connections.enter(A).unwrap(), connections.enter(A).unwrap());
        let busy = first.busy();
        let third = connections.enter(B).unwrap();
        assert!(!is_closed(&first) && is_closed(&second) && third.reserved().is_none());
        let busy_too = third.busy();
        let fourth = connections.enter(B).unwrap();
        assert_eq!(fourth.reserved(), Some(Full::Server));
        drop(busy);
        let fifth = connections.enter(B).unwrap();
        assert!(is_closed(&first) && fifth.reserved().is_none());
        drop((busy_too, first, second, third, fourth, fifth));
        let open = connections.lock();
        assert!(open.entries.is_empty() && open.peers.is_empty() && open.reserved == 0);
    }

    #[test]
    fn one_address_cannot_take_what_others_need() {
        let connections = connections(100, 3, 1);
        let other = connections.enter(B).unwrap();
        let seats: Vec<_> = (0..50).map(|_| connections.enter(A).unwrap()).collect();
        assert_eq!(seats.iter().filter(|seat| !is_closed(seat)).count(), 3);
        assert!(!is_closed(&other) && !is_closed(&seats[49]));
        let _busy: Vec<_> = seats[47..].iter().map(Seat::busy).collect();
        assert_eq!(connections.enter(A).unwrap().reserved(), Some(Full::Peer));
        assert_eq!(connections.enter(B).unwrap().reserved(), None);
    }

    #[test]
    fn the_reserve_renews_itself_unless_all_of_it_answers() {
        let connections = connections(1, 10, 2);
        let first = connections.enter(A).unwrap();
        let _busy = first.busy();
        let reserve: Vec<_> = (0..10).map(|_| connections.enter(A).unwrap()).collect();
        assert_eq!(reserve.iter().filter(|seat| !is_closed(seat)).count(), 2);
        let _answers = (reserve[8].busy(), reserve[9].busy());
        assert!(connections.enter(B).is_none());
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_together() {
        let connections = connections(100, 1, 1);
        let first = connections.enter("2001:db8::1".parse().unwrap()).unwrap();
        let second = connections.enter("2001:db8::ffff:1".parse().unwrap()).unwrap();
        let _third = connections.enter("2001:db8:0:1::1".parse().unwrap()).unwrap();
        assert!(is_closed(&first) && !is_closed(&second));
        let mapped = connections.enter("::ffff:10.0.0.1".parse().unwrap()).unwrap();
        let _plain = connections.enter(A).unwrap();
        assert!(is_closed(&mapped));
    }

    #[test]
    fn a_busy_place_outlives_its_connection() {
        let connections = connections(1, 1, 1);
        let seat = connections.enter(A).unwrap();
        let busy = seat.busy();
        drop(seat);
        assert!(connections.enter(A).unwrap().reserved().is_some());
        drop(busy);
        assert!(connections.enter(A).unwrap().reserved().is_none());
    }
}
