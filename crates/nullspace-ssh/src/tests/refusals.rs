//! Who is not let in.

use std::time::{Duration, Instant};

use nullspace_types::SandboxId;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::support::{Server, keys, output};
use crate::authority::SshKeys;
use crate::settings::SshLimits;

/// The client is refused, without anything run.
async fn refused(server: &Server, user: &str, why: &str) {
    let ran = output(server.ssh_as(user, &[], &["true"]), b"").await;
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(255), "{why}: {said}");
    assert!(said.contains("Permission denied (publickey)"), "{why}: {said}");
    assert!(server.fake.inside.calls.lock().unwrap().is_empty(), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_certificate_of_this_service_for_this_sandbox_and_time_lets_in() {
    let mut server = Server::start().await;
    let sandbox = server.sandbox.to_string();
    refused(&server, &SandboxId::new().to_string(), "another sandbox").await;
    refused(&server, "root", "a name that is no sandbox").await;

    server.fake.revoke(server.access);
    refused(&server, &sandbox, "an access that is over").await;

    server.grant(SshKeys::parse(&SshKeys::generate().unwrap(), &SshKeys::generate().unwrap()).unwrap(), 600);
    refused(&server, &sandbox, "another authority").await;

    server.grant(keys(), 1);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    refused(&server, &sandbox, "a certificate that has expired").await;

    server.grant(keys(), 600);
    let certificate = server.path("key-cert.pub");
    std::fs::rename(&certificate, server.path("elsewhere")).unwrap();
    refused(&server, &sandbox, "the key without its certificate").await;
    std::fs::rename(server.path("elsewhere"), &certificate).unwrap();
    let ran = output(server.ssh(&[], &["echo in"]), b"").await;
    assert_eq!(ran.stdout, b"in\n", "{}", String::from_utf8_lossy(&ran.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_shows_no_certificate_ends_and_an_address_has_few_of_them() {
    let limits = SshLimits {
        authentication: Duration::from_millis(700),
        unauthenticated_per_address: 2,
        ..SshLimits::default()
    };
    let server = Server::with(limits).await;
    let began = Instant::now();
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        let mut banner = [0; 17];
        socket.read_exact(&mut banner).await.unwrap();
        assert_eq!(&banner, b"SSH-2.0-nullspace");
        held.push(socket);
    }
    let mut third = TcpStream::connect(server.address).await.unwrap();
    assert!(matches!(third.read(&mut [0; 17]).await, Ok(0) | Err(_)), "a third one is served");
    for mut socket in held {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "it stays open without a certificate");
    }
    assert!(began.elapsed() >= Duration::from_millis(600), "it ended too early");
    let ran = output(server.ssh(&[], &["echo in"]), b"").await;
    assert_eq!(ran.stdout, b"in\n", "the places were not given back: {}", String::from_utf8_lossy(&ran.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_has_a_bounded_number_of_connections() {
    let server = Server::with(SshLimits { per_sandbox: 1, ..SshLimits::default() }).await;
    let mut first = server.ssh(&[], &["echo on; sleep 30"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    first.stdout.as_mut().unwrap().read_u8().await.unwrap();
    let ran = output(server.ssh(&[], &["true"]), b"").await;
    assert_eq!(ran.status.code(), Some(255));
    first.kill().await.unwrap();
}
