//! Files and processes of sandboxes: the HTTP layer's requests, done by the engine.

use async_trait::async_trait;
use futures::{StreamExt, stream};
use nullspace_api::{FileInfo, ProcessLogs};
use nullspace_server::{Caller, FileAt, FileContent, FileDownload, FileService, Room, ServiceError};

use crate::service::{EngineService, domain, error};

fn engine_at(at: FileAt) -> nullspace_engine::FileAt {
    nullspace_engine::FileAt { sandbox_id: at.sandbox_id, path: at.path, user: at.user }
}

#[async_trait]
impl FileService for EngineService {
    async fn read_file(&self, caller: &Caller, at: FileAt) -> Result<FileDownload, ServiceError> {
        let download = self.0.read_file(&domain(caller)?, engine_at(at)).await.map_err(error)?;
        let info = download.info.clone();
        let content = stream::unfold(Some(download), |download| async move {
            let mut download = download?;
            match download.next().await {
                Ok(None) => None,
                Ok(Some(piece)) => Some((Ok(piece), Some(download))),
                Err(failed) => Some((Err(error(failed)), None)),
            }
        });
        Ok(FileDownload { info, content: content.boxed() })
    }

    async fn write_file(
        &self,
        caller: &Caller,
        at: FileAt,
        mut content: FileContent,
    ) -> Result<FileInfo, ServiceError> {
        let mut upload = self.0.write_file(&domain(caller)?, engine_at(at)).await.map_err(error)?;
        while let Some(piece) = content.next().await {
            upload.write(&piece?).await.map_err(error)?;
        }
        upload.finish().await.map_err(error)
    }

    async fn list_files(
        &self,
        caller: &Caller,
        at: FileAt,
        depth: u32,
        room: &Room,
    ) -> Result<Vec<FileInfo>, ServiceError> {
        let mut exhausted = None;
        let may_keep = |bytes| room.grow(bytes).map_err(|refused| exhausted = Some(refused)).is_ok();
        let listed = self.0.list_files(&domain(caller)?, engine_at(at), depth, may_keep).await;
        match exhausted {
            Some(exhausted) => Err(exhausted.into()),
            None => listed.map_err(error),
        }
    }

    async fn file_info(&self, caller: &Caller, at: FileAt) -> Result<FileInfo, ServiceError> {
        self.0.file_info(&domain(caller)?, engine_at(at)).await.map_err(error)
    }

    async fn file_exists(&self, caller: &Caller, at: FileAt) -> Result<bool, ServiceError> {
        self.0.file_exists(&domain(caller)?, engine_at(at)).await.map_err(error)
    }

    async fn make_dir(&self, caller: &Caller, at: FileAt) -> Result<(), ServiceError> {
        self.0.make_dir(&domain(caller)?, engine_at(at)).await.map(drop).map_err(error)
    }

    async fn remove_file(&self, caller: &Caller, at: FileAt) -> Result<(), ServiceError> {
        self.0.remove_file(&domain(caller)?, engine_at(at)).await.map_err(error)
    }

    async fn rename_file(&self, caller: &Caller, at: FileAt, to: String) -> Result<FileInfo, ServiceError> {
        self.0.rename_file(&domain(caller)?, engine_at(at), to).await.map_err(error)
    }

    async fn set_file_permissions(&self, caller: &Caller, at: FileAt, permissions: &str) -> Result<(), ServiceError> {
        self.0.set_file_permissions(&domain(caller)?, engine_at(at), permissions).await.map_err(error)
    }

    async fn kill_process(&self, caller: &Caller, id: &str, pid: u32) -> Result<(), ServiceError> {
        self.0.kill_process(&domain(caller)?, id, pid).await.map_err(error)
    }

    async fn process_logs(&self, caller: &Caller, id: &str, pid: u32) -> Result<ProcessLogs, ServiceError> {
        self.0.process_logs(&domain(caller)?, id, pid).await.map_err(error)
    }
}
