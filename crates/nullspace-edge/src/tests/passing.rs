//! Requests and responses on their way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::support::{DOMAIN, Mood, SOON, World, header, read_head, server, status};
use crate::EdgeLimits;

#[tokio::test]
async fn a_request_by_path_is_seen_without_the_prefix_and_with_where_it_came_from() {
    let world = World::echoing().await;
    let prefix = world.prefix();
    let headers = "X-Forwarded-For: 6.6.6.6\r\nAuthorization: Bearer ns_live_x\r\nX-App: 1\r\n";
    let answer = world.get(&format!("{prefix}/a/b?c=d&edge_token=good"), headers).await;
    assert_eq!(status(&answer), "200", "{answer}");
    let seen = answer.split("\r\n\r\n").nth(1).unwrap();
    let expected = format!(
        "GET /a/b?c=d\nhost: api\nx-app: 1\nx-forwarded-for: 127.0.0.1\nx-forwarded-host: api\nx-forwarded-prefix: {prefix}\n\
         x-forwarded-proto: http\n\n"
    );
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_masked_host_is_what_the_server_sees() {
    let world = World::echoing().await;
    *world.doors.host.lock().unwrap() = Some("localhost:8000".to_owned());
    let host = format!("8000-{}.{DOMAIN}", world.doors.sandbox);
    let answer = world.send(&format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.contains("\nhost: localhost:8000\n"), "{answer}");
    assert!(answer.contains(&format!("\nx-forwarded-host: {host}\n")) && answer.contains("GET /x\n"), "{answer}");
}

#[tokio::test]
async fn bodies_pass_both_ways_and_are_counted() {
    let world = World::echoing().await;
    let prefix = world.prefix();
    let sized = format!("POST {prefix}/ HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello");
    let answer = world.send(&sized).await;
    assert!(answer.contains("content-length: 5\n") && answer.ends_with("\nhello"), "{answer}");
    let chunked = format!(
        "POST {prefix}/ HTTP/1.1\r\nHost: api\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    );
    let answer = world.send(&chunked).await;
    assert!(answer.contains("transfer-encoding: chunked\n") && answer.ends_with("\nhello world"), "{answer}");
    assert_eq!(world.doors.counts.from_client.load(Ordering::Relaxed), 16);
    assert!(world.doors.counts.to_client.load(Ordering::Relaxed) > 16);
}

#[tokio::test]
async fn a_body_of_any_method_arrives() {
    let world = World::echoing().await;
    let prefix = world.prefix();
    for method in ["GET", "DELETE", "OPTIONS", "PUT", "PURGE"] {
        for (length, body) in
            [("Content-Length: 5", "hello"), ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n")]
        {
            let request =
                format!("{method} {prefix}/ HTTP/1.1\r\nHost: api\r\nConnection: close\r\n{length}\r\n\r\n{body}");
            let answer = world.send(&request).await;
            assert!(answer.ends_with("\nhello"), "{method}, {length}: {answer}");
            assert_eq!(
                answer.to_ascii_lowercase().matches(&format!("\n{}\n", length.to_ascii_lowercase())).count(),
                1,
                "{answer}"
            );
        }
    }
    let answer = world.get(&format!("{prefix}/"), "").await;
    assert!(!answer.contains("transfer-encoding") && !answer.contains("content-length: 0\n"), "{answer}");
}

#[tokio::test]
async fn a_server_cannot_speak_as_the_edge() {
    let forging = server(|mut stream| async move {
        read_head(&mut stream).await;
        let answer = "HTTP/1.1 404 Not Found\r\nX-Nullspace-Edge-Error: not_found\r\nSet-Cookie: =ns_edge_80_x=1\r\n\
                      Set-Cookie: ns_edge_80_x=1\r\nSet-Cookie: a=1\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let world = World::new(Some(forging), EdgeLimits::default()).await;
    let answer = world.get(&format!("{}/", world.prefix()), "").await;
    assert!(status(&answer) == "404" && header(&answer, "x-nullspace-edge-error").is_none(), "{answer}");
    assert!(!answer.contains("ns_edge") && header(&answer, "set-cookie") == Some("a=1"), "{answer}");
}

#[tokio::test]
async fn the_body_is_asked_for_when_the_server_is_reached() {
    let world = World::echoing().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let head = format!(
        "POST {}/ HTTP/1.1\r\nHost: api\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        world.prefix()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut stream).await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(status(&answer) == "200" && answer.ends_with("\nhello") && !answer.contains("expect:"), "{answer}");
}

#[tokio::test]
async fn a_path_without_its_slash_is_redirected_and_keeps_its_query() {
    let world = World::echoing().await;
    let prefix = world.prefix();
    let answer = world.get(&format!("{prefix}?a=b"), "").await;
    assert_eq!((status(&answer), header(&answer, "location")), ("307", Some(format!("{prefix}/?a=b").as_str())));
}

#[tokio::test]
async fn connections_are_kept_and_one_that_the_server_closed_is_replaced() {
    let world = World::echoing().await;
    let prefix = world.prefix();
    for _ in 0..3 {
        assert_eq!(status(&world.get(&format!("{prefix}/"), "").await), "200");
    }
    assert_eq!(world.dials(), 1);

    // Answers one request for each connection, says nothing of it, and closes.
    let closing = server(|mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    })
    .await;
    let world = World::new(Some(closing), EdgeLimits::default()).await;
    for wait in [0, 0, 60, 0] {
        assert!(world.get(&format!("{}/", world.prefix()), "").await.ends_with("ok"));
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let seen = Arc::new(Notify::new());
    let next = Arc::clone(&seen);
    let events = server(move |mut stream| {
        let next = Arc::clone(&next);
        async move {
            read_head(&mut stream).await;
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            for number in 0..5 {
                stream.write_all(format!("9\r\ndata: {number}\n\n\r\n").as_bytes()).await.unwrap();
                // The next one is sent only when this one has arrived.
                next.notified().await;
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let world = World::new(Some(events), EdgeLimits::default()).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let request = format!("GET {}/ HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n", world.prefix());
    stream.write_all(request.as_bytes()).await.unwrap();
    let all = async {
        let mut read = String::new();
        for number in 0..5 {
            while !read.contains(&format!("data: {number}\n\n")) {
                let mut piece = [0; 1024];
                let count = stream.read(&mut piece).await.unwrap();
                assert!(count > 0, "{read}");
                read.push_str(std::str::from_utf8(&piece[..count]).unwrap());
            }
            assert!(!read.contains(&format!("data: {}", number + 1)));
            seen.notify_one();
        }
    };
    tokio::time::timeout(SOON, all).await.expect("each event when it was sent");
}

#[tokio::test]
async fn a_large_download_waits_for_its_client() {
    const SIZE: u64 = 100 << 20;
    let written = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&written);
    let large = server(move |mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            read_head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes()).await.unwrap();
            let piece = vec![b'x'; 64 << 10];
            while counter.load(Ordering::SeqCst) < SIZE {
                stream.write_all(&piece).await.unwrap();
                counter.fetch_add(piece.len() as u64, Ordering::SeqCst);
            }
        }
    })
    .await;
    let world = World::new(Some(large), EdgeLimits::default()).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let request = format!("GET {}/ HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n", world.prefix());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut before = u64::MAX;
    while written.load(Ordering::SeqCst) != before || before == 0 {
        before = written.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // Two pairs of socket buffers of the kernel, and little of ours.
    assert!(before < 24 << 20, "{before} bytes on the way to a client that reads nothing");
    let mut read = 0;
    let mut piece = vec![0; 256 << 10];
    loop {
        match tokio::time::timeout(SOON, stream.read(&mut piece)).await.expect("bytes in time").unwrap() {
            0 => break,
            count => read += count as u64,
        }
    }
    assert!(read > SIZE && read < SIZE + 2000, "{read}");
}

#[tokio::test]
async fn trailers_pass_to_clients_that_want_them() {
    let trailing = server(|mut stream| async move {
        let head = read_head(&mut stream).await;
        assert!(head.to_ascii_lowercase().contains("te: trailers"), "{head}");
        let answer =
            "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let world = World::new(Some(trailing), EdgeLimits::default()).await;
    let request =
        format!("GET {}/ HTTP/1.1\r\nHost: api\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n", world.prefix());
    let answer = world.send(&request).await;
    assert!(answer.to_ascii_lowercase().ends_with("0\r\nx-sum: 7\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn servers_that_are_not_there_or_answer_badly_have_clear_errors() {
    let nobody = World::new(None, EdgeLimits::default()).await;
    let answer = nobody.get(&format!("{}/", nobody.prefix()), "").await;
    assert_eq!((status(&answer), header(&answer, "x-nullspace-edge-error")), ("502", Some("port_not_listening")));
    assert!(answer.contains("\"code\":\"port_not_listening\"") && answer.contains("Start the server"), "{answer}");
    assert_eq!(nobody.failed(), ["port_not_listening"]);
    let answer = nobody.get(&format!("{}/", nobody.prefix()), "Accept: text/html,*/*\r\n").await;
    assert!(answer.contains("<h1>Bad Gateway</h1>") && answer.contains("port 8000"), "{answer}");

    for bad in [
        "",
        "SSH-2.0-x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nBad Header: x\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let bad_server = server(move |mut stream| async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(bad.as_bytes()).await;
        })
        .await;
        let world = World::new(Some(bad_server), EdgeLimits::default()).await;
        assert_eq!(status(&world.get(&format!("{}/", world.prefix()), "").await), "502", "{bad:?}");
    }
}

#[tokio::test]
async fn a_silent_server_costs_its_own_request_alone() {
    let silent = server(|mut stream| async move {
        let head = read_head(&mut stream).await;
        if head.starts_with("GET /quick") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
        tokio::time::sleep(SOON).await;
    })
    .await;
    let limits = EdgeLimits { response_timeout: Duration::from_millis(1500), ..EdgeLimits::default() };
    let world = Arc::new(World::new(Some(silent), limits).await);
    let path = format!("{}/slow", world.prefix());
    let slow: Vec<_> = (0..20)
        .map(|_| {
            let (world, path) = (Arc::clone(&world), path.clone());
            tokio::spawn(async move { world.get(&path, "").await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(world.get(&format!("{}/quick", world.prefix()), "").await.ends_with("ok"));
    for answer in slow {
        let answer = answer.await.unwrap();
        assert_eq!((status(&answer), header(&answer, "x-nullspace-edge-error")), ("504", Some("server_silent")));
    }
}

#[tokio::test]
async fn a_body_in_which_nothing_moves_is_ended() {
    let stuck = server(|mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok").await.unwrap();
        tokio::time::sleep(SOON).await;
    })
    .await;
    let limits = EdgeLimits { idle: Duration::from_millis(300), ..EdgeLimits::default() };
    let world = World::new(Some(stuck), limits).await;
    let answer = world.get(&format!("{}/", world.prefix()), "").await;
    assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
}

#[tokio::test]
async fn sandboxes_that_wake_and_sleep_say_so() {
    let world = World::echoing().await;
    *world.doors.mood.lock().unwrap() = Mood::Waking;
    let answer = world.get(&format!("{}/", world.prefix()), "").await;
    assert_eq!((status(&answer), header(&answer, "retry-after")), ("503", Some("5")));
    let page = world.get(&format!("{}/", world.prefix()), "Accept: text/html\r\n").await;
    assert!(page.contains("http-equiv=\"refresh\" content=\"5\""), "{page}");
    *world.doors.mood.lock().unwrap() = Mood::Paused;
    let answer = world.get(&format!("{}/", world.prefix()), "").await;
    assert_eq!((status(&answer), header(&answer, "retry-after")), ("503", None));
}

#[tokio::test]
async fn requests_beyond_the_limits_are_refused_until_others_end() {
    let silent = server(|mut stream| async move {
        read_head(&mut stream).await;
        tokio::time::sleep(SOON).await;
    })
    .await;
    for (limits, expected) in [
        (EdgeLimits { per_sandbox: 1, ..EdgeLimits::default() }, "503"),
        (EdgeLimits { per_client: 1, ..EdgeLimits::default() }, "429"),
    ] {
        let world = World::new(Some(silent), limits).await;
        let mut first = TcpStream::connect(world.address).await.unwrap();
        let request = format!("GET {}/ HTTP/1.1\r\nHost: api\r\n\r\n", world.prefix());
        first.write_all(request.as_bytes()).await.unwrap();
        while world.dials() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let answer = world.get(&format!("{}/", world.prefix()), "").await;
        assert_eq!((status(&answer), header(&answer, "retry-after")), (expected, Some("1")), "{answer}");
        drop(first);
    }
}
