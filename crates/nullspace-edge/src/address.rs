//! Which port of which sandbox a request is for: by the name of its host, or by its path.
//!
//! ```text
//!   8000-sb_<32 hex digits>.<domain>[.][:port]     /p/sb_<32 hex digits>/8000/…
//! ```
//! A port is 1 to 65535 without leading zeros. An id has one spelling. Whatever else is below the domain or below `/p/` belongs to the
//! edge too, and is "not found": it never reaches the routes of the API.

use nullspace_types::SandboxId;

/// The start of the paths of ports.
const PATHS: &str = "/p/";

/// How a request came to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the name of its host.
    Host,
    /// By the start of its path.
    Path,
    /// By a listener on the loopback address.
    Local,
}

/// A port of a sandbox, as a request names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) sandbox: SandboxId,
    pub(crate) port: u16,
    pub(crate) way: Way,
}

impl Target {
    /// The part of the path that the server in the sandbox does not see, without a slash at its end. Empty except for [`Way::Path`].
    pub(crate) fn prefix(&self) -> String {
        match self.way {
            Way::Path => format!("{PATHS}{}/{}", self.sandbox, self.port),
            Way::Host | Way::Local => String::new(),
        }
    }
}

/// The result of reading a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ByPath<'a> {
    /// The path of a port, and what the server in the sandbox sees of it: it begins with a slash.
    Inside(SandboxId, u16, &'a str),
    /// The path of a port without the slash at its end.
    Bare(SandboxId, u16),
    /// Below `/p`, and no port.
    Nothing,
}

/// Whether a path is the edge's: `/p` and what is below it.
pub(crate) fn is_path_of_port(path: &str) -> bool {
    path == "/p" || path.starts_with(PATHS)
}

/// Reads a path below `/p`.
pub(crate) fn by_path(path: &str) -> ByPath<'_> {
    let Some(rest) = path.strip_prefix(PATHS) else { return ByPath::Nothing };
    let Some((sandbox, rest)) = rest.split_once('/') else { return ByPath::Nothing };
    let Ok(sandbox) = sandbox.parse() else { return ByPath::Nothing };
    let digits = rest.split('/').next().unwrap_or_default();
    match (port(digits), &rest[digits.len()..]) {
        (None, _) => ByPath::Nothing,
        (Some(port), "") => ByPath::Bare(sandbox, port),
        (Some(port), inside) => ByPath::Inside(sandbox, port, inside),
    }
}

/// Whether the name of a host is below the domain, however it is written. Generous on purpose: such a request is never the API's.
pub(crate) fn is_below(domain: &str, host: &[u8]) -> bool {
    let host = host.rsplit(|byte| *byte == b'@').next().unwrap_or_default();
    let mut name = host.split(|byte| *byte == b':').next().unwrap_or_default();
    while let [rest @ .., b'.'] = name {
        name = rest;
    }
    let Some(start) = name.len().checked_sub(domain.len()) else { return false };
    let (label, end) = name.split_at(start);
    end.eq_ignore_ascii_case(domain.as_bytes()) && label.ends_with(b".")
}

/// Reads the name of a host below the domain; `None` when it names no port.
pub(crate) fn by_host(domain: &str, host: &str) -> Option<(SandboxId, u16)> {
    let name = match host.split_once(':') {
        None => host,
        Some((name, listener)) => {
            port(listener)?;
            name
        }
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = name.strip_suffix(domain)?.strip_suffix('.')?;
    let (digits, sandbox) = label.split_once('-')?;
    Some((sandbox.parse().ok()?, port(digits)?))
}

/// Whether the name of a host is the loopback's, so that a page of elsewhere whose name resolves to the loopback is refused.
pub(crate) fn is_loopback(host: &str) -> bool {
    let (name, listener) = match host.strip_prefix("[::1]") {
        Some("") => return true,
        Some(rest) => ("localhost", rest.strip_prefix(':')),
        None => match host.split_once(':') {
            Some((name, listener)) => (name, Some(listener)),
            None => return host == "localhost" || host == "127.0.0.1",
        },
    };
    (name == "localhost" || name == "127.0.0.1") && listener.and_then(port).is_some()
}

/// A port without leading zeros, signs or spaces.
fn port(digits: &str) -> Option<u16> {
    let sane = (1..=5).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !sane || digits.starts_with('0') { None } else { digits.parse().ok() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506";
    const DOMAIN: &str = "ports.example.com";

    fn id() -> SandboxId {
        ID.parse().unwrap()
    }

    #[test]
    fn a_host_names_a_port_in_one_way() {
        for good in ["8000-{ID}.{D}", "8000-{ID}.{D}.", "8000-{ID}.{D}:3000", "8000-{ID}.{D}.:3000"] {
            let host = good.replace("{ID}", ID).replace("{D}", DOMAIN);
            assert_eq!(by_host(DOMAIN, &host), Some((id(), 8000)), "{host}");
            assert!(is_below(DOMAIN, host.as_bytes()), "{host}");
        }
        for wrong in [
            "{D}",
            ".{D}",
            "8000.{D}",
            "{ID}.{D}",
            "0-{ID}.{D}",
            "00-{ID}.{D}",
            "080-{ID}.{D}",
            "65536-{ID}.{D}",
            "+80-{ID}.{D}",
            " 80-{ID}.{D}",
            "80-{ID}..{D}",
            "80-{ID}.{D}..",
            "80-{ID}.x.{D}",
            "x.80-{ID}.{D}",
            "80-{ID}x.{D}",
            "80-SB_0190f3a2b4c57d8e9fa0b1c2d3e4f506.{D}",
            "80-{ID}.PORTS.example.com",
            "80-{ID}.{D}:",
            "80-{ID}.{D}:0",
            "80-{ID}.{D}:80:80",
            "80-{ID}.{D}:x",
            "user@80-{ID}.{D}",
            "８0-{ID}.{D}",
            "80-{ID}.{D}.evil.com",
            "80-{ID}.evil{D}",
        ] {
            let host = wrong.replace("{ID}", ID).replace("{D}", DOMAIN);
            assert_eq!(by_host(DOMAIN, &host), None, "{host}");
        }
    }

    #[test]
    fn everything_below_the_domain_is_claimed_however_it_is_written() {
        for below in
            ["x.{D}", "X.PORTS.Example.COM", "x.{D}.", "x.{D}...", "x.{D}:80:80", "u@x.{D}", "a:b@x.{D}:1", ".{D}"]
        {
            assert!(is_below(DOMAIN, below.replace("{D}", DOMAIN).as_bytes()), "{below}");
        }
        for other in ["{D}", "{D}.", "x{D}", "x.{D}.evil.com", "", "localhost:3000", "com"] {
            assert!(!is_below(DOMAIN, other.replace("{D}", DOMAIN).as_bytes()), "{other}");
        }
    }

    #[test]
    fn a_path_names_a_port_and_keeps_the_rest_as_it_is() {
        let path = |text: &str| text.replace("{ID}", ID);
        for (text, inside) in
            [("/p/{ID}/80/", "/"), ("/p/{ID}/80/a/../b%2f?", "/a/../b%2f?"), ("/p/{ID}/80//evil.com", "//evil.com")]
        {
            assert_eq!(by_path(&path(text)), ByPath::Inside(id(), 80, inside), "{text}");
        }
        assert_eq!(by_path(&path("/p/{ID}/80")), ByPath::Bare(id(), 80));
        for wrong in [
            "/p",
            "/p/",
            "/p/{ID}",
            "/p/{ID}/",
            "/p/{ID}/0/",
            "/p/{ID}/65536/",
            "/p/{ID}/080/",
            "/p//80/",
            "/p/{ID}/80x/",
            "/p/%73b_0190f3a2b4c57d8e9fa0b1c2d3e4f506/80/",
            "/p/{ID}/%38/",
            "/p/../v1/80/",
            "/P/{ID}/80/",
            "/p/{ID}//80/",
        ] {
            assert_eq!(by_path(&path(wrong)), ByPath::Nothing, "{wrong}");
        }
        assert!(
            is_path_of_port("/p") && is_path_of_port("/p/x") && !is_path_of_port("/px") && !is_path_of_port("//p/")
        );
    }

    #[test]
    fn only_names_of_the_loopback_are_local() {
        for good in ["127.0.0.1", "127.0.0.1:4000", "localhost", "localhost:1", "[::1]", "[::1]:80"] {
            assert!(is_loopback(good), "{good}");
        }
        for wrong in
            ["evil.com:4000", "127.0.0.1.evil.com", "localhost:", "localhost:0", "[::1]80", "127.0.0.2", "", "[::1]:"]
        {
            assert!(!is_loopback(wrong), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_name_that_is_read_is_below_the_domain_and_says_the_same_again(host in "\\PC{0,60}") {
            if let Some((sandbox, port)) = by_host(DOMAIN, &host) {
                prop_assert!(is_below(DOMAIN, host.as_bytes()));
                let start = format!("{port}-{sandbox}.{DOMAIN}");
                prop_assert!(host.starts_with(&start));
            }
        }

        #[test]
        fn every_port_is_read_back(port in 1..=u16::MAX, bits in any::<u128>(), end in "(\\.)?(:[1-9][0-9]{0,3})?") {
            let sandbox: SandboxId = format!("sb_{bits:032x}").parse().unwrap();
            prop_assert_eq!(by_host(DOMAIN, &format!("{port}-{sandbox}.{DOMAIN}{end}")), Some((sandbox, port)));
            let target = Target { sandbox, port, way: Way::Path };
            let path = format!("{}/x", target.prefix());
            prop_assert_eq!(by_path(&path), ByPath::Inside(sandbox, port, "/x"));
        }

        #[test]
        fn hostile_names_near_a_good_one_are_read_strictly(
            at in 0usize..60,
            with in "\\PC",
        ) {
            let good = format!("8000-{ID}.{DOMAIN}");
            let mut host = good.clone();
            host.insert_str(at.min(good.len()), &with);
            if let Some((sandbox, port)) = by_host(DOMAIN, &host) {
                // A digit more before the dash, or the dot at the end.
                prop_assert_eq!(sandbox, id());
                let same = [format!("{port}-{ID}.{DOMAIN}"), format!("{good}.")];
                prop_assert!(same.contains(&host));
            }
        }
    }
}
