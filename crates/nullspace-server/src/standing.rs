//! Revocation: ends requests whose API key is no longer valid.
//!
//! A request shows its key once, and may then last for hours: a followed log, a WebSocket, an exec. While any request runs,
//! one task asks every [`ServerConfig::key_check`](crate::ServerConfig) which of the keys in use are still valid, and ends
//! the requests of the others. When the database does not answer, no request is ended.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use axum::http::StatusCode;
use nullspace_api::ErrorResponseCode;
use nullspace_service::{KeyId, Service, chain};
use tokio_util::sync::CancellationToken;

use crate::error::Refusal;

/// Time limit of one check.
const PATIENCE: Duration = Duration::from_secs(10);

/// The keys in use.
pub(crate) struct Standings {
    service: Arc<dyn Service>,
    every: Duration,
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    in_use: HashMap<KeyId, Use>,
    /// Whether the task runs.
    watched: bool,
}

struct Use {
    requests: usize,
    ended: CancellationToken,
}

/// A request's key, for the duration of the request.
pub(crate) struct Standing {
    standings: Arc<Standings>,
    key: KeyId,
    ended: CancellationToken,
}

impl Standings {
    pub(crate) fn new(service: Arc<dyn Service>, every: Duration) -> Arc<Self> {
        Arc::new(Self { service, every, keys: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a request with this key.
    pub(crate) fn begin(self: &Arc<Self>, key: KeyId) -> Standing {
        let mut keys = self.lock();
        let entry = keys.in_use.entry(key).or_insert_with(|| Use { requests: 0, ended: CancellationToken::new() });
        entry.requests += 1;
        let ended = entry.ended.clone();
        if !keys.watched {
            keys.watched = true;
            tokio::spawn(watch(Arc::downgrade(self), self.every));
        }
        drop(keys);
        Standing { standings: Arc::clone(self), key, ended }
    }

    /// Ends the requests whose key is no longer valid.
    async fn look(&self) {
        let keys: Vec<KeyId> = self.lock().in_use.keys().copied().collect();
        let in_force = match tokio::time::timeout(PATIENCE, self.service.keys_in_force(&keys)).await {
            Ok(Ok(in_force)) => in_force.into_iter().collect::<HashSet<_>>(),
            Ok(Err(error)) => {
                tracing::warn!(cause = chain(&error), "cannot look whether keys are in force: nothing is ended");
                return;
            }
            Err(_) => {
                tracing::warn!("cannot look whether keys are in force: no answer in time, nothing is ended");
                return;
            }
        };
        for key in keys.iter().filter(|key| !in_force.contains(*key)) {
            // Who comes with it now has shown a key that was valid a moment ago, and is looked at next time. Cancelled under
            // the lock: see `Standing::drop`.
            let mut keys = self.lock();
            if let Some(ended) = keys.in_use.remove(key) {
                ended.ended.cancel();
                let key = key.to_string();
                tracing::info!(key, requests = ended.requests, "a key is not in force any more: its requests end");
            }
        }
    }
}

/// Checks repeatedly until no request runs.
async fn watch(standings: Weak<Standings>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(standings) = standings.upgrade() else { return };
        {
            let mut keys = standings.lock();
            if keys.in_use.is_empty() {
                keys.watched = false;
                return;
            }
        }
        standings.look().await;
    }
}

impl Standing {
    /// Cancelled when the key is no longer valid.
    pub(crate) fn ended(&self) -> &CancellationToken {
        &self.ended
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let mut keys = self.standings.lock();
        if self.ended.is_cancelled() {
            // Its entry is gone; one of the same name is another's.
            return;
        }
        if let Some(entry) = keys.in_use.get_mut(&self.key) {
            entry.requests = entry.requests.saturating_sub(1);
            if entry.requests == 0 {
                keys.in_use.remove(&self.key);
            }
        }
    }
}

/// The refusal of a request whose key was revoked while it ran.
pub(crate) fn revoked() -> Refusal {
    let message = "The API key was revoked while the request was under way.";
    Refusal::new(StatusCode::UNAUTHORIZED, ErrorResponseCode::Unauthorized, message)
}
