//! Cookies as credentials: pages of elsewhere cannot use their visitor's.

use super::support::{DOMAIN, Mood, World, status};

#[tokio::test]
async fn a_cookie_lets_its_own_pages_in_and_no_others() {
    let world = World::echoing().await;
    *world.doors.mood.lock().unwrap() = Mood::Token("secret");
    let id = world.doors.sandbox;
    let (host, cookie) = (format!("8000-{id}.{DOMAIN}"), format!("Cookie: ns_edge_8000_{id}=secret\r\n"));
    let sibling = format!("Origin: http://8000-sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506.{DOMAIN}\r\n");
    let socket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let fetch = |site: &str, mode: &str, dest: &str| {
        format!("Sec-Fetch-Site: {site}\r\nSec-Fetch-Mode: {mode}\r\nSec-Fetch-Dest: {dest}\r\n")
    };
    for (method, more, expected) in [
        ("GET", String::new(), "200"),
        ("POST", String::new(), "200"),
        ("POST", format!("Origin: http://{host}\r\n"), "200"),
        ("POST", sibling.clone(), "404"),
        ("GET", sibling.clone(), "404"),
        ("POST", "Origin: null\r\n".to_owned(), "404"),
        ("GET", format!("{socket}{sibling}"), "404"),
        // The server there answers with no agreement.
        ("GET", format!("{socket}Origin: http://{host}\r\n"), "200"),
        ("GET", socket.to_owned(), "200"),
        ("GET", fetch("same-origin", "cors", "empty"), "200"),
        ("GET", fetch("none", "navigate", "document"), "200"),
        // A link of another page.
        ("GET", fetch("cross-site", "navigate", "document"), "200"),
        ("POST", fetch("cross-site", "navigate", "document"), "404"),
        ("GET", fetch("same-site", "navigate", "iframe"), "404"),
        ("GET", fetch("same-site", "no-cors", "script"), "404"),
        ("POST", fetch("same-site", "cors", "empty"), "404"),
    ] {
        let ask = async |credential: &str| {
            let request = format!(
                "{method} / HTTP/1.1\r\nHost: {host}\r\n{credential}{more}\r\nGET / HTTP/1.1\r\nHost: end\r\nConnection: close\r\n\r\n"
            );
            world.send(&request).await
        };
        let answer = ask(&cookie).await;
        assert_eq!(status(&answer), expected, "{method} {more}: {answer}");
        // Pages cannot set this header for another origin without its consent, so it needs no look at the origin.
        let answer = ask("X-Nullspace-Traffic-Access-Token: secret\r\n").await;
        assert_eq!(status(&answer), "200", "{method} {more}: {answer}");
    }
    // Where no token is needed, there is nothing to use.
    *world.doors.mood.lock().unwrap() = Mood::Open;
    let request = format!("POST / HTTP/1.1\r\nHost: {host}\r\n{cookie}{sibling}Connection: close\r\n\r\n");
    let answer = world.send(&request).await;
    assert!(status(&answer) == "200" && !answer.to_ascii_lowercase().contains("set-cookie"), "{answer}");
}
