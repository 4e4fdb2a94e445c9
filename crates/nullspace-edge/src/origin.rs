//! The page that made a request, as browsers tell it. Where a cookie lets requests in, or nothing is needed, other pages must not use
//! that of their visitor.
//!
//! ```text
//!   Sec-Fetch-Site: same-origin, none ──> own        else, a page that is opened (navigate, document) ──> link        else ──> foreign
//!   without it: Origin of this host, or no Origin ──> own                                                      else ──> foreign
//! ```
//! Browsers send `Sec-Fetch-Site` to HTTPS and to the loopback, `Origin` with WebSockets and with all requests but GET and HEAD. Other
//! clients send neither, and pages cannot make them.

use hyper::header::{self, HeaderMap};
use hyper::{StatusCode, Uri};

use crate::answer::Problem;

/// Whose request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The port's own page's, or no page's.
    Own,
    /// The browser opens a page in place of another one that named it.
    Link,
    /// Another page's.
    Foreign,
}

/// Finds out whose request it is. `host` is the request's; `https` is true when the client is known to speak it.
pub(crate) fn of(headers: &HeaderMap, host: &str, https: bool) -> Origin {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let own = match (origins.next(), origins.next()) {
        (None, _) => true,
        (Some(origin), None) => origin.to_str().is_ok_and(|origin| is_own(origin, host, https)),
        // Which of them is meant?
        (Some(_), Some(_)) => false,
    };
    if !own {
        return Origin::Foreign;
    }
    let one = |name: &str| {
        let mut values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
        match (values.next(), values.next()) {
            (None, _) => None,
            (Some(value), None) => Some(value),
            (Some(_), Some(_)) => Some("?"),
        }
    };
    match one("sec-fetch-site") {
        None | Some("same-origin" | "none") => Origin::Own,
        Some(_) if one("sec-fetch-mode") == Some("navigate") && one("sec-fetch-dest") == Some("document") => {
            Origin::Link
        }
        Some(_) => Origin::Foreign,
    }
}

/// Whether an `Origin` names this host.
fn is_own(origin: &str, host: &str, https: bool) -> bool {
    let Ok(uri) = origin.parse::<Uri>() else { return false };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    let usual = match scheme {
        "https" => ":443",
        // A page without TLS is not the same as one with it. Behind a proxy that the operator did not name, that is not known.
        "http" if !https => ":80",
        _ => return false,
    };
    // Browsers leave the usual port out.
    let short = |name: &str| name.strip_suffix(usual).unwrap_or(name).to_ascii_lowercase();
    short(authority.as_str()) == short(host)
}

/// The answer to another page's request.
pub(crate) fn foreign() -> Problem {
    let message = "The request comes from a page of another origin (Origin, Sec-Fetch-Site). From there, this address answers GET and HEAD \
                   without a WebSocket only. Open the page at this address itself.";
    Problem::new(StatusCode::FORBIDDEN, "foreign_origin", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(pairs: &[(&'static str, &str)], https: bool) -> Origin {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        of(&headers, "80-sb_x.example.com:3000", https)
    }

    #[test]
    fn requests_are_own_when_no_other_page_made_them() {
        let origin = |value: &str| whose(&[("origin", value)], false);
        assert_eq!(whose(&[], false), Origin::Own);
        assert_eq!(origin("http://80-sb_x.example.com:3000"), Origin::Own);
        assert_eq!(origin("https://80-SB_X.example.com:3000"), Origin::Own);
        assert_eq!(whose(&[("origin", "http://80-sb_x.example.com:3000")], true), Origin::Foreign);
        assert_eq!(whose(&[("origin", "https://80-sb_x.example.com:3000")], true), Origin::Own);
        for foreign in [
            "null",
            "",
            "http://80-sb_y.example.com:3000",
            "http://80-sb_x.example.com",
            "http://80-sb_x.example.com:3001",
            "http://example.com",
            "http://evil.com/80-sb_x.example.com:3000",
            "http://u@80-sb_x.example.com:3000",
            "ftp://80-sb_x.example.com:3000",
            "80-sb_x.example.com:3000",
        ] {
            assert_eq!(origin(foreign), Origin::Foreign, "{foreign}");
        }
        let twice = [("origin", "http://80-sb_x.example.com:3000"), ("origin", "http://80-sb_x.example.com:3000")];
        assert_eq!(whose(&twice, false), Origin::Foreign);
        assert!(
            is_own("https://a", "a:443", true)
                && is_own("http://a", "a:80", false)
                && is_own("https://a:443", "a", true)
        );
        assert!(!is_own("https://a", "a:80", true));
    }

    #[test]
    fn what_browsers_say_of_the_page_counts() {
        let site = |site: &str| whose(&[("sec-fetch-site", site), ("sec-fetch-mode", "cors")], true);
        assert_eq!((site("same-origin"), site("none")), (Origin::Own, Origin::Own));
        assert_eq!(
            (site("same-site"), site("cross-site"), site("new")),
            (Origin::Foreign, Origin::Foreign, Origin::Foreign)
        );
        let opens = |dest: &str| {
            whose(&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", dest)], true)
        };
        assert_eq!((opens("document"), opens("iframe")), (Origin::Link, Origin::Foreign));
        assert_eq!(whose(&[("sec-fetch-site", "same-origin"), ("origin", "https://evil.com")], true), Origin::Foreign);
    }
}
