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
//!
//! Connections of the operator's proxies have no limit by address: many clients are behind one. Three quarters of all connections may be
//! in use for ports of sandboxes, whose visitors have no key. The rest stays for the API.

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
    /// Connections that may be in use for ports of sandboxes.
    visitors: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// Rises with each connection and each time that a connection becomes idle. The lowest has been idle longest.
    clock: u64,
    entries: HashMap<u64, Entry>,
    peers: HashMap<IpAddr, usize>,
    reserved: usize,
    /// Connections with a request to a port.
    visitors: usize,
}

#[derive(Debug)]
struct Entry {
    /// `None`: one of the operator's proxies.
    peer: Option<IpAddr>,
    reserved: bool,
    /// Number of requests to ports, of `busy`.
    visits: usize,
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

/// As [`Busy`], for a request to a port of a sandbox.
#[derive(Debug)]
pub(crate) struct Visiting(Busy);

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
        let visitors = max.saturating_sub((max / 4).max(1)).max(1);
        Arc::new(Self { max, per_peer, reserve, visitors, open: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a new connection; `None` when even the reserve is full. `proxied`: the address is one of the operator's proxies.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr, proxied: bool) -> Option<Seat> {
        let peer = (!proxied).then(|| network(address));
        let mut open = self.lock();
        let mut full = None;
        if peer.is_some_and(|peer| open.peers.get(&peer).is_some_and(|count| *count >= self.per_peer))
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
        let entry = Entry { peer, reserved: full.is_some(), busy: 0, visits: 0, idle_since: id, close: close.clone() };
        open.entries.insert(id, entry);
        if full.is_some() {
            open.reserved += 1;
        } else if let Some(peer) = peer {
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
        if entry.visits > 0 {
            self.visitors = self.visitors.saturating_sub(1);
        }
        if entry.reserved {
            self.reserved = self.reserved.saturating_sub(1);
        } else if let Some(peer) = entry.peer
            && let Some(count) = self.peers.get_mut(&peer)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.peers.remove(&peer);
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

    /// As [`busy`](Self::busy), for a request to a port of a sandbox. `None` when as many connections are in use for ports as may be.
    pub(crate) fn visits(&self) -> Option<Visiting> {
        let connections = &self.0.connections;
        {
            let mut open = connections.lock();
            let open = &mut *open;
            // One that was closed for another meanwhile counts nowhere.
            if let Some(entry) = open.entries.get_mut(&self.0.id) {
                if entry.visits == 0 {
                    if open.visitors >= connections.visitors {
                        return None;
                    }
                    open.visitors += 1;
                }
                entry.visits += 1;
            }
        }
        Some(Visiting(self.busy()))
    }
}

impl Drop for Visiting {
    fn drop(&mut self) {
        let taken = &self.0.0.0;
        let mut open = taken.connections.lock();
        let open = &mut *open;
        if let Some(entry) = open.entries.get_mut(&taken.id).filter(|entry| entry.visits > 0) {
            entry.visits -= 1;
            if entry.visits == 0 {
                open.visitors = open.visitors.saturating_sub(1);
            }
        }
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
        let (first, second) = (connections.enter(A, false).unwrap(), connections.enter(A, false).unwrap());
        let busy = first.busy();
        let third = connections.enter(B, false).unwrap();
        assert!(!is_closed(&first) && is_closed(&second) && third.reserved().is_none());
        let busy_too = third.busy();
        let fourth = connections.enter(B, false).unwrap();
        assert_eq!(fourth.reserved(), Some(Full::Server));
        drop(busy);
        let fifth = connections.enter(B, false).unwrap();
        assert!(is_closed(&first) && fifth.reserved().is_none());
        drop((busy_too, first, second, third, fourth, fifth));
        let open = connections.lock();
        assert!(open.entries.is_empty() && open.peers.is_empty() && open.reserved == 0);
    }

    #[test]
    fn one_address_cannot_take_what_others_need() {
        let connections = connections(100, 3, 1);
        let other = connections.enter(B, false).unwrap();
        let seats: Vec<_> = (0..50).map(|_| connections.enter(A, false).unwrap()).collect();
        assert_eq!(seats.iter().filter(|seat| !is_closed(seat)).count(), 3);
        assert!(!is_closed(&other) && !is_closed(&seats[49]));
        let _busy: Vec<_> = seats[47..].iter().map(Seat::busy).collect();
        assert_eq!(connections.enter(A, false).unwrap().reserved(), Some(Full::Peer));
        assert_eq!(connections.enter(B, false).unwrap().reserved(), None);
    }

    #[test]
    fn the_reserve_renews_itself_unless_all_of_it_answers() {
        let connections = connections(1, 10, 2);
        let first = connections.enter(A, false).unwrap();
        let _busy = first.busy();
        let reserve: Vec<_> = (0..10).map(|_| connections.enter(A, false).unwrap()).collect();
        assert_eq!(reserve.iter().filter(|seat| !is_closed(seat)).count(), 2);
        let _answers = (reserve[8].busy(), reserve[9].busy());
        assert!(connections.enter(B, false).is_none());
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_together() {
        let connections = connections(100, 1, 1);
        let first = connections.enter("2001:db8::1".parse().unwrap(), false).unwrap();
        let second = connections.enter("2001:db8::ffff:1".parse().unwrap(), false).unwrap();
        let _third = connections.enter("2001:db8:0:1::1".parse().unwrap(), false).unwrap();
        assert!(is_closed(&first) && !is_closed(&second));
        let mapped = connections.enter("::ffff:10.0.0.1".parse().unwrap(), false).unwrap();
        let _plain = connections.enter(A, false).unwrap();
        assert!(is_closed(&mapped));
    }

    #[test]
    fn a_busy_place_outlives_its_connection() {
        let connections = connections(1, 1, 1);
        let seat = connections.enter(A, false).unwrap();
        let busy = seat.busy();
        drop(seat);
        assert!(connections.enter(A, false).unwrap().reserved().is_some());
        drop(busy);
        assert!(connections.enter(A, false).unwrap().reserved().is_none());
    }

    #[test]
    fn behind_the_operators_proxy_there_are_many_clients() {
        let connections = connections(100, 1, 1);
        let seats: Vec<_> = (0..50).map(|_| connections.enter(A, true).unwrap()).collect();
        let _busy: Vec<_> = seats.iter().map(Seat::busy).collect();
        assert!(seats.iter().all(|seat| !is_closed(seat) && seat.reserved().is_none()));
        assert_eq!(connections.enter(A, true).unwrap().reserved(), None);
        let _direct = connections.enter(B, false).unwrap();
        let _busy = _direct.busy();
        assert_eq!(connections.enter(B, false).unwrap().reserved(), Some(Full::Peer));
    }

    #[test]
    fn visitors_of_ports_leave_places_to_the_api() {
        let connections = connections(8, 100, 1);
        let seats: Vec<_> = (0..8).map(|_| connections.enter(A, true).unwrap()).collect();
        let mut visits: Vec<_> = seats.iter().filter_map(Seat::visits).collect();
        assert_eq!(visits.len(), 6);
        // A second request of a connection takes no more, and those that wait make room for the API.
        let second = seats[0].visits().unwrap();
        let api = (connections.enter(B, false).unwrap(), connections.enter(B, false).unwrap());
        assert!(api.0.reserved().is_none() && api.1.reserved().is_none());
        assert!(is_closed(&seats[6]) && is_closed(&seats[7]));
        drop(visits.remove(0));
        assert!(api.0.visits().is_none(), "its second one is under way");
        drop(second);
        let visit = api.0.visits().unwrap();
        assert!(api.1.visits().is_none());
        drop((visit, visits, seats, api));
        let open = connections.lock();
        assert!(open.entries.is_empty() && open.peers.is_empty() && open.visitors == 0);
    }
}
