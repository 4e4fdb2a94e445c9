//! FileSend: the image's archive, written to the job's file as it comes.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bollard_buildkit_proto::moby::filesync::v1::BytesMessage;
use bollard_buildkit_proto::moby::filesync::v1::file_send_server::FileSend;
use tokio::io::AsyncWriteExt;
use tokio_stream::{Empty, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::error::Error;

/// Takes archives, of which a job has one.
#[derive(Debug)]
pub(crate) struct Archives {
    path: PathBuf,
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    begun: bool,
    whole: bool,
    /// Why it is not whole, where it was this side's doing.
    fault: Option<Error>,
}

impl Archives {
    pub(crate) fn new(path: PathBuf, limit: u64) -> Archives {
        Archives { path, limit, state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the archive has come, whole.
    pub(crate) fn is_whole(&self) -> bool {
        self.state().whole
    }

    /// This side's reason that it has not.
    pub(crate) fn take_fault(&self) -> Option<Error> {
        self.state().fault.take()
    }

    /// Writes the pieces of a stream to the job's file.
    pub(crate) async fn write<T: AsRef<[u8]>, E>(
        &self,
        mut pieces: impl tokio_stream::Stream<Item = Result<T, E>> + Unpin,
    ) -> Result<(), Broken<E>> {
        let failed = |source| Broken::Ours(Error::Io { what: "write the image's archive", source });
        let file = tokio::fs::File::create_new(&self.path).await.map_err(failed)?;
        let mut file = tokio::io::BufWriter::with_capacity(1 << 20, file);
        let mut written: u64 = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(Broken::Theirs)?;
            let piece = piece.as_ref();
            written = written.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
            if written > self.limit {
                return Err(Broken::Ours(Error::TooLarge { limit: self.limit }));
            }
            file.write_all(piece).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)
    }
}

/// Which side a stream broke on.
pub(crate) enum Broken<E> {
    Ours(Error),
    Theirs(E),
}

#[async_trait::async_trait]
impl FileSend for Archives {
    type DiffCopyStream = Empty<Result<BytesMessage, Status>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        {
            let mut state = self.state();
            if std::mem::replace(&mut state.begun, true) {
                return Err(Status::already_exists("one archive was asked for"));
            }
        }
        match self.write(request.into_inner().map(|piece| piece.map(|piece| piece.data))).await {
            Ok(()) => {
                self.state().whole = true;
                Ok(Response::new(tokio_stream::empty()))
            }
            Err(Broken::Theirs(status)) => Err(status),
            Err(Broken::Ours(error)) => {
                let status = Status::internal(error.to_string());
                self.state().fault = Some(error);
                Err(status)
            }
        }
    }
}
