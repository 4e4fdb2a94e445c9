//! Watched directories over a sandbox's WebSocket.
//!
//! ```text
//!   messages ──> one task a watch ── changes ──> queue
//! ```
//! A slow client fills the queue. Then the guest keeps a bounded number of changes, and tells that it has lost others.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use nullspace_api::{ErrorResponseCode, FileEvent, FileWatch, WatchClientMessage, WatchServerMessage};
use nullspace_service::{Caller, Error, FileAt, FileChange, WatchedDir};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::{Conversation, Farewell, Heard, Incoming, Session, Tasks, log_cause, parsed};
use crate::state::AppState;

/// Longest `timeout_secs`.
const MAX_TIMEOUT_SECS: f64 = 7.0 * 24.0 * 3600.0;
/// Longest `id` of a watch, bytes: it is kept.
const MAX_ID: usize = 256;

/// The watches of one socket.
pub(crate) struct Watches {
    pub(crate) sandbox: String,
}

impl Conversation for Watches {
    type Message = WatchServerMessage;

    async fn read(
        &self,
        session: &Session,
        mut incoming: Incoming<'_>,
        queue: mpsc::Sender<WatchServerMessage>,
    ) -> Option<Farewell> {
        let limits = &session.state.config.sockets;
        // Dropping it ends all watches.
        let mut watches = Tasks::new();
        let mut by_id: HashMap<String, AbortHandle> = HashMap::new();
        loop {
            let bytes = match watches.next(session, &mut incoming, "no watch for a long time").await {
                Ok(Heard::Message(bytes)) => bytes,
                Ok(Heard::Ended(_)) => {
                    by_id.retain(|_, watch| !watch.is_finished());
                    continue;
                }
                Err(farewell) => return farewell,
            };
            let answer = match parse(&bytes) {
                Err(refused) => Some(refused),
                Ok(message) => match (session.admit(), message) {
                    (
                        Err(text),
                        WatchClientMessage::FileWatch(FileWatch { id, .. }) | WatchClientMessage::FileWatchStop { id },
                    ) => Some(refusal(Some(id), ErrorResponseCode::RateLimitExceeded, text)),
                    (Ok(()), WatchClientMessage::FileWatchStop { id }) => {
                        if let Some(watch) = by_id.remove(&id) {
                            watch.abort();
                        }
                        Some(WatchServerMessage::FileWatchStopped { id })
                    }
                    (Ok(()), WatchClientMessage::FileWatch(watch)) => match begin(&watch, &by_id, limits.commands) {
                        Err(refused) => Some(refused),
                        Ok(()) => {
                            let (state, caller) = (session.state.clone(), session.caller.clone());
                            let id = watch.id.clone();
                            let task = follow(state, caller, self.sandbox.clone(), watch, queue.clone());
                            by_id.insert(id, watches.running.spawn(task));
                            None
                        }
                    },
                },
            };
            if let Some(answer) = answer {
                queue.send(answer).await.ok()?;
            }
        }
    }
}

fn refusal(id: Option<String>, code: ErrorResponseCode, message: String) -> WatchServerMessage {
    WatchServerMessage::Error { id, code, message }
}

fn parse(bytes: &[u8]) -> Result<WatchClientMessage, WatchServerMessage> {
    parsed(bytes).map_err(|text| refusal(None, ErrorResponseCode::InvalidRequest, text))
}

/// Checks whether a watch may begin.
fn begin(watch: &FileWatch, by_id: &HashMap<String, AbortHandle>, most: usize) -> Result<(), WatchServerMessage> {
    let (code, text) = if watch.id.len() > MAX_ID {
        (ErrorResponseCode::InvalidRequest, format!("id is longer than {MAX_ID} bytes"))
    } else if by_id.contains_key(&watch.id) {
        (ErrorResponseCode::InvalidRequest, "another watch of this socket has this id".to_owned())
    } else if by_id.len() >= most {
        (
            ErrorResponseCode::RateLimitExceeded,
            format!("{most} directories are watched over this socket: stop one first"),
        )
    } else if watch.timeout_secs.is_some_and(|secs| !(secs > 0.0 && secs <= MAX_TIMEOUT_SECS)) {
        let text = format!("timeout_secs must be more than 0 and at most {MAX_TIMEOUT_SECS}");
        (ErrorResponseCode::InvalidRequest, text)
    } else {
        return Ok(());
    };
    let id = watch.id.len() <= MAX_ID;
    Err(refusal(id.then(|| watch.id.clone()), code, text))
}

/// Watches one directory and sends its changes. Ends early when the client is gone.
async fn follow(
    state: AppState,
    caller: Caller,
    sandbox: String,
    watch: FileWatch,
    queue: mpsc::Sender<WatchServerMessage>,
) {
    let FileWatch { id, path, user, recursive, timeout_secs } = watch;
    let begun = async {
        let sandbox = state.service.live_sandbox(&caller, &sandbox).await?;
        sandbox.watch_dir(FileAt { path, user }, recursive.unwrap_or_default()).await
    };
    let told = match begun.await {
        Ok(watched) => {
            let tell = tell(&id, watched, &queue);
            match timeout_secs {
                None => tell.await,
                Some(secs) => tokio::time::timeout(Duration::from_secs_f64(secs), tell).await.unwrap_or(Ok(())),
            }
        }
        Err(error) => Err(error),
    };
    let last = match told {
        Ok(()) => WatchServerMessage::FileWatchStopped { id },
        Err(error) => failure(id, error),
    };
    // Sending fails when the socket is gone.
    let _ = queue.send(last).await;
}

/// Returns when the client is gone, or with the error that ends the watch.
async fn tell(id: &str, watched: WatchedDir, queue: &mpsc::Sender<WatchServerMessage>) -> Result<(), Error> {
    let WatchedDir { path: root, mut changes } = watched;
    let started = WatchServerMessage::FileWatchStarted { id: id.to_owned(), path: root.clone() };
    if queue.send(started).await.is_err() {
        return Ok(());
    }
    let whole = |name: &str| match name {
        "" => root.clone(),
        name => format!("{}/{name}", root.trim_end_matches('/')),
    };
    while let Some(change) = changes.next().await {
        let FileChange { kind, name, from } = change?;
        let event = FileEvent {
            id: id.to_owned(),
            event: kind,
            path: whole(&name),
            old_path: from.as_deref().map(whole),
            name,
        };
        if queue.send(WatchServerMessage::FileEvent(event)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn failure(id: String, error: Error) -> WatchServerMessage {
    log_cause(&error, "a watch");
    refusal(Some(id), error.code, error.message)
}
