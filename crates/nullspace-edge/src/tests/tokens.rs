//! Tokens, and the cookie that keeps them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{DOMAIN, Mood, SOON, World, header, read_head, server, status};
use crate::EdgeLimits;

#[tokio::test]
async fn a_token_in_the_url_becomes_a_cookie_for_clients_and_browsers() {
    let world = World::echoing().await;
    *world.doors.mood.lock().unwrap() = Mood::Token("secret");
    let prefix = world.prefix();
    assert_eq!(status(&world.get(&format!("{prefix}/"), "").await), "404");
    assert_eq!(status(&world.get(&format!("{prefix}/?edge_token=wrong"), "").await), "404");

    let answer = world.get(&format!("{prefix}/a?x=1&edge_token=secret"), "Accept: */*\r\n").await;
    assert_eq!(status(&answer), "200");
    assert!(!answer.split("\r\n\r\n").nth(1).unwrap().contains("secret"), "{answer}");
    let cookie = header(&answer, "set-cookie").unwrap().to_owned();
    assert!(cookie.ends_with(&format!("=secret; Path={prefix}/; HttpOnly; SameSite=Lax; Max-Age=60")), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    let answer = world.get(&format!("{prefix}/b"), &format!("Cookie: a=1; {pair}\r\n")).await;
    assert!(status(&answer) == "200" && answer.contains("\ncookie: a=1\n"), "{answer}");
    let answer = world.get(&format!("{prefix}/b"), "X-Nullspace-Traffic-Access-Token: secret\r\n").await;
    assert!(status(&answer) == "200" && !answer.contains("secret"), "{answer}");

    let answer = world.get(&format!("{prefix}/a?x=1&edge_token=secret"), "Accept: text/html\r\n").await;
    let location = format!("{prefix}/a?x=1");
    assert_eq!((status(&answer), header(&answer, "location")), ("307", Some(location.as_str())));
    assert_eq!(header(&answer, "set-cookie"), Some(cookie.as_str()));
    // By host, a path that begins with two slashes would lead to another host.
    let host = format!("8000-{}.{DOMAIN}", world.doors.sandbox);
    let request = format!(
        "GET //evil.com/?edge_token=secret HTTP/1.1\r\nHost: {host}\r\nAccept: text/html\r\nConnection: close\r\n\r\n"
    );
    let answer = world.send(&request).await;
    assert_eq!((status(&answer), header(&answer, "location")), ("200", None), "{answer}");
}

#[tokio::test]
async fn an_old_cookie_does_not_close_an_open_port() {
    let world = World::echoing().await;
    let cookie = format!("Cookie: ns_edge_8000_{}=old\r\n", world.doors.sandbox);
    let answer = world.get(&format!("{}/", world.prefix()), &cookie).await;
    assert_eq!(status(&answer), "200");
    assert!(header(&answer, "set-cookie").unwrap().ends_with("Max-Age=0"), "{answer}");
    let answer = world.get(&format!("{}/?edge_token=old", world.prefix()), "").await;
    assert_eq!(status(&answer), "404");
}

#[tokio::test]
async fn cookies_of_a_sibling_page_lock_nobody_out() {
    let world = World::echoing().await;
    *world.doors.mood.lock().unwrap() = Mood::Token("secret");
    let id = world.doors.sandbox;
    let (host, name) = (format!("8000-{id}.{DOMAIN}"), format!("ns_edge_8000_{id}"));
    let ask = async |cookies: &str| {
        let cookies = cookies.replace('N', &name);
        world.send(&format!("GET /a HTTP/1.1\r\nHost: {host}\r\nCookie: {cookies}\r\nConnection: close\r\n\r\n")).await
    };
    for cookies in [
        "N=deeper; N=sibling; N=secret; N=newer; app=1",
        "N=; app=1; N=secret",
        "N=a b; N=secret; app=1",
        "app=1; N=sibling; __Host-N=secret",
    ] {
        let answer = ask(cookies).await;
        assert_eq!(status(&answer), "200", "{cookies}: {answer}");
        assert!(answer.contains("\ncookie: app=1\n") && header(&answer, "set-cookie").is_none(), "{cookies}: {answer}");
    }
    for cookies in ["N=sibling; N=other", "__Host-N=sibling", "N=", "__host-N=secret"] {
        assert_eq!(status(&ask(cookies).await), "404", "{cookies}");
    }
    // The port opens to everybody, and what is of no use is ended.
    *world.doors.mood.lock().unwrap() = Mood::Open;
    let answer = ask("N=sibling; N=other").await;
    let ended = format!("{name}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0");
    assert_eq!((status(&answer), header(&answer, "set-cookie")), ("200", Some(ended.as_str())));
}

#[tokio::test]
async fn with_https_and_a_host_name_browsers_take_the_cookie_from_the_host_alone() {
    let world = World::echoing().await;
    let id = world.doors.sandbox;
    let by_proxy = async |request: String| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(world.address).await.unwrap();
        let request = format!("{request}X-Forwarded-Proto: https\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let host = format!("Host: 8000-{id}.{DOMAIN}\r\n");
    let answer = by_proxy(format!("GET /?edge_token=good HTTP/1.1\r\n{host}")).await;
    let expected = format!("__Host-ns_edge_8000_{id}=good; Path=/; HttpOnly; SameSite=Lax; Max-Age=60; Secure");
    assert_eq!(header(&answer, "set-cookie"), Some(expected.as_str()), "{answer}");
    let answer = by_proxy(format!("GET / HTTP/1.1\r\n{host}Cookie: __Host-ns_edge_8000_{id}=old\r\n")).await;
    let ended: Vec<_> = answer.lines().filter(|line| line.contains("Max-Age=0")).collect();
    let end = format!("ns_edge_8000_{id}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0");
    assert_eq!(ended, [format!("set-cookie: __Host-{end}; Secure"), format!("set-cookie: {end}")], "{answer}");
    // A path has no host of its own.
    let answer = by_proxy(format!("GET {}/?edge_token=good HTTP/1.1\r\nHost: api\r\n", world.prefix())).await;
    assert!(header(&answer, "set-cookie").unwrap().starts_with("ns_edge_"), "{answer}");
}

#[tokio::test]
async fn what_a_revoked_token_let_in_ends() {
    let endless = server(|mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok").await.unwrap();
        tokio::time::sleep(SOON).await;
    })
    .await;
    let world = World::new(Some(endless), EdgeLimits::default()).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let request = format!("GET {}/ HTTP/1.1\r\nHost: api\r\n\r\n", world.prefix());
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200"));
    world.doors.over.lock().unwrap().cancel();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok() && rest == b"ok", "{rest:?}");
}

#[tokio::test]
async fn only_the_operators_proxy_says_who_the_client_is() {
    let world = World::echoing().await;
    let request = format!(
        "GET {}/?edge_token=good HTTP/1.1\r\nHost: api\r\nX-Forwarded-For: 6.6.6.6, 192.0.2.9, 127.0.0.2\r\nX-Forwarded-Proto: https\r\n\
         Connection: close\r\n\r\n",
        world.prefix()
    );
    let answer = world.send(&request).await;
    assert!(
        answer.contains("x-forwarded-for: 127.0.0.1\n") && answer.contains("x-forwarded-proto: http\n"),
        "{answer}"
    );
    assert!(!header(&answer, "set-cookie").unwrap().contains("Secure"));

    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(world.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.contains("x-forwarded-for: 192.0.2.9\n") && answer.contains("x-forwarded-proto: https\n"),
        "{answer}"
    );
    assert!(header(&answer, "set-cookie").unwrap().ends_with("; Secure"));
}
