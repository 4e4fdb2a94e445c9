//! Rules of what a request may say to git. Names are given after `--`, and what git would read as something else is refused.

use nullspace_service::{Error, Result};

/// Longest path and URL, bytes.
const MAX_PATH: usize = 4096;
/// Longest name of a branch, tag or commit, bytes.
const MAX_REF: usize = 512;
/// Most paths of one request, and most bytes of all.
const MAX_FILES: usize = 4096;
const MAX_FILES_BYTES: usize = 256 << 10;
/// Longest commit message, bytes.
const MAX_MESSAGE: usize = 64 << 10;
/// Longest name and address of an author, bytes.
const MAX_AUTHOR: usize = 256;
/// Most commits of a log, and their number when the request says nothing.
const MAX_LOG: u32 = 1000;
const LOG: u32 = 50;

/// A path in the sandbox.
pub(super) fn path(field: &str, path: &str) -> Result<String> {
    if path.is_empty() || path.len() > MAX_PATH || path.contains('\0') {
        return Err(Error::invalid(format!("{field} must have 1 to {MAX_PATH} bytes, without a NUL character")));
    }
    Ok(path.to_owned())
}

/// Paths in a repository.
pub(super) fn files(files: &[String]) -> Result<()> {
    if files.is_empty() {
        return Err(Error::invalid("files is empty: name files, or leave it out for all"));
    }
    let bytes: usize = files.iter().map(String::len).sum();
    if files.len() > MAX_FILES || bytes > MAX_FILES_BYTES {
        let message = format!("files are too many: at most {MAX_FILES} of {MAX_FILES_BYTES} bytes together");
        return Err(Error::invalid(message));
    }
    files.iter().try_for_each(|file| path("each of files", file).map(drop))
}

/// A name of a branch or tag, by git's own rules (git-check-ref-format).
pub(super) fn name<'n>(field: &str, name: &'n str) -> Result<&'n str> {
    let odd = |c: char| c.is_ascii_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\');
    let component = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let fits = (1..=MAX_REF).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && name != "@"
        && name != "HEAD"
        && !name.chars().any(odd)
        && name.split('/').all(component);
    if fits { Ok(name) } else { Err(Error::invalid(format!("{field} is not a name that git allows for a branch"))) }
}

/// A branch, tag or commit, in any of git's notations (gitrevisions).
pub(super) fn revision<'r>(field: &str, revision: &'r str) -> Result<&'r str> {
    let fits = (1..=MAX_REF).contains(&revision.len())
        && !revision.starts_with('-')
        && !revision.chars().any(|c| c.is_ascii_control());
    if fits { Ok(revision) } else { Err(Error::invalid(format!("{field} is no branch, tag or commit"))) }
}

/// A commit's message.
pub(super) fn message(message: &str) -> Result<()> {
    if message.trim().is_empty() || message.len() > MAX_MESSAGE || message.contains('\0') {
        return Err(Error::invalid(format!("message must have 1 to {MAX_MESSAGE} bytes, without a NUL character")));
    }
    Ok(())
}

/// Name and address of an author; `None` without both.
pub(super) fn author<'a>(name: Option<&'a str>, email: Option<&'a str>) -> Result<Option<(&'a str, &'a str)>> {
    let (name, email) = match (name, email) {
        (None, None) => return Ok(None),
        (Some(name), Some(email)) => (name, email),
        _ => return Err(Error::invalid("author_name and author_email must be given together")),
    };
    let odd = |text: &str| {
        text.trim().is_empty()
            || text.len() > MAX_AUTHOR
            || text.chars().any(|c| c.is_control() || matches!(c, '<' | '>'))
    };
    if odd(name) || odd(email) {
        let message = format!(
            "author_name and author_email must have 1 to {MAX_AUTHOR} bytes, without < > and control characters"
        );
        return Err(Error::invalid(message));
    }
    Ok(Some((name, email)))
}

/// The number of commits of a log.
pub(super) fn limit(limit: Option<u32>) -> Result<u32> {
    match limit.unwrap_or(LOG) {
        limit @ 1..=MAX_LOG => Ok(limit),
        limit => Err(Error::invalid(format!("limit is {limit}: it must be 1 to {MAX_LOG}"))),
    }
}

/// The depth of a clone.
pub(super) fn depth(depth: u32) -> Result<String> {
    match i32::try_from(depth) {
        Ok(1..) => Ok(depth.to_string()),
        _ => Err(Error::invalid(format!("depth is {depth}: it must be 1 to {}", i32::MAX))),
    }
}

/// A place of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Remote {
    /// `http://` or `https://`: scheme and host, and all of the URL.
    Http { origin: String, url: String },
    /// `ssh://` or `user@host:path`.
    Ssh,
    /// A path, or another scheme, or the name of a remote.
    Other,
}

/// Reads a URL of a repository, or the name of a remote.
pub(super) fn remote(field: &str, text: &str) -> Result<Remote> {
    let wrong = |what: &str| Err(Error::invalid(format!("{field} {what}")));
    path(field, text)?;
    if text.starts_with('-') || text.chars().any(char::is_control) {
        return wrong("is no URL");
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        if host.starts_with('-') {
            return wrong("is no URL: its host begins with -");
        }
        return match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => {
                if authority.contains('@') {
                    return wrong("has credentials in it: give them as auth");
                }
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
                if authority.is_empty() || !authority.chars().all(plain) {
                    return wrong("is no URL: its host is not plain ASCII");
                }
                Ok(Remote::Http { origin: format!("{scheme}://{authority}"), url: text.to_owned() })
            }
            "ssh" | "git+ssh" | "ssh+git" => Ok(Remote::Ssh),
            "git" | "file" => Ok(Remote::Other),
            _ => wrong("has a scheme that is not allowed: use https, http, ssh, git or file"),
        };
    }
    let (before, after) = text.split_once(':').unwrap_or((text, ""));
    if before.contains('/') || before.len() == text.len() {
        return Ok(Remote::Other);
    }
    if after.starts_with(':') {
        return wrong("names a program for its transport, which is not allowed");
    }
    if before.rsplit('@').next().is_none_or(|host| host.is_empty() || host.starts_with('-')) {
        return wrong("is no URL: its host is missing or begins with -");
    }
    Ok(Remote::Ssh)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_git_allows() {
        for fits in ["main", "feature/a-b", "v1.0", "ä/ö", "a.b", "x@y", "HEAD2", "a-"] {
            assert_eq!(name("name", fits).unwrap(), fits);
        }
        let long = "x".repeat(MAX_REF + 1);
        for wrong in [
            "", "-d", "--force", "a..b", "a b", "a~1", "a^", "a:b", "+a:b", "a?", "a*", "a[", "a\\b", "a\nb", "a\0b",
            "/a", "a/", "a//b", ".a", "a/.b", "a.lock", "a.lock/b", "a.", "@", "HEAD", "a@{1}", &long,
        ] {
            assert!(name("name", wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn revisions_are_never_options() {
        for fits in ["main", "HEAD~2", "v1^{commit}", "origin/main", "@{-1}", "4f2a"] {
            assert_eq!(revision("ref", fits).unwrap(), fits);
        }
        for wrong in ["", "-", "-b", "--detach", "--upload-pack=touch /x", "a\nb", "a\0"] {
            assert!(revision("ref", wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_remote_is_a_url_a_path_or_a_name() {
        let http = |origin: &str, url: &str| Remote::Http { origin: origin.to_owned(), url: url.to_owned() };
        for (text, remote) in [
            ("https://h/a.git", http("https://h", "https://h/a.git")),
            ("http://127.0.0.1:8000/a?b", http("http://127.0.0.1:8000", "http://127.0.0.1:8000/a?b")),
            ("https://[::1]:1", http("https://[::1]:1", "https://[::1]:1")),
            ("ssh://git@h/a", Remote::Ssh),
            ("git@h:a/b", Remote::Ssh),
            ("h:a", Remote::Ssh),
            ("/srv/a", Remote::Other),
            ("./a:b", Remote::Other),
            ("origin", Remote::Other),
            ("file:///srv/a", Remote::Other),
            ("git://h/a", Remote::Other),
        ] {
            assert_eq!(super::remote("url", text).unwrap(), remote, "{text}");
        }
        for wrong in [
            "",
            "-x",
            "--upload-pack=touch /x",
            "ext::sh -c touch% /x",
            "fd::17",
            "https://user:pw@h/a",
            "https://user@h/a",
            "ssh://-oProxyCommand=x/a",
            "ssh://git@-oProxyCommand=x/a",
            "-oProxyCommand=x:a",
            "git@-x:a",
            ":a",
            "ftp://h/a",
            "https:///a",
            "https://h\n/a",
            "https://h%2f/a",
            "https://ä/a",
            "a\0",
        ] {
            assert!(super::remote("url", wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_author_has_a_name_and_an_address() {
        assert_eq!(author(None, None).unwrap(), None);
        assert_eq!(author(Some("A B"), Some("a@b")).unwrap(), Some(("A B", "a@b")));
        let pairs = [
            (Some("a"), None),
            (None, Some("a")),
            (Some(""), Some("a")),
            (Some("a\nb"), Some("a")),
            (Some("a"), Some("<a>")),
        ];
        for (name, email) in pairs {
            assert!(author(name, email).is_err(), "{name:?} {email:?}");
        }
    }

    #[test]
    fn numbers_have_a_range() {
        assert_eq!((limit(None).unwrap(), limit(Some(1000)).unwrap()), (50, 1000));
        assert!(limit(Some(0)).is_err() && limit(Some(1001)).is_err());
        assert_eq!(depth(1).unwrap(), "1");
        assert!(depth(0).is_err() && depth(1 << 31).is_err());
        assert!(files(&[]).is_err() && files(&["x".repeat(4097)]).is_err() && files(&["-f".to_owned()]).is_ok());
        assert!(files(&vec!["x".repeat(200); 2000]).is_err());
    }
}
