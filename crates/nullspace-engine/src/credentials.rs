//! Credentials and secrets of running builds: in memory only, from acceptance to the build's end.
//!
//! Nothing here is written anywhere. A build that needs them and runs after a restart, or on another host, ends with
//! `credentials_lost` and can be sent again with them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use nullspace_api::RequestSecrets;
use nullspace_store::BuildId;

/// What came with requests, by build.
#[derive(Default)]
pub(crate) struct Credentials {
    builds: Mutex<HashMap<BuildId, Arc<RequestSecrets>>>,
}

impl Credentials {
    pub(crate) fn keep(&self, build: BuildId, secrets: RequestSecrets) {
        self.lock().insert(build, Arc::new(secrets));
    }

    pub(crate) fn get(&self, build: BuildId) -> Option<Arc<RequestSecrets>> {
        self.lock().get(&build).cloned()
    }

    /// To be called at every end of a build.
    pub(crate) fn forget(&self, build: BuildId) {
        self.lock().remove(&build);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BuildId, Arc<RequestSecrets>>> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
