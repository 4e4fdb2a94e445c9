//! Ports of sandboxes: who may reach one, their addresses, and the tokens for them.
//!
//! ```text
//!   owner ── host, preview URL ──> address, grant ── token ──┐
//!                                     │ revoke               v
//!                                     v        anybody ── enter ──> door: public, or a good token?
//!                                   over                              └──> running? ── yes ──> the sandbox
//!                                                                            └── paused ── auto_resume ──> wakes, "come back"
//! ```
//! | file | what |
//! |---|---|
//! | `door` | settings of a sandbox's ports, and its own token |
//! | `tokens` | grants: made, given out again, found by their token, revoked |
//! | `wakes` | which paused sandboxes are being woken, and which rest after a failure |
//! | `uses` | what grants are used for: counted, written in batches, ended when the grant is over |
//! | `address` | host names, listeners on the loopback address, paths |
//! | `readiness` | whether a server answers on a port |
//! | `mask` | `mask_request_host` |
//!
//! An id of a sandbox cannot be guessed, but it is no secret: it is part of every address. So a sandbox whose ports are not public
//! answers as one that does not exist, unless the request has a good token. Nothing of it is touched before: no pause ends.

mod address;
mod door;
pub(super) mod mask;
mod readiness;
mod tokens;
mod uses;
mod wakes;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{
    CreateSignedPreviewUrlRequest, ErrorResponseCode, GetHostResponse, GetHostResponseAccessTokenTransport,
    ListPreviewGrantsResponse, PreviewReadinessRequest, PreviewReadinessResponse, PreviewUrlResponse,
    PreviewUrlResponseAccessTokenTransport, RevokePreviewGrantResponse,
};
use nullspace_db::{Grant, GrantKind, Sandbox, SandboxStatus};
use nullspace_host_interface::Found;
use nullspace_service::{Entered, Knock, LiveSandbox, LocalPorts, PortCount, Ports, Previews};
use nullspace_types::{Caller, SandboxId};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use self::address::Address;
use self::door::Door;
use super::parse;
use super::resume::Why;
use super::spec::Config;
use super::timeouts::for_tenant;
use crate::error::{Error, Result, Stored};
use crate::{Control, Inner};

/// Time after which a request to a sandbox that wakes is to be repeated.
const WAKING: Duration = Duration::from_secs(5);
/// Lifetime of a token of a preview URL, in seconds, where none is requested, and the longest.
const USUAL_SECS: u64 = 3600;
const LONGEST_SECS: u64 = 7 * 24 * 3600;

/// Where ports of sandboxes are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewSettings {
    /// The domain of their host names: `{port}-{sandbox}.{domain}`, with a port when clients need one. `None`: they have none.
    pub domain: Option<String>,
    /// True: clients reach the domain over TLS.
    pub tls: bool,
    /// Where clients reach the service, `host:port`: for ports that have neither a host name nor a listener.
    pub address: String,
    /// Whether paths of that address lead to ports.
    pub paths: bool,
}

/// The state of ports in this process.
#[derive(Default)]
pub(crate) struct State {
    doors: door::Doors,
    tokens: tokens::Tokens,
    uses: uses::Uses,
    local: OnceLock<Arc<dyn LocalPorts>>,
    wakes: wakes::Wakes,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

pub(crate) use self::uses::keep;

impl Control {
    /// Gives the service listeners on the loopback address. They lead back to it, so they can only be made after it. A second
    /// call changes nothing.
    pub fn use_local_ports(&self, ports: Arc<dyn LocalPorts>) {
        // Set already: those that are known stay.
        let _ = self.inner.sandboxes.ports.local.set(ports);
    }
}

/// The answer to all who may not reach a port, whatever the reason.
fn nobody() -> Error {
    let message =
        "there is no such sandbox, or this port of it needs a token that is in force: ask the owner for a new URL";
    Error::new(ErrorResponseCode::SandboxNotFound, message)
}

fn waking(what: &str) -> Error {
    Error {
        retry_after: Some(WAKING),
        ..Error::new(ErrorResponseCode::SandboxNotReady, format!("the sandbox {what}; try again in some seconds"))
    }
}

/// A port as requests name it.
fn port(number: u32) -> Result<u16> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Error::invalid(format!("port is {number}: it must be 1 to 65535"))),
    }
}

/// Counts nothing: the request needed no grant.
struct Uncounted;

impl PortCount for Uncounted {
    fn bytes(&self, _: u64, _: u64) {}

    fn failed(&self, _: &'static str) {}
}

#[async_trait]
impl Ports for Control {
    async fn enter(&self, knock: Knock) -> Result<Entered> {
        let inner = &self.inner;
        let id: SandboxId = knock.sandbox.parse().map_err(|_| nobody())?;
        if knock.port == 0 {
            return Err(nobody());
        }
        let door = inner.door(id).await?;
        let token = knock.token.as_ref();
        let Some(grant) = inner.judge(&door, id, knock.port, token).await? else {
            let sandbox = inner.behind(&door, id).await?;
            return Ok(Entered {
                sandbox,
                tenant: door.tenant,
                host: door.host(knock.port),
                token_secs: None,
                over: CancellationToken::new(),
                count: Arc::new(Uncounted),
            });
        };
        let sandbox = inner.behind(&door, id).await?;
        let used = inner.sandboxes.ports.uses.begin(grant.id, grant.expires_at, knock.websocket, Timestamp::now());
        // Revoked between the look and now: its uses are ended from the registry, where this one came too late.
        if inner.sandboxes.ports.tokens.revocations() != grant.seen {
            inner.still_in_force(token).await?;
        }
        let left = grant.expires_at.duration_since(Timestamp::now()).as_secs();
        Ok(Entered {
            sandbox,
            tenant: door.tenant,
            host: door.host(knock.port),
            token_secs: Some(u64::try_from(left).unwrap_or(0)),
            over: used.over(),
            count: Arc::new(used),
        })
    }

    async fn has_ended(&self, sandbox: &str) -> Result<bool> {
        let Ok(id) = sandbox.parse::<SandboxId>() else { return Ok(true) };
        if matches!(self.inner.host.find_sandbox(id), Found::Running(..)) {
            return Ok(false);
        }
        match self.inner.db.sandbox_of_anyone(id).await {
            Ok(sandbox) => Ok(sandbox.status.is_final()),
            Err(nullspace_db::DbError::NotFound) => Ok(true),
            Err(error) => Err(error).stored(),
        }
    }
}

impl Inner {
    /// The sandbox behind a door, if it runs. A paused one with `auto_resume` begins to wake.
    async fn behind(self: &Arc<Self>, door: &Door, id: SandboxId) -> Result<Arc<dyn LiveSandbox>> {
        let running = |found| match found {
            Found::Running(live, tenant) if tenant == door.tenant => Some(live),
            _ => None,
        };
        if let Some(live) = running(self.host.find_sandbox(id)) {
            return Ok(live);
        }
        let sandbox = self.db.sandbox_of_anyone(id).await.or_missing(nobody)?;
        match sandbox.status {
            SandboxStatus::Paused if self.is_awaited(id) => {
                Err(waking("is being resumed after a restart of the service"))
            }
            SandboxStatus::Paused if door.auto_resume => {
                self.wake(&sandbox);
                Err(waking("is paused, and is being resumed"))
            }
            SandboxStatus::Paused => {
                let message = "the sandbox is paused: its owner can resume it, or create sandboxes with auto_resume";
                Err(Error::new(ErrorResponseCode::SandboxNotReady, message))
            }
            SandboxStatus::Creating => Err(waking("is not running yet")),
            // Since the host was asked.
            SandboxStatus::Running => running(self.host.find_sandbox(id)).ok_or_else(|| waking("is not running yet")),
            SandboxStatus::Destroyed | SandboxStatus::Error => Err(nobody()),
        }
    }

    /// Begins to resume a paused sandbox, once, however many ask. One that could not be resumed is left alone for a moment.
    fn wake(self: &Arc<Self>, sandbox: &Sandbox) {
        let id = sandbox.id;
        if self.sandboxes.continuations.has(id) {
            return;
        }
        let Some(wake) = self.sandboxes.ports.wakes.begin(id) else { return };
        let (inner, caller) = (Arc::clone(self), for_tenant(sandbox.tenant));
        self.tasks.spawn(async move {
            if let Err(error) = inner.continue_shared(&caller, id, Why::Used).await {
                tracing::warn!(sandbox_id = %id, %error, "a sandbox could not be resumed for a request to one of its ports");
                wake.failed();
            }
        });
    }

    /// One of the caller's sandboxes that has not ended, and the port.
    async fn own_port(&self, caller: &Caller, id: &str, number: u32) -> Result<(Sandbox, u16)> {
        Ok((self.own_unended(caller, id).await?, port(number)?))
    }

    async fn own_unended(&self, caller: &Caller, id: &str) -> Result<Sandbox> {
        let sandbox = self.sandbox_of(caller, parse(id)?).await?;
        if sandbox.status.is_final() { Err(Error::sandbox_not_found(id)) } else { Ok(sandbox) }
    }

    /// The address of a port. A host name if there is a domain, else a listener, else a path.
    ///
    /// # Errors
    /// When a port has none of them.
    async fn address(&self, sandbox: &Sandbox, port: u16) -> Result<Address> {
        let (settings, id) = (&self.config.previews, sandbox.id);
        if let Some(domain) = &settings.domain {
            return Ok(Address::named(domain, settings.tls, id, port));
        }
        let path = || Address::path(&settings.address, id, port);
        match self.sandboxes.ports.local.get() {
            Some(local) => match local.listen(sandbox.tenant, &id.to_string(), port).await {
                Ok(listener) => Ok(Address::local(listener)),
                Err(error) if settings.paths => {
                    tracing::debug!(sandbox_id = %id, port, %error, "no listener for a port: it has a path");
                    Ok(path())
                }
                Err(error) if error.kind() == std::io::ErrorKind::QuotaExceeded => {
                    let message = format!("the port gets no address: {error}");
                    Err(Error::new(ErrorResponseCode::RateLimitExceeded, message))
                }
                Err(error) => {
                    tracing::warn!(sandbox_id = %id, port, %error, "no listener for a port");
                    let message = "the service cannot open an address for the port now: try again";
                    Err(Error::new(ErrorResponseCode::FeatureUnavailable, message))
                }
            },
            None if settings.paths => Ok(path()),
            None => {
                let message = "ports of sandboxes have no addresses here: the operator has set none of preview_domain, preview_paths \
                               and local_ports";
                Err(Error::new(ErrorResponseCode::FeatureUnavailable, message))
            }
        }
    }
}

/// The answer with a URL and its token.
fn preview(address: &Address, grant: &Grant, token: &SecretString) -> PreviewUrlResponse {
    PreviewUrlResponse {
        url: address.with_token(&address.http, token),
        websocket_url: address.with_token(&address.websocket, token),
        access_token_expires_at: grant.expires_at.into(),
        access_token_transport: PreviewUrlResponseAccessTokenTransport::Query,
        grant: tokens::wire(grant, Timestamp::now()),
    }
}

#[async_trait]
impl Previews for Control {
    async fn get_host(&self, caller: &Caller, id: &str, number: u32) -> Result<GetHostResponse> {
        let (sandbox, port) = self.inner.own_port(caller, id, number).await?;
        let address = self.inner.address(&sandbox, port).await?;
        if Config::stored(&sandbox.config)?.public_ports {
            return Ok(GetHostResponse {
                host: address.host,
                url: Some(address.http),
                websocket_url: Some(address.websocket),
                access_token_expires_at: None,
                access_token_transport: None,
            });
        }
        let (grant, token) = self.inner.link(caller, sandbox.id, port, USUAL_SECS).await?;
        Ok(GetHostResponse {
            url: Some(address.with_token(&address.http, &token)),
            websocket_url: Some(address.with_token(&address.websocket, &token)),
            host: address.host,
            access_token_expires_at: Some(grant.expires_at.into()),
            access_token_transport: Some(GetHostResponseAccessTokenTransport::Query),
        })
    }

    async fn get_preview_url(&self, caller: &Caller, id: &str, number: u32) -> Result<PreviewUrlResponse> {
        let (sandbox, port) = self.inner.own_port(caller, id, number).await?;
        let address = self.inner.address(&sandbox, port).await?;
        let (grant, token) = self.inner.link(caller, sandbox.id, port, USUAL_SECS).await?;
        Ok(preview(&address, &grant, &token))
    }

    async fn create_signed_preview_url(
        &self,
        caller: &Caller,
        id: &str,
        number: u32,
        request: CreateSignedPreviewUrlRequest,
    ) -> Result<PreviewUrlResponse> {
        let (sandbox, port) = self.inner.own_port(caller, id, number).await?;
        let secs = request.expires_in_seconds.unwrap_or(USUAL_SECS);
        if !(1..=LONGEST_SECS).contains(&secs) {
            let message = format!("expires_in_seconds is {secs}: it must be 1 to {LONGEST_SECS}, which are 7 days");
            return Err(Error::invalid(message));
        }
        let address = self.inner.address(&sandbox, port).await?;
        let (grant, token) = self.inner.issue(caller, sandbox.id, port, GrantKind::Signed, secs).await?;
        Ok(preview(&address, &grant, &token))
    }

    async fn check_preview_readiness(
        &self,
        caller: &Caller,
        id: &str,
        number: u32,
        request: PreviewReadinessRequest,
    ) -> Result<PreviewReadinessResponse> {
        let question = readiness::Question::of(port(number)?, request)?;
        let sandbox = nullspace_service::Sandboxes::live_sandbox(self, caller, id).await?;
        readiness::wait(sandbox, id, question).await
    }

    async fn list_preview_urls(
        &self,
        caller: &Caller,
        id: &str,
        number: Option<u32>,
    ) -> Result<ListPreviewGrantsResponse> {
        let sandbox = self.inner.own_unended(caller, id).await?;
        let grants = self.inner.db.list_grants(caller, sandbox.id, number.map(port).transpose()?).await.stored()?;
        let now = Timestamp::now();
        Ok(ListPreviewGrantsResponse { items: grants.iter().map(|grant| tokens::wire(grant, now)).collect() })
    }

    async fn revoke_preview_url(&self, caller: &Caller, id: &str, grant: &str) -> Result<RevokePreviewGrantResponse> {
        let sandbox = self.inner.own_unended(caller, id).await?;
        let missing =
            || Error::new(ErrorResponseCode::NotFound, format!("there is no preview grant {grant} of sandbox {id}"));
        let parsed = grant.parse().map_err(|_| missing())?;
        let (inner, caller) = (Arc::clone(&self.inner), caller.clone());
        // Once it is recorded, its uses end, also when the client has left.
        let work = async move { inner.revoke(&caller, sandbox.id, parsed).await };
        let revoked = super::joined(self.inner.tasks.spawn(work).await).map_err(|error| match error.code {
            ErrorResponseCode::NotFound => missing(),
            _ => error,
        })?;
        Ok(RevokePreviewGrantResponse { success: true, grant: tokens::wire(&revoked, Timestamp::now()) })
    }
}
