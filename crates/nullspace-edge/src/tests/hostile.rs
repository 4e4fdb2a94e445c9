//! The table of hostile requests.

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Method, Request, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::support::{DOMAIN, SOON, Speaks, World, echo, send, status};
use crate::EdgeLimits;

/// The bytes that a line of the table stands for.
fn bytes(line: &str) -> Vec<u8> {
    let (mut bytes, mut left) = (Vec::new(), line.as_bytes());
    while let Some((byte, rest)) = left.split_first() {
        left = rest;
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        let (escape, rest) = left.split_first().expect("something after a backslash");
        left = rest;
        bytes.push(match escape {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'x' => {
                let digits = std::str::from_utf8(&left[..2]).expect("two digits");
                left = &left[2..];
                u8::from_str_radix(digits, 16).expect("hexadecimal digits")
            }
            other => panic!("unknown escape {other}"),
        });
    }
    bytes
}

#[tokio::test]
async fn hostile_requests_are_answered_as_the_table_says() {
    let world = World::echoing().await;
    let table = include_str!("../../tests/hostile/requests.txt");
    let (mut cases, mut wrong) = (0, Vec::new());
    let mut lines = table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).peekable();
    while let Some(title) = lines.next() {
        let (expected, name) = title.strip_prefix("== ").and_then(|rest| rest.split_once(' ')).expect("a title");
        let mut request = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("== ")) {
            let line = line
                .replace("{ID}", &world.doors.sandbox.to_string())
                .replace("{OTHER}", "sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506")
                .replace("{D}", DOMAIN);
            request.extend(bytes(&line));
        }
        // A second request ends the connection, where the first one does not.
        request.extend(b"GET / HTTP/1.1\r\nHost: end\r\nConnection: close\r\n\r\n");
        let answer = send(world.address, &request).await;
        let expected = if expected == "api" { "418" } else { expected };
        let answers = answer.matches("HTTP/1.1 ").count();
        if status(&answer) != expected || (expected == "400" && answers != 1) {
            wrong.push(format!("{name}: expected {expected}, got {answers} answers: {answer}"));
        }
        cases += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases > 50, "{cases}");
}

#[tokio::test]
async fn too_large_heads_are_refused() {
    let world = World::echoing().await;
    let prefix = world.prefix();
    let many: String = (0..128).map(|at| format!("A{at}: b\r\n")).collect();
    assert_eq!(status(&world.get(&format!("{prefix}/"), &many).await), "431");
    let long = format!("A: {}\r\n", "b".repeat(65 << 10));
    assert_eq!(status(&world.get(&format!("{prefix}/"), &long).await), "431");
    let most: String = (0..120).map(|at| format!("A{at}: b\r\n")).collect();
    assert_eq!(status(&world.get(&format!("{prefix}/"), &most).await), "200");
}

#[tokio::test]
async fn the_second_request_of_a_connection_is_looked_at_like_the_first() {
    let world = World::echoing().await;
    let prefix = world.prefix();
    for body in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        let answer = world
            .send(&format!(
                "POST {prefix}/ HTTP/1.1\r\nHost: api\r\n{body}POST {prefix}/ HTTP/1.1\r\nHost: api\r\nContent-Length: 1\r\n\
                 Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ))
            .await;
        let statuses: Vec<_> = answer.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(statuses, ["200", "400"], "{answer}");
        assert!(answer.contains("hello"), "{answer}");
    }
}

#[tokio::test]
async fn the_hosts_of_http2_requests_are_read_as_strictly() {
    let world = World::speaking(Speaks::Http2, Some(echo().await), EdgeLimits::default()).await;
    let stream = TcpStream::connect(world.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let id = world.doors.sandbox;
    let ours = format!("8000-{id}.{DOMAIN}");
    let other = format!("8000-sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506.{DOMAIN}");
    let (api, path) = ("api".to_owned(), format!("/p/{id}/8000/"));
    for (authority, host, path, expected) in [
        (&ours, vec![], "/", 200),
        (&ours, vec![&ours], "/", 200),
        (&ours, vec![&api], "/v1/sandboxes", 400),
        (&api, vec![&ours], "/v1/sandboxes", 400),
        (&ours, vec![&other], "/", 400),
        (&ours, vec![&ours, &ours], "/", 400),
        (&format!("u@{ours}"), vec![], "/", 400),
        (&other, vec![], "/", 404),
        (&format!("0-{id}.{DOMAIN}"), vec![], "/", 404),
        (&format!("65536-{id}.{DOMAIN}"), vec![], "/", 404),
        (&format!("8000-{id}.PORTS.example.com"), vec![], "/v1/sandboxes", 404),
        (&format!("api.{DOMAIN}"), vec![], "/v1/sandboxes", 404),
        (&api, vec![], path.as_str(), 200),
        (&api, vec![], "/p/../v1/sandboxes", 404),
        (&api, vec![], "/v1/sandboxes", 418),
    ] {
        let uri: Uri = format!("http://{authority}{path}").parse().unwrap();
        let mut request = Request::builder().method(Method::GET).uri(uri);
        for host in &host {
            request = request.header("host", host.as_str());
        }
        let asked = format!("{authority} {host:?} {path}");
        let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap());
        let answer = tokio::time::timeout(SOON, answer).await.expect("an answer in time");
        // A request that the HTTP/2 library itself refuses has no answer.
        let answered = answer.map_or(400, |response| response.status().as_u16());
        assert_eq!(answered, expected, "{asked}");
    }
}
