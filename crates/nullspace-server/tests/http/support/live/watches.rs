//! Changes of files in a running sandbox, told as they happen: the fake's.

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use nullspace_api::{ErrorResponseCode, FileEventKind};
use nullspace_service::{Error, FileAt, FileChange, LiveWatches, Result, WatchedDir};

use super::Live;

fn change(kind: FileEventKind, name: &str, from: Option<&str>) -> Result<FileChange> {
    Ok(FileChange { kind, name: name.into(), from: from.map(Into::into) })
}

/// `/quiet` tells nothing, `/gone` is removed after one change, `/none` does not exist. Any other directory has four changes and
/// is then quiet.
#[async_trait]
impl LiveWatches for Live {
    async fn watch_dir(self: Arc<Self>, at: FileAt, recursive: bool) -> Result<WatchedDir> {
        self.fake.call(format!("watch_dir {} {recursive}", self.shown(&at)));
        let changes = match at.path.as_str() {
            "/none" => return Err(Error::new(ErrorResponseCode::NotFound, "`/none` does not exist.")),
            "/quiet" => stream::pending().boxed(),
            "/gone" => {
                let gone = Error::new(ErrorResponseCode::NotFound, "`/gone` was removed.");
                stream::iter([change(FileEventKind::Remove, "a", None), Err(gone)]).boxed()
            }
            _ => stream::iter([
                change(FileEventKind::Create, "sub/a", None),
                change(FileEventKind::Rename, "b", Some("sub/a")),
                change(FileEventKind::Chmod, "b", None),
                change(FileEventKind::Overflow, "", None),
            ])
            .chain(stream::pending())
            .boxed(),
        };
        Ok(WatchedDir { path: at.path, changes })
    }
}
