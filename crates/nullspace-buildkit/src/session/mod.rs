//! The session of a build: HTTP/2 in which BuildKit asks and this side answers.
//!
//! ```text
//!   FileSync.DiffCopy    dir-name: context | dockerfile     -> sync      files as BuildKit asks for them
//!   FileSend.DiffCopy    the image's archive                -> receive   into the job's file
//!   Secrets.GetSecret, Auth.Credentials                     -> vault     values by name and host
//!   Health.Check                                            -> serving
//! ```
//! A session serves one job and ends with it.

mod receive;
mod sync;
mod vault;

use std::sync::Arc;

use bollard_buildkit_proto::health::health_server::{Health, HealthServer};
use bollard_buildkit_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
    health_check_response::ServingStatus,
};
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use bollard_buildkit_proto::moby::filesync::v1::auth_server::AuthServer;
use bollard_buildkit_proto::moby::filesync::v1::file_send_server::FileSendServer;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::FileSyncServer;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::Stream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::job::Job;

pub(crate) use receive::{Archives, Broken};

/// A byte stream to or from a BuildKit.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
pub(crate) type Io = Box<dyn Duplex>;

/// Largest message that is taken, bytes.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;
/// What a peer may send before it waits for us, bytes: each stream's, and the connection's.
const WINDOW: u32 = 1 << 20;

/// What BuildKit is told that it may ask.
const METHODS: [&str; 5] = [
    "/grpc.health.v1.Health/Check",
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/moby.filesync.v1.FileSend/DiffCopy",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.filesync.v1.Auth/Credentials",
];

/// The headers that announce a session: its id, a name, what may be reused with the same key, and the methods.
pub(crate) fn headers(id: &str, key: &str) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("x-docker-expose-session-uuid", id.to_owned()),
        ("x-docker-expose-session-name", "nullspace".to_owned()),
        ("x-docker-expose-session-sharedkey", key.to_owned()),
    ];
    headers.extend(METHODS.map(|method| ("x-docker-expose-session-grpc-method", method.to_owned())));
    headers
}

/// Answers on a connection until its other side closes it.
pub(crate) async fn serve(io: Io, job: Arc<Job>, archives: Arc<Archives>) -> Result<(), hyper::Error> {
    let files = sync::Files::new(&job);
    let vault = vault::Vault::new(Arc::clone(&job));
    let routes = Routes::new(HealthServer::new(Serving))
        .add_service(FileSyncServer::new(files).max_decoding_message_size(MAX_MESSAGE))
        .add_service(FileSendServer::from_arc(archives).max_decoding_message_size(MAX_MESSAGE))
        .add_service(SecretsServer::new(vault.clone()))
        .add_service(AuthServer::new(vault))
        .prepare();
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .max_concurrent_streams(256)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(routes))
        .await
}

struct Serving;

#[async_trait::async_trait]
impl Health for Serving {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("one health for all"))
    }

    type WatchStream = std::pin::Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("ask with Check"))
    }
}
