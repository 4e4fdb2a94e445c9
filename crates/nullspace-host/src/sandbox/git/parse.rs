//! Git's output in its formats for programs: entries end with NUL, so that no name of a file can look like another entry.

use nullspace_api::{GitBranchList, GitChangedFile, GitCommit, GitStatus};

/// Output that git does not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("git's output has another form than expected")]
pub(super) struct Unreadable;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads the output of `git status --porcelain=v2 --branch -z`.
pub(super) fn status(bytes: &[u8]) -> Result<GitStatus, Unreadable> {
    let mut status =
        GitStatus { detached: false, clean: true, changed: Vec::new(), branch: None, ahead: None, behind: None };
    let mut entries = bytes.split(|byte| *byte == 0);
    while let Some(entry) = entries.next() {
        let Some((kind, rest)) = entry.split_first() else { continue };
        let rest = rest.strip_prefix(b" ").ok_or(Unreadable)?;
        let file = match kind {
            b'#' => {
                header(&mut status, &text(rest))?;
                continue;
            }
            b'?' => GitChangedFile {
                path: text(rest),
                status: "untracked".to_owned(),
                staged: false,
                unstaged: true,
                original_path: None,
            },
            b'!' => continue,
            b'1' => changed(rest, 7, None)?,
            b'2' => {
                let from = entries.next().filter(|from| !from.is_empty()).ok_or(Unreadable)?;
                changed(rest, 8, Some(from))?
            }
            b'u' => GitChangedFile {
                status: "conflicted".to_owned(),
                staged: false,
                unstaged: true,
                ..changed(rest, 9, None)?
            },
            _ => return Err(Unreadable),
        };
        if file.path.is_empty() {
            return Err(Unreadable);
        }
        status.changed.push(file);
    }
    status.clean = status.changed.is_empty();
    Ok(status)
}

fn header(status: &mut GitStatus, header: &str) -> Result<(), Unreadable> {
    let Some((name, value)) = header.split_once(' ') else { return Ok(()) };
    match name {
        "branch.head" if value == "(detached)" => status.detached = true,
        "branch.head" => status.branch = Some(value.to_owned()),
        "branch.ab" => {
            let (ahead, behind) = value.split_once(' ').ok_or(Unreadable)?;
            let number =
                |text: &str, sign| text.strip_prefix(sign).and_then(|text| text.parse().ok()).ok_or(Unreadable);
            (status.ahead, status.behind) = (Some(number(ahead, '+')?), Some(number(behind, '-')?));
        }
        // Headers of a newer git.
        _ => {}
    }
    Ok(())
}

/// An entry with so many fields before its path. The first is two letters: the change in the index, and in the working tree.
fn changed(entry: &[u8], fields: usize, from: Option<&[u8]>) -> Result<GitChangedFile, Unreadable> {
    let mut parts = entry.splitn(fields + 1, |byte| *byte == b' ');
    let Some(&[index, tree]) = parts.next() else { return Err(Unreadable) };
    let path = parts.nth(fields - 1).ok_or(Unreadable)?;
    let status = match if index == b'.' { tree } else { index } {
        b'M' => "modified",
        b'T' => "type_changed",
        b'A' => "added",
        b'D' => "deleted",
        b'R' => "renamed",
        b'C' => "copied",
        b'U' => "conflicted",
        _ => return Err(Unreadable),
    };
    Ok(GitChangedFile {
        path: text(path),
        status: status.to_owned(),
        staged: index != b'.',
        unstaged: tree != b'.',
        original_path: from.map(text),
    })
}

/// The format of `git for-each-ref` that [`branches`] reads. No name of a reference has a line's end in it.
pub(super) const BRANCHES: &str = "%(HEAD)%(refname)";

/// Reads branches. `head` is what `git symbolic-ref HEAD` says, empty for a detached one.
pub(super) fn branches(bytes: &[u8], head: &[u8]) -> Result<GitBranchList, Unreadable> {
    let branch = |reference: &[u8]| reference.strip_prefix(b"refs/heads/").map(text);
    let mut list = GitBranchList { branches: Vec::new(), current: None };
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let (_, reference) = line.split_first().filter(|(mark, _)| matches!(mark, b'*' | b' ')).ok_or(Unreadable)?;
        list.branches.push(branch(reference).ok_or(Unreadable)?);
    }
    list.current = branch(head.trim_ascii());
    Ok(list)
}

/// The format of `git log -z` that [`log`] reads: five fields, each with its end.
pub(super) const LOG: &str = "%H%x00%an%x00%ae%x00%aI%x00%B";

/// Reads a log.
pub(super) fn log(bytes: &[u8]) -> Result<Vec<GitCommit>, Unreadable> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let mut fields = bytes.strip_suffix(b"\0").unwrap_or(bytes).split(|byte| *byte == 0);
    let mut commits = Vec::new();
    while let Some(hash) = fields.next() {
        let mut field = || fields.next().map(text).ok_or(Unreadable);
        commits.push(GitCommit {
            sha: sha(hash)?,
            author_name: field()?,
            author_email: field()?,
            date: field()?,
            message: field()?.trim_end_matches('\n').to_owned(),
        });
    }
    Ok(commits)
}

/// Reads the hash of a commit.
pub(super) fn sha(bytes: &[u8]) -> Result<String, Unreadable> {
    let hash = text(bytes.trim_ascii());
    let is_hash = matches!(hash.len(), 40 | 64) && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash { Ok(hash) } else { Err(Unreadable) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

    fn file(path: &str, status: &str, staged: bool, unstaged: bool) -> GitChangedFile {
        GitChangedFile { path: path.to_owned(), status: status.to_owned(), staged, unstaged, original_path: None }
    }

    #[test]
    fn a_status_of_every_kind_of_change() {
        let fields = format!("N... 100644 100644 100644 {SHA} {SHA}");
        let entries = [
            format!("# branch.oid {SHA}"),
            "# branch.head feature/x".to_owned(),
            "# branch.upstream origin/feature/x".to_owned(),
            "# branch.ab +2 -13".to_owned(),
            format!("1 M. {fields} a b\n c"),
            format!("1 .D {fields} gone"),
            format!("1 AM {fields} new"),
            format!("1 .T {fields} link"),
            format!("2 R. {fields} R100 to here"),
            "from there".to_owned(),
            format!("u UU N... 100644 100644 100644 100644 {SHA} {SHA} {SHA} both"),
            "? # branch.head evil".to_owned(),
            "? dir/".to_owned(),
            "! ignored".to_owned(),
            String::new(),
        ];
        let status = status(entries.join("\0").as_bytes()).unwrap();
        assert_eq!((status.branch.as_deref(), status.ahead, status.behind), (Some("feature/x"), Some(2), Some(13)));
        assert!(!status.detached && !status.clean);
        let renamed =
            GitChangedFile { original_path: Some("from there".to_owned()), ..file("to here", "renamed", true, false) };
        let expected = [
            file("a b\n c", "modified", true, false),
            file("gone", "deleted", false, true),
            file("new", "added", true, true),
            file("link", "type_changed", false, true),
            renamed,
            file("both", "conflicted", false, true),
            file("# branch.head evil", "untracked", false, true),
            file("dir/", "untracked", false, true),
        ];
        assert_eq!(status.changed, expected);
    }

    #[test]
    fn a_detached_and_an_empty_repository() {
        let detached = status(format!("# branch.oid {SHA}\0# branch.head (detached)\0").as_bytes()).unwrap();
        assert!(detached.detached && detached.clean && detached.branch.is_none() && detached.ahead.is_none());
        let unborn = status(b"# branch.oid (initial)\0# branch.head main\0").unwrap();
        assert!(!unborn.detached && unborn.branch.as_deref() == Some("main"));
    }

    #[test]
    fn what_is_no_status_is_refused() {
        for output in
            ["x", "1", "1 M", "1 M. a b", "1 XY N... 1 2 3 4 5 p\0", "2 R. N... 1 2 3 4 5 R9 p\0", "? ", "## main\n"]
        {
            assert_eq!(status(output.as_bytes()), Err(Unreadable), "{output:?}");
        }
    }

    #[test]
    fn branches_with_and_without_a_current_one() {
        let output = b"*refs/heads/main\n refs/heads/feature/x\n";
        let list = branches(output, b"refs/heads/main\n").unwrap();
        assert_eq!(
            (list.branches, list.current),
            (vec!["main".to_owned(), "feature/x".to_owned()], Some("main".to_owned()))
        );
        assert_eq!(branches(b"", b"refs/heads/unborn\n").unwrap().current.as_deref(), Some("unborn"));
        assert_eq!(branches(output, b"").unwrap().current, None);
        assert!(branches(b"fatal: x\n", b"").is_err());
    }

    #[test]
    fn a_log_keeps_messages_whole() {
        let output = format!("{SHA}\0A B\0a@b\x002026-01-02T03:04:05+01:00\0one\n\nbody\n\0{SHA}\0\0\0d\0\n\0");
        let commits = log(output.as_bytes()).unwrap();
        assert_eq!(commits.len(), 2);
        assert_eq!((commits[0].author_name.as_str(), commits[0].message.as_str()), ("A B", "one\n\nbody"));
        assert_eq!((commits[1].author_name.as_str(), commits[1].message.as_str()), ("", ""));
        assert_eq!(log(b"").unwrap(), []);
        assert!(log(b"no hash\0a\0b\0c\0d\0").is_err());
        assert!(log(&output.as_bytes()[..60]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (status(&bytes), log(&bytes), branches(&bytes, &bytes), sha(&bytes));
        }

        #[test]
        fn names_of_files_never_change_what_is_said_of_others(names in proptest::collection::vec("[^\0]{1,30}", 1..8)) {
            let entries: String = names.iter().map(|name| format!("? {name}\0")).collect();
            let status = status(entries.as_bytes()).unwrap();
            let found: Vec<_> = status.changed.iter().map(|file| file.path.clone()).collect();
            prop_assert_eq!(found, names);
            prop_assert_eq!(status.branch, None);
        }

        #[test]
        fn a_log_is_read_as_it_was_written(fields in proptest::collection::vec(("[^\0]{0,9}", "[^\0]{0,9}", "[^\0\n]{0,20}"), 0..5)) {
            let output: String = fields.iter().map(|(name, email, message)| format!("{SHA}\0{name}\0{email}\0d\0{message}\0")).collect();
            let commits = log(output.as_bytes()).unwrap();
            prop_assert_eq!(commits.len(), fields.len());
            for (commit, (name, email, message)) in commits.iter().zip(&fields) {
                prop_assert_eq!((&commit.author_name, &commit.author_email, &commit.message), (name, email, message));
            }
        }
    }
}
