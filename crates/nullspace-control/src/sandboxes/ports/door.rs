//! Doors: the settings of a sandbox's ports, which are fixed when it is made, and its own token.
//!
//! A request to a port of a running sandbox reads no row: a door is remembered. The token of a sandbox whose ports are not public
//! (`x-nullspace-traffic-access-token`) holds for all of its ports and as long as the sandbox. It is sealed in the row.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use nullspace_db::Sandbox;
use nullspace_types::{SandboxId, TenantId};
use secrecy::{ExposeSecret, SecretString};

use super::tokens::{self, Hash};
use super::{mask, nobody};
use crate::Inner;
use crate::error::{Result, Stored};
use crate::sandboxes::spec::Config;

/// Most doors that are remembered. All are forgotten when there are more.
const REMEMBERED: usize = 10_000;
/// Beginning of a sandbox's own token.
const PREFIX: &str = "nst_";

/// The settings of a sandbox's ports.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) tenant: TenantId,
    /// No token is needed.
    pub(super) public: bool,
    pub(super) auto_resume: bool,
    /// Of the sandbox's own token.
    pub(super) token: Option<Hash>,
    mask: Option<String>,
}

impl Door {
    /// The `Host` header that the server gets instead of the request's.
    pub(super) fn host(&self, port: u16) -> Option<String> {
        self.mask.as_deref().map(|mask| mask::host(mask, port))
    }
}

/// Doors of sandboxes that were looked up.
#[derive(Debug, Default)]
pub(super) struct Doors(Mutex<HashMap<SandboxId, Arc<Door>>>);

/// The owner of a sealed token: another one than that of the sandbox's variables.
fn owner(id: SandboxId) -> String {
    format!("{id}/ports")
}

impl Inner {
    /// The door of any tenant's sandbox, also of one that has ended.
    pub(super) async fn door(&self, id: SandboxId) -> Result<Arc<Door>> {
        let doors = &self.sandboxes.ports.doors.0;
        if let Some(door) = doors.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Ok(Arc::clone(door));
        }
        let sandbox = self.db.sandbox_of_anyone(id).await.or_missing(nobody)?;
        let config = Config::stored(&sandbox.config)?;
        let token = self.traffic_token(&sandbox);
        let door = Arc::new(Door {
            tenant: sandbox.tenant,
            public: config.public_ports,
            auto_resume: config.auto_resume,
            token: token.map(|token| tokens::hash(&token)),
            mask: config.mask_request_host,
        });
        let mut doors = doors.lock().unwrap_or_else(PoisonError::into_inner);
        if doors.len() >= REMEMBERED {
            doors.clear();
        }
        doors.insert(id, Arc::clone(&door));
        Ok(door)
    }

    /// Makes the token of a sandbox whose ports are not public, and seals it for its row. Each sandbox has one of its own, also one
    /// that runs in place of a paused one, and a clone.
    pub(in super::super) fn new_traffic_token(&self, id: SandboxId, config: &Config) -> Result<Option<Vec<u8>>> {
        if config.public_ports {
            return Ok(None);
        }
        let token = tokens::random(PREFIX)?;
        self.config.seal.seal(&owner(id), token.expose_secret().as_bytes()).map(Some)
    }

    /// A sandbox's own token. `None` when its ports are public, when it has ended, or when the token cannot be opened.
    pub(in super::super) fn traffic_token(&self, sandbox: &Sandbox) -> Option<SecretString> {
        match self.config.seal.open(&owner(sandbox.id), sandbox.sealed_traffic_token.as_deref()?) {
            Ok(token) => Some(String::from_utf8(token).ok()?.into()),
            Err(why) => {
                tracing::error!(sandbox_id = %sandbox.id, %why, "the token of a sandbox's ports cannot be read");
                None
            }
        }
    }
}
