//! A session that is halted for a capture of its machine, and survives its stream.
//!
//! ```text
//!   Open ── Freeze{halt} sent ──> Halting ── Done ──> Halted ── thaw ──> Open: what has waited is sent
//!                                    └─ failed ──> Open │
//!                       driver 1 ends, its stream lost ─┤
//!                                                       └─ rejoin ──> driver 2, over another stream
//! ```
//! Freeze is the last frame that the host sends, and its Done the last that the agent sends. Both directions of a stream keep
//! the order, so nothing is under way once Done is here, and a lost stream loses nothing.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::driver::drive;
use super::{AgentError, FLUSH_LIMIT, HELLO_EVERY, Handle, Link, Phase, ended, lock, refused};
use crate::frame::{self, HEADER_LEN, Kind};
use crate::message::{FailureKind, Outcome, Request};

/// Time for which a halted session without a stream waits for [`Agent::rejoin`](crate::host::Agent::rejoin), then it ends.
pub const REJOIN_LIMIT: Duration = Duration::from_secs(180);
/// Round trips after which a stream counts as one that stays: a vsock may be reset right behind its first.
const ROUND_TRIPS: u32 = 2;

/// The drivers of a session, which follow each other.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Drivers up to this number are told to leave their streams.
    leave: watch::Sender<u64>,
    /// Drivers up to this number have left, and the session was halted.
    left: watch::Sender<u64>,
    /// The number of the driver that has the session; 0: the first.
    current: watch::Sender<u64>,
}

impl Link {
    pub(super) fn is_halted(&self) -> bool {
        lock(&self.gate).phase == Phase::Halted
    }

    /// Waits until this driver is to give its stream up.
    pub(super) async fn told_to_leave(&self, number: u64) {
        let told = self.turns.leave.subscribe().wait_for(|until| *until >= number).await.is_ok();
        if !told {
            std::future::pending().await
        }
    }

    /// Reports that a driver of a halted session has lost its stream, and waits for the next driver. False when the session
    /// ends first: by its owner, or after [`REJOIN_LIMIT`].
    pub(super) async fn is_rejoined(&self, number: u64) -> bool {
        self.turns.left.send_replace(number);
        let mut current = self.turns.current.subscribe();
        tokio::select! {
            biased;
            Ok(_) = current.wait_for(|current| *current > number) => return true,
            () = self.stop.notified() => {}
            () = tokio::time::sleep(REJOIN_LIMIT) => {}
        }
        let mut gate = lock(&self.gate);
        let rejoined = gate.driver > number;
        gate.over |= !rejoined;
        if rejoined {
            // It was meant for the driver that has the session now.
            self.stop.notify_one();
        }
        rejoined
    }

    /// Lets frames leave again, those that have waited first.
    fn open_gate(&self) {
        let waiting = {
            let mut gate = lock(&self.gate);
            gate.phase = Phase::Open;
            let waiting = std::mem::take(&mut gate.waiting);
            if waiting.is_empty() {
                return;
            }
            self.queued.fetch_add(waiting.len(), Ordering::Relaxed);
            self.sent.fetch_add(waiting.len() as u64, Ordering::Relaxed);
            // Under the lock: nothing may overtake it.
            gate.outgoing.send(waiting)
        };
        // The driver being gone means that the channels were told already.
        drop(waiting);
    }
}

/// Opens the gate again, unless the halt was answered.
struct Halting<'a>(&'a Link);

impl Drop for Halting<'_> {
    fn drop(&mut self) {
        let halting = lock(&self.0.gate).phase == Phase::Halting;
        if halting {
            self.0.open_gate();
        }
    }
}

impl Handle {
    /// Halts the guest, and with it this session.
    pub(in crate::host) async fn halt(&self, limit: Duration) -> Result<(), AgentError> {
        let link = &*self.link;
        let request = Request::Freeze { halt: true };
        self.check(&request)?;
        let (_opens_again, channel);
        {
            let _in_order = lock(&link.opening);
            let (prepared, wire) = self.prepare(&request)?;
            let mut gate = lock(&link.gate);
            match gate.phase {
                Phase::Open => gate.phase = Phase::Halting,
                Phase::Halting | Phase::Halted => {
                    drop(gate);
                    return Err(refused(FailureKind::Invalid, "The guest is halted already, or about to be."));
                }
            }
            link.queued.fetch_add(wire.len(), Ordering::Relaxed);
            link.sent.fetch_add(wire.len() as u64, Ordering::Relaxed);
            let _ = gate.outgoing.send(wire);
            drop(gate);
            // Dropped in the opposite order: the channel's RESET leaves before what has waited.
            _opens_again = Halting(link);
            channel = prepared;
        }
        match channel.end(limit).await? {
            Outcome::Done => {}
            other => return Err(AgentError::unexpected("halt", &other)),
        }
        lock(&link.gate).phase = Phase::Halted;
        Ok(())
    }

    /// Ends the halt of this session, not of the guest: what has waited is sent.
    pub(in crate::host) fn go_on(&self) -> Result<(), AgentError> {
        {
            let gate = lock(&self.link.gate);
            match gate.phase {
                Phase::Open | Phase::Halting => return Ok(()),
                Phase::Halted if gate.over || *self.link.turns.left.borrow() >= gate.driver => {
                    return Err(AgentError::Closed);
                }
                Phase::Halted => {}
            }
        }
        self.link.open_gate();
        Ok(())
    }

    /// Whether the session can be rejoined no more.
    pub(in crate::host) fn is_over(&self) -> bool {
        lock(&self.link.gate).over
    }

    /// The number of the driver of a halted session.
    fn halted_driver(&self) -> Result<u64, AgentError> {
        let gate = lock(&self.link.gate);
        if gate.over || gate.phase != Phase::Halted { Err(AgentError::Closed) } else { Ok(gate.driver) }
    }

    /// Closes the stream of a halted session.
    pub(in crate::host) async fn part(&self) -> Result<(), AgentError> {
        let number = self.halted_driver()?;
        self.link.turns.leave.send_replace(number);
        let (mut left, mut closed) = (self.link.turns.left.subscribe(), self.link.closed.subscribe());
        tokio::select! {
            biased;
            Ok(_) = left.wait_for(|left| *left >= number) => Ok(()),
            error = ended(&mut closed) => Err(error),
            // Only a starved runtime takes so long.
            () = tokio::time::sleep(2 * FLUSH_LIMIT) => Err(AgentError::timeout("part", 2 * FLUSH_LIMIT)),
        }
    }

    /// Continues a halted session, whose driver has left, over `stream`.
    pub(in crate::host) async fn rejoin<S>(&self, stream: S, until: Instant) -> Result<(), AgentError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let link = &self.link;
        let (outgoing, queue) = mpsc::unbounded_channel();
        let number = {
            let mut gate = lock(&link.gate);
            if gate.over || gate.phase != Phase::Halted || *link.turns.left.borrow() < gate.driver {
                return Err(AgentError::Closed);
            }
            gate.driver += 1;
            gate.outgoing = outgoing;
            // What was queued for the streams before was HELLO alone.
            link.queued.store(0, Ordering::Relaxed);
            gate.driver
        };
        link.turns.current.send_replace(number);
        tokio::spawn(drive(stream, link.clone(), queue, number));
        for _ in 0..ROUND_TRIPS {
            if let Err(error) = self.round_trip(number, until).await {
                // The limit of a session without a stream counts from here.
                link.turns.leave.send_replace(number);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Sends HELLO until it is acknowledged.
    async fn round_trip(&self, number: u64, until: Instant) -> Result<(), AgentError> {
        let link = &self.link;
        let mut acknowledged = link.acknowledged.subscribe();
        let (mut left, mut closed) = (link.turns.left.subscribe(), link.closed.subscribe());
        loop {
            if link.queued.load(Ordering::Relaxed) == 0 {
                let mut hello = Vec::with_capacity(HEADER_LEN);
                frame::encode(link.session, 0, Kind::Hello, &[], &mut hello);
                link.send_now(hello);
            }
            let pause = (Instant::now() + HELLO_EVERY).min(until);
            tokio::select! {
                biased;
                Ok(()) = acknowledged.changed() => return Ok(()),
                Ok(_) = left.wait_for(|left| *left >= number) => return Err(AgentError::Closed),
                error = ended(&mut closed) => return Err(error),
                () = tokio::time::sleep_until(pause) => {}
            }
            if Instant::now() >= until {
                return Err(AgentError::timeout("hello", Duration::ZERO));
            }
        }
    }
}
