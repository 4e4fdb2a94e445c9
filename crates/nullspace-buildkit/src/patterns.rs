//! Selection of files for BuildKit: patterns of `.dockerignore` and COPY, matched as moby's `patternmatcher` and
//! `fsutil` match them, because it is the client's side of file sync that filters.
//!
//! ```text
//!   *   anything but a slash      **   anything      ?   one character      [a-z]   one of these      \x   x itself
//!   !pattern   takes back what an earlier one matched
//! ```
//! A pattern that matches a directory matches all that is in it.

use std::collections::BTreeSet;

use regex::Regex;

use crate::tree::{Entry, Tree};

/// Patterns of one request, and bytes of one.
const MAX_PATTERNS: usize = 10_000;
const MAX_PATTERN: usize = 4096;
/// Memory of one compiled pattern.
const MAX_COMPILED: usize = 1 << 20;

/// A pattern that cannot be matched.
#[derive(Debug, thiserror::Error)]
#[error("pattern {pattern:?}: {why}")]
pub struct InvalidPattern {
    pattern: String,
    why: String,
}

impl InvalidPattern {
    fn new(pattern: &str, why: impl std::fmt::Display) -> Self {
        InvalidPattern { pattern: pattern.chars().take(200).collect(), why: why.to_string() }
    }
}

/// What BuildKit wants of a tree.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    /// Nothing: everything.
    include: Option<Patterns>,
    exclude: Option<Patterns>,
}

impl Filter {
    /// From the patterns of a request. `follow` are paths, perhaps with wildcards, that BuildKit will read; a tree here has
    /// no symlinks to be followed, so they are more of what to include. In them a `!` is a character like any other, and
    /// what is there by that very name is meant too.
    pub(crate) fn new(include: &[String], follow: &[String], exclude: &[String]) -> Result<Filter, InvalidPattern> {
        let paths: Vec<String> = follow.iter().map(|path| clean(path)).collect();
        // The whole tree: nothing is left out on account of them.
        let all = paths.iter().any(|path| path == "." || path == "/");
        let paths = if all { Vec::new() } else { paths };
        let include = match (include, paths.as_slice()) {
            ([], []) => None,
            (patterns, paths) => {
                let mut included = Patterns::new(patterns)?;
                included.follow(paths)?;
                Some(included)
            }
        };
        let exclude = if exclude.is_empty() { None } else { Some(Patterns::new(exclude)?) };
        Ok(Filter { include, exclude })
    }

    /// The entries that are wanted, with the directories above them, in the order of a walk.
    pub(crate) fn of<'t>(&self, tree: &'t Tree) -> Vec<(String, &'t Entry)> {
        let mut kept = BTreeSet::new();
        let walked: Vec<(String, &Entry)> = tree.walk().collect();
        // Which directories are open above the entry at hand: their places in `walked`.
        let mut above: Vec<usize> = Vec::new();
        for (index, (path, entry)) in walked.iter().enumerate() {
            let inside = |dir: &usize| walked.get(*dir).is_some_and(|(dir, _)| below(path, dir));
            while above.last().is_some_and(|dir| !inside(dir)) {
                above.pop();
            }
            let wanted = self.include.as_ref().is_none_or(|include| include.matches(path))
                && !self.exclude.as_ref().is_some_and(|exclude| exclude.matches(path));
            if wanted {
                for dir in &above {
                    kept.insert(*dir);
                }
                kept.insert(index);
            }
            if entry.source.is_none() {
                above.push(index);
            }
        }
        let keep = |(index, item)| kept.contains(&index).then_some(item);
        walked.into_iter().enumerate().filter_map(keep).collect()
    }
}

/// The paths of a tree that a `.dockerignore` of this text leaves, with the directories above them. The text is read as moby's
/// `ignorefile` reads it.
///
/// # Errors
/// When a pattern of it cannot be matched.
pub fn not_ignored(tree: &Tree, text: &str) -> Result<Vec<String>, InvalidPattern> {
    let lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
    let patterns: Vec<String> = lines
        .filter(|line| !line.starts_with('#'))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| match line.strip_prefix('!') {
            Some(rest) => format!("!{}", inside(rest.trim())),
            None => inside(line),
        })
        .collect();
    let filter = Filter::new(&[], &[], &patterns)?;
    Ok(filter.of(tree).into_iter().map(|(path, _)| path).collect())
}

/// A pattern of an ignore file, relative to the context.
fn inside(pattern: &str) -> String {
    if pattern.is_empty() {
        return String::new();
    }
    let cleaned = clean(pattern);
    cleaned.strip_prefix('/').filter(|rest| !rest.is_empty()).map_or(cleaned.clone(), str::to_owned)
}

fn below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

#[derive(Debug)]
struct Patterns(Vec<Pattern>);

#[derive(Debug)]
struct Pattern {
    /// Takes back.
    negated: bool,
    how: How,
}

#[derive(Debug)]
enum How {
    /// No character in it is special.
    Exactly(String),
    Regex(Regex),
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', ']', '\\'])
}

impl How {
    fn new(pattern: &str) -> Result<How, InvalidPattern> {
        if pattern.len() > MAX_PATTERN {
            return Err(InvalidPattern::new(pattern, format!("it has more than {MAX_PATTERN} bytes")));
        }
        if !is_pattern(pattern) {
            return Ok(How::Exactly(pattern.to_owned()));
        }
        let built = regex::RegexBuilder::new(&regex_of(pattern)).size_limit(MAX_COMPILED).build();
        built.map(How::Regex).map_err(|error| InvalidPattern::new(pattern, error))
    }
}

impl Patterns {
    fn new(texts: &[String]) -> Result<Patterns, InvalidPattern> {
        if texts.len() > MAX_PATTERNS {
            return Err(InvalidPattern::new("", format!("there are more than {MAX_PATTERNS}")));
        }
        let mut patterns = Vec::with_capacity(texts.len());
        for text in texts {
            let trimmed = text.trim();
            if trimmed.is_empty() {
                continue;
            }
            let cleaned = clean(trimmed);
            let (negated, pattern) = match cleaned.strip_prefix('!') {
                Some("") => return Err(InvalidPattern::new(text, "there is nothing after '!'")),
                Some(rest) => (true, rest),
                None => (false, cleaned.as_str()),
            };
            patterns.push(Pattern { negated, how: How::new(pattern)? });
        }
        Ok(Patterns(patterns))
    }

    /// Takes paths in that are clean, by their names and, if they are patterns, as those.
    fn follow(&mut self, paths: &[String]) -> Result<(), InvalidPattern> {
        if paths.len() > MAX_PATTERNS {
            return Err(InvalidPattern::new("", format!("there are more than {MAX_PATTERNS}")));
        }
        for path in paths {
            let path = path.trim_start_matches('/');
            self.0.push(Pattern { negated: false, how: How::Exactly(path.to_owned()) });
            if is_pattern(path)
                && let Ok(how) = How::new(path)
            {
                self.0.push(Pattern { negated: false, how });
            }
        }
        Ok(())
    }

    /// Whether the path, or a directory above it, matches; the last pattern that says anything decides.
    fn matches(&self, path: &str) -> bool {
        let mut matched = false;
        for pattern in &self.0 {
            if pattern.negated == matched && pattern.matches_at_or_above(path) {
                matched = !pattern.negated;
            }
        }
        matched
    }
}

impl Pattern {
    fn matches_at_or_above(&self, path: &str) -> bool {
        match &self.how {
            How::Exactly(text) => path == text || below(path, text),
            How::Regex(regex) => {
                let above = path.match_indices('/').filter_map(|(at, _)| path.get(..at));
                above.chain([path]).any(|path| regex.is_match(path))
            }
        }
    }
}

/// The regular expression of a pattern, as moby makes it.
fn regex_of(pattern: &str) -> String {
    let mut regex = String::from("^(?s:");
    let mut rest = pattern.chars().peekable();
    let mut in_class = false;
    while let Some(c) = rest.next() {
        match c {
            '*' if !in_class && rest.next_if_eq(&'*').is_some() => {
                // `**/` is `**`.
                rest.next_if_eq(&'/');
                regex.push_str(if rest.peek().is_none() { ".*" } else { "(.*/)?" });
            }
            '*' if !in_class => regex.push_str("[^/]*"),
            '?' if !in_class => regex.push_str("[^/]"),
            '\\' => push_literal(rest.next().unwrap_or('\\'), &mut regex),
            '[' if !in_class => {
                in_class = true;
                regex.push('[');
                if rest.next_if_eq(&'^').is_some() {
                    regex.push('^');
                }
            }
            ']' if in_class => {
                in_class = false;
                regex.push(']');
            }
            '-' if in_class => regex.push('-'),
            other => push_literal(other, &mut regex),
        }
    }
    regex.push_str(")$");
    regex
}

fn push_literal(c: char, regex: &mut String) {
    regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
}

/// Go's `filepath.Clean`.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::tree::Source;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    /// Cases of moby's `patternmatcher_test.go`, for Linux.
    #[test]
    fn patterns_match_as_mobys_do() {
        for (pattern, path, expected) in [
            ("**", "file", true),
            ("**", "file/", true),
            ("**/", "file", true),
            ("**/", "dir/file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("**/dir", "dir", true),
            ("**/dir", "dir/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir2/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**file", "dir/dir/file.txt", false),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/file*.txt*", "dir/dir/file.txt", true),
            ("**/*.txt", "file.txt", true),
            ("**/*.txt", "dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/*.txt2", "file.txt", false),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/dir/file.txt", true),
            ("a[b-d]e", "ae", false),
            ("a[b-d]e", "ace", true),
            ("a[b-d]e", "aae", false),
            ("a[^b-d]e", "aze", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcdef", false),
            ("abc.def", "abc.def", true),
            ("abc.def", "abcZdef", false),
            ("abc?def", "abcZdef", true),
            ("abc?def", "abcdef", false),
            ("a\\\\", "a\\", true),
            ("**/foo/bar", "foo/bar", true),
            ("**/foo/bar", "dir/foo/bar", true),
            ("abc/**", "abc", false),
            ("abc/**", "abc/def", true),
            ("abc/**", "abc/def/ghi", true),
            ("**/.foo", ".foo", true),
            ("**/.foo", "bar.foo", false),
            ("a(b)c/def", "a(b)c/def", true),
            ("a(b)c/def", "a(b)c/xyz", false),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            (
                "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
                "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
                true,
            ),
            ("./docs", "docs/a", true),
            ("docs/", "docs/a", true),
            ("docs", "docs2", false),
        ] {
            let patterns = Patterns::new(&strings(&[pattern])).unwrap();
            assert_eq!(patterns.matches(path.trim_end_matches('/')), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn later_patterns_take_back_and_bad_ones_are_named() {
        let patterns = Patterns::new(&strings(&["*.md", "!README*.md", "README-secret.md", "", " docs "])).unwrap();
        for (path, matched) in
            [("a.md", true), ("README.md", false), ("README-x.md", false), ("README-secret.md", true), ("docs/x", true)]
        {
            assert_eq!(patterns.matches(path), matched, "{path}");
        }
        for bad in ["!", "[", "a[z-a]b"] {
            assert!(Patterns::new(&strings(&[bad])).is_err(), "{bad}");
        }
        assert!(Patterns::new(&[String::from("a").repeat(5000)]).is_err());
    }

    #[test]
    fn directories_above_what_is_wanted_come_with_it_and_no_others() {
        let mut tree = Tree::default();
        for path in ["src/main.c", "src/old/a.c", "src/old/keep.c", "doc/x.md", "top"] {
            tree.file(path, None, Source::Memory(Bytes::new())).unwrap();
        }
        tree.directory("empty", None).unwrap();
        let of = |include: &[&str], follow: &[&str], exclude: &[&str]| {
            let filter = Filter::new(&strings(include), &strings(follow), &strings(exclude)).unwrap();
            filter.of(&tree).into_iter().map(|(path, _)| path).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(&[], &[], &[]), "doc doc/x.md empty src src/main.c src/old src/old/a.c src/old/keep.c top");
        assert_eq!(
            of(&[], &[], &["src/old", "!src/old/keep.c"]),
            "doc doc/x.md empty src src/main.c src/old src/old/keep.c top"
        );
        assert_eq!(of(&[], &["src/*.c"], &[]), "src src/main.c");
        assert_eq!(of(&[], &["/src"], &["**/*.c"]), "src src/old");
        assert_eq!(of(&[], &["."], &["src"]), "doc doc/x.md empty top");
        assert_eq!(of(&["top"], &["empty"], &[]), "empty top");
        assert_eq!(of(&[".dockerignore"], &[], &[]), "");
    }

    #[test]
    fn names_with_signs_of_patterns_are_found_and_left_out() {
        let mut tree = Tree::default();
        for path in ["!bang", "bang", r"mnt\x2ddata", "mntx2ddata", "a[1]", "a1", "#x", " y", "-z/f"] {
            tree.file(path, None, Source::Memory(Bytes::new())).unwrap();
        }
        let of = |follow: &[&str], exclude: &[&str]| {
            let filter = Filter::new(&[], &strings(follow), &strings(exclude)).unwrap();
            filter.of(&tree).into_iter().map(|(path, _)| path).collect::<Vec<_>>().join("|")
        };
        assert_eq!(of(&["!bang"], &[]), "!bang");
        assert_eq!(of(&["/!bang", "bang"], &[]), "!bang|bang");
        assert_eq!(of(&["!*"], &[]), "!bang");
        assert_eq!(of(&[r"mnt\x2ddata"], &[]), r"mnt\x2ddata|mntx2ddata", "by its name, and as a pattern");
        assert_eq!(of(&[r"mnt\\x2ddata"], &[]), r"mnt\x2ddata");
        assert_eq!(of(&["a[1]"], &[]), "a1|a[1]");
        assert_eq!(of(&["#x", " y", "-z"], &[]), " y|#x|-z|-z/f");
        assert_eq!(of(&[], &["*", r"!\!bang"]), "!bang");
        assert_eq!(of(&[], &["*", "!bang"]), "bang");
        assert_eq!(of(&["!bang", "bang"], &[r"\!bang"]), "bang");
        assert_eq!(of(&["mnt*"], &[r"mnt\\x2ddata"]), "mntx2ddata");
        assert_eq!(of(&["a*"], &[r"a\[1]"]), "a1");
        assert_eq!(of(&["a[", "bang"], &[]), "bang", "no pattern, and no such name");
    }
}
