//! Credentials of running builds: in memory only, from acceptance to the build's end.
//!
//! Nothing here is written anywhere. A build that needs credentials and runs after a restart, or on another host, ends
//! with `credentials_lost` and can be sent again with them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use nullspace_api::TemplateBaseImageAuth;
use nullspace_store::BuildId;

/// Credentials by build.
#[derive(Default)]
pub(crate) struct Credentials {
    builds: Mutex<HashMap<BuildId, TemplateBaseImageAuth>>,
}

impl Credentials {
    pub(crate) fn keep(&self, build: BuildId, auth: TemplateBaseImageAuth) {
        self.lock().insert(build, auth);
    }

    pub(crate) fn get(&self, build: BuildId) -> Option<TemplateBaseImageAuth> {
        self.lock().get(&build).cloned()
    }

    /// To be called at every end of a build.
    pub(crate) fn forget(&self, build: BuildId) {
        self.lock().remove(&build);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BuildId, TemplateBaseImageAuth>> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
