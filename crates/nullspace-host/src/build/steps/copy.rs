//! Copies files from the blob store into the guest: streamed and checked against their ids, never whole in memory.

use nullspace_api::TemplateFailurePhase as Phase;
use nullspace_data::{ArtifactStore, Scratch};
use nullspace_definition::context::PlannedContext;
use nullspace_definition::steps::{self, Copy, SourceEntry};
use nullspace_guest::file::{CopyEntry, CopyTo};
use nullspace_guest::host::{Agent, AgentError, CopyWriter};
use nullspace_host_interface::BuildFailure;
use nullspace_types::{Blob, BlobId, TenantId};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use crate::failures;

/// Bytes of one read from a blob.
const PIECE: usize = 64 * 1024;

/// The reasons for which a copy fails.
pub(crate) enum Failed {
    Agent(AgentError),
    Build(BuildFailure),
}

impl From<AgentError> for Failed {
    fn from(error: AgentError) -> Failed {
        Failed::Agent(error)
    }
}

fn lost(what: impl std::fmt::Display) -> Failed {
    Failed::Build(BuildFailure::internal(Phase::BuildStep, &what))
}

/// Copies the sources, one after the other.
pub(crate) async fn copy(
    files: &ArtifactStore,
    tenant: TenantId,
    agent: &Agent,
    context: &PlannedContext,
    cwd: &str,
    copy: &Copy<'_>,
) -> Result<(), Failed> {
    let scratch = files.scratch().map_err(|error| Failed::Build(failures::data(Phase::BuildStep, &error)))?;
    for source in copy.sources.iter().flat_map(|source| steps::resolve(context, source)) {
        let to = CopyTo {
            dst: copy.dst.to_owned(),
            name: source.name.clone(),
            owner: copy.user.map(str::to_owned),
            mode: copy.mode_bits(),
        };
        let mut writer = agent.copy(cwd, to).await?;
        for entry in &source.entries {
            self::entry(files, tenant, &scratch, &mut writer, entry).await?;
        }
        writer.finish().await?;
    }
    Ok(())
}

async fn entry(
    files: &ArtifactStore,
    tenant: TenantId,
    scratch: &Scratch,
    writer: &mut CopyWriter,
    entry: &SourceEntry,
) -> Result<(), Failed> {
    let id: Option<BlobId> = entry.blob.as_ref().map(|id| id.parse()).transpose().map_err(lost)?;
    let bytes = id.as_ref().map_or(0, BlobId::bytes);
    // Before its header: a stream that has begun cannot wait for a download.
    let path = match &id {
        None => None,
        Some(id) => {
            let found = files.blob_file(&Blob { tenant, id: id.clone() }, scratch).await;
            let found = found.map_err(|error| failures::context_file(Phase::BuildStep, &entry.path, &error));
            Some(
                found
                    .and_then(|found| found.ok_or_else(|| failures::missing_file(&entry.path)))
                    .map_err(Failed::Build)?,
            )
        }
    };
    let header = CopyEntry { path: entry.path.clone(), dir: id.is_none(), mode: entry.mode, bytes };
    writer.entry(&header).await?;
    let (Some(id), Some(path)) = (id, path) else { return Ok(()) };
    let mut file = tokio::fs::File::open(&path).await.map_err(lost)?;
    if path.starts_with(scratch.path()) {
        // A name for this copy alone; the open file needs none.
        tokio::fs::remove_file(&path).await.map_err(lost)?;
    }
    let mut hash = Sha256::new();
    let mut left = bytes;
    let mut buffer = vec![0; PIECE];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let piece = buffer.get_mut(..most).unwrap_or_default();
        let read = file.read(piece).await.map_err(lost)?;
        if read == 0 {
            return Err(lost(format_args!("blob {id} is shorter than its name says")));
        }
        let piece = piece.get(..read).unwrap_or_default();
        hash.update(piece);
        writer.write(piece).await?;
        left = left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
    }
    if hex::encode(hash.finalize()) != id.sha256() {
        return Err(lost(format_args!("blob {id} is damaged")));
    }
    Ok(())
}
