//! How many sockets there may be: for each sandbox, for each tenant.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use nullspace_api::ErrorResponseCode;

use crate::config::SocketLimits;
use crate::service::{ErrorKind, ServiceError};

/// The sockets that are open.
#[derive(Debug, Default)]
pub(crate) struct Sockets(Mutex<HashMap<Whose, usize>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whose {
    Tenant(String),
    Sandbox(String),
}

/// One open socket. Dropping it makes room for another.
#[derive(Debug)]
pub(crate) struct Place {
    sockets: Arc<Sockets>,
    whose: [Whose; 2],
}

impl Sockets {
    /// Counts one more, or refuses.
    pub(crate) fn take(
        self: &Arc<Self>,
        tenant: &str,
        sandbox: &str,
        limits: &SocketLimits,
    ) -> Result<Place, ServiceError> {
        let whose = [Whose::Tenant(tenant.to_owned()), Whose::Sandbox(sandbox.to_owned())];
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (whose, most, what) in
            [(&whose[0], limits.per_tenant, "this tenant"), (&whose[1], limits.per_sandbox, "this sandbox")]
        {
            if counts.get(whose).is_some_and(|count| *count >= most) {
                let message = format!("There are {most} WebSockets of {what} already: close one first.");
                return Err(ServiceError::new(ErrorKind::RateLimited, ErrorResponseCode::RateLimitExceeded, message));
            }
        }
        for whose in &whose {
            *counts.entry(whose.clone()).or_insert(0) += 1;
        }
        Ok(Place { sockets: Arc::clone(self), whose })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.sockets.0.lock().unwrap_or_else(PoisonError::into_inner);
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

    #[test]
    fn each_sandbox_and_each_tenant_has_its_own_count() {
        let sockets = Arc::new(Sockets::default());
        let limits = SocketLimits { per_sandbox: 2, per_tenant: 3, ..SocketLimits::default() };
        let take = |tenant, sandbox| sockets.take(tenant, sandbox, &limits);
        let (first, _second) = (take("a", "1").unwrap(), take("a", "1").unwrap());
        assert!(take("a", "1").is_err());
        let _third = take("a", "2").unwrap();
        assert!(take("a", "3").is_err());
        drop(first);
        let again = take("a", "1").unwrap();
        let _other = take("b", "4").unwrap();
        drop((again, _second, _third, _other));
        assert!(sockets.0.lock().unwrap().is_empty());
    }
}
