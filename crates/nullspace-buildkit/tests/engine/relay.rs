//! Sockets of a buildkitd in front of a Docker Engine's BuildKit: each connection becomes one `POST /grpc`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// An authority, and a server's and a client's certificates that it signed.
pub(crate) struct Certificates {
    pub(crate) authority: PathBuf,
    pub(crate) server: (PathBuf, PathBuf),
    pub(crate) client: (PathBuf, PathBuf),
}

impl Certificates {
    pub(crate) fn make(dir: &Path) -> Certificates {
        std::fs::create_dir_all(dir).unwrap();
        let openssl = |arguments: &[&str]| {
            let output = Command::new("openssl").args(arguments).current_dir(dir).output().expect("run openssl");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let ca = ["req", "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"];
        openssl(&[&ca[..], &key].concat());
        for (name, extra) in [("server", "subjectAltName=DNS:localhost"), ("client", "extendedKeyUsage=clientAuth")] {
            let (out, keyout, subject) = (format!("{name}.pem"), format!("{name}.key"), format!("/CN={name}"));
            let request = ["req", "-x509", "-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key"];
            let own = ["-subj", &subject, "-addext", extra, "-addext", "basicConstraints=critical,CA:FALSE"];
            openssl(&[&request[..], &own, &["-keyout", &keyout, "-out", &out], &key].concat());
        }
        let pair = |name: &str| (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        Certificates { authority: dir.join("ca.pem"), server: pair("server"), client: pair("client") }
    }
}

/// A plain socket; its path.
pub(crate) async fn unix(engine: &Path, dir: &Path) -> PathBuf {
    let path = dir.join("buildkitd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let engine = engine.to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(relay(stream, engine.clone()));
        }
    });
    path
}

/// TCP with mutual TLS; its port.
pub(crate) async fn tls(engine: &Path, certificates: &Certificates) -> u16 {
    let chain = |path: &Path| CertificateDer::pem_file_iter(path).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(chain(&certificates.authority).remove(0)).unwrap();
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let key = PrivateKeyDer::from_pem_file(&certificates.server.1).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(chain(&certificates.server.0), key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let engine = engine.to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, engine) = (acceptor.clone(), engine.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await?;
                relay(stream, engine).await
            });
        }
    });
    port
}

async fn relay(mut stream: impl AsyncRead + AsyncWrite + Unpin, engine: PathBuf) -> io::Result<()> {
    let mut engine = UnixStream::connect(engine).await?;
    engine.write_all(b"POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n").await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(engine.read_u8().await?);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    tokio::io::copy_bidirectional(&mut stream, &mut engine).await.map(drop)
}
