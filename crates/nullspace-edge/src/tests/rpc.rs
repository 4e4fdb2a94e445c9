//! HTTP/2 on both sides, as gRPC uses it: a client, the edge, and a server that speaks nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::support::{DOMAIN, SOON, Speaks, World, server};
use crate::EdgeLimits;

/// A body of frames that somebody sends.
struct Frames(mpsc::UnboundedReceiver<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

fn frames() -> (mpsc::UnboundedSender<Frame<Bytes>>, Frames) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Frames(receiver))
}

/// A server that answers each message with the same one in capitals, and ends with trailers.
async fn calls() -> SocketAddr {
    server(|stream| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            assert_eq!((request.version(), request.method().as_str()), (Version::HTTP_2, "POST"));
            assert_eq!(request.headers()["te"], "trailers");
            assert!(request.uri().authority().is_some_and(|authority| authority.as_str().ends_with(DOMAIN)));
            let path = request.uri().path().to_owned();
            let (sender, body) = frames();
            let mut asked = request.into_body();
            tokio::spawn(async move {
                let mut count = 0;
                while let Some(Ok(frame)) = asked.frame().await {
                    let Ok(data) = frame.into_data() else { break };
                    // The end of a stream may come with a frame of its own.
                    if data.is_empty() {
                        continue;
                    }
                    count += 1;
                    let _ = sender.send(Frame::data(data.to_ascii_uppercase().into()));
                }
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                trailers.insert("grpc-message", format!("{count} to {path}").parse().unwrap());
                trailers.insert("x-nullspace-edge-error", "not_found".parse().unwrap());
                let _ = sender.send(Frame::trailers(trailers));
            });
            let response = Response::builder().header("content-type", "application/grpc").body(body).unwrap();
            Ok::<_, Infallible>(response)
        });
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    })
    .await
}

#[tokio::test]
async fn calls_stream_both_ways_and_end_with_trailers() {
    let world = World::speaking(Speaks::Http2, Some(calls().await), EdgeLimits::default()).await;
    let stream = TcpStream::connect(world.address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let url = format!("http://8000-{}.{DOMAIN}/pkg.Service/Talk", world.doors.sandbox);
    let call = async |number: usize| {
        let mut sender = sender.clone();
        let (messages, body) = frames();
        let request = Request::post(&url).header("te", "trailers").header("content-type", "application/grpc");
        messages.send(Frame::data("first".into())).unwrap();
        let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (200, &"application/grpc".parse().unwrap())
        );
        let mut body = response.into_body();
        let mut next = async || body.frame().await.unwrap().unwrap();
        assert_eq!(next().await.into_data().unwrap(), "FIRST");
        // Each is sent when the one before has come back: nothing waits for the end of a body.
        for round in 0..10 {
            let message = format!("message {round} of call {number}");
            messages.send(Frame::data(message.clone().into())).unwrap();
            assert_eq!(next().await.into_data().unwrap(), message.to_ascii_uppercase());
        }
        drop(messages);
        let trailers = next().await.into_trailers().unwrap();
        assert_eq!((&trailers["grpc-status"], trailers.len()), (&"0".parse().unwrap(), 2), "{trailers:?}");
        assert_eq!(trailers["grpc-message"], "11 to /pkg.Service/Talk");
    };
    let all = async {
        call(0).await;
        futures::future::join_all((1..20).map(call)).await;
    };
    tokio::time::timeout(SOON, all).await.expect("all calls end");
    assert_eq!(world.dials(), 1, "calls share a connection");
    assert!(world.edge.is_empty());
    assert!(world.doors.counts.from_client.load(Ordering::Relaxed) > 20 * 10 * 15);
}
