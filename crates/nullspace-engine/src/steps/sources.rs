//! What the sources of a copy mean: entries of a build context, folders of them, or Go's `filepath.Match` patterns, which
//! is what Docker takes. A `*` stays within one part of a path.

use std::collections::{BTreeMap, BTreeSet};

use crate::context::{PlannedContext, PlannedEntry};

/// Permissions of files and folders that came without.
const FILE_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;

/// One source, as it is to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The file's own name; `None` for a folder, whose contents are copied.
    pub(crate) name: Option<String>,
    /// The source itself with the empty path, then what is in it, folders first.
    pub(crate) entries: Vec<SourceEntry>,
}

/// An entry of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceEntry {
    /// Below the source.
    pub(crate) path: String,
    /// Permission bits.
    pub(crate) mode: u32,
    /// A file's blob id; `None` for a folder.
    pub(crate) blob: Option<String>,
}

/// Whether it has signs of a pattern.
pub(crate) fn is_pattern(source: &str) -> bool {
    source.contains(['*', '?', '['])
}

/// A source without `.`, empty parts and slashes at its ends; empty for the whole context.
fn tidy(source: &str) -> String {
    source.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

/// The entries and folders that a source names, in the order of their paths. What is there by that very name goes before
/// reading it as a pattern.
pub(crate) fn named<V>(entries: &BTreeMap<String, V>, source: &str) -> Vec<String> {
    let path = tidy(source);
    let folder = format!("{path}/");
    let inside = || entries.range(folder.clone()..).next().is_some_and(|(name, _)| name.starts_with(&folder));
    if path.is_empty() || entries.contains_key(&path) || inside() {
        return vec![path];
    }
    if !is_pattern(&path) {
        return Vec::new();
    }
    let parts = path.split('/').count();
    let mut found = BTreeSet::new();
    for name in entries.keys() {
        // Folders need not be entries of their own.
        let Some(head) = head(name, parts) else { continue };
        if !found.contains(head) && path.split('/').zip(head.split('/')).all(|(pattern, part)| fits(pattern, part)) {
            found.insert(head.to_owned());
        }
    }
    found.into_iter().collect()
}

/// The first `parts` parts of a path that has as many.
fn head(path: &str, parts: usize) -> Option<&str> {
    let mut ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    path.get(..ends.nth(parts.checked_sub(1)?)?)
}

/// Resolves a source in a build's context.
pub(crate) fn resolve(context: &PlannedContext, source: &str) -> Vec<Source> {
    named(&context.0, source).iter().map(|path| one(context, path)).collect()
}

fn one(context: &PlannedContext, path: &str) -> Source {
    if let Some(PlannedEntry { mode, blob: Some(blob), .. }) = context.0.get(path) {
        let entry = SourceEntry { path: String::new(), mode: mode.unwrap_or(FILE_MODE), blob: Some(blob.clone()) };
        let name = path.rsplit('/').next().unwrap_or(path).to_owned();
        return Source { name: Some(name), entries: vec![entry] };
    }
    let mode = |path: &str| context.0.get(path).and_then(|entry| entry.mode).unwrap_or(FOLDER_MODE);
    let mut entries = vec![SourceEntry { path: String::new(), mode: mode(path), blob: None }];
    let mut made = BTreeSet::new();
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    let below = context.0.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix));
    for (name, entry) in below {
        let Some(relative) = name.get(prefix.len()..).filter(|relative| !relative.is_empty()) else { continue };
        for (at, _) in relative.match_indices('/') {
            let folder = relative.get(..at).unwrap_or_default();
            if made.insert(folder.to_owned()) {
                let whole = format!("{prefix}{folder}");
                entries.push(SourceEntry { path: folder.to_owned(), mode: mode(&whole), blob: None });
            }
        }
        match &entry.blob {
            Some(blob) => entries.push(SourceEntry {
                path: relative.to_owned(),
                mode: entry.mode.unwrap_or(FILE_MODE),
                blob: Some(blob.clone()),
            }),
            None if made.insert(relative.to_owned()) => {
                entries.push(SourceEntry { path: relative.to_owned(), mode: mode(name), blob: None });
            }
            None => {}
        }
    }
    Source { name: None, entries }
}

/// One part of a pattern against one part of a path.
fn fits(pattern: &str, part: &str) -> bool {
    let (pattern, part): (Vec<char>, Vec<char>) = (pattern.chars().collect(), part.chars().collect());
    let (mut at, mut from) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match (pattern.get(at), part.get(from)) {
            (None, None) => return true,
            (Some('*'), _) => {
                retry = Some((at, from + 1));
                at += 1;
                continue;
            }
            (Some(_), Some(&letter)) => letter_fits(&pattern, at, letter),
            _ => None,
        };
        match (step, retry) {
            (Some(next), _) => (at, from) = (next, from + 1),
            (None, Some((star, next))) if next <= part.len() => {
                (at, from) = (star + 1, next);
                retry = Some((star, next + 1));
            }
            (None, _) => return false,
        }
    }
}

/// Whether the pattern's sign at `at` takes the letter; where the next sign begins.
fn letter_fits(pattern: &[char], at: usize, letter: char) -> Option<usize> {
    match pattern.get(at)? {
        '?' => Some(at + 1),
        '\\' => (*pattern.get(at + 1)? == letter).then_some(at + 2),
        '[' => {
            let mut at = at + 1;
            let negated = pattern.get(at) == Some(&'^');
            at += usize::from(negated);
            let mut inside = false;
            let mut first = true;
            while first || *pattern.get(at)? != ']' {
                first = false;
                let low = bound(pattern, &mut at)?;
                let high = if pattern.get(at) == Some(&'-') {
                    at += 1;
                    bound(pattern, &mut at)?
                } else {
                    low
                };
                inside |= (low..=high).contains(&letter);
            }
            (inside != negated).then_some(at + 1)
        }
        sign => (*sign == letter).then_some(at + 1),
    }
}

/// A letter of a class.
fn bound(pattern: &[char], at: &mut usize) -> Option<char> {
    if pattern.get(*at) == Some(&'\\') {
        *at += 1;
    }
    let letter = *pattern.get(*at)?;
    *at += 1;
    Some(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(entries: &[(&str, Option<u32>, bool)]) -> PlannedContext {
        let entry = |mode: &Option<u32>, file: &bool, path: &str| PlannedEntry {
            mode: *mode,
            blob: file.then(|| format!("blob of {path}")),
            inline: false,
        };
        PlannedContext(entries.iter().map(|(path, mode, file)| ((*path).to_owned(), entry(mode, file, path))).collect())
    }

    #[test]
    fn patterns_are_gos() {
        for (pattern, part, expected) in [
            ("*", "", true),
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txt.gz", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("?", "ä", true),
            ("?", "", false),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[^a-c]x", "dx", true),
            (r"\*", "*", true),
            (r"\*", "x", false),
            (r"[\]]", "]", true),
            ("[a", "a", false),
            ("***a***", "bab", true),
        ] {
            assert_eq!(fits(pattern, part), expected, "{pattern} {part}");
        }
        let long = "a*".repeat(200) + "b";
        assert!(!fits(&long, &"a".repeat(500)));
    }

    #[test]
    fn sources_are_files_folders_and_patterns() {
        let files = context(&[
            ("a.txt", Some(0o600), true),
            ("b.txt", None, true),
            ("dir", Some(0o700), false),
            ("dir-2/x", None, true),
            ("dir/deep/er/file", None, true),
            ("dir/empty", None, false),
            ("odd[1]", None, true),
        ]);
        assert_eq!(named(&files.0, "*.txt"), ["a.txt", "b.txt"]);
        assert_eq!(named(&files.0, "dir*"), ["dir", "dir-2"]);
        assert_eq!(named(&files.0, "*/x"), ["dir-2/x"]);
        assert_eq!(named(&files.0, "./dir//deep/"), ["dir/deep"]);
        assert_eq!(named(&files.0, "odd[1]"), ["odd[1]"], "its own name goes first");
        assert_eq!(named(&files.0, "/"), [""]);
        assert!(
            named(&files.0, "none").is_empty() && named(&files.0, "x*").is_empty() && named(&files.0, "di").is_empty()
        );

        type Shown = Vec<(Option<String>, Vec<(String, u32, bool)>)>;
        let shown = |source: &str| -> Shown {
            let sources = resolve(&files, source).into_iter();
            let entries =
                |source: Source| source.entries.into_iter().map(|e| (e.path, e.mode, e.blob.is_some())).collect();
            sources.map(|source| (source.name.clone(), entries(source))).collect()
        };
        let (file, folder) = (true, false);
        assert_eq!(shown("a.txt"), [(Some("a.txt".into()), vec![("".into(), 0o600, file)])]);
        assert_eq!(
            shown("dir"),
            [(
                None,
                vec![
                    ("".into(), 0o700, folder),
                    ("deep".into(), 0o755, folder),
                    ("deep/er".into(), 0o755, folder),
                    ("deep/er/file".into(), 0o644, file),
                    ("empty".into(), 0o755, folder),
                ]
            )]
        );
        let whole = shown(".");
        assert_eq!(whole.len(), 1);
        assert_eq!(whole[0].1.len(), 11, "{whole:?}");
    }
}
