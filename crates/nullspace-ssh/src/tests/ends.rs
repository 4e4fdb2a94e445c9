//! Connections end with their access, with the service, and when they are idle.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::process::Child;

use super::support::{Server, eventually, keys};
use crate::settings::SshLimits;

/// A client with a command that runs on.
async fn running(server: &Server) -> Child {
    let mut client = server.ssh(&[], &["echo on; sleep 60"]).stdout(Stdio::piped()).spawn().unwrap();
    client.stdout.as_mut().unwrap().read_u8().await.unwrap();
    client
}

/// The client ends within this time. Returns the time that it took.
async fn ends(mut client: Child, within: Duration) -> Duration {
    let began = Instant::now();
    let status = tokio::time::timeout(within, client.wait()).await.expect("the connection stays open").unwrap();
    assert_eq!(status.code(), Some(255));
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_access_ends_its_connections_with_their_commands() {
    let server = Server::start().await;
    let client = running(&server).await;
    server.fake.revoke(server.access);
    ends(client, Duration::from_secs(5)).await;
    eventually("SIGHUP for the command", || server.fake.inside.called("signal 1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_access_ends_its_connections() {
    let mut server = Server::start().await;
    server.grant(keys(), 3);
    let client = running(&server).await;
    ends(client, Duration::from_secs(8)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_channel_ends_after_a_while() {
    let server = Server::with(SshLimits { idle: Duration::from_millis(1500), ..SshLimits::default() }).await;
    let client = server.ssh(&["-N"], &[]).spawn().unwrap();
    let took = ends(client, Duration::from_secs(10)).await;
    assert!(took >= Duration::from_secs(1), "after {took:?}");
}
