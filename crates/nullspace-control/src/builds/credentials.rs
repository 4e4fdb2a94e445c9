//! Credentials and secrets of running builds: in memory only, from acceptance to the build's end.
//!
//! Nothing here is written to disk. A build that needs credentials and runs after a restart, or on another host, ends with
//! `credentials_lost` and can be sent again with them. The memory for one tenant's builds, and for all builds, is bounded. A
//! build can also end elsewhere: with its template, or on another host. The next sweep then removes its credentials.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nullspace_api::{ErrorResponseCode, RequestSecrets};
use nullspace_db::{Database, DbError};
use nullspace_types::{BuildId, Caller};

use crate::error::{Error, Result};

/// Most bytes of one request.
const MOST_OF_REQUEST: usize = 2 << 20;
/// Most bytes for one tenant's unfinished builds.
const MOST_OF_TENANT: usize = 32 << 20;
/// Most bytes for all unfinished builds.
const MOST_OF_ALL: usize = 256 << 20;
/// The time after which a refused caller should retry.
const RETRY: Duration = Duration::from_secs(5);

/// Secrets of requests, by build.
#[derive(Default)]
pub(crate) struct Credentials {
    builds: Mutex<HashMap<BuildId, Kept>>,
}

struct Kept {
    secrets: Arc<RequestSecrets>,
    caller: Caller,
    bytes: usize,
}

impl Credentials {
    /// Keeps a request's secrets for its build, or refuses them when they are too large.
    pub(crate) fn keep(&self, caller: &Caller, build: BuildId, secrets: RequestSecrets) -> Result<()> {
        let bytes = secrets.size();
        if bytes > MOST_OF_REQUEST {
            let what =
                format!("credentials and build_secrets take {bytes} bytes: they must be {MOST_OF_REQUEST} at most");
            return Err(Error::invalid(what));
        }
        let mut builds = self.lock();
        let of_tenant = builds.values().filter(|kept| kept.caller.tenant == caller.tenant);
        let of_tenant = of_tenant.map(|kept| kept.bytes).sum::<usize>().saturating_add(bytes);
        let of_all = builds.values().map(|kept| kept.bytes).sum::<usize>().saturating_add(bytes);
        let (code, whose) = if of_tenant > MOST_OF_TENANT {
            (ErrorResponseCode::RateLimitExceeded, "this tenant's")
        } else if of_all > MOST_OF_ALL {
            (ErrorResponseCode::FeatureUnavailable, "all")
        } else {
            builds.insert(build, Kept { secrets: Arc::new(secrets), caller: caller.clone(), bytes });
            return Ok(());
        };
        let what =
            format!("the memory limit for secrets of {whose} unfinished builds is reached: wait for some to end");
        Err(Error { retry_after: Some(RETRY), ..Error::new(code, what) })
    }

    pub(crate) fn get(&self, build: BuildId) -> Option<Arc<RequestSecrets>> {
        self.lock().get(&build).map(|kept| Arc::clone(&kept.secrets))
    }

    /// Removes a build's secrets. Every end of a build calls it.
    pub(crate) fn forget(&self, build: BuildId) {
        self.lock().remove(&build);
    }

    /// Removes the secrets of builds that ended without a call of [`Self::forget`]. They stay when the database cannot
    /// answer.
    pub(crate) async fn sweep(&self, db: &dyn Database) {
        let kept: Vec<(BuildId, Caller)> = self.lock().iter().map(|(id, kept)| (*id, kept.caller.clone())).collect();
        for (id, caller) in kept {
            match db.get_build(&caller, id).await {
                Ok(build) if build.status.is_final() => self.forget(id),
                // Not accepted yet, or refused: whoever keeps it forgets it.
                Ok(_) | Err(DbError::NotFound) => {}
                Err(_) => return,
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BuildId, Kept>> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use nullspace_api::TemplateBuildSecret;
    use nullspace_types::TenantId;

    use super::*;

    fn secrets(bytes: usize) -> RequestSecrets {
        let secret = TemplateBuildSecret { id: String::new(), value: "x".repeat(bytes).into(), source: None };
        RequestSecrets { base_image_auth: None, registry_auth: Vec::new(), build_secrets: vec![secret] }
    }

    fn caller() -> Caller {
        Caller { tenant: TenantId::new(), namespace: "a".to_owned(), key: None, read_only: false }
    }

    #[test]
    fn secrets_in_memory_have_a_bound_for_each_request_each_tenant_and_all() {
        let credentials = Credentials::default();
        let refused =
            |caller: &Caller, bytes| credentials.keep(caller, BuildId::new(), secrets(bytes)).err().map(|e| e.code);
        let first = caller();
        assert_eq!(refused(&first, MOST_OF_REQUEST + 1), Some(ErrorResponseCode::InvalidRequest));
        for _ in 0..MOST_OF_TENANT / MOST_OF_REQUEST {
            assert_eq!(refused(&first, MOST_OF_REQUEST), None);
        }
        assert_eq!(refused(&first, 1), Some(ErrorResponseCode::RateLimitExceeded));
        let mut others = 0;
        while others < MOST_OF_ALL / MOST_OF_REQUEST && refused(&caller(), MOST_OF_REQUEST).is_none() {
            others += 1;
        }
        assert_eq!(others, (MOST_OF_ALL - MOST_OF_TENANT) / MOST_OF_REQUEST);
        assert_eq!(refused(&caller(), MOST_OF_REQUEST), Some(ErrorResponseCode::FeatureUnavailable));
        let builds: Vec<_> = credentials.lock().keys().copied().collect();
        builds.into_iter().for_each(|build| credentials.forget(build));
        assert_eq!(refused(&first, 1), None);
    }
}
