//! A service in memory, for what is HTTP's alone: it knows two keys, one build, one sandbox with what is made from it, events and
//! webhooks, and fails on request.
#![allow(dead_code, reason = "shared with the tests of the client")]

mod answers;
pub(crate) mod commands;
pub(crate) mod events;
pub(crate) mod keys;
mod life;
mod live;
pub(crate) mod ports;
mod service;
mod ssh;
pub(crate) mod warm_pools;
pub(crate) mod webhooks;

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, Weak};

use nullspace_api::*;
use nullspace_server::{ServerConfig, router};
use nullspace_service::{Caller, Error, KeyId, Result, Service, TenantId};
use tokio::sync::watch;

pub(crate) use self::answers::{build, entry, sandbox, template};

pub(crate) const KEY: &str = "ns_live_canary-key";
pub(crate) const OTHER_KEY: &str = "ns_live_other";
/// A key of the first tenant that may only read.
pub(crate) const READ_KEY: &str = "ns_live_read";
pub(crate) const BUILD: &str = "tb_1";
pub(crate) const TEMPLATE: &str = "tmpl_1";
/// Bytes that the command `much` of an exec writes.
pub(crate) const MUCH: usize = 4 << 20;
pub(crate) const SANDBOX: &str = "sb_1";

/// A cause that only the log may see.
#[derive(Debug, thiserror::Error)]
#[error("canary-cause: disk is full")]
struct Cause;

/// A fault of the service.
fn cause() -> Error {
    let message = "The service failed to handle the request.";
    Error { source: Some(Arc::new(Cause)), ..Error::new(ErrorResponseCode::InternalError, message) }
}

/// The tenant with a letter for a name.
fn tenant(letter: char) -> TenantId {
    format!("tn_{}", String::from(letter).repeat(32)).parse().unwrap()
}

/// The key of every caller.
fn key_id() -> KeyId {
    format!("key_{}", "1".repeat(32)).parse().unwrap()
}

/// A caller's letter.
fn letter(caller: &Caller) -> &'static str {
    if caller.tenant == tenant('a') { "a" } else { "b" }
}

pub(crate) struct Fake {
    /// Itself, for the sandbox that it gives out.
    this: Weak<Self>,
    log: watch::Sender<Vec<TemplateBuildLogEntry>>,
    /// What arrived, as the service sees it.
    pub(crate) calls: Mutex<Vec<String>>,
    /// After so many entries the log stream fails, once.
    pub(crate) break_after: Mutex<Option<u64>>,
    file: Mutex<Option<Vec<u8>>>,
    /// A backend is down.
    pub(crate) down: Mutex<bool>,
    /// No key opens anything any more.
    pub(crate) revoked: AtomicBool,
    /// How often it was asked which keys are in force.
    pub(crate) looks: AtomicUsize,
    /// Commands that are followed.
    pub(crate) followed: Arc<AtomicUsize>,
    /// Pieces of output that the command `much` has made.
    pub(crate) made: Arc<AtomicUsize>,
    /// The followed terminal.
    screen: Mutex<Option<live::terminals::Screen>>,
    /// Sandboxes and snapshots, with what happened to them.
    pub(crate) life: Mutex<life::Lives>,
    pub(crate) events: events::History,
    webhooks: Mutex<Vec<LifecycleWebhookInfo>>,
}

impl Service for Fake {}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        let (log, _) = watch::channel(Vec::new());
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            log,
            calls: Mutex::new(Vec::new()),
            break_after: Mutex::new(None),
            file: Mutex::new(None),
            down: Mutex::new(false),
            revoked: AtomicBool::new(false),
            looks: AtomicUsize::new(0),
            followed: Arc::default(),
            made: Arc::default(),
            screen: Mutex::default(),
            life: Mutex::default(),
            events: events::History::default(),
            webhooks: Mutex::default(),
        })
    }

    pub(crate) fn router(self: &Arc<Self>, config: ServerConfig) -> axum::Router {
        router(Arc::clone(self) as Arc<dyn Service>, config)
    }

    /// Append an entry to the build's log.
    pub(crate) fn push(&self, kind: TemplateBuildLogKind, message: &str) {
        self.log.send_modify(|log| log.push(entry(log.len() as u64, kind, message)));
    }

    pub(crate) fn last_call(&self) -> String {
        self.calls.lock().unwrap().last().cloned().unwrap_or_default()
    }

    fn call(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn own(caller: &Caller, id: &str, known: &str, code: ErrorResponseCode) -> Result<()> {
        if letter(caller) == "a" && id == known {
            return Ok(());
        }
        Err(Error::new(code, format!("There is no `{id}`.")))
    }
}
