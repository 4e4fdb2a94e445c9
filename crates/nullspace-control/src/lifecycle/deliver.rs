//! Delivery of events to webhooks.
//!
//! ```text
//!   due ── take, leased for 60 s ──> sent (16 at once, 4 to one webhook) ──2xx──────────────> succeeded
//!    ^                                  │     └── killed: due again when its host starts, or when the lease ends
//!    └── after 1 s, 2 s, 4 s … 5 min <──┴──else; the tenth time ──> dead letter
//! ```
//! A delivery arrives at least once, and deliveries to one webhook arrive in no order: the event has its time and an id that
//! ascends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nullspace_db::{Attempt, Database, DbError, TakenDelivery};
use nullspace_service::chain;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::counts::Counts;
use super::send::{Failed, Message, WebhookSender};
use super::wire;
use crate::Inner;
use crate::sealed::SealKey;

/// Deliveries that are sent at once, and those to one webhook.
const AT_ONCE: usize = 16;
const EACH: u32 = 4;
/// Longest time between two looks at the database.
const IDLE: Duration = Duration::from_secs(30);
/// Wait while what is due cannot be taken: its webhook has its four under way, or the database does not answer.
const BLOCKED: Duration = Duration::from_secs(1);

/// Times and number of attempts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Time for which a delivery is ours. Longer than an attempt takes with its write.
    lease: SignedDuration,
    /// Attempts of a delivery.
    attempts: u32,
    /// Wait after the first failure, doubled up to the longest.
    first: Duration,
    longest: Duration,
}

const PACE: Pace = Pace {
    lease: SignedDuration::from_secs(60),
    attempts: 10,
    first: Duration::from_secs(1),
    longest: Duration::from_secs(300),
};

/// The parts that a delivery uses.
#[derive(Clone)]
pub(super) struct Deliverer {
    pub(super) db: Arc<dyn Database>,
    /// The host that sends.
    pub(super) host: String,
    pub(super) seal: SealKey,
    pub(super) sender: WebhookSender,
    pub(super) counts: Counts,
    pub(super) pace: Pace,
}

/// Delivers events until the service stops. What is being sent then is waited for.
pub(crate) async fn deliver(inner: Arc<Inner>) {
    let deliverer = Deliverer {
        db: Arc::clone(&inner.db),
        host: inner.config.host.clone(),
        seal: inner.config.seal.clone(),
        sender: inner.config.webhooks.clone(),
        counts: inner.lifecycle.counts().clone(),
        pace: PACE,
    };
    deliverer.run(&inner.lifecycle.due, &inner.shutdown).await;
}

impl Deliverer {
    pub(super) async fn run(&self, due: &Notify, stop: &CancellationToken) {
        let mut sending = JoinSet::new();
        loop {
            let wait = match self.take(&mut sending).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "deliveries to webhooks wait: the database does not answer");
                    BLOCKED
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = sending.join_next() => {}
                () = due.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        while sending.join_next().await.is_some() {}
    }

    /// Begins to send what is due, as far as there are places. Returns the time until there is something to do.
    async fn take(&self, sending: &mut JoinSet<()>) -> Result<Duration, DbError> {
        loop {
            while sending.try_join_next().is_some() {}
            let places = u32::try_from(AT_ONCE.saturating_sub(sending.len())).unwrap_or(0);
            if places == 0 {
                return Ok(IDLE);
            }
            let Some(due) = self.db.next_delivery().await? else { return Ok(IDLE) };
            let now = Timestamp::now();
            if due > now {
                return Ok(Duration::try_from(due.duration_since(now)).unwrap_or(IDLE).min(IDLE));
            }
            let taken = self.db.take_deliveries(&self.host, now, now + self.pace.lease, places, EACH).await?;
            if taken.is_empty() {
                return Ok(BLOCKED);
            }
            for delivery in taken {
                let deliverer = self.clone();
                sending.spawn(async move { deliverer.send(delivery).await });
            }
        }
    }

    /// Makes one attempt, and records it.
    async fn send(&self, taken: TakenDelivery) {
        let (delivery, webhook) = (taken.delivery.id, taken.webhook.id);
        let (at, began) = (Timestamp::now(), Instant::now());
        let outcome = self.attempt(&taken).await;
        let number = taken.delivery.attempts.saturating_add(1);
        let (outcome, response_status, error, next) = match outcome {
            Ok(status) => ("succeeded", Some(status), None, None),
            Err(failed) => {
                let last = number >= self.pace.attempts;
                let next = (!last).then(|| Timestamp::now() + self.pace.wait(number));
                let outcome = if last { "dead_letter" } else { "retried" };
                (outcome, failed.status, Some((failed.code.to_owned(), failed.text)), next)
            }
        };
        self.counts.delivered(outcome);
        tracing::debug!(%delivery, %webhook, number, outcome, status = response_status, ?error, "event delivered or not");
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let attempt = Attempt { id: Uuid::now_v7(), number, at, duration_ms, response_status, error };
        match self.db.delivery_done(delivery, attempt, next).await {
            // The webhook was deleted, or its lease was over and somebody else has sent it.
            Ok(()) | Err(DbError::NotFound | DbError::Conflict { .. }) => {}
            // It is sent again when its lease is over.
            Err(error) => tracing::warn!(%delivery, error = %chain(&error), "an attempt of a delivery is not recorded"),
        }
    }

    async fn attempt(&self, taken: &TakenDelivery) -> Result<u16, Failed> {
        let webhook = taken.webhook.id.to_string();
        let secret = self.seal.open(&webhook, &taken.webhook.sealed_secret).map_err(|error| {
            tracing::error!(webhook, %error, "the signing secret of a webhook cannot be opened");
            let text = "its signing secret cannot be decrypted: set signing_secret again".to_owned();
            Failed { status: None, code: "secret_unavailable", text }
        })?;
        let unreadable =
            || Failed { status: None, code: "internal_error", text: "the event cannot be read".to_owned() };
        let event = wire::event(taken.event.clone()).map_err(|_| unreadable())?;
        let message = Message {
            url: &taken.webhook.url,
            secret: &secret,
            event: event.id.clone(),
            delivery: taken.delivery.id.to_string(),
            operation: &taken.event.operation,
            body: serde_json::to_vec(&event).map_err(|_| unreadable())?,
        };
        self.sender.send(message).await
    }
}

impl Pace {
    /// Wait after the failure of this attempt: doubled, at most the longest, and up to a quarter less at random, so that deliveries
    /// that failed together do not come back together.
    fn wait(&self, number: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << number.saturating_sub(1).min(20)).min(self.longest);
        let mut random = [0_u8; 1];
        // Without random numbers there is no jitter.
        let _ = SystemRandom::new().fill(&mut random);
        doubled - doubled / 4 * u32::from(random[0]) / 255
    }
}

#[cfg(test)]
#[path = "deliver_tests.rs"]
mod tests;
