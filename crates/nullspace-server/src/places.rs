//! Concurrency limits for each tenant and sandbox: requests, log followers and WebSockets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use nullspace_api::ErrorResponseCode;
use nullspace_service::TenantId;

use crate::config::ServerConfig;
use crate::error::Refusal;

/// The counted things.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<HashMap<Whose, usize>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whose {
    /// Requests of a tenant, from the head to the last byte of the answer, with WebSockets.
    Requests(TenantId),
    /// Logs that a tenant follows.
    Followers(TenantId),
    /// WebSockets of a tenant.
    Sockets(TenantId),
    /// WebSockets of a sandbox.
    SandboxSockets(String),
}

/// A counted thing. Dropping it frees its place.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    whose: Vec<Whose>,
}

impl Places {
    /// Counts one more request, or refuses.
    pub(crate) fn request(self: &Arc<Self>, tenant: TenantId, config: &ServerConfig) -> Result<Place, Refusal> {
        let most = config.requests_at_once;
        self.take([(Whose::Requests(tenant), most, "requests of this tenant under way: let one end")])
    }

    /// Counts one more follower of a log, or refuses.
    pub(crate) fn follower(self: &Arc<Self>, tenant: TenantId, config: &ServerConfig) -> Result<Place, Refusal> {
        let most = config.followers;
        self.take([(Whose::Followers(tenant), most, "logs that this tenant follows: close one")])
    }

    /// Counts one more socket of a tenant's events, or refuses.
    pub(crate) fn tenant_socket(self: &Arc<Self>, tenant: TenantId, config: &ServerConfig) -> Result<Place, Refusal> {
        let most = config.sockets.per_tenant;
        self.take([(Whose::Sockets(tenant), most, "WebSockets of this tenant: close one")])
    }

    /// Counts one more socket of a sandbox, or refuses.
    pub(crate) fn socket(
        self: &Arc<Self>,
        tenant: TenantId,
        sandbox: &str,
        config: &ServerConfig,
    ) -> Result<Place, Refusal> {
        let limits = &config.sockets;
        self.take([
            (Whose::Sockets(tenant), limits.per_tenant, "WebSockets of this tenant: close one"),
            (Whose::SandboxSockets(sandbox.to_owned()), limits.per_sandbox, "WebSockets of this sandbox: close one"),
        ])
    }

    fn take<const N: usize>(self: &Arc<Self>, wanted: [(Whose, usize, &str); N]) -> Result<Place, Refusal> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (whose, most, what) in &wanted {
            if counts.get(whose).copied().unwrap_or(0) >= *most {
                let message = format!("There are {most} {what} first.");
                return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, ErrorResponseCode::RateLimitExceeded, message));
            }
        }
        let whose = wanted.map(|(whose, ..)| whose).to_vec();
        for whose in &whose {
            *counts.entry(whose.clone()).or_insert(0) += 1;
        }
        Ok(Place { places: Arc::clone(self), whose })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        for whose in &self.whose {
            if let Some(count) = counts.get_mut(whose) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    counts.remove(whose);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SocketLimits;
    use crate::tests::tenant;

    #[test]
    fn each_sandbox_and_each_tenant_has_its_own_count() {
        let (a, b) = (tenant('a'), tenant('b'));
        let places = Arc::new(Places::default());
        let sockets = SocketLimits { per_sandbox: 2, per_tenant: 3, ..SocketLimits::default() };
        let config = ServerConfig { sockets, requests_at_once: 2, followers: 1, ..ServerConfig::default() };
        let take = |tenant, sandbox| places.socket(tenant, sandbox, &config);
        let (first, _second) = (take(a, "1").unwrap(), take(a, "1").unwrap());
        assert!(take(a, "1").is_err());
        let _third = take(a, "2").unwrap();
        assert!(take(a, "3").is_err());
        drop(first);
        let again = take(a, "1").unwrap();
        let _other = take(b, "4").unwrap();
        let all = places.tenant_socket(a, &config);
        assert!(all.is_err(), "sockets of sandboxes and of events count together");
        let events = places.tenant_socket(b, &config).unwrap();
        let requests = (places.request(a, &config).unwrap(), places.request(a, &config).unwrap());
        let refused = places.request(a, &config).unwrap_err();
        assert_eq!(
            (refused.status, refused.error.code),
            (StatusCode::TOO_MANY_REQUESTS, ErrorResponseCode::RateLimitExceeded)
        );
        let followers = (places.follower(a, &config).unwrap(), places.follower(b, &config).unwrap());
        assert!(places.follower(a, &config).is_err());
        drop((again, _second, _third, _other, events, requests, followers));
        assert!(places.0.lock().unwrap().is_empty());
    }
}
