//! Changes of files in a running sandbox, told as they happen.
//!
//! A watch is a channel of the agent's session. It holds no place in the sandbox's gate, so a snapshot does not wait for it. The
//! session goes on after a snapshot, and the watch with it. When it does not (the machine stood still for longer than a session
//! waits), the watch ends with an error that tells the client to watch again.

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use nullspace_api::{ErrorResponseCode, FileEventKind};
use nullspace_guest::host::{AgentError, DirWatch};
use nullspace_guest::message::FailureKind;
use nullspace_guest::watch::{WatchCall, WatchEvent, WatchKind};
use nullspace_service::{Error, FileAt, FileChange, LiveWatches, Result, WatchedDir, chain};

use super::activity::Active;
use super::live::Live;

/// The state of a watch.
struct Watcher {
    watch: DirWatch,
    live: Arc<Live>,
    _active: Active,
}

impl Watcher {
    async fn next(&mut self) -> Result<Option<FileChange>> {
        tokio::select! {
            biased;
            event = self.watch.next() => Ok(event.map_err(failed)?.map(change)),
            () = self.live.ended.cancelled() => Err(self.live.gone()),
        }
    }
}

#[async_trait]
impl LiveWatches for Live {
    async fn watch_dir(self: Arc<Self>, at: FileAt, recursive: bool) -> Result<WatchedDir> {
        let live = Arc::clone(&self);
        let user = at.user.filter(|user| !user.is_empty());
        let cwd = user.is_none().then(|| self.cwd.clone());
        let user = user.or_else(|| self.runtime.user.clone());
        let call = WatchCall { path: at.path, recursive, user, cwd };
        let watching = self.using(|agent| async move {
            let watch = agent.watch(call).await.map_err(failed)?;
            let (path, _active) = (watch.path.clone(), live.activity.begin());
            let watcher = Watcher { watch, live, _active };
            let changes = stream::try_unfold(watcher, |mut watcher| async move {
                Ok(watcher.next().await?.map(|change| (change, watcher)))
            });
            Ok(WatchedDir { path, changes: changes.boxed() })
        });
        watching.await
    }
}

fn change(event: WatchEvent) -> FileChange {
    let kind = match event.kind {
        WatchKind::Create => FileEventKind::Create,
        WatchKind::Modify => FileEventKind::Modify,
        WatchKind::Remove => FileEventKind::Remove,
        WatchKind::Rename => FileEventKind::Rename,
        WatchKind::Chmod => FileEventKind::Chmod,
        WatchKind::Overflow => FileEventKind::Overflow,
    };
    FileChange { kind, name: event.name, from: event.from }
}

fn failed(error: AgentError) -> Error {
    match error {
        AgentError::Failed(failure) => match failure.kind {
            FailureKind::Limit => Error::new(ErrorResponseCode::RateLimitExceeded, failure.message),
            FailureKind::Invalid | FailureKind::UnknownUser => Error::invalid(failure.message),
            FailureKind::FileNotFound => Error::new(ErrorResponseCode::NotFound, failure.message),
            FailureKind::PermissionDenied => {
                Error { forbidden: true, ..Error::new(ErrorResponseCode::FileError, failure.message) }
            }
            _ => Error::new(ErrorResponseCode::FileError, failure.message),
        },
        AgentError::Lacking { .. } => Error::new(ErrorResponseCode::RebuildRequired, error.to_string()),
        AgentError::Closed => {
            let message = "the watch was ended by a snapshot of the sandbox; watch the directory again";
            Error::new(ErrorResponseCode::TransitionInProgress, message)
        }
        AgentError::Timeout { .. } => {
            Error::new(ErrorResponseCode::ExecTimeout, "the sandbox did not answer in time; watch the directory again")
        }
        other => {
            tracing::warn!(error = %chain(&other), "a watch failed");
            Error::new(ErrorResponseCode::ExecFailed, "the sandbox stopped answering; create a new one")
        }
    }
}

#[cfg(test)]
mod tests {
    use nullspace_guest::capability::Capability;
    use nullspace_guest::message::Failure;

    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let refused = |kind| failed(AgentError::Failed(Failure { kind, message: "It says why.".into() }));
        for (kind, code) in [
            (FailureKind::Limit, ErrorResponseCode::RateLimitExceeded),
            (FailureKind::Invalid, ErrorResponseCode::InvalidRequest),
            (FailureKind::FileNotFound, ErrorResponseCode::NotFound),
            (FailureKind::PermissionDenied, ErrorResponseCode::FileError),
        ] {
            let error = refused(kind);
            assert_eq!((error.code, error.message.as_str()), (code, "It says why."));
        }
        let error = failed(AgentError::Lacking { capability: Capability::Watch, version: 7 });
        assert!(error.message.contains("cannot watch directories: build the template again"), "{}", error.message);
        assert!(failed(AgentError::Closed).message.contains("watch the directory again"));
    }
}
