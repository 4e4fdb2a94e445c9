//! Connections to a BuildKit: one for our requests, and the session for its requests.
//!
//! ```text
//!   Docker Engine   socket ── POST /grpc, Upgrade: h2c ──> 101 ──> HTTP/2, we ask
//!                   socket ── POST /session, … ─────────> 101 ──> HTTP/2, BuildKit asks
//!   buildkitd       socket or TLS ──> HTTP/2, we ask;  Control.Session carries the other one's bytes
//! ```

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio_stream::StreamExt;
use tokio_util::io::ReaderStream;
use tonic::transport::Channel;

use crate::endpoint::Endpoint;
use crate::session::{self, Duplex, Io, MAX_MESSAGE};

/// Time limit to connect.
const CONNECT: Duration = Duration::from_secs(10);
/// Time limit from a request to an engine's API to its answer's head. An engine may first write gigabytes to its disk.
const ANSWER: Duration = Duration::from_secs(600);
/// A dead peer on TCP is noticed after about so long.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Bytes of a session in flight, when it travels inside another connection.
const TUNNEL: usize = 256 << 10;

/// The identities for TLS: buildkitd's authority, and our certificate.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
}

/// Certificates or keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no PEM of its kind.
    #[error("{file}: {source}")]
    Pem {
        /// Which.
        file: String,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The parts do not fit together.
    #[error("certificates for BuildKit: {0}")]
    Config(#[from] rustls::Error),
}

impl Tls {
    /// From PEM files: the authority that signed buildkitd's certificate, and our certificate with its key.
    pub fn read(authority: &Path, certificate: &Path, key: &Path) -> Result<Tls, TlsError> {
        let pem = |path: &Path| {
            let file = path.display().to_string();
            move |source| TlsError::Pem { file, source }
        };
        let chain = |path: &Path| {
            CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(pem(path))
        };
        let mut roots = rustls::RootCertStore::empty();
        for root in chain(authority)? {
            roots.add(root)?;
        }
        let key = PrivateKeyDer::from_pem_file(key).map_err(pem(key))?;
        // Named: several providers may be linked into one program.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain(certificate)?, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Tls { config: Arc::new(config) })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// Opens streams to a BuildKit that this host has no address for.
#[async_trait]
pub trait Dial: fmt::Debug + Send + Sync {
    /// A stream to its socket.
    async fn dial(&self) -> io::Result<Box<dyn Duplex>>;
}

/// Opens connections to one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    pub(crate) endpoint: Endpoint,
    pub(crate) tls: Option<Tls>,
    /// Opens the streams, instead of this host.
    pub(crate) through: Option<Arc<dyn Dial>>,
    /// Time limit to connect.
    pub(crate) patience: Duration,
}

impl Connector {
    pub(crate) fn new(endpoint: Endpoint, tls: Option<Tls>) -> Connector {
        Connector { endpoint, tls, through: None, patience: CONNECT }
    }

    async fn dial(&self) -> io::Result<Io> {
        let dialled = async {
            if let Some(through) = &self.through {
                return through.dial().await;
            }
            match &self.endpoint {
                Endpoint::Docker(path) | Endpoint::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?) as Io),
                Endpoint::Tcp { host, port } => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                    rustix::net::sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
                    rustix::net::sockopt::set_tcp_keepintvl(&stream, KEEPALIVE / 3)?;
                    rustix::net::sockopt::set_tcp_keepcnt(&stream, 3)?;
                    let Some(tls) = &self.tls else { return Ok(Box::new(stream) as Io) };
                    let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&tls.config));
                    Ok(Box::new(connector.connect(name, stream).await?) as Io)
                }
            }
        };
        tokio::time::timeout(self.patience, dialled).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// A request to a Docker Engine that makes its connection HTTP/2.
    async fn upgrade(&self, path: &str, headers: &[(&'static str, String)]) -> io::Result<Io> {
        let upgraded = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(self.dial().await?))
                .await
                .map_err(io::Error::other)?;
            // Ends when the connection becomes another's, or breaks.
            tokio::spawn(connection.with_upgrades());
            let mut request = Request::builder()
                .method(Method::POST)
                .uri(path)
                .header(HOST, "docker")
                .header(CONNECTION, "Upgrade")
                .header(UPGRADE, "h2c");
            for (name, value) in headers {
                request = request.header(*name, HeaderValue::from_str(value).map_err(io::Error::other)?);
            }
            let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
            let response = sender.send_request(request).await.map_err(io::Error::other)?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let status = response.status();
                return Err(io::Error::other(format!("POST {path} was answered with {status}: is BuildKit in it?")));
            }
            let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
            Ok(Box::new(TokioIo::new(upgraded)) as Io)
        };
        tokio::time::timeout(self.patience, upgraded).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// The connection on which BuildKit is asked. It is not made anew when it breaks: what was asked on it is lost too.
    pub(crate) async fn control(&self) -> io::Result<ControlClient<Channel>> {
        let io = match &self.endpoint {
            Endpoint::Docker(_) => self.upgrade("/grpc", &[]).await?,
            _ => self.dial().await?,
        };
        let mut once = Some(TokioIo::new(io));
        let connector = tower::service_fn(move |_: Uri| {
            let io = once.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
            std::future::ready(io)
        });
        let channel = tonic::transport::Endpoint::from_static("http://buildkit")
            .connect_timeout(self.patience)
            .connect_with_connector(connector)
            .await
            .map_err(io::Error::other)?;
        Ok(ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
    }

    /// The connection on which BuildKit asks. For buildkitd it lies inside `control`; the future that comes with it moves
    /// its bytes and is to be polled beside it.
    pub(crate) async fn session(
        &self,
        control: &mut ControlClient<Channel>,
        id: &str,
        key: &str,
    ) -> io::Result<(Io, futures::future::BoxFuture<'static, ()>)> {
        let headers = session::headers(id, key);
        if let Endpoint::Docker(_) = &self.endpoint {
            return Ok((self.upgrade("/session", &headers).await?, Box::pin(std::future::pending())));
        }
        let (ours, theirs) = tokio::io::duplex(TUNNEL);
        let (from_us, mut to_us) = tokio::io::split(theirs);
        let outgoing = ReaderStream::with_capacity(from_us, 32 << 10).map_while(|piece| {
            let data = piece.ok()?.to_vec();
            Some(BytesMessage { data })
        });
        let mut request = tonic::Request::new(outgoing);
        for (name, value) in headers {
            let value = value.parse().map_err(io::Error::other)?;
            request.metadata_mut().append(name, value);
        }
        let answered = tokio::time::timeout(self.patience, control.session(request)).await;
        let answered = answered.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(io::Error::other)?;
        let mut incoming = answered.into_inner();
        let moving = async move {
            while let Ok(Some(message)) = incoming.message().await {
                if to_us.write_all(&message.data).await.is_err() {
                    break;
                }
            }
            let _ = to_us.shutdown().await;
        };
        Ok((Box::new(ours), Box::pin(moving)))
    }

    /// A request to a Docker Engine's API on a connection of its own.
    pub(crate) async fn api(&self, method: Method, path: &str) -> io::Result<hyper::Response<hyper::body::Incoming>> {
        let answered = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(self.dial().await?))
                .await
                .map_err(io::Error::other)?;
            // Ends with the response's body.
            tokio::spawn(connection);
            let request =
                Request::builder().method(method).uri(path).header(HOST, "docker").body(Empty::<Bytes>::new());
            sender.send_request(request.map_err(io::Error::other)?).await.map_err(io::Error::other)
        };
        tokio::time::timeout(ANSWER, answered).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}
