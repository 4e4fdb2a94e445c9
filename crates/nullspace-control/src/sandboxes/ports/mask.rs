//! `mask_request_host`: the `Host` header that servers in a sandbox see. `${PORT}` in it is the port of the request.

use std::net::Ipv6Addr;

/// Stands for the port.
const PORT: &str = "${PORT}";
/// Most bytes.
const LONGEST: usize = 255;

/// Returns the host that a mask makes for a port.
pub(super) fn host(mask: &str, port: u16) -> String {
    mask.replace(PORT, &port.to_string())
}

/// Checks a mask: a host name, an IPv4 address or an IPv6 address in brackets, with or without a port.
pub(in super::super) fn check(mask: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("network.mask_request_host {what}: for example localhost:{PORT}"));
    if mask.len() > LONGEST {
        return wrong("is longer than 255 bytes");
    }
    // The longest port is the one that could be too long.
    let host = host(mask, u16::MAX);
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((address, rest)) = rest.split_once(']') else { return wrong("lacks a bracket") };
            if address.parse::<Ipv6Addr>().is_err() {
                return wrong("has no IPv6 address in its brackets");
            }
            match rest.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if rest.is_empty() => (None, None),
                None => return wrong("has more than a port after its address"),
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host.as_str()), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if !name.is_none_or(|name| name.len() <= 253 && name.split('.').all(label)) {
        return wrong("is not a host name or address");
    }
    let is_port =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0);
    if !port.is_none_or(is_port) {
        return wrong("has a port that is not 1 to 65535");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_a_host_with_or_without_a_port() {
        for good in [
            "localhost",
            "localhost:${PORT}",
            "${PORT}.app.example.com",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:${PORT}",
            "my_app-1.example:65535",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            ":80",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            "localhost:+1",
            "localhost:1:2",
            "${PORT}${PORT}:${PORT}${PORT}",
            "a b",
            "a\r\nX-Evil: 1",
            "user@host",
            "host/path",
            "host?x",
            "http://host",
            "a..b",
            "bücher.example",
            "[::1",
            "[nonsense]",
            "[::1]x",
            "${port}",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        assert!(check(&"a.".repeat(150)).is_err() && check(&"a".repeat(64)).is_err());
        assert_eq!(host("localhost:${PORT}", 8000), "localhost:8000");
        assert_eq!(host("app.example", 8000), "app.example");
    }
}
